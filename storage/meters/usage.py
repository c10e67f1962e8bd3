"""Usage days: what each day used of a meter, by usage name."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache, lru_cache
from itertools import accumulate, pairwise, repeat
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    Date,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    and_,
    bindparam,
    func,
    literal_column,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import NullType

from storage.engine.columns import Columns
from storage.engine.statements import Prepared, in_bucket, keys, keys_table
from storage.engine.transactions import Reader, Writer
from storage.engine.turns import Turn, turn_for
from storage.engine.types import Day, Name, metadata

# Partitioned by the meter's id and without a foreign key to the meter, as `ledger_entries` is, for the same reasons.
usage_days = Table(
    "usage_days",
    metadata,
    Column("meter_id", Name, nullable=False),
    Column("day", Day, nullable=False),
    Column("usage_name", Name, nullable=False),
    Column("total_usage", BigInteger, nullable=False),
    # Where it lies on a database of several machines, with all that is its meter's; 0 on any other.
    Column("bucket", Integer, nullable=False, server_default="0"),
    # Serves a meter's days in their order.
    PrimaryKeyConstraint("meter_id", "day", "usage_name"),
    sqlite_with_rowid=False,
    postgresql_partition_by="HASH (meter_id)",
)


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


#: How many days of all ranges together SQLite reads, at most, in the event loop's thread.
MAX_INLINE_DAYS = 200

#: How many different days are kept in memory: those of more than twenty years.
MAX_CACHED_DAYS = 8_000

#: How many days are read from what the database gives for them before somebody else may have a turn.
DAYS_A_STEP = 2_000

#: As many rows as there can be.
_ALL = 2**63 - 1


@lru_cache(maxsize=1_000)
def _by_ranges(dialect: str, name_count: int) -> Prepared:
    """Return the statement that answers the days of ranges by their columns.

    A row a day would cost the driver and Python more than reading it costs the database. PostgreSQL, which is quick at
    making arrays and slow at JSON, answers one row: the columns of all days, and before them the ranges' places.
    SQLite, which has nothing but JSON and is slow at giving places, answers a row a range, and none where there are
    too many days.
    """
    wanted = keys_table(dialect, place=Integer(), meter_id=Text(), first=Day(), last=Day())
    is_wanted = [
        in_bucket(usage_days),
        usage_days.c.meter_id == wanted.c.meter_id,
        usage_days.c.day.between(wanted.c.first, wanted.c.last),
    ]
    if name_count:
        is_wanted.append(usage_days.c.usage_name.in_([_name(number) for number in range(name_count)]))
    # By their order, the days of each range are read by the index, and by it alone.
    days = (
        select(*_VALUES)
        .where(*is_wanted)
        .order_by(usage_days.c.day, usage_days.c.usage_name)
        .limit(bindparam("max_of_range", type_=BigInteger))
        .correlate(wanted)
    )
    most = bindparam("most", type_=BigInteger)
    if dialect == "postgresql":
        each = days.lateral()
        place, day, *others = select(wanted.c.place, *each.c).join(each, true()).limit(most).subquery().c
        # A number is sooner read than a date. What the columns hold needs no conversion.
        number = type_coerce(day, Date) - literal_column("DATE '0001-01-01'")
        columns = [type_coerce(func.array_agg(column), NullType()) for column in (place, number, *others)]
        return Prepared(dialect, select(*columns))  # type: ignore[arg-type]  # Of the columns' unknown types.
    arrays = func.json_array(*map(func.json_group_array, days.subquery().c), type_=NullType())
    # The days' places are not selected: that takes SQLite longer than all the rest.
    found = select(literal_column("1")).select_from(wanted).join(usage_days, and_(*is_wanted)).limit(most).subquery()
    is_less = select(func.count()).select_from(found).scalar_subquery() < most
    return Prepared(dialect, select(wanted.c.place, select(arrays).scalar_subquery()).where(is_less))


def _name(number: int) -> BindParameter[str]:
    return bindparam(f"name_{number}", type_=Text)


#: What says that there is such a day already. On PostgreSQL it is named, as there the key may have the bucket, too.
_KEY: dict[str, Any] = {
    "postgresql": {"constraint": "usage_days_pkey"},
    "sqlite": {"index_elements": list(usage_days.primary_key.columns)},
}


@cache
def _add(dialect: str) -> Prepared:
    rows = keys_table(dialect, **{column.name: column.type for column in _COLUMNS})
    # The condition shows SQLite's parser that ON CONFLICT is no join's.
    values = select(*rows.c, bindparam("bucket", type_=Integer())).where(true())
    statement = (postgresql if dialect == "postgresql" else sqlite).insert(usage_days)
    upsert = statement.from_select([*UsageDayRow._fields, "bucket"], values).on_conflict_do_update(
        **_KEY[dialect],
        set_={"total_usage": usage_days.c.total_usage + statement.excluded.total_usage},
    )
    return Prepared(dialect, upsert)


#: The same in a bucket of a database of several machines.
_ADDED = (
    " ON CONFLICT ON CONSTRAINT usage_days_pkey"
    " DO UPDATE SET total_usage = usage_days.total_usage + excluded.total_usage"
)


class TooManyDays(Exception):
    """There are more days than were to be read."""


async def by_ranges(
    reader: Reader, ranges: Sequence[UsageRange], *, usage_names: Sequence[str] | None = None
) -> list[Columns[UsageDayRow]]:
    """Return the days of each range, ordered by day and then by name, however many there are."""
    read = await columns_of(reader, ranges, usage_names=usage_names, max_of_range=_ALL, most=_ALL)
    return await arranged(read, ranges, reader.dialect, most=_ALL)


async def columns_of(
    reader: Reader, ranges: Sequence[UsageRange], *, usage_names: Sequence[str] | None, max_of_range: int, most: int
) -> Sequence[Sequence[Any]] | None:
    """Read what `arranged` makes the days of: the reader's connection is not needed for that.

    Of a range at most `max_of_range` days are read, and fewer than `most` in all.
    """
    names = {f"name_{number}": name for number, name in enumerate(usage_names or ())}
    if usage_names is not None and not names:
        return None
    return await reader.run(
        _by_ranges(reader.dialect, len(names)),
        keys(ranges) | names | {"max_of_range": max_of_range, "most": most},
        is_long=sum((range_.last - range_.first).days + 1 for range_ in ranges) > MAX_INLINE_DAYS,
    )


async def arranged(
    rows: Sequence[Any] | None, ranges: Sequence[UsageRange], dialect: str, *, most: int
) -> list[Columns[UsageDayRow]]:
    """Return the days of each range, ordered by day and then by name, in turns with others who work long.

    Raises `TooManyDays`.
    """
    if rows is None:
        return [Columns(UsageDayRow, ((), (), (), ()))] * len(ranges)
    turn = await turn_for(len(ranges))
    lengths, (given, *others) = await _flat(rows, len(ranges), dialect, turn)
    if len(lengths) < len(ranges) or len(given) >= most:
        raise TooManyDays
    meter_ids: list[str] = []
    for range_, length in zip(ranges, lengths, strict=True):
        meter_ids += repeat(range_.meter_id, length)
    days: list[date] = []
    while len(days) < len(given):
        if turn.is_over:
            await turn.next()
        days += map(_DAYS.__getitem__, given[len(days) : len(days) + DAYS_A_STEP])
    columns: Sequence[Sequence[Any]] = (meter_ids, days, *others)
    return [
        Columns(UsageDayRow, columns, slice(end - length, end))
        for length, end in zip(lengths, accumulate(lengths), strict=True)
    ]


async def _flat(rows: Sequence[Any], count: int, dialect: str, turn: Turn) -> tuple[list[int], Sequence[Sequence[Any]]]:
    """Return how many days each range has, and the columns of all days, as the database gives them."""
    columns: Sequence[Any] = [[], [], []]
    if dialect == "postgresql":
        ((places, *columns),) = rows
        if places is None:
            return [0] * count, [[], [], []]
        if places != sorted(places):
            # It goes through the ranges one by one, but does not promise to.
            places, *columns = zip(*sorted(zip(places, *columns, strict=True)), strict=True)
        ends = [bisect_right(places, place) for place in range(count)]
        return [end - start for start, end in pairwise([0, *ends])], columns
    lengths = []
    for _, arrays in sorted(rows):
        read = orjson.loads(arrays)
        for column, values in zip(columns, read, strict=True):
            column.extend(values)
        lengths.append(len(read[0]))
        if turn.is_over:
            await turn.next()
    return lengths, columns


class _Days(dict[int | str, date]):
    """The days by what the databases give for them: a number or a text. There are few, and many rows of each."""

    def __missing__(self, read: int | str) -> date:
        day = date.fromisoformat(read) if isinstance(read, str) else date.fromordinal(read + 1)
        if len(self) < MAX_CACHED_DAYS:
            self[read] = day
        return day


_DAYS = _Days()


async def add(writer: Writer, usage: Mapping[tuple[str, date, str], int]) -> None:
    """Add credits to the days (meter id, day, usage name) of meters that the transaction has locked."""
    added = [(*key, credits_) for key, credits_ in sorted(usage.items())]
    if writer.is_divided:
        await writer.insert_in_bucket(usage_days, added, _ADDED)
    else:
        await writer.run(_add(writer.dialect), keys(added))
