"""Running a command's work: with the settings of the environment, on a database that is up to date."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.markup import escape

from gateway.cli.console import err, fail
from gateway.services import Services, collect_less_often
from gateway.settings import BadSetting, Settings, passed_over, variable_of
from resolvers.errors import BillingError
from storage.engine.database import DatabaseUnavailable

T = TypeVar("T")

_NEWER_SCHEMA = (
    "The database has the schema of a later release: run that release, or this one on a backup from before it."
)

_UNFINISHED_COPY = (
    "`tollgate copy` has not finished filling the database: run it again, which starts anew, or take another database."
)


def read_settings() -> Settings:
    """Return the environment's settings, or end the command and name the one that is wrong."""
    try:
        settings = Settings.read()
    except BadSetting as error:
        fail(str(error), code=2)
    if (warning := passed_over()) is not None:
        err.print(f"[bold yellow]Warning:[/] {escape(warning)}", highlight=False)
    return settings


def run(work: Callable[[Services], Awaitable[T]], settings: Settings | None = None, *, only_reads: bool = False) -> T:
    """Run the work with the services on an up-to-date database, and return what it returns.

    What `only_reads` also runs on a read-only copy of a database that is up to date.
    """
    settings = settings or read_settings()

    async def with_services() -> T:
        services = Services(settings)
        try:
            await _bring_up_to_date(services, only_reads=only_reads)
            await services.database.find_buckets()
            return await work(services)
        finally:
            await services.close()

    collect_less_often()
    with failing_in_one_line(settings.database_url):
        return asyncio.run(with_services())


@contextmanager
def failing_in_one_line(database_url: str, *, named_by: str = variable_of("database_url")) -> Iterator[None]:
    """End the command with one line for what is wrong with the database that the variable or option names."""
    from gateway.cli.unavailable import reason_of
    from storage.engine.failures import UNAVAILABLE
    from storage.migrations import NewerSchema, UnfinishedCopy

    try:
        yield
    except (DatabaseUnavailable, *UNAVAILABLE) as error:
        if isinstance(error, OSError):
            raise  # It is of another file: the database's are `DatabaseUnavailable`.
        which = "" if named_by == variable_of("database_url") else f" of {named_by}"
        fail(f"The database{which} is unavailable: {reason_of(error, database_url, named_by=named_by)}")
    except NewerSchema:
        fail(_NEWER_SCHEMA)
    except UnfinishedCopy:
        fail(_UNFINISHED_COPY)
    except BillingError as error:
        fail(error.message)


async def _bring_up_to_date(services: Services, *, only_reads: bool) -> None:
    from storage import migrations

    is_sqlite = services.database.dialect == "sqlite"
    if is_sqlite and not only_reads:
        await migrations.upgrade(services.database)
    elif await migrations.is_current(services.database):
        return
    elif is_sqlite:
        await migrations.upgrade(services.database)
    else:
        fail("The database's schema is not this release's. Run `tollgate migrate` first.")
