"""The comparator "limit": the least that one request a commit can cost in Python.

Hand-written Starlette handlers with the best SQL and orjson; no GraphQL, no ORM, no groups. Tables, keys and the rules
of a debit are Tollgate's own: exactly once by event id, never past the limit, one usage day, one ledger entry.
"""

import hashlib
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import orjson
from sqlalchemy import make_url
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.limit_credits import (
    HOLD_SECONDS,
    NAMES,
    NOTHING_IS_DUE,
    POSTGRESQL_HOLD,
    SQLITE_CLOSE,
    SQLITE_COMMIT,
    SQLITE_COMMIT_ENTRY,
    SQLITE_DRAW,
    SQLITE_DRAWN,
    SQLITE_HOLD,
    SQLITE_HOLD_ENTRY,
    SQLITE_HOLD_ROW,
    postgresql_commit,
    postgresql_debit_of_grants,
)
from resolvers.rules.commands import gateway_key
from resolvers.values import day_of
from storage.engine.sqlite import PRAGMAS, WRITER_PRAGMAS

#: The greatest amount of credits.
MOST = 2**63 - 1

METER = f"""
SELECT id, workspace_id, external_meter_id, timezone, total_credits, used_credits, held_credits, allow_overages,
    spend_cap, limit_credits, created_at, updated_at
FROM billing_meters WHERE {NAMES}
"""  # noqa: S608  # Nothing but the text above goes in.

_CUSTOMER = "SELECT id, email, name, external_id, created_at FROM customers WHERE org_id = $1 AND environment = $2"

CUSTOMERS = f"{_CUSTOMER} ORDER BY id DESC LIMIT $3"
CUSTOMER = f"{_CUSTOMER} AND external_id = $3"

#: How many of a customer's meters are answered, the newest first.
METERS_A_CUSTOMER = 25

_METER = "customer_id, id, workspace_id, external_meter_id, total_credits, used_credits, held_credits, limit_credits"

POSTGRESQL_METERS = f"""
SELECT m.* FROM unnest($1::text[]) WITH ORDINALITY c (id, place) CROSS JOIN LATERAL (
    SELECT {_METER} FROM billing_meters WHERE customer_id = c.id ORDER BY id DESC LIMIT {METERS_A_CUSTOMER}
) m
ORDER BY c.place, m.id DESC
"""  # noqa: S608  # As above.

SQLITE_METERS = f"""
SELECT {_METER} FROM (
    SELECT {_METER}, row_number() OVER (PARTITION BY customer_id ORDER BY id DESC) AS place
    FROM billing_meters WHERE customer_id IN (SELECT value FROM json_each($1))
)
WHERE place <= {METERS_A_CUSTOMER} ORDER BY customer_id, place
"""  # noqa: S608  # As above.

# A meter's days as arrays: half of what the driver and Python take for a row a day, and hardly more for PostgreSQL.
POSTGRESQL_USAGE = """
SELECT m.id, u.* FROM unnest($1::text[]) m (id) CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(day ORDER BY day, usage_name), '{}'),
        coalesce(array_agg(usage_name ORDER BY day, usage_name), '{}'),
        coalesce(array_agg(total_usage ORDER BY day, usage_name), '{}')
    FROM usage_days WHERE meter_id = m.id AND day BETWEEN $2 AND $3
) u
"""

SQLITE_USAGE = """
SELECT meter_id, day, usage_name, total_usage FROM usage_days
WHERE meter_id IN (SELECT value FROM json_each($1)) AND day BETWEEN $2 AND $3 ORDER BY meter_id, day, usage_name
"""

# One statement is one round trip and one transaction. The row's lock decides the order; what waited for it sees the row
# as it then is. An event id that was recorded meanwhile is met by the unique index.
_DEBIT = f"""
UPDATE billing_meters SET used_credits = used_credits + $6, last_seq = last_seq + 1, updated_at = $7
WHERE {NAMES}
    AND (limit_credits IS NULL OR limit_credits - used_credits - held_credits >= $6)
    AND used_credits + held_credits <= {MOST} - $6 AND {NOTHING_IS_DUE}
    AND NOT EXISTS (
        SELECT 1 FROM ledger_entries e WHERE e.meter_id = billing_meters.id AND e.kind = 'usage' AND e.key = $5
    )
    AND NOT (has_holds AND EXISTS (
        SELECT 1 FROM ledger_entries e WHERE e.meter_id = billing_meters.id AND e.kind = 'hold' AND e.key = $5
    ))
"""  # noqa: S608  # As above.

_METER_AFTER = "id, last_seq, total_credits, used_credits, held_credits, limit_credits, timezone"

_DAY = """
INSERT INTO usage_days (meter_id, day, usage_name, total_usage) {}
ON CONFLICT (meter_id, day, usage_name) DO UPDATE SET total_usage = usage_days.total_usage + excluded.total_usage
"""

_ENTRY = """
INSERT INTO ledger_entries (meter_id, seq, kind, key, amount, total_credits_after, used_credits_after, limit_credits,
    usage_name, day, requested_amount, policy, recorded_at, recorded_by, metadata, held_credits_after, draws)
"""

# Of a meter without grants; what a meter with grants draws is looked up once its lock is held, by a second statement.
POSTGRESQL_DEBIT = f"""
WITH debit AS (
    {_DEBIT} AND NOT has_grants
    RETURNING {_METER_AFTER}, ($7 AT TIME ZONE timezone)::date AS day
),
usage_day AS ({_DAY.format("SELECT id, day, $8, $6 FROM debit")}),
entry AS (
    {_ENTRY}
    SELECT id, last_seq, 'usage', $5, $6, total_credits, used_credits, limit_credits,
        $8, day, $6, 'reject', $7, $9, '{{}}', held_credits, NULL
    FROM debit
)
SELECT * FROM debit
"""  # noqa: S608  # As above.

POSTGRESQL_DEBIT_OF_GRANTS = "SELECT * FROM limit_debit($1, $2, $3, $4, $5, $6, $7, $8, $9)"
POSTGRESQL_COMMIT = postgresql_commit(_DAY)

SQLITE_DEBIT = f"{_DEBIT} RETURNING {_METER_AFTER}, pinned_credits, has_grants"
SQLITE_DAY = _DAY.format("VALUES ($1, $2, $3, $4)")
SQLITE_ENTRY = (
    f"{_ENTRY} VALUES ($1, $2, 'usage', $3, $4, $5, $6, $7, $8, $9, $4, 'reject', $10, $11, '{{}}', $12, $13)"
)

# Events and holds of a meter share their ids, and a hold that was committed has an entry of both kinds.
EARLIER = f"""
SELECT e.kind, e.amount, e.requested_amount, e.usage_name, e.policy, e.sent_at, e.metadata, e.seq
FROM billing_meters m LEFT JOIN ledger_entries e ON e.meter_id = m.id AND e.kind IN ('usage', 'hold') AND e.key = $5
WHERE {NAMES}
"""  # noqa: S608  # As above.

# A meter with overages has a limit that Python computes; the benchmark's has none, so that its limit is its total.
_REFILL = f"""
UPDATE billing_meters SET total_credits = total_credits + $5, limit_credits = limit_credits + $5,
    last_seq = last_seq + 1, updated_at = $6
WHERE {NAMES} AND NOT allow_overages AND total_credits <= {MOST} - $5
RETURNING id, last_seq, total_credits, used_credits, limit_credits, held_credits"""  # noqa: S608  # As above.

_REFILL_ENTRY = """
INSERT INTO ledger_entries (meter_id, seq, kind, key, amount, total_credits_after, used_credits_after, limit_credits,
    recorded_at, recorded_by, metadata, held_credits_after)
"""

POSTGRESQL_REFILL = f"""
WITH refill AS ({_REFILL}),
entry AS (
    {_REFILL_ENTRY}
    SELECT id, last_seq, 'refill', $8, $5, total_credits, used_credits, limit_credits, $6, $7, '{{}}', held_credits
    FROM refill
)
SELECT * FROM refill
"""  # noqa: S608  # As above.

SQLITE_REFILL = _REFILL
SQLITE_REFILL_ENTRY = f"{_REFILL_ENTRY} VALUES ($1, $2, 'refill', $3, $4, $5, $6, $7, $8, $9, '{{}}', $10)"

Row = Any
UsageDay = dict[str, Any]


class Store(ABC):
    """What the handlers ask of a database."""

    @abstractmethod
    async def fetch(self, statement: str, *values: Any) -> list[Row]:
        """Return the rows of a statement that changes nothing."""

    @abstractmethod
    async def meters(self, customer_ids: list[str]) -> list[Row]:
        """Return the newest meters of each customer."""

    @abstractmethod
    async def usage(self, meter_ids: list[str], first: str, last: str) -> dict[str, list[UsageDay]]:
        """Return each meter's usage days, by day and then by name, between two days, both inclusive."""

    @abstractmethod
    async def debit(self, names: tuple[str, ...], event: tuple[str, int, str], key_id: str) -> Row | None:
        """Record the event (id, amount, usage name), or return None where its meter does not accept it now."""

    @abstractmethod
    async def hold(self, names: tuple[str, ...], hold: tuple[str, int], key_id: str) -> Row | None:
        """Make the hold (id, amount), or return None where its meter does not accept it now."""

    @abstractmethod
    async def commit(self, names: tuple[str, ...], event: tuple[str, int, str], key_id: str) -> Row | None:
        """Commit a hold with its event (id, amount, usage name), or return None where it is not open for that much."""

    @abstractmethod
    async def refill(self, names: tuple[str, ...], amount: int, key_id: str) -> Row | None:
        """Add to the meter's total, or return None where there is no such meter."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections."""


class PostgreSQL(Store):
    """A pool of asyncpg's own, without the round trip that a reset costs at every release."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool
        # The names of the meters that are known to have grants: they keep having had them.
        self._with_grants: set[tuple[str, ...]] = set()

    @classmethod
    async def open(cls, url: str) -> "PostgreSQL":
        """Connect."""

        async def no_reset(_connection: object) -> None:
            """Nothing was set."""

        pool = await asyncpg.create_pool(
            url, min_size=8, max_size=8, reset=no_reset, server_settings={"application_name": "limit", "jit": "off"}
        )
        await pool.execute(postgresql_debit_of_grants(_DEBIT, _DAY, _ENTRY))
        return cls(pool)

    async def fetch(self, statement: str, *values: Any) -> list[Row]:
        """See `Store`."""
        rows: list[Row] = await self._pool.fetch(statement, *values)
        return rows

    async def meters(self, customer_ids: list[str]) -> list[Row]:
        """See `Store`."""
        return await self.fetch(POSTGRESQL_METERS, customer_ids)

    async def usage(self, meter_ids: list[str], first: str, last: str) -> dict[str, list[UsageDay]]:
        """See `Store`."""
        rows = await self.fetch(POSTGRESQL_USAGE, meter_ids, date.fromisoformat(first), date.fromisoformat(last))
        return {
            meter_id: [
                {"day": day, "totalBillingUsage": str(total), "billingUsageName": usage_name}
                for day, usage_name, total in zip(*arrays, strict=True)
            ]
            for meter_id, *arrays in rows
        }

    async def debit(self, names: tuple[str, ...], event: tuple[str, int, str], key_id: str) -> Row | None:
        """See `Store`."""
        event_id, amount, usage_name = event
        values = (*names, event_id, amount, datetime.now(UTC), usage_name, key_id)
        try:
            if names not in self._with_grants:
                row = await self._pool.fetchrow(POSTGRESQL_DEBIT, *values)
                if row is not None:
                    return row
            row = await self._pool.fetchrow(POSTGRESQL_DEBIT_OF_GRANTS, *values)
        except asyncpg.UniqueViolationError:
            return None
        if row is not None and row["has_grants"]:
            self._with_grants.add(names)
        return row

    async def hold(self, names: tuple[str, ...], hold: tuple[str, int], key_id: str) -> Row | None:
        """See `Store`."""
        now = datetime.now(UTC)
        try:
            return await self._pool.fetchrow(
                POSTGRESQL_HOLD, *names, *hold, now, now + timedelta(seconds=HOLD_SECONDS), key_id
            )
        except asyncpg.UniqueViolationError:
            return None

    async def commit(self, names: tuple[str, ...], event: tuple[str, int, str], key_id: str) -> Row | None:
        """See `Store`."""
        event_id, amount, usage_name = event
        return await self._pool.fetchrow(
            POSTGRESQL_COMMIT, *names, event_id, amount, datetime.now(UTC), usage_name, key_id
        )

    async def refill(self, names: tuple[str, ...], amount: int, key_id: str) -> Row | None:
        """See `Store`."""
        return await self._pool.fetchrow(POSTGRESQL_REFILL, *names, amount, datetime.now(UTC), key_id, gateway_key())

    async def close(self) -> None:
        """See `Store`."""
        await self._pool.close()


class SQLite(Store):
    """One connection in the event loop's own thread: a thread of its own would cost more than most statements do."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        for pragma in (*PRAGMAS, *WRITER_PRAGMAS, "busy_timeout = 10000"):
            self._connection.execute(f"PRAGMA {pragma}")

    async def fetch(self, statement: str, *values: Any) -> list[Row]:
        """See `Store`."""
        return self._execute(statement, *values)

    async def meters(self, customer_ids: list[str]) -> list[Row]:
        """See `Store`."""
        return self._execute(SQLITE_METERS, orjson.dumps(customer_ids).decode())

    async def usage(self, meter_ids: list[str], first: str, last: str) -> dict[str, list[UsageDay]]:
        """See `Store`."""
        cursor = self._connection.cursor()
        cursor.row_factory = None  # Plain tuples are quicker.
        found: dict[str, list[UsageDay]] = {meter_id: [] for meter_id in meter_ids}
        values = (orjson.dumps(meter_ids).decode(), first, last)
        for meter_id, day, usage_name, total in cursor.execute(SQLITE_USAGE.replace("$", "?"), values):
            found[meter_id].append({"day": day, "totalBillingUsage": str(total), "billingUsageName": usage_name})
        return found

    async def debit(self, names: tuple[str, ...], event: tuple[str, int, str], key_id: str) -> Row | None:
        """See `Store`."""
        event_id, amount, usage_name = event
        now = datetime.now(UTC)
        moment = now.isoformat()
        with self._transaction():
            found = self._execute(SQLITE_DEBIT, *names, event_id, amount, moment)
            for id_, seq, total, used, held, limit, timezone, pinned, has_grants in found:
                draws = None
                if has_grants:
                    unspent = total - used + amount - pinned
                    drawn = [tuple(row) for row in self._execute(SQLITE_DRAWN, id_, unspent, amount, moment)]
                    for credits_, grant_seq in drawn:
                        self._execute(SQLITE_DRAW, id_, grant_seq, credits_)
                    draws = orjson.dumps([(grant_seq, credits_) for credits_, grant_seq in drawn]).decode()
                day = day_of(now, timezone).isoformat()
                self._execute(SQLITE_DAY, id_, day, usage_name, amount)
                self._execute(
                    *(SQLITE_ENTRY, id_, seq, event_id, amount, total, used, limit, usage_name, day, moment, key_id),
                    *(held, draws),
                )
        return found[0] if found else None

    async def hold(self, names: tuple[str, ...], hold: tuple[str, int], key_id: str) -> Row | None:
        """See `Store`."""
        hold_id, amount = hold
        now = datetime.now(UTC)
        moment, end = now.isoformat(), (now + timedelta(seconds=HOLD_SECONDS)).isoformat()
        with self._transaction():
            found = self._execute(SQLITE_HOLD, *names, hold_id, amount, moment, end)
            for meter in found:
                id_, seq = meter["id"], meter["last_seq"]
                self._execute(SQLITE_HOLD_ROW, id_, seq, hold_id, amount, end, moment)
                self._execute(
                    *(SQLITE_HOLD_ENTRY, id_, seq, hold_id, amount, *_after(meter), moment, key_id),
                    meter["held_credits"],
                )
        return found[0] if found else None

    async def commit(self, names: tuple[str, ...], event: tuple[str, int, str], key_id: str) -> Row | None:
        """See `Store`."""
        hold_id, amount, usage_name = event
        now = datetime.now(UTC)
        moment = now.isoformat()
        with self._transaction():
            closed = self._execute(SQLITE_CLOSE, *names, hold_id, amount, moment)
            if not closed:
                return None
            meter_id, hold_seq, held = closed[0]
            (meter,) = self._execute(SQLITE_COMMIT, meter_id, amount, held, moment)
            day = day_of(now, meter["timezone"]).isoformat()
            self._execute(SQLITE_DAY, meter_id, day, usage_name, amount)
            self._execute(
                *(SQLITE_COMMIT_ENTRY, meter_id, meter["last_seq"], hold_id, amount, *_after(meter), usage_name, day),
                *(moment, key_id, meter["held_credits"], hold_seq),
            )
        return meter

    async def refill(self, names: tuple[str, ...], amount: int, key_id: str) -> Row | None:
        """See `Store`."""
        now = datetime.now(UTC).isoformat()
        with self._transaction():
            found = self._execute(SQLITE_REFILL, *names, amount, now)
            for meter_id, seq, total, used, limit, held in found:
                values = (meter_id, seq, gateway_key(), amount, total, used, limit, now, key_id, held)
                self._execute(SQLITE_REFILL_ENTRY, *values)
        return found[0] if found else None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def _execute(self, statement: str, *values: Any) -> list[Row]:
        # SQLite numbers its parameters by `?1`.
        return self._connection.execute(statement.replace("$", "?"), values).fetchall()

    async def close(self) -> None:
        """See `Store`."""
        self._connection.close()


class Holder:
    """Whose the keys are: read once, as nobody revokes one here."""

    def __init__(self, rows: list[Row]) -> None:
        self._tenants = {row["digest"]: (row["org_id"], row["environment"], row["id"]) for row in rows}

    def of(self, request: Request) -> tuple[str, str, str]:
        """Return the organization, the environment and the id of the request's key."""
        key = request.headers["authorization"].removeprefix("Bearer ")
        return self._tenants[hashlib.sha256(key.encode()).hexdigest()]


def create_app() -> Starlette:
    """Return the application on the database that `TOLLGATE_DATABASE_URL` names."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        url = make_url(os.environ["TOLLGATE_DATABASE_URL"])
        store: Store
        if url.get_backend_name() == "sqlite":
            store = SQLite(url.database or "")
        else:
            store = await PostgreSQL.open(url.set(drivername="postgresql").render_as_string(hide_password=False))
        app.state.store = store
        app.state.holder = Holder(await store.fetch("SELECT digest, org_id, environment, id FROM api_keys"))
        try:
            yield
        finally:
            await store.close()

    return Starlette(
        routes=[
            Route("/meter", meter, methods=["POST"]),
            Route("/customers", customers, methods=["POST"]),
            Route("/customer", customer, methods=["POST"]),
            Route("/refill", refill, methods=["POST"]),
            Route("/record", record, methods=["POST"]),
            Route("/hold", hold, methods=["POST"]),
            Route("/commit", commit, methods=["POST"]),
        ],
        lifespan=lifespan,
    )


async def meter(request: Request) -> Response:
    """Answer one meter by its names."""
    org_id, environment, _ = request.app.state.holder.of(request)
    names = orjson.loads(await request.body())
    rows = await request.app.state.store.fetch(
        METER, org_id, environment, names["workspaceId"], names["externalMeterId"]
    )
    if not rows:
        return _answer({"billingMeter": None})
    row = rows[0]
    return _answer(
        {
            "billingMeter": {
                "id": row["id"],
                "workspaceId": row["workspace_id"],
                "externalMeterId": row["external_meter_id"],
                "timezone": row["timezone"],
                "totalCredits": str(row["total_credits"]),
                "usedCredits": str(row["used_credits"]),
                "allowOverages": bool(row["allow_overages"]),
                "spendCap": _amount(row["spend_cap"]),
                "availableCredits": _available(row),
                "createdAt": row["created_at"],
                "updatedAt": row["updated_at"],
            }
        }
    )


async def customers(request: Request) -> Response:
    """Answer the newest customers, with their meters and the usage of these."""
    org_id, environment, _ = request.app.state.holder.of(request)
    values = orjson.loads(await request.body())
    rows = await request.app.state.store.fetch(CUSTOMERS, org_id, environment, values["first"])
    nodes = await _with_usage(request.app.state.store, rows, values["from"], values["to"])
    return _answer({"customers": {"nodes": nodes}})


async def customer(request: Request) -> Response:
    """Answer one customer by its external id, with its meters and the usage of these."""
    org_id, environment, _ = request.app.state.holder.of(request)
    values = orjson.loads(await request.body())
    rows = await request.app.state.store.fetch(CUSTOMER, org_id, environment, values["externalId"])
    nodes = await _with_usage(request.app.state.store, rows, values["from"], values["to"])
    return _answer({"customerByExternalId": nodes[0] if nodes else None})


async def _with_usage(store: Store, customers: list[Row], first: str, last: str) -> list[dict[str, Any]]:
    meters_of: dict[str, list[dict[str, Any]]] = {row["id"]: [] for row in customers}
    meters = await store.meters(list(meters_of))
    usage_of = await store.usage([row["id"] for row in meters], first, last)
    for row in meters:
        meters_of[row["customer_id"]].append(
            {
                "id": row["id"],
                "workspaceId": row["workspace_id"],
                "externalMeterId": row["external_meter_id"],
                "totalCredits": str(row["total_credits"]),
                "usedCredits": str(row["used_credits"]),
                "availableCredits": _available(row),
                "usage": usage_of[row["id"]],
            }
        )
    return [
        {
            "id": row["id"],
            "email": row["email"],
            "name": row["name"],
            "externalId": row["external_id"],
            "createdAt": row["created_at"],
            "billingMeters": {"nodes": meters_of[row["id"]]},
        }
        for row in customers
    ]


async def refill(request: Request) -> Response:
    """Add to a meter's total."""
    org_id, environment, key_id = request.app.state.holder.of(request)
    values = orjson.loads(await request.body())
    names = (org_id, environment, values["workspaceId"], values["externalMeterId"])
    row = await request.app.state.store.refill(names, int(values["refill"]), key_id)
    if row is None:
        return _answer({"code": "BILLING_METER_NOT_FOUND"}, 404)
    return _answer({"id": row["id"], "totalCredits": str(row["total_credits"]), "seq": row["last_seq"]})


async def record(request: Request) -> Response:
    """Record one usage event by the policy REJECT."""
    names, key_id, values = await _asked(request)
    event_id, amount, usage_name = values["eventId"], int(values["amount"]), values.get("usageName", "default")
    if not _is_valid(event_id, amount, usage_name):
        return _answer({"code": "INVALID_INPUT"}, 400)
    store: Store = request.app.state.store
    row = await store.debit(names, (event_id, amount, usage_name), key_id)
    if row is not None:
        return _answer(_recorded(row, amount))
    rows = await store.fetch(EARLIER, *names, event_id)
    if rows and rows[0]["seq"] is None:
        return _answer({"code": "INSUFFICIENT_CREDITS"}, 402)
    # A hold has no usage name, so none is a repetition.
    return _replay_or_conflict(rows[:1], (amount, usage_name, "reject"))


async def hold(request: Request) -> Response:
    """Hold credits by the policy REJECT."""
    names, key_id, values = await _asked(request)
    hold_id, amount = values["holdId"], int(values["amount"])
    if not _is_valid(hold_id, amount):
        return _answer({"code": "INVALID_INPUT"}, 400)
    store: Store = request.app.state.store
    row = await store.hold(names, (hold_id, amount), key_id)
    if row is not None:
        return _answer(_changed(row) | {"hold": {"amount": str(amount)}})
    rows = await store.fetch(EARLIER, *names, hold_id)
    if rows and rows[0]["seq"] is None:
        return _answer({"code": "INSUFFICIENT_CREDITS"}, 402)
    holds = [each for each in rows if each["kind"] == "hold"]
    return _replay_or_conflict(holds or rows, (amount, None, "reject"))


async def commit(request: Request) -> Response:
    """Commit a hold, of which no more than it holds was used."""
    names, key_id, values = await _asked(request)
    hold_id, amount, usage_name = values["holdId"], int(values["amount"]), values.get("usageName", "default")
    if not _is_valid(hold_id, amount, usage_name):
        return _answer({"code": "INVALID_INPUT"}, 400)
    store: Store = request.app.state.store
    row = await store.commit(names, (hold_id, amount, usage_name), key_id)
    if row is not None:
        return _answer(_recorded(row, amount))
    rows = await store.fetch(EARLIER, *names, hold_id)
    kinds = {each["kind"] for each in rows}
    if kinds == {"hold"}:
        return _answer({"code": "HOLD_NOT_OPEN"}, 409)
    if rows and "hold" not in kinds:
        return _answer({"code": "HOLD_NOT_FOUND"}, 404)
    return _replay_or_conflict([each for each in rows if each["kind"] == "usage"], (amount, usage_name, "partial"))


async def _asked(request: Request) -> tuple[tuple[str, ...], str, dict[str, Any]]:
    """Return the names of the meter, the id of the key, and the values of the request."""
    org_id, environment, key_id = request.app.state.holder.of(request)
    values = orjson.loads(await request.body())
    return (org_id, environment, values["workspaceId"], values["externalMeterId"]), key_id, values


def _is_valid(key: str, amount: int, usage_name: str = "default") -> bool:
    return 1 <= len(key) <= 255 and 1 <= len(usage_name) <= 128 and 0 < amount <= MOST  # noqa: PLR2004  # The rule's own numbers.


def _replay_or_conflict(rows: list[Row], asked: tuple[int, str | None, str]) -> Response:
    if not rows:
        return _answer({"code": "BILLING_METER_NOT_FOUND"}, 404)
    earlier = rows[0]
    recorded = tuple(earlier[name] for name in ("requested_amount", "usage_name", "policy", "sent_at", "metadata"))
    if recorded != (*asked, None, "{}"):
        return _answer({"code": "IDEMPOTENCY_CONFLICT"}, 409)
    return _answer({"accepted": str(earlier["amount"]), "replayed": True, "entry": {"seq": earlier["seq"]}})


def _recorded(row: Row, amount: int) -> dict[str, Any]:
    return {"accepted": str(amount)} | _changed(row)


def _changed(row: Row) -> dict[str, Any]:
    return {
        "replayed": False,
        "entry": {"seq": row["last_seq"]},
        "billingMeter": {
            "id": row["id"],
            "totalCredits": str(row["total_credits"]),
            "usedCredits": str(row["used_credits"]),
            "availableCredits": _available(row),
        },
    }


def _after(meter: Row) -> tuple[int, int, int | None]:
    return meter["total_credits"], meter["used_credits"], meter["limit_credits"]


def _amount(value: int | None) -> str | None:
    return None if value is None else str(value)


def _available(row: Row) -> str | None:
    limit: int | None = row["limit_credits"]
    return None if limit is None else str(max(0, limit - row["used_credits"] - row["held_credits"]))


def _answer(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
