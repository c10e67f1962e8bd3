"""Automatic refills: reading and setting them, and what becomes of their requests."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, cast

import strawberry

from resolvers.context import Context
from resolvers.errors import Forbidden
from resolvers.meters.auto_refills import RANGES, fail_auto_refill, resume_auto_refill, set_auto_refill
from resolvers.reading.keys import RequestsOfMeter
from resolvers.values import REASON_LENGTH
from schema.engine.execution.resolving import DIRECT, batched
from schema.engine.limits.sizes import AN_ID, text
from schema.enums import AutoRefillMode, AutoRefillRequestState, AutoRefillState
from schema.errors import AutoRefillNotFound, AutoRefillNotOpen, BillingMeterNotFound, InvalidInput
from schema.info import Info, not_null
from schema.meters.credit_grants import numbered_page
from schema.meters.ledger import LedgerEntry
from schema.relay import PAGE, After, Before, Connection, First, Last, Node, connection_of, page_arguments
from schema.scalars import BigInt
from storage import ids
from storage.meters import auto_refills
from storage.meters.auto_refills import AutoRefillRequestRow
from storage.meters.billing_meters import BillingMeterRow

if TYPE_CHECKING:
    from schema.meters.billing_meters import BillingMeter

_MeterType = Annotated["BillingMeter", strawberry.lazy("schema.meters.billing_meters")]


async def _meters_of(context: Context, requests: Sequence["AutoRefillRequest"]) -> list[_MeterType]:
    """Return the meter of each request."""
    rows = await context.reading.billing_meter_by_id.load_many([request.meter_id for request in requests])
    if None in rows:
        raise Forbidden("The billing meter is no longer the customer's.")
    return cast("list[BillingMeter]", rows)


async def _entries_of(context: Context, requests: Sequence["AutoRefillRequest"]) -> list[LedgerEntry | None]:
    """Return the refill that fulfilled each request, if one has."""
    rows = cast("Sequence[AutoRefillRequestRow]", requests)
    places = {id(row): (row.meter_id, row.entry_seq) for row in rows if row.entry_seq is not None}
    found = dict(zip(places, await context.reading.ledger_entry_by_id.load_many([*places.values()]), strict=True))
    return [cast("LedgerEntry | None", found.get(id(row))) for row in rows]


async def _failures_of(context: Context, requests: Sequence["AutoRefillRequest"]) -> list[str | None]:
    """Return why each request failed, which its customer does not see."""
    is_hidden = context.actor.customer_id is not None
    return [None if is_hidden else cast("AutoRefillRequestRow", request).failure for request in requests]


async def _requests_of(
    context: Context,
    refills: Sequence["AutoRefill"],
    first: First = strawberry.UNSET,
    after: After = strawberry.UNSET,
    last: Last = strawberry.UNSET,
    before: Before = strawberry.UNSET,
) -> list[Connection["AutoRefillRequest"]]:
    """Return a page of the requests of each automatic refill, newest first."""
    prefix = ids.AUTO_REFILL_REQUEST
    arguments = page_arguments(context, prefix, first, after, last, before)
    meter_ids = [refill.meter_id for refill in refills]
    keys = [RequestsOfMeter(meter_id, numbered_page(arguments, prefix, meter_id)) for meter_id in meter_ids]
    return [
        connection_of(arguments, rows, AutoRefillRequest, id_of=lambda row: row.id)
        for rows in await context.reading.requests_of_meter.load_many(keys)
    ]


@strawberry.type(description="Credits that a meter has asked for: to be refilled under the request's id.")
class AutoRefillRequest(Node, record=AutoRefillRequestRow):
    """See `storage.meters.auto_refills.AutoRefillRequestRow`."""

    meter_id: strawberry.Private[str]
    id: strawberry.ID = strawberry.field(
        description="The object's opaque id, which is the `idempotencyKey` of the refill that fulfils it.",
        metadata=AN_ID,
    )
    amount: BigInt = strawberry.field(description="The credits that are asked for: no other amount fulfils it.")
    state: AutoRefillRequestState = strawberry.field(description="What has become of it.")
    requested_at: datetime = strawberry.field(description="When it was made: by this it counts against the caps.")
    expires_at: datetime = strawberry.field(
        description="From this moment on it is no longer open; a refill under its id is still taken."
    )
    closed_at: datetime | None = strawberry.field(description="When it got its state; null: it is open.")

    failure: str | None = batched(
        _failures_of,
        description="Why it failed; null: it has not, or the caller is the customer.",
        metadata=text(REASON_LENGTH),
    )
    billing_meter: _MeterType = batched(_meters_of, description="The meter that asks.")
    entry: LedgerEntry | None = batched(_entries_of, description="The refill that fulfilled it; null: none has.")


@strawberry.type(description="When a meter asks for credits, and for how many. It never adds any by itself.")
class AutoRefill:
    """See `storage.meters.auto_refills.AutoRefillRow`."""

    meter_id: strawberry.Private[str]
    is_enabled: bool = strawberry.field(description="Whether it asks for credits.")
    mode: AutoRefillMode = strawberry.field(description="How much it asks for.")
    below: BigInt = strawberry.field(
        description="It asks when fewer credits than this are unspent: the total less the used, held ones included."
    )
    amount: BigInt = strawberry.field(
        description="In the mode `TARGET` the unspent credits to reach, in the mode `FIXED` those of one step."
    )
    max_refills: int = strawberry.field(description="How many requests may be made in a window.")
    max_credits: BigInt = strawberry.field(description="How many credits the requests of a window may be for.")
    window_seconds: int = strawberry.field(
        description="How long the window is: a request counts for so long after `requestedAt`, unless it failed."
    )
    cooldown_seconds: int = strawberry.field(description="How long it asks for nothing after a request has ended.")
    request_seconds: int = strawberry.field(description="How long a request is open.")
    max_failures: int = strawberry.field(description="After so many failed requests in a row it is suspended.")
    state: AutoRefillState = strawberry.field(description="What it is doing now.")
    request_id: str | None = strawberry.field(
        description="The id of the open request; null: none is open.", metadata=AN_ID
    )
    requested_at: datetime | None = strawberry.field(description="When the open request was made; null: none is open.")
    requested_amount: BigInt | None = strawberry.field(
        description="The credits that the open request is for; null: none is open."
    )
    failures: int = strawberry.field(
        description="How many requests have failed since one was fulfilled; 0 where the caller is the customer."
    )
    last_failure: str | None = strawberry.field(
        description="Why the newest of these failed; null: there are none, or the caller is the customer.",
        metadata=text(REASON_LENGTH),
    )

    requests: Connection[AutoRefillRequest] = batched(
        _requests_of, description="The requests, newest first.", metadata=PAGE
    )


def _shown(context: Context, refill: auto_refills.AutoRefill) -> AutoRefill:
    """Return an automatic refill as the actor sees it now."""
    row, newest = refill.at(context.moment.of(refill.settings.meter_id))
    open_ = newest if newest is not None and newest.is_open else None
    is_customer = context.actor.customer_id is not None
    state = AutoRefillState.REQUESTED if open_ is not None else AutoRefillState.IDLE
    return AutoRefill(
        meter_id=row.meter_id,
        is_enabled=row.is_enabled,
        mode=AutoRefillMode[row.mode.name],
        below=BigInt(row.below),
        amount=BigInt(row.amount),
        max_refills=row.max_refills,
        max_credits=BigInt(row.max_credits),
        window_seconds=row.window_seconds,
        cooldown_seconds=row.cooldown_seconds,
        request_seconds=row.request_seconds,
        max_failures=row.max_failures,
        state=AutoRefillState.SUSPENDED if row.is_suspended else state,
        request_id=None if open_ is None else open_.id,
        requested_at=None if open_ is None else open_.requested_at,
        requested_amount=None if open_ is None else BigInt(open_.amount),
        failures=0 if is_customer else row.failures,
        last_failure=None if is_customer else row.last_failure,
    )


async def auto_refills_of(context: Context, meters: Sequence[BillingMeterRow]) -> list[AutoRefill | None]:
    """Return the automatic refill of each meter that has one."""
    loader = context.reading.auto_refill_of_meter  # Refused to a key that may not read, also where there is none.
    asked = [meter.id for meter in meters if meter.has_auto_refill]
    found = dict(zip(asked, await loader.load_many(asked), strict=True)) if asked else {}
    return [None if (refill := found.get(meter.id)) is None else _shown(context, refill) for meter in meters]


def _range(field: str) -> str:
    _, least, most = RANGES[field]
    return f"{least:,} to {most:,}"


@strawberry.input(
    description=(
        "When a meter is to ask for credits. What is left out stays; the first one must say `mode`, `below`, `amount`,"
        " `maxRefills`, `maxCredits` and `windowSeconds`. Null is refused."
    )
)
class SetAutoRefillInput:
    """The settings of an automatic refill."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")
    is_enabled: bool | None = strawberry.field(
        default=strawberry.UNSET,
        description="Whether it asks for credits; at first it does. What is open when it is switched off stays open.",
    )
    mode: AutoRefillMode | None = strawberry.field(default=strawberry.UNSET, description="How much it asks for.")
    below: BigInt | None = strawberry.field(
        default=strawberry.UNSET, description="It asks when fewer credits than this are unspent."
    )
    amount: BigInt | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "More than 0: in the mode `TARGET` the unspent credits to reach, at least `below`; in the mode `FIXED`"
            " those of one step."
        ),
    )
    max_refills: int | None = strawberry.field(
        default=strawberry.UNSET, description=f"How many requests may be made in a window, {_range('maxRefills')}."
    )
    max_credits: BigInt | None = strawberry.field(
        default=strawberry.UNSET, description="How many credits the requests of a window may be for, more than 0."
    )
    window_seconds: int | None = strawberry.field(
        default=strawberry.UNSET, description=f"How long the window is, {_range('windowSeconds')} seconds."
    )
    cooldown_seconds: int | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            f"How long it asks for nothing after a request has ended, {_range('cooldownSeconds')} seconds; 60 at first."
        ),
    )
    request_seconds: int | None = strawberry.field(
        default=strawberry.UNSET,
        description=f"How long a request is open, {_range('requestSeconds')} seconds; 3,600 at first.",
    )
    max_failures: int | None = strawberry.field(
        default=strawberry.UNSET,
        description=f"After so many failed requests in a row it is suspended, {_range('maxFailures')}; 3 at first.",
    )


@strawberry.input(description="A meter whose automatic refill is to go on.")
class ResumeAutoRefillInput:
    """The names of the meter."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")


@strawberry.input(description="A request that cannot be fulfilled.")
class FailAutoRefillInput:
    """The request, and why."""

    request_id: strawberry.ID = strawberry.field(description="The request's id.")
    reason: str = strawberry.field(
        description="Why, for people, 1 to 500 characters, as `card declined`; its customer does not see it."
    )


_METER_NOW = "The meter, as it is now."
_REFILL_NOW = "The automatic refill, as it is now."


@strawberry.type(description="The automatic refill is set so.")
class SetAutoRefillSuccess:
    """See `resolvers.meters.auto_refills.SetAutoRefill`."""

    billing_meter: _MeterType = strawberry.field(description=_METER_NOW)
    auto_refill: AutoRefill = strawberry.field(description=_REFILL_NOW)


@strawberry.type(description="The automatic refill is not suspended.")
class ResumeAutoRefillSuccess:
    """See `resolvers.meters.auto_refills.ResumeAutoRefill`."""

    billing_meter: _MeterType = strawberry.field(description=_METER_NOW)
    auto_refill: AutoRefill = strawberry.field(description=_REFILL_NOW)


@strawberry.type(description="The request has failed.")
class FailAutoRefillSuccess:
    """See `resolvers.meters.auto_refills.FailAutoRefill`."""

    request: AutoRefillRequest = strawberry.field(description="The request, as it is now.")
    auto_refill: AutoRefill = strawberry.field(description=_REFILL_NOW)
    replayed: bool = strawberry.field(description="Whether it had failed before, so that nothing changed.")


SetAutoRefillResult = Annotated[
    SetAutoRefillSuccess | InvalidInput | BillingMeterNotFound,
    strawberry.union("SetAutoRefillResult", description="The automatic refill, or why it was not set."),
]
ResumeAutoRefillResult = Annotated[
    ResumeAutoRefillSuccess | InvalidInput | BillingMeterNotFound | AutoRefillNotFound,
    strawberry.union("ResumeAutoRefillResult", description="The automatic refill, or why it was not resumed."),
]
FailAutoRefillResult = Annotated[
    FailAutoRefillSuccess | InvalidInput | AutoRefillNotFound | AutoRefillNotOpen,
    strawberry.union("FailAutoRefillResult", description="The request, or why it has not failed."),
]

_SETTINGS = ("is_enabled", "mode", *[column for column, _, _ in RANGES.values()])


def _settings_of(input: SetAutoRefillInput) -> dict[str, Any]:
    """Return the settings that are given, by column. Raises `InvalidInput` for null."""
    names = {column: field for field, (column, _, _) in RANGES.items()} | {"is_enabled": "isEnabled", "mode": "mode"}
    given = {column: getattr(input, column) for column in _SETTINGS}
    settings = {
        column: not_null(names[column], value, "leave it out to keep it.")
        for column, value in given.items()
        if value is not strawberry.UNSET
    }
    mode = settings.get("mode")
    return settings if mode is None else settings | {"mode": auto_refills.AutoRefillMode[mode.name]}


@strawberry.type
class AutoRefillMutation:
    """The mutations of automatic refills."""

    @strawberry.mutation(
        description="Sets when a billing meter asks for credits, and for how many. Needs `billing:write`.",
        metadata=DIRECT,
    )
    async def set_auto_refill(
        self, info: Info, input: Annotated[SetAutoRefillInput, strawberry.argument(description="The settings.")]
    ) -> SetAutoRefillResult | None:
        """Set it."""
        decision = await set_auto_refill(
            info.context,
            workspace_id=input.workspace_id,
            external_meter_id=input.external_meter_id,
            settings=_settings_of(input),
        )
        assert decision.auto_refill is not None  # noqa: S101  # It was set.
        return SetAutoRefillSuccess(
            billing_meter=cast("BillingMeter", decision.billing_meter),
            auto_refill=_shown(info.context, decision.auto_refill),
        )

    @strawberry.mutation(
        description="Lets a billing meter ask for credits again after failures have suspended that. Needs "
        "`billing:write`.",
        metadata=DIRECT,
    )
    async def resume_auto_refill(
        self, info: Info, input: Annotated[ResumeAutoRefillInput, strawberry.argument(description="The meter.")]
    ) -> ResumeAutoRefillResult | None:
        """Resume it."""
        decision = await resume_auto_refill(
            info.context, workspace_id=input.workspace_id, external_meter_id=input.external_meter_id
        )
        assert decision.auto_refill is not None  # noqa: S101  # It was found.
        return ResumeAutoRefillSuccess(
            billing_meter=cast("BillingMeter", decision.billing_meter),
            auto_refill=_shown(info.context, decision.auto_refill),
        )

    @strawberry.mutation(
        description="Says that the credits that a billing meter asked for cannot be had. Needs `billing:write`.",
        metadata=DIRECT,
    )
    async def fail_auto_refill(
        self,
        info: Info,
        input: Annotated[FailAutoRefillInput, strawberry.argument(description="The request, and why.")],
    ) -> FailAutoRefillResult | None:
        """Fail the request."""
        decision = await fail_auto_refill(info.context, request_id=input.request_id, reason=input.reason)
        assert decision.auto_refill is not None  # noqa: S101  # The request was found.
        return FailAutoRefillSuccess(
            request=AutoRefillRequest.of(decision.refill_request),
            auto_refill=_shown(info.context, decision.auto_refill),
            replayed=decision.replayed,
        )
