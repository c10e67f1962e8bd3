"""One meter that everybody uses at once, over HTTP: no debit is lost, counted twice or past the limit."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.conftest import Gateway, empty_database, gateway_on, migrated
from tests.servers import Connection, Server, connected, serving
from tests.steps import disagreements, make_meter, meter_of

CLIENTS = 16
DEBITS = 80

#: Less than all debits ask for, so that the last ones are refused.
CREDITS = 3_600

RECORD = """mutation ($input: RecordUsageInput!) {
  recordUsage(input: $input) {
    __typename
    ... on RecordUsageSuccess { accepted refused overLimit replayed entry { id usedCreditsAfter } }
    ... on InsufficientCredits { available }
    ... on IdempotencyConflict { first: firstEntry { id } }
  }
}"""

Answer = dict[str, Any]


def event(number: int) -> dict[str, Any]:
    """Return the debit of this number: of 1 to 7 credits, one in five by PARTIAL."""
    return {
        "workspaceId": "w",
        "externalMeterId": "hot",
        "eventId": f"e{number}",
        "amount": str(number % 7 + 1),
        "policy": "PARTIAL" if number % 5 == 0 else "REJECT",
    }


async def record(connection: Connection, event: dict[str, Any]) -> Answer:
    body = await connection.ask(RECORD, input=event)
    assert "errors" not in body, body
    answer: Answer = body["data"]["recordUsage"]
    return answer


@pytest.fixture(scope="module")
async def url(dialect: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database that only the servers of this module use."""
    url = empty_database(dialect, request, tmp_path_factory.mktemp("hot"))
    return await migrated(url)


@pytest.fixture(scope="module")
async def servers(url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Server]]:
    """Two servers on the database."""
    folder = tmp_path_factory.mktemp("servers")
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(url, folder)) for _ in range(2)]


@pytest.fixture
async def gateway(url: str) -> AsyncIterator[Gateway]:
    """A gateway of the tests on the database of the servers, for an organization of the test's own."""
    async with gateway_on(url) as gateway:
        yield gateway


@pytest.mark.parametrize("processes", [1, 2])
async def test_debits_of_many_clients_on_one_meter_make_one_line(
    gateway: Gateway, servers: list[Server], processes: int
) -> None:
    meter_id = await make_meter(gateway, "hot", totalCredits=str(CREDITS))
    answers: dict[int, list[Answer]] = defaultdict(list)
    conflicts: dict[int, Answer] = {}

    async def use(connection: Connection, client: int) -> None:
        for place in range(DEBITS):
            number = client * DEBITS + place
            answers[number].append(await record(connection, event(number)))
            if number % 3 == 0:
                # Its neighbour sends the same event, at about the same moment, or has sent it already.
                other = (number + DEBITS) % (CLIENTS * DEBITS)
                answers[other].append(await record(connection, event(other)))
            if number % 11 == 0:
                conflicts[number] = await record(connection, event(number) | {"usageName": "another"})

    async with connected(servers[:processes], gateway.key, clients=CLIENTS) as connections:
        await asyncio.gather(*[use(connection, client) for client, connection in enumerate(connections)])

        # Every event has one result, however often it was sent.
        accepted: dict[int, Answer] = {}
        for number in range(CLIENTS * DEBITS):
            result = result_of(event(number), answers[number])
            if result is not None:
                accepted[number] = result
        # What was changed under the id of an accepted one conflicts with it, and is refused like any other else.
        first = {number: {"id": answer["entry"]["id"]} for number, answer in accepted.items()}
        assert {number: answer.get("first") for number, answer in conflicts.items()} == {
            number: first.get(number) for number in conflicts
        }

        # The accepted ones make one line of totals without gap or repeat.
        used = sum(int(answer["accepted"]) for answer in accepted.values())
        assert 0 <= CREDITS - used < 7
        line = sorted(accepted.values(), key=lambda answer: int(answer["entry"]["usedCreditsAfter"]))
        total = 0
        for place, answer in enumerate(line, start=2):
            total += int(answer["accepted"])
            assert answer["entry"] == {
                "id": f"ent_{meter_id.removeprefix('mtr_')}_{place}",
                "usedCreditsAfter": str(total),
            }

        # And the books say the same.
        meter = await meter_of(gateway, "hot", around=datetime.now(UTC).date())
        assert meter["usedCredits"] == str(used)
        assert sum(meter["usage"].values()) == used
        assert [(entry["id"], entry["usedCreditsAfter"]) for entry in meter["ledger"][1:]] == [
            (answer["entry"]["id"], answer["entry"]["usedCreditsAfter"]) for answer in line
        ]
        assert sorted(entry["key"] for entry in meter["ledger"][1:]) == sorted(f"e{number}" for number in accepted)
        assert await disagreements(gateway.database, meter_id) == []

        # Sent again, through whichever process, each answers its first result.
        again = sorted(accepted)[::16]
        replays = await asyncio.gather(
            *[replay(connection, again[place::CLIENTS]) for place, connection in enumerate(connections)]
        )
        for number, replayed in {number: answer for each in replays for number, answer in each.items()}.items():
            assert replayed == accepted[number] | {"replayed": True}
        assert await meter_of(gateway, "hot", around=datetime.now(UTC).date()) == meter


def result_of(event: dict[str, Any], answers: list[Answer]) -> Answer | None:
    """Return the one result that all answers for an event show; None: it was refused."""
    names = {answer["__typename"] for answer in answers}
    if names == {"InsufficientCredits"}:
        # What was refused once is refused again, for nothing was refilled.
        assert all(int(answer["available"]) < int(event["amount"]) for answer in answers)
        return None
    assert names == {"RecordUsageSuccess"}
    assert [answer["replayed"] for answer in answers].count(False) == 1
    first = answers[0] | {"replayed": False}
    assert [answer | {"replayed": False} for answer in answers] == [first] * len(answers)
    assert int(first["accepted"]) + int(first["refused"]) == int(event["amount"])
    assert first["refused"] == "0" or event["policy"] == "PARTIAL"
    assert first["overLimit"] is False
    return first


async def replay(connection: Connection, numbers: list[int]) -> dict[int, Answer]:
    return {number: await record(connection, event(number)) for number in numbers}
