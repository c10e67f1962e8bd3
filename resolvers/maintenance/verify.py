"""Holding a whole database against the invariants of billing, in bounded memory.

Each meter's ledger is replayed (`meter_check.py`), and its row and usage days are held against it. Of the whole: every
meter lies in its bucket, with all that is of it;
a key names one entry; no more is voided than was used; every row has its meter; a meter's customer, a session's parent
and customer, and who recorded an entry are there, and of the same tenant; an idempotency key leads to what was made
under it, and what was made under one is led to. And what lists are filtered by agrees with what it stands for: of a
meter the size of its available credits, of a customer the email and name without regard to case.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Protocol, TypeVar

from sqlalchemy import Table

from resolvers.actor import OPERATORS, Scope
from resolvers.customer_sessions import LONGEST_SECONDS
from resolvers.maintenance.credit_check import CLOSING
from resolvers.maintenance.meter_check import UNREADABLE, Disagreement, MeterCheck, unreadable
from resolvers.meters.create import CREATE
from resolvers.values import MAX_AMOUNT
from storage import ids, ledger, usage
from storage.api_keys import api_keys
from storage.billing_meters import BillingMeterRow, billing_meters
from storage.customers import customers, found_by
from storage.engine.buckets import Buckets
from storage.engine.database import Database
from storage.engine.transactions import Reader
from storage.holds import HoldRow
from storage.ledger import LedgerEntryRow
from storage.maintenance import audit
from storage.maintenance.audit import CustomerNames, KeyHolder, KeyWithOrigin
from storage.usage import UsageDayRow, UsageRange

#: How many entries are held at once; a meter with more of them is read in as many pieces.
ENTRIES_AT_ONCE = 20_000

#: How many meters are read at once.
METERS_AT_ONCE = 1_000

#: How many customers, or keys, are read at once.
CUSTOMERS_AT_ONCE = 1_000

#: How many disagreements of one kind are looked for over the whole database.
MAX_OF_A_KIND = 1_000


@dataclass(slots=True)
class Verified:
    """How much was held against the invariants."""

    meters: int = 0
    entries: int = 0
    days: int = 0


async def verify(
    database: Database,
    verified: Verified,
    *,
    on_progress: Callable[[int], None] = lambda _meters: None,
    now: datetime | None = None,
) -> AsyncIterator[Disagreement]:
    """Return every disagreement of the database as it stands at the start, and count in `verified` what was read.

    `on_progress` is called, again and again, with how many meters there are. Where the time is given, nothing may be
    overdue. Raises `DatabaseUnavailable`.
    """
    async with database.snapshot() as reader:
        async for disagreement in verify_snapshot(reader, database.buckets, verified, on_progress=on_progress, now=now):
            yield disagreement


async def verify_snapshot(
    reader: Reader,
    buckets: Buckets,
    verified: Verified,
    *,
    on_progress: Callable[[int], None] = lambda _meters: None,
    now: datetime | None = None,
) -> AsyncIterator[Disagreement]:
    """Do what `verify` does, on a snapshot that is open, of a database that is divided so."""
    total = await audit.count_meters(reader)
    for bucket in buckets.values:
        reader.bucket = bucket
        failures: list[Disagreement] = []
        async for meters in _in_portions(reader, failures):
            on_progress(total)
            async for disagreement in verify_meters(reader, meters, verified, now):
                yield disagreement
            failures += [_elsewhere(meter) for meter in meters if buckets.of_names(meter.full_name) != bucket]
        for disagreement in failures:
            yield disagreement
    for disagreement in map(_elsewhere, await audit.meters_elsewhere(reader, buckets.values, limit=MAX_OF_A_KIND)):
        yield disagreement
    async for disagreement in verify_relations(reader):
        yield disagreement
    async for disagreement in _customers(reader):
        yield disagreement
    async for disagreement in _keys(reader):
        yield disagreement


def _elsewhere(meter: BillingMeterRow) -> Disagreement:
    return Disagreement(meter.id, "it lies in another bucket than that of its names, where it is looked for")


async def verify_relations(reader: Reader) -> AsyncIterator[Disagreement]:
    """Check what one statement finds over the whole database."""
    for meter_id, kind, key in await audit.repeated_keys(reader, limit=MAX_OF_A_KIND):
        yield Disagreement(meter_id, f"the key {key!r} names more than one {kind} entry")
    for meter_id, seq in await audit.overvoided(reader, limit=MAX_OF_A_KIND):
        yield Disagreement(meter_id, f"entry {seq}: more is voided than it took, or it is missing")
    for table, meter_id in await audit.orphans(reader, limit=MAX_OF_A_KIND):
        yield Disagreement(meter_id, f"{table} has rows of it, and there is no such meter")
    for meter_id, seq in await audit.holds_that_nothing_makes(reader, limit=MAX_OF_A_KIND):
        yield Disagreement(meter_id, f"hold {seq}: no entry makes it")
    for meter_id, customer_id in await audit.strangers(reader, limit=MAX_OF_A_KIND):
        yield Disagreement(meter_id, f"its customer {customer_id} is missing, or another tenant's")
    for lost in await audit.keys_leading_nowhere(reader, limit=MAX_OF_A_KIND):
        name = f"the idempotency key {lost.key!r} of {lost.operation} by {lost.org_id!r} in {lost.environment}"
        yield Disagreement(lost.result_id, f"{name} leads to it, and nothing was made of that kind and tenant by it")
    for customer_id, key in await audit.customers_not_led_to(reader, limit=MAX_OF_A_KIND):
        yield Disagreement(customer_id, f"it was made under the idempotency key {key!r}, which does not lead to it")


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=_HasId)
Key = TypeVar("Key", bound=str | tuple[str, int])
Value = TypeVar("Value")


async def _in_order(
    reader: Reader,
    table: Table,
    read: Callable[..., Awaitable[Sequence[Row]]],
    failures: list[Disagreement],
    *,
    at_once: int,
) -> AsyncIterator[Sequence[Row]]:
    """Return all rows of the table in the order of their ids, so many at once; those that cannot be read are noted."""
    last, limit = "", at_once
    while True:
        try:
            found = await read(reader, last, limit=limit)
        except UNREADABLE as error:
            if limit > 1:
                # One of them: they are read one by one up to it.
                limit = 1
                continue
            last, limit = await audit.next_id(reader, table, last), at_once
            failures.append(Disagreement(last, unreadable(error)))
            continue
        if not found:
            return
        last = found[-1].id
        yield found


async def _customers(reader: Reader) -> AsyncIterator[Disagreement]:
    """Check by what each customer is found, and who made it."""
    failures: list[Disagreement] = []
    async for found in _in_order(reader, customers, audit.customers_after, failures, at_once=CUSTOMERS_AT_ONCE):
        holders = await audit.key_holders(reader, {each.created_by for each in found if each.created_by is not None})
        for customer in found:
            for message in _customer(customer, holders):
                yield Disagreement(customer.id, message)
    for disagreement in failures:
        yield disagreement


def _customer(customer: CustomerNames, key_holders: Mapping[str, KeyHolder]) -> Iterator[str]:
    if not ids.is_id(customer.id, ids.CUSTOMER):
        yield "its id is none of a customer"
    for column, expected in found_by(customer.email, customer.name).items():
        if getattr(customer, column) != expected:
            # Without the values, which say who the customer is.
            yield f"its {column} does not follow from its {column.split('_')[0]}"
    maker = customer.created_by
    if maker is not None and maker not in OPERATORS:
        holder = key_holders.get(maker)
        if holder is None or (holder.org_id, holder.environment) != (customer.org_id, customer.environment):
            yield f"it was made by {maker!r}, and its tenant has no such key"


async def _keys(reader: Reader) -> AsyncIterator[Disagreement]:
    """Check the keys and sessions."""
    failures: list[Disagreement] = []
    async for found in _in_order(reader, api_keys, audit.keys_after, failures, at_once=CUSTOMERS_AT_ONCE):
        for each in found:
            for message in _key(each):
                yield Disagreement(each.id, message)
    for disagreement in failures:
        yield disagreement


def _key(found: KeyWithOrigin) -> Iterator[str]:
    key = found.key
    if not ids.is_id(key.id, ids.API_KEY):
        yield "its id is none of a key"
    if not set(key.scopes) <= set(Scope):
        yield f"its scopes are {', '.join(key.scopes)}"
    if key.parent_id is not None or key.customer_id is not None:
        for message in _session(found):
            yield f"it is a session, and {message}"


def _session(found: KeyWithOrigin) -> Iterator[str]:
    key, parent = found.key, found.parent
    tenant = (key.org_id, key.environment)
    if parent is None:
        yield f"its parent {key.parent_id} is missing"
    elif found.is_parent_session:
        yield f"so is its parent {parent.id}"
    elif (parent.org_id, parent.environment) != tenant:
        yield f"its parent {parent.id} is another tenant's"
    elif key.workspace_ids != parent.workspace_ids:
        yield f"its workspaces are not those of its parent {parent.id}"
    if found.customer_tenant != tenant:
        yield f"its customer {key.customer_id} is missing, or another tenant's"
    if key.scopes != [Scope.BILLING_READ]:
        yield f"its scopes are {', '.join(key.scopes)}"
    ends = found.parent_expires_at
    if key.expires_at is None or (ends is not None and key.expires_at > ends):
        yield "it does not end with its parent"
    elif key.expires_at > key.created_at + timedelta(seconds=LONGEST_SECONDS):
        yield f"it is from {key.created_at} to {key.expires_at}, which is longer than any"


async def _in_portions(reader: Reader, failures: list[Disagreement]) -> AsyncIterator[list[BillingMeterRow]]:
    """Return all meters, so many at a time that their entries can be held."""
    portion: list[BillingMeterRow] = []
    held = 0
    async for meters in _in_order(reader, billing_meters, audit.meters_after, failures, at_once=METERS_AT_ONCE):
        for meter in meters:
            entries = max(1, meter.last_seq)
            if portion and held + entries > ENTRIES_AT_ONCE:
                yield portion
                portion, held = [], 0
            portion.append(meter)
            held += entries
    if portion:
        yield portion


async def verify_meters(
    reader: Reader, meters: Sequence[BillingMeterRow], verified: Verified, now: datetime | None
) -> AsyncIterator[Disagreement]:
    """Check meters whose entries fit into memory together, or one meter piece by piece: each against its own rows.

    Where the time is given, nothing may be overdue.
    """
    checks = {meter.id: MeterCheck(meter) for meter in meters}
    meter_ids = list(checks)
    incomplete: set[str] = set()
    # Numbers begin with 1, and whatever stands before is read as well.
    lowest = await audit.next_seq(reader, meter_ids, after=-MAX_AMOUNT - 1)
    first: int | None = min(lowest, 1) if lowest is not None else 1
    while first is not None:
        last = min(first + ENTRIES_AT_ONCE - 1, MAX_AMOUNT)
        found, failures = await _entries(reader, [(meter_id, first, last) for meter_id in meter_ids])
        holders = await audit.key_holders(reader, {entry.recorded_by for entries in found for entry in entries})
        with_credits = {meter_id for meter_id in meter_ids if checks[meter_id].has_credits}
        voided = {
            (entry.meter_id, entry.voids_seq)
            for entries in found
            for entry in entries
            if entry.voids_seq is not None and entry.meter_id in with_credits
        }
        events = await audit.entries(reader, sorted(voided))
        closed, unread = await _closed(reader, found)
        failures += unread
        for disagreement in failures:
            incomplete.add(disagreement.id)
            yield disagreement
        for meter_id, entries in zip(meter_ids, found, strict=True):
            verified.entries += len(entries)
            for disagreement in checks[meter_id].follow(reversed(entries), holders, events, closed):
                yield disagreement
        # What the ledger holds leads on: a meter's own word for its newest entry may be wrong, and so may a number.
        first = await audit.next_seq(reader, meter_ids, after=last)
    made_by = {id_: check.made_by for id_, check in checks.items() if check.made_by is not None}
    creations = await audit.creations(reader, CREATE, list(made_by.values()))
    days, failures = await _days(reader, meter_ids)
    grants, of_grants = await _readable(reader, audit.grants_of, meter_ids, "of its grants")
    holds, of_holds = await _open(reader, checks)
    for disagreement in (*failures, *of_grants, *of_holds):
        incomplete.add(disagreement.id)
        yield disagreement
    for meter_id, rows in zip(meter_ids, days, strict=True):
        verified.meters += 1
        verified.days += len(rows)
        # What could not be read has been reported, and so would be all that is missing without it.
        if meter_id not in incomplete:
            created = creations.get(made_by[meter_id]) if meter_id in made_by else None
            for disagreement in checks[meter_id].finish(rows, created, grants[meter_id], holds[meter_id], now):
                yield disagreement


async def _entries(
    reader: Reader, ranges: Sequence[tuple[str, int, int]]
) -> tuple[list[list[LedgerEntryRow]], list[Disagreement]]:
    """Return the entries of each (meter id, first seq, last seq), newest first, and those that cannot be read."""
    try:
        return await ledger.by_ranges(reader, ranges), []
    except UNREADABLE as error:
        meter_id, first, last = ranges[0]
        if len(ranges) == 1 and first == last:
            return [[]], [Disagreement(meter_id, f"entry {first}: {unreadable(error)}")]
    found: list[list[LedgerEntryRow]] = []
    failures: list[Disagreement] = []
    if len(ranges) == 1:
        # By halves, to the one.
        middle = (first + last) // 2
        older, of_older = await _entries(reader, [(meter_id, first, middle)])
        newer, of_newer = await _entries(reader, [(meter_id, middle + 1, last)])
        return [newer[0] + older[0]], of_older + of_newer
    for each in ranges:
        entries, of_meter = await _entries(reader, [each])
        found += entries
        failures += of_meter
    return found, failures


async def _closed(
    reader: Reader, found: Sequence[Sequence[LedgerEntryRow]]
) -> tuple[dict[tuple[str, int], HoldRow], list[Disagreement]]:
    """Return the holds that these entries close, by meter id and `seq`, and those that cannot be read."""
    closing = [
        (entry.meter_id, entry.hold_seq)
        for entries in found
        for entry in entries
        if entry.hold_seq is not None and entry.kind in CLOSING
    ]
    return await _readable(reader, audit.holds_by_seqs, closing, "hold {0[1]}")


async def _open(
    reader: Reader, checks: Mapping[str, MeterCheck]
) -> tuple[dict[str, dict[int, HoldRow]], list[Disagreement]]:
    """Return the holds that the entries leave open, by meter id and then `seq`, and those that cannot be read."""
    wanted = [(meter_id, seq) for meter_id, check in checks.items() for seq in check.credits_.holds]
    found, failures = await _readable(reader, audit.holds_by_seqs, wanted, "hold {0[1]}")
    holds: dict[str, dict[int, HoldRow]] = {meter_id: {} for meter_id in checks}
    for (meter_id, seq), hold in found.items():
        holds[meter_id][seq] = hold
    return holds, failures


async def _readable(
    reader: Reader,
    read: Callable[[Reader, Sequence[Key]], Awaitable[dict[Key, Value]]],
    wanted: Sequence[Key],
    what: str,
) -> tuple[dict[Key, Value], list[Disagreement]]:
    """Return what is read of all that is wanted, by it, and of which it cannot be read.

    A key is a meter's id, or begins with one; `what` is said before the reason, with the key put in for `{0}`.
    """
    try:
        return await read(reader, wanted), []
    except UNREADABLE as error:
        if len(wanted) == 1:
            (key,) = wanted
            meter_id = key if isinstance(key, str) else key[0]
            return {}, [Disagreement(meter_id, f"{what.format(key)}: {unreadable(error)}")]
    # By halves, to the one.
    middle = len(wanted) // 2
    first, of_first = await _readable(reader, read, wanted[:middle], what)
    second, of_second = await _readable(reader, read, wanted[middle:], what)
    return first | second, of_first + of_second


async def _days(reader: Reader, meter_ids: Sequence[str]) -> tuple[Sequence[Sequence[UsageDayRow]], list[Disagreement]]:
    """Return the usage days of each meter, and the meters of which they cannot be read."""
    try:
        return await usage.by_ranges(reader, [UsageRange(each, date.min, date.max) for each in meter_ids]), []
    except UNREADABLE as error:
        if len(meter_ids) == 1:
            return [[]], [Disagreement(meter_ids[0], f"of its usage days: {unreadable(error)}")]
    found: list[Sequence[UsageDayRow]] = []
    failures: list[Disagreement] = []
    for each in meter_ids:
        days, of_meter = await _days(reader, [each])
        found += days
        failures += of_meter
    return found, failures
