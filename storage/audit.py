"""What `tollgate verify` and `tollgate migrate` read: all meters in order, and the rows that no meter would lead to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, Table, exists, func, select

from storage.billing_meters import BillingMeterRow
from storage.database import Reader
from storage.tables import LedgerEntryKind, billing_meters, customers, ledger_entries, usage_days

_METERS = select(*[billing_meters.c[name] for name in BillingMeterRow._fields]).order_by(billing_meters.c.id)


class CustomerNames(NamedTuple):
    """A customer's email and name, and the columns by which it is found by them."""

    id: str
    email: str
    name: str | None
    email_folded: str | None
    name_folded: str | None

    @property
    def found_by(self) -> dict[str, str | None]:
        """The columns that it is found by, as they are."""
        return {"email_folded": self.email_folded, "name_folded": self.name_folded}


_CUSTOMERS = select(*[customers.c[name] for name in CustomerNames._fields]).order_by(customers.c.id)

_usage = ledger_entries.alias("usage")

#: The voids together give back more than the usage entry took, or there is no such entry on their day.
_OVERVOIDED: Select[Any] = (
    select(ledger_entries.c.meter_id, ledger_entries.c.voids_seq)
    .outerjoin(
        _usage,
        (_usage.c.meter_id == ledger_entries.c.meter_id)
        & (_usage.c.seq == ledger_entries.c.voids_seq)
        & (_usage.c.kind == LedgerEntryKind.USAGE)
        & (_usage.c.day == ledger_entries.c.day)
        & (_usage.c.usage_name == ledger_entries.c.usage_name),
    )
    .where(ledger_entries.c.voids_seq.is_not(None))
    .group_by(ledger_entries.c.meter_id, ledger_entries.c.voids_seq)
    .having((func.sum(ledger_entries.c.amount) > func.max(_usage.c.amount)) | (func.count(_usage.c.seq) < func.count()))
)

#: The key named more than one entry of its kind.
_REPEATED: Select[Any] = (
    select(ledger_entries.c.meter_id, ledger_entries.c.kind, ledger_entries.c.key)
    .where(ledger_entries.c.key.is_not(None))
    .group_by(ledger_entries.c.meter_id, ledger_entries.c.kind, ledger_entries.c.key)
    .having(func.count() > 1)
)


async def count_meters(reader: Reader) -> int:
    """Return how many meters there are, of all tenants."""
    row = await reader.fetch_one(select(func.count()).select_from(billing_meters))
    return int(row[0]) if row is not None else 0


async def meters_after(reader: Reader, meter_id: str, *, limit: int) -> Sequence[BillingMeterRow]:
    """Return the next meters of all tenants, in the order of their ids."""
    rows = await reader.fetch(_METERS.where(billing_meters.c.id > meter_id).limit(limit))
    return [BillingMeterRow._make(row) for row in rows]


async def next_seq(reader: Reader, meter_ids: Sequence[str], *, after: int) -> int | None:
    """Return the lowest number beyond that one which an entry of these meters has; None: there is none."""
    seq = ledger_entries.c.seq
    row = await reader.fetch_one(select(func.min(seq)).where(ledger_entries.c.meter_id.in_(meter_ids), seq > after))
    return row[0] if row is not None else None


async def customers_after(reader: Reader, customer_id: str, *, limit: int) -> Sequence[CustomerNames]:
    """Return the next customers of all tenants, in the order of their ids."""
    rows = await reader.fetch(_CUSTOMERS.where(customers.c.id > customer_id).limit(limit))
    return [CustomerNames._make(row) for row in rows]


async def overvoided(reader: Reader, *, limit: int) -> list[tuple[str, int]]:
    """Return the (meter id, seq) of usage entries of which more is voided than they took, or that do not exist."""
    return [(row.meter_id, row.voids_seq) for row in await reader.fetch(_OVERVOIDED.limit(limit))]


async def repeated_keys(reader: Reader, *, limit: int) -> list[tuple[str, str, str]]:
    """Return the (meter id, kind, key) under which there is more than one entry."""
    return [(row.meter_id, row.kind, row.key) for row in await reader.fetch(_REPEATED.limit(limit))]


async def orphans(reader: Reader, *, limit: int) -> list[tuple[str, str]]:
    """Return the (table, meter id) of rows whose meter does not exist."""
    found = []
    for table in (usage_days, ledger_entries):
        found += [(table.name, row.meter_id) for row in await reader.fetch(_orphans(table).limit(limit))]
    return found


def _orphans(table: Table) -> Select[Any]:
    has_meter = exists().where(billing_meters.c.id == table.c.meter_id)
    return select(table.c.meter_id).where(~has_meter).distinct()
