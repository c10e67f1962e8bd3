"""Credit grants: the table, its rows, and the statements that read and write them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    bindparam,
    false,
    literal_column,
    or_,
    select,
    text,
    true,
)

from storage.engine.long_values import page_columns
from storage.engine.pages import Page, numbered_pages
from storage.engine.statements import Lookup, Prepared, keys, keys_table
from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, JsonText, Name, Word, enum_type, json_text, metadata


class CreditGrantCategory(Word):
    """Whether a grant was paid for. Of two that are otherwise alike the promotional one is used first."""

    PAID = "paid"
    PROMOTIONAL = "promotional"


_IS_USABLE = text("open_credits > 0 OR pinned_credits > 0")
_HAS_COVERED = text("covered_credits > 0")

# Partitioned by the meter's id and without a foreign key to the meter, as `ledger_entries` is, for the same reasons.
credit_grants = Table(
    "credit_grants",
    metadata,
    Column("meter_id", Name, nullable=False),
    # The number of the GRANT entry that made it.
    Column("seq", BigInteger, nullable=False),
    # The key of that entry.
    Column("key", Name, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("category", enum_type(CreditGrantCategory), nullable=False),
    Column("expires_at", Instant),
    # What has become of the amount: `drawn` includes what it covered of earlier usage.
    Column("open_credits", BigInteger, nullable=False),
    Column("pinned_credits", BigInteger, nullable=False),
    Column("drawn_credits", BigInteger, nullable=False),
    Column("covered_credits", BigInteger, nullable=False),
    Column("expired_credits", BigInteger, nullable=False),
    Column("revoked_credits", BigInteger, nullable=False),
    # Whether it was revoked as a whole, so that nothing that comes back to it can be used.
    Column("is_closed", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("reason", Text),
    Column("metadata", JsonText, nullable=False),
    # Where it lies on a database of several machines, with all that is its meter's; 0 on any other.
    Column("bucket", Integer, nullable=False, server_default="0"),
    # Serves a meter's grants, newest first, and a grant by its id.
    PrimaryKeyConstraint("meter_id", "seq"),
    # Serves a meter's grants of which something can be used.
    Index("credit_grants_usable_idx", "meter_id", sqlite_where=_IS_USABLE, postgresql_where=_IS_USABLE),
    # Serves the grants that have covered usage, which a void gives back.
    Index("credit_grants_covered_idx", "meter_id", sqlite_where=_HAS_COVERED, postgresql_where=_HAS_COVERED),
    postgresql_partition_by="HASH (meter_id)",
)


class CreditGrantRow(NamedTuple):
    """Credits with a priority and perhaps an end. Amounts are credits.

    `amount` is the sum of what is open, pinned, drawn, expired and revoked.
    """

    meter_id: str
    seq: int
    key: str
    amount: int
    priority: int
    category: CreditGrantCategory
    expires_at: datetime | None
    open_credits: int
    pinned_credits: int
    drawn_credits: int
    covered_credits: int
    expired_credits: int
    revoked_credits: int
    is_closed: bool
    created_at: datetime
    reason: str | None
    metadata: dict[str, Any]

    def is_live(self, now: datetime) -> bool:
        """Whether it can be used: neither revoked nor at its end."""
        return not self.is_closed and (self.expires_at is None or now < self.expires_at)


_COLUMNS = [credit_grants.c[name] for name in CreditGrantRow._fields]
_PAGE_COLUMNS = page_columns(credit_grants, CreditGrantRow._fields)

#: What changes of a grant.
_CHANGING = (
    *("priority", "expires_at", "open_credits", "pinned_credits", "drawn_credits", "covered_credits"),
    *("expired_credits", "revoked_credits", "is_closed"),
)
_changing = attrgetter(*_CHANGING)


@cache
def _usable(dialect: str, most: int | None) -> Lookup:
    grants = credit_grants.c
    is_usable = or_(grants.open_credits > literal_column("0"), grants.pinned_credits > literal_column("0"))
    found = select(*_PAGE_COLUMNS).where(is_usable)
    # With a parameter PostgreSQL would plan it at each run.
    return Lookup(dialect, found if most is None else found.limit(literal_column(str(most))), grants.meter_id)


@cache
def _covering(dialect: str) -> Lookup:
    is_covering = credit_grants.c.covered_credits > literal_column("0")
    return Lookup(dialect, select(*_PAGE_COLUMNS).where(is_covering), credit_grants.c.meter_id)


@cache
def _by_seqs(dialect: str, columns: tuple[ColumnElement[Any], ...]) -> Lookup:
    return Lookup(dialect, select(*columns), credit_grants.c.meter_id, credit_grants.c.seq)


async def usable(reader: Reader, meter_ids: Sequence[str], *, most: int | None = None) -> list[CreditGrantRow]:
    """Return the grants of these meters of which something is open or pinned, not more than `most` of all of them.

    Metadata that is long is left out.
    """
    rows = await reader.look_up(_usable(reader.dialect, most), [(id_,) for id_ in meter_ids])
    return list(map(CreditGrantRow._make, rows))


async def covering(reader: Reader, meter_ids: Sequence[str]) -> list[CreditGrantRow]:
    """Return the grants of these meters that have covered usage which no credit had paid, also as pages have them."""
    rows = await reader.look_up(_covering(reader.dialect), [(id_,) for id_ in meter_ids])
    return list(map(CreditGrantRow._make, rows))


async def by_seqs(
    reader: Reader, wanted: Sequence[tuple[str, int]], *, is_page: bool = False
) -> dict[tuple[str, int], CreditGrantRow]:
    """Return the grants of these (meter id, seq), by them. Whose the meters are is the caller's to check.

    In a page metadata that is long is left out: see `storage.engine.long_values`.
    """
    statement = _by_seqs(reader.dialect, tuple(_PAGE_COLUMNS if is_page else _COLUMNS))
    rows = map(CreditGrantRow._make, await reader.look_up(statement, wanted))
    return {(row.meter_id, row.seq): row for row in rows}


async def insert_grants(writer: Writer, rows: Sequence[CreditGrantRow]) -> None:
    """Write new grants of meters that the transaction has locked."""
    await writer.insert_rows(credit_grants, [(*row[:-1], json_text(row.metadata)) for row in rows])


async def update_grants(writer: Writer, rows: Sequence[CreditGrantRow]) -> None:
    """Write what has changed of grants of meters that the transaction has locked."""
    await writer.update_rows(credit_grants, _CHANGING, [(row.meter_id, row.seq, *_changing(row)) for row in rows])


class CreditGrantState(Word):
    """What can be had of a grant: `REVOKED` and `EXPIRED` are ends; a void may make a `DEPLETED` one `LIVE` again."""

    LIVE = "live"
    DEPLETED = "depleted"
    EXPIRED = "expired"
    REVOKED = "revoked"


class GrantFilter(NamedTuple):
    """Which grants of a meter to list; None restricts nothing."""

    state: CreditGrantState | None = None
    category: CreditGrantCategory | None = None
    expires_before: datetime | None = None

    def includes(self, grant: CreditGrantRow, now: datetime) -> bool:
        """Whether to list the grant, as it is at this moment."""
        before = self.expires_before
        return (
            self.state in (None, state_of(grant, now))
            and self.category in (None, grant.category)
            and (before is None or (grant.expires_at is not None and grant.expires_at < before))
        )


def state_of(grant: CreditGrantRow, now: datetime) -> CreditGrantState:
    """Return the state of a grant at a moment at which nothing of its meter is due."""
    if grant.is_closed:
        return CreditGrantState.REVOKED
    if not grant.is_live(now):
        return CreditGrantState.EXPIRED
    is_live = grant.open_credits or grant.pinned_credits
    return CreditGrantState.LIVE if is_live else CreditGrantState.DEPLETED


@lru_cache(maxsize=256)
def _pages(dialect: str, page: Page, shape: GrantFilter, *, is_unusable: bool) -> Prepared:
    grants = credit_grants.c
    zero: ColumnElement[int] = literal_column("0")
    is_usable = or_(grants.open_credits > zero, grants.pinned_credits > zero)
    conditions: list[ColumnElement[bool]] = [~is_usable] if is_unusable else []
    keyed = keys_table(dialect, meter_id=Text(), now=grants.expires_at.type)
    if shape.category is not None:
        conditions.append(grants.category == bindparam("category", type_=Text()))
    if shape.expires_before is not None:
        conditions.append(grants.expires_at < bindparam("expires_before", type_=grants.expires_at.type))
    if shape.state is not None:
        no = false()
        is_over = grants.expires_at <= keyed.c.now
        is_current = (grants.is_closed == no) & or_(grants.expires_at.is_(None), ~is_over)
        conditions.append(
            {
                CreditGrantState.REVOKED: grants.is_closed == true(),
                CreditGrantState.EXPIRED: (grants.is_closed == no) & is_over,
                CreditGrantState.LIVE: is_current & is_usable,
                CreditGrantState.DEPLETED: is_current & ~is_usable,
            }[shape.state]
        )
    return numbered_pages(dialect, credit_grants, page, *conditions, columns=_PAGE_COLUMNS, wanted=keyed)


async def pages_by_meters(
    reader: Reader,
    moments: Mapping[str, datetime],
    page: Page,
    wanted: GrantFilter,
    *,
    is_unusable: bool = False,
) -> dict[str, list[CreditGrantRow]]:
    """Return one page of the grants of each meter, and one more row where there is one, by meter id.

    The meters are given with the moment as of which each one's grants are to have their states.
    With `is_unusable` it is a page of those of which nothing is open or pinned.
    """
    before = wanted.expires_before
    values: dict[str, Any] = {
        "expires_before": before.isoformat() if reader.dialect == "sqlite" and before is not None else before,
        "category": wanted.category,
    }
    shape = wanted._replace(expires_before=wanted.expires_before and _ANY)
    statement = _pages(reader.dialect, page.shape, shape, is_unusable=is_unusable)
    found: dict[str, list[CreditGrantRow]] = {id_: [] for id_ in moments}
    rows = await reader.run(statement, keys(moments.items()) | page.parameters | values)
    for row in sorted(map(CreditGrantRow._make, rows), key=attrgetter("seq"), reverse=not page.backward):
        found[row.meter_id].append(row)
    return found


_ANY = datetime.min.replace(tzinfo=UTC)
