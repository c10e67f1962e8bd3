"""What the commands print: results to standard output, all else to standard error.

Exit codes: 0 done; 1 not done, or something was refused; 2 the command line itself is wrong.
"""

import json
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

out = Console(soft_wrap=True, emoji=False)
err = Console(stderr=True, soft_wrap=True, emoji=False)


def fail(message: str, *, code: int = 1) -> NoReturn:
    """End the command with a message on standard error."""
    print_error(message)
    raise typer.Exit(code)


def print_error(message: str) -> None:
    """Print a message on standard error as one."""
    # What callers named may look like Rich's markup.
    err.print(f"[bold red]Error:[/] {escape(message)}", highlight=False)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object as a line on standard output."""
    typer.echo(json.dumps(value))
