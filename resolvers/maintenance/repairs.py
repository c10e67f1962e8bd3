"""Repairs what a release before the filters has written since, while gateways were replaced one by one.

It leaves out the columns that lists are filtered by: of a customer the email and name without regard to case, of a
meter the size of its available credits. What is right already is only read.
"""

from functools import partial
from typing import NamedTuple

from resolvers.rules.balances import available_bits
from storage import customers
from storage.engine.database import Database
from storage.engine.transactions import Writer
from storage.maintenance import audit
from storage.meters import billing_meters
from storage.meters.billing_meters import BillingMeterRow

#: How many rows are read, and at most written, at once.
PORTION = 1_000


class Repaired(NamedTuple):
    """How many rows were wrong."""

    customers: int = 0
    meters: int = 0


async def repair(database: Database) -> Repaired:
    """Repair every customer and meter, a portion at a time. Gateways may serve meanwhile.

    Raises `DatabaseUnavailable`.
    """
    return Repaired(customers=await _repair_customers(database), meters=await _repair_meters(database))


async def _repair_customers(database: Database) -> int:
    last, repaired = "", 0
    while True:
        async with database.read() as reader:
            found = await audit.customers_after(reader, last, limit=PORTION)
        if not found:
            return repaired
        last = found[-1].id
        wrong = [row.id for row in found if customers.found_by(row.email, row.name) != row.found_by]
        if wrong:
            repaired += await database.write(partial(customers.repair_found_by, ids=wrong))


async def _repair_meters(database: Database) -> int:
    return sum([await _repair_bucket(database, bucket) for bucket in database.buckets.values])


async def _repair_bucket(database: Database, bucket: int) -> int:
    last, repaired = "", 0
    while True:
        async with database.read(bucket) as reader:
            found = await audit.meters_after(reader, last, limit=PORTION)
        if not found:
            return repaired
        last = found[-1].id
        wrong = [meter.id for meter in found if _right(meter) != meter]
        if wrong:
            repaired += await database.write(partial(_repair_bits, ids=wrong), bucket=bucket)


async def _repair_bits(writer: Writer, ids: list[str]) -> int:
    meters = await billing_meters.lock(writer, ids)
    changes = [(meter, _right(meter)) for meter in meters.values() if _right(meter) != meter]
    await billing_meters.update_meters(writer, changes)
    return len(changes)


def _right(meter: BillingMeterRow) -> BillingMeterRow:
    return meter._replace(available_bits=available_bits(meter.limit_credits, meter.used_credits, meter.held_credits))
