"""Billing meters: reading, making, changing and refilling them."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, cast

import strawberry

from resolvers.actor import Actor
from resolvers.context import Context
from resolvers.meters.balances import available_credits, overage_credits
from resolvers.meters.commands import Decision
from resolvers.meters.create import NewBillingMeter, create_billing_meter
from resolvers.meters.listing import list_billing_meters
from resolvers.meters.names import meter_name
from resolvers.meters.refill import refill_billing_meter
from resolvers.meters.settings import update_billing_meter
from resolvers.values import NAME_LENGTH
from schema.engine.execution.resolving import DIRECT, batched
from schema.engine.limits.sizes import of_bytes, text
from schema.errors import (
    AlreadyExists,
    AmountOutOfRange,
    BillingMeterNotFound,
    CustomerNotFound,
    IdempotencyConflict,
    InvalidInput,
)
from schema.info import Filter, Info, changes_of, given, not_null, values_of
from schema.ledger import LedgerEntry, ledgers_of
from schema.relay import (
    PAGE,
    After,
    Before,
    Connection,
    First,
    Last,
    Node,
    PageArguments,
    connection_of,
    page_arguments,
)
from schema.scalars import BigInt
from schema.usage import USAGE_DAYS, FillZeros, From, Names, To, UsageDay, usage_of
from storage import ids
from storage.billing_meters import BillingMeterRow

if TYPE_CHECKING:
    from schema.customers import Customer

_CustomerType = Annotated["Customer", strawberry.lazy("schema.customers")]


async def _customers_of(context: Context, meters: Sequence["BillingMeter"]) -> list[_CustomerType | None]:
    """Return the customer who pays for each meter, if the actor may see one."""
    customer_ids = [meter.customer_id for meter in meters if meter.customer_id is not None]
    loader = context.reading.customer_by_id  # Refused to a key that may not read, also where there is nothing to read.
    rows = await loader.load_many(customer_ids) if customer_ids else ()
    found = dict(zip(customer_ids, rows, strict=True))
    return [cast("Customer | None", found.get(meter.customer_id or "")) for meter in meters]


async def _usage_of(
    context: Context,
    meters: Sequence["BillingMeter"],
    from_: From = strawberry.UNSET,
    to: To = strawberry.UNSET,
    names: Names = strawberry.UNSET,
    fill_zeros: FillZeros = False,  # noqa: FBT002  # The field's own default.
) -> list[list[UsageDay]]:
    """Return the usage days of each meter."""
    return await usage_of(context, cast("Sequence[BillingMeterRow]", meters), from_, to, names, fill_zeros=fill_zeros)


async def _ledgers_of(
    context: Context,
    meters: Sequence["BillingMeter"],
    first: First = strawberry.UNSET,
    after: After = strawberry.UNSET,
    last: Last = strawberry.UNSET,
    before: Before = strawberry.UNSET,
) -> list[Connection[LedgerEntry]]:
    """Return a page of each meter's ledger."""
    arguments = page_arguments(context, ids.LEDGER_ENTRY, first, after, last, before)
    return await ledgers_of(context, cast("Sequence[BillingMeterRow]", meters), arguments)


def _overage_credits(root: BillingMeterRow) -> BigInt:
    return BigInt(overage_credits(root.total_credits, root.used_credits))


def _available_credits(root: BillingMeterRow) -> BigInt | None:
    available = available_credits(root.limit_credits, root.used_credits)
    return None if available is None else BigInt(available)


@strawberry.type(description="One pool of prepaid credits, named by its workspace and the caller's own name of it.")
class BillingMeter(Node, record=BillingMeterRow):
    """See `storage.billing_meters.BillingMeterRow`."""

    customer_id: strawberry.Private[str | None]
    workspace_id: str = strawberry.field(
        description="The product area that the meter belongs to, named by the caller.", metadata=text(NAME_LENGTH)
    )
    external_meter_id: str = strawberry.field(
        description="The caller's name of the meter, unique in its workspace.", metadata=text(NAME_LENGTH)
    )
    timezone: str = strawberry.field(
        description="The IANA time zone that the meter's days are counted in; it never changes.", metadata=of_bytes(66)
    )
    total_credits: BigInt = strawberry.field(description="The credits granted so far.")
    used_credits: BigInt = strawberry.field(description="The credits used so far.")
    overage_credits: BigInt = strawberry.field(
        resolver=_overage_credits, description="The credits used beyond the total; 0 where there are none."
    )
    available_credits: BigInt | None = strawberry.field(
        resolver=_available_credits,
        description=(
            "The credits that a debit may still take, overage up to the spend cap included; null: there is no limit."
        ),
    )
    allow_overages: bool = strawberry.field(description="Whether more may be used than the total.")
    spend_cap: BigInt | None = strawberry.field(
        description="The most overage allowed, in credits; null: no cap. It has no effect while overages are off."
    )
    created_at: datetime = strawberry.field(description="When the meter was made.")
    updated_at: datetime = strawberry.field(description="When the meter last changed, also by usage.")

    customer: _CustomerType | None = batched(
        _customers_of,
        description="The customer who pays for the meter; null: none is named, or none that the key may see.",
    )
    usage: list[UsageDay] = batched(
        _usage_of,
        description="The meter's usage days, ordered by day and then by name: at most 366 days and 10,000 rows.",
        metadata=USAGE_DAYS,
    )
    ledger: Connection[LedgerEntry] = batched(
        _ledgers_of, description="The meter's ledger, newest first.", metadata=PAGE
    )


@strawberry.input(
    description="Which billing meters to list; what is left out does not restrict them, and null is refused."
)
class BillingMeterFilter(Filter):
    """The filters of the list of meters."""

    workspace_id: str | None = strawberry.field(default=strawberry.UNSET, description="Only meters of this workspace.")
    customer_id: strawberry.ID | None = strawberry.field(
        default=strawberry.UNSET, description="Only meters of the customer of this id."
    )
    available_below: BigInt | None = strawberry.field(
        default=strawberry.UNSET, description="Only meters with a limit and fewer available credits than this."
    )


@strawberry.type
class BillingMeterQuery:
    """The queries of billing meters."""

    @strawberry.field(description="The billing meter of these names; null: there is none.", metadata=DIRECT)
    async def billing_meter(
        self,
        info: Info,
        workspace_id: Annotated[str, strawberry.argument(description="The meter's workspace, 1 to 256 characters.")],
        external_meter_id: Annotated[
            str, strawberry.argument(description="The caller's name of the meter, 1 to 256 characters.")
        ],
    ) -> BillingMeter | None:
        """Return the meter of these names."""
        meter_name(info.context.actor, workspace_id, external_meter_id)
        loaders = info.context.reading
        info.context.actor.require_workspace(workspace_id)
        row = await loaders.billing_meter_by_names.load((workspace_id, external_meter_id))
        return BillingMeter.of(row) if row is not None else None

    @strawberry.field(description="The billing meters, newest first.", metadata=DIRECT | PAGE)
    async def billing_meters(
        self,
        info: Info,
        first: First = strawberry.UNSET,
        after: After = strawberry.UNSET,
        last: Last = strawberry.UNSET,
        before: Before = strawberry.UNSET,
        filter: Annotated[
            BillingMeterFilter | None,
            strawberry.argument(description="Which meters to list; left out: all. Null is refused."),
        ] = strawberry.UNSET,
    ) -> Connection[BillingMeter]:
        """Return a page of the meters."""
        arguments = page_arguments(info.context, ids.BILLING_METER, first, after, last, before)
        wanted = given(filter) or BillingMeterFilter()
        rows = await list_billing_meters(
            info.context,
            arguments.page,
            workspace_id=given(wanted.workspace_id),
            customer_id=given(wanted.customer_id),
            available_below=given(wanted.available_below),
        )
        return meters_connection(arguments, rows)


def meters_connection(arguments: PageArguments, rows: Sequence[BillingMeterRow]) -> Connection[BillingMeter]:
    """Return a page of meters, read with one more row than it has."""
    return connection_of(arguments, rows, BillingMeter, id_of=lambda row: row.id)


@strawberry.input(description="A new billing meter.")
class CreateBillingMeterInput:
    """The fields of a new meter."""

    workspace_id: str = strawberry.field(description="The product area that it belongs to, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(
        description="The caller's name of it in the workspace, 1 to 256 characters."
    )
    total_credits: BigInt = strawberry.field(
        default=BigInt(0), description="The credits granted from the start, in whole credits."
    )
    allow_overages: bool = strawberry.field(default=False, description="Whether more may be used than the total.")
    spend_cap: BigInt | None = strawberry.field(
        default=strawberry.UNSET, description="The most overage allowed, in credits; left out: no cap. Null is refused."
    )
    customer_id: strawberry.ID | None = strawberry.field(
        default=strawberry.UNSET, description="The id of the customer who pays; left out or null: none."
    )
    timezone: str = strawberry.field(
        default="UTC", description="The IANA time zone that its days are counted in; it cannot be changed later."
    )
    idempotency_key: str | None = strawberry.field(
        default=strawberry.UNSET,
        description="The caller's name of this request, 1 to 255 characters: repeating it answers the meter it made.",
    )


@strawberry.input(description="A change of a billing meter; what is left out stays.")
class UpdateBillingMeterInput:
    """The fields of a meter that can be changed."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")
    allow_overages: strawberry.Maybe[bool | None] = strawberry.field(
        default=None, description="Whether more may be used than the total; null is refused."
    )
    spend_cap: strawberry.Maybe[BigInt | None] = strawberry.field(
        default=None,
        description="The most overage allowed, in credits; null is refused, so that a lost value never lifts the cap.",
    )
    customer_id: strawberry.Maybe[strawberry.ID | None] = strawberry.field(
        default=None, description="The id of the customer who pays; null: nobody any longer."
    )
    remove_spend_cap: bool = strawberry.field(default=False, description="Whether to remove the spend cap.")


@strawberry.input(description="A refill of a billing meter.")
class RefillBillingMeterInput:
    """The fields of a refill."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")
    refill: BigInt | None = strawberry.field(
        default=strawberry.UNSET,
        description="The credits to add to the total, more than 0; left out or null: the meter comes back unchanged.",
    )
    idempotency_key: str | None = strawberry.field(
        default=strawberry.UNSET,
        description="The caller's name of this refill, 1 to 255 characters: repeating it replays the first result.",
    )


@strawberry.type(description="A billing meter was made.")
class CreateBillingMeterSuccess:
    """See `resolvers.meters.commands.Decision`."""

    billing_meter: BillingMeter = strawberry.field(description="The meter, as it is now.")
    replayed: bool = strawberry.field(description="Whether an earlier request under the same key had made it.")

    @classmethod
    def of(cls, decision: Decision) -> "CreateBillingMeterSuccess":
        """Return the decision as clients see it."""
        return cls(billing_meter=BillingMeter.of(decision.billing_meter), replayed=decision.replayed)


@strawberry.type(description="A billing meter was changed, or already was as wanted.")
class UpdateBillingMeterSuccess:
    """See `resolvers.meters.commands.Decision`."""

    billing_meter: BillingMeter = strawberry.field(description="The meter, as it is now.")


@strawberry.type(description="A billing meter was refilled.")
class RefillBillingMeterSuccess:
    """See `resolvers.meters.commands.Decision`."""

    billing_meter: BillingMeter = strawberry.field(
        description="The meter, as it is now; the entry tells the totals right after this refill."
    )
    entry: LedgerEntry | None = strawberry.field(
        description=(
            "The ledger entry; null: no refill was asked for, or another key made it and this one lacks `billing:read`."
        )
    )
    replayed: bool = strawberry.field(
        description="Whether an earlier request under the same key had made the refill, so that nothing changed."
    )

    @classmethod
    def of(cls, decision: Decision, actor: Actor) -> "RefillBillingMeterSuccess":
        """Return the decision as the actor sees it."""
        return cls(
            billing_meter=BillingMeter.of(decision.billing_meter),
            entry=LedgerEntry.of_answer(decision.entry, actor),
            replayed=decision.replayed,
        )


CreateBillingMeterResult = Annotated[
    CreateBillingMeterSuccess | InvalidInput | CustomerNotFound | AlreadyExists | IdempotencyConflict,
    strawberry.union("CreateBillingMeterResult", description="The new billing meter, or why there is none."),
]
UpdateBillingMeterResult = Annotated[
    UpdateBillingMeterSuccess | InvalidInput | BillingMeterNotFound | CustomerNotFound,
    strawberry.union("UpdateBillingMeterResult", description="The changed billing meter, or why it was not changed."),
]
RefillBillingMeterResult = Annotated[
    RefillBillingMeterSuccess | InvalidInput | BillingMeterNotFound | IdempotencyConflict | AmountOutOfRange,
    strawberry.union("RefillBillingMeterResult", description="The refilled billing meter, or why it was not refilled."),
]


@strawberry.type
class BillingMeterMutation:
    """The mutations of billing meters."""

    @strawberry.mutation(description="Makes a billing meter. Needs `billing:write`.", metadata=DIRECT)
    async def create_billing_meter(
        self,
        info: Info,
        input: Annotated[CreateBillingMeterInput, strawberry.argument(description="The new meter.")],
    ) -> CreateBillingMeterResult | None:
        """Make the meter."""
        not_null("spendCap", input.spend_cap, "leave it out for no cap.")
        values = values_of(input)
        key = values.pop("idempotency_key", None)
        decision = await create_billing_meter(info.context, NewBillingMeter(**values), idempotency_key=key)
        return CreateBillingMeterSuccess.of(decision)

    @strawberry.mutation(
        description=(
            "Changes a billing meter's overage switch, spend cap or customer. Lowering the limit always succeeds."
            " Needs "
            "`billing:write`."
        ),
        metadata=DIRECT,
    )
    async def update_billing_meter(
        self,
        info: Info,
        input: Annotated[
            UpdateBillingMeterInput, strawberry.argument(description="The meter, and what to change of it.")
        ],
    ) -> UpdateBillingMeterResult | None:
        """Change the meter."""
        decision = await update_billing_meter(
            info.context,
            workspace_id=input.workspace_id,
            external_meter_id=input.external_meter_id,
            changes=changes_of(input),
            remove_spend_cap=input.remove_spend_cap,
        )
        return UpdateBillingMeterSuccess(billing_meter=BillingMeter.of(decision.billing_meter))

    @strawberry.mutation(
        description="Adds credits to a billing meter's total; it never resets anything. Needs `billing:write`.",
        metadata=DIRECT,
    )
    async def refill_billing_meter(
        self,
        info: Info,
        input: Annotated[
            RefillBillingMeterInput, strawberry.argument(description="The meter, and the credits to add.")
        ],
    ) -> RefillBillingMeterResult | None:
        """Refill the meter."""
        decision = await refill_billing_meter(
            info.context,
            workspace_id=input.workspace_id,
            external_meter_id=input.external_meter_id,
            refill=given(input.refill),
            idempotency_key=given(input.idempotency_key),
        )
        return RefillBillingMeterSuccess.of(decision, info.context.actor)
