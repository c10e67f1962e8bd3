"""A gateway knows into which buckets its database is divided before anything is asked of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.workers import places
from gateway.workers.places import following_buckets
from storage.engine.buckets import Buckets
from storage.engine.database import Database, DatabaseUnavailable, Outcome
from tests.steps import until

#: What it finds when it looks for the buckets, one after the other; the last one again and again.
Found = list[Buckets | Exception]

LOST = DatabaseUnavailable(Outcome.NOT_WRITTEN)
TWO, MOVED = Buckets((3, 1)), Buckets((3, 1))


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    """One that nobody connects to."""
    database = Database("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    yield database
    await database.close()


@pytest.fixture
def looks(database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Sets what is found; what it returns has an item for each look."""

    def set_up(*found: Buckets | Exception) -> list[int]:
        counted: list[int] = []

        async def find_buckets(_self: Database) -> None:
            step = found[min(len(counted), len(found) - 1)]
            counted.append(len(counted))
            if isinstance(step, Exception):
                raise step
            database.divide(step)

        monkeypatch.setattr(Database, "find_buckets", find_buckets)
        for name in ("SECONDS", "RETRY_SECONDS", "FIRST_SECONDS"):
            monkeypatch.setattr(places, name, 0.001)
        return counted

    return set_up


async def test_a_database_that_is_not_divided_is_asked_once(
    database: Database, looks: Callable[..., list[int]]
) -> None:
    counted = looks(Buckets())
    async with following_buckets(database):
        assert database.buckets.is_one
        await asyncio.sleep(0.02)
    assert len(counted) == 1


async def test_one_that_is_divided_is_asked_again_and_again(
    database: Database, looks: Callable[..., list[int]]
) -> None:
    counted = looks(TWO, LOST, ValueError("of the driver"), MOVED)
    async with following_buckets(database):
        assert database.buckets is TWO
        await until(lambda: database.buckets is MOVED)
        assert len(counted) >= 4
    so_far = len(counted)
    await asyncio.sleep(0.02)
    assert len(counted) == so_far


async def test_until_it_has_answered_nothing_about_meters_is(
    database: Database, looks: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = looks(LOST, LOST, TWO)
    monkeypatch.setattr(places, "RETRY_SECONDS", 0.05)
    async with following_buckets(database):
        assert len(counted) == 1
        with pytest.raises(DatabaseUnavailable) as refused:
            _ = database.buckets
        assert refused.value.outcome is Outcome.NOT_WRITTEN
        await until(lambda: len(counted) == 3)
        assert database.buckets is TWO


async def test_the_servers_that_are_known_are_those_where_buckets_lie(database: Database) -> None:
    """Each bucket has two connections for groups where it lies, and the server of the URL has two."""

    def groups() -> tuple[int, int]:
        return len(database.engines) // 3, database.connections["groups"].max_open

    def lying(*names: str) -> Buckets:
        return Buckets((3, 1, 7, 4), [(f"{name}.test", 5432) for name in names])

    assert list(database.divide(lying("one", "one", "one", "one"))) == []
    assert groups() == (2, 2 + 8)
    (left,) = database.divide(lying("one", "one", "two", "one"))
    assert left.connections["groups"].max_open == 8
    assert groups() == (3, 2 + 6 + 2)
    assert list(database.divide(lying("one", "one", "one", "two"))) == []
    assert len(database.divide(lying("two", "two", "two", "two"))) == 2
    assert groups() == (2, 2 + 8)


async def test_sqlite_is_never_asked(looks: Callable[..., list[int]], tmp_path: Any) -> None:
    counted = looks(TWO)
    sqlite = Database(f"sqlite+aiosqlite:///{tmp_path}/t.db")
    async with following_buckets(sqlite):
        assert sqlite.buckets.is_one
    await sqlite.close()
    assert counted == []
