"""The `tollgate` command."""

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gateway.cli import database, demo, events, keys, schema, serve, webhooks
from gateway.cli.console import out
from gateway.cli.usage_import.command import import_usage


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


schema_app = typer.Typer(help="Export the GraphQL schema, or check it against an older one.", no_args_is_help=True)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
events_app = typer.Typer(help="Export the JSON Schema of events.", no_args_is_help=True)
app.add_typer(schema_app, name="schema")
app.add_typer(events_app, name="events")
app.add_typer(keys_app, name="keys")
webhooks_app = typer.Typer(help="See what is sent to webhook endpoints.", no_args_is_help=True)
app.add_typer(webhooks_app, name="webhooks")

app.command(epilog="Example: tollgate serve --port 8080 --workers 2")(serve.serve)
app.command(epilog="Example: TOLLGATE_DATABASE_URL=postgresql+asyncpg://tollgate@db/tollgate tollgate migrate")(
    database.migrate
)
app.command(epilog="Example: tollgate demo")(demo.demo)
app.command("import", epilog="Example: tollgate import usage.jsonl.gz --org acme --environment live --create-meters")(
    import_usage
)
app.command(epilog="Example: tollgate verify --json")(database.verify)
app.command(epilog="Example: tollgate copy --to postgresql+asyncpg://tollgate@db.example.com/tollgate")(database.copy)
schema_app.command("export", epilog="Example: tollgate schema export -o schema.graphql")(schema.export)
schema_app.command("check", epilog="Example: tollgate schema check released.graphql")(schema.check)
events_app.command("schema", epilog="Example: tollgate events schema > events.schema.json")(events.schema)
keys_app.command(
    "create", epilog="Example: tollgate keys create --org acme --environment live --scope usage:write --expires 90d"
)(keys.create)
keys_app.command("list", epilog="Example: tollgate keys list --json")(keys.list_keys)
keys_app.command("revoke", epilog="Example: tollgate keys revoke key_019a…")(keys.revoke)
webhooks_app.command("listen", epilog="Example: tollgate webhooks listen --type ALERT_TRIGGERED")(webhooks.listen)
