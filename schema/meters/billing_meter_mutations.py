"""Billing meters: making, changing and refilling them."""

from typing import Annotated

import strawberry

from resolvers.actor import Actor
from resolvers.meters.create import create_billing_meter
from resolvers.meters.refill import refill_billing_meter
from resolvers.meters.settings import NewBillingMeter, update_billing_meter
from resolvers.rules.commands import Decision
from schema.engine.execution.resolving import DIRECT
from schema.errors import (
    AlreadyExists,
    AmountOutOfRange,
    BillingMeterNotFound,
    CustomerNotFound,
    IdempotencyConflict,
    InvalidInput,
)
from schema.info import Info, changes_of, given, not_null, values_of
from schema.meters.billing_meters import BillingMeter
from schema.meters.ledger import LedgerEntry
from schema.scalars import BigInt


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
    max_open_holds: int | None = strawberry.field(
        default=strawberry.UNSET,
        description="How many holds may be open at once, 1 or more; left out: as many as the operator allows.",
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
    max_open_holds: strawberry.Maybe[int | None] = strawberry.field(
        default=None, description="How many holds may be open at once, 1 or more; null is refused."
    )
    remove_max_open_holds: bool = strawberry.field(
        default=False, description="Whether as many holds may be open as the operator allows."
    )


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
    """See `resolvers.rules.commands.Decision`."""

    billing_meter: BillingMeter = strawberry.field(description="The meter, as it is now.")
    replayed: bool = strawberry.field(description="Whether an earlier request under the same key had made it.")

    @classmethod
    def of(cls, decision: Decision) -> "CreateBillingMeterSuccess":
        """Return the decision as clients see it."""
        return cls(billing_meter=BillingMeter.of(decision.billing_meter), replayed=decision.replayed)


@strawberry.type(description="A billing meter was changed, or already was as wanted.")
class UpdateBillingMeterSuccess:
    """See `resolvers.rules.commands.Decision`."""

    billing_meter: BillingMeter = strawberry.field(description="The meter, as it is now.")


@strawberry.type(description="A billing meter was refilled.")
class RefillBillingMeterSuccess:
    """See `resolvers.rules.commands.Decision`."""

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
        not_null("maxOpenHolds", input.max_open_holds, "leave it out for the operator's.")
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
            remove_max_open_holds=input.remove_max_open_holds,
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
