"""Events: the outbox of what has happened to meters, written in the transactions that decide it."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Select,
    Table,
    Text,
    delete,
    select,
    text,
    tuple_,
)

from storage import ids
from storage.engine.pages import Page, on_page, page_statement, unindexed
from storage.engine.statements import Lookup, in_bucket
from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, Name, Word, enum_type, metadata
from storage.tenants import Environment


class EventType(Word):
    """What has happened, as receivers of events read it."""

    BILLING_METER_CREATED = "billing_meter.created"
    BILLING_METER_UPDATED = "billing_meter.updated"
    CREDIT_GRANT_CREATED = "credit_grant.created"
    CREDIT_GRANT_EXPIRED = "credit_grant.expired"
    CREDIT_GRANT_REVOKED = "credit_grant.revoked"
    HOLD_EXPIRED = "hold.expired"
    ALERT_TRIGGERED = "alert.triggered"
    ALERT_RECOVERED = "alert.recovered"
    REFILL_REQUESTED = "refill.requested"
    REFILL_FULFILLED = "refill.fulfilled"
    REFILL_FAILED = "refill.failed"
    REFILL_SUSPENDED = "refill.suspended"
    REFILL_CAPPED = "refill.capped"
    WEBHOOK_ENDPOINT_DISABLED = "webhook_endpoint.disabled"
    WEBHOOK_TEST = "webhook.test"


_IS_NEW = text("is_new")

# Partitioned and without a foreign key, as `ledger_entries` is, for the same reasons. An event is a meter's, or of a
# webhook endpoint, whose id then stands for the meter's.
events = Table(
    "events",
    metadata,
    Column("owner_id", Name, nullable=False),
    # 1, 2, 3 ... of its owner, given under the lock of the owner's row.
    Column("number", BigInteger, nullable=False),
    Column("org_id", Name, nullable=False),
    Column("environment", enum_type(Environment), nullable=False),
    # The meter's; null: it is of no meter.
    Column("workspace_id", Name),
    Column("type", Name, nullable=False),
    # The meter's newest ledger entry when it was decided: the one that it is about, if it is about one.
    Column("seq", BigInteger),
    # Of an alert's: which one.
    Column("alert_id", Name),
    Column("created_at", Instant, nullable=False),
    # Its place among all events of the tenant: see `ids.event_position`.
    Column("position", Name, nullable=False),
    # The body as it is sent: JSON, of which each byte is kept.
    Column("payload", Text, nullable=False),
    # Whether it has still to be given to the webhook endpoints.
    Column("is_new", Boolean, nullable=False),
    # Where it lies on a database of several machines, with all that is its meter's; 0 on any other.
    Column("bucket", Integer, nullable=False, server_default="0"),
    # Serves an event by its id.
    PrimaryKeyConstraint("owner_id", "number"),
    # Serves the events of a tenant, newest first, and those of one type.
    Index(None, "org_id", "environment", "position"),
    Index(None, "org_id", "environment", "type", "position"),
    # Serves the events of a meter, newest first.
    Index(None, "owner_id", "position"),
    # Serves the search for those that are old enough to be deleted.
    Index(None, "created_at"),
    # Serves the search for what is to be given to webhook endpoints.
    Index("events_new_idx", "owner_id", "number", sqlite_where=_IS_NEW, postgresql_where=_IS_NEW),
    postgresql_partition_by="HASH (owner_id)",
)


class EventRow(NamedTuple):
    """Something that has happened to a meter, or to a webhook endpoint, as `owner_id` says."""

    owner_id: str
    number: int
    org_id: str
    environment: Environment
    workspace_id: str | None
    type: EventType
    seq: int | None
    alert_id: str | None
    created_at: datetime
    position: str
    payload: str

    @property
    def id(self) -> str:
        """Its id, which webhooks have as theirs."""
        return ids.event_id(self.owner_id, self.number)


_COLUMNS = [events.c[name] for name in EventRow._fields]


def _event(row: Sequence[object]) -> EventRow:
    found = EventRow._make(row)
    return found._replace(type=EventType(found.type))


@cache
def _by_ids(dialect: str) -> Lookup:
    return Lookup(dialect, select(*_COLUMNS), events.c.owner_id, events.c.number)


async def insert_events(writer: Writer, rows: Sequence[EventRow]) -> None:
    """Write new events of owners that the transaction has locked or made."""
    await writer.insert_rows(events, [(*row, True) for row in rows])


async def by_ids(reader: Reader, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], EventRow]:
    """Return the events of these (owner's id, number), by them. Whose they are is the caller's to check."""
    rows = map(_event, await reader.look_up(_by_ids(reader.dialect), wanted))
    return {(row.owner_id, row.number): row for row in rows}


async def delete_some_before(writer: Writer, moment: datetime, *, limit: int) -> int:
    """Delete some of the events from before the moment, the oldest first, and return how many.

    Of two transactions that do so the second waits, so that no meter lacks an event that is newer than one it has.
    """
    key = (events.c.owner_id, events.c.number)
    is_old = (events.c.bucket == writer.bucket, events.c.created_at < moment)
    some = select(*key).where(*is_old).order_by(events.c.created_at, *key).limit(limit).with_for_update()
    found = [tuple(row) for row in await writer.fetch(some)]
    if found:
        await writer.execute(delete(events).where(events.c.bucket == writer.bucket, tuple_(*key).in_(found)))
    return len(found)


class EventFilter(NamedTuple):
    """Which events to list; None restricts nothing."""

    types: tuple[EventType, ...] | None = None
    owner_id: str | None = None


async def page(
    reader: Reader,
    page: Page,
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str] | None,
    wanted: EventFilter,
) -> list[EventRow]:
    """Return one page of the tenant's events, and one more row where there is one.

    They are of these workspaces alone, unless that is None. Of several types each one's page is read, by one index.
    """
    found: list[EventRow] = []
    for type_ in dict.fromkeys(wanted.types) if wanted.types is not None else (None,):
        statement = _filtered(reader.dialect, wanted.owner_id, type_).where(
            events.c.org_id == org_id, events.c.environment == environment
        )
        if workspace_ids is not None:
            statement = statement.where(unindexed(events.c.workspace_id, reader.dialect).in_(workspace_ids))
        values = page.parameters if wanted.owner_id is None else page.parameters | {"bucket": reader.bucket}
        rows = await reader.fetch(page_statement(statement, events.c.position, page), values)
        found += map(_event, rows)
    return on_page(page, found, attrgetter("position"))


def _filtered(dialect: str, owner_id: str | None, type_: EventType | None) -> Select[Any]:
    """Return the statement of a tenant's events, which goes by the index of the owner, or of the tenant."""
    statement = select(*_COLUMNS)
    if owner_id is not None:
        # Of an owner there are few of other types.
        statement = statement.where(in_bucket(events), events.c.owner_id == owner_id)
        return statement if type_ is None else statement.where(unindexed(events.c.type, dialect) == type_.value)
    return statement if type_ is None else statement.where(events.c.type == type_.value)
