"""Events: the list of them."""

from collections.abc import Sequence

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.errors import InvalidInput
from resolvers.reading.places import locate
from storage import ids
from storage.engine.pages import Page
from storage.meters import events
from storage.meters.events import EventFilter, EventRow, EventType


async def list_events(
    context: Context, page: Page, *, types: Sequence[EventType] | None, billing_meter_id: str | None
) -> Sequence[EventRow]:
    """Return a page of the events that the actor may see, and one more row where there is one.

    Raises `Forbidden`, and `InvalidInput` for no type at all.
    """
    actor = context.actor
    if types is not None and not types:
        raise InvalidInput("types", "must have 1 item or more; leave it out for all types.")
    actor.require(Scope.BILLING_READ)
    actor.require_organization()
    bucket = 0
    if billing_meter_id is not None:
        if not ids.is_id(billing_meter_id, ids.BILLING_METER):
            return []
        (bucket,) = await locate(context.database, [billing_meter_id])
    async with context.database.read(bucket) as reader:
        return await events.page(
            reader,
            page,
            org_id=actor.org_id,
            environment=actor.environment,
            workspace_ids=actor.workspace_ids,
            wanted=EventFilter(None if types is None else tuple(types), billing_meter_id),
        )
