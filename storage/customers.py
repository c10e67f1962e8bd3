"""Customers: the rows, and the statements that read and write them."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Select, Text, bindparam, exists, insert, select, update

from storage.database import Reader, Writer, keys, keys_table
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
    if workspace_ids is None:
        return statement
    return statement.where(
        exists().where(
            billing_meters.c.customer_id == customers.c.id, billing_meters.c.workspace_id.in_(workspace_ids)
        ),
    )


@cache
def _by_key(dialect: str, column: str) -> Select[Any]:
    wanted = keys_table(dialect, key=Text())
    return select(*_COLUMNS).join(wanted, customers.c[column] == wanted.c.key)


async def by_ids(
    reader: Reader,
    ids: Sequence[str],
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str] | None = None,
) -> dict[str, CustomerRow]:
    """Return the tenant's customers of these ids, by id."""
    statement = _tenant(_by_key(reader.dialect, "id"), org_id, environment, workspace_ids)
    rows = await reader.fetch(statement, keys(reader.dialect, [[id_] for id_ in ids]))
    return {row.id: CustomerRow._make(row) for row in rows}


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
    statement = _tenant(_by_key(reader.dialect, "external_id"), org_id, environment, workspace_ids)
    rows = await reader.fetch(statement, keys(reader.dialect, [[external_id] for external_id in external_ids]))
    return {row.external_id: CustomerRow._make(row) for row in rows}


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
