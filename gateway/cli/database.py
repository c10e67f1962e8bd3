"""The commands on a whole database: `tollgate migrate`, `tollgate verify` and `tollgate copy`."""

import asyncio
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from gateway.cli.console import err, fail, out, print_json
from gateway.cli.options import AsJson
from gateway.cli.running import failing_in_one_line, read_settings, run
from gateway.services import Services
from gateway.settings import database_url
from storage.engine.database import DatabaseUnavailable


def migrate(
    distribute: Annotated[
        bool,
        typer.Option(
            "--distribute", help="Also divide the database over the servers of Citus. Stop the gateways first."
        ),
    ] = False,
    buckets: Annotated[
        int,
        typer.Option(
            help="With --distribute: into how many parts, a power of two. There can be no more servers than that."
        ),
    ] = 8,
) -> None:
    """Bring the database to this release's schema, and repair what an older release has written since.

    Running it again changes nothing. What --distribute has not finished is gone on with by running it again.
    """
    from resolvers.maintenance.repairs import Repaired, repair
    from storage import migrations
    from storage.maintenance.distribution import complete

    settings = read_settings()

    async def upgrade() -> Repaired:
        services = Services(settings)
        try:
            await migrations.upgrade(services.database)
            await complete(services.database)
            if distribute:
                await _distribute(services, buckets)
            await services.database.find_buckets()
            return await repair(services.database)
        finally:
            await services.close()

    with failing_in_one_line(settings.database_url):
        repaired = asyncio.run(upgrade())
    if repaired != Repaired():
        err.print(
            f"Filters find what an older release has written: {repaired.customers:,} customers and {repaired.meters:,} "
            "meters were repaired.",
            highlight=False,
        )
    err.print("The database is up to date.")


async def _distribute(services: Services, count: int) -> None:
    from rich.progress import Progress

    from storage.maintenance.distribution import CannotDistribute, distribute

    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("Distributing", total=None)
        try:
            await distribute(
                services.database,
                count,
                on_progress=lambda table, done, of: progress.update(
                    task, description=f"Distributing {table}", completed=done, total=of
                ),
            )
        except CannotDistribute as error:
            fail(f"The database is not distributed: {error}")
    err.print(f"The database is divided into {count} buckets.", highlight=False)


def verify(as_json: AsJson = False) -> None:
    """Check the whole database against the rules of billing. Exit code 1 if anything disagrees.

    It reads one snapshot, so it may run beside the gateway.
    """
    from rich.progress import Progress

    from resolvers.maintenance.meter_check import Disagreement
    from resolvers.maintenance.verify import Verified, verify
    from storage import ids

    verified = Verified()
    disagreements: list[Disagreement] = []

    async def check(services: Services) -> None:
        with Progress(console=err, transient=True) as progress:
            task = progress.add_task("Verifying", total=None)

            def show(total: int) -> None:
                progress.update(task, total=total, completed=verified.meters)

            async for disagreement in verify(services.database, verified, on_progress=show, now=services.clock()):
                disagreements.append(disagreement)
                if not as_json:
                    out.print(f"{disagreement.id}: {disagreement.message}", highlight=False, markup=False)

    run(check, only_reads=True)
    if as_json:
        kinds = {ids.BILLING_METER: "meter", ids.CUSTOMER: "customer", ids.API_KEY: "key"}
        print_json(
            {
                "meters": verified.meters,
                "entries": verified.entries,
                "days": verified.days,
                "disagreements": [
                    {kinds.get(id_[:4], "row"): id_, "message": message} for id_, message in disagreements
                ],
            },
        )
    else:
        err.print(
            f"{verified.meters:,} meters, {verified.entries:,} entries and {verified.days:,} usage days verified: "
            f"{len(disagreements):,} disagreements.",
            highlight=False,
        )
    if disagreements:
        raise typer.Exit(1)


def copy(
    to: Annotated[str, typer.Option(help="The URL of the database to fill, which must be empty.", metavar="URL")],
    as_json: AsJson = False,
) -> None:
    """Copy all data to another database, and verify that both are equal. Stop the gateways first.

    An older SQLite file is migrated first; then nobody writes to the source until the end.
    A copy that did not end is started anew by running it again.
    """
    from rich.progress import Progress

    from gateway.cli.unavailable import words_of
    from resolvers.maintenance.copying import Copied, CopyDiffers
    from resolvers.maintenance.copying import copy as copy_to
    from storage.engine.database import Database
    from storage.maintenance.copying import CannotHold

    settings = read_settings()
    try:
        target_url = database_url(to)
    except ValueError as error:
        fail(f"--to {error}", code=2)
    if target_url == settings.database_url:
        fail("--to must name another database than TOLLGATE_DATABASE_URL.", code=2)

    async def fill(services: Services) -> Copied:
        target = Database(target_url, wait_seconds=settings.wait_seconds)
        try:
            await _begin_copy(target, target_url)
            with Progress(console=err, transient=True) as progress:
                task = progress.add_task("Copying", total=None)
                return await copy_to(
                    services.database,
                    target,
                    on_progress=lambda step, done, of: progress.update(
                        task, description=step, completed=done, total=of
                    ),
                )
        except DatabaseUnavailable as error:
            fail(f"One of the two databases was lost: {words_of(error)}. Run it again, which starts anew.")
        finally:
            await target.close()

    try:
        copied = run(fill, settings)
    except CannotHold as error:
        fail(f"The database of --to cannot hold a row of {error}")
    except CopyDiffers as error:
        fail(f"The copy is not equal, and stays unfinished: {error}")
    if as_json:
        print_json(
            {
                "rows": copied.rows,
                "meters": copied.verified.meters,
                "entries": copied.verified.entries,
                "days": copied.verified.days,
                "disagreements": len(copied.disagreements),
            }
        )
        return
    table = Table("table", Column("rows", justify="right"), box=SIMPLE_HEAD, show_edge=False)
    for name, count in copied.rows.items():
        table.add_row(name, f"{count:,}")
    out.print(table)
    err.print("Both databases are equal.")
    if copied.disagreements:
        err.print(f"Both have {len(copied.disagreements):,} disagreements, which `tollgate verify` names.")


async def _begin_copy(target: Any, url: str) -> None:
    from storage.migrations import NewerSchema, NotEmpty, begin_copy

    with failing_in_one_line(url, named_by="--to"):
        try:
            await target.find_buckets()
            if await begin_copy(target):
                err.print("An unfinished copy was found there: it is dropped, and started anew.")
        except NotEmpty as error:
            fail(f"The database of --to must be empty, and {error}. Nothing was changed.")
        except NewerSchema:
            fail("The database of --to has the schema of a later release. Nothing was changed.")
