"""Events: what has happened, as it is sent to webhook endpoints."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, cast

import orjson
import strawberry
from strawberry.scalars import JSON

from resolvers.context import Context
from resolvers.meters.events import list_events
from schema.engine.execution.resolving import DIRECT, batched
from schema.engine.limits.sizes import AN_ID, of_bytes
from schema.enums import EventType
from schema.info import Info, given
from schema.meters.webhook_deliveries import WebhookDelivery, deliveries_of_events
from schema.relay import PAGE, After, Before, Connection, First, Last, Node, connection_of, page_arguments
from schema.scalars import BigInt
from storage import ids
from storage.meters import events
from storage.meters.events import EventRow

if TYPE_CHECKING:
    from schema.meters.billing_meters import BillingMeter

_MeterType = Annotated["BillingMeter", strawberry.lazy("schema.meters.billing_meters")]

#: How many bytes the body of an event has at most: what is long of it are names that callers have given.
BODY_BYTES = 8_192


async def _meters_of(context: Context, rows: Sequence["Event"]) -> list[_MeterType | None]:
    """Return the meter of each event, unless it is of none."""
    owners = [cast("EventRow", row).owner_id for row in rows]
    meter_ids = [id_ for id_ in owners if id_.startswith(ids.BILLING_METER)]
    found = dict(zip(meter_ids, await context.reading.billing_meter_by_id.load_many(meter_ids), strict=True))
    return [cast("BillingMeter | None", found.get(id_)) for id_ in owners]


async def _deliveries_of(
    context: Context,
    rows: Sequence["Event"],
    first: First = strawberry.UNSET,
    after: After = strawberry.UNSET,
    last: Last = strawberry.UNSET,
    before: Before = strawberry.UNSET,
) -> list[Connection[WebhookDelivery]]:
    """Return a page of each event's deliveries."""
    arguments = page_arguments(context, ids.WEBHOOK_DELIVERY, first, after, last, before)
    return await deliveries_of_events(context, cast("Sequence[EventRow]", rows), arguments)


def _id_of(root: EventRow) -> strawberry.ID:
    return strawberry.ID(root.id)


def _number_of(root: EventRow) -> BigInt | None:
    return BigInt(root.number) if root.owner_id.startswith(ids.BILLING_METER) else None


def _payload_of(root: EventRow) -> JSON:
    return cast("JSON", orjson.loads(root.payload))


@strawberry.type(description="Something that has happened. Events are kept for 90 days.")
class Event(Node, record=EventRow):
    """See `storage.meters.events.EventRow`."""

    id: strawberry.ID = strawberry.field(
        resolver=_id_of,
        description="The object's opaque id, unique among all objects. Webhooks have it as their `webhook-id`.",
        metadata=AN_ID,
    )
    type: EventType = strawberry.field(description="What has happened.")
    seq: BigInt | None = strawberry.field(
        description="The number of the meter's newest ledger entry then: of that which it is about, if it is about one."
    )
    number: BigInt | None = strawberry.field(
        resolver=_number_of, description="1, 2, 3 and so on of its meter; null: it is of no meter."
    )
    created_at: datetime = strawberry.field(description="When it was decided.")
    payload: JSON = strawberry.field(
        resolver=_payload_of,
        description="The body as it is sent: `type`, `timestamp` and `data`; amounts are decimal strings.",
        metadata=of_bytes(BODY_BYTES),
    )

    billing_meter: _MeterType | None = batched(
        _meters_of, description="The meter that it happened to; null: it is of no meter."
    )
    deliveries: Connection[WebhookDelivery] = batched(
        _deliveries_of, description="What was or is to be sent of it to webhook endpoints, newest first.", metadata=PAGE
    )


@strawberry.type
class EventQuery:
    """The queries of events."""

    @strawberry.field(
        description="What has happened, newest first. A customer's session may not ask for it.",
        metadata=DIRECT | PAGE,
    )
    async def events(
        self,
        info: Info,
        first: First = strawberry.UNSET,
        after: After = strawberry.UNSET,
        last: Last = strawberry.UNSET,
        before: Before = strawberry.UNSET,
        types: Annotated[
            list[EventType] | None, strawberry.argument(description="Only events of these types; left out: of all.")
        ] = strawberry.UNSET,
        billing_meter_id: Annotated[
            strawberry.ID | None, strawberry.argument(description="Only events of the meter of this id.")
        ] = strawberry.UNSET,
    ) -> Connection[Event]:
        """Return a page of the events."""
        arguments = page_arguments(info.context, ids.EVENT_POSITION, first, after, last, before)
        wanted = cast("list[events.EventType] | None", given(types))
        rows = await list_events(info.context, arguments.page, types=wanted, billing_meter_id=given(billing_meter_id))
        return connection_of(arguments, rows, Event, id_of=lambda row: row.position)
