"""What holds when many callers use one meter at once, over HTTP and through several server processes."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Caller, Gateway
from tests.servers import Server, serving
from tests.steps import books_of, make_meter, settle


@asynccontextmanager
async def callers(servers: Sequence[Server], key: str, *, connections: int) -> AsyncIterator[list[Caller]]:
    """Return as many callers, of each server in turn, who use this number of connections to each server."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(server.client(limits=httpx.Limits(max_connections=connections), timeout=60))
            for server in servers
        ]
        yield [Caller(clients[number % len(clients)], key) for number in range(connections)]


async def record(caller: Caller, event_id: str, **values: Any) -> dict[str, Any]:
    return await caller.mutate(
        "recordUsage",
        """... on RecordUsageSuccess { accepted refused replayed entry { id usedCreditsAfter } }
        ... on InsufficientCredits { available billingMeter { usedCredits } }""",
        **{"workspaceId": "w", "externalMeterId": "m", "eventId": event_id, "amount": "1"} | values,
    )


@pytest.fixture(scope="module")
async def servers(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Server]]:
    """Two servers on the database that the gateway of the tests is on."""
    folder = tmp_path_factory.mktemp("servers")
    async with AsyncExitStack() as stack:
        yield await asyncio.gather(
            *[stack.enter_async_context(serving(database_url, folder)) for _ in range(2)],
        )


@pytest.mark.parametrize("processes", [1, 2])
async def test_40_callers_share_25_credits(gateway: Gateway, servers: list[Server], processes: int) -> None:
    await make_meter(gateway, totalCredits="25")
    async with callers(servers[:processes], gateway.key, connections=20) as connections:
        answers = await asyncio.gather(*[record(connections[number % 20], f"e{number}") for number in range(40)])

    accepted = [answer for answer in answers if answer["__typename"] == "RecordUsageSuccess"]
    refused = [answer for answer in answers if answer["__typename"] == "InsufficientCredits"]
    assert len(accepted) == 25
    assert len(refused) == 15
    assert {(answer["accepted"], answer["refused"], answer["replayed"]) for answer in accepted} == {("1", "0", False)}
    assert {(answer["available"], answer["billingMeter"]["usedCredits"]) for answer in refused} == {("0", "25")}
    # Each accepted event shows its own place in the ledger.
    assert sorted(int(answer["entry"]["usedCreditsAfter"]) for answer in accepted) == list(range(1, 26))

    books = await books_of(gateway)
    assert books.meter.used_credits == 25
    assert sum(books.days.values()) == 25
    assert len(books.entries) == 26
    assert [(entry.kind, entry.amount) for entry in books.entries] == [("opening", 25)] + [("usage", 1)] * 25
    assert [(entry.total_credits_after, entry.used_credits_after) for entry in books.entries] == [
        (25, used) for used in range(26)
    ]
    assert {entry.key for entry in books.entries[1:]} == {
        f"e{number}" for number, answer in enumerate(answers) if answer["__typename"] == "RecordUsageSuccess"
    }


@pytest.mark.parametrize("processes", [1, 2])
async def test_an_event_that_many_callers_send_counts_once(
    gateway: Gateway, servers: list[Server], processes: int
) -> None:
    await make_meter(gateway, totalCredits="100")
    async with callers(servers[:processes], gateway.key, connections=10) as connections:
        answers = await asyncio.gather(*[record(connections[number % 10], f"e{number % 4}") for number in range(40)])

    assert {answer["__typename"] for answer in answers} == {"RecordUsageSuccess"}
    books = await books_of(gateway)
    assert sorted(str(entry.key) for entry in books.entries[1:]) == ["e0", "e1", "e2", "e3"]
    assert books.meter.used_credits == 4
    for number in range(4):
        same = answers[number::4]
        assert [answer["replayed"] for answer in same].count(False) == 1
        assert len({answer["entry"]["id"] for answer in same}) == 1


async def test_refills_and_debits_at_once_never_overspend(gateway: Gateway, servers: list[Server]) -> None:
    await make_meter(gateway, totalCredits="5")

    async def refill(caller: Caller) -> dict[str, Any]:
        return await caller.mutate("refillBillingMeter", "", workspaceId="w", externalMeterId="m", refill="1")

    async with callers(servers, gateway.key, connections=20) as connections:
        answers = await asyncio.gather(
            *[
                refill(connections[number % 20]) if number % 3 == 0 else record(connections[number % 20], f"e{number}")
                for number in range(60)
            ]
        )
    names = [answer["__typename"] for answer in answers]
    assert names.count("RefillBillingMeterSuccess") == 20
    # The books' own check asserts that the totals follow each other and that no debit passed what was there.
    books = await books_of(gateway)
    assert books.meter.total_credits == 25
    assert books.meter.used_credits == names.count("RecordUsageSuccess")
    assert names.count("RecordUsageSuccess") + names.count("InsufficientCredits") == 40
    assert all(entry.used_credits_after <= entry.total_credits_after for entry in books.entries)


async def test_a_server_that_is_asked_to_stop_ends_by_itself(
    gateway: Gateway, database_url: str, tmp_path: Path
) -> None:
    await make_meter(gateway, totalCredits="100")
    async with serving(database_url, tmp_path) as server, callers([server], gateway.key, connections=10) as connections:
        # The connections stay open: a server that waited for them to be closed would not end.
        answers = await asyncio.gather(*[record(caller, f"e{number}") for number, caller in enumerate(connections)])
        status = await server.stop()
    assert [answer["accepted"] for answer in answers] == ["1"] * 10
    # Having finished, it ends by the signal that it was sent, as uvicorn does.
    assert status in {0, -signal.SIGTERM}
    assert (await books_of(gateway)).meter.used_credits == 10
    assert "Finished server process" in server.logged
    assert '"level":"error"' not in server.logged
    assert "Traceback" not in server.logged


async def test_what_was_acknowledged_survives_the_death_of_the_server(
    gateway: Gateway, database_url: str, tmp_path: Path
) -> None:
    await make_meter(gateway, totalCredits="100000")
    acknowledged: dict[str, str] = {}
    enough = asyncio.Event()

    async def keep_recording(caller: Caller, name: str) -> None:
        """Record event after event until the connection is lost."""
        number = 0
        while True:
            try:
                answer = await record(caller, f"{name}-{number}", amount="3")
            except httpx.TransportError:
                return
            acknowledged[f"{name}-{number}"] = answer["entry"]["id"]
            number += 1
            if len(acknowledged) >= 100:
                enough.set()

    async with serving(database_url, tmp_path) as server, callers([server], gateway.key, connections=8) as connections:
        recording = [
            asyncio.create_task(keep_recording(caller, f"c{number}")) for number, caller in enumerate(connections)
        ]
        # One that ends earlier raises its error below.
        await asyncio.wait([asyncio.create_task(enough.wait()), *recording], return_when=asyncio.FIRST_COMPLETED)
        await server.kill()
        await asyncio.gather(*recording)
    await settle(gateway)

    books = await books_of(gateway)
    recorded = {entry.key for entry in books.entries[1:]}
    assert acknowledged.keys() <= recorded
    # At most the one event that each caller was waiting for is recorded without having been acknowledged.
    assert len(recorded - acknowledged.keys()) <= 8
    assert books.meter.used_credits == 3 * len(recorded)
    # Sent again, each answers its first result.
    for event_id, entry_id in list(acknowledged.items())[-8:]:
        answer = await record(gateway, event_id, amount="3")
        assert (answer["replayed"], answer["entry"]["id"]) == (True, entry_id)
    assert await books_of(gateway) == books
