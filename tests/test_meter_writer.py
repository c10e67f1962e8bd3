"""The meter writer: concurrent commands are decided in groups, and every caller gets its own answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from time import perf_counter_ns

import asyncpg
import pytest
from sqlalchemy import text

from resolvers.bounds import DEFAULT_BOUNDS
from resolvers.errors import (
    AmountOutOfRange,
    BillingMeterNotFound,
    ExceedsVoidable,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidInput,
    Refusal,
    SpendCapExceeded,
    Unavailable,
    UsageEventNotFound,
)
from resolvers.meters.record_usage import RecordUsage
from resolvers.meters.refill import Refill
from resolvers.meters.settings import ChangeSettings
from resolvers.meters.void_usage import VoidUsage
from resolvers.meters.writing.lanes import Submission
from resolvers.meters.writing.writer import MAX_NAMES, MeterWriter
from resolvers.observation import Observation
from resolvers.rules.commands import Command, Decision
from storage import customers
from storage.engine.database import Database, Outcome
from storage.engine.transactions import Writer
from storage.meters.billing_meters import MeterName
from storage.meters.ledger import LedgerEntryKind, OverLimitPolicy
from storage.tenants import Environment
from tests import steps
from tests.conftest import NOW, Gateway, on_postgresql
from tests.steps import books_of, held, make_customer, make_meter, unchanged, until, usage_event

pytestmark = pytest.mark.one_server("it looks at the groups and lanes of one bucket")

MAX = 2**63 - 1

#: The most events that may wait.
MAX_WAITING = DEFAULT_BOUNDS.waiting_events

#: The statements of a group whatever its size: lock the meters, look up the ids, update, upsert the days, insert.
OF_A_GROUP = 5


def outcome_of(result: Decision | Refusal) -> Decision:
    assert isinstance(result, Decision)
    return result


async def together(writer: MeterWriter, events: Sequence[RecordUsage]) -> list[Decision | Refusal]:
    """Record the events at once, each for a caller of its own, and return the results in the order of the events."""
    answers = await asyncio.gather(*[writer.submit([each]) for each in events])
    assert [len(answer) for answer in answers] == [1] * len(events)
    return [answer[0] for answer in answers]


@asynccontextmanager
async def stopped(gateway: Gateway) -> AsyncIterator[None]:
    """Let no group be finished before this ends, though its meters be locked by nobody."""

    async def work(writer: Writer) -> None:
        if writer.dialect == "postgresql":
            await writer.execute(text("LOCK TABLE usage_days IN SHARE MODE"))

    async with held(gateway.database, work):
        yield


@asynccontextmanager
async def locked(gateway: Gateway, *external_meter_ids: str) -> AsyncIterator[None]:
    """Hold the locks of meters, as another gateway does."""
    async with AsyncExitStack() as stack:
        for name in external_meter_ids:
            full_name = MeterName(gateway.org_id, Environment.SANDBOX, "w", name)
            await stack.enter_async_context(steps.locked(gateway.database, full_name))
        yield


async def begun(writer: MeterWriter) -> None:
    """Let the writer take up all that it was given so far."""
    await until(lambda: writer._lanes[0].first.running is not None and not writer.pending)


@asynccontextmanager
async def another_writer(gateway: Gateway, *, max_pending: int = MAX_WAITING) -> AsyncIterator[MeterWriter]:
    """A writer on the same database with connections of its own, as in another process."""
    database = Database(gateway.services.settings.database_url)
    writer = MeterWriter(database, gateway.clock, max_pending=max_pending)
    try:
        yield writer
    finally:
        await writer.close()
        await database.close()


# Groups.


async def test_concurrent_events_are_decided_in_their_order_by_one_transaction(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    writer = gateway.services.meter_writer
    await writer.submit([usage_event(gateway, "known", 1)])
    with gateway.statements() as statements:
        results = await together(writer, [usage_event(gateway, f"e{number}", number) for number in range(1, 14)])
    assert len(statements) == OF_A_GROUP
    books = await books_of(gateway)
    # 1 and then 1 + 2 + … + 13 = 92 of 100.
    assert [entry.key for entry in books.entries[2:]] == [f"e{number}" for number in range(1, 14)]
    assert [outcome_of(result).entry for result in results] == books.entries[2:]
    # Every answer shows the meter as it is after the commit.
    assert {outcome_of(result).billing_meter for result in results} == {books.meter}
    assert books.meter.used_credits == 92
    assert books.days == {("2026-03-16", "default"): 92}


async def test_the_first_to_arrive_gets_the_credits(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    amounts = [6, 5, 4, 1, 0]
    results = await together(
        gateway.services.meter_writer,
        [usage_event(gateway, f"e{place}", amount) for place, amount in enumerate(amounts)],
    )
    books = await books_of(gateway)
    assert [type(result) for result in results] == [
        Decision,
        InsufficientCredits,
        Decision,
        InsufficientCredits,
        Decision,
    ]
    assert [entry.amount for entry in books.entries] == [10, 6, 4]
    for result, available in ((results[1], 4), (results[3], 0)):
        # At the decision so much was available; the meter is shown as it is after the commit.
        assert isinstance(result, InsufficientCredits)
        assert result.available == available
        assert result.billing_meter == books.meter


async def test_policies_see_what_the_events_before_them_in_the_group_left(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    results = await together(
        gateway.services.meter_writer,
        [
            usage_event(gateway, "a", 4),
            usage_event(gateway, "b", 9, policy=OverLimitPolicy.PARTIAL),
            usage_event(gateway, "c", 1, policy=OverLimitPolicy.PARTIAL),
            usage_event(gateway, "d", 3, policy=OverLimitPolicy.FORCE),
            usage_event(gateway, "e", 0),
            usage_event(gateway, "f", MAX, policy=OverLimitPolicy.FORCE),
        ],
    )
    found = [
        (result.accepted, result.refused, result.is_over_limit) if isinstance(result, Decision) else type(result)
        for result in results
    ]
    assert found == [(4, 0, False), (6, 3, False), InsufficientCredits, (3, 0, True), (0, 0, True), AmountOutOfRange]
    assert (await books_of(gateway)).meter.used_credits == 13


async def test_what_arrives_while_a_group_commits_is_the_next_group(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    writer = gateway.services.meter_writer
    await writer.submit([usage_event(gateway, "known", 1)])
    with gateway.statements() as statements:
        async with stopped(gateway):
            of_the_lock = len(statements)
            first = asyncio.create_task(together(writer, [usage_event(gateway, "first", 1)]))
            await begun(writer)
            rest = asyncio.create_task(
                together(writer, [usage_event(gateway, f"e{number}", 1) for number in range(50)])
            )
            # They all arrive, and nothing can be decided.
            await until(lambda: writer.pending == 50)
            assert not first.done()
            assert not rest.done()
        (alone,) = await first
        gathered = await rest
        assert len(statements) == of_the_lock + 2 * OF_A_GROUP
    books = await books_of(gateway)
    assert [entry.key for entry in books.entries[2:]] == ["first"] + [f"e{number}" for number in range(50)]
    # The first group's answer shows the meter after the first group.
    assert outcome_of(alone).billing_meter.used_credits == 2
    assert {outcome_of(result).billing_meter for result in gathered} == {books.meter}
    assert books.meter.used_credits == 52


@pytest.mark.parametrize("size", [1, 2, 1_000])
async def test_a_group_takes_the_same_statements_whatever_its_size(gateway: Gateway, size: int) -> None:
    for number in range(4):
        await make_meter(gateway, externalMeterId=f"m{number}", totalCredits="1000")
    writer = gateway.services.meter_writer
    events = [
        usage_event(
            gateway, f"e{number}", 1, external_meter_id=f"m{number % 4}", usage_name=f"u{number % 7}", metadata={"a": 1}
        )
        for number in range(size)
    ]
    # The first time, the ids of the meters are looked up, all of them at once.
    with gateway.statements() as statements:
        first = await together(writer, events)
    assert len(statements) == OF_A_GROUP + 1
    assert {outcome_of(result).replayed for result in first} == {False}
    with gateway.statements() as statements:
        await together(writer, [each._replace(event_id=f"{each.event_id} again") for each in events])
    assert len(statements) == OF_A_GROUP
    # Where there is nothing to write, nothing is.
    with gateway.statements() as statements:
        again = await together(writer, events)
    assert len(statements) == 2
    assert {outcome_of(result).replayed for result in again} == {True}
    used = [(await books_of(gateway, f"m{number}")).meter.used_credits for number in range(4)]
    assert used == [2 * len(range(number, size, 4)) for number in range(4)]


async def test_a_submission_is_never_divided(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10000")
    writer = gateway.services.meter_writer
    await writer.submit([usage_event(gateway, "known", 1)])
    sizes = [600, 500, 1_500, 1]
    with gateway.statements() as statements:
        answers = await asyncio.gather(
            *[
                writer.submit([usage_event(gateway, f"{place}-{number}", 1) for number in range(size)])
                for place, size in enumerate(sizes)
            ]
        )
    # 600 and 500 are more than the 1,000 of one group, and 1,500 have a group alone.
    assert len(statements) == 4 * OF_A_GROUP
    assert [len(answer) for answer in answers] == sizes
    assert [outcome_of(answer[-1]).billing_meter.used_credits for answer in answers] == [601, 1_101, 2_601, 2_602]
    books = await books_of(gateway)
    assert books.meter.used_credits == 2_602
    assert [entry.key for entry in books.entries[2:]] == [
        f"{place}-{number}" for place, size in enumerate(sizes) for number in range(size)
    ]


# One group, many callers.


async def test_equal_events_in_one_group_count_once(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    writer = gateway.services.meter_writer
    results = await together(writer, [usage_event(gateway, "e", 3, metadata={"a": 1})] * 8)
    outcomes = [outcome_of(result) for result in results]
    assert [outcome.replayed for outcome in outcomes] == [False] + [True] * 7
    assert {(outcome.accepted, outcome.refused, outcome.billing_meter.used_credits) for outcome in outcomes} == {
        (3, 0, 3)
    }
    books = await books_of(gateway)
    assert len(books.entries) == 2
    assert [outcome.entry for outcome in outcomes] == [books.entries[1]] * 8
    assert books.days == {("2026-03-16", "default"): 3}


async def test_unequal_events_of_one_id_in_one_group_conflict_with_the_first(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    first = usage_event(gateway, "e", 3, metadata={"a": 1})
    others = [
        first._replace(amount=4),
        first._replace(usage_name="other"),
        first._replace(policy=OverLimitPolicy.PARTIAL),
        first._replace(occurred_at=NOW),
        first._replace(metadata={"a": 1.5}),
        first._replace(metadata={"a": True}),
    ]
    results = await together(gateway.services.meter_writer, [first, *others, first])
    books = await books_of(gateway)
    assert outcome_of(results[0]).replayed is False
    for result in results[1:-1]:
        assert isinstance(result, IdempotencyConflict)
        assert result.entry == books.entries[1]
    assert outcome_of(results[-1]).replayed is True
    assert len(books.entries) == 2
    assert books.days == {("2026-03-16", "default"): 3}


async def test_an_id_that_was_refused_is_free_for_the_next_in_the_group(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    results = await together(
        gateway.services.meter_writer,
        [
            usage_event(gateway, "e", 11),
            usage_event(gateway, "e", 4),
            usage_event(gateway, "e", 11),
            usage_event(gateway, "e", 4),
        ],
    )
    assert [type(result) for result in results] == [
        InsufficientCredits,
        Decision,
        IdempotencyConflict,
        Decision,
    ]
    assert [outcome_of(result).replayed for result in results[1::2]] == [False, True]
    assert (await books_of(gateway)).meter.used_credits == 4


async def test_many_meters_of_many_tenants_are_decided_in_one_group(gateway: Gateway) -> None:
    org_ids = [gateway.org_id, f"{gateway.org_id}-b", f"{gateway.org_id}-c"]
    tenants = [(org_id, environment) for org_id in org_ids for environment in Environment]
    for org_id, environment in tenants:
        caller = await gateway.caller(org_id=org_id, environment=environment)
        for name in ("m", "n"):
            await make_meter(caller, name, totalCredits="100")
    # The same names and ids everywhere; the amount shows whose event it is.
    events = [
        usage_event(gateway, f"e{number}", 1 + place, org_id=org_id, environment=environment, external_meter_id=name)
        for number in range(5)
        for place, (org_id, environment) in enumerate(tenants)
        for name in ("m", "n")
    ]
    with gateway.statements() as statements:
        results = await together(gateway.services.meter_writer, events)
    assert len(statements) == OF_A_GROUP + 1
    for place, (org_id, environment) in enumerate(tenants):
        for name in ("m", "n"):
            books = await books_of(gateway, name, org_id=org_id, environment=environment)
            assert books.meter.used_credits == 5 * (1 + place)
            assert books.days == {("2026-03-16", "default"): 5 * (1 + place)}
            assert [entry.key for entry in books.entries[1:]] == ["e0", "e1", "e2", "e3", "e4"]
            own = [
                outcome_of(result)
                for each, result in zip(events, results, strict=True)
                if each.meter == MeterName(org_id, environment, "w", name)
            ]
            assert [outcome.entry for outcome in own] == books.entries[1:]
            assert {outcome.billing_meter for outcome in own} == {books.meter}


async def test_a_refused_event_leaves_its_neighbours_alone(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    results = await together(
        gateway.services.meter_writer,
        [
            usage_event(gateway, "a", 1),
            usage_event(gateway, "b", 1, external_meter_id="unknown"),
            usage_event(gateway, "c", 1, org_id=f"{gateway.org_id}-unknown"),
            usage_event(gateway, "d", 1, occurred_at=NOW.replace(year=2025)),
            usage_event(gateway, "e", 100),
            usage_event(gateway, "a", 2),
            usage_event(gateway, "f", 2),
        ],
    )
    assert [type(result) for result in results] == [
        Decision,
        BillingMeterNotFound,
        BillingMeterNotFound,
        InvalidInput,
        InsufficientCredits,
        IdempotencyConflict,
        Decision,
    ]
    books = await books_of(gateway)
    assert [(entry.key, entry.amount) for entry in books.entries] == [(None, 10), ("a", 1), ("f", 2)]
    assert books.days == {("2026-03-16", "default"): 3}


async def test_an_event_that_the_database_cannot_take_leaves_its_neighbours_alone(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    # Such an event never comes through the API: its amount is more than a column holds.
    impossible = usage_event(gateway, "b", 2**63, policy=OverLimitPolicy.PARTIAL)
    answers = await asyncio.gather(
        *[
            gateway.services.meter_writer.submit([each])
            for each in (usage_event(gateway, "a", 1), impossible, usage_event(gateway, "c", 2))
        ],
        return_exceptions=True,
    )
    assert isinstance(answers[0], list)
    assert isinstance(answers[1], Exception)
    assert not isinstance(answers[1], Unavailable)
    assert isinstance(answers[2], list)
    books = await books_of(gateway)
    assert [(entry.key, entry.amount) for entry in books.entries] == [(None, 10), ("a", 1), ("c", 2)]


async def test_meters_are_found_also_when_no_more_names_can_be_remembered(gateway: Gateway) -> None:
    for name in ("m", "n"):
        await make_meter(gateway, externalMeterId=name, totalCredits="10")
    writer = gateway.services.meter_writer
    await writer.submit([usage_event(gateway, "a", 1)])
    # As after events of very many meters; `m` is among those that are remembered, `n` is not.
    strangers = (MeterName("org", Environment.LIVE, "w", str(number)) for number in range(MAX_NAMES - len(writer._ids)))
    writer._ids |= dict.fromkeys(strangers, "mtr_000000000000000000000000")
    assert len(writer._ids) == MAX_NAMES
    results = await together(
        writer, [usage_event(gateway, "b", 2), usage_event(gateway, "b", 3, external_meter_id="n")]
    )
    assert [type(result) for result in results] == [Decision, Decision]
    assert (await books_of(gateway)).meter.used_credits == 3
    assert (await books_of(gateway, "n")).meter.used_credits == 3


async def test_commands_of_all_kinds_are_decided_in_their_order_by_one_transaction(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    name = usage_event(gateway).meter
    writer = gateway.services.meter_writer
    await writer.submit([usage_event(gateway, "known", 4)])
    commands: list[Command] = [
        Refill(name, 5, "refill", "key_a"),
        usage_event(gateway, "debit", 9),
        VoidUsage(name, "debit", 2, "why", "void 1", "key_b"),
        VoidUsage(name, "debit", 8, "why", "void 2", "key_b"),
        VoidUsage(name, "known", None, "why", "void 3", "key_b"),
        ChangeSettings(
            name, {"allow_overages": True, "spend_cap": 3}, may_attach=True, key="settings", recorded_by="key_c"
        ),
        usage_event(gateway, "overage", 11),
        usage_event(gateway, "too much", 1),
        VoidUsage(name, "unknown", None, "why", "void 4", "key_b"),
        Refill(name, 6, "refill", "key_a"),
        Refill(name, 5, "refill", "key_a"),
    ]
    with gateway.statements() as statements:
        results = [result for (result,) in await asyncio.gather(*[writer.submit([each]) for each in commands])]
    # Two more than for debits: what is voided already, and the event of the settings.
    assert len(statements) == OF_A_GROUP + 2
    books = await books_of(gateway)
    assert [
        (entry.kind, entry.amount, entry.total_credits_after, entry.used_credits_after) for entry in books.entries
    ] == [
        (LedgerEntryKind.OPENING, 10, 10, 0),
        (LedgerEntryKind.USAGE, 4, 10, 4),
        (LedgerEntryKind.REFILL, 5, 15, 4),
        (LedgerEntryKind.USAGE, 9, 15, 13),
        (LedgerEntryKind.VOID, 2, 15, 11),
        (LedgerEntryKind.VOID, 4, 15, 7),
        (LedgerEntryKind.SETTINGS, 0, 15, 7),
        (LedgerEntryKind.USAGE, 11, 15, 18),
    ]
    decided = [result.entry for result in results if isinstance(result, Decision)]
    assert decided == [*books.entries[2:], books.entries[2]]
    assert [type(result) for result in results if isinstance(result, Refusal)] == [
        ExceedsVoidable,
        SpendCapExceeded,
        UsageEventNotFound,
        IdempotencyConflict,
    ]
    assert isinstance(results[3], ExceedsVoidable)
    assert results[3].voidable == 7
    assert isinstance(results[-1], Decision)
    assert results[-1].replayed is True
    assert {result.billing_meter for result in results if isinstance(result, Decision)} == {books.meter}
    assert books.meter.id == meter_id
    assert (books.meter.limit_credits, books.meter.available_bits) == (18, 0)
    assert books.days == {("2026-03-16", "default"): 18}


async def test_a_meter_whose_remembered_id_is_gone_is_looked_up_again(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    writer = gateway.services.meter_writer
    # As after a backup was restored, in which the meter was made anew.
    gone = MeterName(gateway.org_id, Environment.SANDBOX, "w", "gone")
    writer._ids |= {usage_event(gateway).meter: "mtr_000000000000000000000000", gone: "mtr_000000000000000000000001"}
    results = await together(
        writer, [usage_event(gateway, "a", 2), usage_event(gateway, "b", 1, external_meter_id="gone")]
    )
    assert outcome_of(results[0]).billing_meter.used_credits == 2
    assert isinstance(results[1], BillingMeterNotFound)
    books = await books_of(gateway)
    assert books.meter.used_credits == 2
    assert writer._ids[usage_event(gateway).meter] == books.meter.id
    assert gone not in writer._ids


async def test_a_meters_time_never_runs_backwards(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    writer = gateway.services.meter_writer
    name = usage_event(gateway).meter
    await writer.submit([usage_event(gateway, "first", 1)])
    gateway.clock.now = NOW - timedelta(hours=13)
    commands: list[Command] = [
        usage_event(gateway, "second", 1),
        Refill(name, 5, "refill", "key_a"),
        VoidUsage(name, "first", None, "why", "void", "key_b"),
        ChangeSettings(name, {"allow_overages": True}, may_attach=True, key="settings", recorded_by="key_c"),
    ]
    await writer.submit(commands)
    gateway.clock.now = NOW + timedelta(seconds=1)
    await writer.submit([usage_event(gateway, "third", 1)])
    books = await books_of(gateway)
    assert [entry.recorded_at for entry in books.entries] == [NOW] * 6 + [NOW + timedelta(seconds=1)]
    assert books.meter.updated_at == NOW + timedelta(seconds=1)
    # It counts on the day of the meter's time, and not on the day before.
    assert books.days == {("2026-03-16", "default"): 2}


# Meters that another transaction has locked. SQLite has one lock for all.


@on_postgresql
async def test_a_locked_meter_holds_up_no_other(gateway: Gateway) -> None:
    for name in ("m", "n", "o"):
        await make_meter(gateway, externalMeterId=name, totalCredits="100")
    writer = gateway.services.meter_writer
    async with locked(gateway, "m", "n"):
        waiting = [
            asyncio.create_task(writer.submit([usage_event(gateway, f"e{number}", 1, external_meter_id=name)]))
            for number in range(3)
            for name in ("m", "n")
        ]
        # It waits as a whole, and is decided as a whole.
        batch = [usage_event(gateway, f"batch {name}", 1, external_meter_id=name) for name in ("o", "m")]
        waiting.append(asyncio.create_task(writer.submit(batch)))
        for number in range(20):
            (result,) = await writer.submit([usage_event(gateway, f"e{number}", 1, external_meter_id="o")])
            assert outcome_of(result).replayed is False
        assert not any(task.done() for task in waiting)
        assert (await books_of(gateway, "o")).meter.used_credits == 20
    results = [result for answer in await asyncio.gather(*waiting) for result in answer]
    assert [outcome_of(result).replayed for result in results] == [False] * 8
    assert [entry.key for entry in (await books_of(gateway, "n")).entries[1:]] == ["e0", "e1", "e2"]
    assert {entry.key for entry in (await books_of(gateway, "m")).entries[1:]} == {"e0", "e1", "e2", "batch m"}
    assert (await books_of(gateway, "o")).meter.used_credits == 21


@on_postgresql
async def test_a_meter_that_stays_locked_is_given_up_in_time_and_no_other_is(gateway: Gateway) -> None:
    for name in ("m", "n", "o"):
        await make_meter(gateway, externalMeterId=name, totalCredits="100")
    database = Database(gateway.services.settings.database_url, wait_seconds=1)
    writer = MeterWriter(database, gateway.clock)
    async with locked(gateway, "m"):
        stuck = asyncio.create_task(writer.submit([usage_event(gateway, "stuck", 1)]))
        async with locked(gateway, "n"):
            freed = asyncio.create_task(writer.submit([usage_event(gateway, "freed", 1, external_meter_id="n")]))
            await writer.submit([usage_event(gateway, "free", 1, external_meter_id="o")])
            assert not freed.done()
        ((result,),) = await asyncio.gather(freed)
        assert outcome_of(result).accepted == 1
        with pytest.raises(Unavailable) as refused:
            await stuck
        assert refused.value.outcome is Outcome.NOT_WRITTEN
    (result,) = await writer.submit([usage_event(gateway, "stuck", 1)])
    assert outcome_of(result).replayed is False
    assert [(await books_of(gateway, name)).meter.used_credits for name in ("m", "n", "o")] == [1, 1, 1]
    await writer.close()
    await database.close()


async def session_of(database: Database, program: str) -> asyncpg.Connection:
    """Return a session of PostgreSQL as this program opens one."""
    arguments = database._home.readers.dialect.create_connect_args(database.url)[1]
    return await asyncpg.connect(**arguments, server_settings={"application_name": program})


@on_postgresql
async def test_a_gateway_that_was_stopped_in_the_middle_of_a_statement_loses_its_locks(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    database = Database(gateway.services.settings.database_url, wait_seconds=1)
    writer = MeterWriter(database, gateway.clock)
    stopped = await session_of(database, "tollgate")
    await stopped.execute("SET idle_in_transaction_session_timeout = '1s'; SET statement_timeout = '1s'; BEGIN")
    await stopped.execute("SELECT 1 FROM billing_meters FOR UPDATE")
    # The statement is parsed, and what it is to be run with does not come: the driver asks for no more at this point.
    await stopped.prepare("SELECT $1::integer")
    with pytest.raises(Unavailable) as refused:
        await writer.submit([usage_event(gateway, "e", 1)])
    assert refused.value.outcome is Outcome.NOT_WRITTEN
    (result,) = await writer.submit([usage_event(gateway, "e", 1)])
    assert outcome_of(result).accepted == 1
    assert stopped.is_closed()
    await writer.close()
    await database.close()


@on_postgresql
async def test_a_human_who_holds_a_lock_keeps_it(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    database = Database(gateway.services.settings.database_url, wait_seconds=1)
    writer = MeterWriter(database, gateway.clock)
    human = await session_of(database, "psql")
    await human.execute("BEGIN")
    await human.execute("SELECT 1 FROM billing_meters FOR UPDATE")
    await human.prepare("SELECT $1::integer")
    for _ in range(2):
        with pytest.raises(Unavailable) as refused:
            await writer.submit([usage_event(gateway, "e", 1)])
        assert refused.value.outcome is Outcome.NOT_WRITTEN
    assert await human.fetchval("SELECT 1") == 1
    await human.close()
    (result,) = await writer.submit([usage_event(gateway, "e", 1)])
    assert outcome_of(result).accepted == 1
    await writer.close()
    await database.close()


def queued(event: RecordUsage, *, at: int) -> Submission:
    """Return the submission of an event, as it waits in a lane."""
    return Submission([event], Observation(), asyncio.get_running_loop().create_future(), at)


@on_postgresql
async def test_the_first_of_those_that_wait_gets_its_lock_although_others_need_not_wait(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is certainly waiting for the lock when that is given up.
    monkeypatch.setattr("resolvers.meters.writing.writer.LOCK_SECONDS", 60)
    for name in ("m", "n"):
        await make_meter(gateway, externalMeterId=name, totalCredits="100")
    writer = gateway.services.meter_writer
    first, other = (
        queued(usage_event(gateway, "e", 1, external_meter_id=name), at=perf_counter_ns()) for name in ("m", "n")
    )
    async with locked(gateway, "m"):
        # Meters that are in great demand are free now and then, and seldom all at once.
        answering = asyncio.create_task(writer._answer_second([first, other]))
        await until_blocked(gateway)
        assert other.answer.done()
        assert not answering.done()
    await answering
    for submission in (first, other):
        (result,) = submission.answer.result()
        assert outcome_of(result).billing_meter.used_credits == 1


@on_postgresql
async def test_all_that_are_overdue_are_given_up_although_one_alone_is_waited_for(gateway: Gateway) -> None:
    for name in ("m", "n"):
        await make_meter(gateway, externalMeterId=name, totalCredits="100")
    writer = gateway.services.meter_writer
    overdue = [queued(usage_event(gateway, "e", 1, external_meter_id=name), at=0) for name in ("m", "n")]
    async with unchanged(gateway), locked(gateway, "m", "n"):
        await writer._answer_second(overdue)
        for submission in overdue:
            refused = submission.answer.exception()
            assert isinstance(refused, Unavailable)
            assert refused.outcome is Outcome.NOT_WRITTEN


@on_postgresql
async def test_a_name_that_the_other_lane_forgets_meanwhile_is_looked_up_again(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    database = Database(gateway.services.settings.database_url)
    writer = MeterWriter(database, gateway.clock)
    writer._ids[usage_event(gateway).meter] = "mtr_000000000000000000000000"

    def forget(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.endswith("FOR UPDATE OF billing_meters"):
            writer._ids.clear()

    database.listen(begun=lambda *_: None, done=forget)
    (result,) = await writer.submit([usage_event(gateway, "e", 2)])
    assert outcome_of(result).billing_meter.used_credits == 2
    await writer.close()
    await database.close()


@on_postgresql
async def test_a_customer_that_is_being_changed_holds_up_no_meter_that_is_given_to_it(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    customer_id = await make_customer(gateway, "c@example.com")

    async def lock(writer: Writer) -> None:
        row = await customers.lock(
            writer, customer_id, org_id=gateway.org_id, environment=Environment.SANDBOX, workspace_ids=None
        )
        assert row is not None

    async with held(gateway.database, lock):
        answer = await gateway.mutate(
            "updateBillingMeter", "", workspaceId="w", externalMeterId="m", customerId=customer_id
        )
    assert answer["__typename"] == "UpdateBillingMeterSuccess"
    assert (await books_of(gateway)).meter.customer_id == customer_id


@on_postgresql
async def test_closing_gives_up_what_waits_for_a_lock(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_meter(gateway, totalCredits="100")
    monkeypatch.setattr("resolvers.meters.writing.writer.CLOSE_SECONDS", 0.1)
    async with another_writer(gateway) as writer, unchanged(gateway), locked(gateway, "m"):
        stuck = asyncio.create_task(writer.submit([usage_event(gateway, "stuck", 1)]))
        await until(lambda: writer._lanes[0].second.running is not None)
        await writer.close()
        with pytest.raises(Unavailable) as refused:
            await stuck
        assert refused.value.outcome is Outcome.NOT_WRITTEN


@on_postgresql
async def test_slow_reads_never_delay_a_debit(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    database = Database(gateway.services.settings.database_url, pool_size=2)
    writer = MeterWriter(database, gateway.clock)
    async with database.read() as one, database.read() as other:
        # All connections that there are for reads are taken.
        await asyncio.gather(*[reader.fetch(text("SELECT 1")) for reader in (one, other)])
        assert database.connections["all"].in_use == 2
        (result,) = await writer.submit([usage_event(gateway, "e", 1)])
    assert outcome_of(result).billing_meter.used_credits == 1
    await writer.close()
    await database.close()


# The queue.


async def test_a_full_queue_refuses_and_writes_nothing_of_it(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    async with another_writer(gateway, max_pending=40) as writer:
        async with stopped(gateway):
            begins = asyncio.create_task(writer.submit([usage_event(gateway, "begins", 1)]))
            await begun(writer)
            others = [
                asyncio.create_task(
                    writer.submit([usage_event(gateway, str(number), org_id=org_id) for number in range(19)])
                )
                for org_id in (f"{gateway.org_id}-b", f"{gateway.org_id}-c")
            ]
            fits = asyncio.create_task(
                writer.submit([usage_event(gateway, "fits", 1), usage_event(gateway, "last", 1)])
            )
            await until(lambda: writer.pending == 40)
            with pytest.raises(Unavailable) as refused:
                await writer.submit([usage_event(gateway, "one too many", 1)])
            assert refused.value.outcome is Outcome.NOT_WRITTEN
        assert [type(result) for result in (*await begins, *await fits)] == [Decision] * 3
        for other in others:
            assert [type(result) for result in await other] == [BillingMeterNotFound] * 19
        assert [entry.key for entry in (await books_of(gateway)).entries] == [None, "begins", "fits", "last"]
        # There is room again, also for what was refused.
        (result,) = await writer.submit([usage_event(gateway, "one too many", 1)])
        assert outcome_of(result).replayed is False


async def test_one_organization_gets_half_of_the_queue_and_turns_with_the_others(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    greedy = f"{gateway.org_id}-greedy"
    order: list[str] = []

    async def record(writer: MeterWriter, name: str, count: int, **values: str) -> list[Decision | Refusal]:
        answer = await writer.submit([usage_event(gateway, f"{name}-{number}", 1, **values) for number in range(count)])
        order.append(name)
        return answer

    async with another_writer(gateway, max_pending=4_000) as writer:
        async with stopped(gateway):
            begins = asyncio.create_task(record(writer, "begins", 1))
            await begun(writer)
            # Two batches are half of the queue; of twenty, all others are refused.
            batches = [asyncio.create_task(record(writer, f"g{place}", 1_000, org_id=greedy)) for place in range(20)]
            await until(lambda: sum(batch.done() for batch in batches) == 18)
            assert writer.pending == 2_000
            modest = asyncio.create_task(record(writer, "modest", 1))
            await until(lambda: writer.pending == 2_001)
        for batch in batches[2:]:
            with pytest.raises(Unavailable) as refused:
                await batch
            assert refused.value.outcome is Outcome.NOT_WRITTEN
        assert [type(result) for result in (*await begins, *await modest)] == [Decision] * 2
        for batch in batches[:2]:
            assert {type(result) for result in await batch} == {BillingMeterNotFound}
    # It came last, and did not have to wait for all of the other's.
    assert order == ["begins", "g0", "modest", "g1"]
    assert [entry.key for entry in (await books_of(gateway)).entries] == [None, "begins-0", "modest-0"]


async def test_a_batch_larger_than_half_of_the_queue_is_recorded_where_nothing_else_of_its_organization_waits(
    gateway: Gateway,
) -> None:
    await make_meter(gateway, totalCredits="1000")
    async with another_writer(gateway, max_pending=1_000) as writer:
        results = await writer.submit([usage_event(gateway, str(number), 1) for number in range(1_000)])
    assert {type(result) for result in results} == {Decision}
    assert (await books_of(gateway)).meter.used_credits == 1_000


async def test_a_full_queue_is_reported_through_the_api(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    writer = gateway.services.meter_writer
    # Of a meter that does not exist, so that deciding them takes little.
    events = [usage_event(gateway, str(number), 1, external_meter_id="unknown") for number in range(MAX_WAITING // 2)]
    query = "mutation ($input: RecordUsageInput!) { recordUsage(input: $input) { __typename } }"
    values = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": "1"}
    async with stopped(gateway):
        begins = asyncio.create_task(writer.submit([usage_event(gateway, "begins", 1)]))
        await begun(writer)
        filling = asyncio.create_task(writer.submit(events))
        await until(lambda: writer.pending == MAX_WAITING // 2)
        body = await gateway.run(query, {"input": values})
    assert body["data"] == {"recordUsage": None}
    (error,) = body["errors"]
    assert error["extensions"] == {"code": "UNAVAILABLE", "outcome": "NOT_WRITTEN"}
    await begins
    assert {type(result) for result in await filling} == {BillingMeterNotFound}
    assert [entry.key for entry in (await books_of(gateway)).entries] == [None, "begins"]
    assert await gateway.data(query, {"input": values}) == {"recordUsage": {"__typename": "RecordUsageSuccess"}}


async def test_closing_finishes_what_is_queued_and_refuses_what_comes_after(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    async with another_writer(gateway) as writer:
        async with stopped(gateway):
            first = asyncio.create_task(writer.submit([usage_event(gateway, "first", 1)]))
            await begun(writer)
            recording = asyncio.create_task(
                together(writer, [usage_event(gateway, f"e{number}", 1) for number in range(20)])
            )
            await until(lambda: writer.pending == 20)
            closing = asyncio.create_task(writer.close())
            await until(lambda: writer._closed)
            with pytest.raises(Unavailable) as refused:
                await writer.submit([usage_event(gateway, "late", 1)])
            assert refused.value.outcome is Outcome.NOT_WRITTEN
            assert not closing.done()
        await closing
        books = await books_of(gateway)
        assert books.meter.used_credits == 21
        assert [entry.key for entry in books.entries[1:]] == ["first"] + [f"e{number}" for number in range(20)]
        results = [*await first, *await recording]
        assert [outcome_of(result).entry for result in results] == books.entries[1:]
        async with unchanged(gateway):
            with pytest.raises(Unavailable):
                await writer.submit([usage_event(gateway, "late", 1)])
        # Closing again does nothing.
        await writer.close()


# Callers that go away.


async def test_a_caller_that_goes_away_while_its_group_commits_leaves_the_event_recorded_once(
    gateway: Gateway,
) -> None:
    await make_meter(gateway, totalCredits="10")
    writer = gateway.services.meter_writer
    async with stopped(gateway):
        leaving = asyncio.create_task(writer.submit([usage_event(gateway, "leaving", 2)]))
        await begun(writer)
        staying = asyncio.create_task(writer.submit([usage_event(gateway, "staying", 3)]))
        await until(lambda: writer.pending == 1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    (result,) = await staying
    assert outcome_of(result).billing_meter.used_credits == 5
    books = await books_of(gateway)
    assert [(entry.key, entry.amount) for entry in books.entries] == [(None, 10), ("leaving", 2), ("staying", 3)]
    # Repeating the request returns what became of it.
    (result,) = await writer.submit([usage_event(gateway, "leaving", 2)])
    assert outcome_of(result).replayed is True
    (result,) = await writer.submit([usage_event(gateway, "next", 5)])
    assert outcome_of(result).replayed is False
    assert (await books_of(gateway)).meter.used_credits == 10


async def test_a_caller_that_goes_away_before_its_group_begins_does_not_disturb_its_neighbours(
    gateway: Gateway,
) -> None:
    await make_meter(gateway, totalCredits="10")
    writer = gateway.services.meter_writer
    async with stopped(gateway):
        first = asyncio.create_task(writer.submit([usage_event(gateway, "first", 1)]))
        await begun(writer)
        leaving = asyncio.create_task(writer.submit([usage_event(gateway, "leaving", 2)]))
        staying = asyncio.create_task(writer.submit([usage_event(gateway, "staying", 3)]))
        await until(lambda: writer.pending == 2)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert outcome_of((await first)[0]).accepted == 1
    assert outcome_of((await staying)[0]).accepted == 3
    books = await books_of(gateway)
    assert {entry.key for entry in books.entries} >= {None, "first", "staying"}
    # What was queued is recorded or not, but never twice.
    (result,) = await writer.submit([usage_event(gateway, "leaving", 2)])
    assert outcome_of(result).accepted == 2
    assert (await books_of(gateway)).meter.used_credits == 6


# Two writers on one database.


async def test_two_writers_on_one_database_count_each_event_once(gateway: Gateway) -> None:
    names = [f"m{number}" for number in range(5)]
    for name in names:
        await make_meter(gateway, externalMeterId=name, totalCredits="1000")
    events = [
        usage_event(gateway, f"e{number}", 1 + number, external_meter_id=name, usage_name=f"u{number % 2}")
        for number in range(20)
        for name in names
    ]

    async def rounds(writer: MeterWriter, events: Sequence[RecordUsage]) -> list[Decision]:
        results = []
        for start in range(0, len(events), 8):
            results += await together(writer, events[start : start + 8])
        return [outcome_of(result) for result in results]

    async with another_writer(gateway) as one, another_writer(gateway) as other:
        # Group after group of both meets on the same meters, in either order, with events that are known or not.
        answers = await asyncio.gather(rounds(one, events), rounds(other, events[:48][::-1] + events[48:]))
    results = [result for answer in answers for result in answer]
    assert len(results) == 2 * len(events)
    assert [result.replayed for result in results].count(False) == len(events)
    for name in names:
        books = await books_of(gateway, name)
        assert sorted(str(entry.key) for entry in books.entries[1:]) == sorted(f"e{number}" for number in range(20))
        assert books.meter.used_credits == 210
        assert books.days == {("2026-03-16", "u0"): 100, ("2026-03-16", "u1"): 110}


async def test_two_writers_that_race_for_one_event_agree_on_its_result(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="1000")
    async with another_writer(gateway) as one, another_writer(gateway) as other:
        for number in range(10):
            first, second = await asyncio.gather(
                one.submit([usage_event(gateway, f"e{number}", 3)]),
                other.submit([usage_event(gateway, f"e{number}", 3)]),
            )
            outcomes = [outcome_of(first[0]), outcome_of(second[0])]
            assert sorted(outcome.replayed for outcome in outcomes) == [False, True]
            assert outcomes[0].entry == outcomes[1].entry
        # Of two different events under one id, one is recorded and the other is a conflict.
        for number in range(10, 20):
            first, second = await asyncio.gather(
                one.submit([usage_event(gateway, f"e{number}", 3)]),
                other.submit([usage_event(gateway, f"e{number}", 4)]),
            )
            results = sorted([first[0], second[0]], key=lambda result: isinstance(result, Refusal))
            assert outcome_of(results[0]).replayed is False
            assert isinstance(results[1], IdempotencyConflict)
            assert results[1].entry == outcome_of(results[0]).entry
    assert len((await books_of(gateway)).entries) == 21


async def test_a_group_looks_for_its_events_when_it_has_the_lock(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is certainly waiting for the lock when the other one commits.
    monkeypatch.setattr("resolvers.meters.writing.writer.LOCK_SECONDS", 60)
    await make_meter(gateway, totalCredits="1000")
    writer = gateway.services.meter_writer
    await writer.submit([usage_event(gateway, "known", 1)])
    is_recorded, may_end = asyncio.Event(), asyncio.Event()

    async def record_elsewhere(other: Writer) -> None:
        # As a group of another process does, up to its commit.
        submission = Submission([usage_event(gateway, "e", 3)], Observation(), asyncio.Future(), 0)
        await writer._decide_all(other, [submission], skip_locked=False)
        is_recorded.set()
        await may_end.wait()

    elsewhere = asyncio.create_task(gateway.database.write(record_elsewhere))
    await is_recorded.wait()
    with gateway.statements() as statements:
        recording = asyncio.create_task(writer.submit([usage_event(gateway, "e", 3)]))
        await begun(writer)
        if gateway.database.dialect == "postgresql":
            await until_blocked(gateway)
        may_end.set()
        await elsewhere
        (result,) = await recording
        # It found the other's event at once, and did not run into it.
        assert not [each for each in statements if each.startswith(("INSERT", "UPDATE"))]
    assert outcome_of(result).replayed is True
    assert (await books_of(gateway)).meter.used_credits == 4


async def until_blocked(gateway: Gateway) -> None:
    """Wait until a transaction of PostgreSQL waits for a lock of another one."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(60):
        while True:
            async with gateway.database.read() as reader:
                (row,) = await reader.fetch(waiting)
            if row[0]:
                return


async def test_two_writers_never_overspend(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="25")
    async with another_writer(gateway) as one, another_writer(gateway) as other:
        answers = await asyncio.gather(
            *[one.submit([usage_event(gateway, f"one {number}", 1)]) for number in range(20)],
            *[other.submit([usage_event(gateway, f"other {number}", 1)]) for number in range(20)],
        )
    results = [result for answer in answers for result in answer]
    assert [type(result) for result in results].count(Decision) == 25
    assert [type(result) for result in results].count(InsufficientCredits) == 15
    books = await books_of(gateway)
    assert books.meter.used_credits == 25
    assert len(books.entries) == 26
    assert books.days == {("2026-03-16", "default"): 25}
