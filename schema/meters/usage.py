"""Usage: its days, and recording it."""

from collections.abc import Sequence
from datetime import date, datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import strawberry
from strawberry.scalars import JSON

from resolvers.actor import Actor
from resolvers.bounds import Bounds
from resolvers.context import Context
from resolvers.errors import InvalidInput as Refused
from resolvers.errors import Refusal
from resolvers.meters.record_usage import record_usage, record_usage_batch
from resolvers.meters.void_usage import void_usage
from resolvers.reading.keys import UsageOfMeter
from resolvers.reading.usage import DEFAULT_DAYS, all_with_zeros, unforeseen_days, usage_days
from resolvers.rules.commands import Decision
from resolvers.values import USAGE_NAME_LENGTH, check_usage_names, day_of, parse_day
from schema.engine.execution.resolving import DIRECT
from schema.engine.limits.sizes import AN_ID, Asked, given_length, length_of, records, text
from schema.engine.malformed import BatchItem, Malformed
from schema.enums import OverLimitPolicy
from schema.errors import (
    AmountOutOfRange,
    BillingMeterNotFound,
    ExceedsVoidable,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidInput,
    SpendCapExceeded,
    UsageEventNotFound,
    user_error,
)
from schema.info import Info, given, not_null, values_of
from schema.meters.ledger import ANSWERED_ENTRY, LedgerEntry
from schema.scalars import BigInt
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.ledger import OverLimitPolicy as Policy
from storage.meters.usage import UsageDayRow

if TYPE_CHECKING:
    from schema.meters.billing_meters import BillingMeter

_MeterType = Annotated["BillingMeter", strawberry.lazy("schema.meters.billing_meters")]


From: TypeAlias = Annotated[
    date | None,
    strawberry.argument(
        name="from", description="The first day, inclusive; left out: 29 days before the last. Null is refused."
    ),
]
To: TypeAlias = Annotated[
    date | None,
    strawberry.argument(
        name="to", description="The last day, inclusive; left out: today in the meter's time zone. Null is refused."
    ),
]
Names: TypeAlias = Annotated[
    list[str] | None,
    strawberry.argument(
        description=(
            "Only these usage names, 1 to 100, or fewer where the operator says so; left out: all. Null is refused."
        )
    ),
]
FillZeros: TypeAlias = Annotated[
    bool,
    strawberry.argument(
        description="Also answer days without usage, as 0, for the names asked for, else for those seen in the range."
    ),
]


def _rows_of_usage(asked: Asked) -> int:
    arguments, bounds = asked.arguments, asked.bounds
    first, last = (parse_day(day) if isinstance(day, str) else day for day in map(arguments.get, ("from", "to")))
    names = arguments.get("names")
    days = DEFAULT_DAYS if first is None else ((last or asked.today) - first).days + 1
    # Which names are filled with zeros is known from what is read: there may be as many as may be answered over the
    # longest range.
    all_names = bounds.usage_days // bounds.range_days if arguments.get("fillZeros") else 1
    days = min(max(days, 1), bounds.range_days)
    return min(days * (length_of(names) or all_names), bounds.usage_days)


#: The metadata of a field that is a list of usage days. A range without an end ends today.
USAGE_DAYS = records(_rows_of_usage, names="names", is_dated=True, grows=True)


@strawberry.type(description="The credits that one usage name used of a meter on one day of the meter's time zone.")
class UsageDay:
    """The rows of `storage.meters.usage.UsageDayRow` have these attributes and are answered as they are.

    There are thousands of them.

    The names that clients see are those of the domain's REST API.
    """

    meter_id: strawberry.ID = strawberry.field(
        name="billingId", description="The id of the billing meter.", metadata=AN_ID
    )
    day: date = strawberry.field(description="The day, in the meter's time zone.")
    total_usage: BigInt = strawberry.field(
        name="totalBillingUsage",
        description="The credits used on that day under the name; what was voided is taken off.",
    )
    usage_name: str = strawberry.field(
        name="billingUsageName",
        description="The usage name that they were recorded under.",
        metadata=text(USAGE_NAME_LENGTH, is_named=True),
    )


async def usage_of(
    context: Context,
    meters: Sequence[BillingMeterRow],
    first: date | None,
    last: date | None,
    names: list[str] | None,
    *,
    fill_zeros: bool,
) -> list[list[UsageDay]]:
    """Return the usage days of each meter, ordered by day and then by name.

    Raises `InvalidInput` or `BadUserInput` for malformed arguments, and `LimitExceeded` for more days than may be
    answered.
    """
    bounds = context.bounds
    names = _checked(first, last, names, bounds)
    loaders = context.reading
    first, last, now = given(first), given(last), context.clock()
    usage_names = tuple(sorted(set(names))) if names is not None else None

    @cache
    def days_in(zone: str) -> tuple[date, date]:
        return usage_days(first, last, today=day_of(now, zone), most=bounds.range_days)

    wanted = [UsageOfMeter(meter.id, *days_in(meter.timezone), usage_names) for meter in meters]
    read = await loaders.usage_of_meter.load_many(wanted)
    found: Sequence[Sequence[UsageDayRow]] = read
    if fill_zeros:
        found = await all_with_zeros(read, wanted, usage_names, bounds)
    if usage_names is None and context.admit is not None:
        foreseen = bounds.usage_days // bounds.range_days if fill_zeros else 1
        excess = unforeseen_days(found, wanted, names_a_day=foreseen)
        if excess > 0:
            longest = max(max(map(len, days.column("usage_name")), default=0) for days in read)
            await context.admit(excess, name_length=longest)
    return cast("list[list[UsageDay]]", found)


def _checked(first: date | None, last: date | None, names: list[str] | None, bounds: Bounds) -> list[str] | None:
    """Return the names, if any are given, once the arguments are found well-formed as far as no meter is needed."""
    if given(first) is not None and given(last) is not None:
        usage_days(first, last, today=date.min, most=bounds.range_days)
    if given(names) is not None:
        check_usage_names("names", names or [], most=bounds.usage_names)
    return given(names)


@strawberry.type
class UsageQuery:
    """The queries of usage."""

    @strawberry.field(
        description=(
            "The usage days of a billing meter, ordered by day and then by name: at most 366 days and 10,000 rows, or "
            "fewer where the operator says so. Null: there is no such meter."
        ),
        metadata=DIRECT | USAGE_DAYS,
    )
    async def usage(
        self,
        info: Info,
        billing_id: Annotated[strawberry.ID, strawberry.argument(description="The id of the billing meter.")],
        from_: From = strawberry.UNSET,
        to: To = strawberry.UNSET,
        names: Names = strawberry.UNSET,
        fill_zeros: FillZeros = False,  # noqa: FBT002  # The field's own default.
    ) -> list[UsageDay] | None:
        """Return the usage days of the meter of this id."""
        _checked(from_, to, names, info.context.bounds)
        row = await info.context.reading.billing_meter_by_id.load(billing_id)
        if row is None:
            return None
        (days,) = await usage_of(info.context, [row], from_, to, names, fill_zeros=fill_zeros)
        return days


# An enumeration's member costs more to look up by its name than what is done with it here, for each event.
_POLICIES = {policy: Policy[policy.name] for policy in OverLimitPolicy}


@strawberry.input(description="One usage event: a debit of a meter, named by the caller, counted once for ever.")
class RecordUsageInput(BatchItem):
    """The fields of a usage event."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")
    event_id: str = strawberry.field(
        description=(
            "The caller's name of the event on this meter, 1 to 255 characters. Repeating it replays the first result."
        )
    )
    amount: BigInt = strawberry.field(
        description="The credits to use. 0 is a check: it ignores the event id and writes nothing."
    )
    usage_name: str = strawberry.field(
        default="default", description="What was used, 1 to 128 characters; each has usage days of its own."
    )
    occurred_at: datetime | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "When it was used; left out: now. At most 5 minutes ahead and 35 days back; older ones need the scope"
            " `usage:correct`."
        ),
    )
    policy: OverLimitPolicy = strawberry.field(
        default=OverLimitPolicy.REJECT, description="What is wanted when the available credits do not cover the amount."
    )
    metadata: JSON | None = strawberry.field(
        default=strawberry.UNSET, description="A JSON object of at most 16 KiB, kept on the ledger entry."
    )

    def malformed(self) -> Refused | None:
        """Return what is wrong with the first value of a batch's item that its scalar refused."""
        values: tuple[tuple[str, object], ...] = (("amount", self.amount), ("occurredAt", self.occurred_at))
        for name, value in values:
            if type(value) is Malformed:
                return Refused(name, f"is refused: {value.rule}")
        return None

    def values(self) -> dict[str, Any]:
        """Return the values as `resolvers.meters.record_usage.RecordUsage.of` takes them."""
        return values_of(self) | {"policy": _POLICIES[self.policy]}


@strawberry.type(description="An accepted debit.")
class RecordUsageSuccess:
    """See `resolvers.meters.record_usage`."""

    billing_meter: _MeterType = strawberry.field(
        description=(
            "The meter as it is now, which may be after further events; the entry tells the totals right after "
            "this one."
        )
    )
    accepted: BigInt = strawberry.field(description="The credits that the event used.")
    refused: BigInt = strawberry.field(
        description="The credits that the policy `PARTIAL` did not accept; 0 under the others."
    )
    over_limit: bool = strawberry.field(description="Whether more is used than the meter's limit, after this event.")
    entry: LedgerEntry | None = strawberry.field(
        description=(
            "The ledger entry; null: the amount was 0, or another key recorded the event and this one lacks "
            "`billing:read`."
        )
    )
    replayed: bool = strawberry.field(
        description="Whether the event had been recorded before, so that this is its first result and nothing changed."
    )

    @classmethod
    def of(cls, decision: Decision, actor: Actor) -> "RecordUsageSuccess":
        """Return the decision as the actor sees it."""
        return cls(
            billing_meter=cast("BillingMeter", decision.billing_meter),
            accepted=BigInt(decision.accepted),
            refused=BigInt(decision.refused),
            over_limit=decision.is_over_limit,
            entry=LedgerEntry.of_answer(decision.entry, actor),
            replayed=decision.replayed,
        )


RecordUsageResult = Annotated[
    RecordUsageSuccess
    | InvalidInput
    | BillingMeterNotFound
    | IdempotencyConflict
    | InsufficientCredits
    | SpendCapExceeded
    | AmountOutOfRange,
    strawberry.union("RecordUsageResult", description="The recorded usage, or why it was refused."),
]


@strawberry.input(description="A void: credits of one usage event to give back.")
class VoidUsageInput:
    """The fields of a void."""

    workspace_id: str = strawberry.field(description="The meter's workspace, 1 to 256 characters.")
    external_meter_id: str = strawberry.field(description="The caller's name of the meter, 1 to 256 characters.")
    event_id: str = strawberry.field(description="The caller's name of the usage event, 1 to 255 characters.")
    reason: str = strawberry.field(description="Why, for people, 1 to 500 characters; kept on the ledger entry.")
    idempotency_key: str = strawberry.field(
        description="The caller's name of this void, 1 to 255 characters: repeating it replays the first result."
    )
    amount: BigInt | None = strawberry.field(
        default=strawberry.UNSET,
        description="The credits to give back, more than 0; left out: all that is left of the event. Null is refused.",
    )


@strawberry.type(description="Usage was voided.")
class VoidUsageSuccess:
    """See `resolvers.meters.void_usage`."""

    billing_meter: _MeterType = strawberry.field(
        description="The meter, as it is now; the entry tells the totals right after this void."
    )
    entry: LedgerEntry | None = strawberry.field(description=ANSWERED_ENTRY)
    replayed: bool = strawberry.field(
        description="Whether an earlier request under the same key had voided it, so that nothing changed."
    )

    @classmethod
    def of(cls, decision: Decision, actor: Actor) -> "VoidUsageSuccess":
        """Return the decision as the actor sees it."""
        return cls(
            billing_meter=cast("BillingMeter", decision.billing_meter),
            entry=LedgerEntry.of_answer(decision.entry, actor),
            replayed=decision.replayed,
        )


VoidUsageResult = Annotated[
    VoidUsageSuccess | InvalidInput | BillingMeterNotFound | UsageEventNotFound | IdempotencyConflict | ExceedsVoidable,
    strawberry.union("VoidUsageResult", description="The voided usage, or why it was not voided."),
]


@strawberry.type
class UsageMutation:
    """The mutations of usage."""

    @strawberry.mutation(
        description=(
            "Records a usage event against a meter, exactly once, and tells whether the credits cover it. Needs "
            "`usage:write`."
        ),
        metadata=DIRECT,
    )
    async def record_usage(
        self, info: Info, input: Annotated[RecordUsageInput, strawberry.argument(description="The usage event.")]
    ) -> RecordUsageResult | None:
        """Record the event."""
        return RecordUsageSuccess.of(await record_usage(info.context, **input.values()), info.context.actor)

    @strawberry.mutation(
        description=(
            "Records 1 to 1,000 usage events, or fewer where the operator says so, in one transaction, in their order, "
            "and answers a result for each, in the same order: a refused event, also one whose amount or time is "
            "malformed, leaves the others alone. Needs "
            "`usage:write`; when any event is not permitted, nothing is written."
        ),
        metadata=DIRECT | records(given_length("input")),
    )
    async def record_usage_batch(
        self,
        info: Info,
        input: Annotated[list[RecordUsageInput], strawberry.argument(description="The usage events.")],
    ) -> list[RecordUsageResult] | None:
        """Record the events."""
        results = await record_usage_batch(info.context, [item.malformed() or item.values() for item in input])
        actor = info.context.actor
        return [
            user_error(result, actor) if isinstance(result, Refusal) else RecordUsageSuccess.of(result, actor)  # type: ignore[misc]  # The union's own refusals.
            for result in results
        ]

    @strawberry.mutation(
        description=(
            "Gives back some or all of the credits of one usage event, on the event's own day, by a new ledger entry. "
            "Needs `usage:correct`."
        ),
        metadata=DIRECT,
    )
    async def void_usage(
        self,
        info: Info,
        input: Annotated[
            VoidUsageInput, strawberry.argument(description="The usage event, and the credits to give back.")
        ],
    ) -> VoidUsageResult | None:
        """Void the event."""
        decision = await void_usage(
            info.context,
            workspace_id=input.workspace_id,
            external_meter_id=input.external_meter_id,
            event_id=input.event_id,
            reason=input.reason,
            idempotency_key=input.idempotency_key,
            amount=not_null("amount", input.amount, "leave it out to give back all that is left."),
        )
        return VoidUsageSuccess.of(decision, info.context.actor)
