"""`tollgate import`."""

from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gateway.cli.console import err, fail, out, print_error, print_json
from gateway.cli.options import AsJson, EnvironmentOption, Org
from gateway.cli.running import run
from gateway.services import Services
from storage.meters.ledger import OverLimitPolicy
from storage.tenants import Environment

if TYPE_CHECKING:
    from gateway.cli.usage_import.lines import Lines
    from gateway.cli.usage_import.rejects import Rejects


class ImportPolicy(StrEnum):
    """The policies as the command line spells them."""

    REJECT = "reject"
    PARTIAL = "partial"
    FORCE = "force"


def import_usage(
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
    from gateway.cli.usage_import.recording import Import

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
        print_json(counts.as_json())
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
        print_error(usage_import.failure)
    if counts.rejected or usage_import.failure is not None:
        raise typer.Exit(1)


def _opened_rejects(path: Path | None, file: str) -> "Rejects":
    from gateway.cli.usage_import.rejects import new_rejects, rejects_at

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
    from gateway.cli.usage_import.lines import NotLines, open_lines

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
