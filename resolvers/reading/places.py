"""Where meters lie on a database of several machines: see `storage.engine.buckets`."""

from collections.abc import Sequence

from storage import ids
from storage.engine.database import Database
from storage.meters import billing_meters


async def locate(database: Database, meter_ids: Sequence[str]) -> Sequence[int]:
    """Return the bucket of each meter. Where an id does not say it, it is looked up, on all machines.

    A meter that does not exist may be anywhere. In a meter's place there may be a webhook endpoint, whose events are
    asked for.
    """
    buckets = database.buckets
    if buckets.is_one:
        return buckets.values * len(meter_ids)
    places = [
        buckets.of_names([id_]) if id_.startswith(ids.WEBHOOK_ENDPOINT) else buckets.of_bits(ids.bits_of_meter(id_))
        for id_ in meter_ids
    ]
    unsaid = [meter_id for meter_id, place in zip(meter_ids, places, strict=True) if place is None]
    found: dict[str, int] = {}
    if unsaid:
        async with database.read() as reader:
            found = await billing_meters.buckets_of(reader, unsaid)
    return [
        found.get(meter_id, buckets.values[0]) if place is None else place
        for meter_id, place in zip(meter_ids, places, strict=True)
    ]
