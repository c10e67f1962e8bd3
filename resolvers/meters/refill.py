"""Refilling a meter: credits added to its total, perhaps as its automatic refill has asked for."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.errors import AmountOutOfRange, IdempotencyConflict, InvalidInput
from resolvers.meters.names import meter_name
from resolvers.rules.auto_refills import fulfil
from resolvers.rules.commands import GATEWAY_KEY, Decision, Known, after, gateway_key, is_gateway_key, newest_entry
from resolvers.values import KEY_LENGTH, MAX_AMOUNT, check_text
from storage import ids
from storage.meters.auto_refills import AutoRefillRequestRow
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.ledger import LedgerEntryKind

_REFILL = LedgerEntryKind.REFILL


class Refill(NamedTuple):
    """Credits to add to a meter's total. `amount` None: the meter is looked at, and stays as it is.

    Where the key is the id of a request of the meter's automatic refill, they fulfil it, whatever has become of it.
    """

    meter: MeterName
    amount: int | None
    key: str
    recorded_by: str

    @property
    def keys(self) -> Sequence[tuple[LedgerEntryKind, str]]:
        """The refill's own."""
        return () if self.amount is None else ((_REFILL, self.key),)

    def decide(self, meter: BillingMeterRow, known: Known, now: datetime) -> Decision:
        """Add the credits.

        Raises `InvalidInput` for the id of a request that the meter never made, `IdempotencyConflict`, also for another
        amount than the request's, and `AmountOutOfRange`, in this order.
        """
        if self.amount is None:
            return Decision(meter, None)
        earlier = known.entries.get((_REFILL, self.key))
        if earlier is not None:
            if earlier.amount != self.amount:
                raise IdempotencyConflict(self.key, entry=earlier)
            return Decision(meter, earlier, replayed=True)
        request = self._request(meter, known)
        if request is not None and request.amount != self.amount:
            raise IdempotencyConflict(self.key)
        if meter.total_credits + self.amount > MAX_AMOUNT:
            raise AmountOutOfRange("total")
        meter = after(meter, now, total_credits=meter.total_credits + self.amount)
        if known.credits is not None:
            known.credits.refill(self.amount)
        entry = newest_entry(meter, _REFILL, amount=self.amount, recorded_by=self.recorded_by, key=self.key)
        if request is not None and known.refills is not None:
            known.events += fulfil(meter, known.refills, request, now)
        return Decision(meter, entry)

    def _request(self, meter: BillingMeterRow, known: Known) -> AutoRefillRequestRow | None:
        """Return the request that the key names; None: it has not the form of one. Raises `InvalidInput`."""
        place = ids.parse_numbered_id(self.key, ids.AUTO_REFILL_REQUEST)
        if place is None:
            return None
        request = known.refills.requests.get(place[1]) if known.refills is not None and place[0] == meter.id else None
        if request is None:
            raise InvalidInput("idempotencyKey", "is the id of a request that this meter never made.")
        return request


async def refill_billing_meter(
    context: Context,
    *,
    workspace_id: str,
    external_meter_id: str,
    refill: int | None,
    idempotency_key: str | None = None,
) -> Decision:
    """Add credits to a meter's total; without a `refill`, return the meter unchanged.

    Under an idempotency key the first refill is replayed, for ever. One that is the id of a request of the meter's
    automatic refill fulfils it.

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
