"""Connections and transactions, on SQLite and on PostgreSQL.

`read()` opens a short connection for one lookup, so that sibling fields can run side by side. `write()` is one
transaction in a task of its own: it is committed or rolled back as a whole, whatever becomes of the caller.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, TypeVar

import orjson
from sqlalchemy import (
    Connection,
    Executable,
    FromClause,
    Row,
    Text,
    bindparam,
    cast,
    event,
    func,
    literal_column,
    make_url,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.types import TypeEngine

#: How often a transaction is tried that lost a race, or its connection before COMMIT was sent.
ATTEMPTS = 4

#: PostgreSQL's codes for a deadlock and for a serialization failure: the transaction was rolled back and may be run
#: again.
_LOST_RACE = frozenset({"40001", "40P01"})

Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]

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


class Reader:
    """Runs statements that change nothing."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @property
    def dialect(self) -> str:
        """The database's kind: `sqlite` or `postgresql`."""
        return self._connection.dialect.name

    async def fetch(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """Return all rows of the statement."""
        result = await self._connection.execute(statement, parameters)
        return result.all()

    async def fetch_one(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Row[Any] | None:
        """Return the only row of the statement, or None."""
        result = await self._connection.execute(statement, parameters)
        return result.one_or_none()

    async def run_sync(self, work: Callable[[Connection], T]) -> T:
        """Run work that is written for SQLAlchemy's blocking connection."""
        return await self._connection.run_sync(work)


class Writer(Reader):
    """Runs any statement, inside a transaction that `Database.write` ends."""

    async def execute(self, statement: Executable, parameters: Parameters | None = None) -> None:
        """Run the statement, once for each of the given parameter sets."""
        await self._connection.execute(statement, parameters)


class Database:
    """One database: SQLite in a file, or PostgreSQL.

    `wait_seconds` bounds every wait: for a connection, for a lock, for a statement.
    """

    def __init__(self, url: str, *, pool_size: int = 8, wait_seconds: float = 10) -> None:
        self.url = make_url(url)
        self.dialect = self.url.get_backend_name()
        if self.dialect == "sqlite":
            self._readers = _sqlite_engine(url, pool_size=4, wait_seconds=wait_seconds)
            self._writers = _sqlite_engine(url, pool_size=1, wait_seconds=wait_seconds)
            event.listen(self._writers.sync_engine, "begin", _begin_immediate)
        else:
            self._writers = _postgresql_engine(url, pool_size=pool_size, wait_seconds=wait_seconds)
            self._readers = self._writers.execution_options(isolation_level="AUTOCOMMIT")
        self._writes: set[asyncio.Task[Any]] = set()

    @property
    def engines(self) -> Sequence[AsyncEngine]:
        """The engines of writers and readers; on PostgreSQL both use one pool."""
        return self._writers, self._readers

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Reader]:
        """Open a connection on which every statement sees what is committed when it starts.

        Raises `DatabaseUnavailable` (`NOT_WRITTEN`).
        """
        try:
            async with self._readers.connect() as connection:
                yield Reader(connection)
        except _UNAVAILABLE as error:
            if _is_unavailable(error):
                raise DatabaseUnavailable(Outcome.NOT_WRITTEN) from error
            raise

    async def write(self, work: Callable[[Writer], Awaitable[T]]) -> T:
        """Run `work` in one transaction and return what it returns, once that is committed.

        The transaction runs in a task of its own: when the caller is cancelled, it is still finished. `work` may be run
        again, after everything it did was rolled back, when it lost a race with another transaction or lost its
        connection before COMMIT was sent; so it does nothing but SQL, and looks before it inserts.

        Raises `DatabaseUnavailable`, with outcome `UNKNOWN` where the answer to COMMIT was lost, and whatever `work`
        raises.
        """
        task = asyncio.create_task(self._write(work))
        self._writes.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # Marks it as seen: the caller that would have been told may be gone.

    async def _write(self, work: Callable[[Writer], Awaitable[T]]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            committing = False
            try:
                async with self._writers.connect() as connection:
                    transaction = await connection.begin()
                    try:
                        result = await work(Writer(connection))
                    except BaseException:
                        await transaction.rollback()
                        raise
                    committing = True
                    await transaction.commit()
                    return result
            except _UNAVAILABLE as error:
                if committing and not _is_refused(error):
                    raise DatabaseUnavailable(Outcome.UNKNOWN) from error
                if attempt < ATTEMPTS and (_lost_race(error) or _is_disconnected(error)):
                    continue
                if _is_unavailable(error):
                    raise DatabaseUnavailable(Outcome.NOT_WRITTEN) from error
                raise
        raise AssertionError  # pragma: no cover  # The last attempt returns or raises.

    @asynccontextmanager
    async def connect_to_migrate(self) -> AsyncIterator[AsyncConnection]:
        """Open one transaction on the bare connection, for Alembic, which writes its own statements."""
        try:
            async with self._writers.begin() as connection:
                yield connection
        except _UNAVAILABLE as error:
            if _is_unavailable(error):
                raise DatabaseUnavailable(Outcome.NOT_WRITTEN) from error
            raise

    async def close(self) -> None:
        """Finish the writes under way, then close every connection."""
        if self._writes:
            await asyncio.wait(self._writes)
        for engine in self.engines:
            await engine.dispose()


def keys_table(dialect: str, **columns: TypeEngine[Any]) -> FromClause:
    """Return a table of the records that the parameter `keys` holds, with these columns, to be joined with.

    However many records there are, it is one parameter and one text of the statement, which the database prepares once.
    `keys()` makes the parameter.
    """
    parameter = bindparam("keys", type_=Text)
    if dialect == "postgresql":
        each = func.jsonb_array_elements(cast(parameter, JSONB)).table_valued("value", name="each")
        convert: Any = cast
    else:
        each = func.json_each(parameter).table_valued("value", name="each")
        convert = type_coerce
    value = each.c.value
    return select(
        *[
            convert(value.op("->>")(literal_column(str(index))), type_).label(name)
            for index, (name, type_) in enumerate(columns.items())
        ],
    ).subquery("keys")


def keys(records: Sequence[Sequence[Any]]) -> dict[str, str]:
    """Return the parameter of a statement made with `keys_table`."""
    return {"keys": orjson.dumps([list(record) for record in records]).decode()}


def _begin_immediate(connection: Connection) -> None:
    """Take SQLite's write lock at once: a transaction that takes it later fails when another one wrote meanwhile."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _sqlite_engine(url: str, *, pool_size: int, wait_seconds: float) -> AsyncEngine:
    engine = create_async_engine(
        url,
        # The driver's own transactions begin late and deferred: with them, concurrent debits overwrite each other or
        # fail.
        connect_args={"isolation_level": None, "timeout": wait_seconds},
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=wait_seconds,
    )
    event.listen(engine.sync_engine, "connect", _set_pragmas)
    return engine


def _set_pragmas(connection: Any, _record: object) -> None:
    """Make commits durable and readers independent of the writer."""
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _postgresql_engine(url: str, *, pool_size: int, wait_seconds: float) -> AsyncEngine:
    milliseconds = str(int(wait_seconds * 1000))
    return create_async_engine(
        url,
        connect_args={
            "timeout": wait_seconds,
            # The server's own timeouts come first; this one is for a server that no longer answers.
            "command_timeout": wait_seconds + 5,
            "server_settings": {
                "application_name": "tollgate",
                "statement_timeout": milliseconds,
                "lock_timeout": milliseconds,
                "idle_in_transaction_session_timeout": milliseconds,
                # Compiling a plan costs more than any statement here takes.
                "jit": "off",
            },
        },
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=wait_seconds,
        pool_pre_ping=True,
    )


#: What the pool, the drivers and the network raise. A refused connection arrives as it is, unwrapped.
_UNAVAILABLE = (DBAPIError, PoolTimeoutError, OSError)

#: PostgreSQL's classes of errors that say nothing of the statement: insufficient resources, operator intervention (also
#: a statement's timeout), system error, and object not in prerequisite state (also a lock's timeout).
_PASSING_CLASSES = frozenset({"53", "55", "57", "58"})


def _sqlstate(error: BaseException) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _is_disconnected(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    return isinstance(error, OSError) and not isinstance(error, TimeoutError)


def _is_refused(error: BaseException) -> bool:
    """Whether the database itself answered with this error, so that the transaction is known to be rolled back."""
    return isinstance(error, DBAPIError) and not error.connection_invalidated


def _is_unavailable(error: BaseException) -> bool:
    if not isinstance(error, DBAPIError):
        return True
    return (
        isinstance(error, OperationalError | InterfaceError)
        or error.connection_invalidated
        or _sqlstate(error)[:2] in _PASSING_CLASSES
        or _sqlstate(error) in _LOST_RACE
    )


def _lost_race(error: BaseException) -> bool:
    return isinstance(error, IntegrityError) or _sqlstate(error) in _LOST_RACE
