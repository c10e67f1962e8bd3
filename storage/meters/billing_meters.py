"""Billing meters: the table, its rows, and the statements that read, lock and write them."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache, lru_cache
from itertools import compress
from operator import attrgetter, ne
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    ForeignKey,
    FromClause,
    Index,
    Integer,
    Select,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    false,
    insert,
    select,
    text,
    true,
)

from storage.engine.pages import Page, page_statement, unindexed
from storage.engine.statements import Lookup, Prepared, in_bucket, keys, keys_table
from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, Name, enum_type, metadata
from storage.tenants import Environment

_HAS_DUE = text("next_due_at IS NOT NULL")

billing_meters = Table(
    "billing_meters",
    metadata,
    Column("id", Name, primary_key=True),
    Column("org_id", Name, nullable=False),
    Column("environment", enum_type(Environment), nullable=False),
    Column("workspace_id", Name, nullable=False),
    Column("external_meter_id", Name, nullable=False),
    Column("customer_id", Name, ForeignKey("customers.id")),
    Column("timezone", Text, nullable=False),
    Column("total_credits", BigInteger, nullable=False),
    Column("used_credits", BigInteger, nullable=False),
    Column("allow_overages", Boolean, nullable=False),
    Column("spend_cap", BigInteger),
    # The most that `used_credits` may become by REJECT and PARTIAL; null: no limit. Written whenever its inputs change
    # and never computed in SQL, where the sum overflows on PostgreSQL and becomes a float on SQLite.
    Column("limit_credits", BigInteger),
    # The number of the meter's newest ledger entry.
    Column("last_seq", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    # How many binary digits the available credits have; null: no limit. It stands in an index for them, because it
    # changes so seldom: an index of the credits themselves would be written by every debit, which on PostgreSQL could
    # then no longer leave all indexes alone (HOT). Null or too great in rows that a release before 2026_11_21_filters
    # has written since.
    Column("available_bits", SmallInteger),
    # What open holds reserve, and how much of it is credits: the rest is overage.
    Column("held_credits", BigInteger, nullable=False, server_default="0"),
    Column("pinned_credits", BigInteger, nullable=False, server_default="0"),
    Column("open_holds", Integer, nullable=False, server_default="0"),
    # The most open holds at once; null: as many as the operator allows.
    Column("max_open_holds", Integer),
    # Whether it has ever had a grant or a hold: else neither is looked for.
    Column("has_grants", Boolean, nullable=False, server_default=false()),
    Column("has_holds", Boolean, nullable=False, server_default=false()),
    # When a grant or a hold ends at the earliest, or time makes something else happen, or before; null: none ever does.
    Column("next_due_at", Instant),
    # The number of its newest event.
    Column("last_event", BigInteger, nullable=False, server_default="0"),
    # Whether it has ever had an alert, or an automatic refill: else neither is looked for.
    Column("has_alerts", Boolean, nullable=False, server_default=false()),
    Column("has_auto_refill", Boolean, nullable=False, server_default=false()),
    # Where it lies on a database of several machines, with all that is of it; 0 on any other.
    Column("bucket", Integer, nullable=False, server_default="0"),
    # Serves the lookup by the caller's names.
    UniqueConstraint("org_id", "environment", "workspace_id", "external_meter_id", name="billing_meters_names_key"),
    # Serves the list of meters, newest first.
    Index(None, "org_id", "environment", "id"),
    # Serves a customer's meters, newest first.
    Index(None, "customer_id", "id"),
    # Serves a workspace's meters, newest first.
    Index(None, "org_id", "environment", "workspace_id", "id"),
    # Serves the meters of which few credits are available.
    Index(None, "org_id", "environment", "available_bits", "id"),
    # Serves the search for what is due.
    Index(None, "next_due_at", sqlite_where=_HAS_DUE, postgresql_where=_HAS_DUE),
)


class MeterName(NamedTuple):
    """What names a meter: its tenant, and the caller's two names. It never changes."""

    org_id: str
    environment: Environment
    workspace_id: str
    external_meter_id: str


class BillingMeterRow(NamedTuple):
    """One pool of prepaid credits. Amounts are credits, 0 to 2**63 - 1."""

    id: str
    org_id: str
    environment: Environment
    workspace_id: str
    external_meter_id: str
    customer_id: str | None
    timezone: str
    total_credits: int
    used_credits: int
    allow_overages: bool
    spend_cap: int | None
    limit_credits: int | None
    available_bits: int | None
    last_seq: int
    created_at: datetime
    updated_at: datetime
    held_credits: int = 0
    pinned_credits: int = 0
    open_holds: int = 0
    max_open_holds: int | None = None
    has_grants: bool = False
    has_holds: bool = False
    next_due_at: datetime | None = None
    last_event: int = 0
    has_alerts: bool = False
    has_auto_refill: bool = False

    @property
    def full_name(self) -> MeterName:
        """What names it."""
        return MeterName(self.org_id, self.environment, self.workspace_id, self.external_meter_id)

    def is_due(self, now: datetime) -> bool:
        """Whether time may have made something happen that is not written."""
        return self.next_due_at is not None and self.next_due_at <= now

    def may_owe(self, now: datetime) -> bool:
        """Whether the end of a grant or a hold may have to be booked."""
        return self.is_due(now) and (self.has_grants or self.has_holds)


_COLUMNS = [billing_meters.c[name] for name in BillingMeterRow._fields]

#: What is fixed when a meter is made.
FIXED = frozenset(("id", *MeterName._fields, "timezone", "created_at"))

_IN_INDEXES = frozenset(column.name for index in billing_meters.indexes for column in index.columns)
_IS_IN_INDEX = tuple(name in _IN_INDEXES - FIXED for name in BillingMeterRow._fields)


_NAME_COLUMNS = [billing_meters.c[name] for name in MeterName._fields]


@cache
def _by_ids(dialect: str) -> Lookup:
    # The tenant is among the keys: with a constant tenant, SQLite would rather read all its meters than look some up.
    meters = billing_meters.c
    return Lookup(dialect, select(*_COLUMNS), meters.org_id, meters.environment, meters.id)


@cache
def _by_names(dialect: str) -> Lookup:
    return Lookup(dialect, select(*_COLUMNS), *_NAME_COLUMNS)


@cache
def _ids_by_names(dialect: str) -> Lookup:
    return Lookup(dialect, select(*_NAME_COLUMNS, billing_meters.c.id), *_NAME_COLUMNS)


@cache
def _locked_by_names(dialect: str) -> Lookup:
    return Lookup(dialect, select(*_COLUMNS).with_for_update(of=billing_meters), *_NAME_COLUMNS)


@cache
def _locked_by_ids(dialect: str, *, skip_locked: bool) -> Lookup:
    # Locked in the order of their ids, so that no two transactions wait for each other.
    ordered = select(*_COLUMNS).order_by(billing_meters.c.id)
    return Lookup(dialect, ordered.with_for_update(of=billing_meters, skip_locked=skip_locked), billing_meters.c.id)


async def by_ids(
    reader: Reader, ids: Sequence[str], *, org_id: str, environment: Environment, workspace_ids: Sequence[str] | None
) -> dict[str, BillingMeterRow]:
    """Return the tenant's meters of these ids, by id."""
    wanted = [(org_id, environment, id_) for id_ in ids]
    rows = map(BillingMeterRow._make, await reader.look_up(_by_ids(reader.dialect), wanted))
    return {row.id: row for row in rows if workspace_ids is None or row.workspace_id in workspace_ids}


async def by_names(
    reader: Reader, names: Sequence[tuple[str, str]], *, org_id: str, environment: Environment
) -> dict[tuple[str, str], BillingMeterRow]:
    """Return the tenant's meters of these (workspace id, external meter id), by them."""
    wanted = [(org_id, environment, *name) for name in names]
    rows = map(BillingMeterRow._make, await reader.look_up(_by_names(reader.dialect), wanted))
    return {(row.workspace_id, row.external_meter_id): row for row in rows}


async def ids_by_names(reader: Reader, names: Sequence[MeterName]) -> dict[MeterName, str]:
    """Return the ids of the meters that these name, of whatever tenants, by name."""
    rows = await reader.look_up(_ids_by_names(reader.dialect), names)
    return {MeterName(org_id, Environment(environment), *name): id_ for org_id, environment, *name, id_ in rows}


async def buckets_of(reader: Reader, ids: Sequence[str]) -> dict[str, int]:
    """Return where the meters of these ids lie, by id; it asks every machine."""
    statement = select(billing_meters.c.id, billing_meters.c.bucket).where(billing_meters.c.id.in_(ids))
    return {row.id: row.bucket for row in await reader.fetch(statement)}


@cache
def _due(dialect: str) -> Prepared:
    names = [billing_meters.c[name] for name in MeterName._fields]
    due = billing_meters.c.next_due_at
    statement = select(*names).where(due <= bindparam("now", type_=due.type)).order_by(due)
    return Prepared(dialect, statement.limit(bindparam("limit", type_=Integer())))


async def due(reader: Reader, now: datetime, *, limit: int) -> list[MeterName]:
    """Return the names of so many meters of which something is due, of whatever tenants, the longest overdue first."""
    moment = now.isoformat() if reader.dialect == "sqlite" else now
    rows = await reader.run(_due(reader.dialect), {"now": moment, "limit": limit})
    return [MeterName(org_id, Environment(environment), *name) for org_id, environment, *name in rows]


class MeterFilter(NamedTuple):
    """Which meters to list; None restricts nothing.

    `available_below` keeps the meters with a limit of which fewer credits than this are available; it is positive.
    """

    workspace_id: str | None = None
    customer_id: str | None = None
    available_below: int | None = None


_ALL = MeterFilter()


async def page(
    reader: Reader,
    page: Page,
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str] | None,
    wanted: MeterFilter = _ALL,
) -> list[BillingMeterRow]:
    """Return one page of the tenant's meters, and one more row where there is one.

    They are of these workspaces, unless the filter names one of them. None: of all.
    """
    dialect, customer_id, available_below = reader.dialect, wanted.customer_id, wanted.available_below
    if wanted.workspace_id is not None:
        workspace_ids = (wanted.workspace_id,)
    if workspace_ids is None and wanted == _ALL:
        values = {"org_id": org_id, "environment": environment.value} | page.parameters
        return list(map(BillingMeterRow._make, await reader.run(_page(dialect, page.shape), values)))
    statement = select(*_COLUMNS)
    if customer_id is not None:
        # By the index of (customer, id), so not by one that begins with the tenant.
        tenant = [unindexed(billing_meters.c[name], dialect) for name in ("org_id", "environment")]
        statement = statement.where(billing_meters.c.customer_id == customer_id)
    else:
        # By the index of (tenant, id), or of (tenant, workspace, id).
        tenant = [billing_meters.c.org_id, billing_meters.c.environment]
    statement = statement.where(tenant[0] == org_id, tenant[1] == environment)
    is_sorted = customer_id is not None or available_below is None
    if workspace_ids is not None:
        workspace = billing_meters.c.workspace_id
        statement = statement.where((workspace if is_sorted else unindexed(workspace, dialect)).in_(workspace_ids))
    if available_below is not None:
        # By the index of (tenant, available bits, id), whose rows are then sorted. The condition of the index lets some
        # pass that have up to twice as much; the exact one does not.
        bits = billing_meters.c.available_bits
        statement = statement.where(
            (unindexed(bits, dialect) if is_sorted else bits) <= (available_below - 1).bit_length(),
            billing_meters.c.limit_credits - billing_meters.c.used_credits - billing_meters.c.held_credits
            < available_below,
        )
    by_id = billing_meters.c.id if is_sorted else unindexed(billing_meters.c.id, dialect)
    rows = await reader.fetch(page_statement(statement, by_id, page), page.parameters)
    return list(map(BillingMeterRow._make, rows))


@lru_cache(maxsize=256)
def _page(dialect: str, page: Page) -> Prepared:
    tenant = [billing_meters.c[name] == bindparam(name, type_=Text()) for name in ("org_id", "environment")]
    return Prepared(dialect, page_statement(select(*_COLUMNS).where(*tenant), billing_meters.c.id, page))


async def pages_by_customers(
    reader: Reader, customer_ids: Sequence[str], page: Page, *, workspace_ids: Sequence[str] | None
) -> dict[str, list[BillingMeterRow]]:
    """Return one page of the meters of each customer, and one more row where there is one, by customer id."""
    wanted = keys([[customer_id] for customer_id in customer_ids]) | page.parameters
    rows: Iterable[Sequence[Any]]
    if workspace_ids is None:
        rows = await reader.run(_all_pages_by_customers(reader.dialect, page.shape), wanted)
    else:
        wanted |= {"bucket": reader.bucket}
        rows = await reader.fetch(_pages_by_customers(reader.dialect, page, workspace_ids), wanted)
    found: dict[str, list[BillingMeterRow]] = {customer_id: [] for customer_id in customer_ids}
    for row in sorted(map(BillingMeterRow._make, rows), key=_id, reverse=not page.backward):
        assert row.customer_id is not None  # noqa: S101  # The rows are those of the customers asked for.
        found[row.customer_id].append(row)
    return found


_id = attrgetter("id")


def _pages_by_customers(dialect: str, page: Page, workspace_ids: Sequence[str] | None) -> Select[Any]:
    """Return the statement of a page for each customer, which reads no more meters than are on the pages."""
    wanted = keys_table(dialect, customer_id=Text())

    def of_customer(meters: FromClause, *columns: ColumnElement[Any]) -> Select[Any]:
        some = select(*columns).where(in_bucket(meters), meters.c.customer_id == wanted.c.customer_id)
        some = some.correlate(wanted)
        if workspace_ids is not None:
            some = some.where(meters.c.workspace_id.in_(workspace_ids))
        return page_statement(some, meters.c.id, page)

    if dialect == "postgresql":
        each = of_customer(billing_meters, *_COLUMNS).lateral()
        return select(*each.c).select_from(wanted).join(each, true())
    # SQLite joins a table with no rows that hang on the table, but it looks up ids that do.
    meters = billing_meters.alias("of_customer")
    is_on_page = in_bucket(billing_meters) & billing_meters.c.id.in_(of_customer(meters, meters.c.id))
    return select(*_COLUMNS).select_from(wanted).join(billing_meters, is_on_page)


@lru_cache(maxsize=256)
def _all_pages_by_customers(dialect: str, page: Page) -> Prepared:
    return Prepared(dialect, _pages_by_customers(dialect, page, None))


async def lock(writer: Writer, ids: Sequence[str], *, skip_locked: bool = False) -> dict[str, BillingMeterRow]:
    """Lock the meters of these ids until the transaction ends, and return them as they then are, by id.

    With `skip_locked`, those that another transaction holds are left out; otherwise it waits for them.
    """
    statement = _locked_by_ids(writer.dialect, skip_locked=skip_locked)
    rows = await writer.look_up(statement, [(id_,) for id_ in ids])
    return {row.id: row for row in map(BillingMeterRow._make, rows)}


async def lock_by_name(writer: Writer, name: MeterName) -> BillingMeterRow | None:
    """Lock the meter of this name until the transaction ends, and return it as it then is."""
    rows = await writer.look_up(_locked_by_names(writer.dialect), [name])
    return BillingMeterRow._make(rows[0]) if rows else None


async def insert_meter(writer: Writer, row: BillingMeterRow) -> None:
    """Write a new meter."""
    await writer.execute(insert(billing_meters), row._asdict() | {"bucket": writer.bucket})


async def update_meters(writer: Writer, changes: Sequence[tuple[BillingMeterRow, BillingMeterRow]]) -> None:
    """Write what changes of meters, each given as the transaction has locked it and as it is to be.

    A statement names the columns that change of any of its meters. There are two, as SQLite writes an index again
    where one of its columns is named, changed or not.
    """
    changed = [(tuple(map(ne, before, after)), after) for before, after in changes]
    for is_moved in (False, True):
        part = [each for each in changed if any(compress(each[0], _IS_IN_INDEX)) is is_moved]
        is_changed = map(any, zip(*{of_row for of_row, _ in part}, strict=True))
        names = tuple(compress(BillingMeterRow._fields, is_changed))
        if names:
            values = map(attrgetter("id", *names), [row for _, row in part])
            await writer.update_rows(billing_meters, names, list(values))
