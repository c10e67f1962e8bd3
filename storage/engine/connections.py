"""The connections to a server of a database, or to SQLite's file, which are kept open between uses."""

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from storage.engine.clocks import Clocks
from storage.engine.failures import UNAVAILABLE, Meaning, meaning_of
from storage.engine.postgresql import postgresql_engine
from storage.engine.sqlite import WRITER_PRAGMAS, file_uri, sqlite_engine

#: How long an idle connection is used again without asking whether it still answers, in seconds.
IDLE_SECONDS = 1

#: How many connections read from SQLite.
SQLITE_READERS = 4

#: How many groups of commands PostgreSQL decides at once for each bucket: the writer's two lanes have one each.
GROUPS = 2

#: Under which names the pool keeps, with a connection, when it was opened, and how many rows had been added when its
#: plans were forgotten.
_OPENED_AT = "opened at"
_PLANNED_AT = "planned at"

#: How many rows may be added until PostgreSQL's plans are made anew, besides as many as there were.
_GROWTH = 500


class PoolState(NamedTuple):
    """How many connections are in use, how many uses wait for one, and how many may be open."""

    in_use: int
    awaited: int
    max_open: int


@dataclass
class Added:
    """How many rows this process has added to the tables of a server."""

    rows: int = 0


class Connections:
    """An engine's connections, kept open between uses: taking one from the engine costs more than a short transaction.

    A use that ends hands its connection to the first use that waits for one.
    """

    def __init__(self, engine: AsyncEngine, added: Added, *, max_open: int, wait_seconds: float) -> None:
        self.dialect = engine.dialect.name
        self.added = added
        self._engine = engine
        self._wait_seconds = wait_seconds
        self._max_open = max_open
        self._free = max_open
        self._idle: list[tuple[AsyncConnection, float]] = []
        # Each is given a connection, or None: the right to open one.
        self._waiting: deque[asyncio.Future[AsyncConnection | None]] = deque()
        self._is_closing = False
        self._inline: sqlite3.Connection | None = None
        self._renewed_at = 0.0
        event.listen(engine.sync_engine, "connect", _note_opening)
        event.listen(engine.sync_engine, "checkout", self._require_new)

    @property
    def state(self) -> PoolState:
        """The numbers of connections at the moment."""
        return PoolState(self._max_open - self._free - len(self._idle), len(self._waiting), self._max_open)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection, or take one that is open."""
        connection = await self.acquire()
        try:
            yield connection
        except BaseException as error:
            await self.release(connection, error)
            raise
        await self.release(connection)

    async def acquire(self) -> AsyncConnection:
        """Return an open connection. Raises `TimeoutError` where none is given back in time."""
        connection = await self._acquire()
        if self.dialect == "postgresql":
            await self._forget_outgrown_plans(connection)
        return connection

    async def _forget_outgrown_plans(self, connection: AsyncConnection) -> None:
        """Have PostgreSQL plan anew where there are twice as many rows as when it did so last.

        It keeps the plan that it made while a table was small, which may read all of it, until its own statistics are
        gathered again: once a minute, at best.
        """
        assert connection.sync_connection is not None  # noqa: S101  # It is open.
        info, rows = connection.sync_connection.connection.info, self.added.rows
        if rows <= 2 * info.setdefault(_PLANNED_AT, rows) + _GROWTH:
            return
        info[_PLANNED_AT] = rows
        driver: Any = (await connection.get_raw_connection()).driver_connection
        try:
            await driver.execute("DISCARD PLANS")
        except BaseException:
            await connection.invalidate()
            await self._give_back(connection)
            raise

    async def _acquire(self) -> AsyncConnection:
        while self._idle:
            connection, idle_since = self._idle.pop()
            # The pool tries whether one that was idle for longer still answers.
            if time.monotonic() - idle_since < IDLE_SECONDS and not await self._is_closed(connection):
                return connection
            await self._give_back(connection)
        if self._free:
            self._free -= 1
        elif (given := await self._wait()) is not None:
            return given
        try:
            return await self._engine.connect()
        except BaseException:
            self._free_one()
            raise

    async def release(self, connection: AsyncConnection, error: BaseException | None = None) -> None:
        """Hand the connection to the next that waits for one, or keep it for the next use, unless something failed."""
        if isinstance(error, UNAVAILABLE) and meaning_of(error) is Meaning.LOST_SESSION:
            if not connection.invalidated:
                await connection.invalidate()
            await self._renew()
        elif connection.invalidated:
            await self.release_idle()  # The idle ones may be as broken.
        if self._is_closing and not connection.invalidated:
            await connection.invalidate()  # The engine's pool would keep it.
        if error is not None or connection.invalidated or self._is_old(connection):
            await self._give_back(connection)
        elif not self._hand_over(connection):
            self._idle.append((connection, time.monotonic()))

    async def _renew(self) -> None:
        """Use no connection again that was opened before now: what has ended one session may have changed them all."""
        self._renewed_at = time.monotonic()
        self._close_inline()
        while self._idle:
            connection, _ = self._idle.pop()
            await connection.invalidate()
            await self._give_back(connection)

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
                    await self.release(given)
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

    async def _give_back(self, connection: AsyncConnection) -> None:
        """Give a connection back to the engine's pool."""
        try:
            await connection.close()
        finally:
            self._free_one()

    def run_inline(self, text: str, values: Sequence[Any]) -> list[Any]:
        """Run a short statement on SQLite at once: crossing to another thread and back takes longer than it does.

        Readers wait for nobody in SQLite's WAL mode. Raises `sqlite3.Error`.
        """
        if self._inline is None:
            address = file_uri(self._engine.url.database or "", writes=False)
            self._inline = sqlite3.connect(address, timeout=0, isolation_level=None, uri=True)
            self._inline.execute("PRAGMA query_only = ON")
        engine = self._engine.sync_engine
        notify(engine.dispatch.before_cursor_execute, engine, text, values)
        rows = self._inline.execute(text, values).fetchall()
        notify(engine.dispatch.after_cursor_execute, engine, text, values)
        return rows

    async def release_idle(self) -> None:
        """Give the idle connections back to the engine's pool."""
        while self._idle:
            await self._give_back(self._idle.pop()[0])

    async def close(self) -> None:
        """Close the idle connections, and each other one when its use ends."""
        self._is_closing = True
        await self.release_idle()
        self._close_inline()

    def _close_inline(self) -> None:
        if self._inline is not None:
            self._inline.close()
            self._inline = None

    async def _is_closed(self, connection: AsyncConnection) -> bool:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        return self.dialect == "postgresql" and bool(driver.is_closed())


class Machine:
    """The pools of connections to one server."""

    def __init__(self, url: URL, *, pool_size: int, wait_seconds: float, buckets: int = 1) -> None:
        self.clocks = Clocks()
        """This machine's and PostgreSQL's; SQLite has none of its own."""
        added = Added()
        if url.get_backend_name() == "sqlite":
            pool_size = SQLITE_READERS
            self.readers = sqlite_engine(url, pool_size=pool_size, wait_seconds=wait_seconds)
            self.writers = sqlite_engine(url, pool_size=1, wait_seconds=wait_seconds, pragmas=WRITER_PRAGMAS)
            self.snapshots = sqlite_engine(url, pool_size=1, wait_seconds=wait_seconds)
            self.reading = Connections(self.readers, added, max_open=pool_size, wait_seconds=wait_seconds)
            self.writing = Connections(self.writers, added, max_open=1, wait_seconds=wait_seconds)
            self.groups = self.writing
            return
        groups = GROUPS * buckets
        self.readers = postgresql_engine(url, self.clocks, pool_size=pool_size + groups, wait_seconds=wait_seconds)
        self.writers = self.readers
        self.snapshots = postgresql_engine(url, self.clocks, pool_size=1, wait_seconds=None)
        self.reading = Connections(self.readers, added, max_open=pool_size, wait_seconds=wait_seconds)
        self.writing = self.reading
        # Slow reads never hold up the groups of commands, which have connections of their own.
        self.groups = Connections(self.writers, added, max_open=groups, wait_seconds=wait_seconds)

    @property
    def engines(self) -> Sequence[AsyncEngine]:
        """The engines of writers, readers and snapshots; some may use one pool."""
        return self.writers, self.readers, self.snapshots

    @property
    def connections(self) -> Mapping[str, PoolState]:
        """What there is of connections, those of snapshots aside: by their use, unless all uses share them."""
        if self.writing is self.reading:
            return {"all": self.reading.state, "groups": self.groups.state}
        return {"reading": self.reading.state, "writing": self.writing.state}

    def listen(self, begun: Callable[..., None], done: Callable[..., None]) -> None:
        """Report every statement when it is given to the driver, and when it is done."""
        for engine in {engine.sync_engine for engine in self.engines}:
            event.listen(engine, "before_cursor_execute", begun)
            event.listen(engine, "after_cursor_execute", done)

    async def close(self) -> None:
        """Close every connection."""
        for connections in (self.reading, self.writing, self.groups):
            await connections.close()
        for engine in self.engines:
            await engine.dispose()


def _note_opening(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[_OPENED_AT] = time.monotonic()


def notify(
    listeners: Iterable[Callable[..., None]],
    source: Connection | Engine,
    text: str,
    values: Sequence[Any],
    *,
    many: bool = False,
) -> None:
    """Call the listeners with a statement that is given to the driver, or was, as SQLAlchemy does with its own."""
    for listener in listeners:
        listener(source, None, text, values, None, many)
