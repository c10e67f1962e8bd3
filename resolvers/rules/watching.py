"""The alerts of one meter while the commands of a transaction are decided, and the events that they come to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime

from resolvers.rules.alerts import (
    ON_DAY,
    Course,
    Crossing,
    Levels,
    NearEnd,
    alert_shown,
    coming_near,
    near_end_data,
    nears_end_at,
    points,
    sets_end,
    taken_on,
)
from resolvers.rules.commands import Known
from resolvers.rules.events import NewEvent
from resolvers.values import day_of
from storage.alerts import AlertRow
from storage.idempotency_keys import IdempotencyKeyRow
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.events import EventType
from storage.meters.ledger import LedgerEntryRow
from storage.meters.meter_alerts import AlertKind, MeterAlertRow

#: Under which name the moments of grants that come near their ends are known: see `Known.moments`.
ALERTS = "alerts"

_OF_GRANTS = AlertKind.GRANT_EXPIRES_WITHIN


@dataclass(slots=True)
class Named:
    """The alerts that a group's commands name, by id, with what changes of them; deleted ones are among them.

    `requests` are the first requests under the idempotency keys that they name, by key.
    """

    alerts: dict[str, AlertRow] = field(default_factory=dict)
    requests: dict[str, IdempotencyKeyRow] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    remembered: list[IdempotencyKeyRow] = field(default_factory=list)

    def make(self, alert: AlertRow) -> None:
        """Know an alert that has just been made."""
        self.alerts[alert.id] = alert
        self.made.add(alert.id)

    def change(self, alert: AlertRow) -> None:
        """Know an alert that has just been changed."""
        self.alerts[alert.id] = alert
        self.changed.add(alert.id)


@dataclass(slots=True)
class Watched:
    """A version of an alert that the meter has taken on, and the alert."""

    row: MeterAlertRow
    alert: AlertRow
    is_new: bool = False
    is_changed: bool = False

    def change(self, **values: object) -> None:
        """Change what the meter has taken on."""
        self.row = self.row._replace(**values)  # type: ignore[arg-type]  # The callers name the fields.
        self.is_changed = True


@dataclass(slots=True)
class Watch:
    """The alerts of a meter, and all entries that have been decided of it, each with the meter as it leaves it."""

    named: Named
    alerts: list[Watched] = field(default_factory=list)
    trail: list[tuple[BillingMeterRow, LedgerEntryRow]] = field(default_factory=list)
    #: Whether something is to be written although no entry was decided.
    is_changed: bool = False

    @property
    def is_written(self) -> bool:
        """Whether what the meter takes on and gives up silently is written, too: with an entry, or a change."""
        return self.is_changed or bool(self.trail)

    def holding(self) -> list[Watched]:
        """Return those that hold from now on."""
        return [each for each in self.alerts if each.row.until_seq is None]

    def take_on(
        self, alert: AlertRow, meter: BillingMeterRow, now: datetime, *, triggers_if_past: bool = False
    ) -> None:
        """Have an alert hold for what comes after the meter's newest entry."""
        row = taken_on(alert, meter, now, triggers_if_past=triggers_if_past)
        self.alerts.append(Watched(row, alert, is_new=True))

    def give_up(self, alert_id: str, meter: BillingMeterRow) -> None:
        """Have an alert hold no longer for what comes after the meter's newest entry."""
        for each in self.holding():
            if each.row.alert_id == alert_id:
                each.change(until_seq=meter.last_seq)

    def start(self, alert: AlertRow, meter: BillingMeterRow, known: Known, now: datetime, *, if_past: bool) -> None:
        """Have an alert hold that a command makes or changes; `if_past`: it triggers at once where it is past.

        What is of the credits is found when the whole transaction is decided, and what is of grants now.
        """
        self.is_changed = True
        self.take_on(alert, meter, now, triggers_if_past=if_past)
        each = self.alerts[-1]
        if if_past and alert.kind is _OF_GRANTS and known.credits is not None:
            for grant in known.credits.grants.values():
                at = nears_end_at(each.row, grant)
                if at is not None and at <= now and grant.is_live(now):
                    self._near(NearEnd(each.row, now, grant), meter, known)

    # Grants that come near their ends.

    def _of_grants(self) -> list[Watched]:
        return [each for each in self.holding() if each.row.kind is _OF_GRANTS]

    def pass_moments(self, meter: BillingMeterRow, known: Known, until: datetime) -> None:
        """Trigger for the grants that come near their ends until that moment; the meter is as it is then."""
        of_grants = self._of_grants()
        if not of_grants or known.credits is None:
            return
        for each in of_grants:
            for near in coming_near(each.row, known.credits, until):
                self._near(near, meter, known)
                each.change(checked_until=until)

    def decided(self, meter: BillingMeterRow, known: Known, now: datetime, entry: LedgerEntryRow | None) -> None:
        """Take what a command has decided, which leaves the meter so.

        Where the end of a grant is set that is near already, that entry triggers.
        """
        of_grants = self._of_grants()
        if not of_grants or known.credits is None:
            return
        grants = known.credits.grants
        if entry is not None and entry.grant_seq is not None and sets_end(entry):
            for each in of_grants:
                at = nears_end_at(each.row, grants[entry.grant_seq])
                if at is not None and at <= now:
                    self._near(NearEnd(each.row, now, grants[entry.grant_seq]), meter, known)
        self.pass_silently(known, now)

    def pass_silently(self, known: Known, now: datetime) -> None:
        """Be done with the grants that are near their ends now, and of which nothing was open when they came so."""
        for each in self._of_grants():
            if known.credits is not None and coming_near(each.row, known.credits, now):
                each.change(checked_until=now)
                self.is_changed = True

    def note_moments(self, known: Known, now: datetime) -> None:
        """Note when the next grant comes near its end."""
        moments = [
            at
            for each in self._of_grants()
            for grant in (known.credits.grants.values() if known.credits is not None else ())
            if (at := nears_end_at(each.row, grant)) is not None and at > now
        ]
        known.moments.pop(ALERTS, None)
        if moments:
            known.moments[ALERTS] = min(moments)

    def _near(self, near: NearEnd, meter: BillingMeterRow, known: Known) -> None:
        each = self._of(near.alert)
        data = near_end_data(near, each.alert.name)
        known.events.append(NewEvent(EventType.ALERT_TRIGGERED, meter, near.at, data, near.alert.alert_id))
        each.change(last_triggered_at=near.at)
        self.is_changed = True

    def _of(self, row: MeterAlertRow) -> Watched:
        key = (row.alert_id, row.version)
        return next(each for each in self.alerts if (each.row.alert_id, each.row.version) == key)

    # Thresholds of credits, when all is decided.

    def days(self, timezone: str) -> tuple[set[date], set[str] | None]:
        """Return the days whose usage has to be known, and of which usage names; None: of all."""
        of_days = [each.row for each in self.alerts if each.row.kind is AlertKind.DAY_USAGE_ABOVE]
        if not of_days:
            return set(), None
        days = {entry.day for _, entry in self.trail if entry.kind in ON_DAY and entry.day is not None}
        days |= {day_of(row.since_at, timezone) for row in self._starting() if row in of_days}
        names = {row.usage_name for row in of_days if row.usage_name is not None}
        return days, None if any(row.usage_name is None for row in of_days) else names

    def _starting(self) -> list[MeterAlertRow]:
        return [each.row for each in self.alerts if each.is_new and each.row.triggers_if_past]

    def crossings(self, before: BillingMeterRow, days: dict[date, dict[str, int]]) -> Iterator[NewEvent]:
        """Return the events of the crossings, given the meter and its days as they were before all entries."""
        course = Course(Levels.of_meter(before), days)
        meters = {before.last_seq: before} | {entry.seq: meter for meter, entry in self.trail}
        rows = [each.row for each in self.alerts if each.row.kind is not _OF_GRANTS]
        starting = self._starting()

        def start() -> Iterable[Crossing]:
            here = [row for row in starting if row.since_seq == course.levels.seq]
            return [found for row in here for found in course.start([row], day_of(row.since_at, before.timezone))]

        for first, last in points(entry for _, entry in self.trail):
            for crossing in start():
                yield self._event(crossing, meters[crossing.seq], crossing.alert.since_at)
            for crossing in course.advance(first, last, rows):
                yield self._event(crossing, meters[crossing.seq], last.recorded_at)
        for crossing in start():
            yield self._event(crossing, meters[crossing.seq], crossing.alert.since_at)

    def _event(self, crossing: Crossing, meter: BillingMeterRow, at: datetime) -> NewEvent:
        each = self._of(crossing.alert)
        if crossing.is_triggered:
            each.change(last_triggered_at=at)
        type_ = EventType.ALERT_TRIGGERED if crossing.is_triggered else EventType.ALERT_RECOVERED
        day = {} if crossing.day is None else {"day": crossing.day.isoformat()}
        data = {"alert": alert_shown(crossing.alert, each.alert.name)} | day
        return NewEvent(type_, meter, at, data, crossing.alert.alert_id)
