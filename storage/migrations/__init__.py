"""The schema's history, and how a database is brought to its end.

A migration only goes forward, and leaves the release before it working, so that gateways can be replaced one by one.
On a database of several servers Citus changes each server's part of a table; a table that is new there, a migration
distributes by its bucket, beside the meters, or puts on every server, as `storage.maintenance.distribution` does.
"""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, inspect, select, text

from storage.engine.database import Database
from storage.engine.postgresql import ONE_BY_ONE
from storage.tables import metadata

_HERE = Path(__file__).parent

#: PostgreSQL's advisory lock of migrations, so that two processes that start together do not both run them.
_LOCK = 8_675_309_001


#: What stands beside the schema's revision while a copy fills the database: no release takes that for its own.
_UNFINISHED = "unfinished_copy"


class NewerSchema(Exception):
    """The database has the schema of a later release, which this code can neither change nor take for its own."""


class UnfinishedCopy(Exception):
    """The database is being filled by a copy, or was by one that did not end."""


class NotEmpty(Exception):
    """The database already holds what a copy would mix with; the message names a table."""


def config() -> Config:
    """Return Alembic's configuration, made here so that no `alembic.ini` is needed."""
    configuration = Config()
    configuration.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    configuration.set_main_option("file_template", "%%(year)d_%%(month).2d_%%(day).2d_%%(slug)s")
    return configuration


async def upgrade(database: Database) -> None:
    """Bring the database to the newest schema, in one transaction. Raises `NewerSchema` and `UnfinishedCopy`."""
    async with database.connect_to_migrate() as connection:
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    _wait_for_others(connection)
    if not _heads(connection) <= _known():
        raise NewerSchema
    if connection.dialect.name == "postgresql":
        # Citus refuses to change what is on every server after what is of meters, unless it goes to one at a time.
        connection.execute(text(ONE_BY_ONE))
    configuration = config()
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")


def _wait_for_others(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


async def is_current(database: Database) -> bool:
    """Whether the database has exactly the schema that this code was written for. Raises `UnfinishedCopy`."""
    async with database.read() as reader:
        return await reader.run_sync(_heads) == _newest()


async def may_serve(database: Database) -> bool:
    """Whether a gateway may go on serving: on its own schema, or on a later one, to which it was migrated meanwhile."""
    async with database.read() as reader:
        try:
            heads = await reader.run_sync(_heads)
        except UnfinishedCopy:
            return False
    return heads == _newest() or not heads <= _known()


async def begin_copy(database: Database) -> bool:
    """Make the empty tables that a copy fills, in a database that nobody takes for a whole one until `end_copy`.

    The rows that an earlier copy left unfinished are dropped; return whether there was one. The tables stay, divided as
    they are. Raises `NewerSchema` and `NotEmpty`, and has then changed nothing.
    """

    def run(connection: Connection) -> bool:
        _wait_for_others(connection)
        is_unfinished = _UNFINISHED in _revisions(connection)
        if is_unfinished:
            _empty(connection)
        _require_empty(connection)
        _upgrade(connection)
        connection.execute(text("INSERT INTO alembic_version VALUES (:mark)"), {"mark": _UNFINISHED})
        return is_unfinished

    async with database.connect_to_migrate() as connection:
        return await connection.run_sync(run)


async def end_copy(database: Database) -> None:
    """Let the database be taken for a whole one."""

    def run(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(text(ONE_BY_ONE))
            # It plans by statistics, which it would otherwise gather only later.
            for table in metadata.sorted_tables:
                connection.execute(text(f"ANALYZE {table.name}"))
        _unmark(connection)

    async with database.connect_to_migrate() as connection:
        await connection.run_sync(run)


def _empty(connection: Connection) -> None:
    """Drop all rows of an unfinished copy, which may be of an older release, and its mark."""
    found = set(inspect(connection).get_table_names())
    tables = [table for table in reversed(metadata.sorted_tables) if table.name in found]
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"TRUNCATE {', '.join(table.name for table in tables)}"))
    else:
        for table in tables:
            connection.execute(delete(table))
    _unmark(connection)


def _unmark(connection: Connection) -> None:
    connection.execute(text("DELETE FROM alembic_version WHERE version_num = :mark"), {"mark": _UNFINISHED})


def _require_empty(connection: Connection) -> None:
    found = set(inspect(connection).get_table_names()) - {"alembic_version"}
    if found and not _heads(connection):
        raise NotEmpty(f"it has a table {min(found)} that is not Tollgate's")
    for table in metadata.sorted_tables:
        if table.name in found and connection.execute(select(1).select_from(table).limit(1)).first() is not None:
            raise NotEmpty(f"its table {table.name} has rows")


def _revisions(connection: Connection) -> set[str]:
    return set(MigrationContext.configure(connection).get_current_heads())


def _heads(connection: Connection) -> set[str]:
    revisions = _revisions(connection)
    if _UNFINISHED in revisions:
        raise UnfinishedCopy
    return revisions


@cache
def _newest() -> set[str]:
    return set(ScriptDirectory.from_config(config()).get_heads())


@cache
def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
