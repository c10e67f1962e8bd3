"""Holds and grants under load by the machine's clock, on PostgreSQL with two gateways, some of which are killed.

With `--torture` there are many more rounds. Each test prints the seed of what it left to chance.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow
from tests.conftest import Gateway, gateway_on
from tests.servers import PATIENCE_SECONDS, Connection, Server, connected
from tests.steps import disagreements, make_meter, must
from tests.tormenting import Answer, ask, entries_of, kill_some, rounds, seeded, served

pytestmark = pytest.mark.one_python

CLIENTS = 16

#: The entries that close a hold.
CLOSING = {LedgerEntryKind.USAGE, LedgerEntryKind.RELEASE, LedgerEntryKind.HOLD_EXPIRY}


@pytest.fixture
async def gateway(migrated_url: str) -> AsyncIterator[Gateway]:
    """A gateway of the tests on a database of the test's own, beside those that are tormented."""
    async with gateway_on(migrated_url) as gateway:
        gateway.clock.now = datetime.now(UTC)
        yield gateway


# Holds.

HOLDS, HELD, CREDITS = 200, 7, 1_000
ENTRY = "entry { kind usedCreditsAfter heldCreditsAfter }"
AFTER_HOLD = f"... on HoldCreditsSuccess {{ {ENTRY} }}"
AFTER_COMMIT = f"... on CommitHoldSuccess {{ accepted {ENTRY} }}"


async def use_holds(connection: Connection, name: str, numbers: Sequence[int], chance: random.Random) -> int:
    """Hold credits, then commit, release or forget what is held, and return what the commits took."""
    open_ = []
    for number in numbers:
        hold = {"externalMeterId": name, "holdId": f"h{number}"}
        seconds = chance.randint(1, 4)
        held = await ask(connection, "holdCredits", AFTER_HOLD, **hold, amount=str(HELD), expiresInSeconds=seconds)
        if held["__typename"] == "HoldCreditsSuccess":
            within_limit(held)
            open_.append(hold)
        else:
            assert held["__typename"] == "InsufficientCredits"
    used = 0
    for hold in open_:
        await asyncio.sleep(chance.random() / 10)
        what = chance.choices(["commit", "release", "forget"], [6, 2, 2])[0]
        if what == "release":
            released = await ask(connection, "releaseHold", "", **hold)
            assert released["__typename"] in {"ReleaseHoldSuccess", "HoldNotOpen"}
        elif what == "commit":
            amount, policy = str(chance.randint(0, 12)), chance.choice(["PARTIAL", "REJECT"])
            committed = await ask(connection, "commitHold", AFTER_COMMIT, **hold, amount=amount, policy=policy)
            if committed["__typename"] == "CommitHoldSuccess":
                within_limit(committed)
                used += int(committed["accepted"])
            else:
                # Its expiry came first, or what goes beyond it is not there.
                assert committed["__typename"] in {"HoldNotOpen", "InsufficientCredits"}
    return used


def within_limit(answer: Answer) -> None:
    entry = answer["entry"]
    assert int(entry["usedCreditsAfter"]) + int(entry["heldCreditsAfter"]) <= CREDITS


async def test_what_is_held_is_within_the_limit_and_is_closed_once_whatever_dies(
    gateway: Gateway, migrated_url: str, dialect: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    chance = seeded()
    async with served(migrated_url, dialect, tmp_path) as servers:
        for round_ in range(rounds(pytestconfig, few=1, many=20)):
            await check_round_of_holds(gateway, servers, f"m{round_}", chance)
    assert await disagreements(gateway.database, now=datetime.now(UTC)) == []


async def check_round_of_holds(gateway: Gateway, servers: Sequence[Server], name: str, chance: random.Random) -> None:
    meter_id = await make_meter(gateway, name, totalCredits=str(CREDITS))
    async with connected(servers, gateway.key, clients=CLIENTS) as connections:
        killing = asyncio.create_task(kill_some(servers, 2, chance))
        clients = [
            use_holds(each, name, range(client, HOLDS, CLIENTS), chance) for client, each in enumerate(connections)
        ]
        used = sum(await asyncio.gather(*clients))
        await killing
    # The gateways book the last expiry, which nobody asks for.
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_free(entries := await entries_of(gateway.database, meter_id)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    check_holds(entries, used)
    assert await disagreements(gateway.database, meter_id, now=datetime.now(UTC)) == []


def is_free(entries: Sequence[LedgerEntryRow]) -> bool:
    """Whether each hold of the meter is closed."""
    kinds = Counter(entry.kind for entry in entries)
    return kinds[LedgerEntryKind.HOLD] == sum(kinds[kind] for kind in CLOSING)


def check_holds(entries: Sequence[LedgerEntryRow], used: int) -> None:
    """Assert what holds of the ledger of a meter when all is over; `used` is what the commits' answers came to."""
    holds = {entry.key: entry for entry in entries if entry.kind is LedgerEntryKind.HOLD}
    assert len(holds) >= CREDITS // HELD
    closed = Counter(entry.key for entry in entries if entry.kind in CLOSING)
    assert closed == Counter(holds.keys())
    for entry in entries:
        if entry.kind in {LedgerEntryKind.HOLD, LedgerEntryKind.USAGE}:
            assert entry.used_credits_after + entry.held_credits_after <= CREDITS
    assert entries[-1].held_credits_after == 0
    # A commit whose answer was lost is sent again, so each is in the sum.
    assert entries[-1].used_credits_after == used


# A grant that ends.


async def debit(connection: Connection, name: str, client: int, ends: datetime) -> list[tuple[str, datetime, datetime]]:
    """Debit around the end of a grant; return how each debit was answered, when it was sent and when answered.

    One of them is sent after the end, however long the one before it has taken.
    """
    answers: list[tuple[str, datetime, datetime]] = []
    for number in range(10**6):
        sent = datetime.now(UTC)
        if sent > ends + timedelta(seconds=0.2) and answers and answers[-1][1] >= ends:
            break
        answer = await ask(
            connection, "recordUsage", "", externalMeterId=name, eventId=f"{client}-{number}", amount="1"
        )
        answers.append((answer["__typename"], sent, datetime.now(UTC)))
    return answers


#: What the grant has: more than any burst takes.
GRANTED = 10**6


@pytest.mark.parametrize("base", [0, 10**9], ids=["alone", "before a base"])
async def test_a_grant_ends_at_its_moment_in_the_middle_of_a_burst(
    gateway: Gateway, tmp_path: Path, pytestconfig: pytest.Config, *, base: int
) -> None:
    database = gateway.database
    async with served(gateway.services.settings.database_url, database.dialect, tmp_path) as servers:
        for round_ in range(rounds(pytestconfig, few=2, many=30)):
            await check_burst(gateway, servers, f"m{round_}", base)


async def check_burst(gateway: Gateway, servers: Sequence[Server], name: str, base: int) -> None:
    gateway.clock.now = datetime.now(UTC)
    meter_id = await make_meter(gateway, name, totalCredits=str(base))
    ends = datetime.now(UTC) + timedelta(seconds=0.6)
    terms: Answer = {"amount": str(GRANTED), "priority": 0, "expiresAt": ends.isoformat()}
    await must(gateway, "grantCredits", externalMeterId=name, **terms)
    async with connected(servers, gateway.key, clients=CLIENTS) as connections:
        answered = await asyncio.gather(*[debit(each, name, client, ends) for client, each in enumerate(connections)])
    answers = [answer for each in answered for answer in each]
    assert any(sent < ends for _, sent, _ in answers)
    assert any(sent >= ends for _, sent, _ in answers)
    for type_name, sent, back in answers:
        if back < ends or base:
            assert type_name == "RecordUsageSuccess"
        elif sent >= ends:
            assert type_name == "InsufficientCredits"
    entries = await entries_of(gateway.database, meter_id)
    (grant,) = [entry for entry in entries if entry.kind is LedgerEntryKind.GRANT]
    (expiry,) = [entry for entry in entries if entry.kind is LedgerEntryKind.EXPIRY]
    usages = [entry for entry in entries if entry.kind is LedgerEntryKind.USAGE]
    for entry in usages:
        assert entry.draws == [[grant.seq if entry.recorded_at < ends else 0, 1]]
    drawn = sum(entry.recorded_at < ends for entry in usages)
    assert (expiry.recorded_at, expiry.amount) == (ends, GRANTED - drawn)
    assert len(usages) == [type_name for type_name, *_ in answers].count("RecordUsageSuccess")
    assert await disagreements(gateway.database, meter_id, now=datetime.now(UTC)) == []
