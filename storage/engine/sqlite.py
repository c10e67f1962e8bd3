"""SQLite: how its file is opened, and how each connection to it is set."""

import asyncio
import errno
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite
from sqlalchemy import URL, Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from storage.engine.failures import FileReplaced

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

#: Under which name the pool keeps, with a connection, the file that it has opened.
_FILE = "file"


def sqlite_engine(url: URL, *, pool_size: int, wait_seconds: float, pragmas: Sequence[str] = ()) -> AsyncEngine:
    """Return an engine of SQLite's file; with `pragmas`, whose connections are set so besides, one that writes."""
    engine = create_async_engine(
        url,
        hide_parameters=True,
        # The driver's own transactions begin late and deferred: with them, concurrent debits overwrite each other or
        # fail.
        connect_args={
            "async_creator_fn": _connect,
            "isolation_level": None,
            "timeout": wait_seconds,
            "uri": True,
        },
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
        arguments[0] = file_uri(path, writes=bool(pragmas))

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        # The first is kept in the file, which may be a read-only copy.
        first = 1 if _is_read_only(Path(path)) else 0
        for pragma in (*PRAGMAS[first:], *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
        record.info[_FILE] = (path, _file_identity(path))
        # A process that was killed between writing a commit and writing it through has left it to be read, and
        # replayed, by this one.
        with suppress(FileNotFoundError):
            _write_through(f"{path}-wal")

    return engine


async def _connect(address: str, **options: Any) -> aiosqlite.Connection:
    """Open a connection; where the caller is cancelled meanwhile, close it.

    The driver itself would forget such a connection, and the file would stay open until the garbage is collected.
    """
    connection = aiosqlite.connect(address, **options)
    # As SQLAlchemy has it: the thread does not hold up the end of the process.
    connection._thread.daemon = True  # noqa: SLF001
    opening = asyncio.ensure_future(connection)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        with suppress(sqlite3.Error):
            await (await opening).close()
        raise


def file_uri(path: str, *, writes: bool) -> str:
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
        # nobody writes: a process that does has a log there.
        is_copy = _is_read_only(file) and not Path(f"{path}-wal").exists()
        if is_copy and writes:
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), path)
    return f"file://{quote(str(file.absolute()))}{'?immutable=1' if is_copy else ''}"


def _is_read_only(file: Path) -> bool:
    return not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK)


def require_same_file(connection: Connection) -> None:
    """Raise `FileReplaced` where the database's file is another one than was opened, which nobody will read."""
    path, opened = connection.connection.info[_FILE]
    try:
        found = _file_identity(path)
    except FileNotFoundError as error:
        # Another connection would make an empty one; this one is good again when the file is back.
        raise sqlite3.OperationalError("the database's file is missing") from error
    if found != opened:
        raise FileReplaced


def _file_identity(path: str) -> tuple[int, int]:
    """Return what distinguishes a file from another one of the same path."""
    found = os.stat(path)  # noqa: PTH116  # Before every write, where a `Path` would take longer than the question.
    return found.st_dev, found.st_ino


def _write_through(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
