"""What the errors of the pool, the drivers and the network mean: for a write, and for whoever waits for it."""

import errno
import sqlite3

import asyncpg
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

#: PostgreSQL's codes for a deadlock and for a serialization failure: the transaction was rolled back and may be run
#: again.
_LOST_RACE = frozenset({"40001", "40P01"})
_UNIQUE_VIOLATION = "23505"

#: What the pool, the drivers and the network raise. A refused connection arrives as it is, unwrapped, and so does what
#: goes wrong in a statement that the driver is given directly.
UNAVAILABLE = (
    DBAPIError,
    PoolTimeoutError,
    OSError,
    sqlite3.Error,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

#: PostgreSQL's classes of errors that say nothing of the statement: insufficient resources, operator intervention (also
#: a statement's timeout), system error, and object not in prerequisite state (also a lock's timeout).
_PASSING_CLASSES = frozenset({"53", "55", "57", "58"})


def _sqlstate(error: BaseException) -> str:
    return getattr(_of_driver(error), "sqlstate", None) or ""


def _of_driver(error: BaseException) -> BaseException:
    """Return the driver's own error, where SQLAlchemy has wrapped it."""
    return (error.orig or error) if isinstance(error, DBAPIError) else error


def is_disconnected(error: BaseException) -> bool:
    """Whether the connection was lost, so that another one may do."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    # asyncpg's client is at odds with itself when a connection is lost at some moments.
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return True
    # 25P03: the server ended the session, because its transaction stood idle.
    return (
        _sqlstate(error) == "25P03"
        or _sqlstate(error)[:2] == "08"
        or (isinstance(error, OSError) and not isinstance(error, TimeoutError))
    )


def is_refused(error: BaseException) -> bool:
    """Whether the error of a COMMIT proves that nothing was committed.

    Of PostgreSQL's, only a broken constraint and a lost race do: others may come from a proxy, or after the commit.
    SQLite knows what it did, unless the disk failed it.
    """
    driver = _of_driver(error)
    if isinstance(driver, sqlite3.Error):
        return not getattr(driver, "sqlite_errorname", "").startswith("SQLITE_IOERR")
    return _sqlstate(error)[:2] in {"23", "40"}


def is_unavailable(error: BaseException) -> bool:
    """Whether the database cannot serve now, which says nothing of the statement."""
    return (
        isinstance(error, PoolTimeoutError | OSError | OperationalError | InterfaceError | sqlite3.OperationalError)
        or is_disconnected(error)
        or _sqlstate(error)[:2] in _PASSING_CLASSES
        or _sqlstate(error) in _LOST_RACE
    )


def lost_race(error: BaseException) -> bool:
    """Whether another transaction came first: to a unique name, or to a lock."""
    return (
        isinstance(error, IntegrityError | sqlite3.IntegrityError)
        or _sqlstate(error) == _UNIQUE_VIOLATION
        or _sqlstate(error) in _LOST_RACE
    )


def description(error: BaseException) -> str:
    """Return what a log may tell of an error: its kind and codes, and those of its cause.

    Its message may hold rows, parameters, statements or the address of the database, so none of it is told.
    """
    driver = _of_driver(error)
    told = type(driver).__name__
    if isinstance(driver, OSError) and driver.errno is not None:
        told += f" ({errno.errorcode.get(driver.errno, driver.errno)})"
    code = _sqlstate(driver) or getattr(driver, "sqlite_errorname", None)
    if code:
        told += f" ({code})"
    cause = driver.__cause__
    return f"{told} from {description(cause)}" if cause is not None else told
