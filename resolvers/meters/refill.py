"""Refilling a meter: credits added to its total."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.errors import AmountOutOfRange, IdempotencyConflict, InvalidInput
from resolvers.meters.names import meter_name
from resolvers.rules.commands import GATEWAY_KEY, Decision, Known, after, gateway_key, is_gateway_key, newest_entry
from resolvers.values import KEY_LENGTH, MAX_AMOUNT, check_text
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.ledger import LedgerEntryKind

_REFILL = LedgerEntryKind.REFILL


class Refill(NamedTuple):
    """Credits to add to a meter's total. `amount` None: the meter is looked at, and stays as it is."""

    meter: MeterName
    amount: int | None
    key: str
    recorded_by: str

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The refill's own."""
        return () if self.amount is None else ((_REFILL, self.key),)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Add the credits. Raises `IdempotencyConflict` and `AmountOutOfRange`, in this order."""
        if self.amount is None:
            return Decision(meter, None)
        earlier = known.entries.get((_REFILL, self.key))
        if earlier is not None:
            if earlier.amount != self.amount:
                raise IdempotencyConflict(self.key, entry=earlier)
            return Decision(meter, earlier, replayed=True)
        if meter.total_credits + self.amount > MAX_AMOUNT:
            raise AmountOutOfRange("total")
        meter = after(meter, now, total_credits=meter.total_credits + self.amount)
        if known.credits is not None:
            known.credits.refill(self.amount)
        entry = newest_entry(meter, _REFILL, amount=self.amount, recorded_by=self.recorded_by, key=self.key)
        return Decision(meter, entry)


async def refill_billing_meter(
    context: Context,
    *,
    workspace_id: str,
    external_meter_id: str,
    refill: int | None,
    idempotency_key: str | None = None,
) -> Decision:
    """Add credits to a meter's total; without a `refill`, return the meter unchanged.

    Under an idempotency key the first refill is replayed, for ever.

    Raises `InvalidInput`, `Forbidden`, `BillingMeterNotFound`, `IdempotencyConflict` and `AmountOutOfRange`, in this
    order.
    """
    actor = context.actor
    name = meter_name(actor, workspace_id, external_meter_id)
    if idempotency_key is not None:
        check_text("idempotencyKey", idempotency_key, length=KEY_LENGTH)
        if is_gateway_key(_REFILL, idempotency_key):
            raise InvalidInput("idempotencyKey", f"must not begin with {GATEWAY_KEY}, which is reserved.")
        if refill is None:
            raise InvalidInput("refill", "must be given with an idempotencyKey.")
    if refill == 0:
        raise InvalidInput("refill", "must be greater than 0.")
    actor.require(Scope.BILLING_WRITE)
    actor.require_workspace(workspace_id)
    return await context.change(Refill(name, refill, idempotency_key or gateway_key(), actor.key_id))
