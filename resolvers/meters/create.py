"""Making a meter, with its opening entry."""

from datetime import datetime

from resolvers import idempotency
from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.customers import customers
from resolvers.errors import AlreadyExists, CustomerNotFound, IdempotencyConflict
from resolvers.meters.names import meter_name
from resolvers.meters.settings import NewBillingMeter, check_settings, opened_with
from resolvers.meters.writing.group import write_entries
from resolvers.reading.places import locate
from resolvers.rules.balances import available_bits, limit_credits
from resolvers.rules.commands import Decision, newest_entry
from resolvers.rules.due import due_of
from resolvers.rules.events import event_of, numbered
from resolvers.values import KEY_LENGTH, check_text
from storage import ids
from storage.engine.buckets import bits_of
from storage.engine.transactions import Reader, Writer
from storage.idempotency_keys import IdempotencyKeyRow
from storage.meters import billing_meters, events, ledger
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow

CREATE = "createBillingMeter"


async def create_billing_meter(
    context: Context, request: NewBillingMeter, *, idempotency_key: str | None = None
) -> Decision:
    """Make a meter with its opening entry.

    Raises `InvalidInput`, `Forbidden`, `CustomerNotFound`, `IdempotencyConflict` and `AlreadyExists`, in this order; a
    replay is answered although its customer can no longer be named.
    """
    actor = context.actor
    name = meter_name(actor, request.workspace_id, request.external_meter_id)
    check_settings(request._asdict())
    if idempotency_key is not None:
        check_text("idempotencyKey", idempotency_key, length=KEY_LENGTH)
    actor.require(Scope.BILLING_WRITE)
    actor.require_workspace(request.workspace_id)

    # The same in every attempt, so that an attempt finds what an earlier one of this request has made.
    meter_id = ids.new_meter_id(bits_of(name))

    async def create(writer: Writer) -> Decision:
        now = context.clock()
        # Looked up before the key: when a request under the same key has just made it, its key is seen as well.
        existing = await billing_meters.lock_by_name(writer, name)
        if existing is not None and existing.id == meter_id:
            return Decision(existing, await _opening_of(writer, existing))
        earlier = await idempotency.earlier(writer, actor, operation=CREATE, key=idempotency_key)
        is_same = earlier is not None and earlier.request_digest == idempotency.digest(request)
        if earlier is not None and is_same:
            first = await _meter_made(writer, earlier, now)
            return Decision(first, await _opening_of(writer, first), replayed=first.id != meter_id)
        if request.customer_id is not None and not await customers.may_attach(writer, actor, request.customer_id):
            raise CustomerNotFound
        if earlier is not None:
            raise IdempotencyConflict(earlier.key, entry=await _opening_made(context, earlier))
        if existing is not None:
            raise AlreadyExists(
                f"Billing meter {name.external_meter_id!r} exists already in workspace {name.workspace_id!r}.",
                existing_id=existing.id,
            )
        limit = limit_credits(request.total_credits, allow_overages=request.allow_overages, spend_cap=request.spend_cap)
        meter = BillingMeterRow(
            id=meter_id,
            org_id=actor.org_id,
            environment=actor.environment,
            **request._asdict(),
            used_credits=0,
            limit_credits=limit,
            available_bits=available_bits(limit, 0, 0),
            last_seq=1,
            created_at=now,
            updated_at=now,
        )
        entry = newest_entry(
            meter,
            LedgerEntryKind.OPENING,
            amount=meter.total_credits,
            recorded_by=actor.key_id,
            key=idempotency_key,
            metadata=opened_with(meter),
        )
        created = numbered(meter, [event_of(meter, entry, {}, {})])
        meter = meter._replace(last_event=created[-1].number)
        await billing_meters.insert_meter(writer, meter)
        await write_entries(writer, [entry])
        await events.insert_events(writer, created)
        await idempotency.remember(
            writer, actor, operation=CREATE, key=idempotency_key, request=request, result_id=meter.id, now=now
        )
        return Decision(meter, entry)

    bucket = context.database.buckets.of_names(name)
    outcome = await context.database.write(create, bucket=bucket, is_repeatable=True)
    context.forget()
    if context.webhooks is not None:
        context.webhooks.wake()
    return outcome


async def _meter_made(reader: Reader, earlier: IdempotencyKeyRow, now: datetime) -> BillingMeterRow:
    """Return the meter that the earlier request made, as it is now."""
    found = await billing_meters.by_ids(
        reader,
        [earlier.result_id],
        org_id=earlier.org_id,
        environment=earlier.environment,
        workspace_ids=None,
    )
    due = await due_of(reader, [*found.values()], now)
    return due.visible[earlier.result_id]


async def _opening_made(context: Context, earlier: IdempotencyKeyRow) -> LedgerEntryRow | None:
    """Return the opening of the meter that the earlier request made; None: the key is not for its workspace."""
    (bucket,) = await locate(context.database, [earlier.result_id])
    async with context.database.read(bucket) as reader:
        first = await _meter_made(reader, earlier, context.clock())
        return await _opening_of(reader, first) if context.actor.may_enter(first.workspace_id) else None


async def _opening_of(reader: Reader, meter: BillingMeterRow) -> LedgerEntryRow:
    ((opening,),) = await ledger.by_ranges(reader, [(meter.id, 1, 1)])
    return opening
