"""Credit grants: reading, making, changing and revoking them."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, cast

import strawberry
from strawberry.scalars import JSON

from resolvers import errors
from resolvers.actor import Actor
from resolvers.context import Context
from resolvers.meters.grants import grant_credits, revoke_credit_grant, update_credit_grant
from resolvers.reading.keys import GrantsOfMeter
from resolvers.rules.commands import Decision
from resolvers.values import REASON_LENGTH
from schema.engine.execution.resolving import DIRECT, batched
from schema.engine.limits.sizes import AN_ID, text
from schema.enums import CreditGrantCategory, CreditGrantState
from schema.errors import (
    AmountOutOfRange,
    BillingMeterNotFound,
    CreditGrantNotFound,
    CreditGrantNotLive,
    IdempotencyConflict,
    InvalidInput,
    TooManyCreditGrants,
)
from schema.info import Filter, Info, changes_of, given, metadata_of, not_null, values_of
from schema.meters.ledger import ANSWERED_ENTRY, LedgerEntry
from schema.relay import Connection, Node, PageArguments, connection_of, seq_of
from schema.scalars import BigInt
from storage import ids
from storage.engine.pages import Page
from storage.meters import credit_grants
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.credit_grants import CreditGrantRow, GrantFilter, state_of

if TYPE_CHECKING:
    from schema.meters.billing_meters import BillingMeter

_MeterType = Annotated["BillingMeter", strawberry.lazy("schema.meters.billing_meters")]


async def _meters_of(context: Context, grants: Sequence["CreditGrant"]) -> list[_MeterType]:
    """Return the meter of each grant."""
    rows = await context.reading.billing_meter_by_id.load_many([grant.meter_id for grant in grants])
    if None in rows:
        raise errors.Forbidden("The billing meter is no longer the customer's.")
    return cast("list[BillingMeter]", rows)


async def _states_of(context: Context, grants: Sequence["CreditGrant"]) -> list[CreditGrantState]:
    """Return the state of each grant."""
    rows = cast("Sequence[CreditGrantRow]", grants)
    return [CreditGrantState[state_of(row, context.moment.of(row.meter_id)).name] for row in rows]


async def _reasons_of(context: Context, grants: Sequence["CreditGrant"]) -> list[str | None]:
    """Return why each grant was made, which its customer does not see."""
    is_hidden = context.actor.customer_id is not None
    return [None if is_hidden else cast("CreditGrantRow", grant).reason for grant in grants]


def _id_of(root: CreditGrantRow) -> strawberry.ID:
    return strawberry.ID(ids.numbered_id(ids.CREDIT_GRANT, root.meter_id, root.seq))


@strawberry.type(
    description=(
        "Credits of a meter with a priority, and perhaps an end. Its amount is the sum of what is open, pinned, drawn,"
        " expired and revoked."
    )
)
class CreditGrant(Node, record=CreditGrantRow):
    """See `storage.meters.credit_grants.CreditGrantRow`."""

    meter_id: strawberry.Private[str]
    id: strawberry.ID = strawberry.field(
        resolver=_id_of, description="The object's opaque id, unique among all objects.", metadata=AN_ID
    )
    amount: BigInt = strawberry.field(description="The credits that were granted.")
    open_credits: BigInt = strawberry.field(description="The credits that a debit or a hold may still take.")
    pinned_credits: BigInt = strawberry.field(description="The credits that open holds have reserved.")
    drawn_credits: BigInt = strawberry.field(
        description="The credits that usage has drawn, with what was used before the grant and is paid by it."
    )
    expired_credits: BigInt = strawberry.field(description="The credits that were not used before the end.")
    revoked_credits: BigInt = strawberry.field(description="The credits that were taken back.")
    priority: int = strawberry.field(description="0 to 100: credits of a lower priority are used first.")
    category: CreditGrantCategory = strawberry.field(description="Whether it was paid for.")
    expires_at: datetime | None = strawberry.field(
        description="From this moment on it cannot be used; null: it has no end."
    )
    created_at: datetime = strawberry.field(description="When it was made.")
    metadata: JSON = batched(metadata_of, description="What the caller attached.")

    state: CreditGrantState = batched(_states_of, description="What can be had of it now.")
    reason: str | None = batched(
        _reasons_of,
        description="Why it was made, for people; null: no reason was given, or the caller is the customer.",
        metadata=text(REASON_LENGTH),
    )
    billing_meter: _MeterType = batched(_meters_of, description="The meter whose credits they are.")


@strawberry.input(
    description="Which credit grants to list; what is left out does not restrict them, and null is refused."
)
class CreditGrantFilter(Filter):
    """The filters of the list of grants."""

    state: CreditGrantState | None = strawberry.field(
        default=strawberry.UNSET, description="Only grants in this state."
    )
    category: CreditGrantCategory | None = strawberry.field(
        default=strawberry.UNSET, description="Only grants of this category."
    )
    expires_before: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="Only grants that end before this moment."
    )


async def grants_of(
    context: Context,
    meters: Sequence[BillingMeterRow],
    arguments: PageArguments,
    wanted: CreditGrantFilter | None,
) -> list[Connection[CreditGrant]]:
    """Return a page of each meter's grants, newest first."""
    of = wanted or CreditGrantFilter()
    state, category = given(of.state), given(of.category)
    of_rows = GrantFilter(
        None if state is None else credit_grants.CreditGrantState[state.name],
        None if category is None else credit_grants.CreditGrantCategory[category.name],
        given(of.expires_before),
    )
    keys = [GrantsOfMeter(meter.id, numbered_page(arguments, ids.CREDIT_GRANT, meter.id), of_rows) for meter in meters]
    return [
        connection_of(arguments, rows, CreditGrant, id_of=_id_of)
        for rows in await context.reading.grants_of_meter.load_many(keys)
    ]


def numbered_page(arguments: PageArguments, prefix: str, meter_id: str) -> Page:
    """Return the page of a meter's grants or holds. Raises `BadUserInput` for another meter's cursor."""
    return Page(
        arguments.limit,
        older_than=seq_of(arguments.after, prefix, meter_id),
        newer_than=seq_of(arguments.before, prefix, meter_id),
        backward=arguments.backward,
    )


@strawberry.input(description="Credits to grant to a billing meter.")
class GrantCreditsInput:
    """The fields of a new grant."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")
    amount: BigInt = strawberry.field(description="The credits to add to the total, more than 0.")
    priority: int = strawberry.field(default=50, description="0 to 100: credits of a lower priority are used first.")
    category: CreditGrantCategory = strawberry.field(
        default=CreditGrantCategory.PAID, description="Whether they were paid for: promotional ones are used first."
    )
    expires_at: datetime | None = strawberry.field(
        default=strawberry.UNSET,
        description="From this moment on they cannot be used; left out: they have no end. Null is refused.",
    )
    reason: str | None = strawberry.field(
        default=strawberry.UNSET, description="Why, for people, 1 to 500 characters; its customer does not see it."
    )
    metadata: JSON | None = strawberry.field(
        default=strawberry.UNSET, description="A JSON object of at most 16 KiB, kept on the grant."
    )
    idempotency_key: str | None = strawberry.field(
        default=strawberry.UNSET,
        description="The caller's name of this grant, 1 to 255 characters: repeating it replays the first result.",
    )


@strawberry.input(description="A change of a credit grant; what is left out stays.")
class UpdateCreditGrantInput:
    """The fields of a grant that can be changed."""

    id: strawberry.ID = strawberry.field(description="The grant's id.")
    priority: strawberry.Maybe[int | None] = strawberry.field(
        default=None, description="0 to 100: credits of a lower priority are used first. Null is refused."
    )
    expires_at: strawberry.Maybe[datetime | None] = strawberry.field(
        default=None, description="From this moment on it cannot be used; null is refused: `removeExpiry` removes it."
    )
    remove_expiry: bool = strawberry.field(default=False, description="Whether the grant is to have no end.")
    reason: str | None = strawberry.field(
        default=strawberry.UNSET, description="Why, for people, 1 to 500 characters; kept on the ledger entry."
    )


@strawberry.input(description="Credits to take back of a credit grant.")
class RevokeCreditGrantInput:
    """The fields of a revocation."""

    id: strawberry.ID = strawberry.field(description="The grant's id.")
    amount: BigInt | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "The credits to take back, more than 0, as far as they are open; left out: all that is open, and all that"
            " comes back to it later. Null is refused."
        ),
    )
    reason: str | None = strawberry.field(
        default=strawberry.UNSET, description="Why, for people, 1 to 500 characters; kept on the ledger entry."
    )
    idempotency_key: str | None = strawberry.field(
        default=strawberry.UNSET,
        description="The caller's name of this revocation, 1 to 255 characters: repeating it replays the first result.",
    )


_GRANT_NOW = "The grant, as it is now."
_METER_NOW = "The meter, as it is now."
_REPLAYED = "Whether an earlier request under the same key had done it, so that nothing changed."


@strawberry.type(description="Credits were granted.")
class GrantCreditsSuccess:
    """See `resolvers.meters.grants.GrantCredits`."""

    credit_grant: CreditGrant = strawberry.field(description=_GRANT_NOW)
    billing_meter: _MeterType = strawberry.field(description=_METER_NOW)
    entry: LedgerEntry | None = strawberry.field(description=ANSWERED_ENTRY)
    replayed: bool = strawberry.field(description=_REPLAYED)


@strawberry.type(description="A credit grant was changed, or already was as wanted.")
class UpdateCreditGrantSuccess:
    """See `resolvers.meters.grants.UpdateCreditGrant`."""

    credit_grant: CreditGrant = strawberry.field(description=_GRANT_NOW)
    billing_meter: _MeterType = strawberry.field(description=_METER_NOW)
    entry: LedgerEntry | None = strawberry.field(description="The ledger entry; null: nothing changed.")


@strawberry.type(description="Open credits of a credit grant were taken back, if there were any.")
class RevokeCreditGrantSuccess:
    """See `resolvers.meters.grants.RevokeCreditGrant`."""

    credit_grant: CreditGrant = strawberry.field(description=_GRANT_NOW)
    billing_meter: _MeterType = strawberry.field(description=_METER_NOW)
    entry: LedgerEntry | None = strawberry.field(description=ANSWERED_ENTRY)
    revoked: BigInt = strawberry.field(description="The credits that were taken back.")
    shortfall: BigInt = strawberry.field(
        description="The credits that were asked for and were not open; 0 where no amount was given."
    )
    replayed: bool = strawberry.field(description=_REPLAYED)


GrantCreditsResult = Annotated[
    GrantCreditsSuccess
    | InvalidInput
    | BillingMeterNotFound
    | IdempotencyConflict
    | AmountOutOfRange
    | TooManyCreditGrants,
    strawberry.union("GrantCreditsResult", description="The granted credits, or why there are none."),
]
UpdateCreditGrantResult = Annotated[
    UpdateCreditGrantSuccess | InvalidInput | CreditGrantNotFound | CreditGrantNotLive,
    strawberry.union("UpdateCreditGrantResult", description="The changed grant, or why it was not changed."),
]
RevokeCreditGrantResult = Annotated[
    RevokeCreditGrantSuccess | InvalidInput | CreditGrantNotFound | IdempotencyConflict,
    strawberry.union("RevokeCreditGrantResult", description="The revoked grant, or why it was not revoked."),
]


def _about(decision: Decision, actor: Actor) -> dict[str, Any]:
    """Return the grant, the meter and the entry of a decision, as the actor sees them."""
    return {
        "credit_grant": decision.credit_grant,
        "billing_meter": decision.billing_meter,
        "entry": LedgerEntry.of_answer(decision.entry, actor),
    }


@strawberry.type
class CreditGrantMutation:
    """The mutations of credit grants."""

    @strawberry.mutation(
        description="Adds credits to a billing meter that may have an end and are used in an order. Needs "
        "`billing:write`.",
        metadata=DIRECT,
    )
    async def grant_credits(
        self, info: Info, input: Annotated[GrantCreditsInput, strawberry.argument(description="The credits to grant.")]
    ) -> GrantCreditsResult | None:
        """Grant the credits."""
        not_null("expiresAt", input.expires_at, "leave it out for no end.")
        values = values_of(input) | {"category": credit_grants.CreditGrantCategory[input.category.name]}
        decision = await grant_credits(info.context, **values)
        return GrantCreditsSuccess(**_about(decision, info.context.actor), replayed=decision.replayed)

    @strawberry.mutation(
        description="Changes the priority or the end of a live credit grant. Needs `billing:write`.", metadata=DIRECT
    )
    async def update_credit_grant(
        self,
        info: Info,
        input: Annotated[
            UpdateCreditGrantInput, strawberry.argument(description="The grant, and what to change of it.")
        ],
    ) -> UpdateCreditGrantResult | None:
        """Change the grant."""
        changes = changes_of(input)
        for name, field, otherwise in (
            ("priority", "priority", "leave it out to keep it."),
            ("expires_at", "expiresAt", "removeExpiry removes it."),
        ):
            not_null(field, changes.get(name, strawberry.UNSET), otherwise)
        if input.remove_expiry and "expires_at" in changes:
            raise errors.InvalidInput("removeExpiry", "must not be true beside an expiresAt.")
        changes |= {"expires_at": None} if input.remove_expiry else {}
        decision = await update_credit_grant(info.context, id_=input.id, changes=changes, reason=given(input.reason))
        return UpdateCreditGrantSuccess(**_about(decision, info.context.actor))

    @strawberry.mutation(
        description="Takes back what is open of a credit grant, or a part of it. Needs `billing:write`.",
        metadata=DIRECT,
    )
    async def revoke_credit_grant(
        self,
        info: Info,
        input: Annotated[
            RevokeCreditGrantInput, strawberry.argument(description="The grant, and the credits to take back.")
        ],
    ) -> RevokeCreditGrantResult | None:
        """Take back the credits."""
        amount = not_null("amount", input.amount, "leave it out to take back all that is open.")
        decision = await revoke_credit_grant(
            info.context,
            id_=input.id,
            amount=amount,
            reason=given(input.reason),
            idempotency_key=given(input.idempotency_key),
        )
        assert decision.entry is not None  # noqa: S101  # Every revocation has its entry.
        revoked = decision.entry.amount
        return RevokeCreditGrantSuccess(
            **_about(decision, info.context.actor),
            revoked=BigInt(revoked),
            shortfall=BigInt((decision.entry.requested_amount or revoked) - revoked),
            replayed=decision.replayed,
        )
