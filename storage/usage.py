"""Usage days: what each day used of a meter, by usage name."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache, lru_cache
from typing import Any, NamedTuple

import orjson
from sqlalchemy import BigInteger, BindParameter, Integer, Text, bindparam, func, select, true, type_coerce
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import NullType

from storage.columns import Columns
from storage.database import Reader, Writer
from storage.statements import Prepared, keys, keys_table
from storage.tables import Day, read_day, usage_days
from storage.turns import Turn


class UsageDayRow(NamedTuple):
    """The credits that one usage name used of a meter on one day of the meter's zone."""

    meter_id: str
    day: date
    usage_name: str
    total_usage: int


class UsageRange(NamedTuple):
    """Inclusive days of one meter; of these usage names where any are given."""

    meter_id: str
    first: date
    last: date


_COLUMNS = [usage_days.c[name] for name in UsageDayRow._fields]

#: The columns of a day besides its meter.
_VALUES = (usage_days.c.day, usage_days.c.usage_name, usage_days.c.total_usage)


#: The most days of all ranges together that SQLite reads in the event loop's thread.
MOST_DAYS_HERE = 200

_NO_DAYS = Columns(UsageDayRow, ((), (), (), ()))


@lru_cache(maxsize=1_000)
def _by_ranges(dialect: str, name_count: int) -> Prepared:
    """Return the statement that answers one row: the columns of all days, and before them the ranges' places.

    A row a day would cost the driver and Python more than reading it costs the database, and a row a range would be
    sorted for. PostgreSQL is quick at making arrays and slow at JSON; SQLite has nothing but JSON.
    """
    wanted = keys_table(dialect, place=Integer(), meter_id=Text(), first=Day(), last=Day())
    days = select(wanted.c.place, *_VALUES).join(
        wanted,
        (usage_days.c.meter_id == wanted.c.meter_id) & usage_days.c.day.between(wanted.c.first, wanted.c.last),
    )
    if name_count:
        days = days.where(usage_days.c.usage_name.in_([_name(number) for number in range(name_count)]))
    each = days.limit(bindparam("most_rows", type_=BigInteger)).subquery()
    # The columns are read as the driver gives them: what they hold needs no conversion.
    columns = (
        [type_coerce(func.array_agg(value), NullType()) for value in each.c]
        if dialect == "postgresql"
        else [func.json_array(*map(func.json_group_array, each.c), type_=NullType())]
    )
    return Prepared(dialect, select(*columns))


def _name(number: int) -> BindParameter[str]:
    return bindparam(f"name_{number}", type_=Text)


@cache
def _add(dialect: str) -> Prepared:
    rows = keys_table(dialect, **{column.name: column.type for column in _COLUMNS})
    # The condition tells SQLite's parser that ON CONFLICT is no join's.
    values = select(*rows.c).where(true())
    statement = (postgresql if dialect == "postgresql" else sqlite).insert(usage_days)
    upsert = statement.from_select(UsageDayRow._fields, values).on_conflict_do_update(
        index_elements=list(usage_days.primary_key.columns),
        set_={"total_usage": usage_days.c.total_usage + statement.excluded.total_usage},
    )
    return Prepared(dialect, upsert)


async def by_ranges(
    reader: Reader, ranges: Sequence[UsageRange], *, usage_names: Sequence[str] | None, most_rows: int
) -> list[Columns[UsageDayRow]]:
    """Return the days of each range, ordered by day and then by name; at most `most_rows` rows in all."""
    columns = await columns_of(reader, ranges, usage_names=usage_names, most_rows=most_rows)
    return await arranged(columns, ranges, reader.dialect)


async def columns_of(
    reader: Reader, ranges: Sequence[UsageRange], *, usage_names: Sequence[str] | None, most_rows: int
) -> Any:
    """Read what `arranged` makes the days of: the reader's connection is not needed for that."""
    names = {f"name_{number}": name for number, name in enumerate(usage_names or ())}
    if usage_names is not None and not names:
        return None
    (row,) = await reader.run(
        _by_ranges(reader.dialect, len(names)),
        keys(reader.dialect, ranges) | names | {"most_rows": most_rows},
        is_long=sum((range_.last - range_.first).days + 1 for range_ in ranges) > MOST_DAYS_HERE,
    )
    return row if reader.dialect == "postgresql" else row[0]


async def arranged(read: Any, ranges: Sequence[UsageRange], dialect: str) -> list[Columns[UsageDayRow]]:
    """Return the days of each range, ordered by day and then by name, in turns with others who work long."""
    found = [_NO_DAYS] * len(ranges)
    turn = Turn()
    columns = orjson.loads(read) if dialect == "sqlite" and read is not None else read
    if columns is None or not columns[0]:
        return found
    if turn.is_over:
        await turn.next()
    order = list(zip(*columns[:-1], strict=True))
    if order != sorted(order):
        # The databases go through the ranges one by one, and through an index in its order, but promise neither.
        columns = list(zip(*sorted(zip(*columns, strict=True)), strict=True))
    places, days, *others = columns
    if dialect == "sqlite":
        days = list(map(read_day, days))
    end = 0
    while end < len(places):
        start, place = end, places[end]
        end = bisect_right(places, place, lo=start)
        meter_ids = [ranges[place].meter_id] * (end - start)
        if turn.is_over:
            await turn.next()
        found[place] = Columns(UsageDayRow, (meter_ids, *[column[start:end] for column in (days, *others)]))
    return found


async def add(writer: Writer, usage: Mapping[tuple[str, date, str], int]) -> None:
    """Add credits to the days (meter id, day, usage name) of meters that the transaction has locked."""
    added = [(*key, credits_) for key, credits_ in sorted(usage.items())]
    await writer.run(_add(writer.dialect), keys(writer.dialect, added))
