"""The usage writer: concurrent debits are decided in groups, and every caller gets its own answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from resolvers.bounds import DEFAULT_BOUNDS
from resolvers.errors import (
    AmountOutOfRange,
    BillingMeterNotFound,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidInput,
    Refusal,
    Unavailable,
)
from resolvers.usage import UsageEvent, UsageOutcome
from resolvers.usage_writer import MOST_NAMES, UsageWriter
from storage import billing_meters
from storage.billing_meters import MeterName
from storage.database import Database, Outcome, Writer
from storage.tables import Environment, OverLimitPolicy
from tests.conftest import NOW, Gateway
from tests.test_usage import books_of, make_meter, unchanged

MAX = 2**63 - 1

#: The most events that may wait.
MOST_WAITING = DEFAULT_BOUNDS.waiting_events

#: The statements of a group whatever its size: lock the meters, look up the ids, update, upsert the days, insert.
OF_A_GROUP = 5


def event(gateway: Gateway, event_id: str = "e", amount: int = 1, **values: Any) -> UsageEvent:
    """Return an event on the meter `m`, unless the values say otherwise."""
    name = MeterName(
        values.pop("org_id", gateway.org_id),
        values.pop("environment", Environment.SANDBOX),
        values.pop("workspace_id", "w"),
        values.pop("external_meter_id", "m"),
    )
    first = UsageEvent(
        meter=name,
        event_id=event_id,
        amount=amount,
        usage_name="default",
        occurred_at=None,
        policy=OverLimitPolicy.REJECT,
        metadata={},
        recorded_by="key_test",
        may_backfill=False,
    )
    return first._replace(**values)


def outcome_of(result: UsageOutcome | Refusal) -> UsageOutcome:
    assert isinstance(result, UsageOutcome)
    return result


async def together(writer: UsageWriter, events: Sequence[UsageEvent]) -> list[UsageOutcome | Refusal]:
    """Record the events at once, each for a caller of its own, and return the results in the order of the events."""
    answers = await asyncio.gather(*[writer.record([each]) for each in events])
    assert [len(answer) for answer in answers] == [1] * len(events)
    return [answer[0] for answer in answers]


@asynccontextmanager
async def locked(gateway: Gateway, external_meter_id: str = "m") -> AsyncIterator[None]:
    """Hold a meter's lock, so that a group that needs it cannot be finished before this ends."""
    meter = (await books_of(gateway, external_meter_id)).meter
    is_held = asyncio.Event()
    may_end = asyncio.Event()

    async def hold(writer: Writer) -> None:
        await billing_meters.lock(writer, [meter.id])
        is_held.set()
        await may_end.wait()

    holding = asyncio.create_task(gateway.database.write(hold))
    await is_held.wait()
    try:
        yield
    finally:
        may_end.set()
        await holding


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # The writer tells nobody how far it is.
            await asyncio.sleep(0)


async def begun(writer: UsageWriter) -> None:
    """Let the writer take up all that it was given so far."""
    await until(lambda: writer._running is not None and not writer.waiting)


@asynccontextmanager
async def another_writer(gateway: Gateway, *, most_waiting: int = MOST_WAITING) -> AsyncIterator[UsageWriter]:
    """A writer on the same database with connections of its own, as in another process."""
    database = Database(gateway.services.settings.database_url)
    writer = UsageWriter(database, gateway.clock, most_waiting=most_waiting)
    try:
        yield writer
    finally:
        await writer.close()
        await database.close()


# Groups.


async def test_concurrent_events_are_decided_in_their_order_by_one_transaction(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    writer = gateway.services.usage_writer
    await writer.record([event(gateway, "known", 1)])
    with gateway.statements() as statements:
        results = await together(writer, [event(gateway, f"e{number}", number) for number in range(1, 14)])
    assert len(statements) == OF_A_GROUP
    books = await books_of(gateway)
    # 1 and then 1 + 2 + … + 13 = 92 of 100.
    assert [entry.key for entry in books.entries[2:]] == [f"e{number}" for number in range(1, 14)]
    assert [outcome_of(result).entry for result in results] == books.entries[2:]
    # Every answer tells the meter as it is after the commit.
    assert {outcome_of(result).billing_meter for result in results} == {books.meter}
    assert books.meter.used_credits == 92
    assert books.days == {("2026-03-16", "default"): 92}


async def test_the_first_to_arrive_gets_the_credits(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    amounts = [6, 5, 4, 1, 0]
    results = await together(
        gateway.services.usage_writer,
        [event(gateway, f"e{place}", amount) for place, amount in enumerate(amounts)],
    )
    books = await books_of(gateway)
    assert [type(result) for result in results] == [
        UsageOutcome,
        InsufficientCredits,
        UsageOutcome,
        InsufficientCredits,
        UsageOutcome,
    ]
    assert [entry.amount for entry in books.entries] == [10, 6, 4]
    for result, available in ((results[1], 4), (results[3], 0)):
        # At the decision so much was available; the meter is told as it is after the commit.
        assert isinstance(result, InsufficientCredits)
        assert result.available == available
        assert result.billing_meter == books.meter


async def test_policies_see_what_the_events_before_them_in_the_group_left(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    results = await together(
        gateway.services.usage_writer,
        [
            event(gateway, "a", 4),
            event(gateway, "b", 9, policy=OverLimitPolicy.PARTIAL),
            event(gateway, "c", 1, policy=OverLimitPolicy.PARTIAL),
            event(gateway, "d", 3, policy=OverLimitPolicy.FORCE),
            event(gateway, "e", 0),
            event(gateway, "f", MAX, policy=OverLimitPolicy.FORCE),
        ],
    )
    found = [
        (result.accepted, result.refused, result.over_limit) if isinstance(result, UsageOutcome) else type(result)
        for result in results
    ]
    assert found == [(4, 0, False), (6, 3, False), InsufficientCredits, (3, 0, True), (0, 0, True), AmountOutOfRange]
    assert (await books_of(gateway)).meter.used_credits == 13


async def test_what_arrives_while_a_group_commits_is_the_next_group(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    writer = gateway.services.usage_writer
    await writer.record([event(gateway, "known", 1)])
    with gateway.statements() as statements:
        async with locked(gateway):
            of_the_lock = len(statements)
            first = asyncio.create_task(together(writer, [event(gateway, "first", 1)]))
            await begun(writer)
            rest = asyncio.create_task(together(writer, [event(gateway, f"e{number}", 1) for number in range(50)]))
            # They all arrive, and nothing can be decided.
            await until(lambda: writer.waiting == 50)
            assert not first.done()
            assert not rest.done()
        (alone,) = await first
        gathered = await rest
        assert len(statements) == of_the_lock + 2 * OF_A_GROUP
    books = await books_of(gateway)
    assert [entry.key for entry in books.entries[2:]] == ["first"] + [f"e{number}" for number in range(50)]
    # The first group's answer tells the meter after the first group.
    assert outcome_of(alone).billing_meter.used_credits == 2
    assert {outcome_of(result).billing_meter for result in gathered} == {books.meter}
    assert books.meter.used_credits == 52


@pytest.mark.parametrize("size", [1, 2, 1_000])
async def test_a_group_takes_the_same_statements_whatever_its_size(gateway: Gateway, size: int) -> None:
    for number in range(4):
        await make_meter(gateway, externalMeterId=f"m{number}", totalCredits="1000")
    writer = gateway.services.usage_writer
    events = [
        event(
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
    writer = gateway.services.usage_writer
    await writer.record([event(gateway, "known", 1)])
    sizes = [600, 500, 1_500, 1]
    with gateway.statements() as statements:
        answers = await asyncio.gather(
            *[
                writer.record([event(gateway, f"{place}-{number}", 1) for number in range(size)])
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
    writer = gateway.services.usage_writer
    results = await together(writer, [event(gateway, "e", 3, metadata={"a": 1})] * 8)
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
    first = event(gateway, "e", 3, metadata={"a": 1})
    others = [
        first._replace(amount=4),
        first._replace(usage_name="other"),
        first._replace(policy=OverLimitPolicy.PARTIAL),
        first._replace(occurred_at=NOW),
        first._replace(metadata={"a": 1.0}),
        first._replace(metadata={"a": True}),
    ]
    results = await together(gateway.services.usage_writer, [first, *others, first])
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
        gateway.services.usage_writer,
        [event(gateway, "e", 11), event(gateway, "e", 4), event(gateway, "e", 11), event(gateway, "e", 4)],
    )
    assert [type(result) for result in results] == [
        InsufficientCredits,
        UsageOutcome,
        IdempotencyConflict,
        UsageOutcome,
    ]
    assert [outcome_of(result).replayed for result in results[1::2]] == [False, True]
    assert (await books_of(gateway)).meter.used_credits == 4


async def test_many_meters_of_many_tenants_are_decided_in_one_group(gateway: Gateway) -> None:
    org_ids = [gateway.org_id, f"{gateway.org_id}-b", f"{gateway.org_id}-c"]
    tenants = [(org_id, environment) for org_id in org_ids for environment in Environment]
    for org_id, environment in tenants:
        caller = await gateway.caller(org_id=org_id, environment=environment)
        for name in ("m", "n"):
            made = await caller.mutate(
                "createBillingMeter", "", workspaceId="w", externalMeterId=name, totalCredits="100"
            )
            assert made["__typename"] == "CreateBillingMeterSuccess"
    # The same names and ids everywhere; the amount tells whose event it is.
    events = [
        event(gateway, f"e{number}", 1 + place, org_id=org_id, environment=environment, external_meter_id=name)
        for number in range(5)
        for place, (org_id, environment) in enumerate(tenants)
        for name in ("m", "n")
    ]
    with gateway.statements() as statements:
        results = await together(gateway.services.usage_writer, events)
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
        gateway.services.usage_writer,
        [
            event(gateway, "a", 1),
            event(gateway, "b", 1, external_meter_id="unknown"),
            event(gateway, "c", 1, org_id=f"{gateway.org_id}-unknown"),
            event(gateway, "d", 1, occurred_at=NOW.replace(year=2025)),
            event(gateway, "e", 100),
            event(gateway, "a", 2),
            event(gateway, "f", 2),
        ],
    )
    assert [type(result) for result in results] == [
        UsageOutcome,
        BillingMeterNotFound,
        BillingMeterNotFound,
        InvalidInput,
        InsufficientCredits,
        IdempotencyConflict,
        UsageOutcome,
    ]
    books = await books_of(gateway)
    assert [(entry.key, entry.amount) for entry in books.entries] == [(None, 10), ("a", 1), ("f", 2)]
    assert books.days == {("2026-03-16", "default"): 3}


async def test_an_event_that_the_database_cannot_take_leaves_its_neighbours_alone(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    # Such an event never comes through the API: its amount is more than a column holds.
    impossible = event(gateway, "b", 2**63, policy=OverLimitPolicy.PARTIAL)
    answers = await asyncio.gather(
        *[
            gateway.services.usage_writer.record([each])
            for each in (event(gateway, "a", 1), impossible, event(gateway, "c", 2))
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
    writer = gateway.services.usage_writer
    await writer.record([event(gateway, "a", 1)])
    # As after events of very many meters; `m` is among those that are remembered, `n` is not.
    strangers = (MeterName("org", Environment.LIVE, "w", str(number)) for number in range(MOST_NAMES - 1))
    writer._ids |= dict.fromkeys(strangers, "mtr_000000000000000000000000")
    assert len(writer._ids) == MOST_NAMES
    results = await together(writer, [event(gateway, "b", 2), event(gateway, "b", 3, external_meter_id="n")])
    assert [type(result) for result in results] == [UsageOutcome, UsageOutcome]
    assert (await books_of(gateway)).meter.used_credits == 3
    assert (await books_of(gateway, "n")).meter.used_credits == 3


# The queue.


async def test_a_full_queue_refuses_and_writes_nothing_of_it(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    async with another_writer(gateway, most_waiting=40) as writer:
        async with locked(gateway):
            begins = asyncio.create_task(writer.record([event(gateway, "begins", 1)]))
            await begun(writer)
            others = [
                asyncio.create_task(writer.record([event(gateway, str(number), org_id=org_id) for number in range(19)]))
                for org_id in (f"{gateway.org_id}-b", f"{gateway.org_id}-c")
            ]
            fits = asyncio.create_task(writer.record([event(gateway, "fits", 1), event(gateway, "last", 1)]))
            await until(lambda: writer.waiting == 40)
            with pytest.raises(Unavailable) as refused:
                await writer.record([event(gateway, "one too many", 1)])
            assert refused.value.outcome is Outcome.NOT_WRITTEN
        assert [type(result) for result in (*await begins, *await fits)] == [UsageOutcome] * 3
        for other in others:
            assert [type(result) for result in await other] == [BillingMeterNotFound] * 19
        assert [entry.key for entry in (await books_of(gateway)).entries] == [None, "begins", "fits", "last"]
        # There is room again, also for what was refused.
        (result,) = await writer.record([event(gateway, "one too many", 1)])
        assert outcome_of(result).replayed is False


async def test_one_organization_gets_half_of_the_queue_and_turns_with_the_others(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    greedy = f"{gateway.org_id}-greedy"
    order: list[str] = []

    async def record(writer: UsageWriter, name: str, count: int, **values: str) -> list[UsageOutcome | Refusal]:
        answer = await writer.record([event(gateway, f"{name}-{number}", 1, **values) for number in range(count)])
        order.append(name)
        return answer

    async with another_writer(gateway, most_waiting=4_000) as writer:
        async with locked(gateway):
            begins = asyncio.create_task(record(writer, "begins", 1))
            await begun(writer)
            # Two batches are half of the queue; of twenty, all others are refused.
            batches = [asyncio.create_task(record(writer, f"g{place}", 1_000, org_id=greedy)) for place in range(20)]
            await until(lambda: sum(batch.done() for batch in batches) == 18)
            assert writer.waiting == 2_000
            modest = asyncio.create_task(record(writer, "modest", 1))
            await until(lambda: writer.waiting == 2_001)
        for batch in batches[2:]:
            with pytest.raises(Unavailable) as refused:
                await batch
            assert refused.value.outcome is Outcome.NOT_WRITTEN
        assert [type(result) for result in (*await begins, *await modest)] == [UsageOutcome] * 2
        for batch in batches[:2]:
            assert {type(result) for result in await batch} == {BillingMeterNotFound}
    # It came last, and did not have to wait for all of the other's.
    assert order == ["begins", "g0", "modest", "g1"]
    assert [entry.key for entry in (await books_of(gateway)).entries] == [None, "begins-0", "modest-0"]


async def test_a_batch_larger_than_half_of_the_queue_is_recorded_where_nothing_else_of_its_organization_waits(
    gateway: Gateway,
) -> None:
    await make_meter(gateway, totalCredits="1000")
    async with another_writer(gateway, most_waiting=1_000) as writer:
        results = await writer.record([event(gateway, str(number), 1) for number in range(1_000)])
    assert {type(result) for result in results} == {UsageOutcome}
    assert (await books_of(gateway)).meter.used_credits == 1_000


async def test_a_full_queue_is_told_through_the_api(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    writer = gateway.services.usage_writer
    # Of a meter that does not exist, so that deciding them takes little.
    events = [event(gateway, str(number), 1, external_meter_id="unknown") for number in range(MOST_WAITING // 2)]
    query = "mutation ($input: RecordUsageInput!) { recordUsage(input: $input) { __typename } }"
    values = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": "1"}
    async with locked(gateway):
        begins = asyncio.create_task(writer.record([event(gateway, "begins", 1)]))
        await begun(writer)
        filling = asyncio.create_task(writer.record(events))
        await until(lambda: writer.waiting == MOST_WAITING // 2)
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
        async with locked(gateway):
            first = asyncio.create_task(writer.record([event(gateway, "first", 1)]))
            await begun(writer)
            recording = asyncio.create_task(together(writer, [event(gateway, f"e{number}", 1) for number in range(20)]))
            await until(lambda: writer.waiting == 20)
            closing = asyncio.create_task(writer.close())
            await until(lambda: writer._closed)
            with pytest.raises(Unavailable) as refused:
                await writer.record([event(gateway, "late", 1)])
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
                await writer.record([event(gateway, "late", 1)])
        # Closing again does nothing.
        await writer.close()


# Callers that go away.


async def test_a_caller_that_goes_away_while_its_group_commits_leaves_the_event_recorded_once(
    gateway: Gateway,
) -> None:
    await make_meter(gateway, totalCredits="10")
    writer = gateway.services.usage_writer
    async with locked(gateway):
        leaving = asyncio.create_task(writer.record([event(gateway, "leaving", 2)]))
        await begun(writer)
        staying = asyncio.create_task(writer.record([event(gateway, "staying", 3)]))
        await until(lambda: writer.waiting == 1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    (result,) = await staying
    assert outcome_of(result).billing_meter.used_credits == 5
    books = await books_of(gateway)
    assert [(entry.key, entry.amount) for entry in books.entries] == [(None, 10), ("leaving", 2), ("staying", 3)]
    # Repeating the request tells what became of it.
    (result,) = await writer.record([event(gateway, "leaving", 2)])
    assert outcome_of(result).replayed is True
    (result,) = await writer.record([event(gateway, "next", 5)])
    assert outcome_of(result).replayed is False
    assert (await books_of(gateway)).meter.used_credits == 10


async def test_a_caller_that_goes_away_before_its_group_begins_does_not_disturb_its_neighbours(
    gateway: Gateway,
) -> None:
    await make_meter(gateway, totalCredits="10")
    writer = gateway.services.usage_writer
    async with locked(gateway):
        first = asyncio.create_task(writer.record([event(gateway, "first", 1)]))
        await begun(writer)
        leaving = asyncio.create_task(writer.record([event(gateway, "leaving", 2)]))
        staying = asyncio.create_task(writer.record([event(gateway, "staying", 3)]))
        await until(lambda: writer.waiting == 2)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert outcome_of((await first)[0]).accepted == 1
    assert outcome_of((await staying)[0]).accepted == 3
    books = await books_of(gateway)
    assert {entry.key for entry in books.entries} >= {None, "first", "staying"}
    # What was queued is recorded or not, but never twice.
    (result,) = await writer.record([event(gateway, "leaving", 2)])
    assert outcome_of(result).accepted == 2
    assert (await books_of(gateway)).meter.used_credits == 6


# Two writers on one database.


async def test_two_writers_on_one_database_count_each_event_once(gateway: Gateway) -> None:
    names = [f"m{number}" for number in range(5)]
    for name in names:
        await make_meter(gateway, externalMeterId=name, totalCredits="1000")
    events = [
        event(gateway, f"e{number}", 1 + number, external_meter_id=name, usage_name=f"u{number % 2}")
        for number in range(20)
        for name in names
    ]

    async def rounds(writer: UsageWriter, events: Sequence[UsageEvent]) -> list[UsageOutcome]:
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
                one.record([event(gateway, f"e{number}", 3)]), other.record([event(gateway, f"e{number}", 3)])
            )
            outcomes = [outcome_of(first[0]), outcome_of(second[0])]
            assert sorted(outcome.replayed for outcome in outcomes) == [False, True]
            assert outcomes[0].entry == outcomes[1].entry
        # Of two different events under one id, one is recorded and the other is told so.
        for number in range(10, 20):
            first, second = await asyncio.gather(
                one.record([event(gateway, f"e{number}", 3)]), other.record([event(gateway, f"e{number}", 4)])
            )
            results = sorted([first[0], second[0]], key=lambda result: isinstance(result, Refusal))
            assert outcome_of(results[0]).replayed is False
            assert isinstance(results[1], IdempotencyConflict)
            assert results[1].entry == outcome_of(results[0]).entry
    assert len((await books_of(gateway)).entries) == 21


async def test_a_group_looks_for_its_events_when_it_has_the_lock(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="1000")
    writer = gateway.services.usage_writer
    await writer.record([event(gateway, "known", 1)])
    meter = (await books_of(gateway)).meter
    is_recorded, may_end = asyncio.Event(), asyncio.Event()

    async def record_elsewhere(other: Writer) -> None:
        # As a group of another process does, up to its commit.
        await writer._decide(other, [(meter.id, event(gateway, "e", 3))], {})
        is_recorded.set()
        await may_end.wait()

    elsewhere = asyncio.create_task(gateway.database.write(record_elsewhere))
    await is_recorded.wait()
    with gateway.statements() as statements:
        recording = asyncio.create_task(writer.record([event(gateway, "e", 3)]))
        await begun(writer)
        if gateway.database.dialect == "postgresql":
            await until_blocked(gateway)
        may_end.set()
        await elsewhere
        (result,) = await recording
        # It found the other's event at once, and did not run into it.
        assert len([each for each in statements if "pg_stat_activity" not in each]) == 2
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
            *[one.record([event(gateway, f"one {number}", 1)]) for number in range(20)],
            *[other.record([event(gateway, f"other {number}", 1)]) for number in range(20)],
        )
    results = [result for answer in answers for result in answer]
    assert [type(result) for result in results].count(UsageOutcome) == 25
    assert [type(result) for result in results].count(InsufficientCredits) == 15
    books = await books_of(gateway)
    assert books.meter.used_credits == 25
    assert len(books.entries) == 26
    assert books.days == {("2026-03-16", "default"): 25}
