"""Webhook deliveries, as clients read them."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, cast

import strawberry

from resolvers.context import Context
from resolvers.reading.keys import DeliveriesOfEndpoint
from resolvers.values import NAME_LENGTH
from schema.engine.execution.resolving import batched
from schema.engine.limits.sizes import foreseen, text
from schema.enums import WebhookDeliveryState
from schema.relay import Connection, Node, PageArguments, connection_of
from storage.engine.pages import on_page
from storage.meters import webhook_deliveries
from storage.meters.events import EventRow
from storage.meters.webhook_deliveries import DeliveryRow, attempts_of
from storage.webhook_endpoints import WebhookEndpointRow

if TYPE_CHECKING:
    from schema.meters.events import Event
    from schema.webhooks.endpoints import WebhookEndpoint

_EndpointType = Annotated["WebhookEndpoint", strawberry.lazy("schema.webhooks.endpoints")]
_EventType = Annotated["Event", strawberry.lazy("schema.meters.events")]

#: How many attempts a delivery has as a rule.
FORESEEN_ATTEMPTS = 10


@strawberry.type(description="An attempt to deliver an event, and what came of it.")
class WebhookAttempt:
    """See `storage.meters.webhook_deliveries.Attempt`."""

    at: datetime = strawberry.field(description="When it began.")
    status: int | None = strawberry.field(
        description="The HTTP status that was answered, of which 200 to 299 deliver; null: there was no answer."
    )
    duration_ms: int = strawberry.field(description="How long it took, in milliseconds.")
    error: str | None = strawberry.field(
        description="What was wrong besides the status, for people; null: nothing.", metadata=text(NAME_LENGTH)
    )


async def _attempts_of(context: Context, deliveries: Sequence["WebhookDelivery"]) -> list[list[WebhookAttempt]]:
    """Return the attempts of each delivery."""
    found = [attempts_of(row) for row in cast("Sequence[DeliveryRow]", deliveries)]
    await context.admit_unforeseen(found, FORESEEN_ATTEMPTS)
    return [[WebhookAttempt(**attempt._asdict()) for attempt in attempts] for attempts in found]


async def _endpoints_of(context: Context, deliveries: Sequence["WebhookDelivery"]) -> list[_EndpointType]:
    """Return the endpoint of each delivery."""
    rows = cast("Sequence[DeliveryRow]", deliveries)
    found = await context.reading.webhook_endpoint_by_id.load_many([row.endpoint_id for row in rows])
    return cast("list[WebhookEndpoint]", found)


async def _events_of(context: Context, deliveries: Sequence["WebhookDelivery"]) -> list[_EventType]:
    """Return the event of each delivery."""
    rows = cast("Sequence[DeliveryRow]", deliveries)
    found = await context.reading.event_by_id.load_many([row.event for row in rows])
    return cast("list[Event]", found)


@strawberry.type(description="An event on its way to an endpoint. Deliveries are kept for 30 days.")
class WebhookDelivery(Node, record=DeliveryRow):
    """See `storage.meters.webhook_deliveries.DeliveryRow`."""

    state: WebhookDeliveryState = strawberry.field(description="What has become of it.")
    attempts: list[WebhookAttempt] = batched(
        _attempts_of,
        description="The attempts, oldest first, those of redeliveries among them; the newest 50 are kept.",
        metadata=foreseen(FORESEEN_ATTEMPTS),
    )
    next_attempt_at: datetime | None = strawberry.field(
        description=(
            "When it is attempted next; while it is being attempted, when it is again if the gateway dies; null: it is "
            "not pending."
        )
    )

    endpoint: _EndpointType = batched(_endpoints_of, description="The endpoint.")
    event: _EventType = batched(_events_of, description="The event.")


async def deliveries_of_endpoints(
    context: Context,
    endpoints: Sequence[WebhookEndpointRow],
    arguments: PageArguments,
    state: WebhookDeliveryState | None,
) -> list[Connection[WebhookDelivery]]:
    """Return a page of each endpoint's deliveries, newest first; of all states where none is given."""
    of_rows = None if state is None else webhook_deliveries.DeliveryState[state.name]
    keys = [DeliveriesOfEndpoint(endpoint.id, arguments.page, of_rows) for endpoint in endpoints]
    pages = await context.reading.deliveries_of_endpoint.load_many(keys)
    return [connection_of(arguments, rows, WebhookDelivery, id_of=lambda row: row.id) for rows in pages]


async def deliveries_of_events(
    context: Context, events: Sequence[EventRow], arguments: PageArguments
) -> list[Connection[WebhookDelivery]]:
    """Return a page of each event's deliveries, newest first."""
    found = await context.reading.deliveries_of_event.load_many([(row.owner_id, row.number) for row in events])
    pages = [on_page(arguments.page, rows, lambda row: row.id) for rows in found]
    return [connection_of(arguments, rows, WebhookDelivery, id_of=lambda row: row.id) for rows in pages]
