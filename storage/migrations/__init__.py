"""The schema's history, and how a database is brought to its end.

A migration only goes forward, and leaves the release before it working, so that gateways can be replaced one by one.
"""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from storage.database import Database

_HERE = Path(__file__).parent

#: PostgreSQL's advisory lock of migrations, so that two processes that start together do not both run them.
_LOCK = 8_675_309_001


class NewerSchema(Exception):
    """The database has the schema of a later release, which this code can neither change nor take for its own."""


def config() -> Config:
    """Return Alembic's configuration, made here so that no `alembic.ini` is needed."""
    configuration = Config()
    configuration.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    configuration.set_main_option("file_template", "%%(year)d_%%(month).2d_%%(day).2d_%%(slug)s")
    return configuration


async def upgrade(database: Database) -> None:
    """Bring the database to the newest schema, in one transaction. Raises `NewerSchema`."""

    def run(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        if not _heads(connection) <= _known():
            raise NewerSchema
        configuration = config()
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")

    async with database.connect_to_migrate() as connection:
        await connection.run_sync(run)


async def is_current(database: Database) -> bool:
    """Whether the database has exactly the schema that this code was written for."""
    async with database.read() as reader:
        return await reader.run_sync(_heads) == _newest()


async def may_serve(database: Database) -> bool:
    """Whether a gateway may go on serving: on its own schema, or on a later one, to which it was migrated meanwhile."""
    async with database.read() as reader:
        heads = await reader.run_sync(_heads)
    return heads == _newest() or not heads <= _known()


def _heads(connection: Connection) -> set[str]:
    return set(MigrationContext.configure(connection).get_current_heads())


@cache
def _newest() -> set[str]:
    return set(ScriptDirectory.from_config(config()).get_heads())


@cache
def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
