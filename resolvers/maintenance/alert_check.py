"""One meter's alerts, replayed: the crossings that follow from its ledger, and then its events against them.

What a meter has taken on says from which entry on each version of an alert holds, and until which. The oldest events
are deleted in time: what is before those that are there is not asked for.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from resolvers.rules.alerts import (
    Course,
    Crossing,
    Levels,
    NearEnd,
    alert_shown,
    coming_near,
    holds_between,
    is_of_same_point,
    near_end_data,
    nears_end_at,
    sets_end,
)
from resolvers.rules.booking import OVERDUE
from resolvers.rules.credits import Credits
from resolvers.values import day_of
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.events import EventRow, EventType
from storage.meters.ledger import LedgerEntryRow
from storage.meters.meter_alerts import AlertKind, MeterAlertRow

_OF_GRANTS = AlertKind.GRANT_EXPIRES_WITHIN
_ALERT_TYPES = frozenset((EventType.ALERT_TRIGGERED, EventType.ALERT_RECOVERED))

#: How many events are remembered that do not follow, or are missing.
MAX_DIFFERING = 1_000


class _Event(NamedTuple):
    """What an event of an alert says, but for the alert's name, which may change."""

    seq: int
    type: str
    alert_id: str
    version: int
    said: str

    @classmethod
    def of(cls, seq: int, type_: str, data: dict[str, Any]) -> "_Event":
        alert = {name: value for name, value in data["alert"].items() if name != "name"}
        said = [alert, data.get("day"), data.get("creditGrant")]
        return cls(seq, type_, alert["id"], alert["version"], orjson.dumps(said, option=orjson.OPT_SORT_KEYS).decode())

    def __str__(self) -> str:
        return f"{self.type} of alert {self.alert_id}, version {self.version}"


@dataclass(slots=True)
class AlertCheck:
    """Follows one meter's entries and the events of its alerts, and reports what does not follow."""

    meter: BillingMeterRow
    rows: Sequence[MeterAlertRow] = ()
    course: Course = field(default_factory=lambda: Course(Levels(0, 0, 0, 0, None)))
    #: The first and the last entry of the point that may not be over.
    tail: tuple[LedgerEntryRow, LedgerEntryRow] | None = None
    seq: int = 0
    #: Of the alerts about grants: until when they are checked, by alert and version.
    checked: dict[tuple[str, int], datetime] = field(default_factory=dict)
    triggered_at: dict[tuple[str, int], datetime] = field(default_factory=dict)
    missing: Counter[_Event] = field(default_factory=Counter)
    surplus: Counter[_Event] = field(default_factory=Counter)
    #: The entry of the oldest event that is there, and its number.
    first: tuple[int, int] | None = None

    def before(self, entry: LedgerEntryRow, credits_: Credits | None) -> None:
        """Come to the next entry; the grants are as the one before it leaves them."""
        if self.rows:
            self._pass(entry.recorded_at, credits_, is_end=False)

    def after(self, entry: LedgerEntryRow, credits_: Credits | None) -> None:
        """Take the entry; the grants are as it leaves them."""
        self.seq = entry.seq
        if not self.rows:
            return
        if self.tail is not None and not is_of_same_point(self.tail[1], entry):
            self._advance(*self.tail)
            self.tail = None
        self.tail = (entry if self.tail is None else self.tail[0], entry)
        if credits_ is None:
            return
        for row in self._holding(entry.seq - 1, entry.seq):
            if sets_end(entry) and (grant := credits_.grants.get(entry.grant_seq or 0)) is not None:
                at = nears_end_at(row, grant)
                if at is not None and at <= entry.recorded_at:
                    self._near(NearEnd(row, entry.recorded_at, grant))
            if coming_near(self._checked(row), credits_, entry.recorded_at):
                self.checked[row.alert_id, row.version] = entry.recorded_at

    def _holding(self, before: int, after: int) -> Iterator[MeterAlertRow]:
        return (row for row in self.rows if row.kind is _OF_GRANTS and holds_between(row, before, after))

    def _checked(self, row: MeterAlertRow) -> MeterAlertRow:
        return row._replace(checked_until=self.checked.get((row.alert_id, row.version), row.since_at))

    def _pass(self, until: datetime, credits_: Credits | None, *, is_end: bool) -> None:
        """Note which grants come near their ends after the newest entry, until then.

        Where no entry follows for which the alert holds, it does so for as long as it says that it was checked.
        """
        if credits_ is None:
            return
        for row in self.rows:
            if row.kind is not _OF_GRANTS or not holds_between(row, self.seq, self.seq):
                continue
            if row.triggers_if_past and row.since_seq == self.seq and (row.alert_id, row.version) not in self.checked:
                self.checked[row.alert_id, row.version] = row.since_at
                for grant in credits_.grants.values():
                    at = nears_end_at(row, grant)
                    if at is not None and at <= row.since_at and grant.is_live(row.since_at):
                        self._near(NearEnd(row, row.since_at, grant))
            is_last = is_end or row.until_seq == self.seq
            to = min(until, row.checked_until or until) if is_last else until
            found = coming_near(self._checked(row), credits_, to)
            for near in found:
                self._near(near)
            if found:
                self.checked[row.alert_id, row.version] = to

    def _near(self, near: NearEnd) -> None:
        self._expect(near.alert, EventType.ALERT_TRIGGERED, self.seq, near_end_data(near, None), near.at)

    def _advance(self, first: LedgerEntryRow, last: LedgerEntryRow) -> None:
        rows = [row for row in self.rows if row.kind is not _OF_GRANTS]
        self._cross(self.course.advance(first, last, rows), last.recorded_at)
        for row in rows:
            if row.triggers_if_past and row.since_seq == last.seq:
                self._cross(self.course.start([row], day_of(row.since_at, self.meter.timezone)), row.since_at)

    def _cross(self, crossings: Iterable[Crossing], at: datetime) -> None:
        for crossing in crossings:
            type_ = EventType.ALERT_TRIGGERED if crossing.is_triggered else EventType.ALERT_RECOVERED
            day = {} if crossing.day is None else {"day": crossing.day.isoformat()}
            data = {"alert": alert_shown(crossing.alert, None)} | day
            self._expect(crossing.alert, type_, crossing.seq, data, at)

    def _expect(self, row: MeterAlertRow, type_: EventType, seq: int, data: dict[str, Any], at: datetime) -> None:
        if type_ is EventType.ALERT_TRIGGERED:
            self.triggered_at[row.alert_id, row.version] = at
        self._count(_Event.of(seq, type_, data), self.missing, self.surplus)

    def _count(self, event: _Event, here: Counter[_Event], there: Counter[_Event]) -> None:
        """Note an event on one of both sides, unless it is on the other one."""
        if there[event] > 0:
            there[event] -= 1
        elif len(here) < MAX_DIFFERING:
            here[event] += 1
        for counter in (here, there):
            if not counter[event]:
                del counter[event]

    def follow(self, events: Sequence[EventRow], last_seq: int) -> None:
        """Take the events of the entries so far, up to the one of this number."""
        for event in events:
            if self.first is None and event.seq is not None:
                self.first = (event.seq, event.number)
            if event.type in _ALERT_TYPES and event.seq is not None:
                data = orjson.loads(event.payload)["data"]
                self._count(_Event.of(event.seq, event.type, data), self.surplus, self.missing)
        # What comes before the oldest event is not asked for.
        oldest = last_seq if self.first is None else self.first[0] if self.first[1] > 1 else 0
        for each in [each for each in self.missing if each.seq <= oldest]:
            del self.missing[each]

    def finish(self, credits_: Credits | None, now: datetime | None) -> Iterator[str]:
        """Return what does not follow; where the time is given, nothing may be overdue."""
        if self.rows and not self.meter.has_alerts:
            yield "its has_alerts is False and should be True"
        if self.tail is not None:
            self._advance(*self.tail)
        self._pass(datetime.max.replace(tzinfo=self.meter.created_at.tzinfo), credits_, is_end=True)
        if self.first is None:
            self.missing.clear()
        for event in sorted(self.missing):
            yield f"entry {event.seq}: the {event} is missing"
        for event in sorted(self.surplus):
            yield f"entry {event.seq}: the {event} does not follow from the ledger"
        for row in self.rows:
            for message in self._row(row, credits_, now):
                yield f"alert {row.alert_id}, version {row.version}: {message}"

    def _row(self, row: MeterAlertRow, credits_: Credits | None, now: datetime | None) -> Iterator[str]:
        if row.since_seq > self.seq or (row.until_seq or 0) > self.seq:
            yield f"it holds since entry {row.since_seq} until {row.until_seq}, and there is none"
        triggered_at = self.triggered_at.get((row.alert_id, row.version))
        if triggered_at != row.last_triggered_at:
            yield f"it last triggered at {row.last_triggered_at} and should have at {triggered_at}"
        if now is not None and credits_ is not None and row.kind is _OF_GRANTS and row.until_seq is None:
            for near in coming_near(self._checked(row), credits_, now - OVERDUE):
                yield f"a grant came near its end at {near.at}, which is not written"
