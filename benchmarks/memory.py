"""Whether the server's memory stays where it is: its size by the minute under all kinds of requests at once.

.venv/bin/python -m benchmarks.memory [--quick] [--minutes 10] [--database sqlite|postgresql|both]
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated

import typer

from benchmarks import m1_refill, m2_record_usage, m3_record_usage_batch, q1_meter, q2_customers, q3_customer
from benchmarks.arena import CUSTOMERS, QUICK, Arena, Choice, Customers, Folder, Quick, Which, arena, run
from benchmarks.load import resident_bytes
from benchmarks.report import number, table
from benchmarks.scenario import TOLLGATE
from benchmarks.servers import Server

#: The clients of each kind of request; the greatest answers and bodies have one.
CLIENTS = {q1_meter: 4, q2_customers: 1, q3_customer: 2, m1_refill: 2, m2_record_usage: 8, m3_record_usage_batch: 1}
SCENARIOS = [replace(module.SCENARIOS[0], clients=clients) for module, clients in CLIENTS.items()]

#: How often its size is taken in a run.
SAMPLES = 10


def main(
    quick: Quick = False,
    minutes: Annotated[float, typer.Option(help="How long the load runs; a leak shows in 10.")] = 1.0,
    database: Which = Choice.BOTH,
    customers: Customers = CUSTOMERS,
    folder: Folder = None,
) -> None:
    """Measure the resident memory of the server over time."""
    if quick:
        minutes, customers = 0.05, QUICK[2]
    grown, answered = [], []
    for kind in database.each:
        with arena(kind, customers, folder) as at, at.serving(TOLLGATE) as [server]:
            by_minute, requests = sizes(at, server, minutes)
            grown += [[kind, number(minute, 2), number(mib)] for minute, mib in by_minute]
            answered += [[kind, *[number(requests[scenario.name]) for scenario in SCENARIOS]]]
    table(["database", "minute", "MiB"], grown)
    table(["answered on", *[scenario.name.partition(",")[0] for scenario in SCENARIOS]], answered)


def sizes(at: Arena, server: Server, minutes: float) -> tuple[list[tuple[float, float]], dict[str, int]]:
    """Send the load for so long; return the server's MiB by the minute, from before it on, and what was answered."""
    found = [(0.0, resident_bytes(server.pid) / 2**20)]
    with ThreadPoolExecutor(len(SCENARIOS)) as threads:
        loads = {scenario.name: threads.submit(at.measure, scenario, server, minutes * 60) for scenario in SCENARIOS}
        for sample in range(1, SAMPLES + 1):
            time.sleep(minutes * 60 / SAMPLES)
            found.append((minutes * sample / SAMPLES, resident_bytes(server.pid) / 2**20))
        return found, {name: load.result().requests for name, load in loads.items()}


if __name__ == "__main__":
    run(main)
