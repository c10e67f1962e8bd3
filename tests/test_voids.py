"""Voids: giving back some or all of one usage event, exactly once, on the event's own day."""

import asyncio
from typing import Any

import pytest

from resolvers.actor import Scope
from storage.tenants import Environment
from tests.conftest import Caller, Gateway
from tests.steps import disagreements, entry_id, make_meter, meter_of, must, new_key, unchanged

pytestmark = pytest.mark.slow

ANSWER = """
  ... on VoidUsageSuccess {
    replayed billingMeter { totalCredits usedCredits overageCredits availableCredits }
    entry {
      id kind amount totalCreditsAfter usedCreditsAfter key usageName day requestedAmount reason voids { id key }
    }
  }
  ... on IdempotencyConflict { first: firstEntry { id kind key amount } }
  ... on ExceedsVoidable { voidable }
"""

#: A void of all that is left of the event `e` of the meter `m`.
INPUT = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "reason": "a mistake", "idempotencyKey": "v"}


async def record(caller: Caller, event_id: str = "e", amount: int = 1, **values: Any) -> dict[str, Any]:
    """Record usage, which must be accepted, and return what is answered."""
    event = {"eventId": event_id, "amount": str(amount)}
    return await must(caller, "recordUsage", "accepted replayed entry { id }", **event | values)


async def void(caller: Caller, key: str = "v", amount: int | None = None, **values: Any) -> dict[str, Any]:
    """Void the event `e` of the meter `m`, unless the values say otherwise, and return what is answered."""
    given = {} if amount is None else {"amount": str(amount)}
    return await caller.mutate("voidUsage", ANSWER, **INPUT | {"idempotencyKey": key} | given | values)


async def a_meter_with_one_event(gateway: Gateway, amount: int = 10, **values: Any) -> str:
    """Make the meter `m` of 100 credits with the event `e`, and return its id."""
    meter_id = await make_meter(gateway, totalCredits="100")
    await record(gateway, "e", amount, **values)
    return meter_id


# What a void gives back.


async def test_a_void_gives_back_part_of_an_event(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="100")
    await record(own, "e", 10, usageName="tokens")
    own.clock.forward(minutes=1)
    key_id, backend = await new_key(own)
    answer = await void(backend, "v", 4, reason="the model answered nothing")
    assert answer == {
        "__typename": "VoidUsageSuccess",
        "replayed": False,
        "billingMeter": {
            "totalCredits": "100",
            "usedCredits": "6",
            "overageCredits": "0",
            "availableCredits": "94",
        },
        "entry": {
            "id": entry_id(meter_id, 3),
            "kind": "VOID",
            "amount": "4",
            "totalCreditsAfter": "100",
            "usedCreditsAfter": "6",
            "key": "v",
            "usageName": "tokens",
            "day": "2026-03-16",
            "requestedAmount": "4",
            "reason": "the model answered nothing",
            "voids": {"id": entry_id(meter_id, 2), "key": "e"},
        },
    }
    meter = await meter_of(own)
    assert meter["usage"] == {("2026-03-16", "tokens"): 6}
    assert meter["ledger"][2] == {
        "id": entry_id(meter_id, 3),
        "kind": "VOID",
        "amount": "4",
        "totalCreditsAfter": "100",
        "usedCreditsAfter": "6",
        "key": "v",
        "usageName": "tokens",
        "day": "2026-03-16",
        "requestedAmount": "4",
        "policy": None,
        "voids": {"id": entry_id(meter_id, 2)},
        "occurredAt": "2026-03-16T12:01:00Z",
        "recordedAt": "2026-03-16T12:01:00Z",
        "recordedBy": key_id,
        "reason": "the model answered nothing",
        "metadata": {},
    }
    assert await disagreements(own.database, meter_id) == []


async def test_an_absent_amount_gives_back_all_that_is_left(own: Gateway) -> None:
    meter_id = await a_meter_with_one_event(own, 10)
    await void(own, "v1", 3)
    answer = await void(own, "v2")
    assert answer["entry"]["amount"] == "7"
    # What was asked for is shown apart from what that came to.
    assert answer["entry"]["requestedAmount"] is None
    assert answer["entry"]["usedCreditsAfter"] == "0"
    meter = await meter_of(own)
    assert meter["usedCredits"] == "0"
    assert set(meter["usage"].values()) <= {0}
    assert await disagreements(own.database, meter_id) == []


async def test_a_null_amount_is_refused(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    async with unchanged(gateway):
        answer = await gateway.mutate("voidUsage", ANSWER, **INPUT, amount=None)
    assert answer == {
        "__typename": "InvalidInput",
        "code": "INVALID_INPUT",
        "message": "amount must not be null; leave it out to give back all that is left.",
        "field": ["input", "amount"],
    }


async def test_an_event_is_voided_until_nothing_is_left(own: Gateway) -> None:
    meter_id = await a_meter_with_one_event(own, 10)
    answers = [await void(own, f"v{number}", 4) for number in range(2)]
    assert [answer["entry"]["usedCreditsAfter"] for answer in answers] == ["6", "2"]
    exceeds = {
        "__typename": "ExceedsVoidable",
        "code": "EXCEEDS_VOIDABLE",
        "message": "Of the usage event 'e' 2 credits are left to void.",
        "voidable": "2",
    }
    async with unchanged(own):
        assert await void(own, "v2", 4) == exceeds
        assert await void(own, "v2", 3) == exceeds
    # The refusal has not used the key up.
    assert (await void(own, "v2", 2))["entry"]["usedCreditsAfter"] == "0"
    async with unchanged(own):
        for amount in (1, None):
            answer = await void(own, "v3", amount)
            assert answer == exceeds | {
                "voidable": "0",
                "message": "Of the usage event 'e' 0 credits are left to void.",
            }
    ledger = (await meter_of(own))["ledger"]
    assert [(entry["kind"], entry["amount"], entry["usedCreditsAfter"]) for entry in ledger] == [
        ("OPENING", "100", "0"),
        ("USAGE", "10", "10"),
        ("VOID", "4", "6"),
        ("VOID", "4", "2"),
        ("VOID", "2", "0"),
    ]
    assert [entry["voids"] for entry in ledger[2:]] == [{"id": entry_id(meter_id, 2)}] * 3
    assert await disagreements(own.database, meter_id) == []


async def test_more_than_the_event_took_is_refused_also_where_the_meter_used_more(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    await record(gateway, "other", 50)
    async with unchanged(gateway):
        for amount in (11, 60, 2**63 - 1):
            answer = await void(gateway, "v", amount)
            assert (answer["__typename"], answer["voidable"]) == ("ExceedsVoidable", "10")


async def test_of_a_partly_accepted_event_no_more_is_given_back_than_was_accepted(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="7")
    assert (await record(own, "e", 10, policy="PARTIAL"))["accepted"] == "7"
    async with unchanged(own):
        answer = await void(own, "v", 8)
        assert (answer["__typename"], answer["voidable"]) == ("ExceedsVoidable", "7")
    assert (await void(own, "v"))["entry"]["amount"] == "7"
    assert (await meter_of(own))["usedCredits"] == "0"
    assert await disagreements(own.database, meter_id) == []


async def test_an_event_past_the_limit_is_given_back_whole(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="7")
    await record(own, "e", 10, policy="FORCE")
    answer = await void(own, "v", 5)
    assert answer["billingMeter"] == {
        "totalCredits": "7",
        "usedCredits": "5",
        "overageCredits": "0",
        "availableCredits": "2",
    }
    assert (await void(own, "v2"))["entry"]["amount"] == "5"
    assert await disagreements(own.database, meter_id) == []


async def test_the_greatest_event_is_given_back(own: Gateway) -> None:
    meter_id = await make_meter(own, allowOverages=True)
    await record(own, "e", 2**63 - 1)
    answer = await void(own, "v", 2**63 - 2)
    assert (answer["entry"]["amount"], answer["billingMeter"]["usedCredits"]) == ("9223372036854775806", "1")
    answer = await void(own, "v2", 2**63 - 2)
    assert (answer["__typename"], answer["voidable"]) == ("ExceedsVoidable", "1")
    assert await disagreements(own.database, meter_id) == []


async def test_credits_that_were_given_back_can_be_used_again(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="10")
    await record(own, "e", 10)
    refused = await own.mutate("recordUsage", "", workspaceId="w", externalMeterId="m", eventId="f", amount="4")
    assert refused["code"] == "INSUFFICIENT_CREDITS"
    await void(own, "v", 4)
    await record(own, "f", 4)
    refused = await own.mutate("recordUsage", "", workspaceId="w", externalMeterId="m", eventId="g", amount="1")
    assert refused["code"] == "INSUFFICIENT_CREDITS"
    assert (await meter_of(own))["usedCredits"] == "10"
    assert await disagreements(own.database, meter_id) == []


async def test_a_voided_event_keeps_its_id_and_its_replay(gateway: Gateway) -> None:
    meter_id = await a_meter_with_one_event(gateway, 10)
    await void(gateway)
    async with unchanged(gateway):
        again = await record(gateway, "e", 10)
        assert (again["replayed"], again["accepted"]) == (True, "10")
        assert again["entry"]["id"] == entry_id(meter_id, 2)
        other = await gateway.mutate("recordUsage", "", workspaceId="w", externalMeterId="m", eventId="e", amount="9")
        assert other["code"] == "IDEMPOTENCY_CONFLICT"


# The event's own day.


async def test_the_day_of_the_event_goes_down_also_when_it_is_voided_days_later(own: Gateway) -> None:
    meter_id = await a_meter_with_one_event(own, 10)
    own.clock.forward(days=3)
    await record(own, "today", 5)
    answer = await void(own, "v", 4)
    assert answer["entry"]["day"] == "2026-03-16"
    meter = await meter_of(own)
    assert meter["usage"] == {("2026-03-16", "default"): 6, ("2026-03-19", "default"): 5}
    assert meter["ledger"][3]["recordedAt"] == "2026-03-19T12:00:00Z"
    assert await disagreements(own.database, meter_id) == []


@pytest.mark.slow
async def test_an_event_of_long_ago_can_be_voided(own: Gateway) -> None:
    meter_id = await a_meter_with_one_event(own, 10)
    own.clock.forward(days=400)
    assert (await void(own))["entry"]["day"] == "2026-03-16"
    assert (await meter_of(own))["usage"].get(("2026-03-16", "default"), 0) == 0
    assert await disagreements(own.database, meter_id) == []


@pytest.mark.parametrize(
    ("zone", "occurred_at", "day"),
    [
        ("Pacific/Kiritimati", "2026-03-15T10:00:00Z", "2026-03-16"),
        ("Pacific/Pago_Pago", "2026-03-15T10:59:59Z", "2026-03-14"),
        ("America/New_York", "2026-03-08T04:59:59Z", "2026-03-07"),
        ("America/New_York", "2026-03-09T03:59:59Z", "2026-03-08"),
        ("Asia/Kathmandu", "2026-03-15T18:15:00Z", "2026-03-16"),
    ],
)
async def test_the_day_that_goes_down_is_that_of_the_meters_zone(
    own: Gateway, zone: str, occurred_at: str, day: str
) -> None:
    meter_id = await make_meter(own, totalCredits="100", timezone=zone)
    await record(own, "e", 10, occurredAt=occurred_at, usageName="tokens")
    await record(own, "f", 1, occurredAt=occurred_at)
    own.clock.forward(days=2)
    assert (await void(own, "v", 7))["entry"]["day"] == day
    assert (await meter_of(own))["usage"] == {(day, "tokens"): 3, (day, "default"): 1}
    assert await disagreements(own.database, meter_id) == []


async def test_only_the_usage_name_of_the_event_goes_down(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    await record(gateway, "e", 10, usageName="one")
    await record(gateway, "f", 20, usageName="two")
    await void(gateway, "v", 20, eventId="f")
    usage = (await meter_of(gateway))["usage"]
    assert usage[("2026-03-16", "one")] == 10
    assert usage.get(("2026-03-16", "two"), 0) == 0


# Exactly once.


async def test_a_repeated_void_answers_the_first(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    first = await void(gateway, "v", 4)
    gateway.clock.forward(days=40)
    await record(gateway, "later", 1)
    async with unchanged(gateway):
        again = await void(gateway, "v", 4)
    # The meter is shown as it is now.
    assert again == first | {"replayed": True, "billingMeter": again["billingMeter"]}
    assert again["billingMeter"]["usedCredits"] == "7"


async def test_a_repeated_void_of_all_that_was_left_answers_the_first(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    first = await void(gateway)
    async with unchanged(gateway):
        again = await void(gateway)
    assert again == first | {"replayed": True}


async def test_a_repeated_void_is_a_replay_also_when_nothing_is_left(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    first = await void(gateway, "v", 4)
    await void(gateway, "rest")
    async with unchanged(gateway):
        assert (await void(gateway, "v", 4))["entry"] == first["entry"]


@pytest.mark.parametrize(
    "changes",
    [
        {"eventId": "f"},
        {"amount": "5"},
        {"amount": "10"},
        {"reason": "another"},
        # What would be refused if the key were new.
        {"amount": "11"},
    ],
)
async def test_the_key_of_a_void_cannot_be_used_for_another(gateway: Gateway, changes: dict[str, Any]) -> None:
    meter_id = await a_meter_with_one_event(gateway, 10)
    await record(gateway, "f", 10)
    await void(gateway, "v", 4)
    async with unchanged(gateway):
        answer = await gateway.mutate("voidUsage", ANSWER, **INPUT | {"amount": "4"} | changes)
    assert answer == {
        "__typename": "IdempotencyConflict",
        "code": "IDEMPOTENCY_CONFLICT",
        "message": "'v' was used before with other values.",
        "first": {"id": entry_id(meter_id, 4), "kind": "VOID", "key": "v", "amount": "4"},
    }


async def test_an_amount_that_is_all_there_is_is_not_an_absent_one(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    await void(gateway, "v")
    async with unchanged(gateway):
        assert (await void(gateway, "v", 10))["code"] == "IDEMPOTENCY_CONFLICT"


async def test_the_keys_of_voids_refills_and_events_are_apart(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="100")
    await record(own, "same", 10)
    refill = await own.mutate(
        "refillBillingMeter", "", workspaceId="w", externalMeterId="m", refill="5", idempotencyKey="same"
    )
    assert refill["__typename"] == "RefillBillingMeterSuccess"
    assert (await void(own, "same", 1, eventId="same"))["replayed"] is False
    ledger = (await meter_of(own))["ledger"]
    assert [(entry["kind"], entry["key"]) for entry in ledger] == [
        ("OPENING", None),
        ("USAGE", "same"),
        ("REFILL", "same"),
        ("VOID", "same"),
    ]
    assert await disagreements(own.database, meter_id) == []


async def test_the_key_of_a_void_is_of_one_meter(gateway: Gateway) -> None:
    for name in ("one", "two"):
        await make_meter(gateway, name, totalCredits="100")
        await record(gateway, "e", 10, externalMeterId=name)
        assert (await void(gateway, "v", 1, externalMeterId=name))["replayed"] is False


async def test_equal_voids_that_race_give_back_once(own: Gateway) -> None:
    meter_id = await a_meter_with_one_event(own, 10)
    answers = await asyncio.gather(*[void(own, "v", 4) for _ in range(8)])
    assert [answer["__typename"] for answer in answers] == ["VoidUsageSuccess"] * 8
    assert sorted(answer["replayed"] for answer in answers) == [False] + [True] * 7
    assert {answer["entry"]["id"] for answer in answers} == {entry_id(meter_id, 3)}
    assert (await meter_of(own))["usedCredits"] == "6"
    assert await disagreements(own.database, meter_id) == []


@pytest.mark.slow
async def test_voids_that_race_for_one_event_never_give_back_more_than_it_took(own: Gateway) -> None:
    meter_id = await a_meter_with_one_event(own, 10)
    await record(own, "other", 50)
    answers = await asyncio.gather(*[void(own, f"v{number}", 3) for number in range(12)])
    names = [answer["__typename"] for answer in answers]
    assert (names.count("VoidUsageSuccess"), names.count("ExceedsVoidable")) == (3, 9)
    assert {answer["voidable"] for answer in answers if answer["__typename"] == "ExceedsVoidable"} == {"1"}
    meter = await meter_of(own)
    assert meter["usedCredits"] == "51"
    assert [entry["usedCreditsAfter"] for entry in meter["ledger"]] == ["0", "10", "60", "57", "54", "51"]
    assert await disagreements(own.database, meter_id) == []


async def test_voids_and_debits_that_race_make_one_line_of_totals(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="20")
    for number in range(6):
        await record(own, f"first{number}", 3)

    async def debit(number: int) -> dict[str, Any]:
        return await own.mutate(
            "recordUsage", "", workspaceId="w", externalMeterId="m", eventId=f"second{number}", amount="2"
        )

    answers = await asyncio.gather(
        *[
            void(own, f"v{number}", eventId=f"first{number // 2}") if number % 2 == 0 else debit(number)
            for number in range(12)
        ]
    )
    voided = [answer for answer in answers if answer["__typename"] == "VoidUsageSuccess"]
    debited = [answer for answer in answers if answer["__typename"] == "RecordUsageSuccess"]
    assert len(voided) == 6
    meter = await meter_of(own)
    assert int(meter["usedCredits"]) == 2 * len(debited)
    assert meter["usage"] == {("2026-03-16", "default"): 2 * len(debited)}
    # That the totals follow from each other, and that no debit passed the limit, is the check's own.
    assert await disagreements(own.database, meter_id) == []


# What is refused.


async def test_a_void_of_an_unknown_event_or_meter_is_refused(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    async with unchanged(gateway):
        assert await void(gateway, eventId="nothing") == {
            "__typename": "UsageEventNotFound",
            "code": "USAGE_EVENT_NOT_FOUND",
            "message": "The billing meter has no usage event 'nothing'.",
        }
        assert await void(gateway, externalMeterId="nowhere") == {
            "__typename": "BillingMeterNotFound",
            "code": "BILLING_METER_NOT_FOUND",
            "message": "There is no billing meter 'nowhere' in workspace 'w'.",
        }


async def test_a_void_or_a_refill_is_no_event_that_can_be_voided(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    await void(gateway, "v", 4)
    await gateway.mutate(
        "refillBillingMeter", "", workspaceId="w", externalMeterId="m", refill="5", idempotencyKey="refill"
    )
    async with unchanged(gateway):
        for event_id in ("v", "refill"):
            answer = await void(gateway, "another", eventId=event_id)
            assert answer["code"] == "USAGE_EVENT_NOT_FOUND"


async def test_an_event_that_was_refused_or_a_check_cannot_be_voided(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await record(gateway, "check", 0)
    refused = await gateway.mutate("recordUsage", "", workspaceId="w", externalMeterId="m", eventId="e", amount="11")
    assert refused["code"] == "INSUFFICIENT_CREDITS"
    async with unchanged(gateway):
        assert (await void(gateway, eventId="check"))["code"] == "USAGE_EVENT_NOT_FOUND"
        assert (await void(gateway))["code"] == "USAGE_EVENT_NOT_FOUND"


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("amount", "0", "amount must be greater than 0."),
        ("reason", "", "reason must have 1 to 500 characters"),
        ("reason", "x" * 501, "reason must have 1 to 500 characters"),
        ("idempotencyKey", "", "idempotencyKey must have 1 to 255 characters"),
        ("idempotencyKey", "x" * 256, "idempotencyKey must have 1 to 255 characters"),
        ("eventId", "", "eventId must have 1 to 255 characters"),
        ("eventId", "a\x00b", "eventId must not contain NUL"),
        ("workspaceId", "", "workspaceId must have 1 to 256 characters"),
        ("externalMeterId", "x" * 257, "externalMeterId must have 1 to 256 characters"),
    ],
)
async def test_an_invalid_value_is_refused_by_the_name_of_its_field(
    gateway: Gateway, field: str, value: str, rule: str
) -> None:
    await a_meter_with_one_event(gateway, 10)
    async with unchanged(gateway):
        answer = await gateway.mutate("voidUsage", ANSWER, **INPUT | {field: value})
    assert (answer["__typename"], answer["code"]) == ("InvalidInput", "INVALID_INPUT")
    assert answer["field"] == ["input", field]
    assert answer["message"].startswith(rule)


async def test_the_longest_texts_are_accepted(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await record(gateway, "é" * 255, 10)
    answer = await void(gateway, "日" * 255, 1, eventId="é" * 255, reason="🧾" * 500)
    assert answer["entry"]["key"] == "日" * 255
    assert answer["entry"]["reason"] == "🧾" * 500
    assert answer["entry"]["voids"]["key"] == "é" * 255


VOID = "mutation ($input: VoidUsageInput!) { voidUsage(input: $input) { __typename } }"


async def test_a_void_needs_its_scope(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    others = await gateway.caller(Scope.BILLING_READ, Scope.BILLING_WRITE, Scope.USAGE_WRITE)
    async with unchanged(gateway):
        # Whether the event or the meter exists is not shown either.
        for changes in ({}, {"eventId": "nothing"}, {"externalMeterId": "nowhere"}):
            error = await others.error(VOID, {"input": INPUT | changes})
            assert error["message"] == "The key lacks the scope usage:correct."
            assert error["extensions"] == {"code": "FORBIDDEN"}
    corrector = await gateway.caller(Scope.USAGE_CORRECT)
    answer = await corrector.data(VOID, {"input": INPUT})
    assert answer == {"voidUsage": {"__typename": "VoidUsageSuccess"}}


async def test_a_void_in_a_workspace_outside_the_keys_list_is_forbidden(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    limited = await gateway.caller(workspaces=["elsewhere"])
    async with unchanged(gateway):
        error = await limited.error(VOID, {"input": INPUT})
    assert error["message"] == "The key is limited to other workspaces than 'w'."
    assert error["extensions"] == {"code": "FORBIDDEN"}


async def test_a_malformed_value_is_reported_before_a_missing_scope(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    recorder = await gateway.caller(Scope.USAGE_WRITE)
    answer = await recorder.data(VOID, {"input": INPUT | {"amount": "0"}})
    assert answer == {"voidUsage": {"__typename": "InvalidInput"}}


async def test_an_event_of_another_organization_or_environment_is_not_found(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    others = [
        await gateway.caller(org_id=f"{gateway.org_id}-other"),
        await gateway.caller(environment=Environment.LIVE),
    ]
    async with unchanged(gateway):
        for other in others:
            assert (await void(other))["code"] == "BILLING_METER_NOT_FOUND"


async def test_what_is_not_found_comes_before_a_conflict_and_a_conflict_before_the_limit(gateway: Gateway) -> None:
    await a_meter_with_one_event(gateway, 10)
    await void(gateway, "v", 4)
    async with unchanged(gateway):
        assert (await void(gateway, "v", 4, eventId="nothing"))["code"] == "USAGE_EVENT_NOT_FOUND"
        assert (await void(gateway, "v", 100))["code"] == "IDEMPOTENCY_CONFLICT"
        assert (await void(gateway, "v2", 100))["code"] == "EXCEEDS_VOIDABLE"


# Old dates, which need the same scope.


async def test_old_events_need_the_scope_that_voids_need(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="100")
    old = {"occurredAt": "2026-01-01T00:00:00Z"}
    recorder = await own.caller(Scope.USAGE_WRITE)
    values = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": "10"} | old
    async with unchanged(own):
        answer = await recorder.mutate("recordUsage", "", **values)
    assert (answer["__typename"], answer["field"]) == ("InvalidInput", ["input", "occurredAt"])
    await record(own, "e", 10, **old)
    assert (await meter_of(own))["usage"] == {("2026-01-01", "default"): 10}
    assert (await void(own, "v", 4))["entry"]["day"] == "2026-01-01"
    assert (await meter_of(own))["usage"] == {("2026-01-01", "default"): 6}
    assert await disagreements(own.database, meter_id) == []
