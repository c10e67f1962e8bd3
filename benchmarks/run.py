"""Runs the scenarios, each contestant in turn in every round, and prints the medians side by side.

.venv/bin/python -m benchmarks.run [--quick] [--only TEXT] [--database sqlite|postgresql|both] [--json FILE]
"""

import asyncio
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import orjson
import typer

from benchmarks import (
    answers,
    h1_hold,
    i1_import,
    m1_refill,
    m2_record_usage,
    m3_record_usage_batch,
    q1_meter,
    q2_customers,
    q3_customer,
)
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
    err,
    in_turn,
    run,
)
from benchmarks.dataset import fill
from benchmarks.report import Result, medians, show, show_targets
from benchmarks.scenario import BEFORE, TOLLGATE, Scenario
from benchmarks.servers import COMMANDS, Server, add_before, environment, takes_part

SCENARIOS = [
    *q1_meter.SCENARIOS,
    *q2_customers.SCENARIOS,
    *q3_customer.SCENARIOS,
    *m1_refill.SCENARIOS,
    *m2_record_usage.SCENARIOS,
    *m3_record_usage_batch.SCENARIOS,
    *h1_hold.SCENARIOS,
]
IMPORT = "I1, tollgate import"


def main(
    quick: Quick = False,
    only: Annotated[list[str] | None, typer.Option(help="Scenarios whose name has this; may be repeated.")] = None,
    contestant: Annotated[list[str] | None, typer.Option(help="Only these contestants; may be repeated.")] = None,
    database: Which = Choice.BOTH,
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    customers: Customers = CUSTOMERS,
    events: Annotated[Path, typer.Option(help="What I1 imports.")] = Path("tests/data/azure-llm-conv.jsonl.gz"),
    folder: Folder = None,
    before: Annotated[
        Path | None, typer.Option(help="Another checkout that takes part, in which `make` has made `.venv`.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the results there.")] = None,
) -> None:
    """Measure Tollgate beside its comparators."""
    if quick:
        rounds, seconds, customers = QUICK
    if before is not None:
        add_before(before.resolve())
    scenarios = [each for each in SCENARIOS if not only or any(part in each.name for part in only)]
    imports = not only or any(part in IMPORT for part in only)
    if imports and not events.exists():
        err.print(f"I1 is left out: there is no {events}.")
        imports = False
    results: list[Result] = []
    for kind in database.each:
        with arena(kind, customers if scenarios else 0, folder) as at:
            if scenarios:
                results += compare(at, scenarios, contestant or list(COMMANDS), rounds, seconds)
            if imports:
                results += import_(at, events.resolve(), rounds)
    show(results)
    show_targets(results)
    if json is not None:
        json.write_bytes(orjson.dumps([asdict(result) for result in results], option=orjson.OPT_INDENT_2))


def compare(at: Arena, scenarios: list[Scenario], contestants: list[str], rounds: int, seconds: float) -> list[Result]:
    """Run the scenarios, and return each contestant's medians."""
    results: list[Result] = []
    with at.serving(*contestants) as servers:
        answers.check(at, scenarios, servers)
        for scenario in scenarios:
            taking_part = [server for server in servers if takes_part(server.name, scenario)]
            measured = in_turn(rounds, [partial(at.measure, scenario, server, seconds) for server in taking_part])
            found = [
                medians(at.kind, scenario, server.name, each)
                for server, each in zip(taking_part, measured, strict=True)
            ]
            show(found, err)
            results += found
    verify(servers)
    return results


def verify(servers: list[Server]) -> None:
    """Check that what the contestants wrote keeps every rule. Raises `CalledProcessError`."""
    command = [sys.executable, "-c", "from gateway.cli.main import app; app()", "verify"]
    # Another release keeps its own rules.
    ours = [server for server in servers if server.name != BEFORE]
    processes = [subprocess.Popen(command, env=environment(server.database_url)) for server in ours]
    try:
        for process in processes:
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, command)
    finally:
        for process in processes:
            process.kill()


def import_(at: Arena, events: Path, rounds: int) -> list[Result]:
    """Import the file into a fresh database each round, and return the medians, of all and without the start."""
    runs = []
    for round_ in range(rounds):
        err.print(f"{at.kind}: {IMPORT}, round {round_ + 1} of {rounds}")
        url = at.databases.create(f"import_{round_}")
        asyncio.run(fill(url, 0))
        runs.append(i1_import.run(events, url, at.folder, at.databases.pids))
    whole = Result(
        database=at.kind,
        scenario=IMPORT,
        contestant=TOLLGATE,
        a_second=median(run.events / run.seconds for run in runs),
        server_us=median(run.cpu * 1e6 / run.events for run in runs),
        database_us=median(run.database_cpu * 1e6 / run.events for run in runs),
    )
    without_start = replace(
        whole,
        scenario="the same, without the command's start",
        a_second=median(run.events / (run.seconds - run.start_seconds) for run in runs),
        server_us=median((run.cpu - run.start_cpu) * 1e6 / run.events for run in runs),
    )
    return [whole, without_start]


if __name__ == "__main__":
    run(main)
