"""The order of use: which of a meter's credits a debit draws, a hold pins, and a void gives back.

The opening and the refills of a meter are its base, which takes part like a grant that is older than all: of priority
50, paid, without an end. Nothing here reads or writes a database; amounts are credits.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from storage.meters.auto_refills import AutoRefillRequestRow
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.credit_grants import CreditGrantCategory, CreditGrantRow
from storage.meters.holds import HoldRow
from storage.meters.ledger import LedgerEntryRow

R = TypeVar("R", CreditGrantRow, HoldRow, AutoRefillRequestRow)

#: The `seq` that stands for the base among those of grants.
BASE = 0

#: Credits taken from or given to each of some grants, in order: [seq of the grant or `BASE`, credits].
Draws = list[list[int]]

_EVER = datetime.min.replace(tzinfo=UTC)
_NEVER = datetime.max.replace(tzinfo=UTC)


def base_of(meter: BillingMeterRow, open_credits: int) -> CreditGrantRow:
    """Return the base as a grant with so many open credits."""
    return CreditGrantRow(
        meter_id=meter.id,
        seq=BASE,
        key="",
        amount=0,
        priority=50,
        category=CreditGrantCategory.PAID,
        expires_at=None,
        open_credits=open_credits,
        pinned_credits=0,
        drawn_credits=0,
        covered_credits=0,
        expired_credits=0,
        revoked_credits=0,
        is_closed=False,
        created_at=meter.created_at,
        reason=None,
        metadata={},
    )


def order_of_use(grant: CreditGrantRow) -> tuple[int, datetime, bool, int]:
    """Return what grants are used by: priority, the earlier end, promotional before paid, the older."""
    is_paid = grant.category is CreditGrantCategory.PAID
    return grant.priority, grant.expires_at or _NEVER, is_paid, grant.seq


def unspent(meter: BillingMeterRow) -> int:
    """Return total - used - pinned: what is open where it is positive, and what is uncovered where it is negative."""
    return meter.total_credits - meter.used_credits - meter.pinned_credits


def uncovered(meter: BillingMeterRow) -> int:
    """Return the usage that no credit has paid."""
    return max(0, -unspent(meter))


def parts_of(event: LedgerEntryRow) -> tuple[Draws, int]:
    """Return what a usage entry drew, and the rest of it: what no credit had paid."""
    draws = event.draws
    if draws is None:
        # The meter had nothing but its base.
        uncovered_after = max(0, event.used_credits_after - event.total_credits_after)
        rest = min(event.amount, uncovered_after)
        return [[BASE, event.amount - rest]], rest
    return draws, event.amount - sum(credits_ for _, credits_ in draws)


def joined(draws: Draws) -> Draws:
    """Return the draws with neighbours of one grant as one."""
    result: Draws = []
    for seq, credits_ in draws:
        if result and result[-1][0] == seq:
            result[-1] = [seq, result[-1][1] + credits_]
        else:
            result.append([seq, credits_])
    return result


def by_meter(rows: Iterable[R]) -> defaultdict[str, list[R]]:
    """Return the grants, holds or requests for credits of each meter, by its id."""
    found: defaultdict[str, list[R]] = defaultdict(list)
    for row in rows:
        found[row.meter_id].append(row)
    return found


@dataclass(slots=True)
class Credits:
    """The base and the grants of a meter, by `seq`, while commands are decided.

    What is open of all, their order and the next end are kept, so that a debit takes no longer for the grants that it
    does not touch.
    """

    grants: dict[int, CreditGrantRow]
    changed: set[int] = field(default_factory=set)
    _open_credits: int = field(init=False)
    _order: list[int] | None = field(init=False, default=None)
    _first_end: datetime | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Add up what is open."""
        self._open_credits = sum(grant.open_credits for grant in self.grants.values())

    @classmethod
    def of(cls, meter: BillingMeterRow, grants: Iterable[CreditGrantRow]) -> "Credits":
        """Return the credits of a meter, given all its grants with something open or pinned; others may be added."""
        by_seq = {grant.seq: grant for grant in grants}
        # Less than nothing where the grants were read later than the meter, and others were made in between.
        open_credits = max(0, unspent(meter) - sum(grant.open_credits for grant in by_seq.values()))
        return cls({BASE: base_of(meter, open_credits)} | by_seq)

    def in_order(self, now: datetime) -> Iterator[CreditGrantRow]:
        """Return what is open and can be used, in the order of use."""
        if self._order is None:
            self._order = [grant.seq for grant in sorted(self.grants.values(), key=order_of_use)]
        for seq in self._order:
            grant = self.grants[seq]
            if grant.open_credits and grant.is_live(now):
                yield grant

    def add(self, grant: CreditGrantRow) -> None:
        """Take a grant that has just been made or changed."""
        before = self.grants.get(grant.seq)
        self.grants[grant.seq] = grant
        self.changed.add(grant.seq)
        self._open_credits += grant.open_credits - (0 if before is None else before.open_credits)
        self._order = self._first_end = None

    def _change(self, seq: int, *, to: str, credits_: int, from_: str = "") -> None:
        """Move credits of a grant from one of its sums to another one."""
        grant = self.grants[seq]
        sums = {f"{to}_credits": getattr(grant, f"{to}_credits") + credits_}
        if from_:
            sums[f"{from_}_credits"] = getattr(grant, f"{from_}_credits") - credits_
        self.grants[seq] = changed = grant._replace(**sums)
        self.changed.add(seq)
        self._open_credits += changed.open_credits - grant.open_credits
        if bool(changed.open_credits) != bool(grant.open_credits):
            self._first_end = None

    def _take(self, amount: int, now: datetime, *, to: str) -> Draws:
        """Move open credits, up to the amount, in the order of use."""
        taken: Draws = []
        for grant in self.in_order(now) if amount > 0 else ():
            some = min(amount, grant.open_credits)
            self._change(grant.seq, from_="open", to=to, credits_=some)
            taken.append([grant.seq, some])
            amount -= some
            if not amount:
                break
        return taken

    def draw(self, amount: int, now: datetime) -> Draws:
        """Draw up to the amount of what is open; what is missing is uncovered."""
        return self._take(amount, now, to="drawn")

    def pin(self, amount: int, now: datetime) -> Draws:
        """Reserve up to the amount of what is open for a hold."""
        return self._take(amount, now, to="pinned")

    def draw_pins(self, pins: Draws, amount: int) -> Draws:
        """Draw up to the amount of a hold's pins, in their order, and free the others."""
        drawn: Draws = []
        for seq, credits_ in pins:
            some = min(amount, credits_)
            if some:
                self._change(seq, from_="pinned", to="drawn", credits_=some)
                drawn.append([seq, some])
            if credits_ > some:
                self._change(seq, from_="pinned", to="open", credits_=credits_ - some)
            amount -= some
        return drawn

    def count_live(self, now: datetime) -> int:
        """Return how many grants can be used or are reserved for a hold."""
        return sum(
            grant.is_live(now) and bool(grant.open_credits or grant.pinned_credits)
            for seq, grant in self.grants.items()
            if seq != BASE
        )

    def refill(self, credits_: int) -> None:
        """Add to the base."""
        base = self.grants[BASE]
        self.grants[BASE] = base._replace(open_credits=base.open_credits + credits_)
        self._open_credits += credits_

    def give_back(self, event: LedgerEntryRow, amount: int, *, voided: int, meter: BillingMeterRow) -> Draws:
        """Give back an amount of an event of which so much was `voided` before, the last of it first; return to what.

        What no credit had paid of it comes first: what still is uncovered, then what grants have covered since, the
        newest first, then what the base has. The meter is as it was before the void.
        """
        draws, uncovered_of_event = parts_of(event)
        given: Draws = []
        of_uncovered = min(amount, max(0, uncovered_of_event - voided))
        covered = of_uncovered - min(of_uncovered, uncovered(meter))
        covering = (seq for seq, grant in self.grants.items() if grant.covered_credits) if covered else ()
        for seq in sorted(covering, reverse=True):
            some = min(covered, self.grants[seq].covered_credits)
            if some:
                grant = self.grants[seq]
                self.grants[seq] = grant._replace(covered_credits=grant.covered_credits - some)
                self._give(given, seq, some)
                covered -= some
        if covered:
            self._give(given, BASE, covered)
        amount -= of_uncovered
        passed = max(0, voided - uncovered_of_event)
        for seq, credits_ in reversed(draws):
            already = min(passed, credits_)
            passed -= already
            some = min(amount, credits_ - already)
            if some:
                self._give(given, seq, some)
                amount -= some
        return joined(given)

    def _give(self, given: Draws, seq: int, credits_: int) -> None:
        self._change(seq, from_="drawn", to="open", credits_=credits_)
        given.append([seq, credits_])

    def cover(self, meter: BillingMeterRow, now: datetime) -> None:
        """Pay what is uncovered by what is open and can be used; the meter is as the newest entry leaves it."""
        if self._open_credits <= max(0, unspent(meter)):
            return
        usable = sum(grant.open_credits for grant in self.in_order(now))
        ended = self._open_credits - usable
        for seq, credits_ in self._take(usable - max(0, unspent(meter) - ended), now, to="drawn"):
            grant = self.grants[seq]
            self.grants[seq] = grant._replace(covered_credits=grant.covered_credits + credits_)

    def ended(self, now: datetime) -> list[CreditGrantRow]:
        """Return the grants with something open that can no longer be used, in the order of use."""
        if now < self._end():
            return []
        ended = [grant for grant in self.grants.values() if grant.open_credits and not grant.is_live(now)]
        return sorted(ended, key=order_of_use)

    def end(self, seq: int) -> int:
        """Take what is open of a grant that has ended or is closed, and return it."""
        grant = self.grants[seq]
        self._change(seq, from_="open", to="revoked" if grant.is_closed else "expired", credits_=grant.open_credits)
        return grant.open_credits

    def next_end(self) -> datetime | None:
        """Return when the next grant ends of which something is open; what is open of a closed one is taken before."""
        return None if (end := self._end()) == _NEVER else end

    def _end(self) -> datetime:
        if self._first_end is None:
            ends = [_end_of(grant) for grant in self.grants.values() if grant.open_credits]
            self._first_end = min(ends, default=_NEVER)
        return self._first_end


def _end_of(grant: CreditGrantRow) -> datetime:
    return _EVER if grant.is_closed else grant.expires_at or _NEVER
