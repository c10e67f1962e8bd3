"""Connections and transactions, on SQLite and on PostgreSQL.

`read()` opens a short connection for one lookup, so that sibling fields can run side by side. `write()` is one
transaction in a task of its own: it is committed or rolled back as a whole, whatever becomes of the caller.
"""

import asyncio
import errno
import itertools
import os
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import asyncpg
import orjson
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Executable,
    Row,
    Table,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from storage.engine.failures import (
    UNAVAILABLE,
    CommitWarned,
    FileReplaced,
    Meaning,
    RolledBack,
    SharedSession,
    is_lock_timeout,
    is_refused,
    is_unavailable,
    meaning_of,
)
from storage.engine.statements import Prepared, insertion_of_records, insertion_of_values, keys
from storage.tables import metadata

#: How often a transaction is tried that lost a race, or its connection before COMMIT was sent.
ATTEMPTS = 4

#: How long writes under way are given to end when the database is closed.
CLOSE_SECONDS = 1

#: How long the second attempt waits; each later one waits twice as long as the one before.
PAUSE_SECONDS = 0.05

#: The most rows that one statement adds on SQLite: so few that the driver can keep one for each number prepared.
MOST_ROWS = 100

#: The most characters of a statement's parameters with which SQLite runs it in the event loop's thread: it is about a
#: few records, and takes less than what the event loop is held for by any request.
MOST_HERE = 1_000

#: What makes commits to SQLite durable, and readers independent of the writer.
PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")

#: How the connection is set that writes to SQLite: the inner pages of large indexes fit into its cache, what a
#: statement needs to undo itself stays in memory, and the log is copied into the file when it has 16 MiB.
#: When a long reader has let it grow, it is cut back to that size as soon as it is written from its start again.
WRITER_PRAGMAS = (
    "cache_size = -16384",
    "temp_store = MEMORY",
    "wal_autocheckpoint = 4096",
    "journal_size_limit = 16777216",
)

#: How many connections read from SQLite.
SQLITE_READERS = 4

#: How often two connections are compared that come through a pooler.
POOLER_ROUNDS = 5

#: How many groups of commands PostgreSQL decides at once: the writer's two lanes have one each.
GROUPS = 2

#: How long a connection is kept for the next read, in seconds.
KEPT_SECONDS = 1

#: Under which name a connection's pool keeps when it was opened, and SQLite's the file that it has opened.
_OPENED_AT = "opened at"
_FILE = "file"

T = TypeVar("T")


class Outcome(StrEnum):
    """What is known of a write that could not be finished."""

    NOT_WRITTEN = "NOT_WRITTEN"
    UNKNOWN = "UNKNOWN"


class DatabaseUnavailable(Exception):
    """The database cannot be reached, is too slow, or was lost; `outcome` tells what that means for a write."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"the database is unavailable ({outcome})")
        self.outcome = outcome


class LockTimeout(DatabaseUnavailable):
    """Somebody else holds a lock for longer than a write may wait for it; nothing was written."""

    def __init__(self) -> None:
        super().__init__(Outcome.NOT_WRITTEN)


class Reader:
    """Runs statements that change nothing."""

    def __init__(self, dialect: str, connection: AsyncConnection | None = None) -> None:
        self.dialect = dialect
        """The database's kind: `sqlite` or `postgresql`."""
        self._connection = connection

    async def fetch(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """Return all rows of the statement."""
        result = await (await self._connected()).execute(statement, parameters)
        return result.all()

    async def fetch_one(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Row[Any] | None:
        """Return the only row of the statement, or None."""
        result = await (await self._connected()).execute(statement, parameters)
        return result.one_or_none()

    async def run(
        self, statement: Prepared, parameters: Mapping[str, Any], *, is_long: bool = False
    ) -> list[Sequence[Any]]:
        """Run a prepared statement and return its rows. `is_long`: it reads many, however short its parameters are."""
        values = statement.values(parameters)
        rows = await (Reader._run(self, statement.text, values) if is_long else self._run(statement.text, values))
        return statement.read(rows)

    async def run_sync(self, work: Callable[[Connection], T]) -> T:
        """Run work that is written for SQLAlchemy's blocking connection."""
        return await (await self._connected()).run_sync(work)

    async def _connected(self) -> AsyncConnection:
        assert self._connection is not None  # noqa: S101  # It is open, or opened by `_QuickReader`.
        return self._connection

    async def _run(self, text: str, values: Sequence[Any] = (), *, many: bool = False) -> Iterable[Sequence[Any]]:
        """Give the driver a statement and return its rows; on SQLite, run it for each of `many` lists of values."""
        opened = await self._connected()
        connection = opened.sync_connection
        assert connection is not None  # noqa: S101  # It is open.
        _tell(connection.dispatch.before_cursor_execute, connection, text, values, many=many)
        driver: Any = connection.connection.driver_connection
        try:
            rows: Iterable[Sequence[Any]] = ()
            if self.dialect == "postgresql" and values:
                rows = await driver.fetch(text, *values)
            elif self.dialect == "postgresql":
                await driver.execute(text)  # A command of transactions needs not be prepared.
            elif many:
                await driver.executemany(text, values)  # It has no rows, so that its cursor is at the end.
            else:
                rows = await driver.execute_fetchall(text, values)
        except (asyncpg.PostgresError, sqlite3.Error):
            raise  # The statement's own fault, which leaves the connection as it was.
        except BaseException:
            # Nobody knows in which state it is, so nobody is to get it from the pool.
            await opened.invalidate()
            raise
        _tell(connection.dispatch.after_cursor_execute, connection, text, values, many=many)
        return rows


class _QuickReader(Reader):
    """Runs the short reads of requests: on a connection that is open already, and on SQLite in the caller's thread."""

    def __init__(self, connections: "_Connections") -> None:
        super().__init__(connections.dialect)
        self._connections = connections

    async def close(self, error: BaseException | None) -> None:
        """Give the connection back, if one was taken, with what failed on it."""
        if self._connection is not None:
            await self._connections.give_back(self._connection, error)

    async def _connected(self) -> AsyncConnection:
        if self._connection is None:
            self._connection = await self._connections.take()
        return self._connection

    async def _run(self, text: str, values: Sequence[Any] = (), *, many: bool = False) -> Iterable[Sequence[Any]]:
        if self.dialect == "sqlite" and _is_short(values):
            with suppress(sqlite3.OperationalError):  # Such as a lock, which only the other thread may wait for.
                return self._connections.run_here(text, values)
        return await super()._run(text, values, many=many)


class PoolState(NamedTuple):
    """How many connections are in use, how many uses wait for one, and how many may be open."""

    in_use: int
    awaited: int
    most: int


class _Connections:
    """An engine's connections, kept open between uses: taking one from the engine costs more than a short transaction.

    Whoever waits for one is given it by whoever is done, in the order in which they came.
    """

    def __init__(self, engine: AsyncEngine, *, most_open: int, wait_seconds: float) -> None:
        self.dialect = engine.dialect.name
        self._engine = engine
        self._wait_seconds = wait_seconds
        self._most_open = most_open
        self._free = most_open
        self._kept: list[tuple[AsyncConnection, float]] = []
        # Each is given a connection, or None: the right to open one.
        self._waiting: deque[asyncio.Future[AsyncConnection | None]] = deque()
        self._is_closing = False
        self._here: sqlite3.Connection | None = None
        self._renewed_at = 0.0
        event.listen(engine.sync_engine, "connect", _note_opening)
        event.listen(engine.sync_engine, "checkout", self._require_new)

    @property
    def state(self) -> "PoolState":
        """What there is of connections at the moment."""
        return PoolState(self._most_open - self._free - len(self._kept), len(self._waiting), self._most_open)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection, or take one that is open."""
        connection = await self.take()
        try:
            yield connection
        except BaseException as error:
            await self.give_back(connection, error)
            raise
        await self.give_back(connection)

    async def take(self) -> AsyncConnection:
        """Return an open connection. Raises `TimeoutError` where none is given back in time."""
        while self._kept:
            connection, kept_at = self._kept.pop()
            # What lay for longer is looked at by the pool, which tries whether it still answers.
            if time.monotonic() - kept_at < KEPT_SECONDS and not await self._is_closed(connection):
                return connection
            await self._let_go(connection)
        if self._free:
            self._free -= 1
        elif (given := await self._wait()) is not None:
            return given
        try:
            return await self._engine.connect()
        except BaseException:
            self._free_one()
            raise

    async def give_back(self, connection: AsyncConnection, error: BaseException | None = None) -> None:
        """Hand the connection to the next that waits for one, or keep it for the next use, unless something failed."""
        if isinstance(error, UNAVAILABLE) and meaning_of(error) is Meaning.LOST_SESSION:
            if not connection.invalidated:
                await connection.invalidate()
            await self._renew()
        elif connection.invalidated:
            await self.release()  # Those that are kept may be as broken.
        if error is not None or connection.invalidated or self._is_closing or self._is_old(connection):
            await self._let_go(connection)
        elif not self._hand_over(connection):
            self._kept.append((connection, time.monotonic()))

    async def _renew(self) -> None:
        """Use no connection again that was opened before now: what has ended one session may have changed them all."""
        self._renewed_at = time.monotonic()
        self._close_here()
        while self._kept:
            connection, _ = self._kept.pop()
            await connection.invalidate()
            await self._let_go(connection)

    def _is_old(self, connection: AsyncConnection) -> bool:
        if not self._renewed_at or connection.sync_connection is None:
            return False
        opened_at: float = connection.sync_connection.connection.info[_OPENED_AT]
        return opened_at < self._renewed_at

    def _require_new(self, _connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        """Have the engine's pool open a connection anew that is from before `_renew`."""
        if record.info[_OPENED_AT] < self._renewed_at:
            raise DisconnectionError

    async def _wait(self) -> AsyncConnection | None:
        waiter: asyncio.Future[AsyncConnection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await waiter
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.done() and not waiter.cancelled():
                # It was given in the moment in which nobody waited any more.
                given = waiter.result()
                if given is None:
                    self._free_one()
                else:
                    await self.give_back(given)
            raise

    def _hand_over(self, given: AsyncConnection | None) -> bool:
        """Give a connection, or the right to open one, to the first that waits, if there is any."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(given)
                return True
        return False

    def _free_one(self) -> None:
        if not self._hand_over(None):
            self._free += 1

    async def _let_go(self, connection: AsyncConnection) -> None:
        """Give a connection back to the engine's pool."""
        try:
            await connection.close()
        finally:
            self._free_one()

    def run_here(self, text: str, values: Sequence[Any]) -> list[Any]:
        """Run a short statement on SQLite at once: crossing to another thread and back takes longer than it does.

        Readers wait for nobody in SQLite's WAL mode. Raises `sqlite3.Error`.
        """
        if self._here is None:
            address = sqlite_address(self._engine.url.database or "", writes=False)
            self._here = sqlite3.connect(address, timeout=0, isolation_level=None, uri=True)
            self._here.execute("PRAGMA query_only = ON")
        engine = self._engine.sync_engine
        _tell(engine.dispatch.before_cursor_execute, engine, text, values)
        rows = self._here.execute(text, values).fetchall()
        _tell(engine.dispatch.after_cursor_execute, engine, text, values)
        return rows

    async def release(self) -> None:
        """Give what is kept back to the pool."""
        while self._kept:
            await self._let_go(self._kept.pop()[0])

    async def close(self) -> None:
        """Close what is kept, and keep nothing any more: a write that ends later gives its connection back."""
        self._is_closing = True
        await self.release()
        self._close_here()

    def _close_here(self) -> None:
        if self._here is not None:
            self._here.close()
            self._here = None

    async def _is_closed(self, connection: AsyncConnection) -> bool:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        return self.dialect == "postgresql" and bool(driver.is_closed())


def _note_opening(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[_OPENED_AT] = time.monotonic()


def _is_short(values: Iterable[Any]) -> bool:
    """Whether a statement of these values takes so little that it may hold up the event loop."""
    return sum(len(value) for value in values if isinstance(value, str)) <= MOST_HERE


def _tell(
    listeners: Iterable[Callable[..., None]],
    source: Connection | Engine,
    text: str,
    values: Sequence[Any],
    *,
    many: bool = False,
) -> None:
    """Tell of a statement that is given to the driver, or was, as SQLAlchemy does of its own."""
    for listener in listeners:
        listener(source, None, text, values, None, many)


class Writer(Reader):
    """Runs any statement, inside a transaction that `Database.write` ends."""

    _connection: AsyncConnection

    def __init__(self, connection: AsyncConnection) -> None:
        super().__init__(connection.dialect.name, connection)
        #: Whether a row is locked, and so the transaction written to PostgreSQL's log, which COMMIT waits for.
        self._has_locked = False

    async def run(
        self, statement: Prepared, parameters: Mapping[str, Any], *, is_long: bool = False
    ) -> list[Sequence[Any]]:
        """Run a prepared statement and return its rows."""
        rows = await super().run(statement, parameters, is_long=is_long)
        self._has_locked = self._has_locked or (statement.is_locking and bool(rows))
        return rows

    async def execute(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> None:
        """Run the statement."""
        await self._connection.execute(statement, parameters)

    async def insert_rows(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows, whose values are in the order of the table's columns.

        The values are plain ones or what JSON has a form for; a JSON column's is given as its text. On PostgreSQL the
        rows are one parameter. SQLite takes longer to take JSON apart than to insert it, and the driver as long to bind
        a row's values one by one: there, a statement adds many rows, and a value that all rows have is bound once.
        """
        if self.dialect == "postgresql":
            await self.run(insertion_of_records(table), keys(rows))
            return
        # Written as JSON and read again, days, moments and enums are the texts that SQLite keeps.
        columns = orjson.loads(orjson.dumps(list(zip(*rows, strict=True))))
        is_shared = tuple([column.count(column[0]) == len(column) for column in columns])
        shared = [column[0] for column, is_one in zip(columns, is_shared, strict=True) if is_one]
        own = [column for column, is_one in zip(columns, is_shared, strict=True) if not is_one]
        parts = [
            (
                *shared,
                *itertools.chain.from_iterable(zip(*[column[at : at + MOST_ROWS] for column in own], strict=True)),
            )
            for at in range(0, len(rows), MOST_ROWS)
        ]
        rest = [parts.pop()] if len(rows) % MOST_ROWS else []
        for count, values in ((MOST_ROWS, parts), (len(rows) % MOST_ROWS, rest)):
            if values:
                await self._run(insertion_of_values(table, is_shared, count), values, many=True)

    async def _run(self, text: str, values: Sequence[Any] = (), *, many: bool = False) -> Iterable[Sequence[Any]]:
        is_here = self.dialect == "sqlite" and values and _is_short(itertools.chain(*values) if many else values)
        if not is_here:
            return await super()._run(text, values, many=many)
        # Between BEGIN and COMMIT SQLite waits for nobody: neither for a lock, which is taken, nor for the disk.
        connection = self._connection.sync_connection
        assert connection is not None  # noqa: S101  # It is open.
        _tell(connection.dispatch.before_cursor_execute, connection, text, values, many=many)
        driver: Any = connection.connection.driver_connection
        sqlite: sqlite3.Connection = driver._conn  # noqa: SLF001  # Its thread does nothing meanwhile.
        rows = (sqlite.executemany if many else sqlite.execute)(text, values).fetchall()
        _tell(connection.dispatch.after_cursor_execute, connection, text, values, many=many)
        return rows

    async def limit_lock_waits(self, seconds: float) -> None:
        """Let the rest of the transaction wait for a lock no longer than this. SQLite has one alone, and has it."""
        if self.dialect == "postgresql":
            await self._run(f"SET LOCAL lock_timeout = {int(seconds * 1000)}")

    async def begin(self) -> None:
        """Open the transaction. Raises `FileReplaced`."""
        try:
            if self.dialect == "sqlite":
                self._require_same_file()
                # The write lock is taken at once: a transaction that takes it later fails when another wrote meanwhile.
                await self._run("BEGIN IMMEDIATE")
            else:
                await self._run("BEGIN ISOLATION LEVEL READ COMMITTED")
        except BaseException:
            await self._connection.invalidate()
            raise

    async def commit(self) -> None:
        """Commit, so that what the transaction has read is as durable as what it wrote.

        A replay answers from rows that may be from a COMMIT which was cancelled while it waited for a standby: they
        are there, and may be lost with the server. PostgreSQL waits at COMMIT for all that was logged before, but only
        where the transaction has itself written to the log. A row's lock does; where none is certain, an empty message
        does. SQLite shows nobody a commit before it is written through, and `_sqlite_engine` sees to what a process
        left that was killed.

        Whatever it raises, the connection is not used again. Raises `CommitWarned` where PostgreSQL has committed, but
        not as durably as it is set to, and `RolledBack` where it has not committed.
        """
        await self._end("COMMIT", first="" if self._has_locked else _WRITE_TO_LOG)

    async def roll_back(self) -> None:
        """Undo everything, if need be by giving up the connection."""
        if not self._connection.invalidated:
            with suppress(CommitWarned, *UNAVAILABLE):
                await self._end("ROLLBACK")

    async def refuse(self) -> None:
        """Undo everything, and wait until what the transaction has read is durable: a refusal answers from it, too."""
        await self._end("ROLLBACK", then=_WRITE_TO_LOG)

    async def _end(self, command: str, *, first: str = "", then: str = "") -> None:
        """End the transaction, on PostgreSQL between these statements, and in one round trip with them."""
        try:
            if self.dialect == "postgresql":
                await self._end_on_postgresql(command, f"{first}{command};{then}")
            else:
                await self._run(command)
        except BaseException:
            await self._connection.invalidate()
            raise

    async def _end_on_postgresql(self, command: str, text: str) -> None:
        connection = self._connection.sync_connection
        assert connection is not None  # noqa: S101  # It is open.
        driver: Any = connection.connection.driver_connection
        warnings: list[asyncpg.PostgresLogMessage] = []

        def note(_connection: object, message: asyncpg.PostgresLogMessage) -> None:
            # Its severity in the language of the server is another word.
            if isinstance(message, asyncpg.PostgresWarning):
                warnings.append(message)

        _tell(connection.dispatch.before_cursor_execute, connection, command, ())
        driver.add_log_listener(note)
        try:
            status = await driver.execute(text)
        finally:
            driver.remove_log_listener(note)
        _tell(connection.dispatch.after_cursor_execute, connection, command, ())
        if command == "COMMIT" and status != "COMMIT":
            raise RolledBack
        if warnings:
            raise CommitWarned(str(warnings[0]))

    def _require_same_file(self) -> None:
        """Raise `FileReplaced` where the database's file is another one than was opened, which nobody will read."""
        connection = self._connection.sync_connection
        assert connection is not None  # noqa: S101  # It is open.
        path, opened = connection.connection.info[_FILE]
        try:
            found = _identity(path)
        except FileNotFoundError as error:
            # Another connection would make an empty one; this one is good again when the file is back.
            raise sqlite3.OperationalError("the database's file is missing") from error
        if found != opened:
            raise FileReplaced


async def _worked(writer: Writer, work: Callable[[Writer], Awaitable[T]]) -> T:
    """Return what the work returns, or undo it and raise what it raises, a refusal once it may be answered."""
    try:
        return await work(writer)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, UNAVAILABLE):
            await writer.refuse()
        else:
            await writer.roll_back()
        raise


class Failed:
    """Stands for a database that has just failed a query, and fails the rest of it the same way."""

    def __init__(self, error: DatabaseUnavailable) -> None:
        self._error = error

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Reader]:
        """Raise the error."""
        raise self._error
        yield Reader("")  # type: ignore[unreachable]  # It is a generator, as what it stands for.


class Database:
    """One database: SQLite in a file, or PostgreSQL.

    `wait_seconds` bounds every wait: for a connection, for a lock, for a statement.
    """

    def __init__(self, url: str, *, pool_size: int = 8, wait_seconds: float = 10) -> None:
        self.url = make_url(url)
        self.wait_seconds = wait_seconds
        self.dialect = self.url.get_backend_name()
        if self.dialect == "sqlite":
            pool_size = SQLITE_READERS
            self._readers = _sqlite_engine(url, pool_size=pool_size, wait_seconds=wait_seconds)
            self._writers = _sqlite_engine(url, pool_size=1, wait_seconds=wait_seconds, pragmas=WRITER_PRAGMAS)
            self._snapshots = _sqlite_engine(url, pool_size=1, wait_seconds=wait_seconds)
        else:
            self._readers = _postgresql_engine(self.url, pool_size=pool_size + GROUPS, wait_seconds=wait_seconds)
            self._writers = self._readers
            self._snapshots = _postgresql_engine(self.url, pool_size=1, wait_seconds=None)
        self._read_connections = _Connections(self._readers, most_open=pool_size, wait_seconds=wait_seconds)
        self._write_connections = (
            _Connections(self._writers, most_open=1, wait_seconds=wait_seconds)
            if self.dialect == "sqlite"
            else self._read_connections
        )
        # Slow reads never hold up the groups of commands, which have connections of their own.
        self._group_connections = (
            self._write_connections
            if self.dialect == "sqlite"
            else _Connections(self._writers, most_open=GROUPS, wait_seconds=wait_seconds)
        )
        self._writes: set[asyncio.Task[Any]] = set()

    @property
    def engines(self) -> Sequence[AsyncEngine]:
        """The engines of writers, readers and snapshots; some may use one pool."""
        return self._writers, self._readers, self._snapshots

    @property
    def connections(self) -> Mapping[str, PoolState]:
        """What there is of connections, those of snapshots aside: by their use, unless all uses share them."""
        if self._write_connections is self._read_connections:
            return {"all": self._read_connections.state, "groups": self._group_connections.state}
        return {"reading": self._read_connections.state, "writing": self._write_connections.state}

    def listen(self, *, begun: Callable[..., None], done: Callable[..., None]) -> None:
        """Tell of every statement when it is given to the driver, and when it is done, as SQLAlchemy's events do."""
        for engine in {engine.sync_engine for engine in self.engines}:
            event.listen(engine, "before_cursor_execute", begun)
            event.listen(engine, "after_cursor_execute", done)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Reader]:
        """Open a connection on which every statement sees what is committed when it starts.

        Raises `DatabaseUnavailable` (`NOT_WRITTEN`).
        """
        try:
            reader = _QuickReader(self._read_connections)
            try:
                yield reader
            except BaseException as error:
                await reader.close(error)
                raise
            await reader.close(None)
        except UNAVAILABLE as error:
            if is_unavailable(error):
                raise DatabaseUnavailable(Outcome.NOT_WRITTEN) from error
            raise

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Reader]:
        """Open a connection on which every statement sees what was committed when the first one started.

        It may stay open for long; each of its statements may take as long as it needs.

        Raises `DatabaseUnavailable` (`NOT_WRITTEN`).
        """
        async with self._begun(self._snapshots, _SNAPSHOT[self.dialect]) as reader:
            yield reader

    @asynccontextmanager
    async def standstill(self, tables: Iterable[Table]) -> AsyncIterator[Reader]:
        """Open a snapshot of the tables, and let nobody write to them until it is closed.

        Whoever writes meanwhile, in any process, waits, and is told `NOT_WRITTEN` when that takes too long.

        Raises `DatabaseUnavailable` (`NOT_WRITTEN`).
        """
        await self._write_connections.release()  # On SQLite there is but one.
        if self.dialect == "sqlite":
            opened = self._begun(self._writers, "BEGIN IMMEDIATE")
        else:
            # It takes the locks before its first query, which is when its snapshot begins.
            lock = f"LOCK TABLE {', '.join(table.name for table in tables)} IN SHARE MODE"
            opened = self._begun(self._snapshots, _SNAPSHOT[self.dialect], lock)
        async with opened as reader:
            yield reader

    @asynccontextmanager
    async def _begun(self, engine: AsyncEngine, *commands: str) -> AsyncIterator[Reader]:
        """Open a connection, and a transaction that the commands begin and that is rolled back in the end."""
        try:
            async with engine.connect() as connection:
                for command in commands:
                    await connection.exec_driver_sql(command)
                try:
                    yield Reader(self.dialect, connection)
                finally:
                    if not connection.invalidated:
                        await connection.exec_driver_sql("ROLLBACK")
        except UNAVAILABLE as error:
            if is_unavailable(error):
                raise DatabaseUnavailable(Outcome.NOT_WRITTEN) from error
            raise

    async def require_writable(self) -> None:
        """Raise `DatabaseUnavailable` where reads are answered and writes would be refused."""
        if self.dialect == "sqlite":
            if not os.access(self.url.database or "", os.W_OK):
                raise DatabaseUnavailable(Outcome.NOT_WRITTEN)
            return
        async with self.read() as reader:
            row = await reader.fetch_one(_IS_WRITABLE, {"tables": [table.name for table in metadata.sorted_tables]})
            if row is None or not row.may_write:
                raise asyncpg.InsufficientPrivilegeError
            if row.is_read_only:
                # The session may be read-only by how it was begun; the next one is asked on another.
                raise asyncpg.ReadOnlySQLTransactionError

    async def write(
        self, work: Callable[[Writer], Awaitable[T]], *, is_repeatable: bool = False, is_group: bool = False
    ) -> T:
        """Run `work` in one transaction and return what it returns, once that is committed.

        The transaction runs in a task of its own: when the caller is cancelled, it is still finished. `work` may be run
        again, after everything it did was rolled back, when it lost a race with another transaction or lost its
        connection before COMMIT was sent; so it does nothing but SQL, and looks before it inserts. Where it
        `is_repeatable`, because it looks for what an earlier run has written, it is also run again when the answer to
        COMMIT was lost. A group of commands uses the connections that are kept for groups.

        Raises `DatabaseUnavailable`, with outcome `UNKNOWN` where the answer to COMMIT was lost, `LockTimeout`, and
        whatever `work` raises.
        """
        connections = self._group_connections if is_group else self._write_connections
        task = asyncio.create_task(self._write(work, connections, is_repeatable=is_repeatable))
        self._writes.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # Marks it as seen: the caller that would have been told may be gone.

    async def _write(
        self, work: Callable[[Writer], Awaitable[T]], connections: _Connections, *, is_repeatable: bool
    ) -> T:
        is_unknown = False
        for attempt in range(1, ATTEMPTS + 1):
            committing = False
            if attempt > 1:
                await asyncio.sleep(PAUSE_SECONDS * 2 ** (attempt - 2))
            try:
                async with connections.connect() as connection:
                    writer = Writer(connection)
                    await writer.begin()
                    result = await _worked(writer, work)
                    committing = True
                    await writer.commit()
                    return result
            except CommitWarned as error:
                # A refusal has written nothing.
                outcome = Outcome.UNKNOWN if committing or is_unknown else Outcome.NOT_WRITTEN
                raise DatabaseUnavailable(outcome) from error
            except UNAVAILABLE as error:
                is_unknown = is_unknown or (committing and not is_refused(error))
                # A COMMIT that has waited for a standby for as long as it may is not run again, to wait again.
                is_lost = not (committing and isinstance(error, TimeoutError))
                may_repeat = is_repeatable and is_lost if is_unknown else meaning_of(error) in _RUN_AGAIN
                if may_repeat and attempt < ATTEMPTS:
                    continue
                if is_unknown:
                    raise DatabaseUnavailable(Outcome.UNKNOWN) from error
                if is_lock_timeout(error):
                    raise LockTimeout from error
                if is_unavailable(error):
                    raise DatabaseUnavailable(Outcome.NOT_WRITTEN) from error
                raise
        raise AssertionError  # pragma: no cover  # The last attempt returns or raises.

    @asynccontextmanager
    async def connect_to_migrate(self) -> AsyncIterator[AsyncConnection]:
        """Open one transaction on the bare connection, for Alembic, which writes its own statements."""
        await self._write_connections.release()  # On SQLite there is but one.
        try:
            async with (self._writers if self.dialect == "sqlite" else self._snapshots).connect() as connection:
                # Alembic sees that there is a transaction, and leaves it alone.
                await connection.begin()
                writer = Writer(connection)
                await writer.begin()
                try:
                    yield connection
                except BaseException:
                    await writer.roll_back()
                    raise
                await writer.commit()
        except CommitWarned as error:
            raise DatabaseUnavailable(Outcome.UNKNOWN) from error
        except UNAVAILABLE as error:
            if is_unavailable(error):
                raise DatabaseUnavailable(Outcome.NOT_WRITTEN) from error
            raise

    async def close(self) -> None:
        """Finish the writes under way, then close every connection."""
        if self._writes:
            await asyncio.wait(self._writes, timeout=CLOSE_SECONDS)
        for connections in (self._read_connections, self._write_connections, self._group_connections):
            await connections.close()
        for engine in self.engines:
            await engine.dispose()


def sqlite_address(path: str, *, writes: bool) -> str:
    """Return the URI by which SQLite opens a file; a file that is not there is made, for its owner alone.

    SQLite gives the files beside it the same mode. Raises `OSError` for what it cannot open, or not for one who
    `writes`: SQLite itself begins transactions on read-only files, and the driver's own thread prints a traceback.
    """
    file = Path(path)
    is_copy = False
    if not file.exists():
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    # An existing file is not opened to try it: closing it again would end the locks that SQLite has on it.
    elif file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    elif not os.access(file, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    else:
        # Beside a read-only copy, SQLite cannot make the files through which connections share it. It needs none while
        # nobody writes: whoever does has a log there.
        is_copy = _is_read_only(file) and not Path(f"{path}-wal").exists()
        if is_copy and writes:
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), path)
    return f"file://{quote(str(file.absolute()))}{'?immutable=1' if is_copy else ''}"


def _is_read_only(file: Path) -> bool:
    return not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK)


def _sqlite_engine(url: str, *, pool_size: int, wait_seconds: float, pragmas: Sequence[str] = ()) -> AsyncEngine:
    engine = create_async_engine(
        url,
        hide_parameters=True,
        # The driver's own transactions begin late and deferred: with them, concurrent debits overwrite each other or
        # fail.
        connect_args={"isolation_level": None, "timeout": wait_seconds, "uri": True},
        isolation_level="AUTOCOMMIT",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=wait_seconds,
        pool_reset_on_return=None,
        skip_autocommit_rollback=True,
    )

    path = engine.url.database or ""

    @event.listens_for(engine.sync_engine, "do_connect")
    def open_file(_dialect: object, _record: object, arguments: list[Any], _options: object) -> None:
        arguments[0] = sqlite_address(path, writes=bool(pragmas))

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        # The first is kept in the file, which may be a read-only copy.
        first = 1 if _is_read_only(Path(path)) else 0
        for pragma in (*PRAGMAS[first:], *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
        record.info[_FILE] = (path, _identity(path))
        # A process that was killed between writing a commit and writing it through has left it to be read, and
        # replayed, by this one.
        with suppress(FileNotFoundError):
            _write_through(f"{path}-wal")

    return engine


def _identity(path: str) -> tuple[int, int]:
    """Return what distinguishes a file from another one of the same path."""
    found = os.stat(path)  # noqa: PTH116  # Before every write, where a `Path` would take longer than the question.
    return found.st_dev, found.st_ino


def _write_through(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _postgresql_engine(url: URL, *, pool_size: int, wait_seconds: float | None) -> AsyncEngine:
    """Return an engine whose waits are bounded; without `wait_seconds`, a statement may take as long as it needs."""
    engine = create_async_engine(
        url,
        # The message of an error would tell them, and with them what callers sent.
        hide_parameters=True,
        connect_args={
            "timeout": float(url.query.get("timeout", wait_seconds or 10)),  # type: ignore[arg-type]  # It is there once.
            # The server's own timeouts come first; this one is for a server that no longer answers, and for COMMIT,
            # which the server waits for without a bound.
            "command_timeout": wait_seconds + 5 if wait_seconds is not None else None,
            "server_settings": {"application_name": "tollgate"},
        },
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=wait_seconds or 10,
        pool_pre_ping=True,
        # Every transaction is begun and ended here, by the statements of `Writer`.
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
        skip_autocommit_rollback=True,
    )
    milliseconds = int((wait_seconds or 0) * 1000)
    set_up = _SESSION.format(milliseconds=milliseconds)
    _, arguments = engine.dialect.create_connect_args(url)

    async def start(session: asyncpg.Connection) -> None:
        try:
            row = await session.fetchrow(set_up)
            if row is not None and row["pid"] != session.get_server_pid():
                another = await asyncpg.connect(**arguments, timeout=wait_seconds or 10)
                try:
                    await _require_own_sessions(session, another)
                finally:
                    await another.close()
        except BaseException as error:
            session.terminate()  # Nobody else knows of it yet.
            if isinstance(error, asyncpg.DuplicatePreparedStatementError | asyncpg.InvalidSQLStatementNameError):
                raise SharedSession from error
            raise

    # Before SQLAlchemy's own questions, which the role's timeouts may be too short for.
    @event.listens_for(engine.sync_engine, "connect", insert=True)
    def set_session(connection: Any, _record: object) -> None:
        connection.run_async(start)

    return engine


async def _require_own_sessions(one: asyncpg.Connection, other: asyncpg.Connection) -> None:
    """Raise `SharedSession` where a pooler gives each transaction any of the server's sessions.

    Behind a pooler, the server's process is another one than the connection names. While both connections are open,
    each has a process of its own, and keeps it, unless the pooler shares them out.
    """
    first = None
    for _ in range(POOLER_ROUNDS):
        processes = [await each.fetchval("SELECT pg_backend_pid()") for each in (one, other)]
        first = first or processes
        if processes != first or processes[0] == processes[1]:
            raise SharedSession


#: Whether a session of PostgreSQL writes nothing, as on a standby, and whether its role may write.
_IS_WRITABLE = text("""SELECT current_setting('transaction_read_only') = 'on' AS is_read_only,
  (SELECT bool_and(has_table_privilege(name, privilege))
   FROM unnest(CAST(:tables AS text[])) AS name, unnest(ARRAY['SELECT', 'INSERT']) AS privilege) AS may_write""")

#: What the gateway relies on for its own sessions, whatever is set for the role, the database or the server.
#: `default_transaction_read_only` is left alone: who sets it wants nothing to be written, and is obeyed.
_SESSION = """SELECT
  set_config('statement_timeout', '{milliseconds}', false),
  set_config('lock_timeout', '{milliseconds}', false),
  set_config('idle_in_transaction_session_timeout', '{milliseconds}', false),
  -- Reads outside of `Writer.begin` must not fail to serialize.
  set_config('default_transaction_isolation', 'read committed', false),
  set_config('default_transaction_deferrable', 'off', false),
  -- At least as durable as the server's disk and its standbys; `remote_apply` is as durable, and makes them current.
  set_config('synchronous_commit',
    CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false),
  -- That a COMMIT did not wait for its standby is a warning.
  set_config('client_min_messages', 'warning', false),
  set_config('standard_conforming_strings', 'on', false),
  set_config('transform_null_equals', 'off', false),
  set_config('timezone', 'UTC', false),
  set_config('datestyle', 'ISO', false),
  -- Compiling a plan costs more than any statement here takes.
  set_config('jit', 'off', false),
  pg_backend_pid() AS pid"""

#: What says that a transaction which was not committed may be run again.
_RUN_AGAIN = frozenset({Meaning.LOST_RACE, Meaning.LOST_SESSION})

#: Writes to PostgreSQL's log what stands in no table: with it, COMMIT waits for what is in the log before.
_WRITE_TO_LOG = "SELECT pg_logical_emit_message(true, 'tollgate', '');"

#: How a snapshot begins.
_SNAPSHOT = {
    "sqlite": "BEGIN",
    "postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
}
