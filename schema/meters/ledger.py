"""The ledger of a meter, as clients see it."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, cast

import strawberry
from strawberry.scalars import JSON

from resolvers.actor import Actor
from resolvers.context import Context
from resolvers.errors import Forbidden
from resolvers.reading.keys import EntriesOfMeter
from resolvers.rules.commands import is_gateway_key
from resolvers.rules.credits import BASE
from resolvers.values import KEY_LENGTH, REASON_LENGTH, USAGE_NAME_LENGTH
from schema.engine.execution.resolving import batched
from schema.engine.limits.sizes import AN_ID, foreseen, text
from schema.enums import LedgerEntryKind, OverLimitPolicy
from schema.info import metadata_of
from schema.relay import Connection, Node, PageArguments, connection_of, seq_of
from schema.scalars import BigInt
from storage import ids
from storage.engine.long_values import length_left_out
from storage.meters import ledger
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.ledger import LedgerEntryRow

if TYPE_CHECKING:
    from schema.meters.billing_meters import BillingMeter
    from schema.meters.credit_grants import CreditGrant
    from schema.meters.holds import Hold

_MeterType = Annotated["BillingMeter", strawberry.lazy("schema.meters.billing_meters")]
_GrantType = Annotated["CreditGrant", strawberry.lazy("schema.meters.credit_grants")]
_HoldType = Annotated["Hold", strawberry.lazy("schema.meters.holds")]

#: How many draws an entry has as a rule.
FORESEEN_DRAWS = 4

#: How many characters a draw takes at least, as JSON in a list.
_DRAW_LENGTH = len("[1,2],")

_OPENING = ledger.LedgerEntryKind.OPENING

#: What is said of the entry in a mutation's answer.
ANSWERED_ENTRY = "The ledger entry; null: another key recorded it, and this one lacks `billing:read`."


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
    return strawberry.ID(ids.numbered_id(ids.LEDGER_ENTRY, root.meter_id, root.seq))


def _limit_after(root: LedgerEntryRow) -> BigInt | None:
    return None if root.limit_credits is None else BigInt(root.limit_credits)


def _shown_key(root: LedgerEntryRow) -> str | None:
    """Return the caller's key. An opening's is that of the request for its meter, and not shown."""
    return None if root.kind is _OPENING or is_gateway_key(root.kind, root.key) else root.key


async def _metadata_of(context: Context, entries: Sequence["LedgerEntry"]) -> list[JSON]:
    """Return the metadata of each entry, without what an opening records of its meter."""
    shown = [entry for entry in entries if cast("LedgerEntryRow", entry).kind is not _OPENING]
    found = iter(await metadata_of(context, shown))
    return [cast("JSON", {}) if cast("LedgerEntryRow", entry).kind is _OPENING else next(found) for entry in entries]


async def _reasons_of(context: Context, entries: Sequence["LedgerEntry"]) -> list[str | None]:
    """Return why each entry was asked for; a customer sees it of what was given back alone."""
    rows = cast("Sequence[LedgerEntryRow]", entries)
    is_hidden = context.actor.customer_id is not None
    return [None if is_hidden and row.grant_seq is not None else row.reason for row in rows]


async def _draws_of(context: Context, entries: Sequence["LedgerEntry"]) -> list[list["CreditDraw"]]:
    """Return the draws of each entry."""
    rows = cast("Sequence[LedgerEntryRow]", entries)
    # What is left out because it is long is admitted before it is read.
    counts = [range(length_left_out(row.draws) // _DRAW_LENGTH) or row.draws or () for row in rows]
    await context.admit_unforeseen(counts, FORESEEN_DRAWS)
    draws: list[list[list[int]]] = [each or [] for each in await context.json_of(rows, "draws")]
    drawn = [*zip(rows, draws, strict=True)]
    places = dict.fromkeys((row.meter_id, seq) for row, of in drawn for seq, _ in of if seq != BASE)
    grants = dict(zip(places, await context.reading.credit_grant_by_id.load_many([*places]), strict=True))
    return [
        [
            CreditDraw(credit_grant=cast("CreditGrant | None", grants.get((row.meter_id, seq))), amount=BigInt(amount))
            for seq, amount in of
        ]
        for row, of in drawn
    ]


async def _grants_of(context: Context, entries: Sequence["LedgerEntry"]) -> list[_GrantType | None]:
    """Return the grant that each entry is about, if it is about one."""
    rows = cast("Sequence[LedgerEntryRow]", entries)
    places = {id(row): (row.meter_id, row.grant_seq) for row in rows if row.grant_seq is not None}
    found = dict(zip(places, await context.reading.credit_grant_by_id.load_many([*places.values()]), strict=True))
    return [cast("CreditGrant | None", found.get(id(row))) for row in rows]


async def _holds_of(context: Context, entries: Sequence["LedgerEntry"]) -> list[_HoldType | None]:
    """Return the hold that each entry is about, if it is about one."""
    rows = cast("Sequence[LedgerEntryRow]", entries)
    places = {id(row): (row.meter_id, row.hold_seq) for row in rows if row.hold_seq is not None}
    found = dict(zip(places, await context.reading.hold_by_id.load_many([*places.values()]), strict=True))
    return [cast("Hold | None", found.get(id(row))) for row in rows]


@strawberry.type(description="Credits that were taken from or given back to one credit grant, or the base.")
class CreditDraw:
    """A part of an entry's amount."""

    credit_grant: _GrantType | None = strawberry.field(
        description="The grant; null: the base, which is what the meter opened with and was refilled with."
    )
    amount: BigInt = strawberry.field(description="The credits.")


@strawberry.type(description="One decision about a meter. Entries are only ever added, and never changed.")
class LedgerEntry(Node, record=LedgerEntryRow):
    """See `storage.meters.ledger.LedgerEntryRow`."""

    meter_id: strawberry.Private[str]
    voids_seq: strawberry.Private[int | None]
    id: strawberry.ID = strawberry.field(
        resolver=_id_of, description="The object's opaque id, unique among all objects.", metadata=AN_ID
    )
    seq: BigInt = strawberry.field(description="1, 2, 3 and so on of its meter, without a gap.")
    kind: LedgerEntryKind = strawberry.field(description="What the entry did.")
    amount: BigInt = strawberry.field(
        description=(
            "The credits moved, never negative: `OPENING`, `REFILL` and `GRANT` add them to the total, `EXPIRY` and "
            "`REVOCATION` take them from it; `USAGE` adds to the used, `VOID` takes from it; `HOLD` adds to the held, "
            "`RELEASE` and `HOLD_EXPIRY` take from it; of `SETTINGS` and `GRANT_CHANGED` it is 0."
        )
    )
    total_credits_after: BigInt = strawberry.field(description="The meter's total credits right after the entry.")
    used_credits_after: BigInt = strawberry.field(description="The meter's used credits right after the entry.")
    held_credits_after: BigInt = strawberry.field(
        description="The credits that the meter's open holds reserve right after the entry."
    )
    limit_credits_after: BigInt | None = strawberry.field(
        resolver=_limit_after,
        description="The most that might be used, right after the entry; null: there was no limit.",
    )
    key: str | None = strawberry.field(
        resolver=_shown_key,
        description=(
            "The caller's name of it: the event id of a `USAGE`, the hold's id, or the idempotency key of a `REFILL`, "
            "`VOID`, `GRANT` or `REVOCATION`."
        ),
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
    metadata: JSON = batched(
        _metadata_of,
        description=(
            "Of a `USAGE`: what the caller attached. Of `SETTINGS`: each changed setting with its old and its new"
            " value, like "
            '`{"spendCap": [null, "500"]}`; of `GRANT` and `GRANT_CHANGED` likewise the terms of the grant.'
        ),
    )

    @classmethod
    def of_answer(cls, row: LedgerEntryRow | None, actor: Actor) -> "LedgerEntry | None":
        """Return the entry of a mutation's answer; None where there is none, or none that the actor may read."""
        return cls.of(row) if row is not None and actor.may_read_entry_of(row.recorded_by) else None

    billing_meter: _MeterType = batched(_meters_of, description="The meter whose ledger it is in.")
    voids: "LedgerEntry | None" = batched(_voided_by, description="Of a `VOID`: the usage that it takes back.")
    reason: str | None = batched(
        _reasons_of,
        description=(
            "Why, in the words of the caller that asked for it; of an entry about a grant its customer does not see it."
        ),
        metadata=text(REASON_LENGTH),
    )
    draws: list[CreditDraw] = batched(
        _draws_of,
        description=(
            "What a `USAGE` drew, a `HOLD` reserved and a `VOID` gave back of each grant and of the base, in order;"
            " empty where the meter had had neither grants nor holds. The rest of the amount no credit had paid."
        ),
        metadata=foreseen(FORESEEN_DRAWS),
    )
    credit_grant: _GrantType | None = batched(
        _grants_of, description="The grant that the entry made, changed, ended or took from."
    )
    hold: _HoldType | None = batched(_holds_of, description="The hold that the entry made or closed.")


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
            id_of=lambda row: ids.numbered_id(ids.LEDGER_ENTRY, row.meter_id, row.seq),
        )
        for rows in await context.reading.entries_of_meter.load_many(wanted)
    ]


def _range(meter: BillingMeterRow, arguments: PageArguments) -> EntriesOfMeter:
    """Return the stretch of the meter's ledger that the page reads, with one entry more than it shows."""
    after, before = (seq_of(cursor, ids.LEDGER_ENTRY, meter.id) for cursor in (arguments.after, arguments.before))
    newest = meter.last_seq if after is None else min(after - 1, meter.last_seq)
    oldest = 1 if before is None else before + 1
    if arguments.backward:
        newest = min(newest, oldest + arguments.limit)
    else:
        oldest = max(oldest, newest - arguments.limit)
    return EntriesOfMeter(meter.id, oldest, newest)
