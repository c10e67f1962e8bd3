"""Automatic refills in storms: many clients, a payment that fails, clocks that jump, and gateways that are killed.

Whatever happens, the requests of any window are within the caps when they are made, no two are open at once, each that
is fulfilled has one refill, and none stays unasked for while the caps leave room. Each test prints its seed.
"""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.workers.sweeper import sweep
from storage.maintenance import audited_refills
from storage.meters.auto_refills import AutoRefillRequestRow, AutoRefillRequestState
from storage.meters.ledger import LedgerEntryKind
from tests.conftest import NOW, Gateway, gateway_on
from tests.refill_walks import SETTINGS, RefillWalk, events_of
from tests.servers import PATIENCE_SECONDS, Connection, ConnectionLost, Server, connected
from tests.steps import books_of, disagreements, key_in, make_meter, must, reading_of

pytestmark = pytest.mark.slow

CLIENTS = 16

_State = AutoRefillRequestState


def seeded() -> random.Random:
    seed = secrets.randbits(32)
    print(f"Seed: {seed}")  # noqa: T201  # pytest shows it where the test fails.
    return random.Random(seed)  # noqa: S311  # So that a run can be repeated.


async def requests_of(gateway: Gateway, meter_id: str) -> list[AutoRefillRequestRow]:
    """Return the requests of a meter, the oldest first."""
    async with reading_of(gateway.database, meter_id) as reader:
        found = await audited_refills.requests_of(reader, [meter_id])
    return sorted(found[meter_id], key=lambda request: request.number)


def windows(requests: Sequence[AutoRefillRequestRow], seconds: int) -> Iterator[list[AutoRefillRequestRow]]:
    """Yield the requests that count in each window that ends with one of them."""
    counted = [request for request in requests if request.state is not _State.FAILED]
    for last in counted:
        since = last.requested_at - timedelta(seconds=seconds)
        yield [each for each in counted if since < each.requested_at <= last.requested_at]


async def check(gateway: Gateway, meter_id: str, *, name: str = "m", **settings: Any) -> list[AutoRefillRequestRow]:
    """Assert what holds of any automatic refill that no failed request was refilled of; return its requests."""
    requests = await requests_of(gateway, meter_id)
    caps = SETTINGS | settings
    for window in windows(requests, caps["windowSeconds"]):
        assert len(window) <= caps["maxRefills"]
        assert sum(request.amount for request in window) <= int(caps["maxCredits"])
    # None was made while another one was open.
    for earlier, later in pairwise(requests):
        assert earlier.closed_at is not None
        assert min(earlier.closed_at, earlier.expires_at) <= later.requested_at
    entries = (await books_of(gateway, name)).entries
    refills = [
        entry.key for entry in entries if entry.kind is LedgerEntryKind.REFILL and (entry.key or "")[:4] == "arr_"
    ]
    fulfilled = [request.id for request in requests if request.state is _State.FULFILLED]
    assert sorted(refills, key=str) == sorted(fulfilled)
    events = [event for event in await events_of(gateway, meter_id) if event["type"] == "refill.fulfilled"]
    assert sorted(event["data"]["refill"]["requestId"] for event in events) == sorted(fulfilled)
    assert await disagreements(gateway.database, meter_id) == []
    return requests


async def test_a_storm_of_refused_debits_and_their_retries_asks_for_nothing(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(89)

    async def retry(client: int) -> None:
        for _ in range(5):
            refused = await walk.send(f"use c{client} 50")
            assert refused["__typename"] == "InsufficientCredits"

    await asyncio.gather(*[retry(client) for client in range(CLIENTS)])
    assert await walk.requests() == []
    # The first that is accepted and passes the line asks once.
    await asyncio.gather(*[walk.send(f"use d{client} 2") for client in range(CLIENTS)])
    assert len(await walk.requests()) == 1
    await check(gateway, walk.meter_id)


async def test_a_payment_that_always_fails_ends_in_a_suspension(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(maxFailures=3, maxRefills=100, maxCredits="10000")
    await walk.use(95)

    async def pay() -> None:
        for _ in range(10):
            for number in range(1, len(await walk.requests()) + 1):
                await walk.fail(number)

    # Several workers of a backend say so of the same request.
    await asyncio.gather(*[pay() for _ in range(4)], *[walk.send(f"use e{each} 1") for each in range(5)])
    assert [line.split()[1] for line in await walk.requests()] == ["FAILED"] * 3
    assert (await walk.events()).count("suspended") == 1
    assert (await walk.shown())["state"] == "SUSPENDED"
    await check(gateway, walk.meter_id)


@pytest.mark.slow
async def test_16_clients_below_the_line_and_a_clock_that_jumps_never_pass_the_caps(own: Gateway) -> None:
    chance = seeded()
    caps: dict[str, Any] = {
        "maxRefills": 3,
        "maxCredits": "120",
        "windowSeconds": 600,
        "requestSeconds": 60,
        "cooldownSeconds": 20,
    }
    walk = RefillWalk(own)
    await walk.begin(**caps, options="overages", maxFailures=100)

    async def debit(client: int) -> None:
        for number in range(6):
            await walk.send(f"use c{client}-{number} {chance.randint(1, 9)} PARTIAL")
            if chance.random() < 0.3:
                # Forward by up to half an hour, and back by as much.
                own.clock.now += timedelta(seconds=chance.choice([-1_800, -5, 1, 7, 30, 61, 300, 1_800]))

    # One that failed is not refilled after all: that would count again, beyond the caps.
    fates: dict[int, str] = {}

    async def pay() -> None:
        for _ in range(20):
            for request in await requests_of(own, walk.meter_id):
                fate = fates.setdefault(request.number, chance.choice(["pay", "pay", "fail", "forget", "twice"]))
                if fate == "fail":
                    await walk.fail(request.number)
                elif fate != "forget":
                    for _ in range(2 if fate == "twice" else 1):
                        await walk.refill(request.number, request.amount)
            await sweep(own.services)

    await asyncio.gather(*[debit(client) for client in range(CLIENTS)], pay(), pay())
    # Time runs on, and it goes on asking while it is below the line.
    before = len(await requests_of(own, walk.meter_id))
    own.clock.now = max(own.clock.now, NOW) + timedelta(days=1)
    await walk.send("use last 500 FORCE")
    await sweep(own.services)
    assert len(await requests_of(own, walk.meter_id)) == before + 1
    await check(own, walk.meter_id, **caps)


@pytest.mark.slow
async def test_while_the_caps_leave_room_it_goes_on_asking_for_ever(own: Gateway) -> None:
    walk = RefillWalk(own)
    caps: dict[str, Any] = {"maxRefills": 2, "windowSeconds": 300, "requestSeconds": 60, "cooldownSeconds": 30}
    await walk.begin(**caps)
    await walk.use(95)
    # Nobody answers, and nobody debits: the sweeper alone, each second.
    for _ in range(1_200):
        own.clock.forward(seconds=1)
        await sweep(own.services)
    requests = await check(own, walk.meter_id, **caps)
    # At 0 and 90 seconds, and again as soon as each has left the window.
    moments = [int((request.requested_at - NOW).total_seconds()) for request in requests]
    assert moments == [0, 90, 300, 390, 600, 690, 900, 990, 1_200]


# Two gateways on PostgreSQL, one on SQLite, some of which are killed.


@asynccontextmanager
async def served(url: str, dialect: str, folder: Path) -> AsyncIterator[list[Server]]:
    servers = [Server(url, folder) for _ in range(2 if dialect == "postgresql" else 1)]
    try:
        for server in servers:
            await server.start()
        yield servers
    finally:
        for server in servers:
            await server.kill()


async def ask(connection: Connection, field: str, **values: Any) -> str:
    """Send a mutation until it is answered, also by a gateway that was started again, and return the answer's type."""
    name = field[0].upper() + field[1:]
    query = f"mutation ($input: {name}Input!) {{ {field}(input: $input) {{ __typename }} }}"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                body = await connection.ask(query, input=values)
            except ConnectionLost:
                await asyncio.sleep(0.05)
                continue
            if "errors" not in body:
                return str(body["data"][field]["__typename"])
            assert body["errors"][0]["extensions"]["code"] == "UNAVAILABLE", body
            await asyncio.sleep(0.05)


@pytest.mark.one_python
async def test_gateways_that_are_killed_ask_and_take_each_refill_once(
    migrated_url: str, dialect: str, tmp_path: Path
) -> None:
    chance = seeded()
    caps: dict[str, Any] = {"maxRefills": 100, "maxCredits": "2000", "windowSeconds": 3_600}
    async with gateway_on(migrated_url) as gateway:
        gateway.clock.now = datetime.now(UTC)
        meter_id = await make_meter(gateway, totalCredits="100")
        await must(gateway, "setAutoRefill", **SETTINGS | caps)
        names = {"workspaceId": "w", "externalMeterId": "m"}
        key = await key_in(gateway.database, gateway.org_id)
        async with served(migrated_url, dialect, tmp_path) as servers:
            is_over = asyncio.Event()

            async def debit(connection: Connection, client: int) -> None:
                for number in range(12):
                    values = names | {"eventId": f"e{client}-{number}", "amount": str(chance.randint(1, 20))}
                    # A third is sent twice.
                    for _ in range(2 if chance.random() < 1 / 3 else 1):
                        await ask(connection, "recordUsage", **values, policy="PARTIAL")

            async def pay(connection: Connection) -> None:
                while not is_over.is_set():
                    requests = await requests_of(gateway, meter_id)
                    if not requests or not requests[-1].is_open:
                        await asyncio.sleep(0.02)
                        continue
                    newest = requests[-1]
                    values = names | {"refill": str(newest.amount), "idempotencyKey": newest.id}
                    answer = await ask(connection, "refillBillingMeter", **values)
                    assert answer == "RefillBillingMeterSuccess"

            async def kill() -> None:
                for _ in range(2):
                    await asyncio.sleep(chance.random())
                    server = chance.choice(servers)
                    await server.kill()
                    await server.start()

            async with connected(servers, key, clients=CLIENTS + 4) as connections:
                paying = [asyncio.create_task(pay(connection)) for connection in connections[CLIENTS:]]
                debits = [debit(each, client) for client, each in enumerate(connections[:CLIENTS])]
                await asyncio.gather(*debits, kill())
                is_over.set()
                await asyncio.gather(*paying)
        requests = await check(gateway, meter_id, **caps)
        assert len(requests) > 1
