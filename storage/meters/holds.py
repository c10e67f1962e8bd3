"""Holds: the table, its rows, and the statements that read and write them."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    bindparam,
    literal_column,
    select,
)

from storage.engine.long_values import page_columns
from storage.engine.pages import Page, numbered_pages
from storage.engine.statements import Lookup, Prepared, keys
from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, JsonText, Name, Word, enum_type, json_text, metadata


class HoldState(Word):
    """What has become of a hold: from `OPEN` it goes to one of the others, at most once."""

    OPEN = "open"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"


# Partitioned by the meter's id and without a foreign key to the meter, as `ledger_entries` is, for the same reasons.
holds = Table(
    "holds",
    metadata,
    Column("meter_id", Name, nullable=False),
    # The number of the HOLD entry that made it.
    Column("seq", BigInteger, nullable=False),
    # The caller's name of it.
    Column("hold_id", Name, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("requested_amount", BigInteger, nullable=False),
    Column("expires_in_seconds", Integer, nullable=False),
    Column("state", enum_type(HoldState), nullable=False),
    Column("committed_amount", BigInteger),
    Column("expires_at", Instant, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("closed_at", Instant),
    # What it has reserved of each grant and of the base, in the order of use: [[seq, credits], ...].
    Column("pins", JsonText, nullable=False),
    Column("metadata", JsonText, nullable=False),
    # Where it lies on a database of several machines, with all that is its meter's; 0 on any other.
    Column("bucket", Integer, nullable=False, server_default="0"),
    # Serves a meter's holds, newest first, and a hold by its id.
    PrimaryKeyConstraint("meter_id", "seq"),
    # Serves a hold by its caller's name.
    UniqueConstraint("meter_id", "hold_id"),
    # Serves a meter's open holds, and its holds of a state, newest first.
    Index(None, "meter_id", "state", "seq"),
    postgresql_partition_by="HASH (meter_id)",
)


class HoldRow(NamedTuple):
    """Credits that are reserved for work whose cost is known afterwards. Amounts are credits."""

    meter_id: str
    seq: int
    hold_id: str
    amount: int
    requested_amount: int
    expires_in_seconds: int
    state: HoldState
    committed_amount: int | None
    expires_at: datetime
    created_at: datetime
    closed_at: datetime | None
    pins: list[list[int]]
    metadata: dict[str, Any]


_COLUMNS = [holds.c[name] for name in HoldRow._fields]
_PAGE_COLUMNS = page_columns(holds, HoldRow._fields)

#: What changes of a hold.
_CHANGING = ("state", "committed_amount", "expires_at", "closed_at")
_changing = attrgetter(*_CHANGING)


@cache
def _by_names(dialect: str) -> Lookup:
    return Lookup(dialect, select(*_COLUMNS), holds.c.meter_id, holds.c.hold_id)


@cache
def _by_seqs(dialect: str) -> Lookup:
    return Lookup(dialect, select(*_PAGE_COLUMNS), holds.c.meter_id, holds.c.seq)


@cache
def _open(dialect: str) -> Lookup:
    return Lookup(dialect, select(*_COLUMNS).where(holds.c.state == literal_column("'open'")), holds.c.meter_id)


async def by_names(reader: Reader, wanted: Sequence[tuple[str, str]]) -> list[HoldRow]:
    """Return the holds of these (meter id, hold id). Whose the meters are is the caller's to check."""
    return list(map(HoldRow._make, await reader.look_up(_by_names(reader.dialect), wanted)))


async def open_of(reader: Reader, meter_ids: Sequence[str]) -> list[HoldRow]:
    """Return the open holds of these meters."""
    return list(map(HoldRow._make, await reader.look_up(_open(reader.dialect), [(id_,) for id_ in meter_ids])))


async def insert_holds(writer: Writer, rows: Sequence[HoldRow]) -> None:
    """Write new holds of meters that the transaction has locked."""
    await writer.insert_rows(holds, [(*row[:-2], json_text(row.pins), json_text(row.metadata)) for row in rows])


async def update_holds(writer: Writer, rows: Sequence[HoldRow]) -> None:
    """Write what has become of holds of meters that the transaction has locked."""
    changed = [(row.meter_id, row.seq, *_changing(row)) for row in rows]
    await writer.update_rows(holds, _CHANGING, changed)


async def by_seqs(reader: Reader, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], HoldRow]:
    """Return the holds of these (meter id, seq), by them, as pages have them.

    Whose the meters are is the caller's to check.
    """
    rows = map(HoldRow._make, await reader.look_up(_by_seqs(reader.dialect), wanted))
    return {(row.meter_id, row.seq): row for row in rows}


@lru_cache(maxsize=256)
def _pages(dialect: str, page: Page, *, state: HoldState | None, is_over: bool | None) -> Prepared:
    conditions = [] if state is None else [holds.c.state == literal_column(f"'{state.value}'")]
    if is_over is not None:
        ends = holds.c.expires_at
        moment = bindparam("now", type_=ends.type)
        conditions.append(ends <= moment if is_over else ends > moment)
    return numbered_pages(dialect, holds, page, *conditions, columns=_PAGE_COLUMNS)


async def pages_by_meters(
    reader: Reader, meter_ids: Sequence[str], page: Page, state: HoldState | None, *, now: datetime
) -> dict[str, list[HoldRow]]:
    """Return one page of the holds of each meter, and one more row where there is one, by meter id.

    What is due and not yet written counts as if it were.
    """
    moment = now.isoformat() if reader.dialect == "sqlite" else now
    wanted = keys([[id_] for id_ in meter_ids]) | page.parameters | {"now": moment}
    is_open = state is HoldState.OPEN
    statements = [_pages(reader.dialect, page.shape, state=state, is_over=False if is_open else None)]
    if state is HoldState.EXPIRED:
        # By one statement with both conditions the database would read all holds of the meter.
        statements.append(_pages(reader.dialect, page.shape, state=HoldState.OPEN, is_over=True))
    rows = [HoldRow._make(row) for statement in statements for row in await reader.run(statement, wanted)]
    found: dict[str, list[HoldRow]] = {id_: [] for id_ in meter_ids}
    for row in sorted(rows, key=attrgetter("seq"), reverse=not page.backward):
        if len(found[row.meter_id]) <= page.limit:
            found[row.meter_id].append(row)
    return found
