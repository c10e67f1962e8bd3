"""Usage days: what each day used of a meter, by usage name."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Integer, Select, Text, bindparam, select, true
from sqlalchemy.dialects import postgresql, sqlite

from storage.database import Reader, Writer
from storage.statements import Prepared, keys, keys_table
from storage.tables import Day, usage_days


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


# `UsageDayRow._make` without its check of the length, for there are thousands.
_row = tuple.__new__

_COLUMNS = [usage_days.c[name] for name in UsageDayRow._fields]


@cache
def _by_ranges(dialect: str) -> Select[Any]:
    wanted = keys_table(dialect, place=Integer(), meter_id=Text(), first=Day(), last=Day())
    statement = select(wanted.c.place, *_COLUMNS).join(
        wanted,
        (usage_days.c.meter_id == wanted.c.meter_id) & usage_days.c.day.between(wanted.c.first, wanted.c.last),
    )
    return statement.limit(bindparam("most_rows", type_=BigInteger))


@cache
def _prepared_by_ranges(dialect: str) -> Prepared:
    return Prepared(dialect, _by_ranges(dialect))


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
) -> list[list[UsageDayRow]]:
    """Return the days of each range, ordered by day and then by name; at most `most_rows` rows in all."""
    wanted = keys(reader.dialect, [(place, *range_) for place, range_ in enumerate(ranges)]) | {"most_rows": most_rows}
    rows: Iterable[Sequence[Any]]
    if usage_names is None:
        rows = await reader.run(_prepared_by_ranges(reader.dialect), wanted)
    else:
        statement = _by_ranges(reader.dialect).where(usage_days.c.usage_name.in_(usage_names))
        rows = await reader.fetch(statement, wanted)
    found: list[list[UsageDayRow]] = [[] for _ in ranges]
    for row in rows:
        found[row[0]].append(_row(UsageDayRow, row[1:]))
    for days in found:
        days.sort()  # One meter's rows: by day, then by name, by code point as the databases do.
    return found


async def add(writer: Writer, usage: Mapping[tuple[str, date, str], int]) -> None:
    """Add credits to the days (meter id, day, usage name) of meters that the transaction has locked."""
    added = [(*key, credits_) for key, credits_ in sorted(usage.items())]
    await writer.run(_add(writer.dialect), keys(writer.dialect, added))
