"""What `tollgate verify` and `tollgate migrate` read: all meters in order, and the rows that no meter would lead to."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Table,
    Text,
    and_,
    exists,
    func,
    literal_column,
    select,
    tuple_,
    type_coerce,
)

from storage.alerts import alerts
from storage.api_keys import ApiKeyRow, api_keys
from storage.customers import customers
from storage.engine.statements import Prepared, in_bucket, is_in_buckets, keys, keys_table
from storage.engine.transactions import Reader
from storage.idempotency_keys import IdempotencyKeyRow, idempotency_keys
from storage.meters import ledger
from storage.meters.billing_meters import BillingMeterRow, billing_meters
from storage.meters.credit_grants import CreditGrantRow, credit_grants
from storage.meters.holds import HoldRow, holds
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow, ledger_entries
from storage.tenants import Environment

_METERS = select(*[billing_meters.c[name] for name in BillingMeterRow._fields]).order_by(billing_meters.c.id)


class CustomerNames(NamedTuple):
    """A customer's email and name, the columns by which it is found by them, and who made it."""

    id: str
    org_id: str
    environment: Environment
    created_by: str | None
    email: str
    name: str | None
    email_folded: str | None
    name_folded: str | None

    @property
    def found_by(self) -> dict[str, str | None]:
        """The columns that it is found by, as they are."""
        return {"email_folded": self.email_folded, "name_folded": self.name_folded}


class KeyHolder(NamedTuple):
    """Whose a key is, what it may do, and since when."""

    id: str
    org_id: str
    environment: Environment
    scopes: list[str]
    workspace_ids: list[str] | None
    created_at: datetime


class KeyWithOrigin(NamedTuple):
    """A key or session, with its parent and its customer where there are such."""

    key: ApiKeyRow
    parent: KeyHolder | None
    parent_expires_at: datetime | None
    is_parent_session: bool
    customer_tenant: tuple[str, Environment] | None

    @property
    def id(self) -> str:
        """The key's id."""
        return self.key.id


_parent = api_keys.alias("parent")
_KEYS = (
    select(
        *[api_keys.c[name] for name in ApiKeyRow._fields],
        *[_parent.c[name] for name in KeyHolder._fields],
        _parent.c.expires_at,
        _parent.c.parent_id.is_not(None),
        customers.c.org_id,
        customers.c.environment,
    )
    .outerjoin(_parent, _parent.c.id == api_keys.c.parent_id)
    .outerjoin(customers, customers.c.id == api_keys.c.customer_id)
    .order_by(api_keys.c.id)
)

_CUSTOMERS = select(*[customers.c[name] for name in CustomerNames._fields]).order_by(customers.c.id)

_usage = ledger_entries.alias("usage")

#: The voids together give back more than the usage entry took, or there is no such entry before them, of their day and
#: name.
_OVERVOIDED: Select[Any] = (
    select(ledger_entries.c.meter_id, ledger_entries.c.voids_seq)
    .outerjoin(
        _usage,
        (_usage.c.bucket == ledger_entries.c.bucket)
        & (_usage.c.meter_id == ledger_entries.c.meter_id)
        & (_usage.c.seq == ledger_entries.c.voids_seq)
        & (_usage.c.seq < ledger_entries.c.seq)
        & (_usage.c.kind == LedgerEntryKind.USAGE)
        & (_usage.c.day == ledger_entries.c.day)
        & (_usage.c.usage_name == ledger_entries.c.usage_name),
    )
    .where(ledger_entries.c.voids_seq.is_not(None))
    .group_by(ledger_entries.c.meter_id, ledger_entries.c.voids_seq)
    .having((func.sum(ledger_entries.c.amount) > func.max(_usage.c.amount)) | (func.count(_usage.c.seq) < func.count()))
)

#: The key named more than one entry of its kind.
_REPEATED: Select[Any] = (
    select(ledger_entries.c.meter_id, ledger_entries.c.kind, ledger_entries.c.key)
    .where(ledger_entries.c.key.is_not(None))
    .group_by(ledger_entries.c.meter_id, ledger_entries.c.kind, ledger_entries.c.key)
    .having(func.count() > 1)
)


#: The customer of the meter is another tenant's, or missing.
_STRANGERS: Select[Any] = (
    select(billing_meters.c.id, billing_meters.c.customer_id)
    .outerjoin(
        customers,
        (customers.c.id == billing_meters.c.customer_id)
        & (customers.c.org_id == billing_meters.c.org_id)
        & (customers.c.environment == billing_meters.c.environment),
    )
    .where(billing_meters.c.customer_id.is_not(None), customers.c.id.is_(None))
    .order_by(billing_meters.c.id)
)


_LOST_KEY = (
    idempotency_keys.c.org_id,
    type_coerce(idempotency_keys.c.environment, Text).label("environment"),
    *[idempotency_keys.c[name] for name in ("operation", "key", "result_id")],
)


def _is_of(table: Table) -> Any:
    """Return the condition that an idempotency key leads to the row, which is its tenant's."""
    return and_(
        table.c.id == idempotency_keys.c.result_id,
        table.c.org_id == idempotency_keys.c.org_id,
        table.c.environment == idempotency_keys.c.environment,
    )


def _has_made(operation: str, table: Table, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the condition that an idempotency key of the operation leads to a row, which was made under it."""
    was_made_then = table.c.created_at == idempotency_keys.c.created_at
    is_there = exists().where(_is_of(table), was_made_then, *conditions)
    return (idempotency_keys.c.operation == operation) & is_there


#: An idempotency key leads to nothing that was made under it, or is of no create that there is.
_LEADING_NOWHERE: Select[Any] = (
    select(*_LOST_KEY)
    .where(
        idempotency_keys.c.operation != "createBillingMeter",
        ~_has_made("createCustomer", customers, customers.c.idempotency_key == idempotency_keys.c.key),
        ~_has_made("createAlert", alerts),
    )
    .order_by(*idempotency_keys.primary_key.columns)
)

#: The idempotency keys of meters.
_OF_METERS: Select[Any] = (
    select(*_LOST_KEY)
    .where(idempotency_keys.c.operation == "createBillingMeter")
    .order_by(*idempotency_keys.primary_key.columns)
)

#: What names the meters that were made, and the keys under which.
_OPENED: Select[Any] = select(
    billing_meters.c.org_id,
    type_coerce(billing_meters.c.environment, Text),
    literal_column("'createBillingMeter'", Text),
    ledger_entries.c.key,
    billing_meters.c.id,
).join(
    ledger_entries,
    (ledger_entries.c.bucket == billing_meters.c.bucket)
    & (ledger_entries.c.meter_id == billing_meters.c.id)
    & (ledger_entries.c.seq == 1),
)

#: The customer was made under an idempotency key that does not lead to it.
_NOT_LED_TO: Select[Any] = (
    select(customers.c.id, customers.c.idempotency_key)
    .where(
        customers.c.idempotency_key.is_not(None),
        ~exists().where(
            _is_of(customers),
            idempotency_keys.c.operation == "createCustomer",
            idempotency_keys.c.key == customers.c.idempotency_key,
        ),
    )
    .order_by(customers.c.id)
)


async def meters_elsewhere(reader: Reader, buckets: Sequence[int], *, limit: int) -> list[BillingMeterRow]:
    """Return the meters that lie in none of the buckets."""
    rows = await reader.fetch(_METERS.where(billing_meters.c.bucket.not_in(buckets)).limit(limit))
    return [BillingMeterRow._make(row) for row in rows]


async def count_meters(reader: Reader) -> int:
    """Return how many meters there are, of all tenants."""
    row = await reader.fetch_one(select(func.count()).select_from(billing_meters))
    return int(row[0]) if row is not None else 0


async def meters_after(reader: Reader, meter_id: str, *, limit: int) -> Sequence[BillingMeterRow]:
    """Return the next meters of all tenants in the reader's bucket, in the order of their ids."""
    is_next = (billing_meters.c.bucket == reader.bucket) & (billing_meters.c.id > meter_id)
    rows = await reader.fetch(_METERS.where(is_next).limit(limit))
    return [BillingMeterRow._make(row) for row in rows]


async def next_seq(reader: Reader, meter_ids: Sequence[str], *, after: int) -> int | None:
    """Return the lowest number beyond that one which an entry of these meters has; None: there is none."""
    seq = ledger_entries.c.seq
    is_later = [ledger_entries.c.bucket == reader.bucket, ledger_entries.c.meter_id.in_(meter_ids), seq > after]
    row = await reader.fetch_one(select(func.min(seq)).where(*is_later))
    return row[0] if row is not None else None


async def customers_after(reader: Reader, customer_id: str, *, limit: int) -> Sequence[CustomerNames]:
    """Return the next customers of all tenants, in the order of their ids."""
    rows = await reader.fetch(_CUSTOMERS.where(customers.c.id > customer_id).limit(limit))
    return [CustomerNames._make(row) for row in rows]


async def keys_after(reader: Reader, key_id: str, *, limit: int) -> Sequence[KeyWithOrigin]:
    """Return the next keys and sessions of all tenants, in the order of their ids."""
    found = []
    for row in await reader.fetch(_KEYS.where(api_keys.c.id > key_id).limit(limit)):
        values = iter(row)
        key = ApiKeyRow._make([next(values) for _ in ApiKeyRow._fields])
        parent = [next(values) for _ in KeyHolder._fields]
        parent_expires_at, is_parent_session, *customer_tenant = values
        found.append(
            KeyWithOrigin(
                key,
                None if parent[0] is None else KeyHolder._make(parent),
                parent_expires_at,
                bool(is_parent_session),
                None if customer_tenant[0] is None else (customer_tenant[0], customer_tenant[1]),
            )
        )
    return found


@cache
def _key_holders(dialect: str) -> Prepared:
    wanted = keys_table(dialect, id=Text())
    columns = [api_keys.c[name] for name in KeyHolder._fields]
    return Prepared(
        dialect, select(*columns).join(wanted, (api_keys.c.id == wanted.c.id) & api_keys.c.parent_id.is_(None))
    )


async def key_holders(reader: Reader, key_ids: Iterable[str]) -> dict[str, KeyHolder]:
    """Return those of the keys of these ids that exist, without the sessions, by id."""
    rows = await reader.run(_key_holders(reader.dialect), keys([[key_id] for key_id in key_ids]))
    return {row.id: row for row in map(KeyHolder._make, rows)}


async def entries(reader: Reader, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], LedgerEntryRow]:
    """Return the entries of these (meter id, seq), of whatever tenants, by them."""
    found = await ledger.by_ranges(reader, [(meter_id, seq, seq) for meter_id, seq in wanted]) if wanted else []
    return {(entry.meter_id, entry.seq): entry for each in found for entry in each}


async def grants_of(reader: Reader, meter_ids: Sequence[str]) -> dict[str, list[CreditGrantRow]]:
    """Return all grants of each meter, by its id."""
    found: dict[str, list[CreditGrantRow]] = {meter_id: [] for meter_id in meter_ids}
    columns = [credit_grants.c[name] for name in CreditGrantRow._fields]
    is_of_one = [credit_grants.c.bucket == reader.bucket, credit_grants.c.meter_id.in_(meter_ids)]
    for values in await reader.fetch(select(*columns).where(*is_of_one)):
        row = CreditGrantRow._make(values)
        found[row.meter_id].append(row)
    return found


@cache
def _holds(dialect: str) -> Prepared:
    wanted = keys_table(dialect, meter_id=Text(), seq=BigInteger())
    columns = [holds.c[name] for name in HoldRow._fields]
    is_wanted = (holds.c.meter_id == wanted.c.meter_id) & (holds.c.seq == wanted.c.seq)
    return Prepared(dialect, select(*columns).join(wanted, in_bucket(holds) & is_wanted))


async def holds_by_seqs(reader: Reader, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], HoldRow]:
    """Return the holds of these (meter id, seq), whole, by them."""
    rows = await reader.run(_holds(reader.dialect), keys(wanted)) if wanted else []
    return {(row.meter_id, row.seq): row for row in map(HoldRow._make, rows)}


@cache
def _creations(dialect: str) -> Prepared:
    wanted = keys_table(dialect, **dict.fromkeys(("org_id", "environment", "operation", "key"), Text()))
    columns = [idempotency_keys.c[name] for name in IdempotencyKeyRow._fields]
    return Prepared(
        dialect, select(*columns).join(wanted, and_(*[idempotency_keys.c[each.name] == each for each in wanted.c]))
    )


async def creations(
    reader: Reader, operation: str, wanted: Sequence[tuple[str, Environment, str]]
) -> dict[tuple[str, Environment, str], IdempotencyKeyRow]:
    """Return what is remembered of these requests, by the (organization, environment, key) of each."""
    sought = keys([(org_id, environment, operation, key) for org_id, environment, key in wanted])
    rows = map(IdempotencyKeyRow._make, await reader.run(_creations(reader.dialect), sought))
    return {(row.org_id, row.environment, row.key): row for row in rows}


async def next_id(reader: Reader, table: Table, id_: str) -> str:
    """Return the id of the next row of the table, which there is."""
    is_later = [table.c.id > id_]
    if is_in_buckets(table):
        is_later.append(table.c.bucket == reader.bucket)
    row = await reader.fetch_one(select(func.min(table.c.id)).where(*is_later))
    assert row is not None  # noqa: S101  # An aggregate always has its row.
    return str(row[0])


async def strangers(reader: Reader, *, limit: int) -> list[tuple[str, str]]:
    """Return the (meter id, customer id) of meters whose customer is another tenant's, or missing."""
    return [(row.id, row.customer_id) for row in await reader.fetch(_STRANGERS.limit(limit))]


class LostKey(NamedTuple):
    """An idempotency key, and the id of what it leads to."""

    org_id: str
    environment: str
    operation: str
    key: str
    result_id: str


async def keys_leading_nowhere(reader: Reader, *, limit: int) -> list[LostKey]:
    """Return the idempotency keys that lead to nothing that was made under them."""
    lost = [LostKey._make(row) for row in await reader.fetch(_LEADING_NOWHERE.limit(limit))]
    key = idempotency_keys.primary_key.columns
    found = [LostKey._make(row) for row in await reader.fetch(_OF_METERS.limit(limit))]
    # Meters and what is made once for all do not lie together everywhere, so that no statement looks for what is not.
    while found and len(lost) < limit:
        ids = [each.result_id for each in found]
        opened = {LostKey._make(row) for row in await reader.fetch(_OPENED.where(billing_meters.c.id.in_(ids)))}
        lost += [each for each in found if each not in opened]
        is_next = tuple_(*key) > tuple_(*found[-1][:4])
        found = [LostKey._make(row) for row in await reader.fetch(_OF_METERS.where(is_next).limit(limit))]
    return sorted(lost)[:limit]


async def customers_not_led_to(reader: Reader, *, limit: int) -> list[tuple[str, str]]:
    """Return the (customer id, idempotency key) of customers to which the key that they were made by does not lead."""
    return [(row.id, row.idempotency_key) for row in await reader.fetch(_NOT_LED_TO.limit(limit))]


async def overvoided(reader: Reader, *, limit: int) -> list[tuple[str, int]]:
    """Return the (meter id, seq) of usage entries of which more is voided than they took, or that do not exist."""
    return [(row.meter_id, row.voids_seq) for row in await reader.fetch(_OVERVOIDED.limit(limit))]


async def repeated_keys(reader: Reader, *, limit: int) -> list[tuple[str, str, str]]:
    """Return the (meter id, kind, key) under which there is more than one entry."""
    return [(row.meter_id, row.kind, row.key) for row in await reader.fetch(_REPEATED.limit(limit))]


async def holds_that_nothing_makes(reader: Reader, *, limit: int) -> list[tuple[str, int]]:
    """Return the (meter id, seq) of holds without the entry that makes them."""
    return [(row.meter_id, row.seq) for row in await reader.fetch(_UNMADE.limit(limit))]


_UNMADE = select(holds.c.meter_id, holds.c.seq).where(
    ~exists().where(
        ledger_entries.c.bucket == holds.c.bucket,
        ledger_entries.c.meter_id == holds.c.meter_id,
        ledger_entries.c.seq == holds.c.seq,
        ledger_entries.c.kind == LedgerEntryKind.HOLD,
    )
)
