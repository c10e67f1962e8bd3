"""Reading what `tollgate verify` checks where some of it cannot be read: that is reported, and the rest is returned."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import date
from typing import Protocol, TypeVar

from sqlalchemy import Table

from resolvers.maintenance.credit_check import CLOSING
from resolvers.maintenance.entry_rules import UNREADABLE, unreadable
from resolvers.maintenance.meter_check import Disagreement, MeterCheck
from resolvers.maintenance.refill_check import RefillEvent, RefillRows
from storage.engine.transactions import Reader
from storage.maintenance import audit, audited_refills
from storage.meters import ledger, usage
from storage.meters.holds import HoldRow
from storage.meters.ledger import LedgerEntryRow
from storage.meters.usage import UsageDayRow, UsageRange


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=_HasId)
Key = TypeVar("Key", bound=str | tuple[str, int])
Value = TypeVar("Value")


async def in_order(
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


async def read_entries(
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
        older, of_older = await read_entries(reader, [(meter_id, first, middle)])
        newer, of_newer = await read_entries(reader, [(meter_id, middle + 1, last)])
        return [newer[0] + older[0]], of_older + of_newer
    for each in ranges:
        entries, of_meter = await read_entries(reader, [each])
        found += entries
        failures += of_meter
    return found, failures


async def closed_holds(
    reader: Reader, found: Sequence[Sequence[LedgerEntryRow]]
) -> tuple[dict[tuple[str, int], HoldRow], list[Disagreement]]:
    """Return the holds that these entries close, by meter id and `seq`, and those that cannot be read."""
    closing = [
        (entry.meter_id, entry.hold_seq)
        for entries in found
        for entry in entries
        if entry.hold_seq is not None and entry.kind in CLOSING
    ]
    return await read_each(reader, audit.holds_by_seqs, closing, "hold {0[1]}")


async def open_holds(
    reader: Reader, checks: Mapping[str, MeterCheck]
) -> tuple[dict[str, dict[int, HoldRow]], list[Disagreement]]:
    """Return the holds that the entries leave open, by meter id and then `seq`, and those that cannot be read."""
    wanted = [(meter_id, seq) for meter_id, check in checks.items() for seq in check.credits_.holds]
    found, failures = await read_each(reader, audit.holds_by_seqs, wanted, "hold {0[1]}")
    holds: dict[str, dict[int, HoldRow]] = {meter_id: {} for meter_id in checks}
    for (meter_id, seq), hold in found.items():
        holds[meter_id][seq] = hold
    return holds, failures


async def read_each(
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
    first, of_first = await read_each(reader, read, wanted[:middle], what)
    second, of_second = await read_each(reader, read, wanted[middle:], what)
    return first | second, of_first + of_second


async def read_refills(reader: Reader, meter_ids: Sequence[str]) -> tuple[dict[str, RefillRows], list[Disagreement]]:
    """Return what there is of each meter's automatic refill, and the meters of which it cannot be read."""
    settings, failures = await read_each(reader, audited_refills.auto_refills_of, meter_ids, "of its automatic refill")
    requests, of_requests = await read_each(reader, audited_refills.requests_of, meter_ids, "of its requests")
    events = await audited_refills.refill_events_of(reader, meter_ids)
    since = await audited_refills.events_kept_since(reader, meter_ids)
    found = {
        id_: RefillRows(
            settings.get(id_), requests.get(id_, ()), [RefillEvent(*event) for event in events[id_]], since.get(id_)
        )
        for id_ in meter_ids
    }
    return found, failures + of_requests


async def read_days(
    reader: Reader, meter_ids: Sequence[str]
) -> tuple[Sequence[Sequence[UsageDayRow]], list[Disagreement]]:
    """Return the usage days of each meter, and the meters of which they cannot be read."""
    try:
        return await usage.by_ranges(reader, [UsageRange(each, date.min, date.max) for each in meter_ids]), []
    except UNREADABLE as error:
        if len(meter_ids) == 1:
            return [[]], [Disagreement(meter_ids[0], f"of its usage days: {unreadable(error)}")]
    found: list[Sequence[UsageDayRow]] = []
    failures: list[Disagreement] = []
    for each in meter_ids:
        days, of_meter = await read_days(reader, [each])
        found += days
        failures += of_meter
    return found, failures
