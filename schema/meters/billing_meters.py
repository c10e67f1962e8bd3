"""Billing meters, as clients read them."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, cast

import strawberry

from resolvers.context import Context
from resolvers.meters.listing import list_billing_meters
from resolvers.meters.names import meter_name
from resolvers.rules.balances import available_credits, overage_credits
from resolvers.rules.credits import BASE
from resolvers.values import NAME_LENGTH
from schema.engine.execution.resolving import DIRECT, batched
from schema.engine.limits.sizes import foreseen, of_bytes, text
from schema.enums import HoldState
from schema.info import Filter, Info, given, values_of
from schema.meters.alerts import OF_METER, MeterAlert, alerts_of
from schema.meters.auto_refills import AutoRefill, auto_refills_of
from schema.meters.credit_grants import CreditGrant, CreditGrantFilter, grants_of
from schema.meters.holds import Hold, holds_of
from schema.meters.ledger import LedgerEntry, ledgers_of
from schema.meters.usage import USAGE_DAYS, FillZeros, From, Names, To, UsageDay, usage_of
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
from storage import ids
from storage.meters.billing_meters import BillingMeterRow, MeterFilter

if TYPE_CHECKING:
    from schema.customers import Customer

#: How many steps the use of a meter's open credits has as a rule.
FORESEEN_STEPS = 10

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


async def _grants_of(
    context: Context,
    meters: Sequence["BillingMeter"],
    first: First = strawberry.UNSET,
    after: After = strawberry.UNSET,
    last: Last = strawberry.UNSET,
    before: Before = strawberry.UNSET,
    filter: Annotated[
        CreditGrantFilter | None,
        strawberry.argument(description="Which grants to list; left out: all. Null is refused."),
    ] = strawberry.UNSET,
) -> list[Connection[CreditGrant]]:
    """Return a page of each meter's grants."""
    arguments = page_arguments(context, ids.CREDIT_GRANT, first, after, last, before)
    return await grants_of(context, cast("Sequence[BillingMeterRow]", meters), arguments, given(filter))


async def _burn_downs_of(context: Context, meters: Sequence["BillingMeter"]) -> list[list["BurnDownStep"]]:
    """Return what is open of each meter, in the order of use."""
    rows = cast("Sequence[BillingMeterRow]", meters)
    found = await context.reading.usable_grants_of_meter.load_many([row.id for row in rows])
    await context.admit_unforeseen(found, FORESEEN_STEPS)
    return [
        [
            BurnDownStep(
                credit_grant=None if grant.seq == BASE else CreditGrant.of(grant),
                open_credits=BigInt(grant.open_credits),
                expires_at=grant.expires_at,
            )
            for grant in grants
        ]
        for grants in found
    ]


async def _holds_of(
    context: Context,
    meters: Sequence["BillingMeter"],
    first: First = strawberry.UNSET,
    after: After = strawberry.UNSET,
    last: Last = strawberry.UNSET,
    before: Before = strawberry.UNSET,
    state: Annotated[
        HoldState | None, strawberry.argument(description="Only holds in this state; left out: of all states.")
    ] = strawberry.UNSET,
) -> list[Connection[Hold]]:
    """Return a page of each meter's holds."""
    arguments = page_arguments(context, ids.HOLD, first, after, last, before)
    return await holds_of(context, cast("Sequence[BillingMeterRow]", meters), arguments, given(state))


async def _auto_refills_of(context: Context, meters: Sequence["BillingMeter"]) -> list[AutoRefill | None]:
    """Return the automatic refill of each meter that has one."""
    return await auto_refills_of(context, cast("Sequence[BillingMeterRow]", meters))


@strawberry.type(description="What is open of one credit grant, or of the base.")
class BurnDownStep:
    """A step of the order of use."""

    credit_grant: CreditGrant | None = strawberry.field(
        description="The grant; null: the base, which is what the meter opened with and was refilled with."
    )
    open_credits: BigInt = strawberry.field(description="The credits that a debit or a hold may still take of it.")
    expires_at: datetime | None = strawberry.field(description="When it ends; null: it has no end.")


def _overage_credits(root: BillingMeterRow) -> BigInt:
    return BigInt(overage_credits(root.total_credits, root.used_credits))


def _available_credits(root: BillingMeterRow) -> BigInt | None:
    available = available_credits(root.limit_credits, root.used_credits, root.held_credits)
    return None if available is None else BigInt(available)


@strawberry.type(description="One pool of prepaid credits, named by its workspace and the caller's own name of it.")
class BillingMeter(Node, record=BillingMeterRow):
    """See `storage.meters.billing_meters.BillingMeterRow`."""

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
    held_credits: BigInt = strawberry.field(description="The credits that open holds reserve, overage included.")
    pinned_credits: BigInt = strawberry.field(description="The granted credits among those that open holds reserve.")
    max_open_holds: int | None = strawberry.field(
        description="How many holds may be open at once; null: as many as the operator allows."
    )
    allow_overages: bool = strawberry.field(description="Whether more may be used than the total.")
    spend_cap: BigInt | None = strawberry.field(
        description="The most overage allowed, in credits; null: no cap. It has no effect while overages are off."
    )
    last_seq: BigInt = strawberry.field(
        description="The number of its newest ledger entry: of two states of the meter the greater is the newer."
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
    credit_grants: Connection[CreditGrant] = batched(
        _grants_of, description="The meter's credit grants, newest first.", metadata=PAGE
    )
    burn_down: list[BurnDownStep] = batched(
        _burn_downs_of,
        description="What is open, in the order in which it will be used, the base too.",
        metadata=foreseen(FORESEEN_STEPS),
    )
    holds: Connection[Hold] = batched(_holds_of, description="The meter's holds, newest first.", metadata=PAGE)
    auto_refill: AutoRefill | None = batched(
        _auto_refills_of, description="When the meter asks for credits; null: it has no automatic refill."
    )
    alerts: list[MeterAlert] = batched(
        alerts_of,
        description="The alerts of the meter and of its workspace, the oldest first.",
        metadata=OF_METER,
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
        rows = await list_billing_meters(info.context, arguments.page, MeterFilter(**values_of(wanted)))
        return meters_connection(arguments, rows)


def meters_connection(arguments: PageArguments, rows: Sequence[BillingMeterRow]) -> Connection[BillingMeter]:
    """Return a page of meters, read with one more row than it has."""
    return connection_of(arguments, rows, BillingMeter, id_of=lambda row: row.id)
