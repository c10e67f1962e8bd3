"""Customers: the rows, and the statements that read and write them."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Select, Text, bindparam, exists, insert, select, update

from storage.database import Prepared, Reader, Writer, keys, keys_table
from storage.pages import Page, page_statement
from storage.tables import Environment, billing_meters, customers


class CustomerRow(NamedTuple):
    """The person or organization who pays."""

    id: str
    org_id: str
    environment: Environment
    email: str
    name: str | None
    external_id: str | None
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime


_COLUMNS = [customers.c[name] for name in CustomerRow._fields]


def _tenant(
    statement: Select[Any], org_id: str, environment: Environment, workspace_ids: Sequence[str] | None
) -> Select[Any]:
    """Keep a tenant's customers; where workspaces are given, those that have a meter in one of them."""
    statement = statement.where(customers.c.org_id == org_id, customers.c.environment == environment)
    return statement if workspace_ids is None else _in_workspaces(statement, workspace_ids)


def _in_workspaces(statement: Select[Any], workspace_ids: Sequence[str]) -> Select[Any]:
    return statement.where(
        exists().where(
            billing_meters.c.customer_id == customers.c.id, billing_meters.c.workspace_id.in_(workspace_ids)
        ),
    )


@cache
def _by_key(dialect: str, column: str) -> Select[Any]:
    # The tenant is among the keys: with a constant one, SQLite would rather read all its customers than look some up.
    wanted = keys_table(dialect, org_id=Text(), environment=Text(), key=Text())
    return select(*_COLUMNS).join(
        wanted,
        (customers.c[column] == wanted.c.key)
        & (customers.c.org_id == wanted.c.org_id)
        & (customers.c.environment == wanted.c.environment),
    )


@cache
def _prepared_by_key(dialect: str, column: str) -> Prepared:
    return Prepared(dialect, _by_key(dialect, column))


async def _found(
    reader: Reader,
    column: str,
    values: Sequence[str],
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str] | None,
) -> Iterable[CustomerRow]:
    wanted = keys(reader.dialect, [(org_id, environment, value) for value in values])
    if workspace_ids is None:
        return map(CustomerRow._make, await reader.run(_prepared_by_key(reader.dialect, column), wanted))
    statement = _in_workspaces(_by_key(reader.dialect, column), workspace_ids)
    return map(CustomerRow._make, await reader.fetch(statement, wanted))


async def by_ids(
    reader: Reader,
    ids: Sequence[str],
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str] | None = None,
) -> dict[str, CustomerRow]:
    """Return the tenant's customers of these ids, by id."""
    rows = await _found(reader, "id", ids, org_id=org_id, environment=environment, workspace_ids=workspace_ids)
    return {row.id: row for row in rows}


async def lock(
    writer: Writer, customer_id: str, *, org_id: str, environment: Environment, workspace_ids: Sequence[str] | None
) -> CustomerRow | None:
    """Lock the tenant's customer of this id until the transaction ends, and return it as it then is."""
    statement = _tenant(select(*_COLUMNS).where(customers.c.id == customer_id), org_id, environment, workspace_ids)
    row = await writer.fetch_one(statement.with_for_update(of=customers))
    return CustomerRow._make(row) if row is not None else None


async def by_external_ids(
    reader: Reader,
    external_ids: Sequence[str],
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str] | None = None,
) -> dict[str, CustomerRow]:
    """Return the tenant's customers of these external ids, by external id."""
    rows = await _found(
        reader, "external_id", external_ids, org_id=org_id, environment=environment, workspace_ids=workspace_ids
    )
    return {row.external_id or "": row for row in rows}


async def page(
    reader: Reader, page: Page, *, org_id: str, environment: Environment, workspace_ids: Sequence[str] | None
) -> list[CustomerRow]:
    """Return one page of the tenant's customers, and one more row where there is one."""
    statement = _tenant(select(*_COLUMNS), org_id, environment, workspace_ids)
    rows = await reader.fetch(page_statement(statement, customers.c.id, page))
    return [CustomerRow._make(row) for row in rows]


async def has_meters(reader: Reader, customer_id: str) -> bool:
    """Whether any meter, in any workspace, bills the customer."""
    statement = select(billing_meters.c.id).where(billing_meters.c.customer_id == customer_id).limit(1)
    return await reader.fetch_one(statement) is not None


async def insert_customer(writer: Writer, row: CustomerRow) -> None:
    """Write a new customer."""
    await writer.execute(insert(customers), row._asdict())


async def update_customer(writer: Writer, row: CustomerRow) -> None:
    """Write what may change of a customer."""
    changed = {name: getattr(row, name) for name in ("email", "name", "external_id", "metadata", "updated_at")}
    await writer.execute(
        update(customers).where(customers.c.id == bindparam("customer_id")).values(changed), {"customer_id": row.id}
    )
