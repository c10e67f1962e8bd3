"""What follows from time and from other entries: holds that expire, and credits of grants that have ended.

Every command first books what is due, each at its own moment; nothing else is needed for an expiry to be exact.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from resolvers.rules.alerts import BY_TIME
from resolvers.rules.commands import Decision, Known, after, newest_entry
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.holds import HoldRow, HoldState
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow

#: After how long what is due is overdue, where no gateway has written it.
OVERDUE = timedelta(minutes=1)

Booked = tuple[BillingMeterRow, LedgerEntryRow]


class Settle(NamedTuple):
    """A meter of which something may be due: it is booked before the command is decided, which changes nothing."""

    meter: MeterName

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """None."""
        return ()

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:  # noqa: ARG002  # A command's.
        """Return the meter."""
        return Decision(meter, None)


def book_due(meter: BillingMeterRow, known: Known, now: datetime) -> Iterator[Booked]:
    """Book what is due of the meter, and yield it after each entry with the entry.

    At one moment first the holds expire, in the order in which they were made, then the grants end, in that of use.
    """
    credits_, holds = known.credits_of(meter), _expiring(known, now)
    while True:
        moment, end = holds[-1].expires_at if holds else None, credits_.next_end()
        if end is not None and (moment is None or end < moment):
            moment = end
        if moment is None or moment > now:
            _pass_moments(meter, known, now)
            return
        _pass_moments(meter, known, moment)
        while holds and holds[-1].expires_at <= moment:
            meter, entry = close_hold(meter, known, holds.pop(), HoldState.EXPIRED, moment, recorded_by=BY_TIME)
            # What it has freed covers before the next one frees what may come first in the order of use.
            credits_.cover(meter, moment)
            yield meter, entry
        for booked in settle(meter, known, moment):
            meter, _ = booked
            yield booked
        if known.watch is not None:
            known.watch.pass_silently(known, moment)


def _pass_moments(meter: BillingMeterRow, known: Known, until: datetime) -> None:
    if known.watch is not None:
        known.watch.pass_moments(meter, known, until)


def close_hold(
    meter: BillingMeterRow, known: Known, hold: HoldRow, state: HoldState, now: datetime, *, recorded_by: str
) -> Booked:
    """Free what a hold has reserved."""
    credits_ = known.credits_of(meter)
    credits_.draw_pins(hold.pins, 0)
    known.change_hold(hold._replace(state=state, closed_at=now))
    meter = after(meter, now, **released(meter, hold))
    kind = LedgerEntryKind.RELEASE if state is HoldState.RELEASED else LedgerEntryKind.HOLD_EXPIRY
    entry = newest_entry(meter, kind, amount=hold.amount, recorded_by=recorded_by, key=hold.hold_id, hold_seq=hold.seq)
    return meter, entry


def released(meter: BillingMeterRow, hold: HoldRow) -> dict[str, int]:
    """Return the columns of the meter without what an open hold reserves."""
    return {
        "held_credits": meter.held_credits - hold.amount,
        "pinned_credits": meter.pinned_credits - sum(credits_ for _, credits_ in hold.pins),
        "open_holds": meter.open_holds - 1,
    }


def settle(meter: BillingMeterRow, known: Known, now: datetime) -> Iterator[Booked]:
    """Pay what is uncovered by what is open, and take what is open of grants that can no longer be used.

    The meter is yielded after each entry, with the entry.
    """
    credits_ = known.credits_of(meter)
    credits_.cover(meter, now)
    for grant in credits_.ended(now):
        taken = credits_.end(grant.seq)
        meter = after(meter, now, total_credits=meter.total_credits - taken)
        kind = LedgerEntryKind.REVOCATION if grant.is_closed else LedgerEntryKind.EXPIRY
        yield meter, newest_entry(meter, kind, amount=taken, recorded_by=BY_TIME, grant_seq=grant.seq)


def next_due(meter: BillingMeterRow, known: Known) -> datetime | None:
    """Return when something of the meter is due at the earliest, or a moment before that; None: nothing ever is.

    Open holds that are not known are not due before the meter was.
    """
    holds = [hold.expires_at for hold in known.holds.values() if hold.state is HoldState.OPEN]
    ends = holds if len(holds) == meter.open_holds or meter.next_due_at is None else [*holds, meter.next_due_at]
    end = known.credits.next_end() if known.credits is not None else None
    return min([*ends, *known.moments.values(), *([] if end is None else [end])], default=None)


def _expiring(known: Known, now: datetime) -> list[HoldRow]:
    """Return the open holds that are over, the last to expire first."""
    due = [hold for hold in known.holds.values() if hold.state is HoldState.OPEN and hold.expires_at <= now]
    return sorted(due, key=lambda hold: (hold.expires_at, hold.seq), reverse=True)
