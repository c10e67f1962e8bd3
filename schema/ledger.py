"""The ledger of a meter, as clients see it."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, cast

import strawberry
from strawberry.scalars import JSON

from resolvers.actor import Actor
from resolvers.context import Context
from resolvers.errors import BadUserInput, Forbidden
from resolvers.loaders import EntriesOfMeter
from resolvers.meters.commands import is_gateway_key
from resolvers.values import KEY_LENGTH, REASON_LENGTH, USAGE_NAME_LENGTH
from schema.engine.execution.resolving import batched
from schema.engine.limits.sizes import AN_ID, text
from schema.enums import LedgerEntryKind, OverLimitPolicy
from schema.relay import Connection, Node, PageArguments, connection_of
from schema.scalars import BigInt
from storage import ids, ledger
from storage.billing_meters import BillingMeterRow
from storage.ledger import LedgerEntryRow

if TYPE_CHECKING:
    from schema.billing_meters import BillingMeter

_MeterType = Annotated["BillingMeter", strawberry.lazy("schema.billing_meters")]

_OPENING = ledger.LedgerEntryKind.OPENING


async def _meters_of(context: Context, entries: Sequence["LedgerEntry"]) -> list[_MeterType]:
    """Return the meter of each entry."""
    rows = await context.reading.billing_meter_by_id.load_many([entry.meter_id for entry in entries])
    if None in rows:
        # Who sees the entry sees its meter, unless it has gone to another customer since.
        raise Forbidden("The billing meter is no longer the customer's.")
    return cast("list[BillingMeter]", rows)


async def _voided_by(context: Context, entries: Sequence["LedgerEntry"]) -> list["LedgerEntry | None"]:
    """Return the entry that each entry voids; None for one that is no void."""
    places = {id(entry): (entry.meter_id, entry.voids_seq) for entry in entries if entry.voids_seq is not None}
    rows = dict(zip(places, await context.reading.ledger_entry_by_id.load_many([*places.values()]), strict=True))
    return [cast("LedgerEntry | None", rows.get(id(entry))) for entry in entries]


def _id_of(root: LedgerEntryRow) -> strawberry.ID:
    return strawberry.ID(ids.entry_id(root.meter_id, root.seq))


def _shown_key(root: LedgerEntryRow) -> str | None:
    """Return the caller's key. An opening's is that of the request for its meter, and not shown."""
    return None if root.kind is _OPENING or is_gateway_key(root.kind, root.key) else root.key


def _shown_metadata(root: LedgerEntryRow) -> JSON:
    """Return the metadata, without what an opening records of its meter."""
    return {} if root.kind is _OPENING else root.metadata  # type: ignore[return-value]  # `JSON` is any JSON value.


@strawberry.type(description="One decision about a meter. Entries are only ever added, and never changed.")
class LedgerEntry(Node, record=LedgerEntryRow):
    """See `storage.ledger.LedgerEntryRow`."""

    meter_id: strawberry.Private[str]
    voids_seq: strawberry.Private[int | None]
    id: strawberry.ID = strawberry.field(
        resolver=_id_of, description="The object's opaque id, unique among all objects.", metadata=AN_ID
    )
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
        resolver=_shown_key,
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
        resolver=_shown_metadata,
        description=(
            "Of a `USAGE`: what the caller attached. Of `SETTINGS`: each changed setting with its old and its new"
            " value, like "
            '`{"spendCap": [null, "500"]}`.'
        ),
    )

    @classmethod
    def of_answer(cls, row: LedgerEntryRow | None, actor: Actor) -> "LedgerEntry | None":
        """Return the entry of a mutation's answer; None where there is none, or none that the actor may read."""
        return cls.of(row) if row is not None and actor.may_read_entry_of(row.recorded_by) else None

    billing_meter: _MeterType = batched(_meters_of, description="The meter whose ledger it is in.")
    voids: "LedgerEntry | None" = batched(_voided_by, description="Of a `VOID`: the usage that it takes back.")


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
            LedgerEntry,
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
