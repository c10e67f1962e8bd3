"""Holding a whole database against the invariants of billing, in bounded memory.

Of each meter: its entries are numbered without a gap from its opening on; each entry's totals follow from the one
before; the last one's are the meter's; an accepted debit by REJECT or PARTIAL stays within the limit of its moment; the
usage days are the sums of its entries; its limit is what the limit rule says. Of the whole: a key names one entry, no
more is voided than was used, and every row has its meter. And what lists are filtered by agrees with what it stands
for: of a meter the size of its available credits, of a customer the email and name without regard to case.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

from resolvers.limits import available_bits, limit_credits
from resolvers.values import MAX_AMOUNT
from storage import audit, ledger, usage
from storage.billing_meters import BillingMeterRow
from storage.customers import found_by
from storage.database import Database, Reader
from storage.ledger import LedgerEntryRow
from storage.tables import LedgerEntryKind, OverLimitPolicy
from storage.usage import UsageDayRow, UsageRange

#: How many entries are held at once; a meter with more of them is read in as many pieces.
ENTRIES_AT_ONCE = 20_000

#: How many meters are read at once.
METERS_AT_ONCE = 1_000

#: How many customers are read at once.
CUSTOMERS_AT_ONCE = 1_000

#: How many disagreements of one kind are looked for over the whole database.
MOST_OF_A_KIND = 1_000


class Disagreement(NamedTuple):
    """Which meter or customer breaks an invariant, and how."""

    id: str
    message: str


@dataclass(slots=True)
class MeterCheck:
    """Follows one meter's entries in their order, and tells what does not follow."""

    meter: BillingMeterRow
    seq: int = 0
    total_credits: int = 0
    used_credits: int = 0
    days: dict[tuple[date | None, str | None], int] = field(default_factory=dict)

    def follow(self, entries: Iterable[LedgerEntryRow]) -> Iterator[Disagreement]:
        """Take the next entries."""
        for entry in entries:
            for message in self._entry(entry):
                yield Disagreement(self.meter.id, f"entry {entry.seq}: {message}")

    def _entry(self, entry: LedgerEntryRow) -> Iterator[str]:
        if entry.seq != self.seq + 1:
            yield f"it follows entry {self.seq}"
        if (entry.kind is LedgerEntryKind.OPENING) != (entry.seq == 1):
            yield f"it is {entry.kind.name}, and just the first one is OPENING"
        if entry.amount < 0 or (entry.kind is LedgerEntryKind.SETTINGS and entry.amount != 0):
            yield f"its amount is {entry.amount}"
        if entry.kind in _USED and entry.key is None:
            yield "it has no key"
        if (entry.kind is LedgerEntryKind.VOID) != (entry.voids_seq is not None):
            yield f"it is {entry.kind.name} and voids entry {entry.voids_seq}"
        adds_to_total = entry.kind in {LedgerEntryKind.OPENING, LedgerEntryKind.REFILL}
        total_credits = self.total_credits + (entry.amount if adds_to_total else 0)
        used_credits = self.used_credits + entry.amount * _USED.get(entry.kind, 0)
        if entry.total_credits_after != total_credits:
            yield f"the total credits after it are {entry.total_credits_after} and should be {total_credits}"
        if entry.used_credits_after != used_credits:
            yield f"the used credits after it are {entry.used_credits_after} and should be {used_credits}"
        is_limited = entry.kind is LedgerEntryKind.USAGE and entry.policy is not OverLimitPolicy.FORCE
        if is_limited and entry.limit_credits is not None and entry.used_credits_after > entry.limit_credits:
            yield f"the used credits after it, {entry.used_credits_after}, pass its limit, {entry.limit_credits}"
        if entry.kind in _USED:
            day = (entry.day, entry.usage_name)
            self.days[day] = self.days.get(day, 0) + entry.amount * _USED[entry.kind]
        # What follows is held against what is written, so that one slip is not told of every later entry.
        self.seq, self.total_credits, self.used_credits = (
            entry.seq,
            entry.total_credits_after,
            entry.used_credits_after,
        )

    def finish(self, days: Iterable[UsageDayRow]) -> Iterator[Disagreement]:
        """Hold the meter and its usage days against the entries, which have all been taken."""
        for name, found, expected in (
            ("last entry", self.meter.last_seq, self.seq),
            ("total credits", self.meter.total_credits, self.total_credits),
            ("used credits", self.meter.used_credits, self.used_credits),
            ("limit", self.meter.limit_credits, _limit(self.meter)),
            (
                "number of available bits",
                self.meter.available_bits,
                available_bits(self.meter.limit_credits, self.meter.used_credits),
            ),
        ):
            if found != expected:
                yield Disagreement(self.meter.id, f"its {name} is {found} and should be {expected}")
        counted = dict(self.days)
        for row in days:
            expected = counted.pop((row.day, row.usage_name), 0)
            if row.total_usage != expected:
                message = f"day {row.day}, {row.usage_name!r}: the usage is {row.total_usage} and should be {expected}"
                yield Disagreement(self.meter.id, message)
        for (day, usage_name), expected in counted.items():
            if expected != 0:
                yield Disagreement(self.meter.id, f"day {day}, {usage_name!r}: the usage of {expected} is missing")


#: What an entry does to the used credits.
_USED = {LedgerEntryKind.USAGE: 1, LedgerEntryKind.VOID: -1}


def _limit(meter: BillingMeterRow) -> int | None:
    return limit_credits(meter.total_credits, allow_overages=meter.allow_overages, spend_cap=meter.spend_cap)


@dataclass(slots=True)
class Verified:
    """How much was held against the invariants."""

    meters: int = 0
    entries: int = 0
    days: int = 0


async def verify(
    database: Database, verified: Verified, *, on_progress: Callable[[int], None] = lambda _meters: None
) -> AsyncIterator[Disagreement]:
    """Return every disagreement of the database as it stands at the start, and count in `verified` what was read.

    `on_progress` is told, again and again, how many meters there are. Raises `DatabaseUnavailable`.
    """
    async with database.snapshot() as reader:
        async for disagreement in verify_snapshot(reader, verified, on_progress=on_progress):
            yield disagreement


async def verify_snapshot(
    reader: Reader, verified: Verified, *, on_progress: Callable[[int], None] = lambda _meters: None
) -> AsyncIterator[Disagreement]:
    """Do what `verify` does, on a snapshot that is open."""
    total = await audit.count_meters(reader)
    async for meters in _in_portions(reader):
        on_progress(total)
        async for disagreement in _portion(reader, meters, verified):
            yield disagreement
    for meter_id, kind, key in await audit.repeated_keys(reader, limit=MOST_OF_A_KIND):
        yield Disagreement(meter_id, f"the key {key!r} names more than one {kind} entry")
    for meter_id, seq in await audit.overvoided(reader, limit=MOST_OF_A_KIND):
        yield Disagreement(meter_id, f"entry {seq}: more is voided than it took, or it is missing")
    for table, meter_id in await audit.orphans(reader, limit=MOST_OF_A_KIND):
        yield Disagreement(meter_id, f"{table} has rows of it, and there is no such meter")
    async for disagreement in _customers(reader):
        yield disagreement


async def _customers(reader: Reader) -> AsyncIterator[Disagreement]:
    """Check by what each customer is found."""
    last = ""
    while found := await audit.customers_after(reader, last, limit=CUSTOMERS_AT_ONCE):
        last = found[-1].id
        for customer in found:
            for column, expected in found_by(customer.email, customer.name).items():
                if getattr(customer, column) != expected:
                    # Without the values, which say who the customer is.
                    yield Disagreement(customer.id, f"its {column} does not follow from its {column.split('_')[0]}")


async def _in_portions(reader: Reader) -> AsyncIterator[list[BillingMeterRow]]:
    """Return all meters, so many at a time that their entries can be held."""
    last = ""
    portion: list[BillingMeterRow] = []
    held = 0
    while meters := await audit.meters_after(reader, last, limit=METERS_AT_ONCE):
        last = meters[-1].id
        for meter in meters:
            entries = max(0, meter.last_seq)
            if portion and held + entries > ENTRIES_AT_ONCE:
                yield portion
                portion, held = [], 0
            portion.append(meter)
            held += entries
    if portion:
        yield portion


async def _portion(
    reader: Reader, meters: Sequence[BillingMeterRow], verified: Verified
) -> AsyncIterator[Disagreement]:
    """Check meters whose entries fit into memory together, or one meter piece by piece."""
    checks = [MeterCheck(meter) for meter in meters]
    meter_ids = [meter.id for meter in meters]
    # Numbers begin with 1, and whatever stands before is read as well.
    lowest = await audit.next_seq(reader, meter_ids, after=-MAX_AMOUNT - 1)
    first: int | None = min(lowest, 1) if lowest is not None else 1
    while first is not None:
        last = min(first + ENTRIES_AT_ONCE - 1, MAX_AMOUNT)
        found = await ledger.by_ranges(reader, [(meter_id, first, last) for meter_id in meter_ids])
        for check, entries in zip(checks, found, strict=True):
            verified.entries += len(entries)
            for disagreement in check.follow(reversed(entries)):
                yield disagreement
        # What the ledger holds leads on: a meter's own word for its newest entry may be wrong, and so may a number.
        first = await audit.next_seq(reader, meter_ids, after=last)
    ranges = [UsageRange(meter.id, date.min, date.max) for meter in meters]
    for check, days in zip(checks, await usage.by_ranges(reader, ranges), strict=True):
        verified.meters += 1
        verified.days += len(days)
        for disagreement in check.finish(days):
            yield disagreement
