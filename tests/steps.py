"""The vocabulary of the tests: what a test does in one step, through the API or to the database.

First what is made and sent, then what is read and compared, then what only a test does to a database.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import delete, select, text

from resolvers.api_keys import create_api_key
from resolvers.maintenance.meter_check import Disagreement
from resolvers.maintenance.verify import Verified, verify, verify_meters, verify_relations, verify_snapshot
from resolvers.meters.record_usage import RecordUsage
from storage import ids
from storage.engine.database import Database, Reading
from storage.engine.transactions import Reader, Writer
from storage.maintenance import audit
from storage.meters import billing_meters, ledger, usage
from storage.meters.billing_meters import BillingMeterRow, MeterName
from storage.meters.credit_grants import CreditGrantRow
from storage.meters.holds import HoldRow, holds
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow, OverLimitPolicy
from storage.meters.usage import UsageRange
from storage.tables import metadata
from storage.tenants import Environment
from tests.conftest import NOW, Caller, Gateway

#: Selects the scalars of a meter that change, and its id.
METER = "id totalCredits usedCredits overageCredits availableCredits allowOverages spendCap"

#: Selects all of a ledger entry but its meter.
ENTRY = """id kind amount totalCreditsAfter usedCreditsAfter key usageName day requestedAmount policy voids { id }
  occurredAt recordedAt recordedBy reason metadata"""

WHOLE_METER = f"""query ($w: String!, $m: String!, $from: Date!, $to: Date!, $before: String) {{
  billingMeter(workspaceId: $w, externalMeterId: $m) {{
    {METER}
    usage(from: $from, to: $to) {{ day billingUsageName totalBillingUsage }}
    ledger(last: 100, before: $before) {{ pageInfo {{ hasPreviousPage startCursor }} nodes {{ {ENTRY} }} }}
  }}
}}"""


async def must(caller: Caller, field: str, selection: str = "", **values: Any) -> dict[str, Any]:
    """Run a mutation, which must succeed, on the meter `m` of `w` unless the values say otherwise; return its answer.

    The selection is of its success.
    """
    success = f"{field[0].upper()}{field[1:]}Success"
    selected = f"... on {success} {{ {selection} }}" if selection else ""
    answer = await caller.mutate(field, selected, **{"workspaceId": "w", "externalMeterId": "m"} | values)
    assert answer["__typename"] == success, answer
    return answer


async def make_meter(caller: Caller, external_meter_id: str = "m", **values: Any) -> str:
    """Make a meter and return its id."""
    values = {"externalMeterId": external_meter_id} | values
    made = await must(caller, "createBillingMeter", "billingMeter { id }", **values)
    return str(made["billingMeter"]["id"])


async def make_grant(caller: Caller, amount: int, **values: Any) -> str:
    """Grant credits to the meter `m`, unless the values say otherwise, and return the grant's id."""
    made = await must(caller, "grantCredits", "creditGrant { id }", amount=str(amount), **values)
    return str(made["creditGrant"]["id"])


async def hold(caller: Caller, hold_id: str, amount: int, **values: Any) -> str:
    """Hold credits of the meter `m`, unless the values say otherwise, and return the id of the hold."""
    made = await must(caller, "holdCredits", "hold { id }", holdId=hold_id, amount=str(amount), **values)
    return str(made["hold"]["id"])


async def make_endpoint(caller: Caller, url: str = "https://example.com/hooks", **values: Any) -> tuple[str, str]:
    """Make a webhook endpoint, and return its id and its secret."""
    selection = "... on CreateWebhookEndpointSuccess { endpoint { id } secret }"
    made = await caller.mutate("createWebhookEndpoint", selection, url=url, **values)
    return made["endpoint"]["id"], made["secret"]


async def make_customer(caller: Caller, email: str = "ada@example.com", **values: Any) -> str:
    """Make a customer and return its id."""
    selection = "... on CreateCustomerSuccess { customer { id } }"
    made = await caller.mutate("createCustomer", selection, email=email, **values)
    return str(made["customer"]["id"])


async def new_key(gateway: Gateway, **values: Any) -> tuple[str, Caller]:
    """Make a key, for all scopes unless the values say otherwise, and return its id and a caller that uses it."""
    row, key = await create_api_key(
        gateway.database, org_id=gateway.org_id, environment=Environment.SANDBOX, now=gateway.clock(), **values
    )
    return row.id, Caller(gateway.client, key)


async def key_in(database: Database, org_id: str) -> str:
    """Make a key for all scopes in the database of a server, whose clock is the machine's, and return it."""
    _, key = await create_api_key(database, org_id=org_id, environment=Environment.SANDBOX, now=datetime.now(UTC))
    return key


async def session_of(caller: Caller, customer_id: str, **values: Any) -> Caller:
    """Make a session of a customer with the caller's key, and return a caller that uses its token."""
    selection = "... on CreateCustomerSessionSuccess { token }"
    made = await caller.mutate("createCustomerSession", selection, customerId=customer_id, **values)
    return Caller(caller.client, made["token"])


def usage_event(gateway: Gateway, event_id: str = "e", amount: int = 1, **values: Any) -> RecordUsage:
    """Return the command of a usage event, on the meter `m` unless the values say otherwise."""
    name = MeterName(
        values.pop("org_id", gateway.org_id),
        values.pop("environment", Environment.SANDBOX),
        values.pop("workspace_id", "w"),
        values.pop("external_meter_id", "m"),
    )
    first = RecordUsage(
        meter=name,
        event_id=event_id,
        amount=amount,
        usage_name="default",
        occurred_at=None,
        policy=OverLimitPolicy.REJECT,
        metadata={},
        recorded_by="key_test",
        may_backfill=False,
    )
    return first._replace(**values)


def entry_id(meter_id: str, seq: int) -> str:
    """Return the id of a meter's ledger entry."""
    return f"ent_{meter_id.removeprefix('mtr_')}_{seq}"


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # What it waits for gives no sign.
            await asyncio.sleep(0)


async def meter_of(
    caller: Caller, external_meter_id: str = "m", *, workspace_id: str = "w", around: date | None = None
) -> dict[str, Any]:
    """Return all that the API shows of a meter: its scalars, its `ledger` from the oldest entry on, and its `usage`.

    The usage is by (day, usage name), of half a year before and after `around`.
    """
    around = around or NOW.date()
    variables = {
        "w": workspace_id,
        "m": external_meter_id,
        "from": str(around - timedelta(days=180)),
        "to": str(around + timedelta(days=180)),
        "before": None,
    }
    entries: list[dict[str, Any]] = []
    while True:
        meter: dict[str, Any] = (await caller.data(WHOLE_METER, variables))["billingMeter"]
        page = meter.pop("ledger")
        # Backward, so that the oldest come first: a page is in the list's own order, which is newest first.
        entries += reversed(page["nodes"])
        if not page["pageInfo"]["hasPreviousPage"]:
            break
        variables["before"] = page["pageInfo"]["startCursor"]
    usage = {(day["day"], day["billingUsageName"]): int(day["totalBillingUsage"]) for day in meter["usage"]}
    return meter | {"ledger": entries, "usage": usage}


#: What an entry's amount adds to the meter's total, used and held credits, by the entry's kind.
_ADDS = {
    LedgerEntryKind.OPENING: (1, 0, 0),
    LedgerEntryKind.REFILL: (1, 0, 0),
    LedgerEntryKind.GRANT: (1, 0, 0),
    LedgerEntryKind.EXPIRY: (-1, 0, 0),
    LedgerEntryKind.REVOCATION: (-1, 0, 0),
    LedgerEntryKind.USAGE: (0, 1, 0),
    LedgerEntryKind.VOID: (0, -1, 0),
    LedgerEntryKind.HOLD: (0, 0, 1),
    LedgerEntryKind.RELEASE: (0, 0, -1),
    LedgerEntryKind.HOLD_EXPIRY: (0, 0, -1),
}


class Books(NamedTuple):
    """All rows of one meter: its own, its ledger from the oldest entry on, its days, its grants and its holds."""

    meter: BillingMeterRow
    entries: list[LedgerEntryRow]
    days: dict[tuple[str, str], int]
    grants: list[CreditGrantRow]
    holds: list[HoldRow]

    def check(self) -> None:
        """Assert what holds of every meter at any time."""
        assert [entry.seq for entry in self.entries] == list(range(1, self.meter.last_seq + 1))
        held_by = {hold.seq: hold.amount for hold in self.holds}
        total = used = held = 0
        for entry in self.entries:
            if entry.kind in _ADDS:
                to_total, to_used, to_held = (sign * entry.amount for sign in _ADDS[entry.kind])
                total, used, held = total + to_total, used + to_used, held + to_held
            else:
                assert entry.kind in {LedgerEntryKind.SETTINGS, LedgerEntryKind.GRANT_CHANGED}
                assert entry.amount == 0
            if entry.kind is LedgerEntryKind.USAGE and entry.hold_seq is not None:
                held -= held_by[entry.hold_seq]
            sums = (entry.total_credits_after, entry.used_credits_after, entry.held_credits_after)
            assert sums == (total, used, held)
        assert (self.meter.total_credits, self.meter.used_credits, self.meter.held_credits) == (total, used, held)
        assert sum(self.days.values()) == used
        event_ids = [entry.key for entry in self.entries if entry.kind is LedgerEntryKind.USAGE]
        assert len(event_ids) == len(set(event_ids))


async def books_of(
    gateway: Gateway,
    external_meter_id: str = "m",
    *,
    workspace_id: str = "w",
    org_id: str | None = None,
    environment: Environment = Environment.SANDBOX,
) -> Books:
    """Read a meter's books as they are in the database, and check them."""
    name = MeterName(org_id or gateway.org_id, environment, workspace_id, external_meter_id)
    async with gateway.database.read(gateway.database.buckets.of_names(name)) as reader:
        found = await billing_meters.by_names(reader, [name[2:]], org_id=name.org_id, environment=environment)
        meter = found[name[2:]]
        # Beyond the last number that the meter knows of, too.
        (entries,) = await ledger.by_ranges(reader, [(meter.id, 0, meter.last_seq + 1_000)])
        always = UsageRange(meter.id, date.min, date.max)
        (days,) = await usage.by_ranges(reader, [always], usage_names=None)
        grants = await audit.grants_of(reader, [meter.id])
        held = await holds_of(reader, meter.id)
    by_day = {(str(row.day), row.usage_name): row.total_usage for row in days}
    books = Books(meter, entries[::-1], by_day, sorted(grants[meter.id]), sorted(held))
    books.check()
    return books


def bucket_with(database: Database, meter_id: str) -> int:
    """Return where a meter of a new id lies."""
    bucket = database.buckets.of_bits(ids.bits_of_meter(meter_id))
    assert bucket is not None
    return bucket


def reading_of(database: Database, meter_id: str) -> Reading:
    """Open a connection for what is asked about a meter of a new id."""
    return database.read(bucket_with(database, meter_id))


async def holds_of(reader: Reader, meter_id: str) -> list[HoldRow]:
    """Return all holds of a meter."""
    columns = [holds.c[name] for name in HoldRow._fields]
    return list(map(HoldRow._make, await reader.fetch(select(*columns).where(holds.c.meter_id == meter_id))))


@asynccontextmanager
async def unchanged(gateway: Gateway, *external_meter_ids: str) -> AsyncIterator[None]:
    """Assert that what is done inside changes no row of the meters."""
    names = external_meter_ids or ("m",)
    before = [await books_of(gateway, name) for name in names]
    yield
    assert [await books_of(gateway, name) for name in names] == before


async def disagreements(database: Database, *meter_ids: str, now: datetime | None = None) -> list[Disagreement]:
    """Return what `tollgate verify` finds wrong with these meters, or with anything where none is named.

    Where the time is given, nothing may be overdue.
    """
    if not meter_ids:
        return [found async for found in verify(database, Verified(), now=now)]
    # The meters of all other tests are not followed.
    columns = [billing_meters.billing_meters.c[name] for name in BillingMeterRow._fields]
    wanted = select(*columns).where(billing_meters.billing_meters.c.id.in_(meter_ids))
    async with database.snapshot() as reader:
        meters = [BillingMeterRow._make(row) for row in await reader.fetch(wanted)]
        assert len(meters) == len({*meter_ids})
        found = []
        for bucket in database.buckets.values:
            some = [meter for meter in meters if database.buckets.of_names(meter.full_name) == bucket]
            reader.bucket = bucket
            found += [each async for each in verify_meters(reader, some, Verified(), now)]
        return found + [each async for each in verify_relations(reader) if each.id in meter_ids]


async def rows_of(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables, in the order of their keys."""
    async with database.read() as reader:
        return {
            table.name: [tuple(row) for row in await reader.fetch(select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Database]:
    """Open a database, find out whether it is divided, and close it at the end."""
    database = Database(url, **options)
    try:
        await database.find_buckets()
        yield database
    finally:
        await database.close()


async def execute(database: Database, statement: str, **parameters: Any) -> None:
    """Run one SQL statement, as no code of ours does."""
    await database.write(lambda writer: writer.execute(text(statement), parameters))


async def settle(gateway: Gateway, external_meter_id: str = "m", *, workspace_id: str = "w") -> None:
    """Wait until a COMMIT of a meter is finished that a process, since dead, had under way."""
    name = MeterName(gateway.org_id, Environment.SANDBOX, workspace_id, external_meter_id)
    bucket = gateway.database.buckets.of_names(name)
    await gateway.database.write(lambda writer: billing_meters.lock_by_name(writer, name), bucket=bucket)


async def delete_row(database: Database, id_: str) -> None:
    """Delete a customer without meters, or a meter and its ledger, as no code of ours does."""
    places = {"cus": [("customers", "id")], "mtr": [("ledger_entries", "meter_id"), ("billing_meters", "id")]}[id_[:3]]

    async def run(writer: Writer) -> None:
        for table, column in places:
            await writer.execute(text(f"DELETE FROM {table} WHERE {column} = :id"), {"id": id_})  # noqa: S608  # Our own names.

    await database.write(run)


async def delete_all_rows(database: Database) -> None:
    """Delete whatever there is, as no code of ours does."""

    async def run(writer: Writer) -> None:
        await writer.go_one_by_one()
        for table in reversed(metadata.sorted_tables):
            await writer.execute(delete(table))

    await database.write(run)


async def plant_secret(database: Database, org_id: str, secret: str) -> None:
    """Spoil the scopes of an organization's keys, so that reading them raises an exception that contains the secret."""
    statement = "UPDATE api_keys SET scopes = :scopes WHERE org_id = :org"
    await execute(database, statement, org=org_id, scopes=json.dumps([secret]))


class Undo(Exception):
    """Ends a transaction that is to leave nothing behind."""


async def found_after(database: Database, statements: Sequence[str]) -> list[Disagreement]:
    """Return what `tollgate verify` finds when these statements have been run, and undo them."""
    found: list[Disagreement] = []

    async def tamper(writer: Writer) -> None:
        for statement in statements:
            # A colon would begin a parameter.
            await writer.execute(text(statement.replace(":", r"\:")))
        found.extend([each async for each in verify_snapshot(writer, database.buckets, Verified())])
        raise Undo

    with contextlib.suppress(Undo):
        await database.write(tamper)
    return found


@asynccontextmanager
async def held(
    database: Database, work: Callable[[Writer], Awaitable[object]], *, bucket: int = 0
) -> AsyncIterator[None]:
    """Hold the locks that the work takes, until this ends. Raises what the work raises."""
    is_held, may_end = asyncio.Event(), asyncio.Event()

    async def hold(writer: Writer) -> None:
        await work(writer)
        is_held.set()
        await may_end.wait()

    holding = asyncio.create_task(database.write(hold, bucket=bucket))
    being_held = asyncio.create_task(is_held.wait())
    await asyncio.wait([holding, being_held], return_when=asyncio.FIRST_COMPLETED)
    if not is_held.is_set():
        being_held.cancel()
        await holding
    try:
        yield
    finally:
        may_end.set()
        await holding


@asynccontextmanager
async def locked(database: Database, name: MeterName) -> AsyncIterator[None]:
    """Hold the lock of a meter, until this ends; on SQLite that of the whole database."""

    async def lock(writer: Writer) -> None:
        assert await billing_meters.lock_by_name(writer, name) is not None

    async with held(database, lock, bucket=database.buckets.of_names(name)):
        yield
