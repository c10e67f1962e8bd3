"""The data set: customers with two meters each, meters with credit grants, and sixty days of usage that end today.

What is drawn comes from a fixed seed, so that all runs of a day have the same rows. They keep every rule: an event a
usage day, whose ledger entry carries the totals after it, and a ledger entry a grant, so that `tollgate verify` passes.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import asyncpg

from benchmarks.scenario import METERS_A_CUSTOMER, METERS_A_GRANTED, ORG, TODAY, WORKSPACE
from resolvers.actor import IMPORT, Scope
from resolvers.api_keys import create_api_key
from resolvers.meters.grants import GrantCredits
from resolvers.meters.settings import opened_with
from resolvers.rules.balances import available_bits
from resolvers.rules.booking import next_due
from resolvers.rules.commands import Known, newest_entry
from storage import migrations
from storage.customers import customers, folded
from storage.engine.buckets import bits_of
from storage.engine.database import Database
from storage.engine.statements import given_columns
from storage.engine.transactions import Writer
from storage.ids import BILLING_METER, CUSTOMER
from storage.meters import credit_grants, ledger
from storage.meters.billing_meters import BillingMeterRow, MeterName, billing_meters
from storage.meters.credit_grants import CreditGrantCategory, CreditGrantRow
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow, OverLimitPolicy
from storage.meters.usage import usage_days
from storage.tenants import Environment

DAYS = 60

#: The usage names of a customer's meters, `METERS_A_CUSTOMER` of them: one and a half a meter.
USAGE_NAMES = (("tokens",), ("generatedTokens", "tokens"))

#: How many usage days there are for each customer: those of its meters, and its part of those of meters with grants.
DAYS_A_CUSTOMER = DAYS * sum(map(len, USAGE_NAMES)) * (METERS_A_GRANTED + 1) // METERS_A_GRANTED

#: What each meter was opened with: more than any run uses.
CREDITS = 10**15

#: How many grants a meter with grants has, and the credits of each: also more than any run uses.
GRANTS, GRANTED = 10, 10**12

#: How many customers' rows are made and written at once, and how many meters with grants.
CUSTOMERS_AT_ONCE = METERS_AT_ONCE = 500

Row = tuple[Any, ...]

_columns_of_meter = attrgetter(*[column.name for column in given_columns(billing_meters)])


@dataclass
class Rows:
    """Rows of each table; of customers and usage days their values, in the order of the columns."""

    customers: list[Row] = field(default_factory=list)
    billing_meters: list[BillingMeterRow] = field(default_factory=list)
    usage_days: list[Row] = field(default_factory=list)
    ledger_entries: list[LedgerEntryRow] = field(default_factory=list)
    credit_grants: list[CreditGrantRow] = field(default_factory=list)

    async def write(self, writer: Writer) -> None:
        """Write them."""
        await writer.insert_rows(customers, self.customers)
        await writer.insert_rows(billing_meters, list(map(_columns_of_meter, self.billing_meters)))
        await writer.insert_rows(usage_days, self.usage_days)
        await ledger.insert_entries(writer, self.ledger_entries)
        await credit_grants.insert_grants(writer, self.credit_grants)


async def fill(database_url: str, count: int) -> str:
    """Bring an empty database to the newest schema, make so many customers with all theirs, and return a key."""
    database = Database(database_url, wait_seconds=600)
    try:
        await migrations.upgrade(database)
        now = datetime.now(UTC)
        row, key = await create_api_key(
            database, org_id=ORG, environment=Environment.LIVE, scopes=tuple(Scope), now=now
        )
        for rows in data_set(count, row.id, now):
            await database.write(rows.write)
    finally:
        await database.close()
    if database.dialect == "postgresql":
        await _vacuum(database)
    return key


async def _vacuum(database: Database) -> None:
    """Do what PostgreSQL does by itself in time, so that it does not do it while a contestant is measured."""
    connection = await asyncpg.connect(database.url.set(drivername="postgresql").render_as_string(hide_password=False))
    await connection.execute("VACUUM (FREEZE, ANALYZE)")
    await connection.close()


def data_set(count: int, key_id: str, now: datetime) -> Iterator[Rows]:
    """Return the rows of so many customers, in portions that fit into memory. The key has made the grants, now."""
    chance = random.Random("tollgate")  # noqa: S311  # Invented usage, not a secret.
    made_at = datetime.combine(TODAY - timedelta(days=DAYS), datetime.min.time(), UTC)
    for first in range(0, count, CUSTOMERS_AT_ONCE):
        rows = Rows()
        for number in range(first, min(first + CUSTOMERS_AT_ONCE, count)):
            _add_customer(rows, number, made_at, chance)
        yield rows
    meters = count * METERS_A_CUSTOMER
    granted = meters // METERS_A_GRANTED
    for first in range(0, granted, METERS_AT_ONCE):
        rows = Rows()
        for number in range(first, min(first + METERS_AT_ONCE, granted)):
            name = MeterName(ORG, Environment.LIVE, WORKSPACE, f"granted-{number}")
            id_ = _meter_id(name, made_at, meters + number, chance)
            usage_names = USAGE_NAMES[number % METERS_A_CUSTOMER]
            meter = _add_history(rows, id_, name, None, usage_names, made_at, chance)
            rows.billing_meters.append(_with_grants(rows, meter, key_id, now))
        yield rows


def _id(prefix: str, made_at: datetime, number: int, chance: random.Random) -> str:
    """Return an id of the form that `storage.ids` gives, in the order of the numbers."""
    return f"{prefix}{int(made_at.timestamp() * 1000) + number:012x}{chance.getrandbits(48):012x}"


def _meter_id(name: MeterName, made_at: datetime, number: int, chance: random.Random) -> str:
    return f"{_id(BILLING_METER, made_at, number, chance)}{bits_of(name):03x}"


def _add_customer(rows: Rows, number: int, made_at: datetime, chance: random.Random) -> None:
    id_ = _id(CUSTOMER, made_at, number, chance)
    email, name = f"billing@customer-{number}.example.com", f"Customer {number}"
    rows.customers.append(
        (
            *(id_, ORG, Environment.LIVE, email, name, f"customer-{number}", '{"plan":"starter"}', made_at, made_at),
            *(folded(email), folded(name), IMPORT, None),
        )
    )
    for place, usage_names in enumerate(USAGE_NAMES):
        meter = number * METERS_A_CUSTOMER + place
        meter_name = MeterName(ORG, Environment.LIVE, WORKSPACE, f"meter-{meter}")
        meter_id = _meter_id(meter_name, made_at, meter, chance)
        rows.billing_meters.append(_add_history(rows, meter_id, meter_name, id_, usage_names, made_at, chance))


def _add_history(
    rows: Rows,
    id_: str,
    name: MeterName,
    customer_id: str | None,
    usage_names: tuple[str, ...],
    made_at: datetime,
    chance: random.Random,
) -> BillingMeterRow:
    """Add the usage of a meter and its ledger, and return the meter as they leave it."""
    used, seq = 0, 1
    bits = available_bits(CREDITS, used, 0)
    opened = BillingMeterRow(
        *(id_, *name, customer_id, "UTC", CREDITS, used, False, None, CREDITS, bits, seq, made_at, made_at)
    )
    rows.ledger_entries.append(
        newest_entry(opened, LedgerEntryKind.OPENING, amount=CREDITS, recorded_by=IMPORT, metadata=opened_with(opened))
    )
    for day, moment in _DAYS:
        for usage_name in usage_names:
            amount = 1 + chance.getrandbits(14)
            used += amount
            seq += 1
            rows.usage_days.append((id_, day, usage_name, amount))
            rows.ledger_entries.append(
                LedgerEntryRow(
                    id_,
                    seq,
                    LedgerEntryKind.USAGE,
                    f"{day}-{usage_name}",
                    amount,
                    CREDITS,
                    used,
                    CREDITS,
                    usage_name,
                    day,
                    amount,
                    OverLimitPolicy.REJECT,
                    voids_seq=None,
                    sent_at=None,
                    recorded_at=moment,
                    recorded_by=IMPORT,
                    reason=None,
                    metadata={},
                )
            )
    bits = available_bits(CREDITS, used, 0)
    return opened._replace(used_credits=used, available_bits=bits, last_seq=seq, updated_at=_DAYS[-1][1])


def _with_grants(rows: Rows, meter: BillingMeterRow, key_id: str, now: datetime) -> BillingMeterRow:
    """Add the grants of a meter and their entries, and return the meter with them.

    They are not used in the order in which they were made, some before the base and some after it; a third of them has
    no end.
    """
    name, known = meter.full_name, Known()
    for number in range(GRANTS):
        terms = (
            10 * ((7 * number + 3) % GRANTS),
            list(CreditGrantCategory)[number % 2],
            None if number % 3 == 0 else now + timedelta(days=400 - number),
        )
        decision = GrantCredits(name, GRANTED, *terms, None, {}, f"grant-{number}", key_id, GRANTS).decide(
            meter, known, now
        )
        if decision.entry is None or decision.credit_grant is None:
            raise RuntimeError("There is no grant.")
        meter = decision.billing_meter
        rows.ledger_entries.append(decision.entry)
        rows.credit_grants.append(decision.credit_grant)
    return meter._replace(next_due_at=next_due(meter, known))


#: The days of usage, each with the moment of its events.
_DAYS = [
    (day, datetime.combine(day, datetime.min.time(), UTC))
    for day in (TODAY - timedelta(days=back) for back in range(DAYS - 1, -1, -1))
]
