"""What the errors of the pool, the drivers and the network mean: for a write, and for a caller that waits for it."""

import errno
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

import asyncpg
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

#: How often, in seconds, an outage is logged at most.
LOG_SECONDS = 10


class RolledBack(Exception):
    """COMMIT was answered, but has rolled the transaction back."""


class CommitWarned(Exception):
    """COMMIT was done, but a standby may lack it; the message is the server's warning."""


class SharedSession(OSError):
    """A pooler before PostgreSQL gives a session to one transaction only, and so takes from it what it was set to."""

    def __init__(self) -> None:
        super().__init__(
            "a pooler shares its sessions out by transaction; connect to PostgreSQL directly, or to a pooler in "
            "session mode (PgBouncer: pool_mode = session)"
        )


class FileReplaced(OSError):
    """SQLite's file was replaced by another one while it was open."""


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
    RolledBack,
)

_log = logging.getLogger(__name__)


class Meaning(Enum):
    """What an error of a database says, which decides what becomes of the transaction that met it."""

    FAULT = auto()
    """The statement is wrong, which is a bug: it is logged with its traceback."""
    LOST_RACE = auto()
    """Another transaction came first. This one was rolled back, and is run again."""
    LOST_SESSION = auto()
    """The session is gone or cannot be used any more. The transaction is run again on a new connection."""
    REFUSED = auto()
    """The database does not serve, and would not at once: nothing is run again, and the caller may come later."""


#: PostgreSQL's errors by their code, or by its first characters, two of which are the class; SQLite's by the first two
#: words of their name. Before COMMIT each of them means that nothing was written; for COMMIT's own see `is_refused`.
_CODES: Mapping[str, tuple[Meaning, str]] = {
    "08": (Meaning.LOST_SESSION, "the connection broke, or a pooler refused it"),
    "25": (Meaning.LOST_SESSION, "the session's state is not what it was put into: ended when idle, or read-only"),
    "26": (Meaning.LOST_SESSION, "the session has lost its prepared statements, to a pooler or DISCARD"),
    "28": (Meaning.REFUSED, "the role, its password, or the address is not let in"),
    "3D": (Meaning.REFUSED, "the database was dropped or renamed"),
    "3F": (Meaning.REFUSED, "the schema was dropped or renamed"),
    "40": (Meaning.LOST_RACE, "a deadlock, or a failure to serialize"),
    "40003": (Meaning.LOST_SESSION, "what became of the statement is not known"),
    "42501": (Meaning.REFUSED, "a privilege was revoked"),
    "42P01": (Meaning.REFUSED, "a table is missing: the schema is being restored, or is another one"),
    "42703": (Meaning.REFUSED, "a column is missing: the schema is being restored, or is another one"),
    "42P05": (Meaning.LOST_SESSION, "another session's prepared statement: a pooler gave its connection away"),
    "53": (Meaning.REFUSED, "the disk is full, memory is short, or there are too many connections"),
    "55": (Meaning.REFUSED, "a lock was not given in time, or the database accepts no connections"),
    "57": (Meaning.REFUSED, "a statement took too long or was cancelled"),
    "57P": (Meaning.LOST_SESSION, "the server is stopping, starting or ended the session"),
    "58": (Meaning.REFUSED, "the operating system failed the server"),
    "72": (Meaning.LOST_RACE, "the snapshot is too old"),
    "F0": (Meaning.REFUSED, "the server's configuration file is wrong"),
    "XX": (Meaning.REFUSED, "the server met a bug of its own, or corrupted data: nothing of the request's"),
    "23505": (Meaning.LOST_RACE, "another transaction has written the unique name first, so that it is found now"),
    "SQLITE_BUSY": (Meaning.REFUSED, "another process held the write lock for too long"),
    "SQLITE_CANTOPEN": (Meaning.REFUSED, "the file or its folder is missing, or there are no more descriptors"),
    "SQLITE_CORRUPT": (Meaning.LOST_SESSION, "the file is corrupted"),
    "SQLITE_FULL": (Meaning.REFUSED, "the disk is full"),
    "SQLITE_IOERR": (Meaning.LOST_SESSION, "the disk failed"),
    "SQLITE_NOTADB": (Meaning.LOST_SESSION, "the file is none of SQLite's any more"),
    "SQLITE_PERM": (Meaning.REFUSED, "the file is not for this user"),
    "SQLITE_READONLY": (Meaning.LOST_SESSION, "the file, or its disk, was read-only when it was opened"),
    "SQLITE_CONSTRAINT": (Meaning.LOST_RACE, "another transaction has written the unique name first"),
}


def _of_driver(error: BaseException) -> BaseException:
    """Return the driver's own error, where SQLAlchemy has wrapped it."""
    return (error.orig or error) if isinstance(error, DBAPIError) else error


def _sqlstate(error: BaseException) -> str:
    return getattr(_of_driver(error), "sqlstate", None) or ""


def _sqlite_name(error: BaseException) -> str:
    return getattr(_of_driver(error), "sqlite_errorname", None) or ""


#: What the errors mean that have no such code, by their kind; the first that fits.
_KINDS: Sequence[tuple[type[BaseException] | tuple[type[BaseException], ...], Meaning]] = (
    (SharedSession, Meaning.REFUSED),
    # A value that asyncpg cannot send is an `InterfaceError` as well.
    (ValueError, Meaning.FAULT),
    ((TimeoutError, PoolTimeoutError), Meaning.REFUSED),
    # Why COMMIT has rolled back, nobody knows, so another session may do.
    ((OSError, RolledBack), Meaning.LOST_SESSION),
    # The schema was migrated under a prepared statement.
    (asyncpg.InvalidCachedStatementError, Meaning.LOST_SESSION),
    # asyncpg's client is at odds with itself when a connection is lost at some moments.
    ((asyncpg.InterfaceError, asyncpg.InternalClientError), Meaning.LOST_SESSION),
    ((IntegrityError, sqlite3.IntegrityError), Meaning.LOST_RACE),
    ((OperationalError, InterfaceError, sqlite3.OperationalError), Meaning.REFUSED),
)


def meaning_of(error: BaseException) -> Meaning:
    """Return what an error of `UNAVAILABLE` says of the database."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return Meaning.LOST_SESSION
    state = _sqlstate(error)
    codes = (state, state[:3], state[:2], "_".join(_sqlite_name(error).split("_")[:2]))
    by_code = next((_CODES[code][0] for code in codes if code in _CODES), None)
    if by_code is not None:
        return by_code
    return next((meaning for kind, meaning in _KINDS if isinstance(error, kind)), Meaning.FAULT)


def is_refused(error: BaseException) -> bool:
    """Whether the error of a COMMIT proves that nothing was committed.

    Of PostgreSQL's, only a broken constraint, a lost race and a transaction that had failed before do: others may come
    from a proxy, or after the commit.
    SQLite knows what it did, unless the disk failed it or the file is no longer sound.
    """
    if isinstance(error, RolledBack):
        return True
    if isinstance(_of_driver(error), sqlite3.Error):
        return not _sqlite_name(error).startswith(("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB"))
    state = _sqlstate(error)
    return state == "25P02" or (state[:2] in {"23", "40"} and state != "40003")


def is_unavailable(error: BaseException) -> bool:
    """Whether the database cannot serve now, which says nothing of the statement."""
    return meaning_of(error) is not Meaning.FAULT and not _is_broken_constraint(error)


def _is_broken_constraint(error: BaseException) -> bool:
    """Whether a constraint is broken, which no repetition has healed: then it is a bug after all."""
    return isinstance(error, IntegrityError | sqlite3.IntegrityError) or _sqlstate(error)[:2] == "23"


def is_lock_timeout(error: BaseException) -> bool:
    """Whether another transaction held a lock for longer than this one may wait."""
    return _sqlstate(error) == "55P03"


def description(error: BaseException) -> str:
    """Return what a log may hold of an error: its kind and codes, and those of its cause.

    Its message may hold rows, parameters, statements or the address of the database, so none of it is returned.
    """
    driver = _of_driver(error)
    described = type(driver).__name__
    if isinstance(driver, OSError) and driver.errno is not None:
        described += f" ({errno.errorcode.get(driver.errno, driver.errno)})"
    code = _sqlstate(driver) or getattr(driver, "sqlite_errorname", None)
    if code:
        described += f" ({code})"
    cause = driver.__cause__
    return f"{described} from {description(cause)}" if cause is not None else described


class Outages:
    """Logs that the database is unavailable: at once, and while it lasts once in `LOG_SECONDS`, with what was left out.

    During an outage every request fails, and a line for each would fill the disk with the same line.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged_at = -math.inf
        self._unlogged = 0

    def log(self, error: BaseException) -> None:
        """Log the error, or count it for the next line."""
        now = self._clock()
        if now < self._logged_at + LOG_SECONDS:
            self._unlogged += 1
            return
        more = f"; {self._unlogged:,} more since the line before" if self._unlogged else ""
        _log.warning("The database is unavailable: %s%s", description(error), more)
        self._logged_at, self._unlogged = now, 0


#: The process's own.
outages = Outages()
