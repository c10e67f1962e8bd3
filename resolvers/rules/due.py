"""Meters, grants and holds as they are at a moment: with what is due, whether or not it has been written."""

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from resolvers.rules.booking import book_due
from resolvers.rules.commands import Known
from resolvers.rules.credits import BASE, Credits, by_meter
from storage.engine.database import Database
from storage.engine.transactions import Reader
from storage.engine.turns import turn_for
from storage.meters import credit_grants, holds
from storage.meters.billing_meters import BillingMeterRow

Key = TypeVar("Key")


class Due:
    """Meters, and of those of which something is due what they are as if it were booked."""

    def __init__(self, meters: Sequence[BillingMeterRow]) -> None:
        self.visible = {meter.id: meter for meter in meters}
        self.known: dict[str, Known] = {}

    def meter(self, row: BillingMeterRow) -> BillingMeterRow:
        """Return the meter as it is."""
        return self.visible.get(row.id, row)

    def grant(self, row: credit_grants.CreditGrantRow) -> credit_grants.CreditGrantRow:
        """Return the grant as it is."""
        known = self.known.get(row.meter_id)
        return row if known is None or known.credits is None else known.credits.grants.get(row.seq, row)

    def grants_of(self, meter_id: str) -> list[credit_grants.CreditGrantRow]:
        """Return the grants of a meter with something due, as they are, of which something was open or pinned."""
        credits_ = self.known[meter_id].credits
        return [] if credits_ is None else [grant for seq, grant in credits_.grants.items() if seq != BASE]

    def hold(self, row: holds.HoldRow) -> holds.HoldRow:
        """Return the hold as it is."""
        known = self.known.get(row.meter_id)
        return row if known is None else known.holds.get(row.hold_id, row)


async def due_of_all(database: Database, meters: Sequence[BillingMeterRow], now: datetime) -> Due:
    """Return what `due_of` does of meters of whatever buckets."""
    found = Due(meters)
    late: dict[int, list[BillingMeterRow]] = {}
    for meter in meters:
        if meter.may_owe(now):
            late.setdefault(database.buckets.of_names(meter.full_name), []).append(meter)
    for bucket, some in late.items():
        async with database.read(bucket) as reader:
            due = await due_of(reader, some, now)
        found.visible |= due.visible
        found.known |= due.known
    return found


async def as_due(reader: Reader, meters: dict[Key, BillingMeterRow], now: datetime) -> dict[Key, BillingMeterRow]:
    """Return the meters, all of the reader's bucket, as they are if all that is due of them is booked."""
    if not any(meter.may_owe(now) for meter in meters.values()):
        return meters
    due = await due_of(reader, [*meters.values()], now)
    return {key: due.meter(meter) for key, meter in meters.items()}


async def due_of(reader: Reader, meters: Sequence[BillingMeterRow], now: datetime) -> Due:
    """Return the meters, all of the reader's bucket, with what they are as if all that is due of them were booked."""
    found = Due(meters)
    late = [meter for meter in meters if meter.may_owe(now)]
    if not late:
        return found
    ids = [meter.id for meter in late]
    grants = by_meter(await credit_grants.usable(reader, ids))
    open_ = by_meter(await holds.open_of(reader, ids))
    turn = await turn_for(len(late))
    for meter in late:
        if turn.is_over:
            await turn.next()
        known = Known(
            credits=Credits.of(meter, grants[meter.id]),
            holds={hold.hold_id: hold for hold in open_[meter.id]},
        )
        booked = [row for row, _ in book_due(meter, known, max(now, meter.updated_at))]
        found.visible[meter.id], found.known[meter.id] = booked[-1] if booked else meter, known
    return found
