"""Reading all that `tollgate verify` holds against each other of automatic refills, of many meters at once."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select

from storage.engine.transactions import Reader
from storage.meters.auto_refills import AutoRefillRequestRow, AutoRefillRow, auto_refill_requests, auto_refills
from storage.meters.events import events


async def auto_refills_of(reader: Reader, meter_ids: Sequence[str]) -> dict[str, AutoRefillRow]:
    """Return the automatic refills of those of the meters that have one, by the meter's id."""
    columns = [auto_refills.c[name] for name in AutoRefillRow._fields]
    is_of_one = [auto_refills.c.bucket == reader.bucket, auto_refills.c.meter_id.in_(meter_ids)]
    rows = map(AutoRefillRow._make, await reader.fetch(select(*columns).where(*is_of_one)))
    return {row.meter_id: row for row in rows}


async def requests_of(reader: Reader, meter_ids: Sequence[str]) -> dict[str, list[AutoRefillRequestRow]]:
    """Return all requests of each meter's automatic refill, by its id."""
    found: dict[str, list[AutoRefillRequestRow]] = {meter_id: [] for meter_id in meter_ids}
    requests = auto_refill_requests
    columns = [requests.c[name] for name in AutoRefillRequestRow._fields]
    is_of_one = [requests.c.bucket == reader.bucket, requests.c.meter_id.in_(meter_ids)]
    for values in await reader.fetch(select(*columns).where(*is_of_one)):
        row = AutoRefillRequestRow._make(values)
        found[row.meter_id].append(row)
    return found


async def refill_events_of(reader: Reader, meter_ids: Sequence[str]) -> dict[str, list[tuple[str, int, str, str]]]:
    """Return the (meter id, number, type, body) of the events of each meter's automatic refill, by its id."""
    found: dict[str, list[tuple[str, int, str, str]]] = {meter_id: [] for meter_id in meter_ids}
    columns = [events.c[name] for name in ("owner_id", "number", "type", "payload")]
    is_of_one = [events.c.bucket == reader.bucket, events.c.owner_id.in_(meter_ids), events.c.type.like("refill.%")]
    for row in await reader.fetch(select(*columns).where(*is_of_one)):
        found[row.owner_id].append((row.owner_id, row.number, row.type, row.payload))
    return found


async def events_kept_since(reader: Reader, meter_ids: Sequence[str]) -> dict[str, datetime]:
    """Return when the oldest event was that is kept of each meter of which some are no longer, by its id."""
    oldest = func.min(events.c.number)
    is_of_one = [events.c.bucket == reader.bucket, events.c.owner_id.in_(meter_ids)]
    kept = select(events.c.owner_id, func.min(events.c.created_at).label("since")).where(*is_of_one)
    return {row.owner_id: row.since for row in await reader.fetch(kept.group_by(events.c.owner_id).having(oldest > 1))}
