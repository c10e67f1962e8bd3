"""`tollgate serve`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.markup import escape

from gateway.cli.console import fail, out
from gateway.cli.demo import print_key_file, seed_demo
from gateway.cli.running import read_settings, run
from gateway.services import Services
from gateway.settings import Settings, variable_of


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
        key = run(seed_demo, settings) if settings.is_demo else run(nothing, settings)
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
        print_key_file(settings)


@contextmanager
def _shared_figures(settings: Settings) -> Iterator[None]:
    """Make the folder in which several processes leave their figures for `/metrics`, unless one is set."""
    if settings.metrics_token is None or settings.metrics_folder is not None or settings.workers == 1:
        yield
        return
    with TemporaryDirectory(prefix="tollgate-metrics-", ignore_cleanup_errors=True) as folder:
        os.environ[variable_of("metrics_folder")] = folder
        yield


async def nothing(_services: Services) -> None:
    """Only bring the database up to date."""


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
