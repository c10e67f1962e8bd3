"""The rules of usage: what a debit may take, what a replay is, and which days a query means.

Everything here is a pure function of its arguments. The transaction around them is the usage writer's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from resolvers.actor import Actor, Scope
from resolvers.errors import (
    AmountOutOfRange,
    BadUserInput,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidInput,
    LimitExceeded,
    SpendCapExceeded,
)
from resolvers.idempotency import same_json
from resolvers.limits import available_bits, available_credits
from resolvers.values import (
    KEY_LENGTH,
    MAX_AMOUNT,
    NAME_LENGTH,
    USAGE_NAME_LENGTH,
    check_metadata,
    check_text,
    day_of,
)
from storage.billing_meters import BillingMeterRow, MeterName
from storage.ledger import LedgerEntryRow
from storage.tables import Environment, LedgerEntryKind, OverLimitPolicy
from storage.usage import UsageDayRow

#: How far back an event may have occurred without the scope `usage:correct`, and how far ahead any event may.
OLDEST = timedelta(days=35)
NEWEST = timedelta(minutes=5)

#: No event is older than the epoch, whoever sends it.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: The days of a query that names none.
DEFAULT_DAYS = 30

DEFAULT_USAGE_NAME = "default"


# An enumeration's member costs more to look up than what is done with it here, for each event.
_REJECT, _PARTIAL, _FORCE = OverLimitPolicy.REJECT, OverLimitPolicy.PARTIAL, OverLimitPolicy.FORCE
_USAGE = LedgerEntryKind.USAGE
_USAGE_WRITE, _USAGE_CORRECT = Scope.USAGE_WRITE, Scope.USAGE_CORRECT


class UsageEvent(NamedTuple):
    """One debit as a caller sent it, well-formed and permitted. `occurred_at` None: none was sent."""

    meter: MeterName
    event_id: str
    amount: int
    usage_name: str
    occurred_at: datetime | None
    policy: OverLimitPolicy
    metadata: dict[str, Any]
    recorded_by: str
    may_backfill: bool


@dataclass(slots=True)
class Balance:
    """A meter while events are decided: its row when it was locked, and what the events since have made of it."""

    meter: BillingMeterRow
    used_credits: int
    last_seq: int

    @classmethod
    def of(cls, meter: BillingMeterRow) -> "Balance":
        """Return the balance before any event."""
        return cls(meter, meter.used_credits, meter.last_seq)

    def meter_after(self, now: datetime) -> BillingMeterRow:
        """Return the row that the events have made of the meter."""
        if self.last_seq == self.meter.last_seq:
            return self.meter
        return self.meter._replace(
            used_credits=self.used_credits,
            available_bits=available_bits(self.meter.limit_credits, self.used_credits),
            last_seq=self.last_seq,
            updated_at=now,
        )


@dataclass(slots=True)
class UsageOutcome:
    """An accepted debit, and its meter. `entry` None: the amount was 0 and nothing was written."""

    billing_meter: BillingMeterRow
    entry: LedgerEntryRow | None
    accepted: int
    refused: int
    over_limit: bool
    replayed: bool


def usage_event(
    actor: Actor,
    *,
    workspace_id: str,
    external_meter_id: str,
    event_id: str,
    amount: int,
    usage_name: str = DEFAULT_USAGE_NAME,
    occurred_at: datetime | None = None,
    policy: OverLimitPolicy = _REJECT,
    metadata: object = None,
) -> UsageEvent:
    """Return the event that an actor asks to record.

    Raises `InvalidInput` for a malformed value, then `Forbidden` without `usage:write`, for `FORCE` without
    `usage:correct`, or for a workspace that the key is not for.
    """
    meter = _meter_name(actor.org_id, actor.environment, workspace_id, external_meter_id)
    check_text("eventId", event_id, length=KEY_LENGTH)
    check_text("usageName", usage_name, length=USAGE_NAME_LENGTH)
    checked_metadata = check_metadata("metadata", metadata) if metadata is not None else {}
    actor.require(_USAGE_WRITE)
    if policy is _FORCE:
        actor.require(_USAGE_CORRECT)
    actor.require_workspace(workspace_id)
    may_backfill = _USAGE_CORRECT in actor.scopes
    # In the order of the fields: naming eight of them costs as much as all the checks above.
    return UsageEvent(
        meter, event_id, amount, usage_name, occurred_at, policy, checked_metadata, actor.key_id, may_backfill
    )


@lru_cache(maxsize=10_000)
def _meter_name(org_id: str, environment: Environment, workspace_id: str, external_meter_id: str) -> MeterName:
    """Return the checked name; most events are of a meter that was named before."""
    check_text("workspaceId", workspace_id, length=NAME_LENGTH)
    check_text("externalMeterId", external_meter_id, length=NAME_LENGTH)
    return MeterName(org_id, environment, workspace_id, external_meter_id)


def accepted_amount(balance: Balance, amount: int, policy: OverLimitPolicy) -> int:
    """Return how much of the amount the meter's limit lets the policy accept.

    `REJECT`: all of it, if it is available. `PARTIAL`: what is available, if that is anything. `FORCE`: all of it.

    Raises `InsufficientCredits`, or `SpendCapExceeded` where overages are allowed; `AmountOutOfRange` when what is
    accepted would carry the used credits past 2**63 - 1.
    """
    meter = balance.meter
    accepted = amount
    available = available_credits(meter.limit_credits, balance.used_credits)
    if available is not None and policy is not _FORCE:
        if policy is _PARTIAL and available > 0:
            accepted = min(amount, available)
        elif amount > available:
            refusal = SpendCapExceeded if meter.allow_overages else InsufficientCredits
            raise refusal(amount, available=available, billing_meter=meter)
    if balance.used_credits + accepted > MAX_AMOUNT:
        raise AmountOutOfRange("used")
    return accepted


def decide(balance: Balance, event: UsageEvent, earlier: LedgerEntryRow | None, *, now: datetime) -> UsageOutcome:
    """Decide one event on its meter as it now is. `earlier` is what the meter's ledger holds under the event's id.

    What is accepted and not a replay is taken from the balance, and is the outcome's entry to be written.

    Raises `IdempotencyConflict`; `InvalidInput` for a time outside the window; what `accepted_amount` raises.
    """
    meter = balance.meter
    if event.amount == 0:
        _check_time_window(event, now)
        return UsageOutcome(meter, None, 0, 0, _is_over(balance.used_credits, meter.limit_credits), False)  # noqa: FBT003  # The fields' order.
    if earlier is not None:
        if not _is_same(event, earlier):
            raise IdempotencyConflict(event.event_id, entry=earlier)
        return _outcome(meter, earlier, replayed=True)
    _check_time_window(event, now)
    accepted = accepted_amount(balance, event.amount, event.policy)
    balance.used_credits += accepted
    balance.last_seq += 1
    # In the order of the row's fields, for the same reason as an event's.
    entry = LedgerEntryRow(
        meter.id,
        balance.last_seq,
        _USAGE,
        event.event_id,
        accepted,
        meter.total_credits,
        balance.used_credits,
        meter.limit_credits,
        event.usage_name,
        day_of(event.occurred_at or now, meter.timezone),
        event.amount,
        event.policy,
        None,  # voids_seq
        event.occurred_at,
        now,
        event.recorded_by,
        None,  # reason
        event.metadata,
    )
    return _outcome(meter, entry, replayed=False)


def _outcome(meter: BillingMeterRow, entry: LedgerEntryRow, *, replayed: bool) -> UsageOutcome:
    return UsageOutcome(
        meter,
        entry,
        entry.amount,
        (entry.requested_amount or 0) - entry.amount,
        _is_over(entry.used_credits_after, entry.limit_credits),
        replayed,
    )


def _is_over(used_credits: int, limit_credits: int | None) -> bool:
    return limit_credits is not None and used_credits > limit_credits


def _is_same(event: UsageEvent, earlier: LedgerEntryRow) -> bool:
    return (
        event.usage_name == earlier.usage_name
        and event.amount == earlier.requested_amount
        and event.policy == earlier.policy
        and event.occurred_at == earlier.sent_at
        and same_json(event.metadata, earlier.metadata)
    )


def _check_time_window(event: UsageEvent, now: datetime) -> None:
    occurred_at = event.occurred_at
    if occurred_at is None:
        return
    if occurred_at > now + NEWEST:
        raise InvalidInput("occurredAt", "must be at most 5 minutes ahead.")
    if occurred_at < EPOCH:
        raise InvalidInput("occurredAt", "must not be before 1970.")
    if not event.may_backfill and occurred_at < now - OLDEST:
        raise InvalidInput(
            "occurredAt", f"must be at most 35 days ago; older ones need the scope {Scope.USAGE_CORRECT}."
        )


def usage_days(first: date | None, last: date | None, *, today: date, most: int) -> tuple[date, date]:
    """Return the inclusive days that a query means, where `today` is the meter's.

    Neither given: the 30 days ending today; only the first: to today; only the last: the 30 days ending there.

    Raises `BadUserInput` when they are reversed or more than `most`.
    """
    last = last or today
    first = first or date.fromordinal(max(1, last.toordinal() - DEFAULT_DAYS + 1))
    if first > last:
        raise BadUserInput(f"from must not be after to: {first} is after {last}.")
    if (last - first).days >= most:
        raise BadUserInput(f"from and to must span at most {most} days; they span {(last - first).days + 1}.")
    return first, last


def with_zeros(
    days: Sequence[UsageDayRow], *, meter_id: str, first: date, last: date, usage_names: Sequence[str] | None, most: int
) -> list[UsageDayRow]:
    """Return the days and, between the first and the last, a row of 0 for each missing one.

    They are filled for the names asked for, else for those seen in the range. Raises `LimitExceeded` for more than
    `most` rows.
    """
    names = sorted(set(usage_names)) if usage_names is not None else sorted({day.usage_name for day in days})
    if len(names) * ((last - first).days + 1) > most:
        raise LimitExceeded(f"usage answers at most {most} usage days a meter; ask for fewer days or names.")
    known = {(day.day, day.usage_name): day for day in days}
    every_day = (date.fromordinal(number) for number in range(first.toordinal(), last.toordinal() + 1))
    return [known.get((day, name)) or UsageDayRow(meter_id, day, name, 0) for day in every_day for name in names]
