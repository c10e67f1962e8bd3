"""What `tollgate verify` reads of what hangs on meters: their events, and rows whose meter is missing."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, Table, exists, select

from storage import ids
from storage.engine.statements import is_in_buckets
from storage.engine.transactions import Reader
from storage.meters.billing_meters import billing_meters
from storage.meters.events import EventRow, events
from storage.meters.meter_alerts import MeterAlertRow, meter_alerts
from storage.tables import TABLES, owner_column

_COLUMNS = [events.c[name] for name in EventRow._fields]


async def events_of(
    reader: Reader, meter_ids: Sequence[str], *, first_seq: int, last_seq: int
) -> dict[str, list[EventRow]]:
    """Return the events of each of the meters that are of these ledger entries, both inclusive, by their numbers."""
    is_of_one = [events.c.bucket == reader.bucket, events.c.owner_id.in_(meter_ids)]
    statement = select(*_COLUMNS).where(*is_of_one, events.c.seq.between(first_seq, last_seq))
    found: dict[str, list[EventRow]] = {meter_id: [] for meter_id in meter_ids}
    for row in await reader.fetch(statement.order_by(events.c.owner_id, events.c.number)):
        found[row.owner_id].append(EventRow._make(row))
    return found


async def alerts_of(reader: Reader, meter_ids: Sequence[str]) -> dict[str, list[MeterAlertRow]]:
    """Return what each of the meters has taken on of alerts, also what it has given up, by the meter's id."""
    columns = [meter_alerts.c[name] for name in MeterAlertRow._fields]
    is_of_one = [meter_alerts.c.bucket == reader.bucket, meter_alerts.c.meter_id.in_(meter_ids)]
    found: dict[str, list[MeterAlertRow]] = {meter_id: [] for meter_id in meter_ids}
    for row in await reader.fetch(select(*columns).where(*is_of_one).order_by(*meter_alerts.primary_key)):
        found[row.meter_id].append(MeterAlertRow._make(row))
    return found


#: The tables of rows that are of meters, or perhaps of webhook endpoints.
_OWNED = tuple(table for table in TABLES if is_in_buckets(table) and table is not billing_meters)


async def orphans(reader: Reader, *, limit: int) -> list[tuple[str, str]]:
    """Return the (table, meter id) of rows whose meter does not exist."""
    found = []
    for table in _OWNED:
        found += [(table.name, id_) for (id_,) in await reader.fetch(_orphans(table).limit(limit))]
    return found


def _orphans(table: Table) -> Select[Any]:
    owner = owner_column(table)
    has_meter = exists().where(billing_meters.c.bucket == table.c.bucket, billing_meters.c.id == owner)
    return select(owner).where(~has_meter, ~owner.startswith(ids.WEBHOOK_ENDPOINT)).distinct()
