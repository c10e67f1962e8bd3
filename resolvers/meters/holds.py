"""Holds: credits that are reserved for work whose cost is known afterwards, and committed or released then."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.errors import (
    HoldNotFound,
    HoldNotOpen,
    IdempotencyConflict,
    InvalidInput,
    LimitRefusal,
    TooManyHolds,
)
from resolvers.idempotency import same_json
from resolvers.meters.names import meter_name
from resolvers.meters.record_usage import RecordUsage, accepted_amount
from resolvers.rules.booking import close_hold, released
from resolvers.rules.commands import Decision, Known, after, newest_entry
from resolvers.rules.credits import joined
from resolvers.values import KEY_LENGTH, check_metadata, check_text, day_of
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.holds import HoldRow, HoldState
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow, OverLimitPolicy

_USAGE, _HOLD, _RELEASE = LedgerEntryKind.USAGE, LedgerEntryKind.HOLD, LedgerEntryKind.RELEASE

#: How long a hold is open, in seconds, and how long at most after it was made, however often it is extended.
DEFAULT_SECONDS, MAX_SECONDS = 900, 86_400


class HoldCredits(NamedTuple):
    """Credits to reserve. `max_open` is how many holds of the meter may be open."""

    meter: MeterName
    hold_id: str
    amount: int
    policy: OverLimitPolicy
    expires_in_seconds: int
    metadata: dict[str, Any]
    recorded_by: str
    max_open: int

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The hold's own, and that of the usage event of the same name."""
        return (_HOLD, self.hold_id), (_USAGE, self.hold_id)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Reserve what the policy accepts.

        Raises `IdempotencyConflict`, `TooManyHolds` and what `accepted_amount` raises, in this order.
        """
        earlier = known.entries.get((_HOLD, self.hold_id))
        if earlier is not None:
            hold = known.holds[self.hold_id]
            if not self._is_same(earlier, hold):
                raise IdempotencyConflict(self.hold_id, entry=earlier)
            return Decision(meter, earlier, replayed=True, hold=hold)
        event = known.entries.get((_USAGE, self.hold_id))
        if event is not None:
            raise IdempotencyConflict(self.hold_id, entry=event)
        max_open = min(self.max_open, self.max_open if meter.max_open_holds is None else meter.max_open_holds)
        if meter.open_holds >= max_open:
            raise TooManyHolds(max_open)
        accepted = accepted_amount(meter, self.amount, self.policy)
        pins = known.credits_of(meter).pin(accepted, now)
        meter = after(
            meter,
            now,
            held_credits=meter.held_credits + accepted,
            pinned_credits=meter.pinned_credits + sum(credits_ for _, credits_ in pins),
            open_holds=meter.open_holds + 1,
            has_holds=True,
        )
        hold = HoldRow(
            meter_id=meter.id,
            seq=meter.last_seq,
            hold_id=self.hold_id,
            amount=accepted,
            requested_amount=self.amount,
            expires_in_seconds=self.expires_in_seconds,
            state=HoldState.OPEN,
            committed_amount=None,
            expires_at=now + timedelta(seconds=self.expires_in_seconds),
            created_at=now,
            closed_at=None,
            pins=pins,
            metadata=self.metadata,
        )
        known.change_hold(hold)
        entry = newest_entry(
            meter,
            _HOLD,
            amount=accepted,
            recorded_by=self.recorded_by,
            key=self.hold_id,
            requested_amount=self.amount,
            policy=self.policy,
            hold_seq=hold.seq,
            draws=pins,
            metadata=self.metadata,
        )
        return Decision(meter, entry, hold=hold)

    def _is_same(self, earlier: LedgerEntryRow, hold: HoldRow) -> bool:
        return (
            self.amount == earlier.requested_amount
            and self.policy == earlier.policy
            and self.expires_in_seconds == hold.expires_in_seconds
            and same_json(self.metadata, earlier.metadata)
        )


class CommitHold(NamedTuple):
    """The usage that a hold was made for. `usage` is the event of the hold's name, as it would be recorded without."""

    usage: RecordUsage
    is_recorded_if_closed: bool

    @property
    def meter(self) -> MeterName:
        """The name of the meter."""
        return self.usage.meter

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The hold's, the event's, and that of the release which a commit of 0 is."""
        hold_id = self.usage.event_id
        return (_HOLD, hold_id), (_USAGE, hold_id), (_RELEASE, hold_id)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Record the usage, from what is held as far as it goes, and free the rest.

        Raises `HoldNotFound`, `IdempotencyConflict`, `HoldNotOpen`, `InvalidInput` for a time outside the window, and
        of what goes beyond the hold what `accepted_amount` raises, in this order.
        """
        usage = self.usage
        if (_HOLD, usage.event_id) not in known.entries:
            raise HoldNotFound(usage.event_id)
        hold = known.holds[usage.event_id]
        if not usage.amount and hold.state is HoldState.RELEASED:
            # It repeats the release, also where usage has been recorded since.
            return self._release(meter, known, hold, now)
        earlier = known.entries.get((_USAGE, usage.event_id))
        if earlier is not None:
            if not usage.is_same(earlier):
                raise IdempotencyConflict(usage.event_id, entry=earlier)
            return Decision(meter, earlier, replayed=True, hold=hold)
        if not usage.amount:
            return self._release(meter, known, hold, now)
        if hold.state is not HoldState.OPEN:
            if not self.is_recorded_if_closed:
                raise HoldNotOpen(hold)
            return usage.record(meter, known, now)._replace(hold=hold)
        usage.check_time_window(now)
        beyond = max(0, usage.amount - hold.amount)
        accepted = usage.amount - beyond
        if beyond:
            accepted += _accepted_beyond(meter, beyond, usage.policy)
        credits_ = known.credits_of(meter)
        draws = credits_.draw_pins(hold.pins, accepted)
        draws = joined([*draws, *credits_.draw(accepted - sum(amount for _, amount in draws), now)])
        hold = hold._replace(state=HoldState.COMMITTED, committed_amount=accepted, closed_at=now)
        known.change_hold(hold)
        meter = after(meter, now, used_credits=meter.used_credits + accepted, **released(meter, hold))
        entry = newest_entry(
            meter,
            _USAGE,
            amount=accepted,
            recorded_by=usage.recorded_by,
            key=usage.event_id,
            usage_name=usage.usage_name,
            day=day_of(usage.occurred_at or now, meter.timezone),
            requested_amount=usage.amount,
            policy=usage.policy,
            hold_seq=hold.seq,
            sent_at=usage.occurred_at,
            draws=draws,
            metadata=usage.metadata,
        )
        return Decision(meter, entry, hold=hold)

    def _release(self, meter: BillingMeterRow, known: Known, hold: HoldRow, now: datetime) -> Decision:
        """Release the hold, of which nothing was used."""
        if self.is_recorded_if_closed and hold.state is HoldState.EXPIRED:
            return self.usage.decide(meter, known, now)._replace(hold=hold)
        return ReleaseHold(self.meter, hold.hold_id, self.usage.recorded_by).decide(meter, known, now)


class ReleaseHold(NamedTuple):
    """A hold to release."""

    meter: MeterName
    hold_id: str
    recorded_by: str

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The hold's, and the release's own."""
        return (_HOLD, self.hold_id), (_RELEASE, self.hold_id)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Free all that is held. Raises `HoldNotFound` and `HoldNotOpen`."""
        if (_HOLD, self.hold_id) not in known.entries:
            raise HoldNotFound(self.hold_id)
        hold = known.holds[self.hold_id]
        if hold.state is HoldState.RELEASED:
            return Decision(meter, known.entries[_RELEASE, self.hold_id], replayed=True, hold=hold)
        if hold.state is not HoldState.OPEN:
            raise HoldNotOpen(hold)
        meter, entry = close_hold(meter, known, hold, HoldState.RELEASED, now, recorded_by=self.recorded_by)
        return Decision(meter, entry, hold=known.holds[self.hold_id])


class ExtendHold(NamedTuple):
    """A hold that is to be open for so many seconds from now, at least."""

    meter: MeterName
    hold_id: str
    expires_in_seconds: int

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The hold's."""
        return ((_HOLD, self.hold_id),)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Make the hold's end the later of the two. Raises `HoldNotFound`, `HoldNotOpen` and `InvalidInput`."""
        if (_HOLD, self.hold_id) not in known.entries:
            raise HoldNotFound(self.hold_id)
        hold = known.holds[self.hold_id]
        if hold.state is not HoldState.OPEN:
            raise HoldNotOpen(hold)
        expires_at = now + timedelta(seconds=self.expires_in_seconds)
        if expires_at > hold.created_at + timedelta(seconds=MAX_SECONDS):
            raise InvalidInput("expiresInSeconds", "must end at most 24 hours after the hold was made.")
        if expires_at > hold.expires_at:
            hold = hold._replace(expires_at=expires_at)
            known.change_hold(hold)
        return Decision(meter, None, hold=hold)


async def hold_credits(
    context: Context,
    *,
    workspace_id: str,
    external_meter_id: str,
    hold_id: str,
    amount: int,
    policy: OverLimitPolicy = OverLimitPolicy.REJECT,
    expires_in_seconds: int = DEFAULT_SECONDS,
    metadata: object = None,
) -> Decision:
    """Reserve credits of a meter. Under its id the first hold is replayed, for ever.

    Raises `InvalidInput`, `Forbidden` and `BillingMeterNotFound`, then what `HoldCredits.decide` raises.
    """
    name = _hold_name(context, workspace_id, external_meter_id, hold_id)
    if amount == 0:
        raise InvalidInput("amount", "must be greater than 0.")
    if policy is OverLimitPolicy.FORCE:
        raise InvalidInput("policy", "must be REJECT or PARTIAL: a hold is not forced.")
    _check_seconds(expires_in_seconds)
    checked = check_metadata("metadata", metadata) if metadata is not None else {}
    _require(context, workspace_id)
    return await context.change(
        HoldCredits(
            *(name, hold_id, amount, policy, expires_in_seconds, checked),
            *(context.actor.key_id, context.bounds.open_holds),
        )
    )


async def commit_hold(
    context: Context, *, hold_id: str, is_recorded_if_closed: bool = False, **values: Any
) -> Decision:
    """Record the usage that a hold was made for; the values are those of `RecordUsage.of` but for the event id.

    Raises what `RecordUsage.of` raises, `BillingMeterNotFound`, and what `CommitHold.decide` raises.
    """
    check_text("holdId", hold_id, length=KEY_LENGTH)
    usage = RecordUsage.of(context.actor, event_id=hold_id, **values)
    return await context.change(CommitHold(usage, is_recorded_if_closed))


async def release_hold(context: Context, *, workspace_id: str, external_meter_id: str, hold_id: str) -> Decision:
    """Free what a hold has reserved.

    Raises `InvalidInput`, `Forbidden` and `BillingMeterNotFound`, then what `ReleaseHold.decide` raises.
    """
    name = _hold_name(context, workspace_id, external_meter_id, hold_id)
    _require(context, workspace_id)
    return await context.change(ReleaseHold(name, hold_id, context.actor.key_id))


async def extend_hold(
    context: Context, *, workspace_id: str, external_meter_id: str, hold_id: str, expires_in_seconds: int
) -> Decision:
    """Keep a hold open for so many seconds from now, at least.

    Raises `InvalidInput`, `Forbidden` and `BillingMeterNotFound`, then what `ExtendHold.decide` raises.
    """
    name = _hold_name(context, workspace_id, external_meter_id, hold_id)
    _check_seconds(expires_in_seconds)
    _require(context, workspace_id)
    return await context.change(ExtendHold(name, hold_id, expires_in_seconds))


def _hold_name(context: Context, workspace_id: str, external_meter_id: str, hold_id: str) -> MeterName:
    name = meter_name(context.actor, workspace_id, external_meter_id)
    check_text("holdId", hold_id, length=KEY_LENGTH)
    return name


def _check_seconds(seconds: int) -> None:
    if not 1 <= seconds <= MAX_SECONDS:
        raise InvalidInput("expiresInSeconds", f"must be 1 to {MAX_SECONDS}.")


def _require(context: Context, workspace_id: str) -> None:
    context.actor.require(Scope.USAGE_WRITE)
    context.actor.require_workspace(workspace_id)


def _accepted_beyond(meter: BillingMeterRow, amount: int, policy: OverLimitPolicy) -> int:
    """Return how much the policy accepts of what goes beyond a hold. Raises what `accepted_amount` raises."""
    try:
        return accepted_amount(meter, amount, policy)
    except LimitRefusal:
        if policy is not OverLimitPolicy.PARTIAL:
            raise
        return 0
