"""Transactions: a `Reader` runs statements that change nothing, and a `Writer` any statement, which it commits."""

import itertools
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from operator import countOf, not_
from typing import Any, TypeVar

import asyncpg
import orjson
from sqlalchemy import Connection, Executable, Row, Table
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.engine.connections import Connections, notify
from storage.engine.failures import UNAVAILABLE, CommitWarned, RolledBack
from storage.engine.postgresql import ONE_BY_ONE
from storage.engine.sqlite import require_same_file
from storage.engine.statements import (
    Lookup,
    Prepared,
    changes_of,
    has_extremes,
    insertion_of_records,
    insertion_of_values,
    is_in_buckets,
    keys,
    update_by_records,
    update_by_values,
    values_of,
)

#: The maximum of rows that one statement adds on SQLite: so few that the driver can keep one for each number prepared.
MAX_ROWS = 100

#: Likewise on a database of several machines, a power of two: PostgreSQL takes 32,767 parameters.
MAX_ROWS_IN_BUCKET = 512

#: The maximum of rows that one statement names there, a power of two.
MAX_NAMED = 128

#: With how many characters of parameters, at most, SQLite runs a statement in the event loop's thread: it is about a
#: few records, and takes less than what the event loop is held for by any request.
MAX_INLINE_CHARACTERS = 1_000

#: Writes to PostgreSQL's log what stands in no table: with it, COMMIT waits for what is in the log before.
_WRITE_TO_LOG = "SELECT pg_logical_emit_message(true, 'tollgate', '');"

T = TypeVar("T")


class Reader:
    """Runs statements that change nothing."""

    def __init__(self, dialect: str, connection: AsyncConnection | None = None, *, bucket: int = 0) -> None:
        self.dialect = dialect
        """The database's kind: `sqlite` or `postgresql`."""
        self.bucket = bucket
        """Where the meters lie that its statements are about."""
        self.is_divided = dialect == "postgresql" and bucket > 0
        """Whether the database is one of several machines, which plan again what does not go the way of Citus."""
        self._connection = connection
        # What `_driver` returns, once it has.
        self._opened: tuple[Connection, Any] | None = None

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
        values = statement.values(parameters, self.bucket)
        rows = await (Reader._run(self, statement.text, values) if is_long else self._run(statement.text, values))
        return statement.read(rows)

    async def look_up(self, lookup: Lookup, records: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """Return the rows that a lookup finds by these records."""
        if not self.is_divided:
            return await self.run(lookup.by_records, keys(records))
        rows = []
        for part in _parts(records):
            # One condition on the first column would lead PostgreSQL to read, by whichever index begins with it, all
            # rows that have the value: it expects few, until it has statistics of a meter whose rows grow many.
            is_shared, shared, own = _shared(list(zip(*part, strict=True)), keeps_first=len(part) > 1)
            values = values_of("shared", [shared]) | values_of("own", zip(*own, strict=True))
            rows += await self.run(lookup.by_values(len(part), is_shared), values)
        return rows

    async def run_sync(self, work: Callable[[Connection], T]) -> T:
        """Run work that is written for SQLAlchemy's blocking connection."""
        return await (await self._connected()).run_sync(work)

    async def _connected(self) -> AsyncConnection:
        assert self._connection is not None  # noqa: S101  # It is open, or opened by `QuickReader`.
        return self._connection

    async def _driver(self) -> tuple[Connection, Any]:
        """Return the blocking connection that SQLAlchemy's asynchronous one wraps, and the driver's own."""
        if self._opened is None:
            opened = (await self._connected()).sync_connection
            assert opened is not None  # noqa: S101  # The pool gives open connections only.
            self._opened = opened, opened.connection.driver_connection
        return self._opened

    async def _run(self, text: str, values: Sequence[Any] = (), *, many: bool = False) -> Iterable[Sequence[Any]]:
        """Give the driver a statement and return its rows; on SQLite, run it for each of `many` lists of values."""
        connection, driver = await self._driver()
        notify(connection.engine.dispatch.before_cursor_execute, connection, text, values, many=many)
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
            await (await self._connected()).invalidate()
            raise
        notify(connection.engine.dispatch.after_cursor_execute, connection, text, values, many=many)
        return rows


class QuickReader(Reader):
    """Runs the short reads of requests: on a connection that is open already, and on SQLite in the caller's thread."""

    def __init__(self, connections: Connections, *, bucket: int = 0) -> None:
        super().__init__(connections.dialect, bucket=bucket)
        self._connections = connections

    async def close(self, error: BaseException | None) -> None:
        """Give the connection back, if one was taken, with what failed on it."""
        if self._connection is not None:
            await self._connections.release(self._connection, error)

    async def _connected(self) -> AsyncConnection:
        if self._connection is None:
            self._connection = await self._connections.acquire()
        return self._connection

    async def _run(self, text: str, values: Sequence[Any] = (), *, many: bool = False) -> Iterable[Sequence[Any]]:
        if self.dialect == "sqlite" and _is_short(values):
            with suppress(sqlite3.OperationalError):  # Such as a lock, which only the other thread may wait for.
                return self._connections.run_inline(text, values)
        return await super()._run(text, values, many=many)


class Writer(Reader):
    """Runs any statement, inside a transaction that `Database.write` ends."""

    _connection: AsyncConnection

    def __init__(self, connection: AsyncConnection, *, bucket: int = 0) -> None:
        super().__init__(connection.dialect.name, connection, bucket=bucket)
        #: Whether a row is locked, and so the transaction written to PostgreSQL's log, which COMMIT waits for.
        self._has_locked = False
        self.added_rows = 0
        """How many rows it has added."""

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
        """Add rows, whose values are in the order of the table's columns, but for the bucket, which is the writer's.

        The values are plain ones or what JSON has a form for; a JSON column's is given as its text. On PostgreSQL the
        rows are one parameter, without the columns that none of them has a value for. SQLite takes longer to take JSON
        apart than to insert it, and the driver as long to bind a row's values one by one: there, a statement adds many
        rows, and a value that all rows have is bound once.
        """
        if not rows:
            return
        self.added_rows += len(rows)
        if self.dialect == "postgresql":
            columns = list(zip(*rows, strict=True))
            if self.is_divided and is_in_buckets(table) and not has_extremes(table, columns):
                await self.insert_in_bucket(table, rows)
            else:
                is_given = tuple([countOf(column, None) < len(rows) for column in columns])
                given = zip(*itertools.compress(columns, is_given), strict=True)
                await self.run(insertion_of_records(table, is_given), keys(given))
            return
        # Written as JSON and read again, days, moments and enums are the texts that SQLite keeps.
        written = orjson.dumps(list(zip(*rows, strict=True)))
        run = self._run_inline if len(written) <= MAX_INLINE_CHARACTERS else super()._run
        is_shared, shared, own = _shared(orjson.loads(written))
        if is_in_buckets(table):
            shared = [self.bucket, *shared]
        parts = [
            (
                *shared,
                *itertools.chain.from_iterable(zip(*[column[at : at + MAX_ROWS] for column in own], strict=True)),
            )
            for at in range(0, len(rows), MAX_ROWS)
        ]
        rest = [parts.pop()] if len(rows) % MAX_ROWS else []
        for count, values in ((MAX_ROWS, parts), (len(rows) % MAX_ROWS, rest)):
            if values:
                await run(insertion_of_values(table, is_shared, count), values, many=True)

    async def insert_in_bucket(self, table: Table, rows: Sequence[Sequence[Any]], on_conflict: str = "") -> None:
        """Add rows to the writer's bucket of a database of several machines.

        Citus passes a row on to the shard that one of its parameters says; rows that a statement selects it collects
        first. A statement adds as many of them as the first two bits of their number say, so that there are few texts
        to prepare, and few statements.
        """
        is_shared, shared, own = _shared(list(zip(*rows, strict=True)))
        begin = 0
        while begin < len(rows):
            left = min(MAX_ROWS_IN_BUCKET, len(rows) - begin)
            count = left & 3 << max(0, left.bit_length() - 2)
            text = insertion_of_values(table, is_shared, count, mark="$") + on_conflict
            values = itertools.chain.from_iterable(zip(*[column[begin : begin + count] for column in own], strict=True))
            await self._run(text, (self.bucket, *shared, *values))
            begin += count

    async def update_rows(self, table: Table, names: tuple[str, ...], rows: Sequence[Sequence[Any]]) -> None:
        """Write the columns of these names, of rows each given as its key, but for the bucket, and then the values."""
        if not self.is_divided:
            await self.run(update_by_records(self.dialect, table, names), keys(rows))
            return
        for part in _parts(rows):
            await self.run(update_by_values(table, names, len(part)), changes_of(table, part))

    async def _run(self, text: str, values: Sequence[Any] = (), *, many: bool = False) -> Iterable[Sequence[Any]]:
        if self.dialect == "sqlite" and values and not many and _is_short(values):
            return await self._run_inline(text, values)
        return await super()._run(text, values, many=many)

    async def _run_inline(self, text: str, values: Sequence[Any], *, many: bool = False) -> Iterable[Sequence[Any]]:
        """Run a short statement on SQLite in the caller's thread.

        Between BEGIN and COMMIT SQLite waits for nobody: neither for a lock, which is taken, nor for the disk.
        """
        connection, driver = await self._driver()
        notify(connection.engine.dispatch.before_cursor_execute, connection, text, values, many=many)
        sqlite: sqlite3.Connection = driver._conn  # noqa: SLF001  # Its thread does nothing meanwhile.
        rows = (sqlite.executemany if many else sqlite.execute)(text, values).fetchall()
        notify(connection.engine.dispatch.after_cursor_execute, connection, text, values, many=many)
        return rows

    async def limit_lock_waits(self, seconds: float) -> None:
        """Let the rest of the transaction wait for a lock no longer than this. SQLite has one alone, and has it."""
        if self.dialect == "postgresql":
            await self._run(f"SET LOCAL lock_timeout = {int(seconds * 1000)}")

    async def go_one_by_one(self) -> None:
        """Let what is on each of several servers be changed after a question to all of them."""
        if self.dialect == "postgresql":
            await self._run(ONE_BY_ONE)

    async def begin(self) -> None:
        """Open the transaction. Raises `FileReplaced`."""
        try:
            if self.dialect == "sqlite":
                require_same_file((await self._driver())[0])
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
        does. SQLite shows nobody a commit before it is written through, and `sqlite_engine` sees to what a process
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
        connection, driver = await self._driver()
        warnings: list[asyncpg.PostgresLogMessage] = []

        def note(_connection: object, message: asyncpg.PostgresLogMessage) -> None:
            # Its severity in the language of the server is another word.
            if isinstance(message, asyncpg.PostgresWarning):
                warnings.append(message)

        notify(connection.engine.dispatch.before_cursor_execute, connection, command, ())
        driver.add_log_listener(note)
        try:
            status = await driver.execute(text)
        finally:
            driver.remove_log_listener(note)
        notify(connection.engine.dispatch.after_cursor_execute, connection, command, ())
        if command == "COMMIT" and status != "COMMIT":
            raise RolledBack
        if warnings:
            raise CommitWarned(str(warnings[0]))


def _shared(
    columns: Sequence[Sequence[Any]], *, keeps_first: bool = False
) -> tuple[tuple[bool, ...], list[Any], list[Sequence[Any]]]:
    """Return which columns have one value in all rows, these values, and the other columns.

    With `keeps_first`, the first is one of the others, whatever it has.
    """
    firsts: tuple[Any, ...] = next(zip(*columns, strict=True))
    is_shared = tuple(map(len(columns[0]).__eq__, map(countOf, columns, firsts)))
    if keeps_first:
        is_shared = (False, *is_shared[1:])
    return (
        is_shared,
        list(itertools.compress(firsts, is_shared)),
        list(itertools.compress(columns, map(not_, is_shared))),
    )


def _parts(records: Sequence[Sequence[Any]]) -> Iterable[Sequence[Sequence[Any]]]:
    """Return the records in parts, the last filled up by its last one, so that there are few texts to prepare."""
    for begin in range(0, len(records), MAX_NAMED):
        part = records[begin : begin + MAX_NAMED]
        count = 1 << (len(part) - 1).bit_length()
        yield [*part, *[part[-1]] * (count - len(part))]


def _is_short(values: Iterable[Any]) -> bool:
    """Whether a statement of these values takes so little that it may hold up the event loop."""
    return sum([len(value) for value in values if type(value) is str]) <= MAX_INLINE_CHARACTERS
