"""The application: routes, the answers to what goes wrong before GraphQL, and what lives as long as the process."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import email_validator  # noqa: F401  # The rules import it late, for the commands; no request is to wait for it.
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http import rest
from gateway.http.auth import authenticate
from gateway.http.gate import Gate, SafeAnswers
from gateway.http.graphql import GraphQL
from gateway.http.messages import HTTPProblem, send_problem
from gateway.http.metrics import metrics_route
from gateway.http.trusted_documents import TrustedDocuments
from gateway.pages import graphiql
from gateway.server.draining import Draining
from gateway.services import Services, collect_less_often
from gateway.settings import Settings
from gateway.telemetry import logs
from gateway.telemetry.requests import REFUSED, Observed, Request, Statements, is_answered, redacted_path, words_of
from gateway.workers.alerts import following_alerts
from gateway.workers.places import following_buckets
from gateway.workers.sweeper import sweeping
from gateway.workers.webhooks.deliverer import delivering
from resolvers.context import Clock, utc_now
from resolvers.errors import BillingError, Forbidden, Unavailable
from resolvers.observation import current
from schema.engine.limits.document import NOT_INTROSPECTED, Limits
from schema.root import schema
from storage import migrations
from storage.engine.clocks import ClocksDiffer
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.failures import outages
from storage.tables import TABLES

if TYPE_CHECKING:
    from gateway.telemetry.metrics import Metrics
    from gateway.telemetry.tracing import Tracing

_log = logging.getLogger(__name__)

GRAPHQL_PATH = "/graphql"

#: How long a browser may remember what it may send from an allowed origin.
PREFLIGHT_SECONDS = 600

#: How long `/readyz` waits for the database.
READY_SECONDS = 2


def create_app(
    settings: Settings,
    *,
    clock: Clock = utc_now,
    request_log: Callable[[Request], None] | None = None,
    tracing: "Tracing | None" = None,
    sweeps: bool = True,
    delivers: bool = True,
) -> Starlette:
    """Return the application. Its database is opened when it starts and closed when it stops. Raises `BadManifest`.

    `request_log` takes every request that was answered. `tracing` is what the settings make, unless it is given.
    `sweeps` says whether what is due of meters is written although no command touches them, and what other gateways
    make for whole workspaces is known; `delivers` whether webhooks are sent.
    """
    documents = TrustedDocuments(settings)
    graphql = GraphQL(documents)
    statements = Statements()
    metrics = _metrics(settings, documents)
    tracing = tracing or _tracing(settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        services = Services(settings, clock, metrics)
        services.database.listen(begun=statements.begun, done=statements.done)
        app.state.services = services
        async with AsyncExitStack() as stack:
            if tracing is not None:
                stack.push_async_callback(asyncio.to_thread, tracing.close)
            if metrics is not None:
                await stack.enter_async_context(
                    metrics.watching(services, statements=statements, in_flight=lambda: observed.in_flight)
                )
            # Ended first, so that what it does last is reported, too.
            stack.push_async_callback(services.close)
            await stack.enter_async_context(following_buckets(services.database))
            if sweeps:
                await stack.enter_async_context(sweeping(services))
                await stack.enter_async_context(following_alerts(services))
            if delivers:
                await stack.enter_async_context(delivering(services))
            # The server has it for each of its connections.
            yield {REFUSED: observed.refused}

    app = Starlette(
        routes=[
            # The front goes by the path alone; this one is for what lists the routes, and behind a prefix.
            Route(GRAPHQL_PATH, graphql),
            Route("/schema.graphql", schema_graphql),
            Route("/healthz", healthz),
            Route("/readyz", Readiness().answer),
            *_metrics_routes(settings, metrics),
            *rest.ROUTES,
            *(graphiql.routes() if settings.has_graphiql else ()),
        ],
        lifespan=lifespan,
    )
    # It would name the address that this process is called by, which need not be the one that its clients call.
    app.router.redirect_slashes = False
    app.state.limits = documents.limits
    listeners = [each for each in (request_log, metrics.answered if metrics is not None else None) if each is not None]
    # Instead of all that Starlette puts around the routes: the front answers what goes wrong in them.
    gated = _with_cors(Gate(Front(app.router, graphql=graphql), settings), settings)
    app.middleware_stack = observed = Observed(
        WithoutSlash(SafeAnswers(gated)),
        words=words_of(route.path for route in app.routes if isinstance(route, Route | Mount)),
        listeners=listeners,
        tracing=tracing,
    )
    return app


def _metrics(settings: Settings, documents: TrustedDocuments) -> "Metrics | None":
    if settings.metrics_token is None:
        return None
    from gateway.telemetry.metrics import Metrics  # noqa: PLC0415  # Its library is not for those who do without.

    return Metrics(
        folder=settings.metrics_folder,
        operations=documents.operation_names,
        paths=[redacted_path(route.path, words_of(route.path for route in rest.ROUTES)) for route in rest.ROUTES],
    )


def _metrics_routes(settings: Settings, metrics: "Metrics | None") -> list[Route]:
    if metrics is None or settings.metrics_token is None:
        return []
    return [metrics_route(metrics, token=settings.metrics_token)]


def _tracing(settings: Settings) -> "Tracing | None":
    if not settings.is_traced:
        return None
    from gateway.telemetry.tracing import Tracing  # noqa: PLC0415  # Its library is an extra, which may not be there.

    return Tracing()


def _with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Return what lets pages of the allowed origins call the application, and read also that they were refused."""
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=frozenset(settings.cors_origins),
        allow_methods=["GET", "POST"],
        # Clients, tracers and monitors have headers of their own; a page that is let in may send what programs may.
        allow_headers=["*"],
        # A page is known by its token alone: cookies are neither read nor set.
        allow_credentials=False,
        # When to come again, what a kept answer is asked for by, and what the log calls the request.
        expose_headers=["retry-after", "etag", "x-request-id"],
        max_age=PREFLIGHT_SECONDS,
    )


class WithoutSlash:
    """Serves a path with a slash at its end as the one without."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass the request on."""
        path = scope.get("path", "")
        # Of "/" itself, also behind a prefix, the slash is the path.
        if path.endswith("/") and not path.endswith("//") and path[:-1] != scope.get("root_path", ""):
            scope = {**scope, "path": path[:-1]}
        return self._app(scope, receive, send)


class Front:
    """Leads GraphQL straight to its endpoint, all else to the routes, and answers what goes wrong in either."""

    def __init__(self, routes: ASGIApp, *, graphql: ASGIApp) -> None:
        self._routes = routes
        self._graphql = graphql

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        lead_to = self._graphql if scope["path"] == GRAPHQL_PATH else self._routes
        try:
            await lead_to(scope, receive, send)
        except Exception as error:  # Whatever is raised has an answer: a bug's is a masked 500.
            if is_answered(scope):
                raise
            problem = _problem_of(error)
            # The functions that the error passed through hold it, as it holds them: the request would stay in memory.
            error.with_traceback(None)
            await send_problem(scope, send, problem)


def app_from_environment() -> ASGIApp:
    """Return the application that the environment's settings make, for a server that starts it by name."""
    settings = Settings.read()
    request_log = logs.start(settings)
    collect_less_often()
    app = create_app(settings, request_log=request_log)
    return Draining(app, seconds=settings.drain_seconds) if settings.drain_seconds else app


async def healthz(_request: HTTPRequest) -> Response:
    """Answer that the process runs."""
    return JSONResponse({"status": "ok"})


class Readiness:
    """Whether requests can be served: the database can be written to, and has this code's schema or a later release's.

    Anybody may ask. So the database is asked once for all who wait, and an answer takes no longer than
    `READY_SECONDS`, also where the database holds it up for longer.
    """

    def __init__(self) -> None:
        self._asking: asyncio.Task[str | None] | None = None

    async def answer(self, request: HTTPRequest) -> Response:
        """Answer one who asks."""
        if self._asking is None or self._asking.done():
            services: Services = request.app.state.services
            self._asking = asyncio.create_task(_reason_to_wait(services.database))
        done, _ = await asyncio.wait({self._asking}, timeout=READY_SECONDS)
        reason = self._asking.result() if done else "The database does not answer."
        if reason is not None:
            return JSONResponse({"status": "unavailable", "reason": reason}, 503)
        return JSONResponse({"status": "ready"})


async def _reason_to_wait(database: Database) -> str | None:
    """Return why no request can be served now; None: they can."""
    try:
        may_serve = await migrations.may_serve(database)
    except DatabaseUnavailable as error:
        outages.log(error)
        return "The database cannot be reached."
    if not may_serve:
        return "The database has another schema: run `tollgate migrate`."
    try:
        await database.require_writable(TABLES)
    except DatabaseUnavailable as error:
        outages.log(error)
        if isinstance(error.__cause__, ClocksDiffer):
            return str(error.__cause__)
        return "The database cannot be written to."
    return None


async def schema_graphql(request: HTTPRequest) -> Response:
    """Answer the schema in GraphQL's definition language, to who may ask the schema about itself."""
    services: Services = request.app.state.services
    actor = await authenticate(request.scope, services.api_keys)
    limits: Limits = request.app.state.limits
    if not limits.may_introspect(actor):
        raise Forbidden(NOT_INTROSPECTED)
    return PlainTextResponse(schema.as_str())


def _problem_of(error: Exception) -> HTTPProblem:
    """Return how an exception is answered: a bug by an id alone, under which the log has the rest."""
    match error:
        case HTTPProblem():
            return error
        case HTTPException():
            return HTTPProblem(error.status_code, error.detail, headers=dict(error.headers or {}))
        case BillingError():
            return rest.problem_of(error)
        case DatabaseUnavailable():
            outages.log(error)
            return rest.problem_of(Unavailable(error.outcome))
    request_id = current.get().request_id
    _log.error("Request %s failed", request_id, exc_info=error)
    return HTTPProblem(500, f"Internal server error; its id is {request_id}.", code="INTERNAL_SERVER_ERROR")
