"""Alerts: on which side of its threshold a meter is, and where along the ledger it passes to the other.

No side is stored. At each point of the ledger the side follows from the entry there, and so do the crossings:
for the writer that decides the entries as for `tollgate verify`, which reads them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from resolvers.rules.balances import available_credits, overage_credits
from resolvers.rules.credits import BASE, Credits
from resolvers.rules.events import grant_shown
from storage.alerts import AlertRow
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.credit_grants import CreditGrantRow
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow
from storage.meters.meter_alerts import AlertKind, MeterAlertRow

#: What is recorded as who has recorded the entries that nobody asked for.
BY_TIME = "tollgate"

#: What an entry's amount adds to its usage day, by the entry's kind: it is multiplied by this.
ON_DAY = {LedgerEntryKind.USAGE: 1, LedgerEntryKind.VOID: -1}

#: How many alerts a meter may have of its own, and how many a workspace may have for each of its meters.
MAX_ALERTS = 25


class Levels(NamedTuple):
    """What a meter's credits are at a point of its ledger. `limit_credits` None: there is no limit."""

    seq: int
    total_credits: int
    used_credits: int
    held_credits: int
    limit_credits: int | None

    @classmethod
    def of_meter(cls, meter: BillingMeterRow) -> "Levels":
        """Return those of a meter, as its newest entry leaves it."""
        credits_ = (meter.total_credits, meter.used_credits, meter.held_credits, meter.limit_credits)
        return cls(meter.last_seq, *credits_)

    @classmethod
    def after(cls, entry: LedgerEntryRow) -> "Levels":
        """Return those that an entry leaves."""
        credits_ = (entry.total_credits_after, entry.used_credits_after, entry.held_credits_after, entry.limit_credits)
        return cls(entry.seq, *credits_)


def is_past(alert: MeterAlertRow, levels: Levels, day_usage: int = 0) -> bool:
    """Whether a meter is past the threshold of an alert that is not about grants; below is `<`, above is `>`.

    `day_usage` is what one day used, of the alert's usage name where it has one.
    """
    _, total, used, held, limit = levels
    threshold = alert.threshold
    match alert.kind:
        case AlertKind.REMAINING_BELOW:
            return total - used < threshold
        case AlertKind.AVAILABLE_BELOW:
            available = available_credits(limit, used, held)
            return available is not None and available < threshold
        case AlertKind.OVERAGE_ABOVE:
            return overage_credits(total, used) > threshold
        case AlertKind.DAY_USAGE_ABOVE:
            return day_usage > threshold
        case _:
            return False


def nears_end_at(alert: MeterAlertRow, grant: CreditGrantRow) -> datetime | None:
    """Return when a grant of which something can be used comes within the alert's seconds of its end; None: never."""
    if grant.seq == BASE or grant.is_closed or not grant.open_credits or grant.expires_at is None:
        return None
    return grant.expires_at - timedelta(seconds=alert.threshold)


def points(entries: Iterable[LedgerEntryRow]) -> Iterator[tuple[LedgerEntryRow, LedgerEntryRow]]:
    """Return the points of consecutive entries, each as its first and its last entry.

    What time books, or what another entry causes, belongs to the entry before it where that is of the same moment: only
    after all of them do a meter's credits and its grants agree.
    """
    first = last = None
    for entry in entries:
        if first is not None and last is not None and not is_of_same_point(last, entry):
            yield first, last
            first = None
        first, last = first or entry, entry
    if first is not None and last is not None:
        yield first, last


def is_of_same_point(last: LedgerEntryRow, entry: LedgerEntryRow) -> bool:
    """Whether an entry belongs to the same point as the one before it."""
    return entry.recorded_by == BY_TIME and entry.recorded_at == last.recorded_at


class Crossing(NamedTuple):
    """A meter came past an alert's threshold, or back from it, with the entry of this number."""

    alert: MeterAlertRow
    seq: int
    is_triggered: bool
    day: date | None


@dataclass(slots=True)
class Course:
    """Where a meter is along its ledger: its credits, and what its days have used, by usage name."""

    levels: Levels
    days: dict[date, dict[str, int]] = field(default_factory=dict)

    def usage(self, day: date, usage_name: str | None) -> int:
        """Return what a day has used, of one usage name or of all."""
        of_day: Mapping[str, int] = self.days.get(day, {})
        return sum(of_day.values()) if usage_name is None else of_day.get(usage_name, 0)

    def start(self, alerts: Iterable[MeterAlertRow], today: date) -> Iterator[Crossing]:
        """Return which of the alerts trigger at once that a meter takes on where it is; none is about grants."""
        for alert in alerts:
            day = today if alert.kind is AlertKind.DAY_USAGE_ABOVE else None
            usage = 0 if day is None else self.usage(day, alert.usage_name)
            if alert.triggers_if_past and is_past(alert, self.levels, usage):
                yield Crossing(alert, self.levels.seq, is_triggered=True, day=day)

    def advance(
        self, first: LedgerEntryRow, last: LedgerEntryRow, alerts: Sequence[MeterAlertRow]
    ) -> Iterator[Crossing]:
        """Go to the next point, and return the crossings of those of the alerts that hold from here to there."""
        before, self.levels = self.levels, Levels.after(last)
        day, name = first.day, first.usage_name
        added = first.amount * ON_DAY.get(first.kind, 0)
        holding = [alert for alert in alerts if holds_between(alert, before.seq, last.seq)]
        used = [self.usage(day, alert.usage_name) for alert in holding] if added and day is not None else []
        if added and day is not None and name is not None:
            of_day = self.days.setdefault(day, {})
            of_day[name] = of_day.get(name, 0) + added
        for place, alert in enumerate(holding):
            is_of_day = alert.kind is AlertKind.DAY_USAGE_ABOVE
            if is_of_day and day is not None and used:
                was = is_past(alert, before, used[place])
                is_ = is_past(alert, self.levels, self.usage(day, alert.usage_name))
            else:
                was, is_ = is_past(alert, before), is_past(alert, self.levels)
            if was is not is_:
                yield Crossing(alert, last.seq, is_triggered=is_, day=day if is_of_day else None)


def holds_between(alert: MeterAlertRow, before: int, after: int) -> bool:
    """Whether an alert holds for what comes between two points, given by the numbers of their last entries."""
    return alert.since_seq <= before and (alert.until_seq is None or after <= alert.until_seq)


def alert_shown(alert: MeterAlertRow, name: str | None) -> dict[str, Any]:
    """Return an alert as the bodies of events have it."""
    return {
        "id": alert.alert_id,
        "version": alert.version,
        "kind": alert.kind.name,
        "threshold": str(alert.threshold),
        "usageName": alert.usage_name,
        "name": name,
    }


def taken_on(
    alert: AlertRow, meter: BillingMeterRow, now: datetime, *, triggers_if_past: bool = False
) -> MeterAlertRow:
    """Return what a meter takes on of an alert where it is now."""
    return MeterAlertRow(
        meter_id=meter.id,
        alert_id=alert.id,
        version=alert.version,
        kind=alert.kind,
        threshold=alert.threshold,
        usage_name=alert.usage_name,
        since_seq=meter.last_seq,
        since_at=now,
        triggers_if_past=triggers_if_past,
        checked_until=now if alert.kind is AlertKind.GRANT_EXPIRES_WITHIN else None,
    )


def sets_end(entry: LedgerEntryRow) -> bool:
    """Whether an entry sets the end of a grant."""
    is_change = entry.kind is LedgerEntryKind.GRANT_CHANGED and "expiresAt" in entry.metadata
    return entry.kind is LedgerEntryKind.GRANT or is_change


class NearEnd(NamedTuple):
    """A grant has come near its end, as an alert wants to know, at this moment."""

    alert: MeterAlertRow
    at: datetime
    grant: CreditGrantRow


def coming_near(alert: MeterAlertRow, credits_: Credits, until: datetime) -> list[NearEnd]:
    """Return the grants that come near their ends until that moment, and had not when the alert was last checked."""
    since = alert.checked_until
    moments = [(nears_end_at(alert, grant), grant) for grant in credits_.grants.values()]
    found = [
        NearEnd(alert, at, grant)
        for at, grant in moments
        if at is not None and since is not None and since < at <= until
    ]
    return sorted(found, key=lambda each: (each.at, each.grant.seq))


def near_end_data(near: NearEnd, name: str | None) -> dict[str, Any]:
    """Return what the body of an event has of a grant that comes near its end, beside the meter."""
    return {"alert": alert_shown(near.alert, name), "creditGrant": grant_shown(near.grant)}
