"""Giving new events to the endpoints that want them, and claiming what is due.

A claim is committed before anything is sent under it. It lasts for `LEASE_SECONDS`; from then on another gateway may
claim the same delivery.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from resolvers.webhooks.requests import closed_requests
from storage import ids, webhook_endpoints
from storage.engine.buckets import bits_of
from storage.engine.transactions import Writer
from storage.meters import events, new_events, webhook_deliveries
from storage.meters.events import EventRow, EventType
from storage.meters.webhook_deliveries import DeliveryRow, DeliveryState
from storage.webhook_endpoints import WebhookEndpointRow

#: How long a claim lasts.
LEASE_SECONDS = 20

#: How many events are given at once.
EVENTS_AT_ONCE = 100


class Claimed(NamedTuple):
    """A delivery that is claimed, with all that an attempt needs."""

    delivery: DeliveryRow
    endpoint: WebhookEndpointRow
    event: EventRow
    claim: str
    bucket: int


class Claims(NamedTuple):
    """What a transaction has claimed.

    `left` are the endpoints that more is due for. `events` are how many were given to the endpoints.
    """

    claimed: list[Claimed]
    left: set[str]
    events: int = 0


#: Returns how many more deliveries may be claimed for an endpoint now.
Room = Callable[[str], int]


async def give_new(writer: Writer, *, now: datetime, room: Room) -> Claims:
    """Give some of the bucket's new events to the endpoints that want them, and claim as many as there is room for."""
    new = await new_events.lock_some(writer, limit=EVENTS_AT_ONCE)
    if not new:
        return Claims([], set())
    claim, rooms = new_claim(), _Rooms(room, writer.bucket)
    of_tenants = await webhook_endpoints.enabled_of(writer, {(event.org_id, event.environment) for event in new})
    closed = await closed_requests(writer, new, now=now)
    made = [
        rooms.put(new_delivery(event, endpoint, now), endpoint, event, claim)
        for event in new
        for endpoint in of_tenants.get((event.org_id, event.environment), ())
        if is_for(event, endpoint) and (event.owner_id, event.number) not in closed
    ]
    if made:
        await webhook_deliveries.insert_deliveries(writer, made)
    await new_events.mark_given(writer, new)
    return Claims(rooms.claimed, rooms.left, len(new))


def is_for(event: EventRow, endpoint: WebhookEndpointRow) -> bool:
    """Whether the endpoint is given the new event. A test is given to its own when it is made, and to no other one."""
    if event.type is EventType.WEBHOOK_TEST or event.owner_id == endpoint.id:
        return False
    return endpoint.wants(event.type, event.workspace_id)


def new_delivery(event: EventRow, endpoint: WebhookEndpointRow, now: datetime) -> DeliveryRow:
    """Return a new delivery, which is due at once."""
    is_of_meter = event.owner_id.startswith(ids.BILLING_METER)
    bits = ids.bits_of_meter(event.owner_id) if is_of_meter else bits_of([event.owner_id])
    return DeliveryRow(
        id=ids.new_delivery_id(bits),
        endpoint_id=endpoint.id,
        owner_id=event.owner_id,
        number=event.number,
        state=DeliveryState.PENDING,
        attempts=[],
        tries=0,
        next_attempt_at=now,
        claimed_by=None,
        opened_at=now,
        created_at=now,
    )


class _Rooms:
    """Claims deliveries as long as there is room for their endpoints."""

    def __init__(self, room: Room, bucket: int) -> None:
        self.claimed: list[Claimed] = []
        self.left: set[str] = set()
        self._room = room
        self._bucket = bucket
        self._rooms: dict[str, int] = {}

    def put(self, delivery: DeliveryRow, endpoint: WebhookEndpointRow, event: EventRow, claim: str) -> DeliveryRow:
        """Return the delivery, claimed where there is room."""
        left = self._rooms.setdefault(endpoint.id, self._room(endpoint.id))
        if left <= 0:
            self.left.add(endpoint.id)
            return delivery
        self._rooms[endpoint.id] = left - 1
        claimed = claimed_by(delivery, claim, delivery.opened_at)
        self.claimed.append(Claimed(claimed, endpoint, event, claim, self._bucket))
        return claimed


def new_claim() -> str:
    """Return what one transaction's claims are known by."""
    return secrets.token_hex(8)


def claimed_by(delivery: DeliveryRow, claim: str, now: datetime) -> DeliveryRow:
    """Return the delivery as it is claimed: due again when the claim ends."""
    return delivery._replace(claimed_by=claim, next_attempt_at=now + timedelta(seconds=LEASE_SECONDS))


async def claim_due(writer: Writer, rooms: Mapping[str, int], *, now: datetime) -> Claims:
    """Claim what is due for these endpoints in the bucket, of each as much as there is room for.

    What is due for an endpoint that is disabled fails, and of one that is deleted is deleted.
    """
    claim, left = new_claim(), set()
    endpoints = await webhook_endpoints.by_ids(writer, rooms)
    found: list[DeliveryRow] = []
    for endpoint_id, room in sorted(rooms.items()):
        endpoint = endpoints.get(endpoint_id)
        if endpoint is None:
            if await webhook_deliveries.delete_some_of(writer, endpoint_id, limit=EVENTS_AT_ONCE):
                left.add(endpoint_id)
        elif not endpoint.is_enabled:
            await webhook_deliveries.fail_pending_of(writer, endpoint_id)
        else:
            due = await webhook_deliveries.lock_due(writer, endpoint_id, now=now, limit=room)
            found += due
            if len(due) == room:
                left.add(endpoint_id)
    if not found:
        return Claims([], left)
    of_events = await events.by_ids(writer, sorted({row.event for row in found}))
    for closed in await closed_requests(writer, of_events.values(), now=now):
        del of_events[closed]
    rows = [claimed_by(row, claim, now) for row in found]
    await webhook_deliveries.update_deliveries(writer, _with_events(rows, of_events))
    return Claims(
        [
            Claimed(row, endpoints[row.endpoint_id], of_events[row.event], claim, writer.bucket)
            for row in rows
            if row.event in of_events
        ],
        left,
    )


def _with_events(rows: Sequence[DeliveryRow], found: Mapping[tuple[str, int], EventRow]) -> list[DeliveryRow]:
    """Return the rows as they are written: one whose event is no longer kept, or no longer sent, has failed."""
    return [
        row if row.event in found else row._replace(state=DeliveryState.FAILED, next_attempt_at=None, claimed_by=None)
        for row in rows
    ]


async def let_go(writer: Writer, claimed: Sequence[Claimed], *, now: datetime) -> None:
    """Make deliveries of one bucket due again that were claimed and not sent in time."""
    locked = await webhook_deliveries.lock(writer, sorted(each.delivery.id for each in claimed))
    claims = {each.delivery.id: each.claim for each in claimed}
    own = [
        row._replace(claimed_by=None, next_attempt_at=now)
        for row in locked.values()
        if row.is_claimed_by(claims[row.id])
    ]
    if own:
        await webhook_deliveries.update_deliveries(writer, own)
