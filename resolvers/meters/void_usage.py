"""Voiding usage: giving back some or all of one event's credits, by a new entry."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.errors import ExceedsVoidable, IdempotencyConflict, InvalidInput, UsageEventNotFound
from resolvers.meters.names import meter_name
from resolvers.rules.commands import Decision, Known, after, newest_entry
from resolvers.values import KEY_LENGTH, REASON_LENGTH, check_text
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.ledger import LedgerEntryKind

_USAGE, _VOID = LedgerEntryKind.USAGE, LedgerEntryKind.VOID


class VoidUsage(NamedTuple):
    """Credits of a usage event to give back. `amount` None: all that is left of it."""

    meter: MeterName
    event_id: str
    amount: int | None
    reason: str
    key: str
    recorded_by: str

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The event's, and the void's own."""
        return (_USAGE, self.event_id), (_VOID, self.key)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Give the credits back.

        Raises `UsageEventNotFound`, `IdempotencyConflict` and `ExceedsVoidable`, in this order.
        """
        event = known.entries.get((_USAGE, self.event_id))
        if event is None:
            raise UsageEventNotFound(self.event_id)
        earlier = known.entries.get((_VOID, self.key))
        if earlier is not None:
            if (earlier.voids_seq, earlier.requested_amount, earlier.reason) != (event.seq, self.amount, self.reason):
                raise IdempotencyConflict(self.key, entry=earlier)
            return Decision(meter, earlier, replayed=True)
        voidable = event.amount - known.voided_credits.get(event.seq, 0)
        given_back = voidable if self.amount is None else self.amount
        if not 0 < given_back <= voidable:
            raise ExceedsVoidable(self.event_id, voidable=voidable)
        draws = None
        if known.credits is not None:
            draws = known.credits.give_back(event, given_back, voided=event.amount - voidable, meter=meter)
        meter = after(meter, now, used_credits=meter.used_credits - given_back)
        entry = newest_entry(
            meter,
            _VOID,
            amount=given_back,
            recorded_by=self.recorded_by,
            key=self.key,
            usage_name=event.usage_name,
            day=event.day,
            requested_amount=self.amount,
            voids_seq=event.seq,
            reason=self.reason,
            draws=draws,
        )
        return Decision(meter, entry)


async def void_usage(
    context: Context,
    *,
    workspace_id: str,
    external_meter_id: str,
    event_id: str,
    reason: str,
    idempotency_key: str,
    amount: int | None = None,
) -> Decision:
    """Give back `amount` credits of a usage event, or all that is left of it, on the event's own day.

    The void is idempotent by its own key, for ever.

    Raises `InvalidInput`, `Forbidden`, `BillingMeterNotFound`, `UsageEventNotFound`, `IdempotencyConflict` and
    `ExceedsVoidable`, in this order.
    """
    actor = context.actor
    name = meter_name(actor, workspace_id, external_meter_id)
    check_text("eventId", event_id, length=KEY_LENGTH)
    check_text("reason", reason, length=REASON_LENGTH)
    check_text("idempotencyKey", idempotency_key, length=KEY_LENGTH)
    if amount == 0:
        raise InvalidInput("amount", "must be greater than 0.")
    actor.require(Scope.USAGE_CORRECT)
    actor.require_workspace(workspace_id)
    return await context.change(VoidUsage(name, event_id, amount, reason, idempotency_key, actor.key_id))
