"""The `tollgate` command.

Results go to standard output, all else to standard error. Exit codes: 0 done; 1 not done, or something was refused; 2
the command line itself is wrong.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from typer.core import TyperGroup

from gateway.services import Services, collect_less_often
from gateway.settings import BadSetting, Settings, database_url, passed_over, variable_of
from resolvers.actor import Scope
from resolvers.errors import BillingError
from storage.engine.database import DatabaseUnavailable
from storage.tables import Environment, OverLimitPolicy

if TYPE_CHECKING:
    from gateway.cli.lines import Lines
    from gateway.cli.rejects import Rejects


class PlainWords(TyperGroup):
    """The commands, whose messages of bad options are not those of the library that reads them."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            words = error.message.removeprefix("Value error, ").removesuffix(", unable to parse string as an integer")
            error.message = words.replace("Input should be ", "it must be ").replace("valid integer", "whole number")
            raise


app = typer.Typer(
    name="tollgate",
    cls=PlainWords,
    help="A self-hosted GraphQL gateway for billing: customers, prepaid-credit meters and the usage of each day.",
    epilog="Settings come from TOLLGATE_… variables (docs/settings.md); an option wins over its variable.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
schema_app = typer.Typer(help="Export the GraphQL schema, or check it against an older one.", no_args_is_help=True)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
app.add_typer(schema_app, name="schema")
app.add_typer(keys_app, name="keys")

out = Console(soft_wrap=True, emoji=False)
err = Console(stderr=True, soft_wrap=True, emoji=False)

T = TypeVar("T")

_NEWER_SCHEMA = (
    "The database has the schema of a later release: run that release, or this one on a backup from before it."
)

_UNFINISHED_COPY = (
    "`tollgate copy` has not finished filling the database: run it again, which starts anew, or take another database."
)


class ImportPolicy(StrEnum):
    """The policies as the command line spells them."""

    REJECT = "reject"
    PARTIAL = "partial"
    FORCE = "force"


Org = Annotated[str, typer.Option(help="The organization that it is for.")]
EnvironmentOption = Annotated[Environment, typer.Option(help="The environment that it is for.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def fail(message: str, *, code: int = 1) -> NoReturn:
    """End the command with a message on standard error."""
    _tell_error(message)
    raise typer.Exit(code)


def _tell_error(message: str) -> None:
    # What callers named may look like Rich's markup.
    err.print(f"[bold red]Error:[/] {escape(message)}", highlight=False)


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
            return await work(services)
        finally:
            await services.close()

    collect_less_often()
    with _failing_in_one_line(settings.database_url):
        return asyncio.run(with_services())


@contextmanager
def _failing_in_one_line(database_url: str, *, named_by: str = variable_of("database_url")) -> Iterator[None]:
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


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        out.print(version("tollgate"), highlight=False)
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options that go before a command."""


@app.command(epilog="Example: tollgate serve --port 8080 --workers 2")
def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on; 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="The port to listen on; 8000 by default.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="How many processes serve; 1 by default.")] = None,
    documents: Annotated[
        Path | None, typer.Option(help="The manifest of trusted documents, which requests name by their ids.")
    ] = None,
    trusted_only: Annotated[
        bool | None, typer.Option(help="Refuse requests that bring a text of their own; not by default.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Seed a demo organization first, and print its key.")] = False,
    reload: Annotated[bool, typer.Option("--reload", help="Restart when the code changes, for development.")] = False,
) -> None:
    """Serve the gateway. On SQLite the database is made, and migrated, if need be."""
    from gateway.server import serving
    from gateway.telemetry import logs

    switch = None if trusted_only is None else "on" if trusted_only else "off"
    for name, value in (
        ("host", host),
        ("port", port),
        ("workers", workers),
        ("documents", documents),
        ("trusted_only", switch),
    ):
        if value == "":
            fail(f"--{name} must not be empty.", code=2)
        if value is not None:
            # The serving processes read the environment for themselves.
            os.environ[variable_of(name)] = str(value)
    if demo:
        os.environ[variable_of("demo")] = "on"
    if reload:
        # Nobody waits for code that is being written.
        os.environ[variable_of("drain_seconds")] = "0"
    settings = read_settings()
    if settings.is_demo and not settings.is_loopback:
        fail(f"--demo listens on loopback alone, not on {settings.host}.", code=2)
    _require_documents(settings)
    _require_extra(settings)
    try:
        sockets = serving.listening(settings.host, settings.port)
        logs.start(settings)
        key = run(_seed_demo, settings) if settings.is_demo else run(_nothing, settings)
        with _shared_figures(settings):
            has_served = serving.serve(settings, sockets, reload=reload, announce=partial(_announce, settings, key))
    except serving.CannotListen as error:
        fail(f"Cannot listen on {_address(settings)}: {error}. Choose another one with --host or --port.")
    if not has_served:
        raise typer.Exit(1)


def _announce(settings: Settings, key: str | None) -> None:
    """Print where the gateway serves, once it does."""
    url = escape(f"http://{_address(settings)}/")
    out.print(f"Tollgate serves at [bold]{url}graphql[/]", highlight=False)
    if settings.has_graphiql:
        out.print(f"GraphiQL at [bold]{url}[/]", highlight=False)
    if key is not None:
        out.print(f"Demo key: [bold]{key}[/]", highlight=False)
        _tell_key_file(settings)


@contextmanager
def _shared_figures(settings: Settings) -> Iterator[None]:
    """Make the folder in which several processes leave their figures for `/metrics`, unless one is set."""
    if settings.metrics_token is None or settings.metrics_folder is not None or settings.workers == 1:
        yield
        return
    with TemporaryDirectory(prefix="tollgate-metrics-", ignore_cleanup_errors=True) as folder:
        os.environ[variable_of("metrics_folder")] = folder
        yield


async def _nothing(_services: Services) -> None:
    """Only bring the database up to date."""


async def _seed_demo(services: Services) -> str:
    from gateway.cli.demo import seed

    try:
        with err.status("Seeding the demo organization…"):
            return await seed(services)
    except OSError as error:
        fail(f"{services.settings.demo_key_file} cannot be written: {error.strerror}")


def _tell_key_file(settings: Settings) -> None:
    err.print(f"(also in the file {escape(settings.demo_key_file)}, which only you can read)", highlight=False)


def _require_documents(settings: Settings) -> None:
    from gateway.http.trusted_documents import BadManifest, TrustedDocuments

    if settings.is_trusted_only and settings.documents is None:
        fail("--trusted-only needs trusted documents: name their manifest by --documents.", code=2)
    try:
        TrustedDocuments(settings)
    except BadManifest as error:
        fail(str(error), code=2)


def _require_extra(settings: Settings) -> None:
    if settings.is_traced:
        try:
            import gateway.telemetry.tracing  # noqa: F401  # Whether it can be imported is the question.
        except ImportError:
            fail("TOLLGATE_TRACING=on needs the extra `otel`: pip install '.[otel]' in a checkout.", code=2)


def _address(settings: Settings) -> str:
    """Return the host and the port, as a URL has them."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"


@app.command(epilog="Example: TOLLGATE_DATABASE_URL=postgresql+asyncpg://tollgate@db/tollgate tollgate migrate")
def migrate() -> None:
    """Bring the database to this release's schema, and mend what an older release has written since.

    Running it again changes nothing.
    """
    from resolvers.maintenance.repairs import Mended, mend
    from storage import migrations

    settings = read_settings()

    async def upgrade() -> Mended:
        services = Services(settings)
        try:
            await migrations.upgrade(services.database)
            return await mend(services.database)
        finally:
            await services.close()

    with _failing_in_one_line(settings.database_url):
        mended = asyncio.run(upgrade())
    if mended != Mended():
        err.print(
            f"Filters find what an older release has written: {mended.customers:,} customers and {mended.meters:,} "
            "meters were mended.",
            highlight=False,
        )
    err.print("The database is up to date.")


@app.command(epilog="Example: tollgate demo")
def demo() -> None:
    """Seed the demo organization, with two months of usage, and print its sandbox key."""
    settings = read_settings()
    key = run(_seed_demo, settings)
    out.print(key, highlight=False)
    _tell_key_file(settings)


@schema_app.command("export", epilog="Example: tollgate schema export -o schema.graphql")
def schema_export(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write; standard output by default.")
    ] = None,
) -> None:
    """Write the schema in GraphQL's definition language."""
    from schema.root import schema

    text = schema.as_str() + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            fail(f"{output} cannot be written: {error.strerror}")


@schema_app.command("check", epilog="Example: tollgate schema check released.graphql")
def schema_check(
    old: Annotated[Path, typer.Argument(help="The older schema.", exists=True, dir_okay=False, metavar="OLD.graphql")],
) -> None:
    """Tell what changed since an older schema: breaking, dangerous or safe. Exit code 1 if anything breaks clients."""
    from graphql import GraphQLError

    from schema.engine.compatibility import changes_since

    try:
        changes = changes_since(old.read_text(encoding="utf-8"))
    except (GraphQLError, TypeError, UnicodeDecodeError) as error:
        fail(f"{old} is not a GraphQL schema: {error}")
    for change in changes:
        out.print(f"{change.severity}: {change.description}", highlight=False, markup=False)
    if not changes:
        err.print("Nothing changed.")
    if any(change.severity == "breaking" for change in changes):
        raise typer.Exit(1)


@keys_app.command(
    "create", epilog="Example: tollgate keys create --org acme --environment live --scope usage:write --expires 90d"
)
def keys_create(
    org: Org,
    environment: EnvironmentOption,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help=f"What it allows: {', '.join(Scope)}. May be repeated; all by default.", metavar="SCOPE"),
    ] = None,
    workspace: Annotated[
        list[str] | None,
        typer.Option(help="Where it works. May be repeated; in all workspaces by default.", metavar="WORKSPACE"),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="When it ends: 12h, 30d, 8w; never by default.")] = None,
    name: Annotated[str | None, typer.Option(help="A name to know it by.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is shown this once and not stored."""
    from resolvers.api_keys import create_api_key

    lifetime = _lifetime(expires) if expires is not None else None

    async def create(services: Services) -> tuple[Any, str]:
        now = services.clock()
        return await create_api_key(
            services.database,
            org_id=org,
            environment=environment,
            scopes=scope or tuple(Scope),
            workspace_ids=workspace or None,
            expires_at=now + lifetime if lifetime is not None else None,
            name=name,
            now=now,
        )

    row, key = run(create)
    if as_json:
        _print_json({"id": row.id, "key": key, "org": row.org_id, "environment": row.environment, "scopes": row.scopes})
    else:
        out.print(key, highlight=False)
        err.print(f"Its id is {row.id}. It cannot be shown again.", highlight=False)


@keys_app.command("list", epilog="Example: tollgate keys list --json")
def keys_list(as_json: AsJson = False) -> None:
    """List all keys, without the keys themselves and without customers' sessions."""
    from storage import api_keys

    async def rows(services: Services) -> Any:
        async with services.database.read() as reader:
            return await api_keys.all_keys(reader)

    keys = run(rows, only_reads=True)
    if as_json:
        _print_json(
            {
                "keys": [
                    {
                        "id": row.id,
                        "org": row.org_id,
                        "environment": row.environment,
                        "name": row.name,
                        "scopes": row.scopes,
                        "workspaces": row.workspace_ids,
                        "createdAt": row.created_at.isoformat(),
                        "expiresAt": row.expires_at.isoformat() if row.expires_at else None,
                        "revokedAt": row.revoked_at.isoformat() if row.revoked_at else None,
                    }
                    for row in keys
                ],
            },
        )
        return
    table = Table(
        # The id is what `keys revoke` takes: it is shown whole on any terminal.
        Column("id", no_wrap=True),
        # 80 characters are enough: what is long is broken into lines, but no scope and no day is.
        Column("name", overflow="fold"),
        Column("of", overflow="fold"),
        Column("allows", overflow="fold", width=max(map(len, Scope))),
        Column("ends", width=len("2026-01-01")),
        box=SIMPLE_HEAD,
        show_edge=False,
        leading=1,
    )
    for row in keys:
        ends = row.revoked_at or row.expires_at
        table.add_row(
            row.id,
            escape(row.name or ""),
            f"{escape(row.org_id)}\n{row.environment}",
            "\n".join([*row.scopes, *(f"in {escape(workspace)}" for workspace in row.workspace_ids or ())]),
            ("revoked\n" if row.revoked_at else "") + f"{ends:%Y-%m-%d\n%H:%M}" if ends else "never",
        )
    out.print(table)


@keys_app.command("revoke", epilog="Example: tollgate keys revoke key_019a…")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.", metavar="KEY_ID")],
) -> None:
    """Revoke a key: within 5 seconds no gateway accepts it any more."""
    from resolvers.api_keys import revoke_api_key

    row = run(lambda services: revoke_api_key(services.database, key_id, now=services.clock()))
    if row is None:
        fail(f"There is no key {key_id}.")
    err.print(f"{row.id} is revoked.", highlight=False)


@app.command("import", epilog="Example: tollgate import usage.jsonl.gz --org acme --environment live --create-meters")
def import_(
    file: Annotated[
        str,
        typer.Argument(help="JSON Lines of RecordUsageInput, plain or gzip; - for standard input.", metavar="FILE"),
    ],
    org: Org,
    environment: EnvironmentOption,
    policy: Annotated[ImportPolicy, typer.Option(help="The policy of lines that name none.")] = ImportPolicy.REJECT,
    backfill: Annotated[bool, typer.Option("--backfill", help="Accept events older than 35 days.")] = False,
    create_meters: Annotated[
        bool, typer.Option("--create-meters", help="Make missing meters, with 0 credits and overages on: no limit.")
    ] = False,
    rejects: Annotated[
        Path | None,
        typer.Option(
            help="A new file for what was not accepted; FILE.rejects.jsonl in this folder by default, or with a number."
        ),
    ] = None,
    new_org: Annotated[
        bool, typer.Option("--new-org", help="Record also for an organization that has no key yet.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Record a file of usage events. Run it again to resume: what was recorded is replayed and changes nothing.

    Exit code 1 if any line was refused, conflicting or invalid: the rejects file has it, with the reason.
    """
    from gateway.cli.usage_import import Import

    # What is read is opened first: a file that is not there must not be found in its own rejects.
    with _opened_lines(file) as lines, _opened_rejects(rejects, file) as opened:
        usage_import = Import(
            org_id=org,
            environment=environment,
            policy=OverLimitPolicy(policy.value),
            backfill=backfill,
            create_meters=create_meters,
            rejects=opened,
        )

        async def record(services: Services) -> Any:
            await _require_key(services, org, environment, is_new=new_org)
            return await usage_import.run(services, lines, err)

        counts = run(record)
    if as_json:
        _print_json(counts.as_json())
    else:
        table = Table(*counts.as_json())
        table.add_row(*[f"{count:,}" for count in counts.as_json().values()])
        out.print(table)
    if counts.rejected:
        err.print(
            f"Not accepted: {counts.rejected:,}. Which and why is in {escape(str(opened.path))}.", highlight=False
        )
    if usage_import.met_old_events:
        err.print("Events older than 35 days are accepted with --backfill.", highlight=False)
    if usage_import.failure is not None:
        _tell_error(usage_import.failure)
    if counts.rejected or usage_import.failure is not None:
        raise typer.Exit(1)


def _opened_rejects(path: Path | None, file: str) -> "Rejects":
    from gateway.cli.rejects import new_rejects, rejects_at

    try:
        if path is None:
            return new_rejects("standard-input" if file == "-" else Path(file).name)
        return rejects_at(path, source=file)
    except FileExistsError:
        fail(f"--rejects {path} is there already, and nothing is written over: name a file that is not there.", code=2)
    except OSError as error:
        if path is None:
            fail(f"The file of rejects cannot be made here; name another by --rejects: {error.strerror}")
        fail(f"{path} cannot be written: {error.strerror}")


def _opened_lines(file: str) -> "Lines":
    from gateway.cli.lines import NotLines, open_lines

    try:
        return open_lines(file)
    except NotLines as error:
        fail(f"{file} {error}")
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}")


async def _require_key(services: Services, org: str, environment: Environment, *, is_new: bool) -> None:
    """End the command if no key can see what it records, which cannot be undone: a name may be misspelt."""
    from resolvers.api_keys import organizations
    from resolvers.values import check_org

    check_org("org", org)
    known = await organizations(services.database, now=services.clock())
    if (org, environment) in known:
        return
    unseen = f"No key can see the {environment} environment of the organization {org!r}"
    # A database without any key is new itself: there is nothing that the name could be mistaken for.
    if known and not is_new:
        near = get_close_matches(org, [name for name, of in known if of is environment], n=1)
        fail(
            f"{unseen}{f'; did you mean {near[0]!r}?' if near else '.'} Make a key for it first, or name it with"
            " --new-org. Nothing was recorded.",
            code=2,
        )
    err.print(f"{escape(unseen)} yet: make one with `tollgate keys create`.", highlight=False)


@app.command(epilog="Example: tollgate verify --json")
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

            async for disagreement in verify(services.database, verified, on_progress=show):
                disagreements.append(disagreement)
                if not as_json:
                    out.print(f"{disagreement.id}: {disagreement.message}", highlight=False, markup=False)

    run(check, only_reads=True)
    if as_json:
        kinds = {ids.BILLING_METER: "meter", ids.CUSTOMER: "customer", ids.API_KEY: "key"}
        _print_json(
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


@app.command(epilog="Example: tollgate copy --to postgresql+asyncpg://tollgate@db.example.com/tollgate")
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
    from storage.copying import CannotHold
    from storage.engine.database import Database

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
        _print_json(
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

    with _failing_in_one_line(url, named_by="--to"):
        try:
            if await begin_copy(target):
                err.print("An unfinished copy was found there: it is dropped, and started anew.")
        except NotEmpty as error:
            fail(f"The database of --to must be empty, and {error}. Nothing was changed.")
        except NewerSchema:
            fail("The database of --to has the schema of a later release. Nothing was changed.")


def _lifetime(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text, re.ASCII)
    if match is None:
        fail("--expires must be a number of hours, days or weeks: 12h, 30d, 8w.", code=2)
    return int(match[1]) * {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}[match[2]]


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value))
