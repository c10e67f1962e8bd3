"""How long Q1 takes by itself, and while four other clients ask Q2 of the same process.

.venv/bin/python -m benchmarks.latency [--quick] [--database sqlite|postgresql|both]
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from statistics import median

from benchmarks import q1_meter, q2_customers
from benchmarks.arena import (
    CUSTOMERS,
    QUICK,
    Arena,
    Choice,
    Customers,
    Folder,
    Quick,
    Rounds,
    Seconds,
    Which,
    arena,
    in_turn,
    run,
)
from benchmarks.load import Measured
from benchmarks.report import number, table
from benchmarks.scenario import LIMIT, TOLLGATE
from benchmarks.servers import Server

#: One client, so that its time is that of its own request and of what others hold up.
QUERY = replace(q1_meter.SCENARIOS[0], clients=1)
LOAD = q2_customers.SCENARIOS[0]

#: How long the load runs before Q1 is asked, and about as long after it.
AROUND_SECONDS = 1.0


def main(
    quick: Quick = False,
    database: Which = Choice.BOTH,
    rounds: Rounds = 3,
    seconds: Seconds = 5.0,
    customers: Customers = CUSTOMERS,
    folder: Folder = None,
) -> None:
    """Measure the latency of Q1 alone and under Q2."""
    if quick:
        rounds, seconds, customers = QUICK
    rows = []
    for kind in database.each:
        with arena(kind, customers, folder) as at, at.serving(TOLLGATE, LIMIT) as servers:
            turns = {
                (server.name, how): partial(measure, at, server, seconds)
                for server in servers
                for how, measure in (("alone", alone), (f"under {LOAD.name}", under_load))
            }
            for names, measured in zip(turns, in_turn(rounds, [*turns.values()]), strict=True):
                p50 = median(each.p50_ms for each in measured)
                p99 = median(each.p99_ms for each in measured)
                rows.append([kind, *names, number(p50, 1), number(p99, 1)])
    table(["database", "contestant", "Q1, 1 client", "p50 ms", "p99 ms"], rows)


def alone(at: Arena, server: Server, seconds: float) -> Measured:
    """Measure Q1 while nothing else is asked."""
    return at.measure(QUERY, server, seconds)


def under_load(at: Arena, server: Server, seconds: float) -> Measured:
    """Measure Q1 while the load runs."""
    with ThreadPoolExecutor() as threads:
        load = threads.submit(at.measure, LOAD, server, seconds + 2 * AROUND_SECONDS)
        time.sleep(AROUND_SECONDS)
        measured = at.measure(QUERY, server, seconds)
        if load.done():
            raise RuntimeError("the load ended before Q1 was measured")
        load.result()
    return measured


if __name__ == "__main__":
    run(main)
