"""The usage writer without the GraphQL layer: what recording costs below it.

The same handlers as the limit's, over `resolvers.meters`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.http.auth import authenticate
from gateway.services import Services, collect_less_often
from gateway.settings import Settings
from resolvers.actor import Actor
from resolvers.errors import Refusal
from resolvers.meters.holds import commit_hold, hold_credits
from resolvers.meters.record_usage import RecordUsage
from resolvers.rules.balances import available_credits
from resolvers.rules.commands import Decision
from resolvers.values import parse_amount


def create_app() -> Starlette:
    """Return the application on the database that `TOLLGATE_DATABASE_URL` names."""
    collect_less_often()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        services = Services(Settings.read())
        app.state.services = services
        try:
            yield
        finally:
            await services.close()

    return Starlette(
        routes=[
            Route("/record", record, methods=["POST"]),
            Route("/batch", batch, methods=["POST"]),
            Route("/hold", hold, methods=["POST"]),
            Route("/commit", commit, methods=["POST"]),
        ],
        lifespan=lifespan,
    )


async def record(request: Request) -> Response:
    """Record one usage event."""
    services: Services = request.app.state.services
    actor = await authenticate(request.scope, services.api_keys)
    (result,) = await services.meter_writer.submit([_event(actor, orjson.loads(await request.body()))])
    return Response(orjson.dumps(_result(result)), media_type="application/json")


async def batch(request: Request) -> Response:
    """Record up to 1,000 usage events in one transaction."""
    services: Services = request.app.state.services
    actor = await authenticate(request.scope, services.api_keys)
    events = [_event(actor, values) for values in orjson.loads(await request.body())]
    results = await services.meter_writer.submit(events)
    return Response(orjson.dumps([_result(result) for result in results]), media_type="application/json")


async def hold(request: Request) -> Response:
    """Hold credits."""
    return await _change(request, hold_credits)


async def commit(request: Request) -> Response:
    """Commit a hold."""
    return await _change(request, commit_hold)


async def _change(request: Request, change: Callable[..., Awaitable[Decision]]) -> Response:
    services: Services = request.app.state.services
    actor = await authenticate(request.scope, services.api_keys)
    values = orjson.loads(await request.body())
    usage_name = {"usage_name": values["usageName"]} if "usageName" in values else {}
    try:
        result: Decision | Refusal = await change(
            services.context(actor),
            workspace_id=values["workspaceId"],
            external_meter_id=values["externalMeterId"],
            hold_id=values["holdId"],
            amount=parse_amount(values["amount"]),
            **usage_name,
        )
    except Refusal as refusal:
        result = refusal
    return Response(orjson.dumps(_result(result)), media_type="application/json")


def _event(actor: Actor, values: dict[str, Any]) -> RecordUsage:
    return RecordUsage.of(
        actor,
        workspace_id=values["workspaceId"],
        external_meter_id=values["externalMeterId"],
        event_id=values["eventId"],
        amount=parse_amount(values["amount"]),
        usage_name=values["usageName"],
    )


def _result(result: Decision | Refusal) -> dict[str, Any]:
    if isinstance(result, Refusal):
        return {"code": result.code}
    meter = result.billing_meter
    available = available_credits(meter.limit_credits, meter.used_credits, meter.held_credits)
    hold = {} if result.hold is None else {"hold": {"amount": str(result.hold.amount)}}
    return hold | {
        "accepted": str(result.accepted),
        "replayed": result.replayed,
        "entry": {"seq": result.entry.seq if result.entry is not None else None},
        "billingMeter": {
            "id": meter.id,
            "totalCredits": str(meter.total_credits),
            "usedCredits": str(meter.used_credits),
            "availableCredits": str(available) if available is not None else None,
        },
    }
