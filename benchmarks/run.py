"""Runs the scenarios, each contestant in turn in every round, and prints the medians side by side.

.venv/bin/python -m benchmarks.run [--quick] [--only TEXT] [--database sqlite|postgresql|both] [--json FILE]
"""

import asyncio
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from benchmarks import i1_import, m1_refill, m2_record_usage, m3_record_usage_batch, q1_meter
from benchmarks.load import Load, Measured
from benchmarks.scenario import LIMIT, TOLLGATE, Scenario
from benchmarks.servers import (
    COMMANDS,
    OTHER_CPUS,
    Databases,
    PostgreSQLServer,
    Server,
    SQLiteFiles,
    environment,
    fill,
    pinned,
    serving,
)

SCENARIOS = [
    *q1_meter.SCENARIOS,
    *m1_refill.SCENARIOS,
    *m2_record_usage.SCENARIOS,
    *m3_record_usage_batch.SCENARIOS,
]
IMPORT = "I1, tollgate import"

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


class Choice(StrEnum):
    """Which databases to run on."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    BOTH = "both"


class Result(dict[str, Any]):
    """One contestant's medians in one scenario, as the JSON file has them."""


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    quick: Annotated[bool, typer.Option(help="Short rounds and few meters: to see that it works.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Scenarios whose name has this; may be repeated.")] = None,
    contestant: Annotated[list[str] | None, typer.Option(help="Only these contestants; may be repeated.")] = None,
    database: Annotated[Choice, typer.Option(help="Which databases.")] = Choice.BOTH,
    rounds: Annotated[int, typer.Option(help="How often each contestant has its turn.")] = 3,
    seconds: Annotated[float, typer.Option(help="How long a turn is measured.")] = 3.0,
    meters: Annotated[int, typer.Option(help="How many meters there are.")] = 20_000,
    events: Annotated[Path, typer.Option(help="What I1 imports.")] = Path("tests/data/azure-llm-conv.jsonl.gz"),
    folder: Annotated[Path | None, typer.Option(help="Where the databases are made.", exists=True)] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the results there.")] = None,
) -> None:
    """Measure Tollgate beside its comparators."""
    # However it is ended, it ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if quick:
        rounds, seconds, meters = min(rounds, 1), min(seconds, 1.0), min(meters, 1_000)
    scenarios = [each for each in SCENARIOS if not only or any(part in each.name for part in only)]
    contestants = contestant or list(COMMANDS)
    imports = not only or any(part in IMPORT for part in only)
    if imports and not events.exists():
        err.print(f"I1 is left out: there is no {events}.")
        imports = False
    results: list[Result] = []
    for kind in (Choice.SQLITE, Choice.POSTGRESQL):
        if database not in {kind, Choice.BOTH}:
            continue
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix="tollgate-benchmark-") as name,
            opened(kind, Path(name)) as at,
        ):
            if scenarios:
                results += compare(
                    kind, at, Path(name), scenarios, contestants, rounds=rounds, seconds=seconds, meters=meters
                )
            if imports:
                results.append(import_(kind, at, Path(name), events.resolve(), rounds=rounds))
    show(results, out)
    if json is not None:
        json.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))


@contextmanager
def opened(kind: Choice, folder: Path) -> Iterator[Databases]:
    """Open where databases of the kind are made."""
    databases = SQLiteFiles(folder) if kind is Choice.SQLITE else PostgreSQLServer(folder)
    try:
        yield databases
    finally:
        databases.close()


def compare(
    kind: Choice,
    databases: Databases,
    folder: Path,
    scenarios: list[Scenario],
    contestants: list[str],
    *,
    rounds: int,
    seconds: float,
    meters: int,
) -> list[Result]:
    """Run the scenarios on one kind of database, and return each contestant's medians."""
    key = asyncio.run(fill(databases.create("template"), meters))
    results = []
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serving(name, databases.copy("template", f"of_{name}"), folder)) for name in contestants
        ]
        for scenario in scenarios:
            taking_part = [server for server in servers if server.name in scenario.forms]
            measured: dict[str, list[Measured]] = {server.name: [] for server in taking_part}
            for round_ in range(rounds):
                # Nobody always comes first.
                for server in taking_part[round_ % len(taking_part) :] + taking_part[: round_ % len(taking_part)]:
                    err.print(f"{kind}: {scenario.name}, round {round_ + 1} of {rounds}: {server.name}")
                    load = load_of(scenario, server, key, databases.pid, seconds=seconds, meters=meters)
                    measured[server.name].append(send(load))
            found = summary(kind, scenario, measured)
            show(found, err)
            results += found
    for server in servers:
        verify(server)
    return results


def load_of(scenario: Scenario, server: Server, key: str, database: int | None, *, seconds: float, meters: int) -> Load:
    """Return the load of one turn."""
    form = scenario.forms[server.name]
    return Load(
        port=server.port,
        path=form.path,
        key=key,
        head=form.head,
        item=scenario.item,
        tail=form.tail,
        items=scenario.items,
        expect=form.expect,
        meters=min(scenario.meters or meters, meters),
        prefix=secrets.token_hex(4),
        clients=scenario.clients,
        warm_up_seconds=min(seconds, 1.0) / 2,
        seconds=seconds,
        server=server.pid,
        database=database,
    )


def send(load: Load) -> Measured:
    """Run the load in a process of its own."""
    with pinned(OTHER_CPUS):
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.load"],
            input=orjson.dumps(asdict(load)),
            stdout=subprocess.PIPE,
            env=environment(""),
            timeout=load.seconds + 120,
            check=True,
        )
    return Measured(**orjson.loads(process.stdout))


def summary(kind: Choice, scenario: Scenario, measured: dict[str, list[Measured]]) -> list[Result]:
    """Return the medians over the rounds, of events and requests alike: only in M3 are they not the same."""
    items = scenario.items

    def of(name: str, value: Callable[[Measured], float]) -> float:
        return median(value(each) for each in measured[name])

    results = [
        Result(
            database=str(kind),
            scenario=scenario.name,
            contestant=name,
            events_per_second=of(name, lambda each: each.requests * items / each.seconds),
            p50_ms=of(name, lambda each: each.p50_ms),
            p99_ms=of(name, lambda each: each.p99_ms),
            server_us=of(name, lambda each: each.server_cpu * 1e6 / each.requests / items),
            database_us=of(name, lambda each: each.database_cpu * 1e6 / each.requests / items),
            client_us=of(name, lambda each: each.client_cpu * 1e6 / each.requests / items),
        )
        for name in measured
    ]
    limits = [result for result in results if result["contestant"] == LIMIT]
    for result in results:
        for limit in limits:
            result["times_limit"] = result["events_per_second"] / limit["events_per_second"]
            result["times_limit_cpu"] = result["server_us"] / limit["server_us"]
    return results


def import_(kind: Choice, databases: Databases, folder: Path, events: Path, *, rounds: int) -> Result:
    """Import the file into a fresh database each round, and return the medians."""
    runs = []
    for round_ in range(rounds):
        err.print(f"{kind}: {IMPORT}, round {round_ + 1} of {rounds}")
        url = databases.create(f"import_{round_}")
        asyncio.run(fill(url, 1))
        runs.append(i1_import.run(events, url, folder))
    return Result(
        database=str(kind),
        scenario=IMPORT,
        contestant=TOLLGATE,
        events_per_second=median(run.events / run.seconds for run in runs),
        events_per_second_without_start=median(run.events / (run.seconds - run.start_seconds) for run in runs),
        server_us=median(run.cpu * 1e6 / run.events for run in runs),
        server_us_without_start=median((run.cpu - run.start_cpu) * 1e6 / run.events for run in runs),
    )


def verify(server: Server) -> None:
    """Check that what the contestant wrote keeps every rule. Raises `CalledProcessError`."""
    subprocess.run(
        [sys.executable, "-c", "from gateway.cli import app; app()", "verify"],
        env=environment(server.database_url),
        check=True,
    )


def show(results: list[Result], console: Console) -> None:
    """Print a table as Markdown knows them, so that it can be pasted."""
    console.print(f"{platform.machine()}, {len(OTHER_CPUS) + 1} cores, Python {platform.python_version()}")
    columns = [
        "database",
        "scenario",
        "contestant",
        "events/s",
        "x limit",
        "p50 ms",
        "p99 ms",
        "us",
        "x limit",
        "DB us",
    ]
    rows = []
    for result in results:
        rows.append(
            [
                result["database"],
                result["scenario"],
                result["contestant"],
                f"{result['events_per_second']:,.0f}",
                _number(result, "times_limit", 2),
                _number(result, "p50_ms", 1),
                _number(result, "p99_ms", 1),
                f"{result['server_us']:,.0f}",
                _number(result, "times_limit_cpu", 2),
                _number(result, "database_us", 0),
            ]
        )
        if "events_per_second_without_start" in result:
            rows.append(
                [
                    *(result["database"], "the same, without the command's start", result["contestant"]),
                    f"{result['events_per_second_without_start']:,.0f}",
                    *("", "", ""),
                    f"{result['server_us_without_start']:,.0f}",
                    *("", ""),
                ]
            )
    lines = [columns, ["---"] * len(columns), *rows]
    console.print("\n".join("| " + " | ".join(line) + " |" for line in lines), highlight=False, markup=False)


def _number(result: Result, name: str, digits: int) -> str:
    return f"{result[name]:,.{digits}f}" if name in result else ""


if __name__ == "__main__":
    app()
