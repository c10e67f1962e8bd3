"""Requests for credits: the event of one that is closed is no longer sent.

Payment providers forget idempotency keys in time, so that a card could be charged for it once more.
"""

from collections.abc import Iterable
from datetime import datetime

import orjson

from storage import ids
from storage.engine.transactions import Reader
from storage.meters import auto_refills
from storage.meters.events import EventRow, EventType


async def closed_requests(reader: Reader, found: Iterable[EventRow], *, now: datetime) -> set[tuple[str, int]]:
    """Return which of the events, by owner and number, ask for credits by a request that is closed."""
    asking = {
        (event.owner_id, event.number): ids.parse_numbered_id(
            orjson.loads(event.payload)["data"]["refill"]["requestId"], ids.AUTO_REFILL_REQUEST
        )
        for event in found
        if event.type is EventType.REFILL_REQUESTED
    }
    if not asking:
        return set()
    requests = await auto_refills.by_numbers(reader, sorted({place for place in asking.values() if place is not None}))
    return {
        event
        for event, place in asking.items()
        if place is None or place not in requests or not requests[place].at(now).is_open
    }
