"""Holding a whole database against the invariants of billing, in bounded memory.

Each meter's ledger is replayed (`meter_check.py`), and its row and usage days are held against it. Of the whole: every
meter lies in its bucket, with all that is of it;
a key names one entry; no more is voided than was used; every row has its meter; a meter's customer, a session's parent
and customer, and who recorded an entry are there, and of the same tenant; an idempotency key leads to what was made
under it, and what was made under one is led to. And what lists are filtered by agrees with what it stands for: of a
meter the size of its available credits, of a customer the email and name without regard to case.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from resolvers.actor import OPERATORS, Scope
from resolvers.customers.sessions import LONGEST_SECONDS
from resolvers.maintenance.meter_check import Disagreement, MeterCheck
from resolvers.maintenance.readable import (
    closed_holds,
    in_order,
    open_holds,
    read_days,
    read_each,
    read_entries,
    read_refills,
)
from resolvers.meters.create import CREATE
from resolvers.values import MAX_AMOUNT
from storage import ids
from storage.api_keys import api_keys
from storage.customers import customers, found_by
from storage.engine.buckets import Buckets
from storage.engine.database import Database
from storage.engine.transactions import Reader
from storage.maintenance import audit, owned_rows
from storage.maintenance.audit import CustomerNames, KeyHolder, KeyWithOrigin
from storage.meters.billing_meters import BillingMeterRow, billing_meters
from storage.meters.ledger import LedgerEntryRow

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

    A database of several servers is read on all of them at once: of each bucket as it stands when it is begun with, and
    at last what there is of the whole. What is found of buckets is returned when all have been read.

    `on_progress` is called, again and again, with how many meters there are. Where the time is given, nothing may be
    overdue. Raises `DatabaseUnavailable`.
    """
    async with database.snapshot() as reader:
        if database.buckets.is_one:
            async for found in verify_snapshot(reader, database.buckets, verified, on_progress=on_progress, now=now):
                yield found
            return
        total = await audit.count_meters(reader)

    async def verify_buckets(buckets: Sequence[int]) -> list[Disagreement]:
        found = []
        for bucket in buckets:
            async with database.snapshot(bucket) as reader:
                of_bucket = _bucket(reader, database.buckets, verified, now)
                async for disagreements in of_bucket:
                    on_progress(total)
                    found += disagreements
        return found

    for of_server in await _at_once([verify_buckets(buckets) for buckets in database.buckets.by_place]):
        for disagreement in of_server:
            yield disagreement
    async with database.snapshot() as reader:
        async for disagreement in _whole(reader, database.buckets):
            yield disagreement


#: What one part of the work returns.
Part = TypeVar("Part")


async def _at_once(work: Iterable[Coroutine[Any, Any, Part]]) -> list[Part]:
    """Return what all of it returns, or cancel the rest and raise what the first raises."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except ExceptionGroup as failed:  # What the group raises; callers know what is in it, `DatabaseUnavailable`.
        raise failed.exceptions[0] from failed
    return [task.result() for task in tasks]


async def verify_snapshot(
    reader: Reader,
    buckets: Buckets,
    verified: Verified,
    *,
    on_progress: Callable[[int], None] = lambda _meters: None,
    now: datetime | None = None,
) -> AsyncIterator[Disagreement]:
    """Do what `verify` does, on one snapshot that is open, of a database that is divided so."""
    total = await audit.count_meters(reader)
    for bucket in buckets.values:
        reader.bucket = bucket
        async for disagreements in _bucket(reader, buckets, verified, now):
            on_progress(total)
            for disagreement in disagreements:
                yield disagreement
    async for disagreement in _whole(reader, buckets):
        yield disagreement


async def _bucket(
    reader: Reader, buckets: Buckets, verified: Verified, now: datetime | None
) -> AsyncIterator[list[Disagreement]]:
    """Check the meters of the reader's bucket, a portion after the other."""
    failures: list[Disagreement] = []
    async for meters in _in_portions(reader, failures):
        yield [each async for each in verify_meters(reader, meters, verified, now)]
        failures += [_elsewhere(meter) for meter in meters if buckets.of_names(meter.full_name) != reader.bucket]
    yield failures


async def _whole(reader: Reader, buckets: Buckets) -> AsyncIterator[Disagreement]:
    """Check what is not of one bucket."""
    for disagreement in map(_elsewhere, await audit.meters_elsewhere(reader, buckets.values, limit=MAX_OF_A_KIND)):
        yield disagreement
    for check in (verify_relations, _customers, _keys):
        async for disagreement in check(reader):
            yield disagreement


def _elsewhere(meter: BillingMeterRow) -> Disagreement:
    return Disagreement(meter.id, "it lies in another bucket than that of its names, where it is looked for")


async def verify_relations(reader: Reader) -> AsyncIterator[Disagreement]:
    """Check what one statement finds over the whole database."""
    for meter_id, kind, key in await audit.repeated_keys(reader, limit=MAX_OF_A_KIND):
        yield Disagreement(meter_id, f"the key {key!r} names more than one {kind} entry")
    for meter_id, seq in await audit.overvoided(reader, limit=MAX_OF_A_KIND):
        yield Disagreement(meter_id, f"entry {seq}: more is voided than it took, or it is missing")
    for table, meter_id in await owned_rows.orphans(reader, limit=MAX_OF_A_KIND):
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


async def _customers(reader: Reader) -> AsyncIterator[Disagreement]:
    """Check by what each customer is found, and who made it."""
    failures: list[Disagreement] = []
    async for found in in_order(reader, customers, audit.customers_after, failures, at_once=CUSTOMERS_AT_ONCE):
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
    async for found in in_order(reader, api_keys, audit.keys_after, failures, at_once=CUSTOMERS_AT_ONCE):
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
    async for meters in in_order(reader, billing_meters, audit.meters_after, failures, at_once=METERS_AT_ONCE):
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
    incomplete: set[str] = set()
    for disagreement in await _read_alerts(reader, checks):
        incomplete.add(disagreement.id)
        yield disagreement
    async for disagreement in _ledgers(reader, checks, verified, incomplete):
        yield disagreement
    async for disagreement in _rows(reader, checks, verified, incomplete, now):
        yield disagreement


async def _ledgers(
    reader: Reader, checks: Mapping[str, MeterCheck], verified: Verified, incomplete: set[str]
) -> AsyncIterator[Disagreement]:
    """Have the checks follow their meters' ledgers; note the meters of which something cannot be read."""
    meter_ids = list(checks)
    # Numbers begin with 1, and whatever stands before is read as well.
    lowest = await audit.next_seq(reader, meter_ids, after=-MAX_AMOUNT - 1)
    first: int | None = min(lowest, 1) if lowest is not None else 1
    while first is not None:
        last = min(first + ENTRIES_AT_ONCE - 1, MAX_AMOUNT)
        found, failures = await read_entries(reader, [(meter_id, first, last) for meter_id in meter_ids])
        holders = await audit.key_holders(reader, {entry.recorded_by for entries in found for entry in entries})
        with_credits = {meter_id for meter_id in meter_ids if checks[meter_id].has_credits}
        voided = {
            (entry.meter_id, entry.voids_seq)
            for entries in found
            for entry in entries
            if entry.voids_seq is not None and entry.meter_id in with_credits
        }
        usages = await audit.entries(reader, sorted(voided))
        closed, unread = await closed_holds(reader, found)
        failures += unread
        for disagreement in failures:
            incomplete.add(disagreement.id)
            yield disagreement
        for meter_id, entries in zip(meter_ids, found, strict=True):
            verified.entries += len(entries)
            for disagreement in checks[meter_id].follow(reversed(entries), holders, usages, closed):
                yield disagreement
        readable = {id_: entries[::-1] for id_, entries in zip(meter_ids, found, strict=True) if id_ not in incomplete}
        for disagreement in await _follow_events(reader, checks, readable, first, last):
            incomplete.add(disagreement.id)
            yield disagreement
        # What the ledger holds leads on: a meter's own word for its newest entry may be wrong, and so may a number.
        first = await audit.next_seq(reader, meter_ids, after=last)


async def _rows(
    reader: Reader, checks: Mapping[str, MeterCheck], verified: Verified, incomplete: set[str], now: datetime | None
) -> AsyncIterator[Disagreement]:
    """Hold the other rows of meters against their ledgers, which the checks have followed."""
    meter_ids = list(checks)
    made_by = {id_: check.made_by for id_, check in checks.items() if check.made_by is not None}
    creations = await audit.creations(reader, CREATE, list(made_by.values()))
    days, failures = await read_days(reader, meter_ids)
    grants, of_grants = await read_each(reader, audit.grants_of, meter_ids, "of its grants")
    holds, of_holds = await open_holds(reader, checks)
    refills, of_refills = await read_refills(reader, meter_ids)
    for disagreement in (*failures, *of_grants, *of_holds, *of_refills):
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
            for disagreement in checks[meter_id].finish_refills(refills[meter_id], now):
                yield disagreement


async def _read_alerts(reader: Reader, checks: Mapping[str, MeterCheck]) -> list[Disagreement]:
    """Read what each meter has taken on of alerts; return those that cannot be read."""
    found, failures = await read_each(reader, owned_rows.alerts_of, list(checks), "of its alerts")
    for meter_id, alerts in found.items():
        checks[meter_id].alerts.rows = alerts
    return failures


async def _follow_events(
    reader: Reader,
    checks: Mapping[str, MeterCheck],
    entries: Mapping[str, Sequence[LedgerEntryRow]],
    first_seq: int,
    last_seq: int,
) -> list[Disagreement]:
    """Have the events followed that are of a stretch of the ledgers, by meter; return those that cannot be read."""
    read_window = partial(owned_rows.events_of, first_seq=first_seq, last_seq=last_seq)
    found, failures = await read_each(reader, read_window, list(entries), "of its events")
    for meter_id, events in found.items():
        checks[meter_id].events.follow(entries[meter_id], events)
        checks[meter_id].alerts.follow(events, last_seq)
    return failures
