"""Webhook deliveries: an event on its way to an endpoint, with what came of each attempt.

They lie where their events do. One that is pending is due at `next_attempt_at`. Who claims it moves that on, so that
another does what this one has not done by then; what becomes of it is written only while the claim is one's own.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    Select,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    delete,
    func,
    literal_column,
    null,
    select,
    text,
    update,
)

from storage.engine.pages import Page, page_statement
from storage.engine.statements import Lookup, Prepared, in_bucket
from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, JsonText, Name, Word, enum_type, json_text, metadata


class DeliveryState(Word):
    """What has become of a delivery: a redelivery makes it `PENDING` again."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


_IS_PENDING = text("state = 'pending'")

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Name, primary_key=True),
    Column("endpoint_id", Name, nullable=False),
    # The event, by what it is of and its number.
    Column("owner_id", Name, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("state", enum_type(DeliveryState), nullable=False),
    # What came of the attempts, oldest first: see `Attempt`.
    Column("attempts", JsonText, nullable=False),
    # How many of them there were since it was last opened.
    Column("tries", Integer, nullable=False),
    # Null: it is not pending.
    Column("next_attempt_at", Instant),
    # Who is attempting it, while that is ahead.
    Column("claimed_by", Name),
    # When it was made, or last redelivered.
    Column("opened_at", Instant, nullable=False),
    Column("created_at", Instant, nullable=False),
    # Where it lies on a database of several machines, with its event; 0 on any other.
    Column("bucket", Integer, nullable=False, server_default="0"),
    # Serves the deliveries of an event, each of which an endpoint has once.
    UniqueConstraint("owner_id", "number", "endpoint_id"),
    # Serves the search for what is due, an endpoint after the other.
    Index(
        "webhook_deliveries_due_idx",
        *("endpoint_id", "next_attempt_at"),
        sqlite_where=_IS_PENDING,
        postgresql_where=_IS_PENDING,
    ),
    # Serves the deliveries of an endpoint, newest first, and those in one state.
    Index(None, "endpoint_id", "id"),
    Index(None, "endpoint_id", "state", "id"),
    # Serves the search for those that are old enough to be deleted.
    Index(None, "created_at"),
)


class Attempt(NamedTuple):
    """What came of an attempt. `status` None: there was no answer, and `error` says why."""

    at: datetime
    status: int | None
    duration_ms: int
    error: str | None


class DeliveryRow(NamedTuple):
    """An event on its way to an endpoint."""

    id: str
    endpoint_id: str
    owner_id: str
    number: int
    state: DeliveryState
    attempts: list[list[Any]]
    tries: int
    next_attempt_at: datetime | None
    claimed_by: str | None
    opened_at: datetime
    created_at: datetime

    @property
    def event(self) -> tuple[str, int]:
        """The key of its event."""
        return self.owner_id, self.number

    def is_claimed_by(self, claim: str) -> bool:
        """Whether the claim is still the one that may say what becomes of it."""
        return self.state is DeliveryState.PENDING and self.claimed_by == claim

    def with_attempt(self, attempt: Attempt) -> "DeliveryRow":
        """Return it with one more attempt; the oldest are left out beyond the maximum."""
        written = [attempt.at.isoformat(), *attempt[1:]]
        return self._replace(attempts=[*self.attempts, written][-MAX_ATTEMPTS:], tries=self.tries + 1)


def attempts_of(row: DeliveryRow) -> list[Attempt]:
    """Return what came of its attempts, oldest first."""
    return [Attempt(datetime.fromisoformat(at), *rest) for at, *rest in row.attempts]


#: The maximum number of attempts that are kept of a delivery, the newest.
MAX_ATTEMPTS = 50

_COLUMNS = [webhook_deliveries.c[name] for name in DeliveryRow._fields]

#: What changes of a delivery.
_CHANGING = ("state", "attempts", "tries", "next_attempt_at", "claimed_by", "opened_at")

_PENDING: ColumnElement[str] = literal_column("'pending'")


def _delivery(row: Sequence[Any]) -> DeliveryRow:
    found = DeliveryRow._make(row)
    return found._replace(state=DeliveryState(found.state))


@cache
def _by_ids(dialect: str) -> Lookup:
    return Lookup(dialect, select(*_COLUMNS), webhook_deliveries.c.id)


@cache
def _locked(dialect: str) -> Lookup:
    # In the order of their ids, so that no two transactions wait for each other.
    ordered = select(*_COLUMNS).order_by(webhook_deliveries.c.id)
    return Lookup(dialect, ordered.with_for_update(of=webhook_deliveries), webhook_deliveries.c.id)


@cache
def _by_events(dialect: str) -> Lookup:
    found = webhook_deliveries.c
    return Lookup(dialect, select(*_COLUMNS), found.owner_id, found.number)


async def by_ids(reader: Reader, ids: Iterable[str]) -> dict[str, DeliveryRow]:
    """Return the deliveries of these ids, by id. Whose they are is the caller's to check."""
    rows = map(_delivery, await reader.look_up(_by_ids(reader.dialect), [(id_,) for id_ in ids]))
    return {row.id: row for row in rows}


async def lock(writer: Writer, ids: Iterable[str]) -> dict[str, DeliveryRow]:
    """Lock the deliveries of these ids until the transaction ends, and return them as they then are, by id."""
    rows = map(_delivery, await writer.look_up(_locked(writer.dialect), [(id_,) for id_ in ids]))
    return {row.id: row for row in rows}


async def of_events(reader: Reader, events: Sequence[tuple[str, int]]) -> list[DeliveryRow]:
    """Return the deliveries of these events. Whose they are is the caller's to check."""
    return list(map(_delivery, await reader.look_up(_by_events(reader.dialect), events)))


async def insert_deliveries(writer: Writer, rows: Sequence[DeliveryRow]) -> None:
    """Write new deliveries."""
    written = [row._replace(attempts=json_text(row.attempts)) for row in rows]  # type: ignore[arg-type]  # As it is kept.
    await writer.insert_rows(webhook_deliveries, written)


async def update_deliveries(writer: Writer, rows: Sequence[DeliveryRow]) -> None:
    """Write what has become of deliveries that the transaction has locked."""
    changed = [
        (row.id, row.state, json_text(row.attempts), row.tries, row.next_attempt_at, row.claimed_by, row.opened_at)
        for row in rows
    ]
    await writer.update_rows(webhook_deliveries, _CHANGING, changed)


class Waiting(NamedTuple):
    """What is pending for an endpoint: when the earliest of it is due."""

    endpoint_id: str
    next_attempt_at: datetime


@cache
def _waiting(dialect: str) -> Prepared:
    """Return the statement of the endpoints that something is pending for.

    It goes from one to the next by the index, and past all that is pending for the same one.
    """
    found = webhook_deliveries

    def first(*conditions: Any) -> Select[Any]:
        pending = select(found.c.endpoint_id).where(in_bucket(found), found.c.state == _PENDING, *conditions)
        return pending.order_by(found.c.endpoint_id).limit(literal_column("1", Integer()))

    begin = select(first().scalar_subquery().label("endpoint_id")).cte("waiting", recursive=True)
    following = first(found.c.endpoint_id > begin.c.endpoint_id).scalar_subquery()
    waiting = begin.union_all(select(following).where(begin.c.endpoint_id.is_not(None)))
    earliest = (
        select(func.min(found.c.next_attempt_at, type_=Instant()))
        .where(in_bucket(found), found.c.endpoint_id == waiting.c.endpoint_id, found.c.state == _PENDING)
        .scalar_subquery()
    )
    return Prepared(dialect, select(waiting.c.endpoint_id, earliest).where(waiting.c.endpoint_id.is_not(None)))


async def waiting(reader: Reader) -> list[Waiting]:
    """Return which endpoints something is pending for, and when the earliest of it is due."""
    return [Waiting(*row) for row in await reader.run(_waiting(reader.dialect), {})]


@cache
def _due(dialect: str) -> Prepared:
    found = webhook_deliveries.c
    due = (
        select(*_COLUMNS)
        .where(
            in_bucket(webhook_deliveries),
            found.endpoint_id == bindparam("endpoint_id", type_=Text()),
            found.state == _PENDING,
            found.next_attempt_at <= bindparam("now", type_=Instant()),
        )
        .order_by(found.next_attempt_at)
        .limit(bindparam("limit", type_=Integer()))
    )
    return Prepared(dialect, due.with_for_update(of=webhook_deliveries, skip_locked=True))


async def lock_due(writer: Writer, endpoint_id: str, *, now: datetime, limit: int) -> list[DeliveryRow]:
    """Lock some of what is due for an endpoint, what is due for longest first; what is locked already is left out."""
    moment = now.isoformat() if writer.dialect == "sqlite" else now
    values = {"endpoint_id": endpoint_id, "now": moment, "limit": limit}
    return list(map(_delivery, await writer.run(_due(writer.dialect), values)))


async def fail_pending_of(writer: Writer, endpoint_id: str) -> None:
    """Fail what is pending for an endpoint."""
    found = webhook_deliveries
    pending = update(found).where(
        found.c.bucket == writer.bucket, found.c.endpoint_id == endpoint_id, found.c.state == DeliveryState.PENDING
    )
    await writer.execute(pending.values(state=DeliveryState.FAILED, next_attempt_at=null(), claimed_by=null()))


async def delete_some_of(writer: Writer, endpoint_id: str, *, limit: int) -> int:
    """Delete some of an endpoint's deliveries, and return how many."""
    return await _delete(writer, webhook_deliveries.c.endpoint_id == endpoint_id, limit=limit)


async def delete_some_before(writer: Writer, moment: datetime, *, limit: int) -> int:
    """Delete some of the deliveries that were made before the moment, and return how many."""
    return await _delete(writer, webhook_deliveries.c.created_at < moment, limit=limit)


async def _delete(writer: Writer, condition: Any, *, limit: int) -> int:
    found = webhook_deliveries
    some = select(found.c.id).where(found.c.bucket == writer.bucket, condition).limit(limit)
    ids = [row.id for row in await writer.fetch(some.with_for_update(skip_locked=True))]
    if ids:
        await writer.execute(delete(found).where(found.c.bucket == writer.bucket, found.c.id.in_(ids)))
    return len(ids)


@cache
def _count(dialect: str) -> Prepared:
    found = webhook_deliveries
    counted: list[ColumnElement[Any]] = [func.count(), func.min(found.c.opened_at, type_=Instant())]
    return Prepared(dialect, select(*counted).where(in_bucket(found), found.c.state == _PENDING))


async def pending(reader: Reader) -> tuple[int, datetime | None]:
    """Return how many deliveries are pending, and when the oldest of them was opened."""
    ((count, opened_at),) = await reader.run(_count(reader.dialect), {})
    return count, opened_at


@lru_cache(maxsize=256)
def _page(dialect: str, page: Page, *, is_of_state: bool) -> Prepared:
    found = webhook_deliveries.c
    statement = select(*_COLUMNS).where(
        in_bucket(webhook_deliveries), found.endpoint_id == bindparam("endpoint_id", type_=Text())
    )
    if is_of_state:
        statement = statement.where(found.state == bindparam("state", type_=Text()))
    return Prepared(dialect, page_statement(statement, found.id, page))


async def page_of_endpoint(
    reader: Reader, endpoint_id: str, page: Page, state: DeliveryState | None
) -> list[DeliveryRow]:
    """Return one page of an endpoint's deliveries in this bucket, and one more row where there is one."""
    values = {"endpoint_id": endpoint_id} | page.parameters | ({} if state is None else {"state": state.value})
    statement = _page(reader.dialect, page.shape, is_of_state=state is not None)
    return list(map(_delivery, await reader.run(statement, values)))
