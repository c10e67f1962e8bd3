"""The application: routes, the answers to what goes wrong before GraphQL, and what lives as long as the process."""

import logging
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import email_validator  # noqa: F401  # The rules import it late, for the commands; no request is to wait for it.
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import graphiql, rest
from gateway.auth import authenticate
from gateway.documents import TrustedDocuments
from gateway.draining import Draining
from gateway.graphql import GraphQL
from gateway.http import HTTPProblem, send_problem
from gateway.services import Services, collect_less_often
from gateway.settings import Settings
from resolvers.context import Clock, utc_now
from resolvers.errors import BillingError, Unavailable
from schema.root import schema
from storage import migrations
from storage.database import DatabaseUnavailable

_log = logging.getLogger(__name__)

GRAPHQL_PATH = "/graphql"

#: How long a browser may remember what it may send from an allowed origin.
PREFLIGHT_SECONDS = 600


def create_app(settings: Settings, *, clock: Clock = utc_now) -> Starlette:
    """Return the application. Its database is opened when it starts and closed when it stops. Raises `BadManifest`."""
    graphql = GraphQL(TrustedDocuments(settings))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        services = Services(settings, clock)
        app.state.services = services
        try:
            yield
        finally:
            await services.close()

    return Starlette(
        routes=[
            # The front goes by the path alone; this leads from the path with a slash at its end to the one without.
            Route(GRAPHQL_PATH, graphql),
            Route("/schema.graphql", schema_graphql),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            *rest.ROUTES,
            *(graphiql.routes() if settings.has_graphiql else ()),
        ],
        middleware=[*_middleware(settings), Middleware(Front, graphql=graphql)],
        exception_handlers={HTTPException: _left_to_the_front},
        lifespan=lifespan,
    )


def _middleware(settings: Settings) -> list[Middleware]:
    """Return what stands around the front, and so around every answer."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=frozenset(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "idempotency-key"],
            # A page is told by its token alone: cookies are neither read nor set.
            allow_credentials=False,
            # When to come again, and what a kept answer is asked for by.
            expose_headers=["retry-after", "etag"],
            max_age=PREFLIGHT_SECONDS,
        )
    ]


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
        is_begun = False

        async def send_noted(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        lead_to = self._graphql if scope["path"] == GRAPHQL_PATH else self._routes
        try:
            await lead_to(scope, receive, send_noted)
        except Exception as error:
            if is_begun:
                raise
            await send_problem(scope, send, _problem_of(error))


def app_from_environment() -> ASGIApp:
    """Return the application that the environment's settings make, for a server that starts it by name."""
    settings = Settings.read()
    log_to_standard_error(settings)
    collect_less_often()
    app = create_app(settings)
    return Draining(app, seconds=settings.drain_seconds) if settings.drain_seconds else app


def log_to_standard_error(settings: Settings) -> None:
    """Send the process's log to standard error."""
    level = settings.log_level.upper()
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s: %(name)s: %(message)s")
    # These tell of every statement and of every plugin they load, to nobody's use.
    for name in ("aiosqlite", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


async def healthz(_request: Request) -> Response:
    """Tell that the process runs."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Tell whether requests can be served: the database answers, and has this code's schema or a later release's."""
    services: Services = request.app.state.services
    try:
        may_serve = await migrations.may_serve(services.database)
    except DatabaseUnavailable:
        return JSONResponse({"status": "unavailable", "reason": "The database cannot be reached."}, 503)
    if not may_serve:
        return JSONResponse(
            {"status": "unavailable", "reason": "The database has another schema: run `tollgate migrate`."}, 503
        )
    return JSONResponse({"status": "ready"})


async def schema_graphql(request: Request) -> Response:
    """Answer the schema in GraphQL's definition language, to whoever holds a key."""
    services: Services = request.app.state.services
    await authenticate(request.scope, services.api_keys)
    return PlainTextResponse(schema.as_str())


def _left_to_the_front(_request: Request, error: Exception) -> Response:
    raise error


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
            _log.warning("The database is unavailable: %r", error.__cause__)
            return rest.problem_of(Unavailable(error.outcome))
    request_id = secrets.token_hex(8)
    _log.error("Request %s failed", request_id, exc_info=error)
    return HTTPProblem(500, f"Internal server error; its id is {request_id}.", code="INTERNAL_SERVER_ERROR")
