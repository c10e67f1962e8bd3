"""Customers: the table, its rows, and the statements that read and write them."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Index,
    Select,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    exists,
    insert,
    or_,
    select,
    update,
)

from storage.engine.long_values import page_columns
from storage.engine.pages import Page, page_statement, unindexed
from storage.engine.statements import Prepared, keys, keys_table
from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, JsonText, Name, enum_type, metadata
from storage.meters.billing_meters import billing_meters
from storage.tenants import Environment

customers = Table(
    "customers",
    metadata,
    Column("id", Name, primary_key=True),
    Column("org_id", Name, nullable=False),
    Column("environment", enum_type(Environment), nullable=False),
    Column("email", Text, nullable=False),
    Column("name", Text),
    Column("external_id", Name),
    Column("metadata", JsonText, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    # The email and the name without regard to case, as Python folds it: neither database does so beyond ASCII by
    # itself. Null in rows that a release before 2026_11_21_filters has written since.
    Column("email_folded", Name),
    Column("name_folded", Name),
    # The id of the key that made the customer. Null in rows that a release before 2026_11_26_makers_of_customers has
    # written.
    Column("created_by", Name),
    # The idempotency key of the request that made it: the row of `idempotency_keys` can then be missed.
    Column("idempotency_key", Name),
    # Serves the lookup by external id, and the list by its beginning; where it is null, rows do not collide.
    UniqueConstraint("org_id", "environment", "external_id"),
    # Serves the list of customers, newest first.
    Index(None, "org_id", "environment", "id"),
    # Serves the list by email, newest first.
    Index(None, "org_id", "environment", "email_folded", "id"),
    # Serves the list by the beginning of the name.
    Index(None, "org_id", "environment", "name_folded"),
    # Serves the list by the time of making.
    Index(None, "org_id", "environment", "created_at"),
)


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


class CustomerFilter(NamedTuple):
    """Which customers to list; None does not restrict them. The email and the name are compared without regard to case.

    `created_from` belongs to the range, `created_before` does not.
    """

    email: str | None = None
    external_id_prefix: str | None = None
    name_prefix: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None


_COLUMNS = [customers.c[name] for name in CustomerRow._fields]
_PAGE_COLUMNS = page_columns(customers, CustomerRow._fields)


def folded(text: str) -> str:
    """Return the text as it is compared where case does not matter: Unicode's full folding, a character at a time.

    So the folded beginning of a text is the beginning of the folded text.
    """
    return text.casefold()


def found_by(email: str, name: str | None) -> dict[str, str | None]:
    """Return the columns that a customer of this email and name is found by."""
    return {"email_folded": folded(email), "name_folded": None if name is None else folded(name)}


#: No text has the code points from the first of these to before the second: they are halves of UTF-16's pairs.
_SURROGATES, _AFTER_SURROGATES = 0xD800, 0xE000


def past_prefix(prefix: str) -> str | None:
    """Return the least text that is greater than every text with this prefix, or None if there is none."""
    for place in reversed(range(len(prefix))):
        code = ord(prefix[place])
        # Nothing comes after the greatest code point, so the one before it moves on.
        if code < sys.maxunicode:
            return prefix[:place] + chr(_AFTER_SURROGATES if code + 1 == _SURROGATES else code + 1)
    return None


def _begins(column: ColumnElement[Any], prefix: str) -> list[ColumnElement[bool]]:
    """Return the conditions that keep the texts with this prefix: a range, which an index serves on both databases."""
    end = past_prefix(prefix)
    return [column >= prefix] if end is None else [column >= prefix, column < end]


def _filtered(statement: Select[Any], wanted: CustomerFilter, page: Page, dialect: str) -> Select[Any]:
    """Keep the customers that the filter wants, of this page. SQLite goes by the index of the first part given."""

    def leading(column: ColumnElement[Any], *before: object) -> ColumnElement[Any]:
        return column if all(part is None for part in before) else unindexed(column, dialect)

    if wanted.email is not None:
        # By the index of (tenant, folded email, id).
        statement = statement.where(customers.c.email_folded == folded(wanted.email))
    if wanted.external_id_prefix is not None:
        # By the index of (tenant, external id).
        column = leading(customers.c.external_id, wanted.email)
        statement = statement.where(*_begins(column, wanted.external_id_prefix))
    if wanted.name_prefix is not None:
        # By the index of (tenant, folded name).
        column = leading(customers.c.name_folded, wanted.email, wanted.external_id_prefix)
        statement = statement.where(*_begins(column, folded(wanted.name_prefix)))
    # By the index of (tenant, time of making).
    column = leading(customers.c.created_at, *wanted[:3])
    if wanted.created_from is not None:
        statement = statement.where(column >= wanted.created_from)
    if wanted.created_before is not None:
        statement = statement.where(column < wanted.created_before)
    # One email's customers lie in the order of their ids; those of a range are sorted.
    is_sorted = wanted.email is not None or wanted == CustomerFilter()
    return page_statement(statement, customers.c.id if is_sorted else unindexed(customers.c.id, dialect), page)


def _tenant(statement: Select[Any], org_id: str, environment: Environment) -> Select[Any]:
    """Keep a tenant's customers."""
    return statement.where(customers.c.org_id == org_id, customers.c.environment == environment)


def _has_meter_in(
    dialect: str,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
) -> ColumnElement[bool]:
    """Return the condition that the tenant's customer has a meter in one of the workspaces.

    `ids` are those of the customers that are looked up, where they are known.
    """
    meters = billing_meters.c
    if dialect == "sqlite":
        # It would make a list of all such customers first.
        return exists().where(meters.customer_id == customers.c.id, meters.workspace_id.in_(workspace_ids))
    # Where meters lie on several servers, the condition must not name the customer that is looked at.
    found = select(meters.customer_id).where(
        meters.org_id == org_id, meters.environment == environment, meters.workspace_id.in_(workspace_ids)
    )
    return customers.c.id.in_(found if ids is None else found.where(meters.customer_id.in_(ids)))


@cache
def _by_key(dialect: str, column: str) -> Select[Any]:
    # The tenant is among the keys: with a constant one, SQLite would rather read all its customers than look some up.
    wanted = keys_table(dialect, org_id=Text(), environment=Text(), key=Text())
    return select(*_PAGE_COLUMNS).join(
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
    wanted = keys([(org_id, environment, value) for value in values])
    if workspace_ids is None:
        return map(CustomerRow._make, await reader.run(_prepared_by_key(reader.dialect, column), wanted))
    ids = values if column == "id" else None
    has_meter = _has_meter_in(reader.dialect, org_id, environment, workspace_ids, ids=ids)
    return map(CustomerRow._make, await reader.fetch(_by_key(reader.dialect, column).where(has_meter), wanted))


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


async def within_reach(
    reader: Reader,
    customer_id: str,
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str] | None,
    key_id: str,
) -> CustomerRow | None:
    """Return the tenant's customer of this id; where workspaces are given, if it has a meter in one or the key made it.

    It is one statement whether there is such a customer or not, so the time that it takes does not show which.
    """
    statement = _tenant(select(*_COLUMNS).where(customers.c.id == customer_id), org_id, environment)
    if workspace_ids is not None:
        has_meter = _has_meter_in(reader.dialect, org_id, environment, workspace_ids, ids=[customer_id])
        statement = statement.where(or_(customers.c.created_by == key_id, has_meter))
    row = await reader.fetch_one(statement)
    return CustomerRow._make(row) if row is not None else None


async def lock(
    writer: Writer, customer_id: str, *, org_id: str, environment: Environment, workspace_ids: Sequence[str] | None
) -> CustomerRow | None:
    """Lock the tenant's customer of this id until the transaction ends, and return it as it then is.

    A meter may be given to the customer meanwhile, which holds a weaker lock on it.
    """
    if workspace_ids is not None:
        # By a statement of its own: Citus locks no row by a condition on meters, which lie elsewhere.
        await writer.go_one_by_one()
        tenant: dict[str, Any] = {"org_id": org_id, "environment": environment, "workspace_ids": workspace_ids}
        if not await by_ids(writer, [customer_id], **tenant):
            return None
    statement = _tenant(select(*_COLUMNS).where(customers.c.id == customer_id), org_id, environment)
    row = await writer.fetch_one(statement.with_for_update(of=customers, key_share=True))
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
    reader: Reader,
    page: Page,
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str] | None,
    wanted: CustomerFilter = CustomerFilter(),  # noqa: B008  # It does not change.
) -> list[CustomerRow]:
    """Return one page of those of the tenant's customers that are wanted, and one more row where there is one."""
    rows: Iterable[Sequence[Any]]
    if workspace_ids is None and wanted == CustomerFilter():
        tenant = {"org_id": org_id, "environment": environment.value}
        rows = await reader.run(_page(reader.dialect, page.shape), tenant | page.parameters)
    else:
        statement = _tenant(select(*_PAGE_COLUMNS), org_id, environment)
        if workspace_ids is not None:
            statement = statement.where(_has_meter_in(reader.dialect, org_id, environment, workspace_ids))
        rows = await reader.fetch(_filtered(statement, wanted, page, reader.dialect), page.parameters)
    return [CustomerRow._make(row) for row in rows]


@lru_cache(maxsize=256)
def _page(dialect: str, page: Page) -> Prepared:
    tenant = [customers.c[name] == bindparam(name, type_=Text()) for name in ("org_id", "environment")]
    return Prepared(dialect, page_statement(select(*_PAGE_COLUMNS).where(*tenant), customers.c.id, page))


async def insert_customer(
    writer: Writer, row: CustomerRow, *, created_by: str | None = None, idempotency_key: str | None = None
) -> None:
    """Write a new customer, the id of the key that made it, and the idempotency key of the request."""
    values = row._asdict() | found_by(row.email, row.name)
    values |= {"created_by": created_by, "idempotency_key": idempotency_key}
    await writer.execute(insert(customers), values)


async def repair_found_by(writer: Writer, ids: Sequence[str]) -> int:
    """Write the columns that these customers are found by anew, from what they are called; return how many were wrong.

    They are locked in the order of their ids.
    """
    names = (customers.c.id, customers.c.email, customers.c.name, customers.c.email_folded, customers.c.name_folded)
    locked = select(*names).where(customers.c.id.in_(ids)).order_by(customers.c.id).with_for_update(key_share=True)
    repaired = 0
    for row in await writer.fetch(locked):
        right = found_by(row.email, row.name)
        if right != {name: getattr(row, name) for name in right}:
            await writer.execute(update(customers).where(customers.c.id == row.id).values(right))
            repaired += 1
    return repaired


async def update_customer(writer: Writer, row: CustomerRow) -> None:
    """Write what may change of a customer."""
    changed = {name: getattr(row, name) for name in ("email", "name", "external_id", "metadata", "updated_at")}
    changed |= found_by(row.email, row.name)
    await writer.execute(
        update(customers).where(customers.c.id == bindparam("customer_id")).values(changed), {"customer_id": row.id}
    )
