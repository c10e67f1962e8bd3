"""Recording usage: from a caller's values to decided, committed events."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from resolvers.actor import Actor, Scope
from resolvers.context import Context
from resolvers.errors import (
    AmountOutOfRange,
    BadUserInput,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidInput,
    LimitExceeded,
    Refusal,
    SpendCapExceeded,
)
from resolvers.idempotency import same_json
from resolvers.meters.names import meter_name
from resolvers.rules.balances import available_bits, available_credits
from resolvers.rules.commands import Decision, Known
from resolvers.values import KEY_LENGTH, MAX_AMOUNT, USAGE_NAME_LENGTH, check_metadata, check_text, day_of
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow, OverLimitPolicy

#: How far back an event may have occurred without the scope `usage:correct`, and how far ahead any event may.
OLDEST = timedelta(days=35)
NEWEST = timedelta(minutes=5)

#: No event is older than the epoch, whatever its sender may do.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

DEFAULT_USAGE_NAME = "default"

# An enumeration's member costs more to look up than what is done with it here, for each event.
_REJECT, _PARTIAL, _FORCE = OverLimitPolicy.REJECT, OverLimitPolicy.PARTIAL, OverLimitPolicy.FORCE
_USAGE, _HOLD = LedgerEntryKind.USAGE, LedgerEntryKind.HOLD
_USED_CREDITS, _AVAILABLE_BITS, _LAST_SEQ, _UPDATED_AT = map(
    BillingMeterRow._fields.index, ("used_credits", "available_bits", "last_seq", "updated_at")
)
_USAGE_WRITE, _USAGE_CORRECT = Scope.USAGE_WRITE, Scope.USAGE_CORRECT


class RecordUsage(NamedTuple):
    """One usage event to record. `occurred_at` None: none was sent."""

    meter: MeterName
    event_id: str
    amount: int
    usage_name: str
    occurred_at: datetime | None
    policy: OverLimitPolicy
    metadata: dict[str, Any]
    recorded_by: str
    may_backfill: bool

    @classmethod
    def of(
        cls,
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
    ) -> "RecordUsage":
        """Return the event that an actor asks to record.

        Raises `InvalidInput` for a malformed value, then `Forbidden` without `usage:write`, for `FORCE` without
        `usage:correct`, or for a workspace that the key is not for.
        """
        meter = meter_name(actor, workspace_id, external_meter_id)
        check_text("eventId", event_id, length=KEY_LENGTH)
        check_text("usageName", usage_name, length=USAGE_NAME_LENGTH)
        checked_metadata = check_metadata("metadata", metadata) if metadata is not None else {}
        actor.require(_USAGE_WRITE)
        if policy is _FORCE:
            actor.require(_USAGE_CORRECT)
        actor.require_workspace(workspace_id)
        may_backfill = _USAGE_CORRECT in actor.scopes
        # In the order of the fields: naming eight of them costs as much as all the checks above.
        return cls(
            meter, event_id, amount, usage_name, occurred_at, policy, checked_metadata, actor.key_id, may_backfill
        )

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The event's own; a check of 0 ignores it."""
        return ((_USAGE, self.event_id),) if self.amount else ()

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Take what the policy accepts.

        Raises `IdempotencyConflict`, also where a hold has the event's id; `InvalidInput` for a time outside the
        window; what `accepted_amount` raises.
        """
        if self.amount == 0:
            self.check_time_window(now)
            limit = meter.limit_credits
            was_over_limit = limit is not None and meter.used_credits + meter.held_credits > limit
            return Decision(meter, None, was_over_limit=was_over_limit)
        if meter.has_holds and (hold := known.entries.get((_HOLD, self.event_id))) is not None:
            raise IdempotencyConflict(self.event_id, entry=hold)
        earlier = known.entries.get((_USAGE, self.event_id))
        if earlier is not None:
            if not self.is_same(earlier):
                raise IdempotencyConflict(self.event_id, entry=earlier)
            return Decision(meter, earlier, replayed=True)
        return self.record(meter, known, now)

    def record(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Take what the policy accepts of an event that has not been recorded. Raises as `decide` does."""
        self.check_time_window(now)
        accepted = accepted_amount(meter, self.amount, self.policy)
        used_credits = meter.used_credits + accepted
        # What `after` and `newest_entry` return, without the cost of their keywords: a debit changes little, and there
        # are many.
        values: list[Any] = [*meter]
        values[_USED_CREDITS] = used_credits
        values[_AVAILABLE_BITS] = available_bits(meter.limit_credits, used_credits, meter.held_credits)
        values[_LAST_SEQ] += 1
        values[_UPDATED_AT] = now
        meter = BillingMeterRow._make(values)
        entry = LedgerEntryRow(
            meter.id,
            meter.last_seq,
            _USAGE,
            self.event_id,
            accepted,
            meter.total_credits,
            used_credits,
            meter.limit_credits,
            self.usage_name,
            day_of(self.occurred_at or now, meter.timezone),
            self.amount,
            self.policy,
            None,  # voids_seq
            self.occurred_at,
            now,
            self.recorded_by,
            None,  # reason
            self.metadata,
            meter.held_credits,
            None,  # grant_seq
            None,  # hold_seq
            known.credits.draw(accepted, now) if known.credits is not None else None,
        )
        return Decision(meter, entry)

    def is_same(self, earlier: LedgerEntryRow) -> bool:
        """Whether the entry is what this event has recorded."""
        return (
            self.usage_name == earlier.usage_name
            and self.amount == earlier.requested_amount
            and self.policy == earlier.policy
            and self.occurred_at == earlier.sent_at
            and same_json(self.metadata, earlier.metadata)
        )

    def check_time_window(self, now: datetime) -> None:
        """Raise `InvalidInput` for a time that is too far ahead, or further back than the caller may record."""
        occurred_at = self.occurred_at
        if occurred_at is None:
            return
        if occurred_at > now + NEWEST:
            raise InvalidInput("occurredAt", "must be at most 5 minutes ahead.")
        if occurred_at < EPOCH:
            raise InvalidInput("occurredAt", "must not be before 1970.")
        if not self.may_backfill and occurred_at < now - OLDEST:
            raise InvalidInput(
                "occurredAt", f"must be at most 35 days ago; older ones need the scope {Scope.USAGE_CORRECT}."
            )


def accepted_amount(meter: BillingMeterRow, amount: int, policy: OverLimitPolicy) -> int:
    """Return how much of the amount the meter's limit lets the policy accept.

    `REJECT`: all of it, if it is available. `PARTIAL`: what is available, if that is anything. `FORCE`: all of it.

    Raises `InsufficientCredits`, or `SpendCapExceeded` where overages are allowed; `AmountOutOfRange` when what is
    accepted would carry the used and held credits past 2**63 - 1.
    """
    accepted = amount
    available = available_credits(meter.limit_credits, meter.used_credits, meter.held_credits)
    if available is not None and policy is not _FORCE:
        if policy is _PARTIAL and available > 0:
            accepted = min(amount, available)
        elif amount > available:
            refusal = SpendCapExceeded if meter.allow_overages else InsufficientCredits
            raise refusal(amount, available=available, billing_meter=meter)
    if meter.used_credits + meter.held_credits + accepted > MAX_AMOUNT:
        raise AmountOutOfRange("used")
    return accepted


async def record_usage(context: Context, **values: Any) -> Decision:
    """Record one usage event, whose values are those of `RecordUsage.of`, and return what was decided, once committed.

    Raises what `RecordUsage` raises, `BillingMeterNotFound`, and `Unavailable`.
    """
    return await context.change(RecordUsage.of(context.actor, **values))


async def record_usage_batch(
    context: Context, items: Sequence[Mapping[str, Any] | InvalidInput]
) -> list[Decision | Refusal]:
    """Record events in one transaction, in their order, and return the result of each: a refused one leaves the others.

    The values of each item are those of `RecordUsage.of`, or it is what was wrong with them before; the field of an
    `InvalidInput` begins with the item's number.

    Raises `BadUserInput` for an empty batch, `LimitExceeded` for more items than the context's bounds, `Forbidden` when
    any item is not permitted, and `Unavailable`; then nothing is written.
    """
    if not items:
        raise BadUserInput("input must have at least 1 item.")
    most = context.bounds.batch_events
    if len(items) > most:
        raise LimitExceeded(f"input must have at most {most} items; it has {len(items)}.")
    checked = [_checked(context, values) for values in items]
    events = [event for event in checked if isinstance(event, RecordUsage)]
    recorded = iter(await context.meter_writer.submit(events) if events else [])
    context.forget()
    results = [next(recorded) if isinstance(event, RecordUsage) else event for event in checked]
    for place, result in enumerate(results):
        if isinstance(result, InvalidInput):
            result.field = f"{place}.{result.field}"
    return results


def _checked(context: Context, values: Mapping[str, Any] | InvalidInput) -> RecordUsage | InvalidInput:
    if isinstance(values, InvalidInput):
        return values
    try:
        return RecordUsage.of(context.actor, **values)
    except InvalidInput as refusal:
        # As in a group: its traceback would keep the whole batch in memory.
        return refusal.with_traceback(None)
