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

from gateway import graphiql, rest
from gateway.auth import authenticate
from gateway.documents import TrustedDocuments
from gateway.graphql import graphql
from gateway.http import HTTPProblem, problem_response
from gateway.services import Services, collect_less_often
from gateway.settings import Settings
from resolvers.context import Clock, utc_now
from resolvers.errors import BillingError, Unavailable
from schema.root import schema
from storage import migrations
from storage.database import DatabaseUnavailable

_log = logging.getLogger(__name__)

#: How long a browser may remember what it may send from an allowed origin.
PREFLIGHT_SECONDS = 600


def create_app(settings: Settings, *, clock: Clock = utc_now) -> Starlette:
    """Return the application. Its database is opened when it starts and closed when it stops. Raises `BadManifest`."""
    documents = TrustedDocuments(settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        services = Services(settings, clock)
        app.state.services = services
        app.state.documents = documents
        try:
            yield
        finally:
            await services.close()

    return Starlette(
        routes=[
            Route("/graphql", graphql, methods=["GET", "POST"]),
            Route("/schema.graphql", schema_graphql),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            *rest.ROUTES,
            *(graphiql.routes() if settings.has_graphiql else ()),
        ],
        middleware=_middleware(settings),
        exception_handlers={
            HTTPProblem: problem_response,  # type: ignore[dict-item]  # Starlette types a handler by `Exception` alone.
            HTTPException: _http_exception,  # type: ignore[dict-item]
            BillingError: _refused,  # type: ignore[dict-item]
            DatabaseUnavailable: _unavailable,  # type: ignore[dict-item]
            Exception: _bug,
        },
        lifespan=lifespan,
    )


def _middleware(settings: Settings) -> list[Middleware]:
    """Return what stands around the routes and the answers to what goes wrong in them."""
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


def app_from_environment() -> Starlette:
    """Return the application that the environment's settings make, for a server that starts it by name."""
    settings = Settings.read()
    log_to_standard_error(settings)
    collect_less_often()
    return create_app(settings)


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
    await authenticate(request, services.api_keys)
    return PlainTextResponse(schema.as_str())


def _refused(request: Request, error: BillingError) -> Response:
    return problem_response(request, rest.problem_of(error))


def _unavailable(request: Request, error: DatabaseUnavailable) -> Response:
    _log.warning("The database is unavailable: %r", error.__cause__)
    return _refused(request, Unavailable(error.outcome))


def _http_exception(request: Request, error: HTTPException) -> Response:
    problem = HTTPProblem(error.status_code, error.detail, headers=dict(error.headers or {}))
    return problem_response(request, problem)


def _bug(request: Request, error: Exception) -> Response:
    request_id = secrets.token_hex(8)
    _log.error("Request %s failed", request_id, exc_info=error)
    return problem_response(
        request, HTTPProblem(500, f"Internal server error; its id is {request_id}.", code="INTERNAL_SERVER_ERROR")
    )
