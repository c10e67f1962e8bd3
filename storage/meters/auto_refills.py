"""Automatic refills: what a meter asks for when it runs low, the requests that were made, and their statements."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    literal_column,
    select,
    true,
)

from storage import ids
from storage.engine.pages import Page, numbered_pages
from storage.engine.statements import Lookup, Prepared, in_bucket, keys, keys_table
from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, Name, Word, enum_type, metadata


class AutoRefillMode(Word):
    """How much is asked for: what is missing to a `TARGET`, or as many steps of a `FIXED` amount as are needed."""

    TARGET = "target"
    FIXED = "fixed"


class AutoRefillRequestState(Word):
    """What has become of a request: it is `OPEN` once, and may be fulfilled whatever else it has become."""

    OPEN = "open"
    FULFILLED = "fulfilled"
    FAILED = "failed"
    EXPIRED = "expired"


# Without a foreign key to the meter, as `ledger_entries` is, for the same reasons.
auto_refills = Table(
    "auto_refills",
    metadata,
    Column("meter_id", Name, nullable=False),
    Column("is_enabled", Boolean, nullable=False),
    Column("mode", enum_type(AutoRefillMode), nullable=False),
    # A request is made when fewer credits than this are unspent.
    Column("below", BigInteger, nullable=False),
    # TARGET: the unspent credits to reach; FIXED: those of one step.
    Column("amount", BigInteger, nullable=False),
    # The caps of the requests in each window.
    Column("max_refills", Integer, nullable=False),
    Column("max_credits", BigInteger, nullable=False),
    Column("window_seconds", Integer, nullable=False),
    Column("cooldown_seconds", Integer, nullable=False),
    Column("request_seconds", Integer, nullable=False),
    Column("max_failures", Integer, nullable=False),
    # How many requests have failed since one was last fulfilled, and why the newest of them did.
    Column("failures", Integer, nullable=False),
    Column("last_failure", Text),
    Column("is_suspended", Boolean, nullable=False),
    # The number of the newest request; 0: there is none yet.
    Column("last_request", BigInteger, nullable=False),
    # Whether it has been reported since the newest request that the caps leave no room.
    Column("is_capped", Boolean, nullable=False),
    # Where it lies on a database of several machines, with all that is its meter's; 0 on any other.
    Column("bucket", Integer, nullable=False, server_default="0"),
    # Serves a meter's automatic refill.
    PrimaryKeyConstraint("meter_id"),
)

# Partitioned by the meter's id, too.
auto_refill_requests = Table(
    "auto_refill_requests",
    metadata,
    Column("meter_id", Name, nullable=False),
    # 1, 2, 3 ... of its meter.
    Column("number", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("state", enum_type(AutoRefillRequestState), nullable=False),
    Column("requested_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    # When it got its state; null: it is open.
    Column("closed_at", Instant),
    # Why it failed, and the gateway's key of the command that closed it so, by which that is found again.
    Column("failure", Text),
    Column("failure_key", Name),
    # The number of the REFILL entry that fulfilled it.
    Column("entry_seq", BigInteger),
    # Where it lies on a database of several machines, with all that is its meter's; 0 on any other.
    Column("bucket", Integer, nullable=False, server_default="0"),
    # Serves a meter's requests, newest first, and a request by its id.
    PrimaryKeyConstraint("meter_id", "number"),
    # Serves the requests that may count against the caps.
    Index(None, "meter_id", "requested_at"),
    postgresql_partition_by="HASH (meter_id)",
)


class AutoRefillRow(NamedTuple):
    """When credits of a meter are asked for, how many, how often, and what has come of it. Amounts are credits."""

    meter_id: str
    is_enabled: bool
    mode: AutoRefillMode
    below: int
    amount: int
    max_refills: int
    max_credits: int
    window_seconds: int
    cooldown_seconds: int
    request_seconds: int
    max_failures: int
    failures: int = 0
    last_failure: str | None = None
    is_suspended: bool = False
    last_request: int = 0
    is_capped: bool = False


class AutoRefillRequestRow(NamedTuple):
    """Credits that a meter has asked for. `amount` is in credits."""

    meter_id: str
    number: int
    amount: int
    state: AutoRefillRequestState
    requested_at: datetime
    expires_at: datetime
    closed_at: datetime | None = None
    failure: str | None = None
    failure_key: str | None = None
    entry_seq: int | None = None

    @property
    def id(self) -> str:
        """Its id, which is the idempotency key of the refill that fulfils it."""
        return ids.numbered_id(ids.AUTO_REFILL_REQUEST, self.meter_id, self.number)

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self.state is AutoRefillRequestState.OPEN

    def at(self, now: datetime) -> "AutoRefillRequestRow":
        """Return it as it is at this moment: open until its end, whether or not that has been written."""
        if not self.is_open or now < self.expires_at:
            return self
        return self._replace(state=AutoRefillRequestState.EXPIRED, closed_at=self.expires_at)


class AutoRefill(NamedTuple):
    """A meter's automatic refill, and its newest request, if it has made one."""

    settings: AutoRefillRow
    newest: AutoRefillRequestRow | None

    def at(self, now: datetime) -> "AutoRefill":
        """Return it as it is at this moment."""
        return self._replace(newest=None if self.newest is None else self.newest.at(now))


_SETTINGS = [auto_refills.c[name] for name in AutoRefillRow._fields]
_REQUEST = [auto_refill_requests.c[name] for name in AutoRefillRequestRow._fields]

#: What changes of each.
_CHANGING = AutoRefillRow._fields[1:]
_changing = attrgetter(*_CHANGING)
_CHANGING_OF_REQUEST = ("state", "closed_at", "failure", "failure_key", "entry_seq")
_changing_of_request = attrgetter(*_CHANGING_OF_REQUEST)

#: How many requests are counted at most: one more than the greatest cap shows that it is passed.
MAX_COUNTED = 101


@cache
def _by_meters(dialect: str) -> Lookup:
    newest = auto_refill_requests
    is_newest = (
        (newest.c.bucket == auto_refills.c.bucket)
        & (newest.c.meter_id == auto_refills.c.meter_id)
        & (newest.c.number == auto_refills.c.last_request)
    )
    found = select(*_SETTINGS, *_REQUEST).select_from(auto_refills.outerjoin(newest, is_newest))
    return Lookup(dialect, found, auto_refills.c.meter_id)


async def by_meters(reader: Reader, meter_ids: Sequence[str]) -> dict[str, AutoRefill]:
    """Return the automatic refills of those of these meters that have one, by the meter's id."""
    found = {}
    for row in await reader.look_up(_by_meters(reader.dialect), [(id_,) for id_ in meter_ids]):
        settings = AutoRefillRow._make(row[: len(_SETTINGS)])
        newest = row[len(_SETTINGS) :]
        found[settings.meter_id] = AutoRefill(settings, None if newest[0] is None else _request(newest))
    return found


_request = AutoRefillRequestRow._make


@cache
def _counted(dialect: str) -> Prepared:
    requests = auto_refill_requests
    wanted = keys_table(dialect, meter_id=Text(), since=requests.c.requested_at.type)
    other = requests if dialect == "postgresql" else requests.alias("counted")
    columns: Sequence[ColumnElement[Any]] = _REQUEST if dialect == "postgresql" else [other.c.number]
    # By the index of (meter, requested at).
    some = (
        select(*columns)
        .where(
            in_bucket(other),
            other.c.meter_id == wanted.c.meter_id,
            other.c.requested_at > wanted.c.since,
            other.c.state != literal_column("'failed'"),
        )
        .order_by(other.c.requested_at.desc())
        .limit(literal_column(str(MAX_COUNTED), Integer()))
        .correlate(wanted)
    )
    if dialect == "postgresql":
        each = some.lateral()
        return Prepared(dialect, select(*each.c).select_from(wanted).join(each, true()))
    is_counted = in_bucket(requests) & (requests.c.meter_id == wanted.c.meter_id) & requests.c.number.in_(some)
    return Prepared(dialect, select(*_REQUEST).select_from(wanted).join(requests, is_counted))


async def counted(reader: Reader, since: Mapping[str, datetime]) -> list[AutoRefillRequestRow]:
    """Return the requests of meters that were made after these moments and have not failed, `MAX_COUNTED` at most.

    These are the newest of each meter.
    """
    wanted = [(meter_id, moment.isoformat()) for meter_id, moment in since.items()]
    return list(map(_request, await reader.run(_counted(reader.dialect), keys(wanted))))


@cache
def _by_numbers(dialect: str) -> Lookup:
    requests = auto_refill_requests.c
    return Lookup(dialect, select(*_REQUEST), requests.meter_id, requests.number)


async def by_numbers(reader: Reader, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], AutoRefillRequestRow]:
    """Return the requests of these (meter id, number), by them. Whose the meters are is the caller's to check."""
    rows = map(_request, await reader.look_up(_by_numbers(reader.dialect), wanted))
    return {(row.meter_id, row.number): row for row in rows}


@lru_cache(maxsize=256)
def _pages(dialect: str, page: Page) -> Prepared:
    return numbered_pages(dialect, auto_refill_requests, page, columns=_REQUEST, number="number")


async def pages_by_meters(
    reader: Reader, meter_ids: Sequence[str], page: Page
) -> dict[str, list[AutoRefillRequestRow]]:
    """Return one page of the requests of each meter, and one more row where there is one, by meter id."""
    found: dict[str, list[AutoRefillRequestRow]] = {id_: [] for id_ in meter_ids}
    wanted = keys([[id_] for id_ in meter_ids]) | page.parameters
    rows = map(_request, await reader.run(_pages(reader.dialect, page.shape), wanted))
    for row in sorted(rows, key=attrgetter("number"), reverse=not page.backward):
        found[row.meter_id].append(row)
    return found


async def insert_auto_refills(writer: Writer, rows: Sequence[AutoRefillRow]) -> None:
    """Write new automatic refills of meters that the transaction has locked."""
    await writer.insert_rows(auto_refills, rows)


async def update_auto_refills(writer: Writer, rows: Sequence[AutoRefillRow]) -> None:
    """Write what has changed of automatic refills of meters that the transaction has locked."""
    await writer.update_rows(auto_refills, _CHANGING, [(row.meter_id, *_changing(row)) for row in rows])


async def insert_requests(writer: Writer, rows: Sequence[AutoRefillRequestRow]) -> None:
    """Write new requests of meters that the transaction has locked."""
    await writer.insert_rows(auto_refill_requests, rows)


async def update_requests(writer: Writer, rows: Sequence[AutoRefillRequestRow]) -> None:
    """Write what has become of requests of meters that the transaction has locked."""
    changed = [(row.meter_id, row.number, *_changing_of_request(row)) for row in rows]
    await writer.update_rows(auto_refill_requests, _CHANGING_OF_REQUEST, changed)
