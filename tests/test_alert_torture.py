"""Alerts under load, on PostgreSQL with two gateways that are killed, while rules change: exact crossings, each once.

What there should be is computed here anew, from the entries and what the meter has taken on. With `--torture` there are
many more rounds. Each test prints the seed of what it left to chance.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from storage.maintenance import owned_rows
from storage.meters.events import EventRow
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow
from storage.meters.meter_alerts import MeterAlertRow
from tests.alerting import alert_events, make_alert, make_workspace_alert
from tests.conftest import Gateway, gateway_on
from tests.servers import Connection, connected
from tests.steps import disagreements, make_meter, reading_of
from tests.tormenting import Answer, ask, entries_of, kill_some, rounds, seeded, served

pytestmark = pytest.mark.one_python

CLIENTS, STEPS, AMOUNT, TOTAL, MIDDLE = 16, 40, 60, 10_000, 5_000


@pytest.fixture
async def gateway(migrated_url: str) -> AsyncIterator[Gateway]:
    """A gateway of the tests on a database of the test's own, beside those that are tormented."""
    async with gateway_on(migrated_url) as gateway:
        gateway.clock.now = datetime.now(UTC)
        yield gateway


async def come_and_go(connections: Sequence[Connection], name: str, client: int, chance: random.Random) -> None:
    """Debit and refill in turns, a third of it twice and over another gateway the second time."""
    for number in range(STEPS):
        key = f"{client}-{number}"
        values: Answer = {"externalMeterId": name}
        field = "recordUsage" if number % 2 == client % 2 else "refillBillingMeter"
        if field == "recordUsage":
            values |= {"eventId": key, "amount": str(AMOUNT), "policy": "FORCE"}
        else:
            values |= {"refill": str(AMOUNT), "idempotencyKey": key}
        senders = [connections[client]]
        if chance.random() < 1 / 3:
            senders.append(connections[CLIENTS + client])
        answers = await asyncio.gather(*[ask(each, field, "", **values) for each in senders])
        assert {answer["__typename"] for answer in answers} == {f"{field[0].upper()}{field[1:]}Success"}


def expected_of(row: MeterAlertRow, entries: Sequence[LedgerEntryRow]) -> list[tuple[int, str]]:
    """Return where a version of an alert crosses, by its own reading of the rules."""
    found: list[tuple[int, str]] = []
    was: bool | None = None
    used = 0
    for entry in entries:
        if entry.kind is LedgerEntryKind.USAGE:
            used += entry.amount
        below = entry.total_credits_after - entry.used_credits_after < row.threshold
        is_past = {"remaining_below": below, "day_usage_above": used > row.threshold}[row.kind.value]
        is_watched = was is not None and row.since_seq < entry.seq <= (row.until_seq or entry.seq)
        if is_watched and is_past is not was:
            found.append((entry.seq, "alert.triggered" if is_past else "alert.recovered"))
        was = is_past
    return found


def by_version(
    events: Sequence[EventRow], rows: Sequence[MeterAlertRow]
) -> dict[tuple[str, int], list[tuple[int, str]]]:
    """Return the events of each version of each alert, as places and types."""
    found: dict[tuple[str, int], list[tuple[int, str]]] = {(row.alert_id, row.version): [] for row in rows}
    for event in events:
        version = int(event.payload.partition('"version":')[2].partition(",")[0])
        found[event.alert_id or "", version].append((event.seq or 0, event.type.value))
    return found


@pytest.mark.parametrize("is_killed", [False, True], ids=["alive", "killed"])
async def test_crossings_are_exact_whatever_happens(
    gateway: Gateway,
    migrated_url: str,
    dialect: str,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    *,
    is_killed: bool,
) -> None:
    chance = seeded()
    async with served(migrated_url, dialect, tmp_path) as servers:
        for round_ in range(rounds(pytestconfig, few=1, many=20)):
            name = f"m{round_}"
            meter_id = await make_meter(gateway, name, totalCredits=str(TOTAL - MIDDLE), allowOverages=True)
            own = [
                await make_alert(gateway, "REMAINING_BELOW", MIDDLE + by, externalMeterId=name) for by in (0, 50, -50)
            ]
            await make_alert(gateway, "DAY_USAGE_ABOVE", AMOUNT * CLIENTS * STEPS // 4, externalMeterId=name)
            of_workspace = await make_workspace_alert(gateway, "REMAINING_BELOW", MIDDLE)
            done = asyncio.Event()
            async with (
                connected(servers, gateway.key, clients=CLIENTS) as first,
                connected(servers[::-1], gateway.key, clients=CLIENTS + 1) as second,
            ):
                killing = asyncio.create_task(kill_some(servers, 2 if is_killed else 0, chance))
                changing = asyncio.create_task(change_rules_of(gateway, [own[0], of_workspace], chance, done))
                both = [*first, *second]
                await asyncio.gather(*[come_and_go(both, name, client, chance) for client in range(CLIENTS)])
                await killing
                done.set()
                changes = await changing
            await check(gateway, meter_id, changes)


async def change_rules_of(gateway: Gateway, ids: Sequence[str], chance: random.Random, done: asyncio.Event) -> int:
    """Change the thresholds by a gateway that is not killed, again and again; return how often."""
    changes = 0
    while not done.is_set():
        threshold = str(MIDDLE + chance.randint(-100, 100))
        answer = await gateway.mutate("updateAlert", "", id=chance.choice(ids), threshold=threshold)
        assert answer["__typename"] == "UpdateAlertSuccess"
        changes += 1
        await asyncio.sleep(chance.random() / 5)
    return changes


async def check(gateway: Gateway, meter_id: str, changes: int) -> None:
    entries = await entries_of(gateway.database, meter_id)
    assert Counter(entry.kind for entry in entries) == {
        LedgerEntryKind.OPENING: 1,
        LedgerEntryKind.USAGE: CLIENTS * STEPS // 2,
        LedgerEntryKind.REFILL: CLIENTS * STEPS // 2,
    }
    async with reading_of(gateway.database, meter_id) as reader:
        rows = (await owned_rows.alerts_of(reader, [meter_id]))[meter_id]
    found = by_version(await alert_events(gateway, meter_id), rows)
    assert found == {(row.alert_id, row.version): expected_of(row, entries) for row in rows}
    for of_version in found.values():
        types = [type_ for _, type_ in of_version]
        assert all(type_ != after for type_, after in pairwise(types))
    crossings = sum(map(len, found.values()))
    print(f"{crossings} crossings of {len(found)} versions, {changes} changes")  # noqa: T201  # pytest shows it.
    assert crossings >= 200
    assert len(found) >= 5
    assert await disagreements(gateway.database, meter_id, now=datetime.now(UTC)) == []
