"""Turns: those who work long do so one after the other, and all others go first."""

import asyncio

import pytest

from storage.engine import turns
from storage.engine.turns import MAX_AT_ONCE, Turn, next_turn, turn_for
from tests.conftest import Gateway
from tests.steps import METER, make_meter

SHORT = '{ billingMeter(workspaceId: "w", externalMeterId: "m") { totalCredits } }'


class Rounds:
    """Counts the rounds of the event loop, and notes in which of them somebody works."""

    def __init__(self) -> None:
        self.now = 0
        self.worked: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._count)

    def _count(self) -> None:
        self.now += 1
        self._next = self._loop.call_soon(self._count)

    def stop(self) -> None:
        self._next.cancel()


async def work(rounds: Rounds, records: int) -> None:
    await turn_for(records)
    rounds.worked.append(rounds.now)


async def test_of_those_who_work_on_many_records_one_works_in_a_round() -> None:
    rounds = Rounds()
    await asyncio.gather(*[work(rounds, MAX_AT_ONCE + 1) for _ in range(5)])
    rounds.stop()
    assert len(rounds.worked) == 5
    assert len(set(rounds.worked)) == 5


async def test_who_works_on_few_records_waits_for_nobody() -> None:
    rounds = Rounds()
    many = [asyncio.create_task(work(rounds, MAX_AT_ONCE + 1)) for _ in range(5)]
    few = [asyncio.create_task(work(rounds, MAX_AT_ONCE)) for _ in range(5)]
    await asyncio.gather(*few)
    assert rounds.worked[:5] == [rounds.worked[0]] * 5
    await asyncio.gather(*many)
    rounds.stop()
    assert len(rounds.worked) == 10


async def test_others_go_before_the_next_turn() -> None:
    ran: list[str] = []
    asyncio.get_running_loop().call_soon(ran.append, "another")
    await next_turn()
    assert ran == ["another"]


async def test_a_turn_is_over_after_its_time_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.engine.turns.TURN_SECONDS", -1)
    turn = Turn()
    assert turn.is_over
    monkeypatch.setattr("storage.engine.turns.TURN_SECONDS", 3_600)
    await turn.next()
    assert not turn.is_over


async def answered_beside(gateway: Gateway, long: str) -> str:
    """Ask the long query in another's turn, for which it waits, and then a short one; return the long one's answer."""
    for query in (long, SHORT):
        for _ in range(2):  # Then both are compiled.
            await gateway.data(query)
    turn = turns._LOCKS.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with turn:
        asked = asyncio.create_task(gateway.post(long))
        while not (turn._waiters or asked.done()):  # noqa: ASYNC110  # A lock gives no sign of who waits for it.
            await asyncio.sleep(0)
        assert not asked.done()
        assert await gateway.data(SHORT) == {"billingMeter": {"totalCredits": "7"}}
        assert not asked.done()
    return (await asked).text


async def test_a_short_request_passes_one_that_has_read_many_records(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_meter(gateway, totalCredits="7")
    monkeypatch.setattr("storage.engine.turns.TURN_SECONDS", 3_600)  # So that nothing else in it waits for a turn.
    for number in range(MAX_AT_ONCE + 1):
        await gateway.mutate("createCustomer", "", email=f"c{number}@example.com")
    answer = await answered_beside(gateway, "{ customers { nodes { email billingMeters { nodes { id } } } } }")
    assert answer.count('"billingMeters":{"nodes":[]}') == MAX_AT_ONCE + 1


async def test_a_short_request_passes_a_long_answer(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_meter(gateway, totalCredits="7")
    monkeypatch.setattr("gateway.http.graphql.LONG_ANSWER_BYTES", 100)
    monkeypatch.setattr("storage.engine.turns.TURN_SECONDS", 3_600)  # As above.
    long = f'{{ billingMeter(workspaceId: "w", externalMeterId: "m") {{ {METER} }} }}'
    assert '"availableCredits":"7"' in await answered_beside(gateway, long)
