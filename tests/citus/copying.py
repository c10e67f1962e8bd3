"""On Citus: `tollgate copy` from a divided database, and to one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import select, text

from resolvers.maintenance.copying import Copied, copy
from resolvers.maintenance.meter_check import Disagreement
from storage import migrations
from storage.engine.database import Database
from storage.maintenance import copying
from storage.meters.billing_meters import MeterName, billing_meters
from tests import commands
from tests.citus.cluster import divided, drop_database, new_database
from tests.conftest import Gateway, gateway_on
from tests.divided import OF_METERS, check_moved, fill, give_id, one_of_each, rows_but_buckets, seen
from tests.steps import disagreements, execute, make_customer, must, opened, rows_of

NAMES = [f"m{number}" for number in range(9)]


@pytest.fixture
async def other_url() -> AsyncIterator[str]:
    """The URL of another new database on all machines, which has no tables."""
    made = await new_database()
    yield made
    await drop_database(made)


class Books(NamedTuple):
    """A database with nine meters, one of which has an id from before ids said where it lies."""

    url: str
    gateway: Gateway
    #: The meters' ids, in the order of `NAMES`.
    ids: list[str]


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    """The nine meters, on SQLite."""
    url = f"sqlite+aiosqlite:///{tmp_path}/books.db"
    async with opened(url) as database:
        await migrations.upgrade(database)
    async with gateway_on(url) as shared:
        gateway = await shared.for_new_organization()
        customer_id = await make_customer(gateway)
        *ids, old = [await fill(gateway, name, customerId=customer_id) for name in NAMES]
        await give_id(gateway.database, old, old[:-3])
        yield Books(url, gateway, [*ids, old[:-3]])


async def copied(source: Database, target: Database, *, again: bool = False, **options: Any) -> Copied:
    """Copy as the command does; `again`: there is an unfinished copy."""
    await target.find_buckets()
    assert await migrations.begin_copy(target) is again
    return await copy(source, target, **options)


async def buckets_of_rows(database: Database) -> dict[str, set[tuple[str, int]]]:
    """Return, of each table, the meters whose rows it has, and where these lie."""
    found = {}
    async with database.read() as reader:
        for table in OF_METERS:
            id_ = table.c.id if table is billing_meters else table.c.meter_id
            rows = await reader.fetch(select(id_.label("id"), table.c.bucket))
            found[table.name] = {(row.id, row.bucket) for row in rows}
    return found


async def where_they_belong(database: Database) -> dict[str, set[tuple[str, int]]]:
    """Return the same as it is right, where each meter has rows in each table."""
    columns = [billing_meters.c[name] for name in MeterName._fields]
    async with database.read() as reader:
        meters = await reader.fetch(select(billing_meters.c.id, *columns))
    right = {(row[0], database.buckets.of_names(row[1:])) for row in meters}
    return {table.name: right for table in OF_METERS}


async def run(*arguments: str, url: str, folder: Path) -> commands.Done:
    """Run `tollgate` on the database."""
    environment = commands.environment(TOLLGATE_DATABASE_URL=url)
    return await asyncio.to_thread(commands.run, *arguments, folder=folder, environment=environment)


async def test_a_copy_to_an_undivided_database_has_all(url: str, tmp_path: Path) -> None:
    await divided(url)
    async with gateway_on(url) as shared:
        gateway = await shared.for_new_organization()
        names = one_of_each(gateway)
        for name in names:
            await fill(gateway, name)
        before = await seen(gateway, names)
    to = f"sqlite+aiosqlite:///{tmp_path}/copied.db"
    async with opened(url) as source, opened(to) as target:
        await source.find_buckets()
        result = await copied(source, target)
        assert (result.rows["billing_meters"], result.verified.meters, result.disagreements) == (4, 4, [])
        assert await rows_but_buckets(target) == await rows_but_buckets(source)
    await check_moved(to, gateway, names, before)


async def test_a_copy_to_a_divided_database_has_all_where_it_belongs(
    url: str, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "PORTION", 7)
    before = await seen(books.gateway, NAMES)
    rows = await rows_but_buckets(books.gateway.database)
    await divided(url)
    async with opened(url) as target:
        result = await copied(books.gateway.database, target)
        assert result.rows == {name: len(each) for name, each in rows.items()}
        assert (result.rows["billing_meters"], result.verified.meters, result.disagreements) == (9, 9, [])
        assert await rows_but_buckets(target) == rows
        assert len(target.buckets.values) == 4
        found = await buckets_of_rows(target)
        assert found == await where_they_belong(target)
        assert {id_ for id_, _ in found["billing_meters"]} == {*books.ids}
    await check_moved(url, books.gateway, NAMES, before)


async def test_names_say_where_a_meter_is_copied_to_and_not_its_id(url: str, books: Books) -> None:
    id_ = books.ids[0]
    await give_id(books.gateway.database, id_, f"{id_[:-3]}{0xFFF ^ int(id_[-3:], 16):03x}")
    await divided(url)
    async with opened(url) as target:
        assert (await copied(books.gateway.database, target)).disagreements == []
        assert await buckets_of_rows(target) == await where_they_belong(target)
        assert await disagreements(target) == []
    async with gateway_on(url) as after:
        after.org_id, after.key = books.gateway.org_id, books.gateway.key
        await must(after, "recordUsage", eventId="e9", externalMeterId=NAMES[0], amount="7")
        assert await disagreements(after.database, now=after.clock()) == []


async def test_rows_without_a_meter_are_copied_and_reported(url: str, books: Books) -> None:
    source = books.gateway.database
    for day in ("0001-01-01", "2026-01-01", "9999-12-31"):
        await execute(
            source,
            "INSERT INTO usage_days (meter_id, day, usage_name, total_usage) VALUES ('mtr_x', :day, 'u', 1)",
            day=day,
        )
    missing = [Disagreement("mtr_x", "usage_days has rows of it, and there is no such meter")]
    assert await disagreements(source, now=books.gateway.clock()) == missing
    await divided(url)
    async with opened(url) as target:
        assert (await copied(source, target)).disagreements == missing
        assert await rows_but_buckets(target) == await rows_but_buckets(source)
        right = await where_they_belong(target)
        right["usage_days"] = right["usage_days"] | {("mtr_x", target.buckets.values[0])}
        assert await buckets_of_rows(target) == right
        assert await disagreements(target, now=books.gateway.clock()) == missing
        async with target.read() as reader:
            # The driver takes the first day and the last one for infinities, and these for those days.
            days = "SELECT day::text FROM usage_days WHERE meter_id = 'mtr_x' ORDER BY day"
            found = await reader.fetch(text(days))
        assert [row.day for row in found] == ["0001-01-01", "2026-01-01", "9999-12-31"]


async def test_the_number_of_buckets_is_changed_by_a_copy(
    url: str, other_url: str, books: Books, tmp_path: Path
) -> None:
    await divided(url, 4)
    await divided(other_url, 8)
    before = await seen(books.gateway, NAMES)
    rows = await rows_but_buckets(books.gateway.database)
    async with opened(url) as four, opened(other_url) as eight:
        await copied(books.gateway.database, four)
        done = await run("copy", "--to", other_url, "--json", url=url, folder=tmp_path)
        assert (done.err.strip(), done.json["rows"]["billing_meters"], done.json["disagreements"]) == ("", 9, 0)
        await eight.find_buckets()
        assert len(eight.buckets.values) == 8
        assert await rows_but_buckets(eight) == await rows_but_buckets(four) == rows
        assert await buckets_of_rows(eight) == await where_they_belong(eight)
        assert await buckets_of_rows(four) == await where_they_belong(four)
    await check_moved(other_url, books.gateway, NAMES, before)


class Stopped(Exception):
    """The copy is stopped by the test."""


async def test_a_copy_that_did_not_end_is_started_anew_and_the_division_stays(
    url: str, books: Books, tmp_path: Path
) -> None:
    await divided(url)
    before = await seen(books.gateway, NAMES)
    rows = await rows_but_buckets(books.gateway.database)
    again = False
    async with opened(url) as target:
        for step in ("Copying", "Comparing", "Verifying the copy"):

            def stop(now: str, _done: int, _of: int, step: str = step) -> None:
                if now == step:
                    raise Stopped

            with pytest.raises(Stopped):
                await copied(books.gateway.database, target, again=again, on_progress=stop)
            again = True
            assert await migrations.may_serve(target) is False
        values = target.buckets.values
        assert await rows_but_buckets(target) == rows
        served = await run("verify", url=url, folder=tmp_path)
        assert (served.code, served.out) == (1, "")
        assert "`tollgate copy` has not finished filling the database" in served.err
        done = await run("copy", "--to", url, "--json", url=books.url, folder=tmp_path)
        assert (done.code, done.err.strip()) == (
            0,
            "An unfinished copy was found there: it is dropped, and started anew.",
        )
        await target.find_buckets()
        assert target.buckets.values == values
        assert await rows_but_buckets(target) == rows
        assert await buckets_of_rows(target) == await where_they_belong(target)
        assert await migrations.is_current(target)
    await check_moved(url, books.gateway, NAMES, before)


async def test_a_divided_database_that_holds_anything_is_refused_and_left_as_it_is(
    url: str, books: Books, tmp_path: Path
) -> None:
    await divided(url)
    async with gateway_on(url) as shared:
        await fill(await shared.for_new_organization(), "m")
    async with opened(url) as target:
        before = await rows_of(target)
        assert await run("copy", "--to", url, url=books.url, folder=tmp_path) == (
            1,
            "",
            "Error: The database of --to must be empty, and its table api_keys has rows. Nothing was changed.\n",
        )
        assert await rows_of(target) == before
        assert await migrations.is_current(target)
