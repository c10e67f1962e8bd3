"""Reading whole tables a portion at a time, in the order of their keys, and writing them into another database."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import date
from functools import cache, partial
from typing import Any

from sqlalchemy import Column, Date, Enum, Table, Text, bindparam, cast, func, select, tuple_, type_coerce
from sqlalchemy import insert as sql_insert

from storage import ids
from storage.alerts import alerts
from storage.api_keys import api_keys
from storage.customers import customers
from storage.engine.buckets import Buckets
from storage.engine.database import Database
from storage.engine.failures import UNAVAILABLE
from storage.engine.statements import Prepared, given_columns, is_in_buckets, keys, keys_table
from storage.engine.transactions import Reader, Writer
from storage.engine.types import Day, JsonText
from storage.idempotency_keys import idempotency_keys
from storage.meters.auto_refills import auto_refill_requests, auto_refills
from storage.meters.billing_meters import MeterName, billing_meters
from storage.meters.credit_grants import credit_grants
from storage.meters.events import events
from storage.meters.holds import holds
from storage.meters.ledger import ledger_entries
from storage.meters.meter_alerts import meter_alerts
from storage.meters.usage import usage_days
from storage.meters.webhook_deliveries import webhook_deliveries
from storage.tables import owner_column
from storage.webhook_endpoints import webhook_endpoints

#: How many rows are held at once.
PORTION = 1_000

#: All tables in the order in which gateways lock them.
LOCKED = (
    billing_meters,
    customers,
    api_keys,
    idempotency_keys,
    usage_days,
    credit_grants,
    holds,
    auto_refills,
    auto_refill_requests,
    ledger_entries,
    events,
    meter_alerts,
    alerts,
    webhook_endpoints,
    webhook_deliveries,
)

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


async def insert(source: Reader, database: Database, table: Table, rows: Sequence[Values]) -> None:
    """Add rows of the source in one transaction, each to the bucket of its meter.

    Raises `CannotHold` and `DatabaseUnavailable`.
    """
    work: Callable[[Writer], Awaitable[object]]
    if database.buckets.is_one or not is_in_buckets(table):
        work = partial(Writer.insert_rows, table=table, rows=rows)
    else:
        buckets = await _buckets(source, database.buckets, table, rows)
        placed = keys([(*row, bucket) for row, bucket in zip(rows, buckets, strict=True)])
        work = partial(Writer.run, statement=_placing(table), parameters=placed)
    try:
        await database.write(work)
    except UNAVAILABLE as error:
        raise CannotHold(f"{table.name}: {getattr(error, 'orig', None) or error}") from error


async def _buckets(source: Reader, buckets: Buckets, table: Table, rows: Sequence[Values]) -> list[int]:
    """Return in which bucket each row is to lie, as the names of its meter say, or its webhook endpoint's id.

    A meter's id may be from before ids said it, so that it is not asked. A row without a meter gets the first bucket,
    where `verify` reports it as it does in the source.
    """
    columns = given_columns(table)
    if table is billing_meters:
        places = [columns.index(billing_meters.c[name]) for name in MeterName._fields]
        return [buckets.of_names([row[place] for place in places]) for row in rows]
    place = columns.index(owner_column(table))
    names = [_plain(billing_meters.c[name]) for name in MeterName._fields]
    is_meter = billing_meters.c.id.in_({row[place] for row in rows})
    found = {row[0]: row[1:] for row in await source.fetch(select(billing_meters.c.id, *names).where(is_meter))}
    return [
        buckets.of_names(found[row[place]])
        if row[place] in found
        else buckets.of_names([row[place]])
        if row[place].startswith(ids.WEBHOOK_ENDPOINT)
        else buckets.values[0]
        for row in rows
    ]


@cache
def _placing(table: Table) -> Prepared:
    """Return PostgreSQL's statement that adds rows, each with its bucket, which Citus brings there.

    `Writer.insert_in_bucket` gives the driver days, of which it takes the first and the last for infinities.
    """
    columns = [*given_columns(table), table.c.bucket]
    rows = keys_table("postgresql", **{column.name: column.type for column in columns})
    return Prepared("postgresql", sql_insert(table).from_select(columns, select(*rows.c)))
