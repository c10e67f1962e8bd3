"""Webhook endpoints, as clients read them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, cast

import strawberry

from resolvers.context import Context
from resolvers.values import NAME_LENGTH
from resolvers.webhooks.addresses import MAX_URL
from resolvers.webhooks.endpoints import MAX_WORKSPACES, list_endpoints
from schema.engine.execution.resolving import DIRECT, batched
from schema.engine.limits.sizes import of_bytes, text, text_bytes
from schema.enums import EventType, WebhookDeliveryState
from schema.info import Info, given
from schema.meters.webhook_deliveries import WebhookDelivery, deliveries_of_endpoints
from schema.relay import PAGE, After, Before, Connection, First, Last, Node, connection_of, page_arguments
from storage import ids
from storage.meters import events
from storage.webhook_endpoints import WebhookEndpointRow


async def _types_of(_context: Context, endpoints: Sequence["WebhookEndpoint"]) -> list[list[EventType]]:
    """Return the types that each endpoint wants, in the order of the enum."""
    rows = cast("Sequence[WebhookEndpointRow]", endpoints)
    return [[member for member in EventType if events.EventType[member.name] in row.types] for row in rows]


async def _deliveries_of(
    context: Context,
    endpoints: Sequence["WebhookEndpoint"],
    first: First = strawberry.UNSET,
    after: After = strawberry.UNSET,
    last: Last = strawberry.UNSET,
    before: Before = strawberry.UNSET,
    state: Annotated[
        WebhookDeliveryState | None,
        strawberry.argument(description="Only deliveries in this state; left out: of all states. Null is refused."),
    ] = strawberry.UNSET,
) -> list[Connection[WebhookDelivery]]:
    """Return a page of each endpoint's deliveries."""
    arguments = page_arguments(context, ids.WEBHOOK_DELIVERY, first, after, last, before)
    return await deliveries_of_endpoints(
        context, cast("Sequence[WebhookEndpointRow]", endpoints), arguments, given(state)
    )


@strawberry.type(description="An address that events are sent to, by Standard Webhooks.")
class WebhookEndpoint(Node, record=WebhookEndpointRow):
    """See `storage.webhook_endpoints.WebhookEndpointRow`."""

    url: str = strawberry.field(description="Where events are sent to.", metadata=of_bytes(MAX_URL + 2))
    types: list[EventType] = batched(
        _types_of,
        description="The types of the events that it gets; empty: all.",
        metadata=of_bytes(max(map(len, EventType.__members__)) + 3, items=len(EventType)),
    )
    workspace_ids: list[str] | None = strawberry.field(
        description="The workspaces whose events it gets; null: all.",
        metadata=of_bytes(text_bytes(NAME_LENGTH), items=MAX_WORKSPACES),
    )
    is_enabled: bool = strawberry.field(description="Whether events are sent to it.")
    disabled_reason: str | None = strawberry.field(
        description="Why nothing is sent to it, for people; null: it is enabled.", metadata=text(NAME_LENGTH)
    )
    description: str | None = strawberry.field(
        description="What the caller says of it; null: nothing.", metadata=text(NAME_LENGTH)
    )
    secret_generation: int = strawberry.field(
        description="The number of its newest secret: 1, and one more with each rotation."
    )
    created_at: datetime = strawberry.field(description="When it was made.")

    deliveries: Connection[WebhookDelivery] = batched(
        _deliveries_of, description="What was or is to be sent to it, newest first.", metadata=PAGE
    )


@strawberry.type
class WebhookQuery:
    """The queries of webhooks."""

    @strawberry.field(
        description="The webhook endpoints, newest first. A customer's session may not see them.",
        metadata=DIRECT | PAGE,
    )
    async def webhook_endpoints(
        self,
        info: Info,
        first: First = strawberry.UNSET,
        after: After = strawberry.UNSET,
        last: Last = strawberry.UNSET,
        before: Before = strawberry.UNSET,
    ) -> Connection[WebhookEndpoint]:
        """Return a page of the endpoints."""
        arguments = page_arguments(info.context, ids.WEBHOOK_ENDPOINT, first, after, last, before)
        rows = await list_endpoints(info.context, arguments.page)
        return connection_of(arguments, rows, WebhookEndpoint, id_of=lambda row: row.id)
