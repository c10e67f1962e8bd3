"""`tollgate verify`: a healthy database is reported as such, and whatever breaks an invariant is named exactly."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from resolvers.maintenance.meter_check import Disagreement
from resolvers.maintenance.verify import Verified, verify
from storage.engine.database import Database
from storage.engine.transactions import Writer
from tests import commands
from tests.commands import Done
from tests.conftest import Gateway, empty_database, gateway_on, migrated
from tests.spoilt import COPY, ENTRY, METER, SPOILT, Spoilt
from tests.steps import disagreements, found_after, make_customer, make_meter, must

pytestmark = pytest.mark.slow

#: What `keep_books` writes: entries, and the rows of days.
ENTRIES = 6
DAYS = 2


async def meter_of_each_kind(gateway: Gateway, name: str = "m") -> str:
    """Make a meter with an entry of each kind, and return its id.

    |     | kind     | key | amount | total | used | limit | day        | name    |
    | --- | -------- | --- | ------ | ----- | ---- | ----- | ---------- | ------- |
    | 1   | OPENING  |     | 100    | 100   | 0    | 100   |            |         |
    | 2   | USAGE    | a   | 10     | 100   | 10   | 100   | 2026-03-16 | default |
    | 3   | USAGE    | b   | 20     | 100   | 30   | 100   | 2026-03-15 | tokens  |
    | 4   | REFILL   | r   | 5      | 105   | 30   | 105   |            |         |
    | 5   | VOID     | v   | 4      | 105   | 26   | 105   | 2026-03-16 | default |
    | 6   | SETTINGS |     | 0      | 105   | 26   | 155   |            |         |
    """
    meter_id = await make_meter(gateway, name, totalCredits="100")
    meter = {"externalMeterId": name}
    await must(gateway, "recordUsage", **meter, eventId="a", amount="10")
    occurred_at = "2026-03-15T12:00:00Z"
    await must(
        gateway,
        "recordUsage",
        **meter,
        eventId="b",
        amount="20",
        usageName="tokens",
        policy="PARTIAL",
        occurredAt=occurred_at,
    )
    await must(gateway, "refillBillingMeter", **meter, refill="5", idempotencyKey="r")
    await must(gateway, "voidUsage", **meter, eventId="a", amount="4", reason="x", idempotencyKey="v")
    await must(gateway, "updateBillingMeter", **meter, allowOverages=True, spendCap="50")
    return meter_id


async def spoil(gateway: Gateway, *statements: str, **parameters: Any) -> None:
    """Run statements, of which `:id` is a meter's, as no code of ours would."""

    async def run(writer: Writer) -> None:
        for statement in statements:
            named = {name: value for name, value in parameters.items() if f":{name}" in statement}
            await writer.execute(text(statement), named)

    await gateway.database.write(run)


async def found_in(database: Database) -> list[tuple[str, str]]:
    """Return all disagreements of the database."""
    return [(found.id, found.message) async for found in verify(database, Verified())]


@pytest.fixture(scope="module")
async def books(
    dialect: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Gateway, str]]:
    """The gateway on a database of this module, and a meter on it, which has a neighbour."""
    url = empty_database(dialect, request, tmp_path_factory.mktemp("spoilt"))
    async with gateway_on(await migrated(url)) as gateway:
        meter_id = await meter_of_each_kind(gateway)
        await meter_of_each_kind(gateway, "neighbour")
        yield gateway, meter_id


# A healthy database.


async def test_an_empty_database_has_nothing_that_disagrees(own: Gateway) -> None:
    verified = Verified()
    assert [found async for found in verify(own.database, verified)] == []
    assert verified == Verified(meters=0, entries=0, days=0)


async def test_a_healthy_database_has_nothing_that_disagrees(own: Gateway) -> None:
    for name in ("one", "two"):
        await meter_of_each_kind(own, name)
    # A meter without a limit, one of no credits, one past its limit, and one whose only day has gone back to nothing.
    await make_meter(own, "unlimited", allowOverages=True)
    await must(own, "recordUsage", externalMeterId="unlimited", eventId="e", amount=str(2**63 - 1))
    await make_meter(own, "empty")
    await make_meter(own, "past", totalCredits="1")
    await must(own, "recordUsage", externalMeterId="past", eventId="e", amount="5", policy="FORCE")
    await make_meter(own, "voided", totalCredits=str(2**63 - 1), allowOverages=True, spendCap=str(2**63 - 1))
    await must(own, "recordUsage", externalMeterId="voided", eventId="e", amount="5")
    await must(own, "voidUsage", externalMeterId="voided", eventId="e", reason="x", idempotencyKey="v")
    # The emergency stop leaves a meter whose use is past its limit.
    await make_meter(own, "stopped", totalCredits="1", allowOverages=True)
    await must(own, "recordUsage", externalMeterId="stopped", eventId="e", amount="5")
    await must(own, "updateBillingMeter", externalMeterId="stopped", allowOverages=False)
    verified = Verified()
    seen: list[int] = []
    assert [found async for found in verify(own.database, verified, on_progress=seen.append)] == []
    entries = 2 * ENTRIES + 2 + 1 + 2 + 3 + 3
    # A day that has gone back to nothing may be kept as 0.
    assert verified == Verified(meters=7, entries=entries, days=verified.days)
    assert verified.days in {2 * DAYS + 3, 2 * DAYS + 4}
    assert set(seen) == {7}


@pytest.mark.slow
async def test_what_is_written_meanwhile_does_not_disagree(own: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    # One meter at a time, so that the second one has not been read when the first one's disagreement is reported.
    monkeypatch.setattr("resolvers.maintenance.verify.METERS_AT_ONCE", 1)
    monkeypatch.setattr("resolvers.maintenance.verify.ENTRIES_AT_ONCE", 1)
    first = await meter_of_each_kind(own, "first")
    await meter_of_each_kind(own, "second")
    await spoil(own, "UPDATE usage_days SET total_usage = 7 WHERE meter_id = :id AND usage_name = 'default'", id=first)
    found = []
    verified = Verified()
    async for disagreement in verify(own.database, verified):
        found.append(disagreement)
        await must(own, "recordUsage", externalMeterId="second", eventId="c", amount="10")
        await meter_of_each_kind(own, "third")
    assert found == [Disagreement(first, "day 2026-03-16, 'default': the usage is 7 and should be 6")]
    assert verified == Verified(meters=2, entries=2 * ENTRIES, days=2 * DAYS)


# Each invariant, broken by hand.


@pytest.mark.parametrize("spoilt", SPOILT, ids=[spoilt.name for spoilt in SPOILT])
async def test_what_breaks_an_invariant_is_reported(books: tuple[Gateway, str], spoilt: Spoilt) -> None:
    gateway, meter_id = books
    found = await found_after(
        gateway.database, [statement.replace(":id", f"'{meter_id}'") for statement in spoilt.statements]
    )
    assert found == [Disagreement(meter_id, message) for message in spoilt.messages]


async def test_rows_of_no_meter_are_reported(own: Gateway) -> None:
    meter_id = await meter_of_each_kind(own)
    await spoil(own, "DELETE FROM billing_meters WHERE id = :id", id=meter_id)
    assert await found_in(own.database) == [
        (meter_id, "usage_days has rows of it, and there is no such meter"),
        (meter_id, "ledger_entries has rows of it, and there is no such meter"),
        (meter_id, "events has rows of it, and there is no such meter"),
    ]


#: How the constraint is taken away that makes an event count once.
WITHOUT_UNIQUE_KEYS: Mapping[str, tuple[str, ...]] = {
    "postgresql": ("ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_meter_id_kind_key_key",),
    "sqlite": (
        "CREATE TABLE without_keys AS SELECT * FROM ledger_entries",
        "DROP TABLE ledger_entries",
        "ALTER TABLE without_keys RENAME TO ledger_entries",
    ),
}


@pytest.mark.slow
async def test_a_key_of_two_entries_is_reported(own: Gateway) -> None:
    first = await meter_of_each_kind(own, "one")
    second = await meter_of_each_kind(own, "two")
    await spoil(own, *WITHOUT_UNIQUE_KEYS[own.database.dialect])
    assert await disagreements(own.database) == []
    # The same key for entries of another kind or meter is none of it.
    await spoil(own, ENTRY.format("key = 'a'", 4), ENTRY.format("key = 'a'", 5), id=second)
    assert await disagreements(own.database) == []
    await spoil(own, ENTRY.format("key = 'a'", 3), id=first)
    assert await found_in(own.database) == [(first, "the key 'a' names more than one usage entry")]


async def test_all_that_disagrees_is_reported_of_every_meter(own: Gateway) -> None:
    meters = [await meter_of_each_kind(own, f"m{number}") for number in range(3)]
    await spoil(own, METER.format("used_credits = 25"), id=meters[0])
    await spoil(own, ENTRY.format("limit_credits = 9", 2), METER.format("last_seq = 5"), id=meters[2])
    assert sorted(await found_in(own.database)) == [
        (meters[0], "its used credits is 25 and should be 26"),
        (meters[2], "entry 2: its limit is 9 and should be 100"),
        (meters[2], "its last entry is 5 and should be 6"),
    ]


# In bounded memory.


@pytest.mark.slow
@pytest.mark.one_server("it adds rows without their bucket")
@pytest.mark.parametrize(("at_once", "pieces"), [(1, 6), (2, 3), (5, 2), (6, 1)])
async def test_a_meter_with_more_entries_than_are_held_at_once_is_checked_in_pieces(
    own: Gateway, monkeypatch: pytest.MonkeyPatch, at_once: int, pieces: int
) -> None:
    monkeypatch.setattr("resolvers.maintenance.verify.ENTRIES_AT_ONCE", at_once)
    meter_id = await meter_of_each_kind(own)
    verified = Verified()
    with own.statements() as statements:
        assert [found async for found in verify(own.database, verified)] == []
    assert verified == Verified(meters=1, entries=ENTRIES, days=DAYS)
    read_entries = [each for each in statements if "ledger_entries.seq BETWEEN" in each]
    assert len(read_entries) == pieces
    # What breaks an invariant is reported alike, also at the edges of the pieces.
    await spoil(own, "DELETE FROM ledger_entries WHERE meter_id = :id AND seq = 3", COPY.format(8, 6), id=meter_id)
    assert await found_in(own.database) == [
        (meter_id, "entry 4: it follows entry 2"),
        (meter_id, "entry 4: the used credits after it are 30 and should be 10"),
        (meter_id, "entry 8: it follows entry 6"),
        (meter_id, "entry 8: its allowOverages was False before it and should be True"),
        (meter_id, "entry 8: its spendCap was None before it and should be '50'"),
        (meter_id, "its last entry is 6 and should be 8"),
        (meter_id, "day 2026-03-15, 'tokens': the usage is 20 and should be 0"),
    ]


@pytest.mark.slow
async def test_only_what_the_ledger_holds_is_read_whatever_the_meter_says_of_it(
    own: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.maintenance.verify.ENTRIES_AT_ONCE", 3)
    meter_id = await meter_of_each_kind(own)
    for last_seq in (0, ENTRIES, 2**40, 2**63 - 1):
        await spoil(own, METER.format(f"last_seq = {last_seq}"), id=meter_id)
        with own.statements() as statements:
            found = await found_in(own.database)
        assert found == [(meter_id, f"its last entry is {last_seq} and should be 6")] * (last_seq != ENTRIES)
        assert len([each for each in statements if "ledger_entries.seq BETWEEN" in each]) == ENTRIES / 3


@pytest.mark.slow
@pytest.mark.parametrize(("meters_at_once", "entries_at_once"), [(1, 1_000), (2, 13), (1_000, 12)])
async def test_many_meters_are_checked_in_portions(
    own: Gateway, monkeypatch: pytest.MonkeyPatch, meters_at_once: int, entries_at_once: int
) -> None:
    monkeypatch.setattr("resolvers.maintenance.verify.METERS_AT_ONCE", meters_at_once)
    monkeypatch.setattr("resolvers.maintenance.verify.ENTRIES_AT_ONCE", entries_at_once)
    meters = [await meter_of_each_kind(own, f"m{number}") for number in range(4)]
    await make_meter(own, "last")
    verified = Verified()
    assert [found async for found in verify(own.database, verified)] == []
    assert verified == Verified(meters=5, entries=4 * ENTRIES + 1, days=4 * DAYS)
    for meter_id in meters:
        await spoil(own, METER.format("used_credits = 25"), id=meter_id)
    # In the order of their ids, but for those of several buckets.
    assert sorted(await found_in(own.database)) == [
        (meter_id, "its used credits is 25 and should be 26") for meter_id in meters
    ]


# The command.


async def run_verify(url: str, folder: Path, *options: str) -> Done:
    environment = commands.environment(TOLLGATE_DATABASE_URL=url)
    return await asyncio.to_thread(commands.run, "verify", *options, folder=folder, environment=environment)


async def test_the_command_says_that_all_agrees_and_ends_with_0(
    own: Gateway, migrated_url: str, tmp_path: Path
) -> None:
    await meter_of_each_kind(own)
    code, output, messages = await run_verify(migrated_url, tmp_path)
    assert (code, output) == (0, "")
    assert "1 meters, 6 entries and 2 usage days verified: 0 disagreements." in messages


async def test_the_command_says_what_is_overdue_by_the_machines_clock(
    own: Gateway, migrated_url: str, tmp_path: Path
) -> None:
    meter_id = await make_meter(own, totalCredits="10")
    await must(own, "holdCredits", holdId="h", amount="1", expiresInSeconds=60)
    code, output, _ = await run_verify(migrated_url, tmp_path)
    overdue = "what was due at 2026-03-16 12:01:00+00:00 is not written, as a running gateway does within seconds"
    assert (code, output) == (1, f"{meter_id}: {overdue}\n")


async def test_the_command_reports_a_customer_that_is_not_found_by_its_email_and_name(
    own: Gateway, migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.maintenance.verify.CUSTOMERS_AT_ONCE", 2)
    made = [await make_customer(own, "Ada@example.com", name="Ada" if number else None) for number in range(5)]
    assert await disagreements(own.database) == []
    stale = "UPDATE customers SET email_folded = NULL, name_folded = '{}' WHERE id = :id"
    await spoil(own, stale.format("ada"), id=made[0])
    await spoil(own, stale.format("Ada"), id=made[4])
    expected = [
        {"customer": made[0], "message": "its email_folded does not follow from its email"},
        {"customer": made[0], "message": "its name_folded does not follow from its name"},
        {"customer": made[4], "message": "its email_folded does not follow from its email"},
        {"customer": made[4], "message": "its name_folded does not follow from its name"},
    ]
    code, output, _ = await run_verify(migrated_url, tmp_path, "--json")
    assert (code, json.loads(output)["disagreements"]) == (1, expected)
    # Whatever changes a customer repairs it.
    for customer_id in (made[0], made[4]):
        await own.mutate("updateCustomer", "", id=customer_id, externalId=customer_id)
    assert await disagreements(own.database) == []


async def test_a_debit_by_the_release_before_is_reported_until_the_next_write_repairs_it(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="100")
    # As a release before the column writes it: the column stays as it was.
    await spoil(own, METER.format("used_credits = 90, last_seq = 2"), id=meter_id)
    message = "its number of available bits is 7 and should be 4"
    assert (meter_id, message) in await found_in(own.database)
    await must(own, "recordUsage", eventId="e", amount="1")
    assert [found for found in await found_in(own.database) if "bits" in found[1]] == []


async def test_the_command_reports_what_disagrees_and_ends_with_1(
    own: Gateway, migrated_url: str, tmp_path: Path
) -> None:
    meter_id = await meter_of_each_kind(own)
    await spoil(own, METER.format("used_credits = 25, limit_credits = 9"), id=meter_id)
    code, output, messages = await run_verify(migrated_url, tmp_path)
    assert code == 1
    assert output.splitlines() == [
        f"{meter_id}: its used credits is 25 and should be 26",
        f"{meter_id}: its limit is 9 and should be 155",
        f"{meter_id}: its number of available bits is 8 and should be 0",
    ]
    assert "1 meters, 6 entries and 2 usage days verified: 3 disagreements." in messages
    code, output, _ = await run_verify(migrated_url, tmp_path, "--json")
    assert code == 1
    assert json.loads(output) == {
        "meters": 1,
        "entries": 6,
        "days": 2,
        "disagreements": [
            {"meter": meter_id, "message": "its used credits is 25 and should be 26"},
            {"meter": meter_id, "message": "its limit is 9 and should be 155"},
            {"meter": meter_id, "message": "its number of available bits is 8 and should be 0"},
        ],
    }
