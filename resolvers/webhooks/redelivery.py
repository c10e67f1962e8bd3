"""Sending again what was sent already, or never was; and sending a test."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from resolvers.context import Context
from resolvers.errors import EventNotFound, InvalidInput, WebhookEndpointNotFound
from resolvers.reading.places import locate
from resolvers.reading.seeing import sees
from resolvers.webhooks.claims import new_delivery
from resolvers.webhooks.endpoints import lock_seen, require_webhooks
from resolvers.webhooks.outcomes import endpoint_shown, own_event
from resolvers.webhooks.requests import closed_requests
from storage import ids, webhook_endpoints
from storage.engine.transactions import Writer
from storage.meters import event_deliveries, events, webhook_deliveries
from storage.meters.event_deliveries import EventRange
from storage.meters.events import EventRow, EventType
from storage.meters.webhook_deliveries import DeliveryRow, DeliveryState
from storage.webhook_endpoints import WebhookEndpointRow

#: How many events of a range are scheduled at once.
MAX_SCHEDULED = 1_000

#: What was opened so short a time ago is left out of a range, so that asking again goes on where the last one ended.
RECENT = timedelta(minutes=10)


class Tested(NamedTuple):
    """A test event, and its delivery."""

    event: EventRow
    delivery: DeliveryRow


class Scheduled(NamedTuple):
    """How many events are to be sent again, and whether there are more."""

    scheduled: int
    has_more: bool


async def send_test_event(context: Context, *, endpoint_id: str) -> Tested:
    """Send an event to one endpoint that says nothing has happened; to one that is disabled it fails at once.

    Raises `Forbidden` and `WebhookEndpointNotFound`, in this order.
    """
    webhooks = require_webhooks(context)

    async def test(writer: Writer) -> Tested:
        await writer.go_one_by_one()
        now = context.clock()
        found = await lock_seen(writer, context.actor, endpoint_id)
        endpoint = found._replace(last_event=found.last_event + 1)
        await webhook_endpoints.update_endpoint(writer, endpoint)
        event = own_event(endpoint, EventType.WEBHOOK_TEST, endpoint_shown(endpoint), now)
        delivery = new_delivery(event, endpoint, now)
        if not endpoint.is_enabled:
            delivery = delivery._replace(state=DeliveryState.FAILED, next_attempt_at=None)
        await events.insert_events(writer, [event])
        await webhook_deliveries.insert_deliveries(writer, [delivery])
        return Tested(event, delivery)

    tested = await context.database.write(test, bucket=context.database.buckets.of_names([endpoint_id]))
    context.forget()
    webhooks.wake()
    return tested


async def redeliver_event(context: Context, *, endpoint_id: str, event_id: str) -> Scheduled:
    """Send an event to an endpoint again, whatever has become of it before.

    Raises `Forbidden`, `WebhookEndpointNotFound`, `InvalidInput` and `EventNotFound`, in this order, and `InvalidInput`
    for a request for credits that is closed.
    """
    webhooks = require_webhooks(context)
    endpoint = await _enabled(context, endpoint_id)
    place = ids.parse_event_id(event_id)
    if place is None:
        raise EventNotFound
    (bucket,) = await locate(context.database, [place[0]])

    async def redeliver(writer: Writer) -> None:
        event = (await events.by_ids(writer, [place])).get(place)
        if event is None or not _may_get(endpoint, event):
            raise EventNotFound
        if await closed_requests(writer, [event], now=context.clock()):
            raise InvalidInput("eventId", "is of a request for credits that is closed, and no longer sent.")
        await _open(writer, [event], endpoint=endpoint, now=context.clock())

    await context.database.write(redeliver, bucket=bucket, is_repeatable=True)
    context.forget()
    webhooks.wake()
    return Scheduled(1, has_more=False)


async def redeliver_range(
    context: Context, *, endpoint_id: str, from_: datetime, before: datetime, undelivered_only: bool
) -> Scheduled:
    """Send the events of a range to an endpoint again, of the types that it wants, the oldest first.

    What is pending is left alone, and so is what was opened in the last minutes: asking again goes on.

    Raises `InvalidInput`, `Forbidden` and `WebhookEndpointNotFound`, in this order, and `InvalidInput` for an endpoint
    that is disabled.
    """
    if from_ >= before:
        raise InvalidInput("before", "must be after from.")
    webhooks = require_webhooks(context)
    endpoint = await _enabled(context, endpoint_id)
    now, buckets = context.clock(), context.database.buckets
    wanted = EventRange(
        endpoint.id,
        *(endpoint.org_id, endpoint.environment, endpoint.types, endpoint.workspace_ids),
        *(from_, before, undelivered_only, now - RECENT),
    )
    found: list[tuple[int, EventRow]] = []
    for bucket in buckets.values:
        async with context.database.read(bucket) as reader:
            rows = await event_deliveries.to_redeliver(reader, wanted, limit=MAX_SCHEDULED + 1)
        found += [(bucket, row) for row in rows]
    chosen = sorted(found, key=lambda each: each[1].position)[:MAX_SCHEDULED]
    for bucket in buckets.values:
        if rows := [row for place, row in chosen if place == bucket]:
            work = partial(_open, opened=rows, endpoint=endpoint, now=now)
            await context.database.write(work, bucket=bucket, is_repeatable=True)
    context.forget()
    webhooks.wake()
    return Scheduled(len(chosen), has_more=len(found) > MAX_SCHEDULED)


async def _enabled(context: Context, endpoint_id: str) -> WebhookEndpointRow:
    """Return an enabled endpoint that the actor may see. Raises `WebhookEndpointNotFound`, and `InvalidInput`."""
    async with context.database.read() as reader:
        found = (await webhook_endpoints.by_ids(reader, [endpoint_id])).get(endpoint_id)
    if found is None or not sees(context.actor, found):
        raise WebhookEndpointNotFound
    if not found.is_enabled:
        raise InvalidInput("endpointId", "is of an endpoint that is disabled; enable it first.")
    return found


def _may_get(endpoint: WebhookEndpointRow, event: EventRow) -> bool:
    """Whether the endpoint may be sent the event, also where it does not want its type."""
    if (event.org_id, event.environment) != (endpoint.org_id, endpoint.environment):
        return False
    if event.type is EventType.WEBHOOK_TEST:
        return event.owner_id == endpoint.id
    return endpoint.may_know(event.workspace_id)


async def _open(writer: Writer, opened: Sequence[EventRow], *, endpoint: WebhookEndpointRow, now: datetime) -> None:
    """Make deliveries of these events pending, those that there are not yet, too; not of requests that are closed."""
    closed = await closed_requests(writer, opened, now=now)
    opened = [event for event in opened if (event.owner_id, event.number) not in closed]
    keys = [(event.owner_id, event.number) for event in opened]
    known = [row.id for row in await webhook_deliveries.of_events(writer, keys) if row.endpoint_id == endpoint.id]
    locked = await webhook_deliveries.lock(writer, sorted(known))
    reopened = [
        row._replace(state=DeliveryState.PENDING, tries=0, next_attempt_at=now, claimed_by=None, opened_at=now)
        for row in locked.values()
    ]
    if reopened:
        await webhook_deliveries.update_deliveries(writer, reopened)
    is_known = {row.event for row in reopened}
    made = [new_delivery(event, endpoint, now) for event in opened if (event.owner_id, event.number) not in is_known]
    if made:
        await webhook_deliveries.insert_deliveries(writer, sorted(made, key=attrgetter("id")))
