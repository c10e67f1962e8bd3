"""Connections and transactions, on SQLite and on PostgreSQL.

`read()` opens a short connection for one lookup, so that sibling fields can run side by side. `write()` is one
transaction in a task of its own: it is committed or rolled back as a whole, whatever becomes of the caller.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import URL, Table, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from storage.engine.buckets import DIVISION, IS_DIVIDED, Buckets
from storage.engine.clocks import Clocks, ClocksDiffer
from storage.engine.connections import Connections, Machine, PoolState
from storage.engine.failures import (
    UNAVAILABLE,
    CommitWarned,
    Meaning,
    is_lock_timeout,
    is_refused,
    is_unavailable,
    meaning_of,
)
from storage.engine.postgresql import IS_WRITABLE, STUCK_SESSIONS, TIME
from storage.engine.transactions import QuickReader, Reader, Writer

#: How often a transaction is tried that lost a race, or its connection before COMMIT was sent.
ATTEMPTS = 4

#: How long writes under way are given to end when the database is closed.
CLOSE_SECONDS = 1

#: How long the second attempt waits; each later one waits twice as long as the one before.
PAUSE_SECONDS = 0.05

#: What says that a transaction which was not committed may be run again.
_RUN_AGAIN = frozenset({Meaning.LOST_RACE, Meaning.LOST_SESSION})

#: How a snapshot begins.
_SNAPSHOT = {
    "sqlite": "BEGIN",
    "postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
}

T = TypeVar("T")


class Outcome(StrEnum):
    """What is known of a write that could not be finished."""

    NOT_WRITTEN = "NOT_WRITTEN"
    UNKNOWN = "UNKNOWN"


class DatabaseUnavailable(Exception):
    """The database cannot be reached, is too slow, or was lost; `outcome` says what that means for a write."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"the database is unavailable ({outcome})")
        self.outcome = outcome


class LockTimeout(DatabaseUnavailable):
    """Somebody else holds a lock for longer than a write may wait for it; nothing was written."""

    def __init__(self) -> None:
        super().__init__(Outcome.NOT_WRITTEN)


class Reading:
    """A read that is open for as long as the body of `async with`. It is a class because there are so many."""

    __slots__ = ("_reader",)

    def __init__(self, connections: Connections, bucket: int) -> None:
        self._reader = QuickReader(connections, bucket=bucket)

    async def __aenter__(self) -> Reader:
        return self._reader

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        try:
            await self._reader.close(error)
        except UNAVAILABLE as failure:
            error = failure
            if not is_unavailable(failure):
                raise
        if isinstance(error, UNAVAILABLE) and is_unavailable(error):
            raise DatabaseUnavailable(Outcome.NOT_WRITTEN) from error


class Database:
    """One database: SQLite in a file, or PostgreSQL.

    `wait_seconds` bounds every wait: for a connection, for a lock, for a statement.
    """

    def __init__(self, url: str, *, pool_size: int = 8, wait_seconds: float = 10) -> None:
        self.url = make_url(url)
        self.wait_seconds = wait_seconds
        self.dialect = self.url.get_backend_name()
        self._buckets: Buckets | None = Buckets()
        self._machine = partial(Machine, pool_size=pool_size, wait_seconds=wait_seconds)
        self._home = self._machine(self.url)
        # Where buckets lie, if it is divided, by their addresses and how many buckets lie there.
        self._machines: dict[tuple[URL, int], Machine] = {}
        self._places: dict[int, Machine] = {}
        self._listeners: list[tuple[Callable[..., None], Callable[..., None]]] = []
        self._writes: set[asyncio.Task[Any]] = set()

    @property
    def buckets(self) -> Buckets:
        """Into which parts it is divided. Raises `DatabaseUnavailable` (`NOT_WRITTEN`) while that is not known."""
        if self._buckets is None:
            raise DatabaseUnavailable(Outcome.NOT_WRITTEN)
        return self._buckets

    @property
    def clocks(self) -> Clocks:
        """This machine's and that of the server that it is connected to by its URL; SQLite has none of its own."""
        return self._home.clocks

    @property
    def engines(self) -> Sequence[AsyncEngine]:
        """The engines of writers, readers and snapshots; some may use one pool."""
        return [engine for machine in (self._home, *self._machines.values()) for engine in machine.engines]

    @property
    def connections(self) -> Mapping[str, PoolState]:
        """What there is of connections, those of snapshots aside: by their use, unless all uses share them."""
        states = [machine.connections for machine in (self._home, *self._machines.values())]
        return {use: PoolState(*map(sum, zip(*[state[use] for state in states], strict=True))) for use in states[0]}

    async def find_buckets(self) -> None:
        """Find out into which buckets it is divided, and where each lies. Raises `DatabaseUnavailable`."""
        if self.dialect == "sqlite":
            return
        async with self.read() as reader:
            is_divided = await reader.fetch_one(IS_DIVIDED)
            rows = await reader.fetch(DIVISION) if is_divided is not None and is_divided[0] else []
        places = [(row.host, row.port) for row in rows]
        for machine in self.divide(Buckets(tuple([row.bucket for row in rows]), places) if rows else Buckets()):
            await machine.close()

    def forget_buckets(self) -> None:
        """Answer nothing about meters until `find_buckets` or `divide` is called."""
        self._buckets = None

    def divide(self, buckets: Buckets) -> Sequence[Machine]:
        """Note into which buckets the database is divided, and where each one lies.

        It may be called again, when one lies elsewhere. A wrong server answers, too, only later than the right one.
        Returns what is not used any more, to be closed; uses that have begun may end.
        """
        self._buckets = buckets
        urls = {bucket: self.url.set(host=host, port=port) for bucket, (host, port) in buckets.places.items()}
        # With each bucket come connections, so one that has more or fewer than before is another one.
        counts = Counter(urls.values())
        left = [machine for key, machine in self._machines.items() if key not in counts.items()]
        self._machines = {key: self._machines.get(key) or self._new_machine(*key) for key in counts.items()}
        self._places = {bucket: self._machines[url, counts[url]] for bucket, url in urls.items()}
        return left

    def _new_machine(self, url: URL, count: int) -> Machine:
        machine = self._machine(url, buckets=count)
        for begun, done in self._listeners:
            machine.listen(begun, done)
        return machine

    def _of(self, bucket: int) -> Machine:
        return self._places.get(bucket, self._home)

    def listen(self, *, begun: Callable[..., None], done: Callable[..., None]) -> None:
        """Report every statement when it is given to the driver, and when it is done, as SQLAlchemy's events do."""
        self._listeners.append((begun, done))
        for machine in (self._home, *self._machines.values()):
            machine.listen(begun, done)

    def read(self, bucket: int = 0) -> "Reading":
        """Open a connection on which every statement sees what is committed when it starts.

        Those about meters are about the meters of this bucket. Raises `DatabaseUnavailable` (`NOT_WRITTEN`).
        """
        return Reading(self._of(bucket).reading, bucket)

    @asynccontextmanager
    async def snapshot(self, bucket: int = 0) -> AsyncIterator[Reader]:
        """Open a connection on which every statement sees what was committed when the first one started.

        It may stay open for long; each of its statements may take as long as it needs. On a database of several servers
        they see so what is of the meters of this bucket, and of what else lies elsewhere what is committed by then.

        Raises `DatabaseUnavailable` (`NOT_WRITTEN`).
        """
        async with self._begun(self._of(bucket).snapshots, _SNAPSHOT[self.dialect], bucket=bucket) as reader:
            yield reader

    @asynccontextmanager
    async def standstill(self, tables: Iterable[Table]) -> AsyncIterator[Reader]:
        """Open a snapshot of the tables, and let nobody write to them until it is closed.

        Writes of all processes wait meanwhile, and fail with `NOT_WRITTEN` when that takes too long.

        Raises `DatabaseUnavailable` (`NOT_WRITTEN`).
        """
        await self._home.writing.release_idle()  # On SQLite there is but one.
        if self.dialect == "sqlite":
            opened = self._begun(self._home.writers, "BEGIN IMMEDIATE")
        else:
            # It takes the locks before its first query, which is when its snapshot begins.
            lock = f"LOCK TABLE {', '.join(table.name for table in tables)} IN SHARE MODE"
            opened = self._begun(self._home.snapshots, _SNAPSHOT[self.dialect], lock)
        async with opened as reader:
            yield reader

    @asynccontextmanager
    async def _begun(self, engine: AsyncEngine, *commands: str, bucket: int = 0) -> AsyncIterator[Reader]:
        """Open a connection, and a transaction that the commands begin and that is rolled back in the end."""
        try:
            async with engine.connect() as connection:
                for command in commands:
                    await connection.exec_driver_sql(command)
                try:
                    yield Reader(self.dialect, connection, bucket=bucket)
                finally:
                    if not connection.invalidated:
                        await connection.exec_driver_sql("ROLLBACK")
        except UNAVAILABLE as error:
            if is_unavailable(error):
                raise DatabaseUnavailable(Outcome.NOT_WRITTEN) from error
            raise

    async def end_stuck_sessions(self, bucket: int) -> None:
        """End sessions that hold locks and that no timeout of PostgreSQL ends. Raises `DatabaseUnavailable`."""
        if self.dialect == "postgresql":
            async with self.read(bucket) as reader:
                await reader.fetch(STUCK_SESSIONS, {"seconds": self.wait_seconds})

    async def require_writable(self, tables: Iterable[Table]) -> None:
        """Raise `DatabaseUnavailable` where reads of the tables are answered and writes would be refused.

        One reason is that `clocks` do not agree, which are compared here: then the cause is `ClocksDiffer`.
        """
        if self.dialect == "sqlite":
            if not os.access(self.url.database or "", os.W_OK):
                raise DatabaseUnavailable(Outcome.NOT_WRITTEN)
            return
        async with self.read() as reader:
            row = await reader.fetch_one(IS_WRITABLE, {"tables": [table.name for table in tables]})
            if row is None or not row.may_write:
                raise asyncpg.InsufficientPrivilegeError
            if row.is_read_only:
                # The session may be read-only by how it was begun; the next one is asked on another.
                raise asyncpg.ReadOnlySQLTransactionError
            # Not by the row: connecting, or waiting for a connection, may have taken long.
            asked = self.clocks.now()
            time = await reader.fetch_one(TIME)
            try:
                self.clocks.compare(time[0] if time is not None else 0, asked=asked)
            except ClocksDiffer as error:
                raise DatabaseUnavailable(Outcome.NOT_WRITTEN) from error

    async def write(
        self,
        work: Callable[[Writer], Awaitable[T]],
        *,
        bucket: int = 0,
        is_repeatable: bool = False,
        is_group: bool = False,
    ) -> T:
        """Run `work` in one transaction and return what it returns, once that is committed.

        The transaction runs in a task of its own: when the caller is cancelled, it is still finished. `work` may be run
        again, after everything it did was rolled back, when it lost a race with another transaction or lost its
        connection before COMMIT was sent; so it does nothing but SQL, and looks before it inserts. Where it
        `is_repeatable`, because it looks for what an earlier run has written, it is also run again when the answer to
        COMMIT was lost. A group of commands uses the connections that are kept for groups. What it does to meters, it
        does to those of this bucket.

        Raises `DatabaseUnavailable`, with outcome `UNKNOWN` where the answer to COMMIT was lost, `LockTimeout`, and
        whatever `work` raises.
        """
        machine = self._of(bucket)
        connections = machine.groups if is_group else machine.writing
        run = self._write(work, machine.clocks, connections, bucket, is_repeatable=is_repeatable)
        task = asyncio.create_task(run)
        self._writes.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # Marks it as seen: the caller that waited for it may be gone.

    async def _write(
        self,
        work: Callable[[Writer], Awaitable[T]],
        clocks: Clocks,
        connections: Connections,
        bucket: int,
        *,
        is_repeatable: bool,
    ) -> T:
        is_unknown = False
        for attempt in range(1, ATTEMPTS + 1):
            committing = False
            if attempt > 1:
                await asyncio.sleep(PAUSE_SECONDS * 2 ** (attempt - 2))
            try:
                async with connections.connect() as connection:
                    await _require_agreed(clocks, connection)
                    writer = Writer(connection, bucket=bucket)
                    await writer.begin()
                    result = await _run_work(writer, work)
                    committing = True
                    await writer.commit()
                    connections.added.rows += writer.added_rows
                    return result
            except (CommitWarned, ClocksDiffer) as error:
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
        await self._home.writing.release_idle()  # On SQLite there is but one.
        try:
            home = self._home
            async with (home.writers if self.dialect == "sqlite" else home.snapshots).connect() as connection:
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
        for machine in (self._home, *self._machines.values()):
            await machine.close()


async def _require_agreed(clocks: Clocks, connection: AsyncConnection) -> None:
    """Raise `ClocksDiffer` where nothing may be decided. They are compared again only where they may not agree."""
    if connection.dialect.name == "sqlite" or clocks.have_agreed:
        return
    asked = clocks.now()
    clocks.compare(await connection.scalar(TIME) or 0, asked=asked)


async def _run_work(writer: Writer, work: Callable[[Writer], Awaitable[T]]) -> T:
    """Return what the work returns, or undo it and raise what it raises, a refusal once it may be answered."""
    try:
        return await work(writer)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, UNAVAILABLE):
            await writer.refuse()
        else:
            await writer.roll_back()
        raise
