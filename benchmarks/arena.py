"""Where contestants are measured: a filled database to copy, their servers, and the load that is sent to them."""

import asyncio
import itertools
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from benchmarks.dataset import fill
from benchmarks.load import Load, Measured, Part
from benchmarks.scenario import BEFORE, METERS_A_CUSTOMER, Scenario, asked_as
from benchmarks.servers import (
    OTHER_CPUS,
    Databases,
    PostgreSQLServer,
    Server,
    SQLiteFiles,
    environment,
    filled_before,
    pinned,
    serving,
)

err = Console(stderr=True, soft_wrap=True)


class Choice(StrEnum):
    """Which databases to run on."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    BOTH = "both"

    @property
    def each(self) -> "list[Choice]":
        """One after the other."""
        return [Choice.SQLITE, Choice.POSTGRESQL] if self is Choice.BOTH else [self]


# The options that all the commands have.
Quick = Annotated[bool, typer.Option(help="One short round on little data: to see that it works.")]
Which = Annotated[Choice, typer.Option("--database", help="Which databases.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often each is measured.")]
Seconds = Annotated[float, typer.Option(help="How long each is measured.")]
Customers = Annotated[int, typer.Option(min=50, help="How many customers there are, with two meters each.")]
Folder = Annotated[Path | None, typer.Option(help="Where the databases are made.", exists=True, resolve_path=True)]

#: The customers of the whole data set, who have 1.8 million usage days.
CUSTOMERS = 10_000

#: The rounds, seconds and customers of a quick run.
QUICK = (1, 0.2, 100)


def run(main: Callable[..., None]) -> None:
    """Run a command by its options."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()


@dataclass(frozen=True)
class Loads:
    """What is sent to servers whose databases have so many customers; `pids` are the processes of the databases."""

    kind: Choice
    pids: Sequence[int]
    key: str
    customers: int

    def load(self, scenario: Scenario, server: Server, seconds: float) -> Load:
        """Return what is sent to the server."""
        asked = [(request.forms[asked_as(server.name)], request.item) for request in scenario.requests]
        meters = self.customers * METERS_A_CUSTOMER // scenario.one_in
        return Load(
            port=server.port,
            key=server.key,
            parts=[Part(form.path, form.head, item, form.tail, form.expect) for form, item in asked],
            items=scenario.items,
            meters=min(scenario.meters or meters, meters),
            prefix=secrets.token_hex(4),
            clients=scenario.clients,
            warm_up_seconds=min(seconds, 1.0) / 2,
            seconds=seconds,
            server=server.pid,
            databases=[*self.pids],
        )

    def measure(self, scenario: Scenario, server: Server, seconds: float) -> Measured:
        """Send the load, in a process of its own."""
        err.print(f"{self.kind}: {scenario.name}: {server.name}")
        with pinned(OTHER_CPUS):
            process = subprocess.run(
                [sys.executable, "-m", "benchmarks.load", orjson.dumps(asdict(self.load(scenario, server, seconds)))],
                stdout=subprocess.PIPE,
                env=environment(""),
                timeout=seconds + 120,
                check=True,
            )
        return Measured(**orjson.loads(process.stdout))


@dataclass(frozen=True)
class Arena(Loads):
    """A filled database of one kind."""

    databases: Databases
    folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def serving(
        self, *names: str, workers: int = 1, pin: bool = True, variables: Mapping[str, str] | None = None
    ) -> Iterator[list[Server]]:
        """Start the contestants, each on its own copy of the database, and end them; `variables` are of all."""
        with ExitStack() as stack:
            servers = []
            for name in names:
                database, key = f"of_{name}_{next(self._numbers)}", self.key
                if name == BEFORE:  # Its tables may be other ones.
                    url = self.databases.create(database)
                    key = filled_before(url, self.customers)
                else:
                    url = self.databases.copy("template", database)
                servers.append(
                    stack.enter_context(
                        serving(name, url, key, self.folder, workers=workers, pin=pin, variables=variables)
                    )
                )
            yield servers


def in_turn(rounds: int, turns: Sequence[Callable[[], Measured]]) -> list[list[Measured]]:
    """Take the turns in every round, and return what each came to. Nobody always comes first."""
    found: list[list[Measured]] = [[] for _ in turns]
    for round_ in range(rounds):
        err.print(f"round {round_ + 1} of {rounds}")
        for number in range(len(turns)):
            place = (round_ + number) % len(turns)
            found[place].append(turns[place]())
    return found


@contextmanager
def arena(kind: Choice, customers: int, folder: Path | None) -> Iterator[Arena]:
    """Make a filled database, and remove everything at the end, however that comes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(dir=folder, prefix="tollgate-benchmark-") as name:
        databases: Databases = SQLiteFiles(Path(name)) if kind is Choice.SQLITE else PostgreSQLServer(Path(name))
        with closing(databases):
            err.print(f"{kind}: {customers:,} customers are made")
            key = asyncio.run(fill(databases.create("template"), customers))
            yield Arena(kind, databases.pids, key, customers, databases, Path(name))
