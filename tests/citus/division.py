"""On Citus: a database is divided, empty or filled, and served by gateways that know where its buckets lie."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from sqlalchemy import select, text
from sqlalchemy.schema import CreateTable

from storage import migrations
from storage.engine.database import Database
from storage.engine.transactions import Writer
from storage.engine.types import metadata
from storage.maintenance import distribution
from storage.maintenance.distribution import CannotDistribute, distribute
from storage.meters import ledger
from storage.meters.billing_meters import billing_meters, lock
from storage.meters.ledger import LedgerEntryKind, LedgerKey
from tests.citus.cluster import asked, divided, machines
from tests.conftest import Gateway, gateway_on
from tests.divided import (
    ALL_OF_A_METER,
    OF_METERS,
    bucket_of,
    check_moved,
    fill,
    give_id,
    one_of_each,
    rows_but_buckets,
    seen,
)
from tests.steps import disagreements, execute, make_customer, make_meter, must, opened, rows_of

#: A revision of a later release, after those that there are: what is of meters first, then what is on every server.
LATER = """from alembic import op

revision = "later"
down_revision = "{}"


def upgrade() -> None:
    op.execute("ALTER TABLE billing_meters ADD COLUMN later TEXT")
    op.execute("ALTER TABLE ledger_entries ADD COLUMN later BIGINT NOT NULL DEFAULT 7")
    op.execute("UPDATE billing_meters SET later = id")
    op.create_index("later_idx", "billing_meters", ["org_id", "later"])
    op.execute("ALTER TABLE customers ADD COLUMN later TEXT")
    op.execute("UPDATE customers SET later = id")
"""

BATCH = "mutation ($input: [RecordUsageInput!]!) { recordUsageBatch(input: $input) { __typename } }"


async def test_a_gateway_on_an_empty_database_writes_each_meter_where_it_lies(url: str) -> None:
    await divided(url)
    async with gateway_on(url) as shared:
        gateway = await shared.for_new_organization()
        buckets = gateway.database.buckets
        assert len(buckets.values) == len(set(buckets.values)) == 4
        assert min(buckets.values) > 0
        customer_id = await make_customer(gateway)
        names = one_of_each(gateway)
        for name, bucket in zip(names, buckets.values, strict=True):
            meter_id = await fill(gateway, name, customerId=customer_id)
            async with gateway.database.read() as reader:
                for table in OF_METERS:
                    id_ = table.c.id if table is billing_meters else table.c.meter_id
                    found = await reader.fetch(select(table.c.bucket).where(id_ == meter_id).distinct())
                    assert [row.bucket for row in found] == [bucket], table.name
        answers = await seen(gateway, names)
        assert [len(answer["ledger"]["nodes"]) for answer in answers.values()] == [11] * 4
        billed = f'{{ customer(id: "{customer_id}") {{ billingMeters(first: 9) {{ nodes {ALL_OF_A_METER} }} }} }}'
        nodes = (await gateway.data(billed))["customer"]["billingMeters"]["nodes"]
        by_id = {answer["id"]: answer for answer in answers.values()}
        assert nodes == [by_id[id_] for id_ in sorted(by_id, reverse=True)]
        assert await disagreements(gateway.database, now=gateway.clock()) == []
        # Whichever machine a gateway is connected to by its URL.
        for host, port in await machines():
            other_url = str(gateway.database.url.set(host=host, port=port))
            async with gateway_on(other_url) as other:
                other.org_id, other.key = gateway.org_id, gateway.key
                assert await seen(other, names) == answers


async def test_a_shard_is_one_bucket_and_each_machine_has_as_many(url: str) -> None:
    await divided(url, 8)
    async with opened(url) as database:
        await database.find_buckets()
        assert len(database.buckets.values) == 8
        places = list(database._places.values())
    workers = (await machines())[1:]
    even = [(8 + place) // len(workers) for place in range(len(workers))]
    assert sorted(places.count(each) for each in set(places)) == even


class Planned(NamedTuple):
    """How a statement is run."""

    command: str
    tasks: int
    #: Whether it is passed on as it is, by a plan that is kept.
    is_quick: bool


class TestTasks:
    """Of how many shards each statement asks, and how it goes there, by the plan of the machine that it is given to."""

    @pytest.fixture
    async def gateway(self, url: str) -> AsyncIterator[Gateway]:
        await divided(url)
        async with gateway_on(url) as shared:
            yield await shared.for_new_organization()

    @asynccontextmanager
    async def planned(self, gateway: Gateway, url: str) -> AsyncIterator[list[Planned]]:
        """Give, in the end, the plan of each different statement about meters that is run meanwhile."""
        statements: dict[str, Any] = {}
        plans: list[Planned] = []

        def note(_connection: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
            if any(table.name in statement for table in OF_METERS):
                statements.setdefault(statement, values)

        gateway.database.listen(begun=note, done=lambda *_: None)
        yield plans
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        said: list[str] = []
        connection.add_log_listener(lambda _, message: said.append(message.message))
        await connection.execute("SET client_min_messages TO debug2")
        try:
            for statement, values in statements.items():
                said.clear()
                plan = "\n".join([row[0] for row in await connection.fetch(f"EXPLAIN {statement}", *values)])
                count = re.search(r"Task Count: (\d+)", plan)
                assert count is not None, plan
                is_quick = any("fast-path router query" in each for each in said)
                plans.append(Planned(statement.split(maxsplit=1)[0], int(count[1]), is_quick=is_quick))
        finally:
            await connection.close()

    async def test_each_statement_about_a_meter_asks_one_shard(self, url: str, gateway: Gateway) -> None:
        customer_id = await make_customer(gateway)
        name, *_ = one_of_each(gateway)
        async with self.planned(gateway, url) as plans:
            await fill(gateway, name, customerId=customer_id)
            await seen(gateway, [name])
        assert {plan[:2] for plan in plans} == {("SELECT", 1), ("UPDATE", 1), ("INSERT", 1)}

    async def test_each_statement_of_a_group_asks_one_shard(self, url: str, gateway: Gateway) -> None:
        bucket = gateway.database.buckets.values[0]
        # A power of two, so that rows are added by one statement.
        names = [name for name in (f"m{number}" for number in range(128)) if bucket_of(gateway, name) == bucket][:8]
        for name in names:
            await must(gateway, "createBillingMeter", externalMeterId=name, timezone="UTC", totalCredits="100")
        async with self.planned(gateway, url) as plans:
            events = [
                {"workspaceId": "w", "externalMeterId": name, "eventId": f"e{number}", "amount": "1"}
                for number in range(4)
                for name in names
            ]
            recorded = await gateway.data(BATCH, {"input": events})
        assert recorded["recordUsageBatch"] == [{"__typename": "RecordUsageSuccess"}] * len(events)
        found, written, added = ("SELECT", 1, True), ("UPDATE", 1, True), ("INSERT", 1, False)
        assert plans == [found, found, found, written, added, added]

    async def test_lists_ask_every_shard(self, url: str, gateway: Gateway) -> None:
        customer_id = await make_customer(gateway)
        for name in one_of_each(gateway):
            await fill(gateway, name, customerId=customer_id)
        async with self.planned(gateway, url) as plans:
            await gateway.data("{ billingMeters(first: 9) { nodes { id } } }")
        assert plans == [("SELECT", 4, False)]


class TestFilled:
    @pytest.fixture
    async def books(self, url: str) -> AsyncIterator[tuple[Gateway, list[str]]]:
        """An undivided database with nine meters, one of which has an id from before ids said where it lies."""
        async with opened(url) as database:
            await migrations.upgrade(database)
        async with gateway_on(url) as shared:
            gateway = await shared.for_new_organization()
            customer_id = await make_customer(gateway)
            names = [f"m{number}" for number in range(9)]
            *_, meter_id = [await fill(gateway, name, customerId=customer_id) for name in names]
            await give_id(gateway.database, meter_id, meter_id[:-3])
            yield gateway, names

    async def test_all_is_as_it_was(self, url: str, books: tuple[Gateway, list[str]]) -> None:
        gateway, names = books
        before = await seen(gateway, names)
        async with opened(url) as database:
            rows = await rows_but_buckets(database)
            await distribute(database, 4)
            assert await rows_but_buckets(database) == rows
        await check_moved(url, gateway, names, before)

    async def test_what_was_interrupted_is_gone_on_with_and_nothing_is_written_meanwhile(
        self, url: str, books: tuple[Gateway, list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway, names = books
        before = await seen(gateway, names)
        monkeypatch.setattr(distribution, "METERS_AT_ONCE", 2)
        steps: list[tuple[str, int, int]] = []

        def stop(*step: Any) -> None:
            steps.append(step)
            if len(steps) in {3, 9}:
                raise KeyboardInterrupt

        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                await divided(url, on_progress=stop)
            answer = await gateway.run(
                'mutation { recordUsage(input: {workspaceId: "w", externalMeterId: "m1", eventId: "x", amount: "1"}) '
                "{ __typename } }"
            )
            assert answer["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
            assert await seen(gateway, names) == before
        await divided(url, on_progress=lambda *step: steps.append(step))
        assert steps[:3] == [("billing_meters", 2, 9), ("billing_meters", 4, 9), ("billing_meters", 6, 9)]
        # The third was done when it was interrupted, and is not done again.
        assert steps[3] == ("billing_meters", 8, 9)
        await check_moved(url, gateway, names, before)

    async def test_a_row_without_a_meter_is_not_lost_in_silence(
        self, url: str, books: tuple[Gateway, list[str]]
    ) -> None:
        gateway, names = books
        before = await seen(gateway, names)
        orphan = (
            "INSERT INTO usage_days (meter_id, day, usage_name, total_usage) VALUES ('mtr_x', '2026-01-01', 'u', 1)"
        )
        await execute(gateway.database, orphan)
        async with opened(url) as database:
            with pytest.raises(CannotDistribute) as refused:
                await distribute(database, 4)
            assert str(refused.value) == "of the 19 rows of usage_days 18 have a meter: see `tollgate verify`."
            await execute(database, "DELETE FROM usage_days WHERE meter_id = 'mtr_x'")
            await distribute(database, 4)
        await check_moved(url, gateway, names, before)

    async def test_a_gateway_that_knows_nothing_of_it_writes_nothing(
        self, url: str, books: tuple[Gateway, list[str]]
    ) -> None:
        gateway, _ = books
        async with opened(url) as database:
            await distribute(database, 4)
            before = await rows_of(database)
        # It was connected all the time, and still takes the database for undivided.
        assert gateway.database.buckets.is_one
        for mutation in (
            'recordUsage(input: {workspaceId: "w", externalMeterId: "m1", eventId: "x", amount: "1"})',
            'createBillingMeter(input: {workspaceId: "w", externalMeterId: "m1", timezone: "UTC"})',
        ):
            await gateway.run(f"mutation {{ {mutation} {{ __typename }} }}")
        async with opened(url) as database:
            assert await rows_of(database) == before


async def test_verify_reads_each_bucket_on_its_server_and_finds_what_is_wrong_there(url: str) -> None:
    await divided(url)
    async with gateway_on(url) as shared:
        gateway = await shared.for_new_organization()
        meter_ids = [await fill(gateway, name) for name in one_of_each(gateway)]
        database = gateway.database
        for meter_id in meter_ids:
            await execute(
                database, "UPDATE usage_days SET total_usage = total_usage + 1 WHERE meter_id = :id", id=meter_id
            )
        asked: set[tuple[int, Any]] = set()

        def note(connection: Any, _cursor: object, statement: str, values: Any, *_: object) -> None:
            if "FROM ledger_entries" in statement and "ledger_entries.bucket = $" in statement:
                asked.update((connection.engine.url.port, value) for value in values if value in places)

        places = database.buckets.places
        database.listen(begun=note, done=lambda *_: None)
        assert {id_ for id_, _ in await disagreements(database, now=gateway.clock())} == {*meter_ids}
        assert asked == {(port, bucket) for bucket, (_, port) in places.items()}
        assert {port for port, _ in asked} == {port for _, port in (await machines())[1:]}


async def test_another_number_of_buckets_is_refused(url: str) -> None:
    await divided(url)
    await divided(url)
    with pytest.raises(CannotDistribute) as refused:
        await divided(url, 8)
    assert str(refused.value) == "the database is divided into 4 buckets already."


async def test_a_later_revision_changes_all_tables_while_a_gateway_of_this_release_serves(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await divided(url)
    async with gateway_on(url) as shared:
        gateway = await shared.for_new_organization()
        names = one_of_each(gateway)
        customer_id = await make_customer(gateway)
        for name in names:
            await fill(gateway, name, customerId=customer_id)
        before = await seen(gateway, names)
        (head,) = migrations._newest()
        folder = shutil.copytree(migrations._HERE, tmp_path / "migrations")
        (folder / "versions" / "later.py").write_text(LATER.format(head), encoding="utf-8")
        later = Database(url)
        # As the code of that release has it.
        with monkeypatch.context() as patched:
            patched.setattr(migrations, "_HERE", folder)
            migrations._newest.cache_clear()
            migrations._known.cache_clear()
            try:
                await migrations.upgrade(later)
                assert await migrations.is_current(later)
            finally:
                migrations._newest.cache_clear()
                migrations._known.cache_clear()
        await later.close()
        for place in await machines():
            assert [tuple(row) for row in await asked(place, url, "SELECT later FROM customers")] == [(customer_id,)]
            meters = await asked(place, url, "SELECT id = later AS is_filled FROM billing_meters")
            assert [row["is_filled"] for row in meters] == [True] * len(names)
            defaults = await asked(place, url, "SELECT DISTINCT later FROM ledger_entries")
            assert [row["later"] for row in defaults] == [7]
        assert await seen(gateway, names) == before
        assert await migrations.may_serve(gateway.database)
        for name in names:
            await must(gateway, "recordUsage", externalMeterId=name, eventId="after", amount="1")
        await make_meter(gateway, "new", customerId=await make_customer(gateway, "new@example.com"))
        assert await disagreements(gateway.database, now=gateway.clock()) == []


async def test_new_tables_of_a_migration_are_divided_like_the_others(url: str) -> None:
    await divided(url)
    database = Database(url)
    new = ("events", "meter_alerts", "alerts", "webhook_endpoints")

    async def make_anew(writer: Writer) -> None:
        for name in new:
            await writer.execute(text(f"DROP TABLE {name}"))
            await writer.execute(CreateTable(metadata.tables[name]))

    await database.write(make_anew)
    for _ in range(2):
        await distribution.complete(database)
        async with database.read() as reader:
            rows = await reader.fetch(text("SELECT logicalrelid::text, partmethod::text FROM pg_dist_partition"))
        methods = {row.logicalrelid: row.partmethod for row in rows}
        assert [methods[name] for name in new] == ["h", "h", "n", "n"]
    await database.close()
    async with gateway_on(url) as shared:
        gateway = await shared.for_new_organization()
        for name in one_of_each(gateway):
            await fill(gateway, name, customerId=await make_customer(gateway, f"{name}@example.com"))
        assert await disagreements(gateway.database, now=gateway.clock()) == []


async def test_the_memory_of_a_servers_process_is_flat_over_100_000_statements(url: str) -> None:
    await divided(url)
    async with gateway_on(url) as shared:
        gateway = await shared.for_new_organization()
        name, *_ = one_of_each(gateway)
        meter_id = await make_meter(gateway, name)
        wanted = [LedgerKey(meter_id, LedgerEntryKind.USAGE, "e")]

        async def work(writer: Writer) -> list[int]:
            sizes = []
            for _ in range(3):
                for _ in range(16_667):
                    await lock(writer, [meter_id])
                    await ledger.by_keys(writer, wanted)
                rows = await writer.fetch(text("SELECT sum(total_bytes) FROM pg_backend_memory_contexts"))
                sizes.append(int(rows[0][0]))
            return sizes

        first, second, third = await gateway.database.write(work, bucket=bucket_of(gateway, name))
    assert third - second < 100_000
    assert second - first < 100_000
