"""Debits while many meters have a grant that ends in the same second: how long they take, and when all is written.

.venv/bin/python -m benchmarks.expiry [--quick] [--database sqlite|postgresql|both] [--meters N]
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Annotated

import typer
from sqlalchemy import func, select

from benchmarks import m2_record_usage
from benchmarks.arena import QUICK, Arena, Choice, Customers, Folder, Quick, Seconds, Which, arena, err, run
from benchmarks.dataset import CREDITS, Rows
from benchmarks.report import number, table
from benchmarks.run import verify
from benchmarks.scenario import ORG, TOLLGATE, WORKSPACE
from benchmarks.servers import Server
from resolvers.actor import IMPORT
from resolvers.meters.grants import GrantCredits
from resolvers.meters.settings import opened_with
from resolvers.rules.balances import available_bits
from resolvers.rules.commands import Decision, Known, newest_entry
from storage import ids
from storage.api_keys import api_keys
from storage.engine.database import Database
from storage.meters.billing_meters import BillingMeterRow, MeterName, billing_meters
from storage.meters.credit_grants import CreditGrantCategory
from storage.meters.ledger import LedgerEntryKind
from storage.tenants import Environment

LOAD = m2_record_usage.SCENARIOS[0]

#: How long making a thousand of the meters may take, in seconds: only then do their grants end.
SECONDS_A_THOUSAND = 0.6

METERS_AT_ONCE = 2_000

#: How long each load is, of those that are sent until all is written.
WINDOW_SECONDS = 2.0

#: How long it may take until all is written.
PATIENCE_SECONDS = 300


def main(
    quick: Quick = False,
    database: Which = Choice.BOTH,
    meters: Annotated[int, typer.Option(help="How many meters have such a grant.")] = 100_000,
    seconds: Seconds = 5.0,
    customers: Customers = 1_000,
    folder: Folder = None,
) -> None:
    """Measure debits before the grants end and until all of their ends are written."""
    if quick:
        _, seconds, customers = QUICK
        meters = 1_000
    rows = []
    for kind in database.each:
        with arena(kind, customers, folder) as at, at.serving(TOLLGATE) as servers:
            rows.append([kind, f"{meters:,}", *measure(at, servers[0], meters, seconds)])
            verify(servers)
    columns = ["database", "meters", "p50 ms before", "p99 ms before", "p50 ms", "p99 ms", "x", "seconds until written"]
    table(columns, rows)


def measure(at: Arena, server: Server, meters: int, seconds: float) -> list[str]:
    """Return the figures of a row."""
    ends = datetime.now(UTC) + timedelta(seconds=5 + meters / 1_000 * SECONDS_A_THOUSAND + 2 * seconds)
    asyncio.run(make(server.database_url, meters, ends))
    before = at.measure(LOAD, server, seconds)
    if (left := (ends - datetime.now(UTC)).total_seconds()) < 0:
        raise RuntimeError(f"The meters were made {-left:.0f} seconds too late.")
    err.print(f"The grants end in {left:.0f} seconds")
    with ThreadPoolExecutor() as threads:
        writing = threads.submit(asyncio.run, until_written(server.database_url, ends))
        time.sleep(max(0.0, left - 0.5))  # The grants end at a fixed time; the load warms up for half a second.
        during = [at.measure(LOAD, server, WINDOW_SECONDS)]
        while not writing.done():
            during.append(at.measure(LOAD, server, WINDOW_SECONDS))
    p50, p99 = (median(getattr(each, name) for each in during) for name in ("p50_ms", "p99_ms"))
    return [
        *(number(value, 1) for value in (before.p50_ms, before.p99_ms, p50, p99)),
        number(p99 / before.p99_ms, 2),
        number(writing.result(), 1),
    ]


async def until_written(url: str, ends: datetime) -> float:
    """Wait until the end of the last grant is written, and return how many seconds after it that was."""
    database = Database(url)
    due = select(billing_meters.c.id).where(billing_meters.c.next_due_at <= ends).limit(1)
    try:
        await asyncio.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                async with database.read() as reader:
                    if not await reader.fetch(due):
                        return (datetime.now(UTC) - ends).total_seconds()
                await asyncio.sleep(0.1)
    finally:
        await database.close()


async def make(url: str, count: int, ends: datetime) -> None:
    """Make meters, each with a grant that ends at this moment."""
    database = Database(url, wait_seconds=60)
    try:
        async with database.read() as reader:
            key_id = (await reader.fetch(select(func.min(api_keys.c.id))))[0][0]
        for first in range(0, count, METERS_AT_ONCE):
            numbers = range(first, min(first + METERS_AT_ONCE, count))
            await database.write(_meters(numbers, ends, datetime.now(UTC), key_id).write)
    finally:
        await database.close()


def _meters(numbers: range, ends: datetime, now: datetime, key_id: str) -> Rows:
    rows = Rows()
    for number_ in numbers:
        name = MeterName(ORG, Environment.LIVE, WORKSPACE, f"ending-{number_}")
        bits = available_bits(CREDITS, 0, 0)
        meter = BillingMeterRow(
            *(ids.new_id(ids.BILLING_METER), *name, None, "UTC", CREDITS, 0, False, None, CREDITS, bits, 1, now, now)
        )
        opening = newest_entry(
            meter, LedgerEntryKind.OPENING, amount=CREDITS, recorded_by=IMPORT, metadata=opened_with(meter)
        )
        terms = (50, CreditGrantCategory.PROMOTIONAL, ends)
        decision: Decision = GrantCredits(name, 1_000, *terms, None, {}, "grant", key_id, 1).decide(meter, Known(), now)
        if decision.entry is None or decision.credit_grant is None:
            raise RuntimeError("There is no grant.")
        rows.billing_meters.append(decision.billing_meter._replace(next_due_at=ends))
        rows.ledger_entries += [opening, decision.entry]
        rows.credit_grants.append(decision.credit_grant)
    return rows


if __name__ == "__main__":
    run(main)
