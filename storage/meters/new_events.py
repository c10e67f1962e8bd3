"""Events that are still to be given to the webhook endpoints: found by a mark on their rows.

Not by an id or a time that has been passed: commits come out of order.
"""

from collections.abc import Sequence
from functools import cache

from sqlalchemy import ColumnElement, Integer, bindparam, literal_column, select

from storage.engine.statements import Prepared, in_bucket
from storage.engine.transactions import Reader, Writer
from storage.meters.events import EventRow, EventType, events

_COLUMNS = [events.c[name] for name in EventRow._fields]

#: As the index has it: SQLite uses it for no other words.
_IS_NEW: ColumnElement[bool] = literal_column("is_new")


@cache
def _one(dialect: str) -> Prepared:
    one: ColumnElement[int] = literal_column("1", Integer())
    return Prepared(dialect, select(events.c.number).where(in_bucket(events), _IS_NEW).limit(one))


@cache
def _locked(dialect: str) -> Prepared:
    new = select(*_COLUMNS).where(in_bucket(events), _IS_NEW).order_by(events.c.owner_id, events.c.number)
    limited = new.limit(bindparam("limit", type_=Integer()))
    return Prepared(dialect, limited.with_for_update(of=events, skip_locked=True))


async def are_there(reader: Reader) -> bool:
    """Whether there are any in the reader's bucket."""
    return bool(await reader.run(_one(reader.dialect), {}))


async def lock_some(writer: Writer, *, limit: int) -> list[EventRow]:
    """Lock some of them until the transaction ends; those that another one holds are left out."""
    rows = map(EventRow._make, await writer.run(_locked(writer.dialect), {"limit": limit}))
    return [row._replace(type=EventType(row.type)) for row in rows]


async def mark_given(writer: Writer, rows: Sequence[EventRow]) -> None:
    """Note that these events, which the transaction has locked, are given to the endpoints."""
    await writer.update_rows(events, ("is_new",), [(row.owner_id, row.number, False) for row in rows])
