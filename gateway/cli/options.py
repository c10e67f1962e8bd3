"""The options that several commands have."""

from typing import Annotated

import typer

from storage.tenants import Environment

Org = Annotated[str, typer.Option(help="The organization that it is for.")]
EnvironmentOption = Annotated[Environment, typer.Option(help="The environment that it is for.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
