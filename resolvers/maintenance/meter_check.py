"""One meter's ledger, replayed: its entries in their order, then the meter's row and its usage days against them.

What an entry of each kind may hold is written once, in `RULES`. `OPENING` records the meter's settings and `SETTINGS`
what changes of them, so that the replay knows them at every entry, and with them the limit, what a policy accepts and
the day.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, NamedTuple

from resolvers import idempotency
from resolvers.actor import Scope
from resolvers.maintenance.alert_check import AlertCheck
from resolvers.maintenance.credit_check import CreditCheck
from resolvers.maintenance.entry_rules import RECORDED_WITHOUT_KEY, RULES, UNREADABLE, fields_of, unreadable
from resolvers.maintenance.event_check import EventCheck
from resolvers.maintenance.refill_check import RefillCheck, RefillRows
from resolvers.meters.record_usage import EPOCH, NEWEST, OLDEST
from resolvers.meters.settings import FIXED_SETTINGS, LATER_SETTINGS, SETTINGS, NewBillingMeter, settings_of
from resolvers.rules.balances import available_bits, available_credits, limit_credits
from resolvers.values import day_of, parse_amount
from storage import ids
from storage.idempotency_keys import IdempotencyKeyRow
from storage.maintenance.audit import KeyHolder
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.credit_grants import CreditGrantRow
from storage.meters.holds import HoldRow
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow, OverLimitPolicy
from storage.meters.usage import UsageDayRow
from storage.tenants import Environment

#: How far the clocks of gateways may lie apart: an entry may be recorded by so much before the one that it follows.
CLOCKS_APART = NEWEST


class Disagreement(NamedTuple):
    """Which row breaks an invariant, by its id or its meter's, and how."""

    id: str
    message: str


@dataclass(slots=True)
class MeterCheck:
    """Follows one meter's entries in their order, and reports what does not follow."""

    meter: BillingMeterRow
    seq: int = 0
    total_credits: int = 0
    used_credits: int = 0
    held_credits: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    opening: LedgerEntryRow | None = None
    recorded_at: datetime | None = None
    days: dict[tuple[date | None, str | None], int] = field(default_factory=dict)
    voided: dict[int, int] = field(default_factory=dict)
    """Of a meter that has had grants or holds, what is given back of each usage entry, by its `seq`."""
    is_right: bool = True
    """Whether nothing has been reported of its entries."""
    credits_: CreditCheck = field(init=False)
    events: EventCheck = field(init=False)
    alerts: AlertCheck = field(init=False)
    refills: RefillCheck = field(default_factory=RefillCheck)

    def __post_init__(self) -> None:
        """Begin without grants, holds, events and alerts."""
        self.credits_ = CreditCheck(self.meter)
        self.events = EventCheck(self.meter)
        self.alerts = AlertCheck(self.meter)

    @property
    def has_credits(self) -> bool:
        """Whether the meter has had grants or holds."""
        return self.meter.has_grants or self.meter.has_holds

    def follow(
        self,
        entries: Iterable[LedgerEntryRow],
        key_holders: Mapping[str, KeyHolder],
        events: Mapping[tuple[str, int], LedgerEntryRow],
        closed: Mapping[tuple[str, int], HoldRow],
    ) -> Iterator[Disagreement]:
        """Take the next entries. `key_holders` has those of the keys that recorded them which exist.

        `events` has the usage entries that the voids among them give back, where the meter has had grants or holds;
        `closed` the rows of the holds that they close.
        """
        for entry in entries:
            try:
                before = (self.total_credits, self.used_credits)
                messages = [*self._entry(entry), *self._recorder(entry, key_holders)]
                self.refills.follow(entry)
                hold = closed.get((entry.meter_id, entry.hold_seq or 0))
                self.alerts.before(entry, self.credits_.credits_)
                messages += self.credits_.follow(entry, before, self._voided(entry, events), hold)
                self.alerts.after(entry, self.credits_.credits_)
            except UNREADABLE as error:
                messages = [unreadable(error)]
            self.is_right = self.is_right and not messages
            for message in messages:
                yield Disagreement(self.meter.id, f"entry {entry.seq}: {message}")

    def _voided(
        self, entry: LedgerEntryRow, events: Mapping[tuple[str, int], LedgerEntryRow]
    ) -> tuple[LedgerEntryRow, int] | None:
        """Return the usage that a void gives back, and what was given back of it before."""
        event = events.get((entry.meter_id, entry.voids_seq)) if entry.voids_seq is not None else None
        if event is None:
            return None
        before = self.voided.get(event.seq, 0)
        self.voided[event.seq] = before + entry.amount
        return event, before

    def _entry(self, entry: LedgerEntryRow) -> Iterator[str]:
        rule = RULES[entry.kind]
        if entry.seq != self.seq + 1:
            yield f"it follows entry {self.seq}"
        yield from fields_of(entry, rule)
        total_credits = self.total_credits + entry.amount * rule.adds_to_total
        used_credits = self.used_credits + entry.amount * rule.adds_to_used
        if entry.total_credits_after != total_credits:
            yield f"the total credits after it are {entry.total_credits_after} and should be {total_credits}"
        if entry.used_credits_after != used_credits:
            yield f"the used credits after it are {entry.used_credits_after} and should be {used_credits}"
        yield from self._settings(entry)
        if self.settings:
            yield from self._decision(entry, total_credits)
        yield from self._times(entry)
        if rule.adds_to_used:
            day = (entry.day, entry.usage_name)
            self.days[day] = self.days.get(day, 0) + entry.amount * rule.adds_to_used
        # What follows is held against what is written, so that one slip is not reported of every later entry.
        self.seq = entry.seq
        self.total_credits, self.used_credits = entry.total_credits_after, entry.used_credits_after
        self.held_credits = entry.held_credits_after

    def _settings(self, entry: LedgerEntryRow) -> Iterator[str]:
        """Take the settings that an entry records; each begins with what it was before."""
        if entry.kind not in {LedgerEntryKind.OPENING, LedgerEntryKind.SETTINGS} or not entry.metadata:
            return
        is_opening = entry.kind is LedgerEntryKind.OPENING
        allowed = set(SETTINGS) if is_opening else set(SETTINGS) - set(FIXED_SETTINGS)
        recorded = set(entry.metadata)
        # Openings of earlier releases have no settings that were not known then.
        if not recorded <= allowed or (is_opening and not allowed - recorded <= LATER_SETTINGS):
            yield f"it records {', '.join(sorted(recorded))}, and should record {', '.join(sorted(allowed))}"
            return
        if is_opening:
            self.opening = entry
        elif not self.settings:
            return
        if is_opening:
            self.settings |= dict.fromkeys(LATER_SETTINGS)
        for setting, (old, new) in sorted(entry.metadata.items()):
            if (was := self.settings.get(setting)) != old:
                yield f"its {setting} was {old!r} before it and should be {was!r}"
            if old == new and not is_opening:
                yield f"its {setting} stays {new!r}"
            self.settings[setting] = new

    def _limit(self, total_credits: int) -> int | None:
        return limit_credits(
            total_credits,
            allow_overages=self.settings["allowOverages"],
            spend_cap=_amount(self.settings["spendCap"]),
        )

    def _decision(self, entry: LedgerEntryRow, total_credits: int) -> Iterator[str]:
        """Hold an entry's limit against the settings; a debit against its policy, and its day against the zone."""
        # One that is wrong by the total after it is reported as the wrong total alone.
        limits = [self._limit(total) for total in (total_credits, entry.total_credits_after)]
        if entry.limit_credits not in limits:
            yield f"its limit is {entry.limit_credits} and should be {limits[0]}"
        if entry.kind not in {LedgerEntryKind.USAGE, LedgerEntryKind.HOLD}:
            return
        requested = entry.requested_amount
        if requested is not None and entry.policy is not None:
            available = available_credits(limits[0], self.used_credits, self.held_credits)
            hold = self.credits_.holds.get(entry.hold_seq or 0) if entry.kind is LedgerEntryKind.USAGE else None
            within = 0 if hold is None else min(requested, hold.amount)
            expected = within + _accepted(requested - within, available, entry.policy)
            if entry.amount != expected:
                yield f"by {entry.policy.name} it took {entry.amount} of {requested} and should have taken {expected}"
        if entry.kind is LedgerEntryKind.HOLD:
            return
        day = day_of(entry.occurred_at, self.settings["timezone"])
        if entry.day is not None and entry.day != day:
            yield f"its day is {entry.day} and should be {day}"

    def _times(self, entry: LedgerEntryRow) -> Iterator[str]:
        if self.recorded_at is not None and entry.recorded_at < self.recorded_at - CLOCKS_APART:
            yield f"it was recorded at {entry.recorded_at}, and the one before it at {self.recorded_at}"
        self.recorded_at = entry.recorded_at
        if entry.sent_at is not None and not EPOCH <= entry.sent_at <= entry.recorded_at + NEWEST:
            yield f"it was recorded at {entry.recorded_at}, and was sent for {entry.sent_at}"

    def _recorder(self, entry: LedgerEntryRow, key_holders: Mapping[str, KeyHolder]) -> Iterator[str]:
        """Hold who recorded an entry against what it takes to do so."""
        if entry.recorded_by in RECORDED_WITHOUT_KEY:
            if entry.kind not in RECORDED_WITHOUT_KEY[entry.recorded_by]:
                yield f"it was recorded by {entry.recorded_by}, which records no {entry.kind.name}"
            return
        scope = RULES[entry.kind].scope
        if scope is None:
            yield f"it was recorded by {entry.recorded_by}, and no key records an {entry.kind.name}"
            return
        holder = key_holders.get(entry.recorded_by)
        if holder is None:
            yield f"it was recorded by {entry.recorded_by!r}, and there is no such key"
            return
        if holder.created_at > entry.recorded_at + CLOCKS_APART:
            yield f"it was recorded by {entry.recorded_by}, a key that was made later, at {holder.created_at}"
        # As the ledger has them: a meter that was moved is reported once, and not of each entry.
        settings = self.settings or settings_of(self.meter)
        if (holder.org_id, holder.environment) != (settings["orgId"], settings["environment"]):
            yield f"it was recorded by {entry.recorded_by}, a key of another tenant"
        if holder.workspace_ids is not None and settings["workspaceId"] not in holder.workspace_ids:
            yield f"it was recorded by {entry.recorded_by}, a key for other workspaces"
        needed = {scope}
        is_late = entry.sent_at is not None and entry.sent_at < entry.recorded_at - OLDEST
        if is_late or entry.policy is OverLimitPolicy.FORCE:
            needed.add(Scope.USAGE_CORRECT)
        for lacking in sorted(needed - set(holder.scopes)):
            yield f"it was recorded by {entry.recorded_by}, a key without {lacking}"

    def finish_refills(self, rows: RefillRows, now: datetime | None) -> Iterator[Disagreement]:
        """Hold the meter's automatic refill against the entries, which have all been taken."""
        try:
            messages = [*self.refills.finish(self.meter, rows, now)]
        except UNREADABLE as error:
            messages = [f"of its automatic refill: {unreadable(error)}"]
        for message in messages:
            yield Disagreement(self.meter.id, message)

    @property
    def made_by(self) -> tuple[str, Environment, str] | None:
        """The (organization, environment, idempotency key) of the request that made the meter, if it had a key."""
        if self.opening is None or self.opening.key is None:
            return None
        return (self.meter.org_id, self.meter.environment, self.opening.key)

    def finish(
        self,
        days: Iterable[UsageDayRow],
        key: IdempotencyKeyRow | None,
        grants: Iterable[CreditGrantRow],
        holds: Mapping[int, HoldRow],
        now: datetime | None,
    ) -> Iterator[Disagreement]:
        """Hold the meter, its usage days, grants and holds against the entries, which have all been taken.

        `key` is what is remembered of the request that made the meter; `holds` are those that are open, by `seq`. Where
        the time is given, nothing may be overdue.
        """
        try:
            messages = [*self._row(), *self._creation(key), *self._days(days)]
            messages += self.credits_.finish(self.meter, grants, holds, now)
            if self.is_right and not messages:
                messages += [*self.events.finish(), *self.alerts.finish(self.credits_.credits_, now)]
        except UNREADABLE as error:
            messages = [unreadable(error)]
        for message in messages:
            yield Disagreement(self.meter.id, message)

    def _row(self) -> Iterator[str]:
        meter = self.meter
        if not ids.is_id(meter.id, ids.BILLING_METER):
            yield "its id is none of a meter"
        expected: list[tuple[str, object, object]] = [
            ("last entry", meter.last_seq, self.seq),
            ("total credits", meter.total_credits, self.total_credits),
            ("used credits", meter.used_credits, self.used_credits),
        ]
        if self.settings:
            found = settings_of(meter)
            expected += [(setting, found[setting], self.settings[setting]) for setting in SETTINGS]
            expected += [("limit", meter.limit_credits, self._limit(self.total_credits))]
        bits = available_bits(meter.limit_credits, meter.used_credits, meter.held_credits)
        expected += [("number of available bits", meter.available_bits, bits)]
        if self.opening is not None:
            expected += [("created_at", meter.created_at, self.opening.recorded_at)]
        if self.recorded_at is not None:
            expected += [("updated_at", meter.updated_at, self.recorded_at)]
        for name, is_, should_be in expected:
            if is_ != should_be:
                yield f"its {name} is {is_} and should be {should_be}"

    def _creation(self, key: IdempotencyKeyRow | None) -> Iterator[str]:
        """Hold what is remembered of the request that made the meter against its opening."""
        opening = self.opening
        if opening is None or opening.key is None:
            return
        if key is None or key.result_id != self.meter.id:
            yield f"it was made under the idempotency key {opening.key!r}, which does not lead to it"
            return
        first = {SETTINGS[setting]: new for setting, (_none, new) in opening.metadata.items()}
        first |= {
            "total_credits": opening.amount,
            "spend_cap": _amount(first["spend_cap"]),
            "max_open_holds": _amount(first.get("max_open_holds")),
        }
        request = NewBillingMeter(**{field: first[field] for field in NewBillingMeter._fields})
        if key.request_digest != idempotency.digest(request):
            yield f"the idempotency key {key.key!r} has the digest of another request"
        if key.created_at != opening.recorded_at:
            yield f"the idempotency key {key.key!r} is of {key.created_at} and should be of {opening.recorded_at}"

    def _days(self, days: Iterable[UsageDayRow]) -> Iterator[str]:
        counted = dict(self.days)
        for row in days:
            is_known = (row.day, row.usage_name) in counted
            expected = counted.pop((row.day, row.usage_name), 0)
            if row.total_usage != expected:
                yield f"day {row.day}, {row.usage_name!r}: the usage is {row.total_usage} and should be {expected}"
            elif not is_known:
                yield f"day {row.day}, {row.usage_name!r}: no entry counts on it"
        for (day, usage_name), expected in counted.items():
            if expected != 0:
                yield f"day {day}, {usage_name!r}: the usage of {expected} is missing"


def _amount(recorded: str | None) -> int | None:
    """Return the amount that a setting records."""
    return None if recorded is None else parse_amount(recorded)


def _accepted(requested: int, available: int | None, policy: OverLimitPolicy) -> int:
    """Return how much of a debit the policy accepts; 0: it is refused, and there is no entry."""
    if available is None or policy is OverLimitPolicy.FORCE:
        return requested
    if policy is OverLimitPolicy.PARTIAL:
        return min(requested, available)
    return requested if requested <= available else 0
