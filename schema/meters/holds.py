"""Holds: reading, making, committing and releasing them."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, cast

import strawberry
from strawberry.scalars import JSON

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.errors import Forbidden
from resolvers.meters.holds import commit_hold, extend_hold, hold_credits, release_hold
from resolvers.reading.keys import HoldsOfMeter
from resolvers.values import KEY_LENGTH
from schema.engine.execution.resolving import DIRECT, batched
from schema.engine.limits.sizes import AN_ID, text
from schema.enums import HoldState, IfHoldClosed, OverLimitPolicy
from schema.errors import (
    AmountOutOfRange,
    BillingMeterNotFound,
    HoldNotFound,
    HoldNotOpen,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidInput,
    SpendCapExceeded,
    TooManyHolds,
)
from schema.info import Info, metadata_of, values_of
from schema.meters.credit_grants import numbered_page
from schema.meters.ledger import ANSWERED_ENTRY, LedgerEntry
from schema.relay import Connection, Node, PageArguments, connection_of
from schema.scalars import BigInt
from storage import ids
from storage.meters import holds, ledger
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.holds import HoldRow

if TYPE_CHECKING:
    from schema.meters.billing_meters import BillingMeter

_MeterType = Annotated["BillingMeter", strawberry.lazy("schema.meters.billing_meters")]


async def _meters_of(context: Context, of: Sequence["Hold"]) -> list[_MeterType]:
    """Return the meter of each hold."""
    rows = await context.reading.billing_meter_by_id.load_many([hold.meter_id for hold in of])
    if None in rows:
        raise Forbidden("The billing meter is no longer the customer's.")
    return cast("list[BillingMeter]", rows)


async def _metadata_of(context: Context, of: Sequence["Hold"]) -> list[JSON]:
    """Return what is kept with each hold; another key may have written it, so it takes `billing:read`."""
    if Scope.BILLING_READ not in context.actor.scopes:
        return [JSON({}) for _ in of]
    return await metadata_of(context, of)


def _id_of(root: HoldRow) -> strawberry.ID:
    return strawberry.ID(ids.numbered_id(ids.HOLD, root.meter_id, root.seq))


@strawberry.type(description="Credits of a meter that are reserved for work whose cost is known afterwards.")
class Hold(Node, record=HoldRow):
    """See `storage.meters.holds.HoldRow`."""

    meter_id: strawberry.Private[str]
    id: strawberry.ID = strawberry.field(
        resolver=_id_of, description="The object's opaque id, unique among all objects.", metadata=AN_ID
    )
    hold_id: str = strawberry.field(
        description="The caller's name of it, unique among the meter's holds and usage events.",
        metadata=text(KEY_LENGTH),
    )
    amount: BigInt = strawberry.field(description="The credits that it reserves while it is open.")
    requested_amount: BigInt = strawberry.field(
        description="The credits that were asked for; the policy `PARTIAL` may have accepted fewer."
    )
    state: HoldState = strawberry.field(description="What has become of it.")
    committed_amount: BigInt | None = strawberry.field(
        description="The credits that its usage took; null: it is not committed."
    )
    expires_at: datetime = strawberry.field(description="From this moment on it reserves nothing.")
    created_at: datetime = strawberry.field(description="When it was made.")
    closed_at: datetime | None = strawberry.field(
        description="When it was committed, released or expired; null: it is open."
    )
    metadata: JSON = batched(
        _metadata_of, description="What the caller attached; empty for a key without `billing:read`."
    )

    billing_meter: _MeterType = batched(_meters_of, description="The meter whose credits it reserves.")


async def holds_of(
    context: Context, meters: Sequence[BillingMeterRow], arguments: PageArguments, state: HoldState | None
) -> list[Connection[Hold]]:
    """Return a page of each meter's holds, newest first; of all states where none is given."""
    of_rows = None if state is None else holds.HoldState[state.name]
    keys = [HoldsOfMeter(meter.id, numbered_page(arguments, ids.HOLD, meter.id), of_rows) for meter in meters]
    return [
        connection_of(arguments, rows, Hold, id_of=_id_of)
        for rows in await context.reading.holds_of_meter.load_many(keys)
    ]


@strawberry.input(description="Credits to reserve.")
class HoldCreditsInput:
    """The fields of a new hold."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")
    hold_id: str = strawberry.field(
        description=(
            "The caller's name of the hold on this meter, 1 to 255 characters, and of the usage that commits it."
            " Repeating it replays the first result."
        )
    )
    amount: BigInt = strawberry.field(description="The credits to reserve, more than 0.")
    policy: OverLimitPolicy = strawberry.field(
        default=OverLimitPolicy.REJECT,
        description="What is wanted when the available credits do not cover the amount: `REJECT` or `PARTIAL`.",
    )
    expires_in_seconds: int = strawberry.field(
        default=900, description="How long it reserves them unless it is closed before, 1 to 86,400 seconds."
    )
    metadata: JSON | None = strawberry.field(
        default=strawberry.UNSET, description="A JSON object of at most 16 KiB, kept on the hold."
    )


@strawberry.input(description="The usage that a hold was made for.")
class CommitHoldInput:
    """The fields of a commit."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")
    hold_id: str = strawberry.field(description="The caller's name of the hold, 1 to 255 characters.")
    amount: BigInt = strawberry.field(
        description=("The credits that were used: up to what is held they are always accepted. 0 releases the hold.")
    )
    policy: OverLimitPolicy = strawberry.field(
        default=OverLimitPolicy.PARTIAL,
        description="What is wanted of what goes beyond the hold when the available credits do not cover it.",
    )
    usage_name: str = strawberry.field(
        default="default", description="What was used, 1 to 128 characters; each has usage days of its own."
    )
    occurred_at: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="When it was used, as of `recordUsage`; left out: now."
    )
    metadata: JSON | None = strawberry.field(
        default=strawberry.UNSET, description="A JSON object of at most 16 KiB, kept on the ledger entry."
    )
    if_closed: IfHoldClosed = strawberry.field(
        default=IfHoldClosed.REFUSE, description="What is wanted when the hold is released or expired."
    )


@strawberry.input(description="A hold to release.")
class ReleaseHoldInput:
    """The fields of a release."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")
    hold_id: str = strawberry.field(description="The caller's name of the hold, 1 to 255 characters.")


@strawberry.input(description="A hold to keep open for longer.")
class ExtendHoldInput:
    """The fields of an extension."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")
    hold_id: str = strawberry.field(description="The caller's name of the hold, 1 to 255 characters.")
    expires_in_seconds: int = strawberry.field(
        description=(
            "For how long from now, 1 to 86,400 seconds; a hold ends at most 24 hours after it was made, and an"
            " extension never makes it end earlier."
        )
    )


_HOLD_NOW = "The hold, as it is now."
_METER_NOW = "The meter, as it is now."
_REPLAYED = "Whether it had been done before, so that nothing changed."


@strawberry.type(description="Credits are reserved.")
class HoldCreditsSuccess:
    """See `resolvers.meters.holds.HoldCredits`."""

    hold: Hold = strawberry.field(description=_HOLD_NOW)
    billing_meter: _MeterType = strawberry.field(description=_METER_NOW)
    entry: LedgerEntry | None = strawberry.field(description=ANSWERED_ENTRY)
    refused: BigInt = strawberry.field(
        description="The credits that the policy `PARTIAL` did not reserve; 0 under `REJECT`."
    )
    replayed: bool = strawberry.field(description=_REPLAYED)


@strawberry.type(description="A hold was committed: its usage is recorded, and what was left of it is free.")
class CommitHoldSuccess:
    """See `resolvers.meters.holds.CommitHold`."""

    hold: Hold = strawberry.field(description=_HOLD_NOW)
    billing_meter: _MeterType = strawberry.field(description=_METER_NOW)
    accepted: BigInt = strawberry.field(description="The credits that the usage took.")
    refused: BigInt = strawberry.field(
        description="The credits beyond the hold that the policy `PARTIAL` did not accept; 0 under the others."
    )
    over_limit: bool = strawberry.field(
        description="Whether more is used and held than the meter's limit, after this usage."
    )
    entry: LedgerEntry | None = strawberry.field(
        description=(
            "The ledger entry, of an amount of 0 that of the release; null: nothing was written, or another key"
            " recorded it and this one lacks `billing:read`."
        )
    )
    replayed: bool = strawberry.field(description=_REPLAYED)


@strawberry.type(description="A hold was released: what it reserved is free.")
class ReleaseHoldSuccess:
    """See `resolvers.meters.holds.ReleaseHold`."""

    hold: Hold = strawberry.field(description=_HOLD_NOW)
    billing_meter: _MeterType = strawberry.field(description=_METER_NOW)
    released: BigInt = strawberry.field(description="The credits that it had reserved.")
    replayed: bool = strawberry.field(description=_REPLAYED)


@strawberry.type(description="A hold ends at the moment that was asked for, or at a later one as before.")
class ExtendHoldSuccess:
    """See `resolvers.meters.holds.ExtendHold`."""

    hold: Hold = strawberry.field(description=_HOLD_NOW)
    billing_meter: _MeterType = strawberry.field(description=_METER_NOW)


HoldCreditsResult = Annotated[
    HoldCreditsSuccess
    | InvalidInput
    | BillingMeterNotFound
    | IdempotencyConflict
    | InsufficientCredits
    | SpendCapExceeded
    | AmountOutOfRange
    | TooManyHolds,
    strawberry.union("HoldCreditsResult", description="The hold, or why there is none."),
]
CommitHoldResult = Annotated[
    CommitHoldSuccess
    | InvalidInput
    | BillingMeterNotFound
    | HoldNotFound
    | HoldNotOpen
    | IdempotencyConflict
    | InsufficientCredits
    | SpendCapExceeded
    | AmountOutOfRange,
    strawberry.union("CommitHoldResult", description="The committed hold, or why it was not committed."),
]
ReleaseHoldResult = Annotated[
    ReleaseHoldSuccess | InvalidInput | BillingMeterNotFound | HoldNotFound | HoldNotOpen,
    strawberry.union("ReleaseHoldResult", description="The released hold, or why it was not released."),
]
ExtendHoldResult = Annotated[
    ExtendHoldSuccess | InvalidInput | BillingMeterNotFound | HoldNotFound | HoldNotOpen,
    strawberry.union("ExtendHoldResult", description="The extended hold, or why it was not extended."),
]


@strawberry.type
class HoldMutation:
    """The mutations of holds."""

    @strawberry.mutation(
        description="Reserves credits for work whose cost is known afterwards. Needs `usage:write`.", metadata=DIRECT
    )
    async def hold_credits(
        self, info: Info, input: Annotated[HoldCreditsInput, strawberry.argument(description="The hold.")]
    ) -> HoldCreditsResult | None:
        """Reserve the credits."""
        values = values_of(input) | {"policy": ledger.OverLimitPolicy[input.policy.name]}
        decision = await hold_credits(info.context, **values)
        return HoldCreditsSuccess(
            hold=cast("Hold", decision.hold),
            billing_meter=cast("BillingMeter", decision.billing_meter),
            entry=LedgerEntry.of_answer(decision.entry, info.context.actor),
            refused=BigInt(decision.refused),
            replayed=decision.replayed,
        )

    @strawberry.mutation(
        description=(
            "Records the usage that a hold was made for, and frees the rest of it. Needs `usage:write`; the policy"
            " `FORCE` needs `usage:correct`."
        ),
        metadata=DIRECT,
    )
    async def commit_hold(
        self,
        info: Info,
        input: Annotated[CommitHoldInput, strawberry.argument(description="The hold, and what was used.")],
    ) -> CommitHoldResult | None:
        """Commit the hold."""
        values = values_of(input) | {"policy": ledger.OverLimitPolicy[input.policy.name]}
        is_recorded = values.pop("if_closed") is IfHoldClosed.RECORD
        decision = await commit_hold(info.context, is_recorded_if_closed=is_recorded, **values)
        is_usage = decision.entry is not None and decision.entry.kind is ledger.LedgerEntryKind.USAGE
        return CommitHoldSuccess(
            hold=cast("Hold", decision.hold),
            billing_meter=cast("BillingMeter", decision.billing_meter),
            accepted=BigInt(decision.accepted if is_usage else 0),
            refused=BigInt(decision.refused if is_usage else 0),
            over_limit=decision.is_over_limit,
            entry=LedgerEntry.of_answer(decision.entry, info.context.actor),
            replayed=decision.replayed,
        )

    @strawberry.mutation(description="Frees what a hold reserves. Needs `usage:write`.", metadata=DIRECT)
    async def release_hold(
        self, info: Info, input: Annotated[ReleaseHoldInput, strawberry.argument(description="The hold.")]
    ) -> ReleaseHoldResult | None:
        """Release the hold."""
        decision = await release_hold(info.context, **values_of(input))
        assert decision.hold is not None  # noqa: S101  # The hold was found.
        return ReleaseHoldSuccess(
            hold=cast("Hold", decision.hold),
            billing_meter=cast("BillingMeter", decision.billing_meter),
            released=BigInt(decision.hold.amount),
            replayed=decision.replayed,
        )

    @strawberry.mutation(description="Keeps a hold open for longer. Needs `usage:write`.", metadata=DIRECT)
    async def extend_hold(
        self,
        info: Info,
        input: Annotated[ExtendHoldInput, strawberry.argument(description="The hold, and for how long.")],
    ) -> ExtendHoldResult | None:
        """Extend the hold."""
        decision = await extend_hold(info.context, **values_of(input))
        return ExtendHoldSuccess(
            hold=cast("Hold", decision.hold), billing_meter=cast("BillingMeter", decision.billing_meter)
        )
