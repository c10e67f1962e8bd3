"""Storage: the schema that migrations make, transactions, and that the hot statements use their indexes."""

import asyncio
import importlib
import re
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, event, func, inspect, literal, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from resolvers.maintenance.verify import Verified, verify
from resolvers.rules.credits import base_of
from storage import alerts, customers, ids, migrations
from storage.customers import CustomerFilter, CustomerRow
from storage.customers import customers as customers_table
from storage.engine.columns import Columns
from storage.engine.connections import SQLITE_READERS
from storage.engine.database import ATTEMPTS, Database, DatabaseUnavailable, Outcome
from storage.engine.pages import Page
from storage.engine.transactions import Reader, Writer
from storage.maintenance import audit
from storage.meters import auto_refills, billing_meters, credit_grants, holds, ledger, meter_alerts, usage
from storage.meters.auto_refills import AutoRefillMode, AutoRefillRequestRow, AutoRefillRequestState, AutoRefillRow
from storage.meters.billing_meters import BillingMeterRow, MeterFilter, MeterName
from storage.meters.billing_meters import billing_meters as meters_table
from storage.meters.credit_grants import CreditGrantCategory, CreditGrantRow, CreditGrantState, GrantFilter
from storage.meters.holds import HoldRow, HoldState
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow, LedgerKey, OverLimitPolicy
from storage.meters.meter_alerts import AlertKind, MeterAlertRow
from storage.meters.usage import UsageRange
from storage.tables import TABLES, metadata
from storage.tenants import Environment
from tests.conftest import Gateway, empty_database, on_postgresql
from tests.ledgers import keep_books
from tests.steps import disagreements, execute, held, must, rows_of

NOW = datetime(2026, 3, 16, 12, 0, tzinfo=UTC)
ORG = "org"

#: How many rows the plans are made for.
CUSTOMERS, METERS, DAYS, ENTRIES, GRANTS, ALERTS = 20_000, 20_000, 10_000, 50_000, 20_000, 20_000


def customer(name: str) -> CustomerRow:
    return CustomerRow(
        id=ids.new_id(ids.CUSTOMER),
        org_id=ORG,
        environment=Environment.SANDBOX,
        email=f"{name}@example.com",
        name=name,
        external_id=name,
        metadata={},
        created_at=NOW,
        updated_at=NOW,
    )


def meter(name: str) -> BillingMeterRow:
    return BillingMeterRow(
        id=ids.new_id(ids.BILLING_METER),
        org_id=ORG,
        environment=Environment.SANDBOX,
        workspace_id="w",
        external_meter_id=name,
        customer_id=None,
        timezone="UTC",
        total_credits=0,
        used_credits=0,
        allow_overages=False,
        spend_cap=None,
        limit_credits=0,
        available_bits=0,
        last_seq=1,
        created_at=NOW,
        updated_at=NOW,
    )


async def names(database: Database) -> list[str]:
    """Return the names of all customers, in their order."""
    async with database.read() as reader:
        rows = await reader.fetch(select(customers_table.c.name).order_by(customers_table.c.name))
    return [row.name for row in rows]


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Database]]:
    """Opens databases, and closes them after the test."""
    databases: list[Database] = []

    def open_database(url: str, **options: float) -> Database:
        databases.append(Database(url, **options))  # type: ignore[arg-type]  # The pool's size is an integer.
        return databases[-1]

    yield open_database
    for database in databases:
        await database.close()


@pytest.fixture
async def empty(new_database_url: str, opened: Callable[..., Database]) -> Database:
    """A database without tables."""
    return opened(new_database_url, pool_size=4)


@pytest.fixture
async def database(empty: Database) -> Database:
    """A database with the newest schema and no rows."""
    await migrations.upgrade(empty)
    return empty


def test_tables_has_the_table_of_every_feature_after_those_that_it_refers_to() -> None:
    for room in ("storage", "storage.meters"):
        for file in Path(importlib.import_module(room).__file__ or "").parent.glob("*.py"):
            importlib.import_module(f"{room}.{file.stem}")
    assert set(TABLES) == set(metadata.tables.values())
    assert len(TABLES) == len(set(TABLES)) == 15
    for place, table in enumerate(TABLES):
        assert {key.column.table for key in table.foreign_keys} <= set(TABLES[:place])


#: What is partitioned on PostgreSQL.
PARTITIONED = (
    "usage_days",
    "ledger_entries",
    "credit_grants",
    "holds",
    "events",
    "auto_refill_requests",
    "meter_alerts",
)

#: The tables that there were before grants and holds.
BEFORE_GRANTS = frozenset(
    ("customers", "billing_meters", "api_keys", "idempotency_keys", "usage_days", "ledger_entries")
)

#: Takes the tables and columns away that came later than what a test migrates from.
AS_BEFORE_GRANTS = (
    *(f"DROP TABLE {table.name}" for table in TABLES if table.name not in BEFORE_GRANTS),
    "DROP INDEX billing_meters_next_due_at_idx",
    *(
        f"ALTER TABLE {table} DROP COLUMN {column}"
        for table, columns in {
            "billing_meters": "held_credits pinned_credits open_holds max_open_holds has_grants has_holds next_due_at "
            "bucket last_event has_alerts has_auto_refill",
            "ledger_entries": "held_credits_after grant_seq hold_seq draws bucket",
            "usage_days": "bucket",
        }.items()
        for column in columns.split()
    ),
)


@pytest.mark.one_server("older schemas have no buckets")
class TestMigrations:
    async def test_they_make_exactly_the_tables_that_the_code_names(self, database: Database) -> None:
        def differences(connection: Connection) -> list[Any]:
            def is_ours(_item: object, name: str | None, kind: str, _reflected: object, _other: object) -> bool:
                # PostgreSQL's partitions are tables of their own there.
                return kind != "table" or re.fullmatch(rf"({'|'.join(PARTITIONED)})_\d", name or "") is None

            options = {"compare_type": True, "compare_server_default": True, "include_object": is_ours}
            context = MigrationContext.configure(connection, opts=options)
            return list(compare_metadata(context, metadata))

        async with database.read() as reader:
            assert await reader.run_sync(differences) == []
            tables = await reader.run_sync(lambda connection: set(inspect(connection).get_table_names()))
        partitions = {f"{name}_{number}" for name in PARTITIONED for number in range(8)}
        expected = {*metadata.tables, "alembic_version"}
        assert tables == (expected | partitions if database.dialect == "postgresql" else expected)

    async def test_a_difference_would_be_seen(self, database: Database) -> None:
        async def change(writer: Writer) -> None:
            await writer.execute(text("ALTER TABLE customers ADD COLUMN surplus TEXT"))

        await database.write(change)

        def differences(connection: Connection) -> list[Any]:
            return [each for each in compare_metadata(MigrationContext.configure(connection), metadata) if each]

        async with database.read() as reader:
            found = await reader.run_sync(differences)
        assert [each[3].name for each in found if each[0] == "remove_column"] == ["surplus"]

    async def test_running_them_again_changes_nothing(self, database: Database) -> None:
        await database.write(lambda writer: customers.insert_customer(writer, customer("ada")))
        await migrations.upgrade(database)
        assert await names(database) == ["ada"]
        assert await migrations.is_current(database)

    @pytest.mark.slow
    async def test_what_an_opening_records_is_filled_from_what_the_ledger_knows(self, own: Gateway) -> None:
        await keep_books(own)
        right = await rows_of(own.database)

        async def go_back(writer: Writer) -> None:
            for statement in (
                "UPDATE ledger_entries SET metadata = '{}', key = NULL WHERE kind = 'opening'",
                "ALTER TABLE customers DROP COLUMN idempotency_key",
                *AS_BEFORE_GRANTS,
                "UPDATE alembic_version SET version_num = '2026_11_26_makers_of_customers'",
            ):
                await writer.execute(text(statement))

        await own.database.write(go_back)
        await migrations.upgrade(own.database)
        # What had happened before there were events is none.
        at = meters_table.c.keys().index("last_event")
        right["billing_meters"] = [(*row[:at], 0, *row[at + 1 :]) for row in right["billing_meters"]]
        assert await rows_of(own.database) == right | {"events": [], "alerts": [], "meter_alerts": []}
        assert await disagreements(own.database) == []

    @pytest.mark.slow
    async def test_changes_whose_requests_had_no_key_are_given_one(self, own: Gateway) -> None:
        await keep_books(own)
        await must(own, "refillBillingMeter", externalMeterId="M", refill="7")

        async def go_back(writer: Writer) -> None:
            for statement in (
                *AS_BEFORE_GRANTS,
                "UPDATE alembic_version SET version_num = '2026_11_26_opening_settings'",
            ):
                await writer.execute(text(statement))

        await execute(own.database, "UPDATE ledger_entries SET key = NULL WHERE key LIKE 'tollgate/%'")
        assert [found.message async for found in verify(own.database, Verified())] == [
            "entry 8: it has no key, and each SETTINGS has one",
            "entry 9: it has no key, and each REFILL has one",
        ]
        await own.database.write(go_back)
        await migrations.upgrade(own.database)
        assert await disagreements(own.database) == []

    async def test_a_database_is_current_only_with_exactly_the_newest_schema(self, empty: Database) -> None:
        assert not await migrations.is_current(empty)
        await migrations.upgrade(empty)
        assert await migrations.is_current(empty)
        await execute(empty, "UPDATE alembic_version SET version_num = 'from_the_future'")
        assert not await migrations.is_current(empty)

    async def test_text_is_ordered_by_code_point(self, database: Database) -> None:
        """As Python and SQLite order it, whatever the language that PostgreSQL is set up for."""
        unordered = ["b", "a", "B", "A", "_", "ä", "Z", "😀", "￿", "1", "10", "2", " "]

        async def fill(writer: Writer) -> None:
            for name in unordered:
                await customers.insert_customer(writer, customer(name))

        await database.write(fill)
        async with database.read() as reader:
            column = customers_table.c.external_id
            rows = await reader.fetch(select(column).order_by(column))
        assert [row.external_id for row in rows] == sorted(unordered)

    async def test_on_postgresql_what_grows_with_usage_is_partitioned_by_meter(
        self, opened: Callable[..., Database], request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        database = opened(empty_database("postgresql", request, tmp_path))
        await migrations.upgrade(database)
        async with database.read() as reader:
            partitioned = await reader.fetch(
                text(
                    "SELECT c.relname, pg_get_partkeydef(c.oid) AS partition_key,"
                    " (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = c.oid) AS partitions"
                    " FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid ORDER BY 1"
                ),
            )
            collations = await reader.fetch(
                text(
                    "SELECT table_name || '.' || column_name AS name FROM information_schema.columns"
                    " WHERE table_schema = 'public' AND collation_name = 'C' ORDER BY 1"
                ),
            )
        assert [tuple(row) for row in partitioned] == [
            ("auto_refill_requests", "HASH (meter_id)", 8),
            ("credit_grants", "HASH (meter_id)", 8),
            ("events", "HASH (owner_id)", 8),
            ("holds", "HASH (meter_id)", 8),
            ("ledger_entries", "HASH (meter_id)", 8),
            ("meter_alerts", "HASH (meter_id)", 8),
            ("usage_days", "HASH (meter_id)", 8),
        ]
        collated = {row.name for row in collations}
        for table in metadata.sorted_tables:
            indexed = {column.name for column in table.primary_key}
            indexed |= {column.name for index in table.indexes for column in index.columns}
            for name in indexed:
                column = table.c[name]
                if column.type.python_type is str and not hasattr(column.type, "enums"):
                    assert f"{table.name}.{name}" in collated

    async def test_on_sqlite_usage_days_are_stored_in_the_order_of_their_key(
        self, opened: Callable[..., Database], tmp_path: Path
    ) -> None:
        database = opened(f"sqlite+aiosqlite:///{tmp_path}/tollgate.db")
        await migrations.upgrade(database)
        async with database.read() as reader:
            row = await reader.fetch_one(text("SELECT sql FROM sqlite_master WHERE name = 'usage_days'"))
        assert row is not None
        assert "WITHOUT ROWID" in row.sql


class TestConnections:
    async def test_every_sqlite_connection_is_durable_and_checks_keys(
        self, opened: Callable[..., Database], tmp_path: Path
    ) -> None:
        database = opened(f"sqlite+aiosqlite:///{tmp_path}/tollgate.db", wait_seconds=7)
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")

        async def read(reader: Reader) -> tuple[Any, ...]:
            found = []
            for pragma in pragmas:
                (row,) = await reader.fetch(text(f"PRAGMA {pragma}"))
                found.append(row[0])
            return tuple(found)

        # All readers at once, so that each has a connection of its own.
        is_enough = asyncio.Barrier(4)

        async def read_beside_others() -> tuple[Any, ...]:
            async with database.read() as reader:
                await is_enough.wait()
                return await read(reader)

        # 2 is FULL.
        expected = ("wal", 2, 1, 7_000)
        assert await asyncio.gather(*[read_beside_others() for _ in range(4)]) == [expected] * 4
        assert await database.write(read) == expected

    async def test_on_postgresql_every_wait_is_bounded(
        self, opened: Callable[..., Database], request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        database = opened(empty_database("postgresql", request, tmp_path), wait_seconds=7)
        settings = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "application_name")

        async def read(reader: Reader) -> list[str]:
            return [(await reader.fetch(text(f"SHOW {setting}")))[0][0] for setting in settings]

        expected = ["7s", "7s", "7s", "tollgate"]
        assert await database.write(read) == expected
        async with database.read() as reader:
            assert await read(reader) == expected
            (level,) = await reader.fetch(text("SHOW transaction_isolation"))
            assert tuple(level) == ("read committed",)

    async def test_one_that_is_used_when_all_are_closed_is_closed_when_its_use_ends(self, database: Database) -> None:
        connections, closed = database._home.reading, []
        event.listen(connections._engine.sync_engine, "close", lambda *_: closed.append("one"))
        connection = await connections.acquire()
        await database.close()
        assert await connection.scalar(text("SELECT 1")) == 1
        await connections.release(connection)
        assert closed == ["one"]

    async def test_a_reader_sees_what_is_committed_when_its_statement_starts(self, database: Database) -> None:
        async with database.read() as reader:
            counted = select(func.count()).select_from(customers_table)
            before = await reader.fetch(counted)
            await database.write(lambda writer: customers.insert_customer(writer, customer("ada")))
            after = await reader.fetch(counted)
        assert (before[0][0], after[0][0]) == (0, 1)

    @pytest.mark.slow
    async def test_a_foreign_key_is_checked(self, database: Database) -> None:
        row = meter("m")._replace(customer_id=f"cus_{'0' * 24}")
        with pytest.raises(IntegrityError):
            await database.write(lambda writer: billing_meters.insert_meter(writer, row))


class TestWrite:
    async def test_what_is_returned_is_committed(self, database: Database) -> None:
        async def work(writer: Writer) -> str:
            await customers.insert_customer(writer, customer("ada"))
            await customers.insert_customer(writer, customer("bob"))
            assert await names(database) == []  # Nobody else sees it yet.
            return "done"

        assert await database.write(work) == "done"
        assert await names(database) == ["ada", "bob"]

    @pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
    async def test_what_raises_leaves_nothing(self, database: Database, error: type[BaseException]) -> None:
        attempts = 0

        async def work(writer: Writer) -> None:
            nonlocal attempts
            attempts += 1
            await customers.insert_customer(writer, customer("ada"))
            raise error

        with pytest.raises(error):
            await database.write(work)
        assert attempts == 1
        assert await names(database) == []
        await database.write(lambda writer: customers.insert_customer(writer, customer("bob")))
        assert await names(database) == ["bob"]

    async def test_a_caller_that_is_cancelled_leaves_it_finished_and_the_pool_healthy(self, database: Database) -> None:
        # More callers than there are connections, so that one that is not returned would be missed.
        for number in range(10):
            is_begun, may_go_on = asyncio.Event(), asyncio.Event()

            async def work(
                writer: Writer, number: int = number, begun: asyncio.Event = is_begun, go_on: asyncio.Event = may_go_on
            ) -> None:
                await customers.insert_customer(writer, customer(f"{number} a"))
                begun.set()
                await go_on.wait()
                await customers.insert_customer(writer, customer(f"{number} b"))

            caller = asyncio.create_task(database.write(work))
            await is_begun.wait()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            (under_way,) = database._writes
            may_go_on.set()
            await asyncio.wait([under_way])
            assert await names(database) == sorted(f"{each} {letter}" for each in range(number + 1) for letter in "ab")
        # What is kept for the next use is no connection lost.
        for connections in (database._home.reading, database._home.writing):
            await connections.release_idle()
        assert [engine.pool.status().count("Checked out connections: 0") for engine in database.engines] == [1, 1, 1]

    async def test_callers_that_are_cancelled_while_they_wait_for_a_connection_are_still_served(
        self, database: Database
    ) -> None:
        is_begun = asyncio.Event()

        async def work(writer: Writer, name: str) -> None:
            is_begun.set()
            await customers.insert_customer(writer, customer(name))

        callers = [
            asyncio.create_task(database.write(lambda writer, name=str(number): work(writer, name)))  # type: ignore[misc]
            for number in range(9)
        ]
        # By then all of them have begun, and there are not so many connections.
        await is_begun.wait()
        for caller in callers:
            caller.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        await asyncio.wait(set(database._writes))
        assert await names(database) == [str(number) for number in range(9)]

    @pytest.mark.slow
    async def test_who_no_longer_waits_for_a_connection_takes_none_away(
        self, opened: Callable[..., Database], new_database_url: str
    ) -> None:
        # On SQLite there are as many readers whatever the pool's size is.
        database = opened(new_database_url, pool_size=SQLITE_READERS, wait_seconds=0.5)

        async def look(reader: Reader) -> int:
            row = await reader.fetch_one(select(literal(7)))
            assert row is not None
            return int(row[0])

        async def read() -> int:
            async with database.read() as reader:
                return await look(reader)

        async def hold_all(held: AsyncExitStack) -> None:
            for _ in range(SQLITE_READERS):
                assert await look(await held.enter_async_context(database.read())) == 7

        async with AsyncExitStack() as held:
            await hold_all(held)
            with pytest.raises(DatabaseUnavailable) as in_vain:
                await read()
            assert in_vain.value.outcome is Outcome.NOT_WRITTEN
            early, late, served = [asyncio.create_task(read()) for _ in range(3)]
            await asyncio.sleep(0)
            early.cancel()
            await asyncio.sleep(0)
        # By now it was given one, and has not heard of it.
        late.cancel()
        results = await asyncio.gather(early, late, served, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError, asyncio.CancelledError, int]
        async with AsyncExitStack() as held:
            await hold_all(held)

    async def test_a_connection_that_is_opened_for_a_caller_who_is_cancelled_meanwhile_is_closed(
        self, opened: Callable[..., Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = opened(f"sqlite+aiosqlite:///{tmp_path}/tollgate.db")
        connect = sqlite3.connect
        connections: list[sqlite3.Connection] = []
        is_opening, may_go_on = threading.Event(), threading.Event()

        def slow(*arguments: Any, **options: Any) -> sqlite3.Connection:
            is_opening.set()
            assert may_go_on.wait(timeout=10)
            connections.append(connect(*arguments, **options))
            return connections[-1]

        async def read() -> None:
            async with database.read() as reader:
                await reader.fetch_one(select(literal(7)))

        monkeypatch.setattr(sqlite3, "connect", slow)
        caller = asyncio.create_task(read())
        assert await asyncio.to_thread(is_opening.wait, timeout=10)
        caller.cancel()
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        (connection,) = connections
        with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
            _ = connection.total_changes
        await read()

    async def test_closing_finishes_what_was_begun(
        self, opened: Callable[..., Database], new_database_url: str
    ) -> None:
        database = opened(new_database_url)
        await migrations.upgrade(database)
        is_begun = asyncio.Event()

        async def work(writer: Writer) -> None:
            is_begun.set()
            await customers.insert_customer(writer, customer("ada"))

        caller = asyncio.create_task(database.write(work))
        await is_begun.wait()
        caller.cancel()
        await database.close()
        assert await names(opened(new_database_url)) == ["ada"]

    async def test_a_lost_race_is_run_again_from_the_start(self, database: Database) -> None:
        winner = customer("ada")
        await database.write(lambda writer: customers.insert_customer(writer, winner))
        attempts = 0

        async def work(writer: Writer) -> str:
            nonlocal attempts
            attempts += 1
            await customers.insert_customer(writer, customer(f"attempt {attempts}"))
            if attempts == 1:
                # As if it had looked before the winner committed.
                await customers.insert_customer(writer, customer("ada"))
            found = await customers.by_external_ids(writer, ["ada"], org_id=ORG, environment=Environment.SANDBOX)
            return found["ada"].id

        assert await database.write(work) == winner.id
        assert attempts == 2
        assert await names(database) == ["ada", "attempt 2"]

    @pytest.mark.slow
    async def test_a_race_that_is_lost_each_time_is_given_up(self, database: Database) -> None:
        await database.write(lambda writer: customers.insert_customer(writer, customer("ada")))
        attempts = 0

        async def work(writer: Writer) -> None:
            nonlocal attempts
            attempts += 1
            await customers.insert_customer(writer, customer("bob"))
            await customers.insert_customer(writer, customer("ada"))

        with pytest.raises(IntegrityError):
            await database.write(work)
        assert attempts == ATTEMPTS == 4
        assert await names(database) == ["ada"]

    async def test_of_many_that_look_and_then_insert_one_inserts_and_all_find_it(self, database: Database) -> None:
        async def find_or_insert(writer: Writer) -> str:
            found = await customers.by_external_ids(writer, ["ada"], org_id=ORG, environment=Environment.SANDBOX)
            if "ada" in found:
                return found["ada"].id
            row = customer("ada")
            await customers.insert_customer(writer, row)
            return row.id

        results = await asyncio.gather(*[database.write(find_or_insert) for _ in range(20)])
        assert len(set(results)) == 1
        assert await names(database) == ["ada"]

    async def test_fifty_writers_of_one_row_lose_nothing(self, database: Database) -> None:
        name = MeterName(ORG, Environment.SANDBOX, "w", "m")
        await database.write(lambda writer: billing_meters.insert_meter(writer, meter("m")))

        async def add(writer: Writer) -> int:
            row = await billing_meters.lock_by_name(writer, name)
            assert row is not None
            await billing_meters.update_meters(writer, [(row, row._replace(total_credits=row.total_credits + 1))])
            return row.total_credits

        # Half of them by id, as debits lock, and half by name, as refills do.
        async def add_by_id(writer: Writer) -> int:
            found = await billing_meters.ids_by_names(writer, [name])
            (row,) = (await billing_meters.lock(writer, [found[name]])).values()
            await billing_meters.update_meters(writer, [(row, row._replace(total_credits=row.total_credits + 1))])
            return row.total_credits

        seen = await asyncio.gather(*[database.write(each) for _ in range(25) for each in (add, add_by_id)])
        assert sorted(seen) == list(range(50))
        async with database.read() as reader:
            rows = await reader.fetch(select(meters_table.c.total_credits))
        assert [row.total_credits for row in rows] == [50]

    async def test_writers_of_two_databases_on_the_same_rows_lose_nothing(
        self, opened: Callable[..., Database], new_database_url: str
    ) -> None:
        """As two processes have two."""
        databases = [opened(new_database_url), opened(new_database_url)]
        await migrations.upgrade(databases[0])
        rows = [meter("a"), meter("b"), meter("c")]

        async def fill(writer: Writer) -> None:
            for row in rows:
                await billing_meters.insert_meter(writer, row)

        await databases[0].write(fill)

        async def add(writer: Writer, order: int) -> None:
            # Whatever the order in which they are asked for, they are locked in the order of their ids.
            locked = await billing_meters.lock(writer, [row.id for row in rows[::order]])
            changed = [(row, row._replace(used_credits=row.used_credits + 1)) for row in locked.values()]
            await billing_meters.update_meters(writer, changed)

        await asyncio.gather(
            *[
                database.write(lambda writer, order=order: add(writer, order))  # type: ignore[misc]
                for _ in range(10)
                for database in databases
                for order in (1, -1)
            ]
        )
        async with databases[0].read() as reader:
            used = await reader.fetch(select(meters_table.c.used_credits))
        assert [row.used_credits for row in used] == [40, 40, 40]

    @on_postgresql
    @pytest.mark.parametrize("is_locking", [False, True])
    async def test_a_commit_that_rolls_back_is_not_acknowledged(self, database: Database, *, is_locking: bool) -> None:
        row = meter("m")
        await database.write(lambda writer: billing_meters.insert_meter(writer, row))

        async def work(writer: Writer) -> None:
            await customers.insert_customer(writer, customer("ada"))
            if is_locking:
                await billing_meters.lock(writer, [row.id])
            with suppress(DBAPIError):  # PostgreSQL then has nothing to commit, and COMMIT raises nothing.
                await writer.execute(text("SELECT 1 / 0"))

        with pytest.raises(DatabaseUnavailable) as unavailable:
            await database.write(work)
        assert unavailable.value.outcome is Outcome.NOT_WRITTEN
        assert await names(database) == []

    @on_postgresql
    async def test_meters_are_locked_in_the_order_of_their_ids(self, database: Database) -> None:
        # SQLite has one writer at a time. The later id is written first, so that no other order is this one by chance.
        low, high = sorted([meter("a"), meter("b")], key=lambda row: row.id)
        for row in (high, low):
            await database.write(lambda writer, row=row: billing_meters.insert_meter(writer, row))  # type: ignore[misc]

        async def free(writer: Writer) -> list[str]:
            rows = await writer.fetch(select(meters_table.c.id).with_for_update(skip_locked=True))
            return [row.id for row in rows]

        async def lock_both(writer: Writer) -> list[str]:
            return list(await billing_meters.lock(writer, [high.id, low.id]))

        async def is_waiting() -> bool:
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            async with database.read() as reader:
                return bool((await reader.fetch(text(waiting)))[0][0])

        async with held(database, lambda writer: billing_meters.lock(writer, [low.id])):
            locking = asyncio.create_task(database.write(lock_both))
            async with asyncio.timeout(60):
                while not await is_waiting():
                    pass
            # It waits for the first, and has not locked the second.
            assert await database.write(free) == [high.id]
        assert await locking == [low.id, high.id]

    @pytest.mark.slow
    async def test_a_wait_for_a_lock_that_is_too_long_writes_nothing(
        self, opened: Callable[..., Database], new_database_url: str
    ) -> None:
        first, second = opened(new_database_url), opened(new_database_url, wait_seconds=0.2)
        await migrations.upgrade(first)
        await first.write(lambda writer: billing_meters.insert_meter(writer, meter("m")))
        name = MeterName(ORG, Environment.SANDBOX, "w", "m")

        async def change(writer: Writer) -> None:
            await billing_meters.lock_by_name(writer, name)
            await writer.execute(update(meters_table).values(total_credits=5))

        async with held(first, lambda writer: billing_meters.lock_by_name(writer, name)):
            with pytest.raises(DatabaseUnavailable) as unavailable:
                await second.write(change)
            assert unavailable.value.outcome is Outcome.NOT_WRITTEN
        async with second.read() as reader:
            rows = await reader.fetch(select(meters_table.c.total_credits))
        assert [row.total_credits for row in rows] == [0]
        await second.write(change)


@pytest.fixture(scope="module")
async def filled(
    dialect: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Database]:
    """A database with so many rows that reading a table as a whole would cost."""
    database = Database(empty_database(dialect, request, tmp_path_factory.mktemp("filled")))
    await migrations.upgrade(database)
    if dialect == "postgresql":
        digits, day, no = "lpad(to_hex({}), 24, '0')", "DATE '2026-01-01' + n % 10", "FALSE"
        yes = "TRUE"
        moment = "TIMESTAMPTZ '2026-01-01 00:00:00Z' + n * INTERVAL '1 minute'"
        numbers = "generate_series(0, {}) AS n"
    else:
        digits, day, no = "printf('%024x', {})", "date('2026-01-01', (n % 10) || ' days')", "0"
        yes = "1"
        moment = "strftime('%Y-%m-%dT%H:%M:%S+00:00', '2026-01-01', n || ' minutes')"
        numbers = "(WITH RECURSIVE e(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM e WHERE n < {}) SELECT n FROM e)"
    # One customer and meter of ten is the tenant's.
    org = "CASE n % 10 WHEN 0 THEN 'org' ELSE 'other' END"
    workspace = "CASE n % 1000 WHEN 10 THEN 'v' ELSE 'w' END"
    # Of 0 to 63 credits 6 bits at most, of all others more.
    bits = "CASE WHEN n < 64 THEN 6 ELSE 15 END"
    number, half, quarter, tenth, part = (digits.format(f"n / {by}") for by in (1, 2, 4, 10, 200))
    voided = "CASE WHEN n % 200 > 100 THEN n % 200 - 99 END"
    rows = {
        f"customers SELECT 'cus_' || {number}, {org}, 'sandbox', 'A@example.com', 'N', 'e' || n, '{{}}', {moment},"
        f" {moment}, 'a' || (n / 100) || '@example.com', 'n' || n, NULL, NULL": CUSTOMERS,
        f"billing_meters SELECT 'mtr_' || {number}, {org}, 'sandbox', {workspace}, 'm' || n, 'cus_' || {half}, 'UTC',"
        f" 10, 0, {no}, NULL, n, 10, {moment}, {moment}, {bits}, 0, 0, 0, NULL, {no}, {no}, NULL, 0,"
        f" 0, {no}, {no}": METERS,
        f"usage_days SELECT 'mtr_' || {tenth}, {day}, 'default', 1, 0": DAYS,
        f"ledger_entries SELECT 'mtr_' || {part}, n % 200 + 1, 'usage', 'k' || (n % 200), 1, 10, 1, 10, 'default',"
        f" {day}, 1, 'reject', {voided}, NULL, {moment}, 'key_', NULL, '{{}}', 0, NULL, NULL, NULL, 0": ENTRIES,
    }

    # Of each meter's two hundred grants one is open and one has covered usage, and of its holds one is open.
    one, two = (f"CASE n % 200 WHEN {each} THEN 1 ELSE 0 END" for each in (0, 1))
    rows |= {
        f"credit_grants SELECT 'mtr_' || {part}, n % 200 + 1, 'k' || n, 1, 50, 'paid', NULL, {one}, 0, 0, {two}, 0, 0,"
        f" {no}, {moment}, NULL, '{{}}', 0": GRANTS,
        f"holds SELECT 'mtr_' || {part}, n % 200 + 1, 'h' || (n % 200), 1, 1, 60,"
        f" CASE n % 200 WHEN 0 THEN 'open' ELSE 'released' END, NULL, {moment}, {moment}, NULL, '[]', '{{}}',"
        " 0": GRANTS,
        # Of its two hundred requests the newest is open, and every second other one has failed.
        f"auto_refills SELECT 'mtr_' || {number}, {yes}, 'target', 1, 1, 1, 1, 60, 0, 60, 1, 0, NULL, {no}, 200, {no},"
        " 0": METERS,
        f"auto_refill_requests SELECT 'mtr_' || {part}, n % 200 + 1, 1, CASE WHEN n % 200 = 199 THEN 'open' WHEN n % 2"
        f" = 0 THEN 'failed' ELSE 'fulfilled' END, {moment}, {moment}, NULL, NULL, NULL, NULL, 0": GRANTS,
    }

    # Of each meter four; each thousandth is a workspace's.
    of_meter = f"CASE n % 1000 WHEN 0 THEN NULL ELSE 'mtr_' || {quarter} END"
    rows |= {
        f"alerts SELECT 'alr_' || {number}, {org}, 'sandbox', 'w' || (n / 1000), 'm', {of_meter}, 'remaining_below', 5,"
        f" NULL, NULL, 1, {no}, {moment}": ALERTS,
        f"meter_alerts SELECT 'mtr_' || {quarter}, 'alr_' || {number}, 1, 'remaining_below', 5, NULL, 1, {moment},"
        f" {no}, NULL, NULL, NULL, 0": ALERTS,
    }

    async def fill(writer: Writer) -> None:
        for values, count in rows.items():
            await writer._connection.exec_driver_sql(f"INSERT INTO {values} FROM {numbers.format(count - 1)}")
        # Of each hundredth meter something is due.
        due = "UPDATE billing_meters SET next_due_at = created_at WHERE id LIKE '%00'"
        await writer._connection.exec_driver_sql(due.replace("%", "%%") if dialect == "postgresql" else due)
        # PostgreSQL does so by itself, in time; SQLite never does.
        if dialect == "postgresql":
            await writer._connection.exec_driver_sql("ANALYZE")

    try:
        await database.write(fill)
        yield database
    finally:
        await database.close()


METER_IDS = [f"mtr_{number:024x}" for number in (50, 70, 90)]
CUSTOMER_IDS = [f"cus_{number:024x}" for number in (50, 70, 90)]
TENANT: dict[str, Any] = {"org_id": ORG, "environment": Environment.SANDBOX}
NAME = MeterName(ORG, Environment.SANDBOX, "w", "m50")
RANGES = [UsageRange(meter_id, date(2026, 1, 2), date(2026, 1, 5)) for meter_id in METER_IDS]
EVENTS = [LedgerKey(meter_id, LedgerEntryKind.USAGE, "k3") for meter_id in METER_IDS]

#: The hot look-ups: how many rows each finds here, the table, and the columns of its index that it goes by.
LOOKUPS: dict[str, tuple[Callable[[Writer], Awaitable[Any]], int, str, list[str]]] = {
    "usage by ranges": (
        lambda db: usage.by_ranges(db, RANGES),
        12,
        "usage_days",
        ["meter_id", "day"],
    ),
    "usage by ranges and names": (
        lambda db: usage.by_ranges(db, RANGES, usage_names=["default", "x"]),
        12,
        "usage_days",
        ["meter_id", "day"],
    ),
    "ledger by ranges": (
        lambda db: ledger.by_ranges(db, [(meter_id, 2, 4) for meter_id in METER_IDS]),
        9,
        "ledger_entries",
        ["meter_id", "seq"],
    ),
    "ledger by keys": (
        lambda db: ledger.by_keys(db, EVENTS),
        3,
        "ledger_entries",
        ["meter_id", "kind", "key"],
    ),
    "voided credits": (
        lambda db: ledger.voided_credits(db, [(meter_id, 3) for meter_id in METER_IDS]),
        3,
        "ledger_entries",
        ["meter_id", "voids_seq"],
    ),
    "ledger by ids": (
        lambda db: ledger.by_ids(db, [(meter_id, 2) for meter_id in METER_IDS], workspace_ids=None, **TENANT),
        3,
        "ledger_entries",
        ["meter_id", "seq"],
    ),
    "meters by names": (
        lambda db: billing_meters.by_names(db, [("w", "m50"), ("w", "m70"), ("w", "none")], **TENANT),
        2,
        "billing_meters",
        ["org_id", "environment", "workspace_id", "external_meter_id"],
    ),
    "meters' ids by names": (
        lambda db: billing_meters.ids_by_names(db, [NAME]),
        1,
        "billing_meters",
        ["org_id", "environment", "workspace_id", "external_meter_id"],
    ),
    "a meter locked by its name": (
        lambda db: found_one(billing_meters.lock_by_name(db, NAME)),
        1,
        "billing_meters",
        ["org_id", "environment", "workspace_id", "external_meter_id"],
    ),
    "meters by ids": (
        lambda db: billing_meters.by_ids(db, METER_IDS, workspace_ids=None, **TENANT),
        3,
        "billing_meters",
        ["id"],
    ),
    "meters locked by ids": (lambda db: billing_meters.lock(db, METER_IDS), 3, "billing_meters", ["id"]),
    "unlocked meters locked by ids": (
        lambda db: billing_meters.lock(db, METER_IDS, skip_locked=True),
        3,
        "billing_meters",
        ["id"],
    ),
    "customers' meters": (
        lambda db: billing_meters.pages_by_customers(db, CUSTOMER_IDS, Page(25), workspace_ids=None),
        6,
        "billing_meters",
        ["customer_id"],
    ),
    "a deep page of meters": (
        lambda db: billing_meters.page(db, Page(25, older_than=f"mtr_{4_000:024x}"), workspace_ids=None, **TENANT),
        26,
        "billing_meters",
        # PostgreSQL may go by the id alone, where most rows are the tenant's.
        ["id"],
    ),
    "customers by ids": (lambda db: customers.by_ids(db, CUSTOMER_IDS, **TENANT), 3, "customers", ["id"]),
    "customers by ids, in a workspace": (
        lambda db: customers.by_ids(db, CUSTOMER_IDS, workspace_ids=["w"], **TENANT),
        3,
        "customers",
        ["id"],
    ),
    "customers by external ids": (
        lambda db: customers.by_external_ids(db, ["e50", "e70"], **TENANT),
        2,
        "customers",
        ["org_id", "environment", "external_id"],
    ),
    "a deep page of customers": (
        lambda db: customers.page(db, Page(25, older_than=f"cus_{4_000:024x}"), workspace_ids=None, **TENANT),
        26,
        "customers",
        # PostgreSQL may go by the id alone, where most rows are the tenant's.
        ["id"],
    ),
}


LATER = datetime(2027, 1, 1, tzinfo=UTC)
SEQS = [(meter_id, 2) for meter_id in METER_IDS]
GRANT_PAGES: dict[str, tuple[Page, GrantFilter, int, list[str]]] = {
    "first page": (Page(25), GrantFilter(), 3 * 26, ["meter_id"]),
    "later page": (Page(25, older_than=100), GrantFilter(), 3 * 26, ["meter_id", "seq"]),
    "last page": (Page(25, newer_than=190, backward=True), GrantFilter(), 3 * 10, ["meter_id", "seq"]),
    "live": (Page(25), GrantFilter(CreditGrantState.LIVE), 3, ["meter_id"]),
    "depleted": (Page(25), GrantFilter(CreditGrantState.DEPLETED), 3 * 26, ["meter_id"]),
    "expired": (Page(25), GrantFilter(CreditGrantState.EXPIRED), 0, ["meter_id"]),
    "revoked": (Page(25), GrantFilter(CreditGrantState.REVOKED), 0, ["meter_id"]),
    "promotional": (Page(25), GrantFilter(category=CreditGrantCategory.PROMOTIONAL), 0, ["meter_id"]),
    "ending": (Page(25), GrantFilter(expires_before=LATER), 0, ["meter_id"]),
}
HOLD_PAGES: dict[str, tuple[Page, HoldState | None, int, list[str]]] = {
    "first page": (Page(25), None, 3 * 26, ["meter_id"]),
    "later page": (Page(25, older_than=100), None, 3 * 26, ["meter_id", "seq"]),
    "last page": (Page(25, newer_than=190, backward=True), None, 3 * 10, ["meter_id", "seq"]),
    # Those that are open have long been due.
    "open": (Page(25), HoldState.OPEN, 0, ["meter_id", "state"]),
    "expired": (Page(25), HoldState.EXPIRED, 3, ["meter_id", "state"]),
    "released": (Page(25), HoldState.RELEASED, 3 * 26, ["meter_id", "state"]),
    "committed": (Page(25), HoldState.COMMITTED, 0, ["meter_id", "state"]),
}

LOOKUPS |= {
    "usable grants": (lambda db: credit_grants.usable(db, METER_IDS), 3, "credit_grants", ["meter_id"]),
    "covering grants": (lambda db: credit_grants.covering(db, METER_IDS), 3, "credit_grants", ["meter_id"]),
    "grants by numbers": (lambda db: credit_grants.by_seqs(db, SEQS), 3, "credit_grants", ["meter_id", "seq"]),
    "holds by names": (
        lambda db: holds.by_names(db, [(meter_id, "h7") for meter_id in METER_IDS]),
        3,
        "holds",
        ["meter_id", "hold_id"],
    ),
    "holds by numbers": (lambda db: holds.by_seqs(db, SEQS), 3, "holds", ["meter_id", "seq"]),
    "open holds": (lambda db: holds.open_of(db, METER_IDS), 3, "holds", ["meter_id"]),
    "changed grants": (
        lambda db: nothing(credit_grants.update_grants(db, [grant(meter_id) for meter_id in METER_IDS])),
        0,
        "credit_grants",
        ["meter_id", "seq"],
    ),
    "changed holds": (
        lambda db: nothing(holds.update_holds(db, [hold_of(meter_id) for meter_id in METER_IDS])),
        0,
        "holds",
        ["meter_id", "seq"],
    ),
}
#: When the newest request of each meter was made.
ENDS = {
    meter_id: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=200 * int(meter_id[4:], 16) + 199)
    for meter_id in METER_IDS
}
REQUEST_PAGES: dict[str, tuple[Page, int]] = {
    "first page": (Page(25), 3 * 26),
    "later page": (Page(25, older_than=100), 3 * 26),
    "last page": (Page(25, newer_than=190, backward=True), 3 * 10),
}
LOOKUPS |= {
    "automatic refills": (lambda db: auto_refills.by_meters(db, METER_IDS), 3, "auto_refills", ["meter_id"]),
    # Of the last thirty-one minutes.
    "requests that count": (
        lambda db: auto_refills.counted(db, {id_: ENDS[id_] - timedelta(minutes=31) for id_ in METER_IDS}),
        3 * 16,
        "auto_refill_requests",
        ["meter_id", "requested_at"],
    ),
    "requests by numbers": (
        lambda db: auto_refills.by_numbers(db, SEQS),
        3,
        "auto_refill_requests",
        ["meter_id", "number"],
    ),
    "changed automatic refills": (
        lambda db: nothing(auto_refills.update_auto_refills(db, [refill_of(meter_id) for meter_id in METER_IDS])),
        0,
        "auto_refills",
        ["meter_id"],
    ),
    "changed requests": (
        lambda db: nothing(auto_refills.update_requests(db, [request_of(meter_id) for meter_id in METER_IDS])),
        0,
        "auto_refill_requests",
        ["meter_id", "number"],
    ),
} | {
    f"requests, {name}": (
        partial(auto_refills.pages_by_meters, meter_ids=METER_IDS, page=page),
        found,
        "auto_refill_requests",
        ["meter_id"],
    )
    for name, (page, found) in REQUEST_PAGES.items()
}
for list_name, (of_page, of_grants, grants_found, by_columns) in GRANT_PAGES.items():
    LOOKUPS[f"grants, {list_name}"] = (
        partial(credit_grants.pages_by_meters, moments=dict.fromkeys(METER_IDS, LATER), page=of_page, wanted=of_grants),
        grants_found,
        "credit_grants",
        by_columns,
    )
for list_name, (of_page, of_holds, holds_found, by_columns) in HOLD_PAGES.items():
    LOOKUPS[f"holds, {list_name}"] = (
        partial(holds.pages_by_meters, meter_ids=METER_IDS, page=of_page, state=of_holds, now=LATER),
        holds_found,
        "holds",
        by_columns,
    )

#: Those whose plan does not hang on the values that are looked up, as a filter's does.
SAME_FOR_ALL_VALUES = list(LOOKUPS)

# The sweeper looks every two seconds, and `verify` reads all: that these are planned each time costs little.
LOOKUPS |= {
    "meters with something due": (
        lambda db: billing_meters.due(db, LATER, limit=20),
        20,
        "billing_meters",
        ["next_due_at"],
    ),
    "all grants of meters": (
        lambda db: audit.grants_of(db, METER_IDS),
        600,
        "credit_grants",
        ["meter_id"],
    ),
    "holds by their numbers, whole": (
        lambda db: audit.holds_by_seqs(db, [(meter_id, 3) for meter_id in METER_IDS]),
        3,
        "holds",
        ["meter_id", "seq"],
    ),
}

#: The filters of the lists: how many rows each finds here, and the columns of its index that it goes by.
FILTERS: dict[str, tuple[str, dict[str, Any], int, list[str]]] = {
    "email": ("customers", {"email": "A1@EXAMPLE.COM"}, 10, ["org_id", "environment", "email_folded"]),
    "name": ("customers", {"name_prefix": "N19"}, 1 + 10 + 100, ["org_id", "environment", "name_folded"]),
    "external id": (
        "customers",
        {"external_id_prefix": "e19"},
        1 + 10 + 100,
        ["org_id", "environment", "external_id"],
    ),
    "made from": (
        "customers",
        {"created_from": datetime(2026, 1, 14, 20, 30, tzinfo=UTC)},
        5,
        ["org_id", "environment", "created_at"],
    ),
    "made before": (
        "customers",
        {"created_before": datetime(2026, 1, 1, 1, 0, tzinfo=UTC)},
        6,
        ["org_id", "environment", "created_at"],
    ),
    "made from and before": (
        "customers",
        {
            "created_from": datetime(2026, 1, 2, 0, 0, tzinfo=UTC),
            "created_before": datetime(2026, 1, 2, 1, 0, tzinfo=UTC),
        },
        6,
        ["org_id", "environment", "created_at"],
    ),
    "email and all others": (
        "customers",
        {
            "email": "a1@example.com",
            "name_prefix": "n1",
            "external_id_prefix": "e1",
            "created_from": datetime(2026, 1, 1, tzinfo=UTC),
        },
        10,
        ["org_id", "environment", "email_folded"],
    ),
    "external id and name": (
        "customers",
        {"external_id_prefix": "e199", "name_prefix": "n1"},
        1 + 10,
        ["org_id", "environment", "external_id"],
    ),
    "workspace": ("billing_meters", {"workspace_id": "v"}, 20, ["org_id", "environment", "workspace_id"]),
    "customer": ("billing_meters", {"customer_id": CUSTOMER_IDS[0]}, 1, ["customer_id"]),
    "customer and all others": (
        "billing_meters",
        {"customer_id": CUSTOMER_IDS[0], "workspace_id": "w", "available_below": 100_000},
        1,
        ["customer_id"],
    ),
    "available": ("billing_meters", {"available_below": 51}, 6, ["org_id", "environment", "available_bits"]),
    "available and workspace": (
        "billing_meters",
        {"available_below": 51, "workspace_id": "w"},
        5,
        ["org_id", "environment", "available_bits"],
    ),
}


def filtered_list(table: str, wanted: dict[str, Any], page: Page) -> Callable[[Writer], Awaitable[Any]]:
    if table == "customers":
        return lambda db: customers.page(db, page, workspace_ids=None, wanted=CustomerFilter(**wanted), **TENANT)
    return lambda db: billing_meters.page(db, page, workspace_ids=None, wanted=MeterFilter(**wanted), **TENANT)


IDS_OF = {"customers": "cus_", "billing_meters": "mtr_"}

for filter_name, (filtered, wanted_rows, rows_found, by_columns) in FILTERS.items():
    # The other pages must not go another way than the first: a cursor is one more condition of the ids.
    for page_name, filtered_page in (
        ("first", Page(25)),
        ("second", Page(25, older_than=f"{IDS_OF[filtered]}{'f' * 24}")),
        ("last", Page(25, newer_than=IDS_OF[filtered], backward=True)),
    ):
        LOOKUPS[f"{filtered} by {filter_name}, {page_name} page"] = (
            filtered_list(filtered, wanted_rows, filtered_page),
            min(rows_found, 26),
            filtered,
            by_columns,
        )


def grant(meter_id: str) -> CreditGrantRow:
    """Return a grant of the meter, which no lookup finds by its credits."""
    return base_of(meter("m"), 0)._replace(meter_id=meter_id, seq=3, key="k1", amount=1, drawn_credits=1)


def alert_of(meter_id: str) -> MeterAlertRow:
    """Return an alert that a meter has taken on."""
    return MeterAlertRow(meter_id, "alr_", 1, AlertKind.REMAINING_BELOW, 5, None, 1, NOW)


def hold_of(meter_id: str) -> HoldRow:
    """Return a hold of the meter."""
    return HoldRow(meter_id, 2, "h1", 1, 1, 60, HoldState.RELEASED, None, NOW, NOW, NOW, [], {})


def refill_of(meter_id: str) -> AutoRefillRow:
    """Return the automatic refill of the meter."""
    return AutoRefillRow(meter_id, bool(meter_id), AutoRefillMode.TARGET, 1, 1, 1, 1, 60, 0, 60, 1, last_request=200)


def request_of(meter_id: str) -> AutoRefillRequestRow:
    """Return a request of the meter."""
    return AutoRefillRequestRow(meter_id, 3, 1, AutoRefillRequestState.FAILED, NOW, NOW, NOW, "x", "key", None)


def used(meter_id: str, seq: int) -> LedgerEntryRow:
    """Return the entry of a debit of one credit."""
    kind, day, policy = LedgerEntryKind.USAGE, NOW.date(), OverLimitPolicy.REJECT
    amounts = (1, 10_000, seq, 10_000)
    return LedgerEntryRow(
        meter_id, seq, kind, f"k{seq}", *amounts, "default", day, 1, policy, None, None, NOW, "key_", None, {}
    )


async def test_no_rows_are_added_by_no_statement(database: Database) -> None:
    async def add(writer: Writer) -> int:
        await writer.insert_rows(ledger.ledger_entries, [])
        return writer.added_rows

    assert await database.write(add) == 0


@on_postgresql
@pytest.mark.parametrize(
    "moment",
    [
        datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2026, 11, 28, 6, 25, 1, 123_457, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
)
async def test_a_moment_is_written_in_a_bucket_to_the_microsecond(database: Database, moment: datetime) -> None:
    async def change(writer: Writer) -> list[datetime]:
        row = meter("m")
        await billing_meters.insert_meter(writer, row)
        writer.is_divided = True
        await billing_meters.update_meters(writer, [(row, row._replace(updated_at=moment, customer_id=None))])
        return [changed.updated_at for changed in (await billing_meters.lock(writer, [row.id])).values()]

    assert await database.write(change) == [moment]


async def nothing(change: Awaitable[None]) -> list[Any]:
    await change
    return []


async def found_one(lookup: Awaitable[BillingMeterRow | None]) -> list[BillingMeterRow]:
    row = await lookup
    return [row] if row is not None else []


def size(found: Any) -> int:
    """Return how many rows a look-up has found, whatever it groups them by."""
    parts = list(found.values() if isinstance(found, dict) else found)
    return sum(len(part) if isinstance(part, list | Columns) else 1 for part in parts)


LOOKUPS |= {
    "alerts that meters have taken on": (
        lambda db: alerts.taken_on(db, METER_IDS),
        12,
        "meter_alerts",
        ["meter_id"],
    ),
    "alerts of meters and their workspace": (
        lambda db: alerts.of_meters(db, METER_IDS, **TENANT, workspace_ids={"w3"}),
        13,
        "alerts",
        ["meter_id"],
    ),
    "alerts of a workspace": (
        lambda db: alerts.page(db, Page(25), **TENANT, workspace_ids=["w3"]),
        26,
        "alerts",
        ["workspace_id"],
    ),
    "alerts of workspaces made since": (
        lambda db: alerts.of_workspaces(db, since=datetime(2026, 1, 14, 4, tzinfo=UTC)),
        1,
        "alerts",
        ["created_at"],
    ),
    "changed alerts of meters": (
        lambda db: nothing(meter_alerts.update_meter_alerts(db, [alert_of(meter_id) for meter_id in METER_IDS])),
        0,
        "meter_alerts",
        ["meter_id", "alert_id"],
    ),
}


def statements_of(name: str) -> int:
    """Return how many statements a look-up takes: those that have expired are written or not."""
    return 2 if name == "holds, expired" else 1


async def explained(
    database: Database, writer: Writer, lookup: Callable[[Writer], Awaitable[Any]]
) -> tuple[Any, list[list[Any]]]:
    """Return what a look-up finds, and how the database carries out each of its statements."""
    statements: list[tuple[str, Any]] = []

    def record(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        statements.append((statement, parameters))

    event.listen(database.engines[0].sync_engine, "before_cursor_execute", record)
    try:
        found = await lookup(writer)
    finally:
        event.remove(database.engines[0].sync_engine, "before_cursor_execute", record)
    explain = "EXPLAIN (FORMAT JSON)" if writer.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
    results = [
        await writer._connection.exec_driver_sql(f"{explain} {statement}", parameters)
        for statement, parameters in statements
    ]
    return found, [[row[-1] for row in result] for result in results]


class TestPlans:
    @pytest.mark.parametrize("name", LOOKUPS)
    async def test_a_hot_lookup_goes_by_its_index_and_reads_no_table_as_a_whole(
        self, filled: Database, name: str
    ) -> None:
        await self._assert_is_quick(filled, name, is_divided=False)

    @on_postgresql
    @pytest.mark.parametrize("name", LOOKUPS)
    async def test_on_a_database_of_several_machines_it_does_so_as_well(self, filled: Database, name: str) -> None:
        await self._assert_is_quick(filled, name, is_divided=True)

    async def _assert_is_quick(self, filled: Database, name: str, *, is_divided: bool) -> None:
        lookup, count, table, columns = LOOKUPS[name]

        async def work(writer: Writer) -> list[list[Any]]:
            writer.is_divided = is_divided
            found, plans = await explained(filled, writer, lookup)
            assert size(found) == count
            return plans

        plans = await filled.write(work)
        assert len(plans) == statements_of(name)
        for plan in plans:
            self._assert_goes_by(plan, filled.dialect, table, columns)

    def _assert_goes_by(self, plan: list[Any], dialect: str, table: str, columns: list[str]) -> None:
        if dialect == "postgresql":
            nodes = list(nodes_of(plan[0][0]["Plan"]))
            # Partitions are named after their table.
            scans = [node for node in nodes if str(node.get("Relation Name", "")).startswith(table)]
            conditions = [str(node["Index Cond"]) for node in nodes if "Index Cond" in node]
            scanned = [node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"]
            assert scans
        else:
            conditions = [
                step for step in plan if re.match(rf"SEARCH ({table}|on_page|of_customer|counted) USING ", step)
            ]
            scanned = [step for step in plan if step.split()[0] == "SCAN" and step.split()[1] in metadata.tables]
        assert scanned == []
        wanted = [re.compile(rf"\b{column}\b") for column in columns]
        assert any(all(column.search(condition) for column in wanted) for condition in conditions), conditions

    @on_postgresql
    async def test_entries_are_looked_up_by_all_of_their_keys_also_where_nothing_is_known_of_the_table(
        self, database: Database
    ) -> None:
        async def work(writer: Writer) -> list[list[Any]]:
            await writer._connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
            return (await explained(database, writer, partial(ledger.by_keys, wanted=EVENTS)))[1]

        (plan,) = await database.write(work)
        conditions = [str(node["Index Cond"]) for node in nodes_of(plan[0][0]["Plan"]) if "Index Cond" in node]
        assert len(conditions) == 8
        assert all(re.search(r"\bkey\b", condition) for condition in conditions)

    @on_postgresql
    async def test_a_plan_is_made_anew_when_the_tables_have_grown(self, database: Database) -> None:
        async def plan(writer: Writer) -> list[str]:
            prepared = (
                "SELECT name FROM pg_prepared_statements WHERE statement LIKE 'SELECT keys.place, ledger_entries.%%'"
            )
            (name,) = (await writer._connection.exec_driver_sql(prepared)).scalars()
            rows = await writer._connection.exec_driver_sql(f"EXPLAIN EXECUTE {name} ('[]', 0)")
            return [condition.group() for row in rows if (condition := re.search("Index Cond: .*", row[0]))]

        async def look_up(writer: Writer) -> list[str]:
            await ledger.by_ranges(writer, [(METER_IDS[0], 1, 1)])
            return await plan(writer)

        async def add(writer: Writer) -> None:
            await ledger.insert_entries(writer, [used(METER_IDS[0], seq) for seq in range(1, 5_001)])

        # The sixth plan is the one that is kept.
        plans = [await database.write(look_up, is_group=True) for _ in range(7)]
        assert all("seq" not in condition for condition in plans[-1])
        await database.write(add, is_group=True)
        assert any("seq" in condition for condition in await database.write(look_up, is_group=True))

    @on_postgresql
    @pytest.mark.parametrize("name", SAME_FOR_ALL_VALUES)
    async def test_postgresql_plans_a_hot_lookup_once_and_not_at_each_run(self, filled: Database, name: str) -> None:
        lookup = LOOKUPS[name][0]

        async def work(writer: Writer) -> Any:
            plans = text("SELECT sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements")
            before: Any = (await writer.fetch(plans))[0]
            for _ in range(20):
                await lookup(writer)
            after: Any = (await writer.fetch(plans))[0]
            return after[0] - before[0], after[1] - before[1]

        # It tries five plans for the very values, and then takes the one for all, unless that looks dearer.
        generic, custom = await filled.write(work)
        assert generic >= 15 * statements_of(name)
        assert custom <= 5 * statements_of(name) + 1  # One is the question's own.


def nodes_of(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the node of PostgreSQL's plan and all below it."""
    yield node
    for below in node.get("Plans", ()):
        yield from nodes_of(below)
