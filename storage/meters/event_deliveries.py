"""Which events of a range an endpoint is to be sent again: events with their deliveries to it."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import or_, select

from storage import ids
from storage.engine.pages import unindexed
from storage.engine.transactions import Reader
from storage.meters.events import EventRow, EventType, events
from storage.meters.webhook_deliveries import DeliveryState, webhook_deliveries
from storage.tenants import Environment

_COLUMNS = [events.c[name] for name in EventRow._fields]


class EventRange(NamedTuple):
    """The events of [from, before) that an endpoint wants.

    Of those that it was sent, they are the ones that have come to an end, and were last opened before a moment.
    """

    endpoint_id: str
    org_id: str
    environment: Environment
    types: Sequence[str]
    workspace_ids: Sequence[str] | None
    from_: datetime
    before: datetime
    is_undelivered: bool
    opened_before: datetime


async def to_redeliver(reader: Reader, wanted: EventRange, *, limit: int) -> Sequence[EventRow]:
    """Return so many of the events in the reader's bucket, the oldest first."""
    sent = webhook_deliveries
    is_of_event = (
        (sent.c.bucket == events.c.bucket)
        & (sent.c.owner_id == events.c.owner_id)
        & (sent.c.number == events.c.number)
        & (sent.c.endpoint_id == wanted.endpoint_id)
    )
    states = [DeliveryState.FAILED, *([] if wanted.is_undelivered else [DeliveryState.DELIVERED])]
    # By the index of (tenant, position).
    statement = (
        select(*_COLUMNS)
        .outerjoin(sent, is_of_event)
        .where(
            events.c.bucket == reader.bucket,
            events.c.org_id == wanted.org_id,
            events.c.environment == wanted.environment,
            events.c.position >= ids.event_position(wanted.from_, "", 0),
            events.c.position < ids.event_position(wanted.before, "", 0),
            or_(sent.c.id.is_(None), sent.c.state.in_(states) & (sent.c.opened_at < wanted.opened_before)),
        )
        .order_by(events.c.position)
        .limit(limit)
    )
    type_ = unindexed(events.c.type, reader.dialect)
    # A test was for one endpoint, and at its time.
    statement = statement.where(type_ != EventType.WEBHOOK_TEST.value, events.c.owner_id != wanted.endpoint_id)
    if wanted.types:
        statement = statement.where(type_.in_(wanted.types))
    if wanted.workspace_ids is not None:
        statement = statement.where(unindexed(events.c.workspace_id, reader.dialect).in_(wanted.workspace_ids))
    rows = map(EventRow._make, await reader.fetch(statement))
    return [row._replace(type=EventType(row.type)) for row in rows]
