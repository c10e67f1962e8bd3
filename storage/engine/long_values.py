"""JSON values that may be long: pages have the short ones, and the long ones are read where they are asked for.

Ten thousand rows with 16 KiB each would take gigabytes once they are parsed, though only their ids were asked for.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Table,
    Text,
    and_,
    case,
    cast,
    func,
    literal_column,
    select,
    type_coerce,
)

from storage.engine.statements import Prepared, in_bucket, is_in_buckets, keys, keys_table
from storage.engine.transactions import Reader
from storage.engine.types import JsonText

#: The maximum number of characters of a value that is read with its row.
MAX_SHORT = 512


def page_columns(table: Table, names: Sequence[str]) -> list[ColumnElement[Any]]:
    """Return the columns of these names as pages read them: of JSON that is long, the number of its characters."""
    columns = [table.c[name] for name in names]
    return [_unless_long(column) if isinstance(column.type, JsonText) else column for column in columns]


def _unless_long(column: Column[Any]) -> ColumnElement[Any]:
    length = func.length(type_coerce(column, Text))
    text = case((length > literal_column(str(MAX_SHORT)), cast(length, Text)), else_=type_coerce(column, Text))
    return type_coerce(text, JsonText).label(column.name)


def length_left_out(value: Any) -> int:
    """Return how many characters the value has that a page has left out; 0 where the page has it."""
    # None of the values themselves is a number.
    return value if type(value) is int else 0


async def json_values(
    reader: Reader, column: Column[Any], wanted: Sequence[tuple[Any, ...]]
) -> dict[tuple[Any, ...], Any]:
    """Return a column's values, the long ones too, of the rows of these primary keys, by them.

    Whose the rows are is the caller's to check.
    """
    rows = await reader.run(_values(reader.dialect, column), keys(wanted))
    return {tuple(key): value for *key, value in rows}


@cache
def _values(dialect: str, column: Column[Any]) -> Prepared:
    key = [*column.table.primary_key.columns]
    types = {each.name: BigInteger() if isinstance(each.type, BigInteger) else Text() for each in key}
    wanted = keys_table(dialect, **types)
    are_equal = [each == wanted.c[each.name] for each in key]
    if is_in_buckets(column.table):
        are_equal.append(in_bucket(column.table))
    return Prepared(dialect, select(*key, column).join(wanted, and_(*are_equal)))
