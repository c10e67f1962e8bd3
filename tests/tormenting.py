"""Gateways under load, some of which are killed: running them, and asking until there is an answer."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from storage.engine.database import Database
from storage.meters import ledger
from storage.meters.ledger import LedgerEntryRow
from tests.servers import PATIENCE_SECONDS, Connection, ConnectionLost, Server
from tests.steps import reading_of

Answer = dict[str, Any]


@asynccontextmanager
async def served(url: str, dialect: str, folder: Path) -> AsyncIterator[list[Server]]:
    """Run two gateways on a PostgreSQL database, one on an SQLite file."""
    servers = [Server(url, folder) for _ in range(2 if dialect == "postgresql" else 1)]
    try:
        for server in servers:
            await server.start()
        yield servers
    finally:
        for server in servers:
            await server.kill()


def seeded() -> random.Random:
    seed = secrets.randbits(32)
    print(f"Seed: {seed}")  # noqa: T201  # pytest shows it where the test fails.
    return random.Random(seed)  # noqa: S311  # So that a run can be repeated.


def rounds(pytestconfig: pytest.Config, *, few: int, many: int) -> int:
    return many if pytestconfig.getoption("torture", default=False) else few


async def entries_of(database: Database, meter_id: str) -> list[LedgerEntryRow]:
    """Return the entries of a meter, the oldest first."""
    async with reading_of(database, meter_id) as reader:
        (entries,) = await ledger.by_ranges(reader, [(meter_id, 1, 2**63 - 1)])
    return list(entries[::-1])


async def ask(connection: Connection, field: str, selection: str, **values: Any) -> Answer:
    """Send a mutation until it is answered, also by a gateway that was started again, and return what it answers."""
    name = field[0].upper() + field[1:]
    query = f"mutation ($input: {name}Input!) {{ {field}(input: $input) {{ __typename {selection} }} }}"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                body = await connection.ask(query, input={"workspaceId": "w"} | values)
            except ConnectionLost:
                await asyncio.sleep(0.05)
                continue
            if "errors" not in body:
                answer: Answer = body["data"][field]
                return answer
            assert body["errors"][0]["extensions"]["code"] == "UNAVAILABLE", body
            await asyncio.sleep(0.05)


async def kill_some(servers: Sequence[Server], times: int, chance: random.Random) -> None:
    """Kill one gateway after the other, and start it again."""
    for number in range(times):
        await asyncio.sleep(chance.random())
        await servers[number % len(servers)].kill()
        await servers[number % len(servers)].start()
