"""Statements that are made once, and the records that they look up or write, which are one parameter."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import eq
from typing import Any

import orjson
from sqlalchemy import (
    Column,
    ColumnElement,
    Dialect,
    Double,
    FromClause,
    Insert,
    Integer,
    Select,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    cast,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.types import TypeEngine

from storage.engine.types import Instant

#: What text of a statement is made for.
_DIALECTS: Mapping[str, Dialect] = {
    "postgresql": PGDialect_asyncpg(),  # type: ignore[no-untyped-call]
    "sqlite": SQLiteDialect_aiosqlite(),
}


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_EXTREMES = frozenset({datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)})

#: The column that says in which bucket a row of a meter lies.
_BUCKET = "bucket"


def in_bucket(*tables: FromClause) -> ColumnElement[bool]:
    """Return the condition that the rows lie in the bucket of the reader that runs the statement."""
    return and_(*[table.c[_BUCKET] == bindparam(_BUCKET, type_=Integer()) for table in tables])


def is_in_buckets(table: FromClause) -> bool:
    """Whether the rows of the table are those of meters, and lie in their buckets."""
    return _BUCKET in table.c


def given_columns(table: Table) -> list[Column[Any]]:
    """Return the columns of the table whose values a caller gives: the bucket is the writer's."""
    return [column for column in table.c if column.name != _BUCKET]


class Prepared:
    """A statement whose text is made once and then given to the driver as it is.

    SQLAlchemy looks up its cache, converts each row and, on SQLite, crosses to the driver's thread four times at every
    call, which costs more than most statements do. So what the hot paths run is declared in SQLAlchemy and made once.

    Its parameters are given as plain values; its rows are sequences of what its columns' types make of the database's
    values.
    """

    def __init__(self, dialect: str, statement: Select[Any] | Insert | Update) -> None:
        compiled = statement.compile(dialect=_DIALECTS[dialect])
        self.text = compiled.string
        #: Whether its rows are locked until the transaction ends.
        self.is_locking = isinstance(statement, Select) and statement._for_update_arg is not None  # noqa: SLF001
        self._parameters: Sequence[str] = compiled.positiontup or ()
        # What SQLAlchemy adds by itself, like SQLite's OFFSET.
        self._own = {name: value for name, value in compiled.params.items() if value is not None}
        columns = statement.selected_columns if isinstance(statement, Select) else ()
        readers = {
            f"read_{place}": column.type.dialect_impl(_DIALECTS[dialect]).result_processor(_DIALECTS[dialect], None)
            for place, column in enumerate(columns)
        }
        values = [
            f"row[{place}]" if read is None else f"{name}(row[{place}])"
            for place, (name, read) in enumerate(readers.items())
        ]
        #: Makes the rows that the driver gave the values that the columns' types make of them: one expression for all.
        self.read: Callable[[Iterable[Any]], list[Sequence[Any]]] = (
            eval(f"lambda rows: [({', '.join(values)},) for row in rows]", readers)  # noqa: S307  # Made of numbers.
            if values
            else list
        )

    def values(self, parameters: Mapping[str, Any], bucket: int) -> tuple[Any, ...]:
        """Return the parameters in the order in which the driver wants them."""
        given = {_BUCKET: bucket, **self._own, **parameters}
        return tuple([given[name] for name in self._parameters])


def keys_table(dialect: str, **columns: TypeEngine[Any]) -> FromClause:
    """Return a table of the records that the parameter `keys` holds, with these columns: to join with, or to write.

    However many records there are, it is one parameter and one text of the statement, which the database prepares once
    and which costs SQLAlchemy and the driver nothing a record. `keys()` makes the parameter. A column `place` is none
    of a record's values: it numbers the records, from 0.
    """
    parameter = bindparam("keys", type_=Text)
    has_places = "place" in columns
    if dialect == "postgresql":
        ordinality = "ordinality" if has_places else None
        all_ = func.jsonb_array_elements(cast(parameter, JSONB)).table_valued(
            "value", name="all", with_ordinality=ordinality
        )
        places = [(all_.c.ordinality - literal_column("1")).label("key")] if has_places else []
        # PostgreSQL takes an array for a hundred records, whatever is in it, and would rather read a whole table than
        # look up a hundred. Of what a condition picks it expects one in two hundred, here one record; and because it
        # does so with and without knowing the array, it plans the statement once, and not at each run.
        is_record = func.jsonb_typeof(all_.c.value) == literal_column("'array'")
        each: FromClause = select(all_.c.value, *places).where(is_record).subquery("each")
        convert: Any = _converted
    else:
        each = func.json_each(parameter).table_valued("value", "key", name="each")
        convert = type_coerce
    values = [(name, type_) for name, type_ in columns.items() if name != "place"]
    records = select(
        *([each.c.key.label("place")] if has_places else []),
        *[
            convert(each.c.value.op("->>")(literal_column(str(index))), type_).label(name)
            for index, (name, type_) in enumerate(values)
        ],
    )
    if dialect == "postgresql":
        # So the values are made once a record. Made anew for each index that they are looked up in, they let a longer
        # key look dearer than a part of it and a filter, until the statistics know how many rows such a part has.
        records = records.offset(literal_column("0"))
    return records.subquery("keys")


def _converted(text: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return a value of a record, on PostgreSQL, from its text."""
    if not isinstance(type_, Instant):
        return cast(text, type_)

    def part(start: int, length: int | ColumnElement[int], kind: TypeEngine[Any]) -> ColumnElement[Any]:
        places = [literal_column(str(each)) if isinstance(each, int) else each for each in (start, length)]
        return cast(func.substr(text, *places), kind)

    # As `datetime.isoformat` writes a moment in UTC. A cast hangs on the session's settings, so that a database of
    # several machines, where such functions must not be called for each row, would not update by it.
    length = func.length(text) - literal_column("23")
    days = [part(start, count, Integer()) for start, count in ((1, 4), (6, 2), (9, 2), (12, 2), (15, 2))]
    moment = func.make_timestamp(*days, part(18, length, Double()))
    return type_coerce(func.timezone(literal_column("'UTC'"), moment), type_)


def keys(records: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """Return the parameters of a statement made with `keys_table`, whose records have the values of its columns."""
    # A named tuple is no list to orjson.
    listed = [record if type(record) is tuple else list(record) for record in records]
    return {"keys": orjson.dumps(listed).decode()}


class Lookup:
    """A statement that finds rows of one table by records, each of which has the values of these of its columns.

    The records are one parameter, which the table is joined with. Citus would plan such a join anew at each run. It
    passes on as it is what is about one table and one bucket, so that in a bucket each value is a parameter.
    """

    def __init__(self, dialect: str, found: Select[Any], *columns: Column[Any]) -> None:
        wanted = keys_table(dialect, **{column.name: _key_type(column) for column in columns})
        are_equal = [column == wanted.c[column.name] for column in columns]
        self.by_records = Prepared(dialect, found.join(wanted, and_(in_bucket(columns[0].table), *are_equal)))
        """Its one parameter is what `keys()` makes of the records."""
        self._in_bucket = found.where(in_bucket(columns[0].table))
        self._columns = columns
        self._by_values: dict[tuple[int, tuple[bool, ...]], Prepared] = {}

    def by_values(self, count: int, is_shared: tuple[bool, ...]) -> Prepared:
        """Return the statement for so many records, all of which have one value in the columns that are shared.

        Its parameters are what `values_of()` makes of that record of the shared columns, and of those of the others.
        """
        if (count, is_shared) not in self._by_values:
            shared = [column for column, is_one in zip(self._columns, is_shared, strict=True) if is_one]
            own = [column for column in self._columns if column not in shared]
            are_found = [
                _is_one_of(columns, of, name) for columns, of, name in ((shared, 1, "shared"), (own, count, "own"))
            ]
            self._by_values[count, is_shared] = Prepared("postgresql", self._in_bucket.where(*are_found))
        return self._by_values[count, is_shared]


def values_of(name: str, records: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """Return the parameters of a statement that has one for each value of each record."""
    return {f"{name}_{row}_{place}": value for row, record in enumerate(records) for place, value in enumerate(record)}


def _is_one_of(columns: Sequence[Column[Any]], count: int, name: str = "own") -> ColumnElement[bool]:
    """Return the condition that the columns have the values of one of so many records."""
    records = [
        [bindparam(f"{name}_{row}_{place}", type_=_key_type(column)) for place, column in enumerate(columns)]
        for row in range(count)
    ]
    if not columns:
        return true()
    if len(columns) == 1:
        return columns[0].in_([value for (value,) in records])
    return or_(*[and_(*map(eq, columns, record)) for record in records])


def _key_type(column: Column[Any]) -> TypeEngine[Any]:
    return column.type if isinstance(column.type, Integer) else Text()


def _key_of(table: Table) -> list[Column[Any]]:
    return [column for column in table.primary_key.columns if column.name != _BUCKET]


@lru_cache(maxsize=256)
def update_by_records(dialect: str, table: Table, names: tuple[str, ...]) -> Prepared:
    """Return the statement that writes the columns of these names, of rows given by their key and then the values."""
    types = {column.name: _key_type(column) for column in _key_of(table)}
    changed = keys_table(dialect, **types, **{name: table.c[name].type for name in names})
    is_changed = [table.c[name] == changed.c[name] for name in types]
    values = {name: changed.c[name] for name in names}
    return Prepared(dialect, update(table).where(in_bucket(table), *is_changed).values(values))


@lru_cache(maxsize=256)
def update_by_values(table: Table, names: tuple[str, ...], count: int) -> Prepared:
    """Return the same for so many rows of a bucket, whose parameters `changes_of()` makes."""
    key = _key_of(table)
    values: ColumnElement[Any] = bindparam("values", type_=JSONB)
    for column in key:
        values = values.op("->")(cast(column, Text))
    written = {name: _written(values, str(place), table.c[name].type) for place, name in enumerate(names)}
    return Prepared("postgresql", update(table).where(in_bucket(table), _is_one_of(key, count)).values(written))


def _written(values: ColumnElement[Any], place: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return the value at this place of `changes_of()` for a row."""
    if not isinstance(type_, Instant):
        return _converted(values.op("->>")(literal_column(place)), type_)
    # The days and seconds since 1970: seven parts of a text take three times as long.
    moment = values.op("->")(literal_column(place))
    days, seconds = (moment.op("->>")(literal_column(part)) for part in ("0", "1"))
    zero: ColumnElement[Any] = literal_column("0")
    since: ColumnElement[Any] = func.make_interval(
        zero, zero, zero, cast(days, Integer()), zero, zero, cast(seconds, Double())
    )
    return type_coerce(
        func.timezone(literal_column("'UTC'"), literal_column("timestamp '1970-01-01'").op("+")(since)), type_
    )


def _since_1970(moment: datetime) -> tuple[int, float]:
    since = moment - _EPOCH
    return since.days, since.seconds + since.microseconds / 1_000_000


def changes_of(table: Table, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return the parameters of `update_by_values`: the keys of the rows, and by them the values that are written."""
    length = len(_key_of(table))
    values: dict[str, Any] = {}
    for row in rows:
        of_row = values
        for part in row[: length - 1]:
            of_row = of_row.setdefault(part, {})
        of_row[str(row[length - 1])] = [
            _since_1970(value) if isinstance(value, datetime) else value for value in row[length:]
        ]
    return {"values": orjson.dumps(values).decode(), **values_of("own", [row[:length] for row in rows])}


def has_extremes(table: Table, columns: Sequence[Sequence[Any]]) -> bool:
    """Whether the rows, given column by column, have a moment that asyncpg would write as an infinity."""
    moments = [column for of, column in zip(given_columns(table), columns, strict=True) if isinstance(of.type, Instant)]
    return any(map(_EXTREMES.intersection, moments))


@lru_cache(maxsize=256)
def insertion_of_records(table: Table, is_given: tuple[bool, ...]) -> Prepared:
    """Return PostgreSQL's statement that adds the records of its one parameter, which `keys()` makes.

    `is_given` says of each column whether the records have it.
    """
    given = {column.name: column.type for column in itertools.compress(given_columns(table), is_given)}
    rows = keys_table("postgresql", **given)
    if not is_in_buckets(table):
        return Prepared("postgresql", insert(table).from_select([*given], select(*rows.c)))
    bucket = bindparam(_BUCKET, type_=Integer())
    return Prepared("postgresql", insert(table).from_select([*given, _BUCKET], select(*rows.c, bucket)))


@lru_cache(maxsize=1_000)
def insertion_of_values(table: Table, is_shared: tuple[bool, ...], count: int, *, mark: str = "?") -> str:
    """Return the text of a statement that adds so many rows; `mark` begins a parameter, on PostgreSQL by `$`.

    The values that they share come first, of them the bucket, then each row's own.
    """
    names = [column.name for column in given_columns(table)]
    if is_in_buckets(table):
        names, is_shared = [_BUCKET, *names], (True, *is_shared)
    shared, own = itertools.count(1), itertools.count(1 + sum(is_shared))
    places = [next(shared) if is_one else None for is_one in is_shared]
    rows = ", ".join(
        f"({', '.join(f'{mark}{next(own) if place is None else place}' for place in places)})" for _ in range(count)
    )
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES {rows}"  # noqa: S608  # Our own names.
