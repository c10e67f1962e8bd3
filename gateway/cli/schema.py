"""`tollgate schema`: the GraphQL schema, exported, or checked against an older one."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import err, fail, out


def export(
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


def check(
    old: Annotated[Path, typer.Argument(help="The older schema.", exists=True, dir_okay=False, metavar="OLD.graphql")],
) -> None:
    """List what changed since an older schema: breaking, dangerous or safe. Exit code 1 if anything breaks clients."""
    from graphql import GraphQLError

    from schema.engine.compatibility import changes_between
    from schema.root import schema

    try:
        changes = changes_between(old.read_text(encoding="utf-8"), schema.as_str())
    except (GraphQLError, TypeError, UnicodeDecodeError) as error:
        fail(f"{old} is not a GraphQL schema: {error}")
    for change in changes:
        out.print(f"{change.severity}: {change.description}", highlight=False, markup=False)
    if not changes:
        err.print("Nothing changed.")
    if any(change.severity == "breaking" for change in changes):
        raise typer.Exit(1)
