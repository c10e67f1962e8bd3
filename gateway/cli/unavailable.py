"""Why a command cannot use its database: one line that names what is wrong, where, and what would be right.

The driver's own words are used where they say more; the password, which none of them should hold, is cut out of them.
"""

import re
import socket
import ssl
from pathlib import Path

from sqlalchemy import URL, make_url

from storage.engine.database import DatabaseUnavailable

#: What Python adds to what OpenSSL says: the place in its own code.
_PLACE_IN_PYTHON = re.compile(r" \(_ssl\.c:[0-9]+\)")


def reason_of(error: BaseException, database_url: str, *, named_by: str) -> str:
    """Return what is wrong with the database of the URL, which is `named_by` a variable or an option."""
    driver = _of_driver(error)
    url = make_url(database_url)
    reason = _of_sqlite(driver, url) if url.get_backend_name() == "sqlite" else _of_postgresql(driver, url, named_by)
    return reason.replace(url.password, "…") if url.password else reason


def _of_driver(error: BaseException) -> BaseException:
    """Return the driver's error, without what this program and SQLAlchemy have wrapped it in."""
    if isinstance(error, DatabaseUnavailable):
        error = error.__cause__ or error
    adapted = getattr(error, "orig", None)
    return error if adapted is None else adapted.__cause__ or adapted


def words_of(error: BaseException) -> str:
    """Return the first line of what the driver says, without a full stop."""
    error = _of_driver(error)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, ssl.SSLError):
        text = _PLACE_IN_PYTHON.sub("", text)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")


def _of_sqlite(error: BaseException, url: URL) -> str:
    file = Path(url.database or "")
    name = getattr(error, "sqlite_errorname", "")
    if file.is_dir():
        return f"{file} is a folder, and not a file."
    if not file.parent.is_dir():
        return f"the folder {file.parent} does not exist. Make it, or name another file."
    if name == "SQLITE_NOTADB":
        return f"{file} is not an SQLite database. Name another file."
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")) or isinstance(error, OSError):
        return (
            f"{file} cannot be opened as this command needs it: {words_of(error)}. "
            "The file and its folder must be readable and writable for the user that runs it."
        )
    return f"{file}: {words_of(error)}."


#: What a server that is reached refuses, by its code.
_REFUSALS = {
    "28P01": "{server} refuses the password of {role}. Correct it in {named_by}, or in PGPASSWORD.",
    "28000": "{server} does not let {role} in: {words}. Correct {named_by}, or the server's pg_hba.conf.",
    "3D000": "{server} has no such database: {words}. Create it, or correct its name in {named_by}.",
    "42501": "{server} refuses a statement of {role}: {words}. Grant the role what it lacks.",
}

#: Why a server is not reached, by the error; the first that fits.
_UNREACHED: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, 'no address is known of the host "{host}": {words}. Correct it in {named_by}.'),
    (ConnectionRefusedError, "{server} cannot be reached: nothing listens there. Start it, or correct {named_by}."),
    # Of a socket's path.
    (FileNotFoundError, "{server} cannot be reached: nothing listens there. Start it, or correct {named_by}."),
    (TimeoutError, "{server} cannot be reached: it does not answer in time."),
    (ssl.SSLError, "{server} and this command cannot agree on TLS: {words}."),
    (OSError, "{server} cannot be reached: {words}."),
    (BaseException, "{server} cannot be used: {words}."),
)


def _of_postgresql(error: BaseException, url: URL, named_by: str) -> str:
    host = url.host or url.query.get("host")
    facts = {
        "server": f"PostgreSQL at {host}:{url.port or url.query.get('port') or 5432}" if host else "PostgreSQL",
        "host": host,
        "role": f'the role "{url.username}"' if url.username else "the role",
        "words": words_of(error),
        "named_by": named_by,
    }
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is not None:
        return _REFUSALS.get(sqlstate, f"{{server}} answers: {{words}} ({sqlstate}).").format_map(facts)
    return next(reason for kind, reason in _UNREACHED if isinstance(error, kind)).format_map(facts)
