"""The ledger: entries are only ever added."""

from collections.abc import Sequence
from datetime import date, datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    func,
    select,
    text,
)

from storage.engine.long_values import page_columns
from storage.engine.statements import Lookup, Prepared, in_bucket, keys, keys_table
from storage.engine.transactions import Reader, Writer
from storage.engine.types import Day, Instant, JsonText, Name, Word, enum_type, json_text, metadata
from storage.meters.billing_meters import billing_meters
from storage.tenants import Environment


class LedgerEntryKind(Word):
    """What a ledger entry did.

    `OPENING`, `REFILL` and `GRANT` add to total, `EXPIRY` and `REVOCATION` take from it; `USAGE` adds to used, `VOID`
    takes from it; `HOLD` adds to held, `RELEASE`, `HOLD_EXPIRY` and the `USAGE` that commits a hold take from it.
    """

    OPENING = "opening"
    REFILL = "refill"
    USAGE = "usage"
    VOID = "void"
    SETTINGS = "settings"
    GRANT = "grant"
    GRANT_CHANGED = "grant_changed"
    REVOCATION = "revocation"
    EXPIRY = "expiry"
    HOLD = "hold"
    RELEASE = "release"
    HOLD_EXPIRY = "hold_expiry"


class OverLimitPolicy(Word):
    """What the caller wants of a debit that the available credits do not cover."""

    REJECT = "reject"
    PARTIAL = "partial"
    FORCE = "force"


# Every key begins with the meter's id: on PostgreSQL the table is hash-partitioned by it. It has no foreign key to the
# meter: rows are written only under the meter's lock, in the transaction that changes it, and a check a row would cost
# more than the row.
ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("meter_id", Name, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kind", enum_type(LedgerEntryKind), nullable=False),
    # The caller's name of it: the event id of a USAGE, the idempotency key of a REFILL, a VOID, or an OPENING's meter.
    # A REFILL without one, and each SETTINGS, has one of the gateway's.
    Column("key", Name),
    Column("amount", BigInteger, nullable=False),
    Column("total_credits_after", BigInteger, nullable=False),
    Column("used_credits_after", BigInteger, nullable=False),
    # The meter's limit at the decision; null: there was none.
    Column("limit_credits", BigInteger),
    Column("usage_name", Text),
    Column("day", Day),
    Column("requested_amount", BigInteger),
    Column("policy", enum_type(OverLimitPolicy)),
    # Of a VOID: the `seq` of the usage that it takes back.
    Column("voids_seq", BigInteger),
    # The time as the caller sent it; null: none was sent, and it happened when it was recorded.
    Column("sent_at", Instant),
    Column("recorded_at", Instant, nullable=False),
    Column("recorded_by", Text, nullable=False),
    Column("reason", Text),
    # Of a USAGE: what the caller attached. Of an OPENING and SETTINGS: each setting, with its old and its new value.
    Column("metadata", JsonText, nullable=False),
    Column("held_credits_after", BigInteger, nullable=False, server_default="0"),
    # The grant that it made, changed, ended or took from; and the hold that it made or closed.
    Column("grant_seq", BigInteger),
    Column("hold_seq", BigInteger),
    # What a USAGE drew, a HOLD pinned and a VOID gave back of each grant and of the base, in order: [[seq, credits],
    # ...]; the rest of the amount is uncovered. Null: the meter had neither grants nor holds.
    Column("draws", JsonText),
    # Where it lies on a database of several machines, with all that is its meter's; 0 on any other.
    Column("bucket", Integer, nullable=False, server_default="0"),
    # Serves a meter's ledger, and an entry by its id.
    PrimaryKeyConstraint("meter_id", "seq"),
    # What makes an event count once. Serves the search for what a key has already done.
    UniqueConstraint("meter_id", "kind", "key"),
    # Serves the sum of what is already voided of a usage entry.
    Index(
        None,
        "meter_id",
        "voids_seq",
        sqlite_where=text("voids_seq IS NOT NULL"),
        postgresql_where=text("voids_seq IS NOT NULL"),
    ),
    postgresql_partition_by="HASH (meter_id)",
)


class LedgerEntryRow(NamedTuple):
    """One decision about a meter. Amounts are credits; which fields are set depends on the kind (see the table)."""

    meter_id: str
    seq: int
    kind: LedgerEntryKind
    key: str | None
    amount: int
    total_credits_after: int
    used_credits_after: int
    limit_credits: int | None
    usage_name: str | None
    day: date | None
    requested_amount: int | None
    policy: OverLimitPolicy | None
    voids_seq: int | None
    sent_at: datetime | None
    recorded_at: datetime
    recorded_by: str
    reason: str | None
    metadata: dict[str, Any]
    held_credits_after: int = 0
    grant_seq: int | None = None
    hold_seq: int | None = None
    draws: list[list[int]] | None = None

    @property
    def occurred_at(self) -> datetime:
        """When it happened: as the caller said, else when it was recorded."""
        return self.sent_at or self.recorded_at


_METADATA = LedgerEntryRow._fields.index("metadata")


class LedgerKey(NamedTuple):
    """What names an entry besides its `seq`: its meter's id, its kind, and the key that its command had."""

    meter_id: str
    kind: LedgerEntryKind
    key: str


_COLUMNS = [ledger_entries.c[name] for name in LedgerEntryRow._fields]
_PAGE_COLUMNS = page_columns(ledger_entries, LedgerEntryRow._fields)


@cache
def _by_ids(dialect: str) -> Prepared:
    # The tenant is among the keys: with a constant tenant, SQLite would rather read all its meters than look some up.
    wanted = keys_table(dialect, meter_id=Text(), seq=BigInteger(), org_id=Text(), environment=Text())
    return Prepared(
        dialect,
        select(billing_meters.c.workspace_id, billing_meters.c.customer_id, *_PAGE_COLUMNS)
        .join_from(
            wanted,
            ledger_entries,
            (ledger_entries.c.meter_id == wanted.c.meter_id) & (ledger_entries.c.seq == wanted.c.seq),
        )
        .join(
            billing_meters,
            in_bucket(billing_meters, ledger_entries)
            & (billing_meters.c.id == wanted.c.meter_id)
            & (billing_meters.c.org_id == wanted.c.org_id)
            & (billing_meters.c.environment == wanted.c.environment),
        ),
    )


@cache
def _by_ranges(dialect: str, columns: tuple[ColumnElement[Any], ...]) -> Prepared:
    wanted = keys_table(dialect, place=Integer(), meter_id=Text(), first=BigInteger(), last=BigInteger())
    return Prepared(
        dialect,
        select(wanted.c.place, *columns).join(
            wanted,
            in_bucket(ledger_entries)
            & (ledger_entries.c.meter_id == wanted.c.meter_id)
            & ledger_entries.c.seq.between(wanted.c.first, wanted.c.last),
        ),
    )


@cache
def _by_keys(dialect: str) -> Lookup:
    entries = ledger_entries.c
    return Lookup(dialect, select(*_COLUMNS), entries.meter_id, entries.kind, entries.key)


@cache
def _voided(dialect: str) -> Lookup:
    voided = (ledger_entries.c.meter_id, ledger_entries.c.voids_seq)
    credits_ = func.sum(ledger_entries.c.amount, type_=BigInteger)
    return Lookup(dialect, select(*voided, credits_).group_by(*voided), *voided)


async def by_ids(
    reader: Reader,
    ids: Sequence[tuple[str, int]],
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str] | None,
    customer_id: str | None = None,
) -> dict[tuple[str, int], LedgerEntryRow]:
    """Return the tenant's entries of these (meter id, seq), by them; where a customer is given, of its meters.

    Metadata and draws that are long are left out: see `storage.engine.long_values`.
    """
    wanted = [(*id_, org_id, environment) for id_ in ids]
    rows = await reader.run(_by_ids(reader.dialect), keys(wanted))
    return {
        (entry.meter_id, entry.seq): entry
        for workspace_id, billed_to, *values in rows
        if (workspace_ids is None or workspace_id in workspace_ids) and customer_id in {None, billed_to}
        for entry in (LedgerEntryRow._make(values),)
    }


async def by_ranges(
    reader: Reader, ranges: Sequence[tuple[str, int, int]], *, is_page: bool = False
) -> list[list[LedgerEntryRow]]:
    """Return the entries of each (meter id, first seq, last seq), both inclusive, newest first.

    A meter's entries are numbered without a gap, so that a page is a range and needs no window over the whole ledger.
    In a page metadata and draws that are long are left out: see `storage.engine.long_values`.
    """
    columns = tuple(_PAGE_COLUMNS if is_page else _COLUMNS)
    found: list[list[LedgerEntryRow]] = [[] for _ in ranges]
    for place, *row in await reader.run(_by_ranges(reader.dialect, columns), keys(ranges)):
        found[place].append(LedgerEntryRow._make(row))
    for entries in found:
        entries.sort(key=lambda entry: entry.seq, reverse=True)
    return found


async def by_keys(reader: Reader, wanted: Sequence[LedgerKey]) -> dict[LedgerKey, LedgerEntryRow]:
    """Return the entries that are already recorded under these keys, by them.

    Whose the meters are is the caller's to check.
    """
    rows = await reader.look_up(_by_keys(reader.dialect), wanted)
    return {LedgerKey(row.meter_id, row.kind, row.key or ""): row for row in map(LedgerEntryRow._make, rows)}


async def voided_credits(reader: Reader, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Return how many credits of usage entries, each a (meter id, seq), are already given back; 0 is left out."""
    rows = await reader.look_up(_voided(reader.dialect), wanted)
    return {(meter_id, seq): int(credits_) for meter_id, seq, credits_ in rows}


async def insert_entries(writer: Writer, rows: Sequence[LedgerEntryRow]) -> None:
    """Add entries to the ledgers of meters that the transaction has locked."""
    at = _METADATA
    await writer.insert_rows(
        ledger_entries,
        [
            (*row[:at], json_text(row.metadata), *row[at + 1 : -1], None if row.draws is None else json_text(row.draws))
            for row in rows
        ],
    )
