"""Loading by key: together, once, and whatever becomes of the caller who fetches."""

import asyncio

import pytest

from resolvers.api_keys import ApiKeys
from resolvers.context import Context, utc_now
from resolvers.meters.writing.writer import MeterWriter
from resolvers.reading.loading import Loader
from storage.engine.database import DatabaseUnavailable, Outcome
from tests.conftest import Gateway
from tests.steps import until


class Source:
    """Answers a key by its length, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, keys: list[str]) -> list[int | Exception]:
        self.asked.append(list(keys))
        await self.gate.wait()
        return [len(key) if key else ValueError("no key") for key in keys]


@pytest.fixture
def source() -> Source:
    return Source()


async def test_what_is_asked_for_at_the_same_moment_is_fetched_together(source: Source) -> None:
    loader = Loader(source.fetch)
    one, two, three = await asyncio.gather(loader.load("a"), loader.load_many(["bb", "a"]), loader.load("ccc"))
    assert (one, two, three) == (1, [2, 1], 3)
    assert source.asked == [["a", "bb", "ccc"]]


async def test_what_was_fetched_is_not_fetched_again_until_it_is_cleared(source: Source) -> None:
    loader = Loader(source.fetch)
    assert await loader.load("a") == 1
    assert await loader.load_many(["a", "bb"]) == [1, 2]
    loader.clear()
    assert await loader.load("a") == 1
    assert source.asked == [["a"], ["bb"], ["a"]]


async def test_a_key_that_is_being_fetched_is_waited_for(source: Source) -> None:
    loader = Loader(source.fetch)
    source.gate.clear()
    first = asyncio.create_task(loader.load("a"))
    await until(lambda: source.asked == [["a"]])
    second = asyncio.create_task(loader.load_many(["a", "bb"]))
    await asyncio.sleep(0)
    source.gate.set()
    assert await first == 1
    assert await second == [1, 2]
    assert source.asked == [["a"], ["bb"]]


async def test_nobody_waits_for_a_caller_who_was_cancelled(source: Source) -> None:
    loader = Loader(source.fetch)
    source.gate.clear()
    first, second, third = [asyncio.create_task(loader.load(key)) for key in ("a", "bb", "ccc")]
    await until(lambda: source.asked == [["a", "bb", "ccc"]])
    first.cancel()
    third.cancel()
    await asyncio.gather(first, third, return_exceptions=True)
    source.gate.set()
    assert await second == 2
    assert (first.cancelled(), third.cancelled()) == (True, True)
    assert source.asked == [["a", "bb", "ccc"]] * 2


async def test_an_exception_is_raised_to_the_caller_that_asked_for_its_key(source: Source) -> None:
    loader = Loader(source.fetch)
    wrong, right = await asyncio.gather(loader.load_many(["a", ""]), loader.load("a"), return_exceptions=True)
    assert isinstance(wrong, ValueError)
    assert right == 1


async def test_what_goes_wrong_with_the_fetch_is_raised_by_all(source: Source) -> None:
    async def fail(keys: list[str]) -> list[int | Exception]:
        raise OSError(f"{len(keys)} keys")

    loader: Loader[str, int] = Loader(fail)
    found = await asyncio.gather(loader.load("a"), loader.load("bb"), return_exceptions=True)
    assert [str(error) for error in found] == ["2 keys", "2 keys"]
    assert source.asked == []


async def test_who_reads_alone_is_not_made_to_wait_for_others(source: Source) -> None:
    loader = Loader(source.fetch, gathers=False)
    assert await loader.load_many(["a", "bb"]) == [1, 2]
    assert await loader.load_many(["bb", "ccc"]) == [2, 3]
    assert source.asked == [["a", "bb"], ["ccc"]]


async def test_a_database_that_failed_a_request_is_not_asked_again_for_it(gateway: Gateway) -> None:
    actor = await ApiKeys(gateway.database, utc_now).actor_of((await gateway.caller()).key)
    with gateway.statements() as statements:
        for error in (ValueError("of the request's own"), DatabaseUnavailable(Outcome.NOT_WRITTEN)):
            context = Context(actor, gateway.database, MeterWriter(gateway.database, utc_now))
            context.begin_again(error)
            assert not context.has_one_reader
            if isinstance(error, DatabaseUnavailable):
                with pytest.raises(DatabaseUnavailable) as again:
                    await context.reading.billing_meter_by_names.load(("w", "m"))
                assert again.value is error
            else:
                assert await context.reading.billing_meter_by_names.load(("w", "m")) is None
    assert len(statements) == 1
