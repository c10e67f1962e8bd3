"""Reading whole tables a portion at a time, in the order of their keys, and writing them into another database."""

from collections.abc import AsyncIterator, Sequence
from datetime import date
from typing import Any

from sqlalchemy import Column, Date, Enum, Table, Text, bindparam, cast, func, select, tuple_, type_coerce

from storage.api_keys import api_keys
from storage.billing_meters import billing_meters
from storage.credit_grants import credit_grants
from storage.customers import customers
from storage.engine.database import Database
from storage.engine.failures import UNAVAILABLE
from storage.engine.statements import given_columns
from storage.engine.transactions import Reader
from storage.engine.types import Day, JsonText
from storage.holds import holds
from storage.idempotency_keys import idempotency_keys
from storage.ledger import ledger_entries
from storage.usage import usage_days

#: How many rows are held at once.
PORTION = 1_000

#: All tables in the order in which gateways lock them.
LOCKED = (billing_meters, customers, api_keys, idempotency_keys, usage_days, credit_grants, holds, ledger_entries)

#: A row's values in the order of the table's columns, but for the bucket; JSON as its text.
Values = tuple[Any, ...]


class CannotHold(Exception):
    """The database refuses rows that another one holds; the message names the table, and what the database said."""


async def count(reader: Reader, table: Table) -> int:
    """Return how many rows the table has."""
    row = await reader.fetch_one(select(func.count()).select_from(table))
    return int(row[0]) if row is not None else 0


async def portions(reader: Reader, table: Table) -> AsyncIterator[list[Values]]:
    """Return all rows of the table, in the order of its primary key, which both databases sort alike."""
    key, columns = list(table.primary_key.columns), given_columns(table)
    places = [columns.index(column) for column in key]
    first = select(*map(_plain, columns)).order_by(*key).limit(PORTION)
    after = first.where(tuple_(*key) > tuple_(*[_last(column, reader.dialect) for column in key]))
    rows: Sequence[Any] = await reader.fetch(first)
    while rows:
        yield [tuple(row) for row in rows]
        last = {column.name: rows[-1][place] for column, place in zip(key, places, strict=True)}
        rows = await reader.fetch(
            after, {name: str(each) if isinstance(each, date) else each for name, each in last.items()}
        )


def _last(column: Column[Any], dialect: str) -> Any:
    """Return the parameter for the column's value in the last row that was read."""
    if not isinstance(column.type, Day):
        return bindparam(column.name, type_=column.type)
    # As text, because the driver takes the first day and the last one there are for infinities.
    text = bindparam(column.name, type_=Text)
    return cast(text, Date) if dialect == "postgresql" else text


def _plain(column: Column[Any]) -> Any:
    """Return the column as both databases keep it: JSON to the last byte, and words that this release may not know."""
    return type_coerce(column, Text) if isinstance(column.type, JsonText | Enum) else column


async def insert(database: Database, table: Table, rows: Sequence[Values]) -> None:
    """Add the rows in one transaction. Raises `CannotHold` and `DatabaseUnavailable`."""
    try:
        await database.write(lambda writer: writer.insert_rows(table, rows))
    except UNAVAILABLE as error:
        raise CannotHold(f"{table.name}: {getattr(error, 'orig', None) or error}") from error
