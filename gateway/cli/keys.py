"""`tollgate keys`: API keys, made, listed and revoked."""

import re
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from gateway.cli.console import err, fail, out, print_json
from gateway.cli.options import AsJson, EnvironmentOption, Org
from gateway.cli.running import run
from gateway.services import Services
from resolvers.actor import Scope


def create(
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
        print_json({"id": row.id, "key": key, "org": row.org_id, "environment": row.environment, "scopes": row.scopes})
    else:
        out.print(key, highlight=False)
        err.print(f"Its id is {row.id}. It cannot be shown again.", highlight=False)


def list_keys(as_json: AsJson = False) -> None:
    """List all keys, without the keys themselves and without customers' sessions."""
    from storage import api_keys

    async def rows(services: Services) -> Any:
        async with services.database.read() as reader:
            return await api_keys.all_keys(reader)

    keys = run(rows, only_reads=True)
    if as_json:
        print_json(
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


def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.", metavar="KEY_ID")],
) -> None:
    """Revoke a key: within 5 seconds no gateway accepts it any more."""
    from resolvers.api_keys import revoke_api_key

    row = run(lambda services: revoke_api_key(services.database, key_id, now=services.clock()))
    if row is None:
        fail(f"There is no key {key_id}.")
    err.print(f"{row.id} is revoked.", highlight=False)


def _lifetime(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text, re.ASCII)
    if match is None:
        fail("--expires must be a number of hours, days or weeks: 12h, 30d, 8w.", code=2)
    return int(match[1]) * {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}[match[2]]
