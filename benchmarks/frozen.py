"""Debits beside a gateway that hangs: it is stopped while it holds the locks of a few meters, for which others ask too.

.venv/bin/python -m benchmarks.frozen [--quick]

Two gateways are on one PostgreSQL. The second debits eight meters, and is stopped (SIGSTOP) in a transaction. What the
first one debits of all other meters is measured alone, and then while clients of its own ask it for the locked meters,
and wait.
"""

import asyncio
import os
import random
import signal
from contextlib import suppress
from dataclasses import replace
from statistics import median
from typing import Any

import asyncpg
import httpx
from sqlalchemy import make_url

from benchmarks.arena import CUSTOMERS, QUICK, Arena, Choice, Customers, Folder, Quick, Rounds, Seconds, arena, err, run
from benchmarks.m2_record_usage import MUTATION, SCENARIOS
from benchmarks.report import number, table
from benchmarks.scenario import METERS_A_CUSTOMER, TOLLGATE, WORKSPACE
from benchmarks.servers import Server, serving

#: The meters that the gateway which is stopped debits, and the clients of each gateway for them.
LOCKED = 8
CLIENTS = 8


def main(
    quick: Quick = False,
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    customers: Customers = CUSTOMERS,
    folder: Folder = None,
) -> None:
    """Measure the debits of other meters beside a gateway that is stopped, on PostgreSQL."""
    if quick:
        rounds, seconds, customers = QUICK
    with arena(Choice.POSTGRESQL, customers, folder) as at:
        (at.folder / "stopped").mkdir()
        url = at.databases.copy("template", "shared")
        with (
            serving(TOLLGATE, url, at.key, at.folder, pin=False) as one,
            serving(TOLLGATE, url, at.key, at.folder / "stopped", pin=False) as other,
        ):
            pairs = [asyncio.run(measured(at, one, other, seconds)) for _ in range(rounds)]
    rows = [[number(alone), number(beside), number(beside / alone, 2)] for alone, beside in pairs]
    table(["alone, a second", "beside a stopped gateway", "x alone"], rows)
    err.print(f"Median: {median(beside / alone for alone, beside in pairs):.2f}")


async def measured(at: Arena, one: Server, other: Server, seconds: float) -> tuple[float, float]:
    """Return how many debits the first gateway answers a second: alone, and beside the other one, stopped."""
    # The last meters are those that are locked.
    scenario = replace(SCENARIOS[0], meters=at.customers * METERS_A_CUSTOMER - LOCKED)
    alone = await asyncio.to_thread(at.measure, scenario, one, seconds)
    async with asyncio.TaskGroup() as tasks:
        busy = [tasks.create_task(debiting(at, other)) for _ in range(CLIENTS)]
        await stopped_in_a_transaction(other)
        try:
            waiting = [tasks.create_task(debiting(at, one)) for _ in range(CLIENTS)]
            await asyncio.sleep(0.2)  # They are to wait already when the others are measured.
            beside = await asyncio.to_thread(at.measure, scenario, one, seconds)
        finally:
            os.kill(other.pid, signal.SIGCONT)
        for task in (*busy, *waiting):
            task.cancel()
    return alone.requests / alone.seconds, beside.requests / beside.seconds


async def stopped_in_a_transaction(server: Server) -> None:
    """Stop the process at a moment in which it holds locks."""
    url = make_url(server.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(url)
    try:
        while True:
            await asyncio.sleep(random.uniform(0.2, 0.4))  # noqa: S311  # At no moment of its own choice.
            os.kill(server.pid, signal.SIGSTOP)
            await asyncio.sleep(0.1)  # PostgreSQL ends the statement that it was sent.
            if await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"):
                return
            os.kill(server.pid, signal.SIGCONT)
    finally:
        await connection.close()


async def debiting(at: Arena, server: Server) -> None:
    """Debit the meters that are locked, one after the other, whatever is answered."""
    first = at.customers * METERS_A_CUSTOMER - LOCKED
    headers = {"authorization": f"Bearer {at.key}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", headers=headers, timeout=60) as client:
        while True:
            event: dict[str, Any] = {
                "workspaceId": WORKSPACE,
                "externalMeterId": f"meter-{random.randrange(first, first + LOCKED)}",  # noqa: S311  # No secret.
                "eventId": f"{random.getrandbits(64)}",  # No secrets.
                "amount": "1",
            }
            with suppress(httpx.HTTPError):
                await client.post("/graphql", json={"query": MUTATION, "variables": {"input": event}})


if __name__ == "__main__":
    run(main)
