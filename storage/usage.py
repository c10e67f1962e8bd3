"""Usage days: what each day used of a meter, by usage name."""

from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache, lru_cache
from typing import NamedTuple

import orjson
from sqlalchemy import BigInteger, BindParameter, Integer, Text, bindparam, func, select, true, type_coerce
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import NullType

from storage.columns import Columns
from storage.database import Reader, Writer
from storage.statements import Prepared, keys, keys_table
from storage.tables import Day, read_day, usage_days


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


_NO_DAYS = Columns(UsageDayRow, ((), (), (), ()))


@lru_cache(maxsize=1_000)
def _by_ranges(dialect: str, name_count: int) -> Prepared:
    """Return the statement that answers one row for each range that has days: its place, and their columns.

    A row a day would cost the driver and Python more than reading it costs the database. PostgreSQL is quick at
    making arrays and slow at JSON; SQLite has nothing but JSON.
    """
    wanted = keys_table(dialect, place=Integer(), meter_id=Text(), first=Day(), last=Day())
    days = select(wanted.c.place, *_VALUES).join(
        wanted,
        (usage_days.c.meter_id == wanted.c.meter_id) & usage_days.c.day.between(wanted.c.first, wanted.c.last),
    )
    if name_count:
        days = days.where(usage_days.c.usage_name.in_([_name(number) for number in range(name_count)]))
    each = days.limit(bindparam("most_rows", type_=BigInteger)).subquery()
    place, *values = each.c
    columns = (
        # Read as the driver gives it: what the columns hold needs no conversion.
        [type_coerce(func.array_agg(value), NullType()) for value in values]
        if dialect == "postgresql"
        else [func.json_array(*map(func.json_group_array, values), type_=NullType())]
    )
    return Prepared(dialect, select(place, *columns).group_by(place))


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
    names = {f"name_{number}": name for number, name in enumerate(usage_names or ())}
    found = [_NO_DAYS] * len(ranges)
    if usage_names is not None and not names:
        return found
    statement = _by_ranges(reader.dialect, len(names))
    for place, *columns in await reader.run(statement, keys(reader.dialect, ranges) | names | {"most_rows": most_rows}):
        days, usage_names, totals = columns if reader.dialect == "postgresql" else orjson.loads(columns[0])
        order = list(zip(days, usage_names, strict=True))
        if order != sorted(order):
            # The databases read an index in its order, but do not promise to.
            days, usage_names, totals = zip(*sorted(zip(days, usage_names, totals, strict=True)), strict=True)
        if reader.dialect == "sqlite":
            days = list(map(read_day, days))
        found[place] = Columns(UsageDayRow, ([ranges[place].meter_id] * len(days), days, usage_names, totals))
    return found


async def add(writer: Writer, usage: Mapping[tuple[str, date, str], int]) -> None:
    """Add credits to the days (meter id, day, usage name) of meters that the transaction has locked."""
    added = [(*key, credits_) for key, credits_ in sorted(usage.items())]
    await writer.run(_add(writer.dialect), keys(writer.dialect, added))
