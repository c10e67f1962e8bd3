"""What is changed of automatic refills behind the gateway's back is found by `tollgate verify`."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.conftest import empty_database, gateway_on, migrated
from tests.ledgers import Books, found_in, named
from tests.refill_tamperings import BROKEN
from tests.refill_walks import RefillWalk
from tests.steps import disagreements

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
async def books(
    dialect: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Books]:
    """Books of a meter with requests in every state, on a database of this module.

    | request | amount | requested | state     |
    | ------- | ------ | --------- | --------- |
    | 1       | 45     | 12:00:00  | fulfilled |
    | 2       | 45     | 12:00:00  | failed    |
    | 3       | 45     | 12:00:00  | expired   |
    | 4       | 45     | 12:01:00  | expired   |
    | 5       | 45     | 12:02:00  | open      |
    """
    url = empty_database(dialect, request, tmp_path_factory.mktemp("tampered"))
    async with gateway_on(await migrated(url)) as gateway:
        walk = RefillWalk(gateway)
        await walk.begin(requestSeconds=60, maxRefills=100, maxCredits="10000")
        await walk.use(95)
        await walk.refill(1, 45)
        await walk.use(45)
        await walk.fail(2, "declined")
        for seconds in (60, 60):
            gateway.clock.forward(seconds=seconds)
            await walk.set(requestSeconds=60 if gateway.clock.now.minute == 1 else 3_600)
        assert await walk.requests() == ["45 FULFILLED", "45 FAILED", "45 EXPIRED", "45 EXPIRED", "45 OPEN"]
        assert await disagreements(gateway.database) == []
        digits = walk.meter_id.removeprefix("mtr_")
        yield Books(gateway, {"R": walk.meter_id, "D": f"arr_{digits}"})


@pytest.mark.parametrize("name", BROKEN)
async def test_a_rule_that_is_broken_is_found(books: Books, name: str) -> None:
    statements, expected = BROKEN[name]
    found = await found_in(books, statements)
    written = [
        re.sub("@([0-9:]+)", r"2026-03-16 \1+00:00", re.sub("@@([0-9:]+)", r"2026-03-17 \1+00:00", each))
        for each in expected
    ]
    assert found[: len(expected)] == [named(each, books.names) for each in written], found
    assert bool(found) == bool(expected)


async def test_a_meter_that_should_have_been_looked_at_a_minute_ago_is_found(books: Books) -> None:
    database, due = books.gateway.database, datetime(2026, 3, 16, 13, 2, tzinfo=UTC)
    assert await disagreements(database, now=due + timedelta(minutes=1)) == []
    found = await disagreements(database, now=due + timedelta(minutes=1, microseconds=1))
    assert [each.message for each in found] == [
        f"its automatic refill was to be looked at at {due}, as a running gateway does within seconds"
    ]
