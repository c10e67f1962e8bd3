"""The ledger of a meter, as clients see it."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import strawberry
from strawberry.scalars import JSON

from resolvers.actor import Actor
from resolvers.context import Context
from resolvers.errors import BadUserInput, Forbidden
from resolvers.loaders import EntriesOfMeter
from resolvers.meters.commands import is_gateway_key
from resolvers.values import KEY_LENGTH, REASON_LENGTH, USAGE_NAME_LENGTH
from schema.engine.resolving import batched
from schema.engine.sizes import AN_ID, text
from schema.enums import LedgerEntryKind, OverLimitPolicy
from schema.info import Info
from schema.relay import Connection, Node, PageArguments, connection_of
from schema.scalars import BigInt
from storage import ids, ledger
from storage.billing_meters import BillingMeterRow
from storage.ledger import LedgerEntryRow

if TYPE_CHECKING:
    from schema.billing_meters import BillingMeter

_MeterType = Annotated["BillingMeter", strawberry.lazy("schema.billing_meters")]

# An enumeration looks a value up more slowly.
_KINDS: dict[Any, LedgerEntryKind] = {kind.value: kind for kind in LedgerEntryKind}
_POLICIES: dict[Any, OverLimitPolicy] = {policy.value: policy for policy in OverLimitPolicy}
_OPENING = ledger.LedgerEntryKind.OPENING


async def _meters_of(context: Context, entries: Sequence["LedgerEntry"]) -> list["BillingMeter"]:
    """Return the meter of each entry."""
    from schema.billing_meters import BillingMeter  # noqa: PLC0415  # The two types refer to each other.

    rows = await context.reading.billing_meter_by_id.load_many([entry.row.meter_id for entry in entries])
    meters = [BillingMeter.of(row) for row in rows if row is not None]
    if len(meters) < len(rows):
        # Whoever sees the entry sees its meter, unless it has gone to another customer since.
        raise Forbidden("The billing meter is no longer the customer's.")
    return meters


async def _voided_by(context: Context, entries: Sequence["LedgerEntry"]) -> list["LedgerEntry | None"]:
    """Return the entry that each entry voids; None for one that is no void."""
    loader = context.reading.ledger_entry_by_id
    places = {
        id(entry): (entry.row.meter_id, entry.row.voids_seq) for entry in entries if entry.row.voids_seq is not None
    }
    rows = dict(zip(places, await loader.load_many(list(places.values())), strict=True))
    return [LedgerEntry.of(row) if (row := rows.get(id(entry))) is not None else None for entry in entries]


@strawberry.type(description="One decision about a meter. Entries are only ever added, and never changed.")
class LedgerEntry(Node):
    """See `storage.ledger.LedgerEntryRow`."""

    row: strawberry.Private[LedgerEntryRow]
    kind: LedgerEntryKind = strawberry.field(description="What the entry did.")
    amount: BigInt = strawberry.field(
        description=(
            "The credits moved, never negative: `OPENING` and `REFILL` add them to the total, `USAGE` to the "
            "used, `VOID` takes "
            "them from the used; of `SETTINGS` it is 0."
        )
    )
    total_credits_after: BigInt = strawberry.field(description="The meter's total credits right after the entry.")
    used_credits_after: BigInt = strawberry.field(description="The meter's used credits right after the entry.")
    key: str | None = strawberry.field(
        description="The caller's name of it: the event id of a `USAGE`, the idempotency key of a `REFILL` or `VOID`.",
        metadata=text(KEY_LENGTH),
    )
    usage_name: str | None = strawberry.field(
        description="Of a `USAGE` or `VOID`: the usage name that it counts under.", metadata=text(USAGE_NAME_LENGTH)
    )
    day: date | None = strawberry.field(
        description="Of a `USAGE` or `VOID`: the day of the meter's zone that it counts on."
    )
    requested_amount: BigInt | None = strawberry.field(
        description="Of a `USAGE`: the credits that were asked for; the policy `PARTIAL` may have accepted fewer."
    )
    policy: OverLimitPolicy | None = strawberry.field(description="Of a `USAGE`: the policy that was asked for.")
    occurred_at: datetime = strawberry.field(
        description="When it happened: as the caller said, else when it was recorded."
    )
    recorded_at: datetime = strawberry.field(description="When it was decided.")
    recorded_by: str = strawberry.field(description="The id of the key that recorded it.", metadata=AN_ID)
    reason: str | None = strawberry.field(
        description="Of a `VOID`: why, in the words of whoever asked for it.", metadata=text(REASON_LENGTH)
    )
    metadata: JSON = strawberry.field(
        description=(
            "Of a `USAGE`: what the caller attached. Of `SETTINGS`: each changed setting with its old and its new"
            " value, like "
            '`{"spendCap": [null, "500"]}`.'
        )
    )

    @classmethod
    def of(cls, row: LedgerEntryRow) -> "LedgerEntry":
        """Return the row as clients see it: without what an opening records of its meter and of the request for it."""
        is_opening = row.kind is _OPENING
        return cls.made(
            id=ids.entry_id(row.meter_id, row.seq),
            row=row,
            kind=_KINDS[row.kind],
            amount=row.amount,
            total_credits_after=row.total_credits_after,
            used_credits_after=row.used_credits_after,
            key=None if is_opening or is_gateway_key(row.kind, row.key) else row.key,
            usage_name=row.usage_name,
            day=row.day,
            requested_amount=row.requested_amount,
            policy=_POLICIES[row.policy] if row.policy is not None else None,
            occurred_at=row.occurred_at,
            recorded_at=row.recorded_at,
            recorded_by=row.recorded_by,
            reason=row.reason,
            metadata={} if is_opening else row.metadata,
        )

    @classmethod
    def of_answer(cls, row: LedgerEntryRow | None, actor: Actor) -> "LedgerEntry | None":
        """Return the entry of a mutation's answer; None where there is none, or none that the actor may read."""
        return cls.of(row) if row is not None and actor.may_read_entry_of(row.recorded_by) else None

    @strawberry.field(description="The meter whose ledger it is in.", metadata=batched(_meters_of))
    async def billing_meter(self, info: Info) -> _MeterType:
        """Return the entry's meter."""
        (meter,) = await _meters_of(info.context, [self])
        return meter

    @strawberry.field(description="Of a `VOID`: the usage that it takes back.", metadata=batched(_voided_by))
    async def voids(self, info: Info) -> "LedgerEntry | None":
        """Return the entry that this one voids."""
        (entry,) = await _voided_by(info.context, [self])
        return entry


async def ledgers_of(
    context: Context, meters: Sequence[BillingMeterRow], arguments: PageArguments
) -> list[Connection[LedgerEntry]]:
    """Return a page of each meter's ledger, newest first.

    Entries are numbered without a gap, so the page is a range of numbers, wherever it lies. Raises `BadUserInput` for a
    cursor of another meter's ledger.
    """
    wanted = [_range(meter, arguments) for meter in meters]
    return [
        connection_of(
            arguments,
            rows[::-1] if arguments.backward else rows,
            node_of=LedgerEntry.of,
            id_of=lambda row: ids.entry_id(row.meter_id, row.seq),
        )
        for rows in await context.reading.entries_of_meter.load_many(wanted)
    ]


def _range(meter: BillingMeterRow, arguments: PageArguments) -> EntriesOfMeter:
    """Return the stretch of the meter's ledger that the page reads, with one entry more than it shows."""
    newest = min(_seq(arguments.after, meter) - 1, meter.last_seq) if arguments.after is not None else meter.last_seq
    oldest = _seq(arguments.before, meter) + 1 if arguments.before is not None else 1
    if arguments.backward:
        newest = min(newest, oldest + arguments.limit)
    else:
        oldest = max(oldest, newest - arguments.limit)
    return EntriesOfMeter(meter.id, oldest, newest)


def _seq(cursor_id: str, meter: BillingMeterRow) -> int:
    meter_id, seq = ids.parse_entry_id(cursor_id) or ("", 0)
    if meter_id != meter.id:
        raise BadUserInput("after and before must be cursors of this meter's ledger.")
    return seq
