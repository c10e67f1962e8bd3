"""Voiding usage: giving back some or all of one event's credits, by a new entry."""

from typing import NamedTuple

from resolvers.actor import Scope
from resolvers.billing_meters import check_names, new_entry
from resolvers.context import Context
from resolvers.errors import (
    BillingMeterNotFound,
    ExceedsVoidable,
    IdempotencyConflict,
    InvalidInput,
    UsageEventNotFound,
)
from resolvers.limits import available_bits
from resolvers.values import KEY_LENGTH, REASON_LENGTH, check_text
from storage import billing_meters, ledger, usage
from storage.billing_meters import BillingMeterRow, MeterName
from storage.database import Writer
from storage.ledger import LedgerEntryRow
from storage.tables import LedgerEntryKind


class VoidOutcome(NamedTuple):
    """A meter after a void, and the entry that tells of it."""

    billing_meter: BillingMeterRow
    entry: LedgerEntryRow
    replayed: bool


async def void_usage(
    context: Context,
    *,
    workspace_id: str,
    external_meter_id: str,
    event_id: str,
    reason: str,
    idempotency_key: str,
    amount: int | None = None,
) -> VoidOutcome:
    """Give back `amount` credits of a usage event, or all that is left of it, on the event's own day.

    The void is idempotent by its own key, for ever.

    Raises `InvalidInput`, `Forbidden`, `BillingMeterNotFound`, `UsageEventNotFound`, `IdempotencyConflict` and
    `ExceedsVoidable`, in this order.
    """
    check_names(workspace_id, external_meter_id)
    check_text("eventId", event_id, length=KEY_LENGTH)
    check_text("reason", reason, length=REASON_LENGTH)
    check_text("idempotencyKey", idempotency_key, length=KEY_LENGTH)
    if amount == 0:
        raise InvalidInput("amount", "must be greater than 0.")
    actor = context.actor
    actor.require(Scope.USAGE_CORRECT)
    actor.require_workspace(workspace_id)
    name = MeterName(actor.org_id, actor.environment, workspace_id, external_meter_id)
    tried: LedgerEntryRow | None = None

    async def void(writer: Writer) -> VoidOutcome:
        nonlocal tried
        meter = await billing_meters.lock_by_name(writer, name)
        if meter is None:
            raise BillingMeterNotFound(workspace_id, external_meter_id)
        event = await _entry(writer, meter, LedgerEntryKind.USAGE, event_id)
        if event is None:
            raise UsageEventNotFound(event_id)
        earlier = await _entry(writer, meter, LedgerEntryKind.VOID, idempotency_key)
        if earlier is not None:
            if (earlier.voids_seq, earlier.requested_amount, earlier.reason) != (event.seq, amount, reason):
                raise IdempotencyConflict(idempotency_key, entry=earlier)
            return VoidOutcome(meter, earlier, replayed=earlier != tried)
        voidable = event.amount - await ledger.voided_credits(writer, meter.id, event.seq)
        given_back = voidable if amount is None else amount
        if not 0 < given_back <= voidable:
            raise ExceedsVoidable(event_id, voidable=voidable)
        used_credits = meter.used_credits - given_back
        after = meter._replace(
            used_credits=used_credits,
            available_bits=available_bits(meter.limit_credits, used_credits),
            last_seq=meter.last_seq + 1,
            updated_at=context.clock(),
        )
        tried = new_entry(context, after, kind=LedgerEntryKind.VOID, amount=given_back)._replace(
            key=idempotency_key,
            usage_name=event.usage_name,
            day=event.day,
            requested_amount=amount,
            voids_seq=event.seq,
            reason=reason,
        )
        await billing_meters.update_meters(writer, [(meter, after)])
        assert event.day is not None  # noqa: S101  # A USAGE entry has its day and name.
        assert event.usage_name is not None  # noqa: S101
        await usage.add(writer, {(meter.id, event.day, event.usage_name): -given_back})
        await ledger.insert_entries(writer, [tried])
        return VoidOutcome(after, tried, replayed=False)

    outcome = await context.database.write(void, is_repeatable=True)
    context.forget()
    return outcome


async def _entry(writer: Writer, meter: BillingMeterRow, kind: LedgerEntryKind, key: str) -> LedgerEntryRow | None:
    return (await ledger.by_keys(writer, kind, [(meter.id, key)])).get((meter.id, key))
