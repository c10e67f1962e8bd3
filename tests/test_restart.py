"""Gateways are restarted one by one, under load, and no request fails."""

import asyncio
import itertools
import signal
from pathlib import Path

import pytest

from resolvers.maintenance.verify import Verified, verify
from tests.balancer import Balancer, balanced
from tests.conftest import Gateway, empty_database, gateway_on, migrated
from tests.servers import PATIENCE_SECONDS, Connection, serving
from tests.steps import execute, make_meter, meter_of

CLIENTS = 6
CREDITS = 10**9

#: Of a client after each record and read: so the gateways have enough to do, and the machine not too much.
PAUSE_SECONDS = 0.02

RECORD = """mutation ($input: RecordUsageInput!) {
  recordUsage(input: $input) { __typename ... on RecordUsageSuccess { accepted replayed } }
}"""
READ = '{ billingMeter(workspaceId: "w", externalMeterId: "m") { externalMeterId totalCredits } }'


#: What a later release may do: it adds what this one knows nothing of.
LATER = (
    "ALTER TABLE billing_meters ADD COLUMN later TEXT",
    "ALTER TABLE ledger_entries ADD COLUMN later BIGINT DEFAULT 0",
    "CREATE INDEX later_idx ON ledger_entries (meter_id, later)",
    "UPDATE alembic_version SET version_num = 'from_the_future'",
)


class Load:
    """Clients that record usage and read all the time, without a second try."""

    def __init__(self, balancer: Balancer, key: str) -> None:
        self.answered = 0
        #: The credits of the events that were accepted.
        self.accepted = 0
        self._ids = itertools.count()
        self._balancer = balancer
        self._key = key
        self._is_over = False

    async def client(self) -> None:
        connection = Connection(self._balancer, self._key)  # type: ignore[arg-type]  # It has a port like a server.
        try:
            await self._ask_on(connection)
        finally:
            await connection.close()

    async def _ask_on(self, connection: Connection) -> None:
        while not self._is_over:
            number = next(self._ids)
            amount = number % 9 + 1
            names = {"workspaceId": "w", "externalMeterId": "m", "eventId": f"e{number}", "amount": str(amount)}
            assert await connection.ask(RECORD, input=names) == {
                "data": {
                    "recordUsage": {"__typename": "RecordUsageSuccess", "accepted": str(amount), "replayed": False}
                }
            }
            self.accepted += amount
            assert await connection.ask(READ) == {
                "data": {"billingMeter": {"externalMeterId": "m", "totalCredits": str(CREDITS)}}
            }
            self.answered += 2
            await asyncio.sleep(PAUSE_SECONDS)

    def finish(self) -> None:
        self._is_over = True


async def until_answered(load: Load, more: int, clients: "list[asyncio.Task[None]]") -> None:
    """Wait until so many more requests have been answered."""
    wanted = load.answered + more
    async with asyncio.timeout(PATIENCE_SECONDS):
        while load.answered < wanted:
            assert not any(client.done() for client in clients), [client.exception() for client in clients]
            await asyncio.sleep(0.05)


@pytest.fixture
async def postgresql_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return await migrated(empty_database("postgresql", request, tmp_path))


async def test_gateways_that_are_restarted_one_by_one_fail_no_request(postgresql_url: str, tmp_path: Path) -> None:
    settings = {"TOLLGATE_DRAIN_SECONDS": "1"}
    async with (
        gateway_on(postgresql_url) as gateway,
        serving(postgresql_url, tmp_path, **settings) as first,
        serving(postgresql_url, tmp_path, **settings) as second,
        balanced(first, second) as balancer,
    ):
        await make_meter(gateway, "m", totalCredits=str(CREDITS))
        load = Load(balancer, gateway.key)
        clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
        await until_answered(load, 50, clients)
        for server, other in ((first, second), (second, first)):
            assert server.process is not None
            process = server.process
            stopping = asyncio.create_task(server.stop())
            await balancer.until_ready(other)
            # It is known to be leaving, and is there still.
            assert process.returncode is None
            sent = balancer.sent[server]
            await until_answered(load, 50, clients)
            assert balancer.sent[server] == sent
            assert await stopping == -signal.SIGTERM
            await until_answered(load, 50, clients)
            await server.start()
            await balancer.until_ready(first, second)
            await until_answered(load, 50, clients)
            assert balancer.sent[server] > sent
        # The next release migrates the database, and those of this one go on.
        for change in LATER:
            await execute(gateway.database, change)
            await until_answered(load, 25, clients)
        assert balancer.ready == {first, second}
        load.finish()
        await asyncio.gather(*clients)
        meter = await meter_of(gateway, "m")
        assert meter["usedCredits"] == str(load.accepted)
        verified = Verified()
        assert [found async for found in verify(gateway.database, verified)] == []
        assert verified.entries == 1 + load.answered // 2


async def test_a_gateway_that_is_leaving_says_so_and_ends_the_connections_of_its_clients(
    gateway: Gateway, tmp_path: Path
) -> None:
    url = gateway.database.url.render_as_string(hide_password=False)
    async with serving(url, tmp_path, TOLLGATE_DRAIN_SECONDS="300") as server:
        assert server.process is not None
        async with server.client() as client:
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.headers.get("connection")) == (200, None)
            server.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (leaving := await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110  # A process.
                    await asyncio.sleep(0.01)
            assert leaving.json() == {"status": "unavailable", "reason": "The gateway is stopping."}
            assert leaving.headers["x-content-type-options"] == "nosniff"
            assert (leaving.status_code, leaving.headers["connection"]) == (503, "close")
            alive = await client.get("/healthz")
            assert (alive.status_code, alive.headers["connection"]) == (200, "close")
            answer = await client.post(
                "/graphql", json={"query": "{ __typename }"}, headers={"authorization": f"Bearer {gateway.key}"}
            )
            assert (answer.json(), answer.headers["connection"]) == ({"data": {"__typename": "Query"}}, "close")
        # Asked again, it does not wait the five minutes.
        assert await server.stop() == -signal.SIGTERM
