"""Billing meters: making, changing and refilling them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from resolvers import customers as customer_rules
from resolvers import idempotency
from resolvers.actor import Actor, Scope
from resolvers.context import Context
from resolvers.errors import (
    AlreadyExists,
    AmountOutOfRange,
    BillingMeterNotFound,
    IdempotencyConflict,
    InvalidInput,
)
from resolvers.limits import available_bits, limit_credits
from resolvers.values import KEY_LENGTH, MAX_AMOUNT, NAME_LENGTH, check_text, check_timezone
from storage import billing_meters, ids, ledger
from storage.billing_meters import BillingMeterRow, MeterName
from storage.database import Reader, Writer
from storage.idempotency_keys import IdempotencyKeyRow
from storage.ledger import LedgerEntryRow
from storage.pages import Page
from storage.tables import LedgerEntryKind

CREATE = "createBillingMeter"


class MeterOutcome(NamedTuple):
    """A meter after a mutation. `entry` None: nothing was recorded."""

    billing_meter: BillingMeterRow
    entry: LedgerEntryRow | None
    replayed: bool


def meter_name(actor: Actor, workspace_id: str, external_meter_id: str) -> MeterName:
    """Return the full name of a meter that the actor names. The texts are already checked."""
    return MeterName(actor.org_id, actor.environment, workspace_id, external_meter_id)


def check_names(workspace_id: str, external_meter_id: str) -> None:
    """Hold a caller's two names of a meter against their rule. Raises `InvalidInput`."""
    check_text("workspaceId", workspace_id, length=NAME_LENGTH)
    check_text("externalMeterId", external_meter_id, length=NAME_LENGTH)


async def list_billing_meters(
    context: Context,
    page: Page,
    *,
    workspace_id: str | None = None,
    customer_id: str | None = None,
    available_below: int | None = None,
) -> Sequence[BillingMeterRow]:
    """Return a page of the meters that the actor may see, and one more row where there is one.

    Raises `InvalidInput`, and `Forbidden` for a workspace that the key is not for.
    """
    if workspace_id is not None:
        check_text("workspaceId", workspace_id, length=NAME_LENGTH)
    actor = context.actor
    actor.require(Scope.BILLING_READ)
    if workspace_id is not None:
        actor.require_workspace(workspace_id)
    customer_id = actor.customer_id if customer_id is None else customer_id
    if customer_id is not None and not (ids.is_id(customer_id, ids.CUSTOMER) and actor.may_see_customer(customer_id)):
        return []
    if available_below == 0:
        return []
    async with context.database.read() as reader:
        return await billing_meters.page(
            reader,
            page,
            org_id=actor.org_id,
            environment=actor.environment,
            workspace_ids=actor.workspace_ids if workspace_id is None else (workspace_id,),
            customer_id=customer_id,
            available_below=available_below,
        )


async def create_billing_meter(
    context: Context,
    *,
    workspace_id: str,
    external_meter_id: str,
    total_credits: int = 0,
    allow_overages: bool = False,
    spend_cap: int | None = None,
    customer_id: str | None = None,
    timezone: str = "UTC",
    idempotency_key: str | None = None,
) -> MeterOutcome:
    """Make a meter with its opening entry.

    Raises `InvalidInput`, `Forbidden`, `CustomerNotFound`, `IdempotencyConflict` and `AlreadyExists`, in this order; a
    replay is answered although its customer can no longer be named.
    """
    check_names(workspace_id, external_meter_id)
    check_timezone("timezone", timezone)
    if idempotency_key is not None:
        check_text("idempotencyKey", idempotency_key, length=KEY_LENGTH)
    actor = context.actor
    actor.require(Scope.BILLING_WRITE)
    actor.require_workspace(workspace_id)
    name = meter_name(actor, workspace_id, external_meter_id)
    now = context.clock()
    request = creation_request(
        workspace_id=workspace_id,
        external_meter_id=external_meter_id,
        total_credits=total_credits,
        allow_overages=allow_overages,
        spend_cap=spend_cap,
        customer_id=customer_id,
        timezone=timezone,
    )

    # The same in every attempt, so that an attempt finds what an earlier one of this request has made.
    meter_id = ids.new_id(ids.BILLING_METER)

    async def create(writer: Writer) -> MeterOutcome:
        # Looked up before the key: when a request under the same key has just made it, its key is seen as well.
        existing = await billing_meters.lock_by_name(writer, name)
        if existing is not None and existing.id == meter_id:
            return MeterOutcome(existing, await _opening_of(writer, existing), replayed=False)
        earlier = await idempotency.earlier(writer, actor, operation=CREATE, key=idempotency_key)
        is_same = earlier is not None and earlier.request_digest == idempotency.digest(request)
        if earlier is not None and is_same:
            first = await _meter_made(writer, earlier)
            return MeterOutcome(first, await _opening_of(writer, first), replayed=first.id != meter_id)
        if customer_id is not None:
            await customer_rules.require_attachable(writer, actor, customer_id)
        if earlier is not None:
            first = await _meter_made(writer, earlier)
            # Another workspace's entry is not shown to a key that is not for it.
            opening = await _opening_of(writer, first) if actor.may_enter(first.workspace_id) else None
            raise IdempotencyConflict(earlier.key, entry=opening)
        if existing is not None:
            raise AlreadyExists(
                f"Billing meter {external_meter_id!r} exists already in workspace {workspace_id!r}.",
                existing_id=existing.id,
            )
        limit = limit_credits(total_credits, allow_overages=allow_overages, spend_cap=spend_cap)
        meter = BillingMeterRow(
            id=meter_id,
            **name._asdict(),
            customer_id=customer_id,
            timezone=timezone,
            total_credits=total_credits,
            used_credits=0,
            allow_overages=allow_overages,
            spend_cap=spend_cap,
            limit_credits=limit,
            available_bits=available_bits(limit, 0),
            last_seq=1,
            created_at=now,
            updated_at=now,
        )
        entry = new_entry(context, meter, kind=LedgerEntryKind.OPENING, amount=total_credits)._replace(
            key=idempotency_key,
            metadata={setting: [None, value] for setting, value in settings_of(meter).items()},
        )
        await billing_meters.insert_meter(writer, meter)
        await ledger.insert_entries(writer, [entry])
        await idempotency.remember(
            writer, actor, operation=CREATE, key=idempotency_key, request=request, result_id=meter.id, now=now
        )
        return MeterOutcome(meter, entry, replayed=False)

    outcome = await context.database.write(create, is_repeatable=True)
    context.forget()
    return outcome


def creation_request(
    *,
    workspace_id: str,
    external_meter_id: str,
    total_credits: int,
    allow_overages: bool,
    spend_cap: int | None,
    customer_id: str | None,
    timezone: str,
) -> dict[str, Any]:
    """Return the values of a request for a meter, of which its idempotency key keeps the digest."""
    return {
        "workspaceId": workspace_id,
        "externalMeterId": external_meter_id,
        "totalCredits": total_credits,
        "allowOverages": allow_overages,
        "spendCap": spend_cap,
        "customerId": customer_id,
        "timezone": timezone,
    }


async def _meter_made(reader: Reader, earlier: IdempotencyKeyRow) -> BillingMeterRow:
    found = await billing_meters.by_ids(
        reader,
        [earlier.result_id],
        org_id=earlier.org_id,
        environment=earlier.environment,
        workspace_ids=None,
    )
    return found[earlier.result_id]


async def _opening_of(writer: Writer, meter: BillingMeterRow) -> LedgerEntryRow:
    ((opening,),) = await ledger.by_ranges(writer, [(meter.id, 1, 1)])
    return opening


async def update_billing_meter(
    context: Context,
    *,
    workspace_id: str,
    external_meter_id: str,
    changes: Mapping[str, Any],
    remove_spend_cap: bool = False,
) -> MeterOutcome:
    """Change a meter's `allow_overages`, `spend_cap` or `customer_id`; what `changes` leaves out stays.

    A meter without its customer is made by a `customer_id` of None. What changes is recorded by one `SETTINGS` entry,
    old and new; where nothing does, there is none. Lowering the limit always succeeds: it is the emergency stop.

    Raises `InvalidInput`, `Forbidden`, `BillingMeterNotFound` and `CustomerNotFound`, in this order.
    """
    check_names(workspace_id, external_meter_id)
    if changes.get("allow_overages", False) is None:
        raise InvalidInput("allowOverages", "must not be null; leave it out to keep it.")
    if changes.get("spend_cap", 0) is None:
        raise InvalidInput("spendCap", "must not be null; removeSpendCap removes it.")
    if remove_spend_cap and "spend_cap" in changes:
        raise InvalidInput("removeSpendCap", "must not be true beside a spendCap.")
    actor = context.actor
    actor.require(Scope.BILLING_WRITE)
    actor.require_workspace(workspace_id)
    name = meter_name(actor, workspace_id, external_meter_id)
    wanted = dict(changes) | ({"spend_cap": None} if remove_spend_cap else {})

    async def change(writer: Writer) -> MeterOutcome:
        meter = await billing_meters.lock_by_name(writer, name)
        if meter is None:
            raise BillingMeterNotFound(workspace_id, external_meter_id)
        changed = {field: value for field, value in wanted.items() if getattr(meter, field) != value}
        if not changed:
            return MeterOutcome(meter, None, replayed=False)
        if changed.get("customer_id") is not None:
            await customer_rules.require_attachable(writer, actor, changed["customer_id"])
        after = meter._replace(**changed, last_seq=meter.last_seq + 1, updated_at=context.clock())
        limit = limit_credits(after.total_credits, allow_overages=after.allow_overages, spend_cap=after.spend_cap)
        after = after._replace(limit_credits=limit, available_bits=available_bits(limit, after.used_credits))
        old, new = settings_of(meter), settings_of(after)
        entry = new_entry(context, after, kind=LedgerEntryKind.SETTINGS, amount=0)._replace(
            metadata={setting: [old[setting], new[setting]] for setting in new if old[setting] != new[setting]},
        )
        await billing_meters.update_meters(writer, [(meter, after)])
        await ledger.insert_entries(writer, [entry])
        return MeterOutcome(after, entry, replayed=False)

    outcome = await context.database.write(change)
    context.forget()
    return outcome


async def refill_billing_meter(
    context: Context,
    *,
    workspace_id: str,
    external_meter_id: str,
    refill: int | None,
    idempotency_key: str | None = None,
) -> MeterOutcome:
    """Add credits to a meter's total; without a `refill`, return the meter unchanged.

    Under an idempotency key the first refill is replayed, for ever.

    Raises `InvalidInput`, `Forbidden`, `BillingMeterNotFound`, `IdempotencyConflict` and `AmountOutOfRange`, in this
    order.
    """
    check_names(workspace_id, external_meter_id)
    if idempotency_key is not None:
        check_text("idempotencyKey", idempotency_key, length=KEY_LENGTH)
        if refill is None:
            raise InvalidInput("refill", "must be given with an idempotencyKey.")
    if refill == 0:
        raise InvalidInput("refill", "must be greater than 0.")
    actor = context.actor
    actor.require(Scope.BILLING_WRITE)
    actor.require_workspace(workspace_id)
    name = meter_name(actor, workspace_id, external_meter_id)

    tried: LedgerEntryRow | None = None

    async def add(writer: Writer) -> MeterOutcome:
        nonlocal tried
        meter = await billing_meters.lock_by_name(writer, name)
        if meter is None:
            raise BillingMeterNotFound(workspace_id, external_meter_id)
        if refill is None:
            return MeterOutcome(meter, None, replayed=False)
        earlier = await _earlier_refill(writer, meter, idempotency_key, refill)
        if earlier is not None:
            return MeterOutcome(meter, earlier, replayed=earlier != tried)
        total_credits = meter.total_credits + refill
        if total_credits > MAX_AMOUNT:
            raise AmountOutOfRange("total")
        limit = limit_credits(total_credits, allow_overages=meter.allow_overages, spend_cap=meter.spend_cap)
        after = meter._replace(
            total_credits=total_credits,
            limit_credits=limit,
            available_bits=available_bits(limit, meter.used_credits),
            last_seq=meter.last_seq + 1,
            updated_at=context.clock(),
        )
        tried = new_entry(context, after, kind=LedgerEntryKind.REFILL, amount=refill)._replace(key=idempotency_key)
        await billing_meters.update_meters(writer, [(meter, after)])
        await ledger.insert_entries(writer, [tried])
        return MeterOutcome(after, tried, replayed=False)

    # Without a key nothing would tell a refill that was written from one that was not.
    outcome = await context.database.write(add, is_repeatable=idempotency_key is not None)
    context.forget()
    return outcome


async def _earlier_refill(
    writer: Writer, meter: BillingMeterRow, key: str | None, refill: int
) -> LedgerEntryRow | None:
    """Return the refill that the key has already made. Raises `IdempotencyConflict` when it was another amount."""
    if key is None:
        return None
    earlier = (await ledger.by_keys(writer, LedgerEntryKind.REFILL, [(meter.id, key)])).get((meter.id, key))
    if earlier is not None and earlier.amount != refill:
        raise IdempotencyConflict(key, entry=earlier)
    return earlier


#: The settings of a meter by what the ledger calls them: as the API does. Those after the fixed ones may change.
FIXED_SETTINGS = {
    "orgId": "org_id",
    "environment": "environment",
    "workspaceId": "workspace_id",
    "externalMeterId": "external_meter_id",
    "timezone": "timezone",
}
SETTINGS = FIXED_SETTINGS | {"allowOverages": "allow_overages", "spendCap": "spend_cap", "customerId": "customer_id"}


def settings_of(meter: BillingMeterRow) -> dict[str, bool | str | None]:
    """Return the meter's settings as the ledger records them: an amount as a decimal string, as everywhere.

    `OPENING` records each with its first value, and `SETTINGS` those that change.
    """
    values = {setting: getattr(meter, field) for setting, field in SETTINGS.items()}
    return {setting: str(value) if type(value) is int else value for setting, value in values.items()}


def new_entry(context: Context, meter: BillingMeterRow, *, kind: LedgerEntryKind, amount: int) -> LedgerEntryRow:
    """Return the newest entry of the meter, which is given as it is after it."""
    return LedgerEntryRow(
        meter_id=meter.id,
        seq=meter.last_seq,
        kind=kind,
        key=None,
        amount=amount,
        total_credits_after=meter.total_credits,
        used_credits_after=meter.used_credits,
        limit_credits=meter.limit_credits,
        usage_name=None,
        day=None,
        requested_amount=None,
        policy=None,
        voids_seq=None,
        sent_at=None,
        recorded_at=meter.updated_at,
        recorded_by=context.actor.key_id,
        reason=None,
        metadata={},
    )
