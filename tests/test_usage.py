"""Usage: recording it by each policy, exactly once, on the right day; and reading its days."""

from datetime import UTC, date, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from resolvers.actor import Scope
from resolvers.customers.customers import NewCustomer
from resolvers.idempotency import digest, same_json
from storage.meters import usage
from storage.meters.ledger import LedgerEntryRow
from storage.meters.usage import UsageRange
from storage.tenants import Environment
from tests.conftest import NOW, Caller, Gateway
from tests.steps import books_of, bucket_with, make_meter, must, unchanged

MAX = 2**63 - 1

#: When `gateway.clock` stands: 12:00 in UTC.
NOON = NOW


ANSWER = """
  ... on RecordUsageSuccess {
    accepted refused overLimit replayed
    billingMeter { totalCredits usedCredits overageCredits availableCredits }
    entry { id amount requestedAmount usedCreditsAfter }
  }
  ... on InsufficientCredits { available billingMeter { totalCredits usedCredits overageCredits availableCredits } }
  ... on SpendCapExceeded { available billingMeter { totalCredits usedCredits overageCredits availableCredits } }
  ... on IdempotencyConflict { entry: firstEntry { id amount requestedAmount usedCreditsAfter } }
"""


async def record(caller: Caller, **values: Any) -> dict[str, Any]:
    """Record usage and return what is answered. The event is `e` on the meter `m`, unless the values say otherwise."""
    values = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e"} | values
    return await caller.mutate("recordUsage", ANSWER, **values)


async def entry_of(gateway: Gateway, **values: Any) -> LedgerEntryRow:
    """Record usage, which must be accepted for the first time, and return its ledger entry."""
    answer = await record(gateway, **values)
    assert answer["__typename"] == "RecordUsageSuccess"
    assert answer["replayed"] is False
    return (await books_of(gateway)).entries[-1]


def instant(moment: datetime) -> str:
    """Write a moment as it is sent."""
    return moment.isoformat()


# What each policy accepts.


async def test_a_debit_that_the_credits_cover_is_recorded(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    gateway.clock.forward(minutes=1)
    answer = await gateway.mutate(
        "recordUsage",
        """... on RecordUsageSuccess {
          accepted refused overLimit replayed
          billingMeter { id totalCredits usedCredits overageCredits availableCredits createdAt updatedAt }
          entry {
            id kind amount totalCreditsAfter usedCreditsAfter key usageName day requestedAmount policy occurredAt
            recordedAt reason metadata billingMeter { id } voids { id }
          }
        }""",
        workspaceId="w",
        externalMeterId="m",
        eventId="e",
        amount="7",
        usageName="tokens",
        occurredAt="2026-03-15T23:30:00.5-02:00",
        metadata={"model": "small", "list": [1, 1.5, None]},
    )
    assert answer == {
        "__typename": "RecordUsageSuccess",
        "accepted": "7",
        "refused": "0",
        "overLimit": False,
        "replayed": False,
        "billingMeter": {
            "id": meter_id,
            "totalCredits": "10",
            "usedCredits": "7",
            "overageCredits": "0",
            "availableCredits": "3",
            "createdAt": "2026-03-16T12:00:00Z",
            "updatedAt": "2026-03-16T12:01:00Z",
        },
        "entry": {
            "id": f"ent_{meter_id.removeprefix('mtr_')}_2",
            "kind": "USAGE",
            "amount": "7",
            "totalCreditsAfter": "10",
            "usedCreditsAfter": "7",
            "key": "e",
            "usageName": "tokens",
            "day": "2026-03-16",
            "requestedAmount": "7",
            "policy": "REJECT",
            "occurredAt": "2026-03-16T01:30:00.500000Z",
            "recordedAt": "2026-03-16T12:01:00Z",
            "reason": None,
            "metadata": {"model": "small", "list": [1, 1.5, None]},
            "billingMeter": {"id": meter_id},
            "voids": None,
        },
    }
    assert (await books_of(gateway)).days == {("2026-03-16", "tokens"): 7}


async def test_what_is_left_out_takes_its_default(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    entry = await entry_of(gateway, amount="1")
    assert entry.usage_name == "default"
    assert entry.policy == "reject"
    assert entry.metadata == {}
    assert entry.sent_at is None
    assert entry.occurred_at == entry.recorded_at == NOON
    assert (await books_of(gateway)).days == {("2026-03-16", "default"): 1}


async def test_reject_takes_all_that_is_available_and_not_one_more(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await record(gateway, amount="4")
    async with unchanged(gateway):
        answer = await record(gateway, eventId="too many", amount="7")
    assert answer == {
        "__typename": "InsufficientCredits",
        "code": "INSUFFICIENT_CREDITS",
        "message": "7 credits are asked for and 6 are available.",
        "available": "6",
        "billingMeter": {
            "totalCredits": "10",
            "usedCredits": "4",
            "overageCredits": "0",
            "availableCredits": "6",
        },
    }
    answer = await record(gateway, eventId="all", amount="6")
    assert (answer["accepted"], answer["refused"], answer["overLimit"]) == ("6", "0", False)
    assert answer["billingMeter"]["availableCredits"] == "0"
    async with unchanged(gateway):
        answer = await record(gateway, eventId="one more", amount="1")
    assert (answer["__typename"], answer["available"]) == ("InsufficientCredits", "0")
    assert (await books_of(gateway)).days == {("2026-03-16", "default"): 10}


async def test_partial_takes_what_is_available(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    covered = await record(gateway, eventId="covered", amount="4", policy="PARTIAL")
    assert (covered["accepted"], covered["refused"]) == ("4", "0")
    answer = await record(gateway, amount="9", policy="PARTIAL")
    assert (answer["accepted"], answer["refused"], answer["overLimit"]) == ("6", "3", False)
    assert answer["billingMeter"] == {
        "totalCredits": "10",
        "usedCredits": "10",
        "overageCredits": "0",
        "availableCredits": "0",
    }
    assert answer["entry"]["amount"] == "6"
    assert answer["entry"]["requestedAmount"] == "9"
    assert (await books_of(gateway)).days == {("2026-03-16", "default"): 10}


async def test_partial_is_refused_where_nothing_is_available(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await record(gateway, amount="10")
    async with unchanged(gateway):
        answer = await record(gateway, eventId="p", amount="1", policy="PARTIAL")
    assert (answer["__typename"], answer["available"]) == ("InsufficientCredits", "0")
    assert answer["billingMeter"]["usedCredits"] == "10"


async def test_partial_takes_what_the_spend_cap_leaves(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10", allowOverages=True, spendCap="5")
    answer = await record(gateway, amount="20", policy="PARTIAL")
    assert (answer["accepted"], answer["refused"], answer["overLimit"]) == ("15", "5", False)
    assert answer["billingMeter"]["overageCredits"] == "5"
    async with unchanged(gateway):
        answer = await record(gateway, eventId="p", amount="1", policy="PARTIAL")
    assert (answer["__typename"], answer["available"]) == ("SpendCapExceeded", "0")


async def test_force_passes_the_limit_and_says_so(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    covered = await record(gateway, eventId="covered", amount="10", policy="FORCE")
    assert (covered["accepted"], covered["overLimit"]) == ("10", False)
    answer = await record(gateway, amount="7", policy="FORCE")
    assert (answer["accepted"], answer["refused"], answer["overLimit"]) == ("7", "0", True)
    assert answer["billingMeter"] == {
        "totalCredits": "10",
        "usedCredits": "17",
        "overageCredits": "7",
        "availableCredits": "0",
    }
    assert (await books_of(gateway)).days == {("2026-03-16", "default"): 17}


async def test_force_passes_the_spend_cap_and_says_so(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10", allowOverages=True, spendCap="5")
    within = await record(gateway, eventId="within", amount="15", policy="FORCE")
    assert (within["overLimit"], within["billingMeter"]["overageCredits"]) == (False, "5")
    answer = await record(gateway, amount="1", policy="FORCE")
    assert (answer["accepted"], answer["overLimit"]) == ("1", True)
    assert answer["billingMeter"]["usedCredits"] == "16"


async def test_force_needs_its_scope(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    caller = await gateway.caller(Scope.BILLING_READ, Scope.USAGE_WRITE)
    query = "mutation ($input: RecordUsageInput!) { recordUsage(input: $input) { __typename } }"
    values = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": "1", "policy": "FORCE"}
    async with unchanged(gateway):
        error = await caller.error(query, {"input": values})
    assert error["extensions"] == {"code": "FORBIDDEN"}
    answer = await record(caller, amount="1", policy="PARTIAL")
    assert (answer["accepted"], answer["replayed"]) == ("1", False)


@pytest.mark.parametrize("policy", ["REJECT", "PARTIAL", "FORCE"])
async def test_without_a_limit_everything_is_accepted(gateway: Gateway, policy: str) -> None:
    await make_meter(gateway, totalCredits="10", allowOverages=True)
    answer = await record(gateway, amount="1000", policy=policy)
    assert (answer["accepted"], answer["refused"], answer["overLimit"]) == ("1000", "0", False)
    assert answer["billingMeter"] == {
        "totalCredits": "10",
        "usedCredits": "1000",
        "overageCredits": "990",
        "availableCredits": None,
    }


async def test_the_spend_cap_is_distinguished_from_missing_credits(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10", allowOverages=True, spendCap="5")
    await record(gateway, amount="12")
    async with unchanged(gateway):
        answer = await record(gateway, eventId="too many", amount="4")
    assert answer == {
        "__typename": "SpendCapExceeded",
        "code": "SPEND_CAP_EXCEEDED",
        "message": "4 credits are asked for and 3 are available.",
        "available": "3",
        "billingMeter": {"totalCredits": "10", "usedCredits": "12", "overageCredits": "2", "availableCredits": "3"},
    }
    # Without overages the cap has no effect, and what was used beyond the credits is not given back.
    await must(gateway, "updateBillingMeter", allowOverages=False)
    async with unchanged(gateway):
        answer = await record(gateway, eventId="too many", amount="1")
    assert (answer["__typename"], answer["available"]) == ("InsufficientCredits", "0")
    # Overages allowed again, the same three are there.
    await must(gateway, "updateBillingMeter", allowOverages=True)
    answer = await record(gateway, eventId="all", amount="3")
    assert answer["billingMeter"]["usedCredits"] == "15"


async def test_the_emergency_stop_holds_until_a_refill_covers_what_is_used(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10", allowOverages=True)
    await record(gateway, amount="100")
    await must(gateway, "updateBillingMeter", spendCap="5")
    async with unchanged(gateway):
        answer = await record(gateway, eventId="stopped", amount="1")
    assert (answer["__typename"], answer["available"]) == ("SpendCapExceeded", "0")
    async with unchanged(gateway):
        check = await record(gateway, eventId="check", amount="0")
    assert (check["accepted"], check["overLimit"]) == ("0", True)
    await must(gateway, "refillBillingMeter", refill="85")
    async with unchanged(gateway):
        answer = await record(gateway, eventId="stopped", amount="1")
    assert (answer["__typename"], answer["available"]) == ("SpendCapExceeded", "0")
    await must(gateway, "refillBillingMeter", refill="1")
    answer = await record(gateway, eventId="stopped", amount="1")
    assert (answer["accepted"], answer["overLimit"], answer["replayed"]) == ("1", False, False)


@pytest.mark.parametrize("policy", ["REJECT", "PARTIAL", "FORCE"])
async def test_used_credits_never_pass_the_greatest_amount(gateway: Gateway, policy: str) -> None:
    await make_meter(gateway, allowOverages=True)
    most = await record(gateway, eventId="most", amount=str(MAX - 1), policy=policy)
    assert most["billingMeter"]["usedCredits"] == "9223372036854775806"
    async with unchanged(gateway):
        answer = await record(gateway, amount="2", policy=policy)
    assert answer == {
        "__typename": "AmountOutOfRange",
        "code": "AMOUNT_OUT_OF_RANGE",
        "message": "The meter's used credits would pass 9223372036854775807, the greatest amount.",
    }
    answer = await record(gateway, amount="1", policy=policy)
    assert answer["billingMeter"]["usedCredits"] == "9223372036854775807"
    assert answer["billingMeter"]["overageCredits"] == "9223372036854775807"
    books = await books_of(gateway)
    assert books.days == {("2026-03-16", "default"): MAX}


async def test_force_past_a_limit_never_passes_the_greatest_amount(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits=str(MAX))
    await record(gateway, eventId="most", amount=str(MAX))
    async with unchanged(gateway):
        forced = await record(gateway, amount="1", policy="FORCE")
        rejected = await record(gateway, amount="1", policy="REJECT")
    assert forced["__typename"] == "AmountOutOfRange"
    assert (rejected["__typename"], rejected["available"]) == ("InsufficientCredits", "0")


# A debit of nothing is a check.


async def test_a_check_writes_nothing_and_answers_like_a_debit(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await record(gateway, eventId="first", amount="4")
    gateway.clock.forward(minutes=1)
    async with unchanged(gateway):
        answer = await record(gateway, eventId="check", amount="0")
    assert answer == {
        "__typename": "RecordUsageSuccess",
        "accepted": "0",
        "refused": "0",
        "overLimit": False,
        "replayed": False,
        "billingMeter": {"totalCredits": "10", "usedCredits": "4", "overageCredits": "0", "availableCredits": "6"},
        "entry": None,
    }
    # The id that the check named is still free.
    answer = await record(gateway, eventId="check", amount="6")
    assert (answer["accepted"], answer["replayed"]) == ("6", False)


@pytest.mark.parametrize("policy", ["REJECT", "PARTIAL", "FORCE"])
async def test_a_check_ignores_an_event_id_that_is_already_used(gateway: Gateway, policy: str) -> None:
    await make_meter(gateway, totalCredits="10")
    await record(gateway, amount="4", usageName="tokens", metadata={"a": 1})
    async with unchanged(gateway):
        answer = await record(gateway, amount="0", policy=policy)
    assert (answer["__typename"], answer["accepted"], answer["replayed"]) == ("RecordUsageSuccess", "0", False)
    assert answer["entry"] is None


@pytest.mark.parametrize("policy", ["REJECT", "PARTIAL", "FORCE"])
async def test_a_check_succeeds_on_a_meter_without_credits(gateway: Gateway, policy: str) -> None:
    await make_meter(gateway, totalCredits="0")
    async with unchanged(gateway):
        answer = await record(gateway, amount="0", policy=policy)
    assert (answer["__typename"], answer["accepted"], answer["overLimit"]) == ("RecordUsageSuccess", "0", False)
    assert answer["billingMeter"]["availableCredits"] == "0"


async def test_a_check_past_the_limit_says_so(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await record(gateway, amount="11", policy="FORCE")
    async with unchanged(gateway):
        answer = await record(gateway, eventId="check", amount="0")
    assert (answer["accepted"], answer["overLimit"]) == ("0", True)


async def test_a_check_of_an_unknown_meter_or_outside_the_time_window_is_refused(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    async with unchanged(gateway):
        unknown = await record(gateway, externalMeterId="other", amount="0")
        ahead = await record(gateway, amount="0", occurredAt=instant(NOON + timedelta(hours=1)))
    assert unknown["__typename"] == "BillingMeterNotFound"
    assert (ahead["__typename"], ahead["field"]) == ("InvalidInput", ["input", "occurredAt"])


# What is refused before the limit is looked at.


async def test_a_meter_of_other_names_another_organization_or_environment_is_not_found(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    stranger = await gateway.caller(org_id=f"{gateway.org_id}-other")
    live = await gateway.caller(environment=Environment.LIVE)
    not_found = {
        "__typename": "BillingMeterNotFound",
        "code": "BILLING_METER_NOT_FOUND",
        "message": "There is no billing meter 'm' in workspace 'w'.",
    }
    async with unchanged(gateway):
        assert await record(stranger, amount="1") == not_found
        assert await record(live, amount="1") == not_found
        other = await record(gateway, externalMeterId="M", amount="1")
        assert other["message"] == "There is no billing meter 'M' in workspace 'w'."
        other = await record(gateway, workspaceId="x", amount="1")
        assert other["message"] == "There is no billing meter 'm' in workspace 'x'."
    # A meter that was asked for before it existed is found once it does.
    await make_meter(gateway, externalMeterId="M", totalCredits="1")
    found = await record(gateway, externalMeterId="M", amount="1")
    assert found["__typename"] == "RecordUsageSuccess"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workspaceId", ""),
        ("workspaceId", "w" * 257),
        ("externalMeterId", ""),
        ("externalMeterId", "m" * 257),
        ("eventId", ""),
        ("eventId", "e" * 256),
        ("eventId", "e\0"),
        ("usageName", ""),
        ("usageName", "u" * 129),
        ("usageName", "a\0b"),
        ("metadata", []),
        ("metadata", "text"),
        ("metadata", {"text": "x" * (16 * 1024)}),
        ("metadata", {"text": "\0"}),
        ("metadata", {"a\0": 1}),
    ],
)
async def test_a_malformed_value_is_refused_by_the_name_of_its_field(gateway: Gateway, field: str, value: Any) -> None:
    await make_meter(gateway, totalCredits="10")
    async with unchanged(gateway):
        # Also where the meter would not be found, or the limit not cover it.
        answer = await record(gateway, **{"amount": "11", field: value})
    assert answer["__typename"] == "InvalidInput"
    assert answer["code"] == "INVALID_INPUT"
    assert answer["field"] == ["input", field]


async def test_the_longest_names_are_accepted(gateway: Gateway) -> None:
    await make_meter(gateway, workspaceId="w" * 256, externalMeterId="𝄞" * 256, totalCredits="10")
    answer = await record(
        gateway,
        workspaceId="w" * 256,
        externalMeterId="𝄞" * 256,
        eventId="é" * 255,
        usageName="日" * 128,
        amount="10",
    )
    assert (answer["__typename"], answer["accepted"]) == ("RecordUsageSuccess", "10")
    books = await books_of(gateway, "𝄞" * 256, workspace_id="w" * 256)
    assert books.entries[-1].key == "é" * 255
    assert books.days == {("2026-03-16", "日" * 128): 10}


# Exactly once.

FIRST = {
    "amount": "4",
    "usageName": "tokens",
    "policy": "REJECT",
    "occurredAt": "2026-03-16T10:00:00.250Z",
    "metadata": {"a": 1, "b": [True, None, {"c": "d"}]},
}


async def test_a_replay_answers_the_first_result(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    first = await record(gateway, **FIRST)
    gateway.clock.forward(minutes=1)
    async with unchanged(gateway):
        again = await record(gateway, **FIRST)
    assert again == first | {"replayed": True}


async def test_a_replay_answers_the_first_result_also_after_later_events_and_refills(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="5")
    partial = await record(gateway, eventId="partial", amount="8", policy="PARTIAL")
    forced = await record(gateway, eventId="forced", amount="2", policy="FORCE")
    assert (partial["accepted"], partial["refused"], partial["overLimit"]) == ("5", "3", False)
    assert (forced["accepted"], forced["refused"], forced["overLimit"]) == ("2", "0", True)
    gateway.clock.forward(hours=1)
    await must(gateway, "refillBillingMeter", refill="100")
    await record(gateway, eventId="later", amount="50")
    now = {"totalCredits": "105", "usedCredits": "57", "overageCredits": "0", "availableCredits": "48"}
    async with unchanged(gateway):
        partial_again = await record(gateway, eventId="partial", amount="8", policy="PARTIAL")
        forced_again = await record(gateway, eventId="forced", amount="2", policy="FORCE")
    # The meter is shown as it is now, the rest as it was.
    assert partial_again == partial | {"replayed": True, "billingMeter": now}
    assert forced_again == forced | {"replayed": True, "billingMeter": now}


async def test_a_replay_is_no_new_debit_where_the_credits_are_gone(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="5")
    first = await record(gateway, amount="5")
    async with unchanged(gateway):
        again = await record(gateway, amount="5")
    assert again == first | {"replayed": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"usageName": "default"},
        {"usageName": "Tokens"},
        {"amount": "5"},
        {"amount": "11"},
        {"policy": "PARTIAL"},
        {"policy": "FORCE"},
        {"occurredAt": "2026-03-16T10:00:00.250001Z"},
        {"occurredAt": "2026-03-16T10:00:00.250+01:00"},
        {"occurredAt": None},
        {"metadata": None},
        {"metadata": {}},
        {"metadata": {"a": 1}},
        {"metadata": {"a": "1", "b": [True, None, {"c": "d"}]}},
        {"metadata": {"a": 1.5, "b": [True, None, {"c": "d"}]}},
        {"metadata": {"a": True, "b": [True, None, {"c": "d"}]}},
        {"metadata": {"a": 1, "b": [1, None, {"c": "d"}]}},
        {"metadata": {"a": 1, "b": [None, True, {"c": "d"}]}},
    ],
    ids=str,
)
async def test_the_id_of_an_event_cannot_be_used_for_another(gateway: Gateway, changes: dict[str, Any]) -> None:
    await make_meter(gateway, totalCredits="10")
    first = await record(gateway, **FIRST)
    async with unchanged(gateway):
        answer = await record(gateway, **FIRST | changes)
    assert answer == {
        "__typename": "IdempotencyConflict",
        "code": "IDEMPOTENCY_CONFLICT",
        "message": "'e' was used before with other values.",
        "entry": first["entry"],
    }
    async with unchanged(gateway):
        again = await record(gateway, **FIRST)
    assert again == first | {"replayed": True}


async def test_an_event_that_was_sent_without_a_time_is_not_one_with_a_time(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    first = await record(gateway, amount="4")
    async with unchanged(gateway):
        answer = await record(gateway, amount="4", occurredAt=instant(NOON))
    assert answer["__typename"] == "IdempotencyConflict"
    # Without a time it is the same, whenever it is sent again.
    gateway.clock.forward(days=3)
    async with unchanged(gateway):
        again = await record(gateway, amount="4")
    assert again == first | {"replayed": True}


@pytest.mark.parametrize(
    "written",
    [
        "2026-03-16T10:00:00.25Z",
        "2026-03-16T10:00:00.250000+00:00",
        "2026-03-16T11:00:00.25+01:00",
        "2026-03-15T20:30:00.250-13:30",
        "2026-03-16t10:00:00.25z",
    ],
)
async def test_the_same_instant_and_metadata_written_otherwise_are_the_same(gateway: Gateway, written: str) -> None:
    await make_meter(gateway, totalCredits="10")
    first = await record(gateway, **FIRST)
    metadata = {"b": [True, None, {"c": "d"}], "a": 1}
    async with unchanged(gateway):
        again = await record(gateway, **FIRST | {"occurredAt": written, "amount": 4, "metadata": metadata})
    assert again == first | {"replayed": True}


#: Each list has one JSON value, written in all its ways; no two lists are equal.
WAYS: list[list[Any]] = [
    [1, 1.0],
    [True],
    ["1"],
    ["1.0"],
    [0, 0.0, -0.0],
    [False],
    [None],
    [2**53, float(2**53)],
    [2**53 + 1],
    [2**53 + 2, float(2**53 + 2)],
    [2**63, float(2**63)],
    [2**63 - 1],
    [2**64 - 1],
    [float(2**64)],
    [-(2**63), -float(2**63)],
    [1e100],
    [0.1],
    [{"a": [1, {"b": 2}]}, {"a": [1.0, {"b": 2.0}]}],
]


def test_json_is_compared_by_value() -> None:
    for place, ways in enumerate(WAYS):
        for other_place, others in enumerate(WAYS):
            for one, other in product(ways, others):
                is_same = place == other_place
                assert same_json({"n": one}, {"n": other}) == is_same, (one, other)
                digests = {digest(NewCustomer("ada@example.com", metadata={"n": [each]})) for each in (one, other)}
                assert (len(digests) == 1) == is_same, (one, other)


async def test_numbers_in_metadata_are_compared_by_value(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    numbers = [1, True, "1", 0, 2**53]
    for place, number in enumerate(numbers):
        answer = await record(gateway, eventId=f"e{place}", amount="1", metadata={"n": number})
        assert (answer["__typename"], answer["replayed"]) == ("RecordUsageSuccess", False)
    async with unchanged(gateway):
        for place, same in ((0, 1.0), (1, True), (2, "1"), (3, -0.0), (4, float(2**53))):
            answer = await record(gateway, eventId=f"e{place}", amount="1", metadata={"n": same})
            assert (answer["__typename"], answer["replayed"]) == ("RecordUsageSuccess", True)
        for place, other in ((0, True), (1, 1.0), (2, 1), (3, False), (4, 2**53 + 1)):
            answer = await record(gateway, eventId=f"e{place}", amount="1", metadata={"n": other})
            assert answer["__typename"] == "IdempotencyConflict"


async def test_a_replay_may_write_a_number_in_another_way(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    query = 'mutation {{ recordUsage(input: {{workspaceId: "w", externalMeterId: "m", eventId: "e", amount: 1, '
    query += "metadata: {{n: {}}}}}) {{ ... on RecordUsageSuccess {{ replayed entry {{ metadata }} }} }} }}"
    for literal, is_replay in (("1", False), ("1.0", True), ("1e0", True), ("10e-1", True)):
        answer = (await gateway.data(query.format(literal)))["recordUsage"]
        # What was kept is what came first.
        assert answer == {"replayed": is_replay, "entry": {"metadata": {"n": 1}}}


async def test_a_time_is_cut_to_microseconds_and_the_same_each_time(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    first = await record(gateway, amount="1", occurredAt="2026-03-16T10:00:00.123456789Z")
    (entry,) = [each for each in (await books_of(gateway)).entries if each.key is not None]
    assert entry.sent_at == datetime(2026, 3, 16, 10, 0, 0, 123456, UTC)
    async with unchanged(gateway):
        for written in (
            "2026-03-16T10:00:00.123456789Z",
            "2026-03-16T10:00:00.123456Z",
            "2026-03-16T10:00:00.123456999999999999999999999999Z",
            "2026-03-16T11:00:00.1234560000001+01:00",
        ):
            assert await record(gateway, amount="1", occurredAt=written) == first | {"replayed": True}
        answer = await record(gateway, amount="1", occurredAt="2026-03-16T10:00:00.123457Z")
        assert answer["__typename"] == "IdempotencyConflict"


async def test_integers_that_cannot_be_kept_exactly_are_refused_in_metadata(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    async with unchanged(gateway):
        for number in (2**64, 2**64 + 1, -(2**63) - 1, 10**100):
            answer = await record(gateway, amount="1", metadata={"n": number})
            assert (answer["__typename"], answer["field"]) == ("InvalidInput", ["input", "metadata"])


async def test_a_refusal_does_not_use_the_event_id_up(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="3")
    async with unchanged(gateway):
        answer = await record(gateway, **FIRST)
    assert answer["__typename"] == "InsufficientCredits"
    await must(gateway, "refillBillingMeter", refill="1")
    answer = await record(gateway, **FIRST)
    assert (answer["accepted"], answer["replayed"]) == ("4", False)
    assert (await books_of(gateway)).days == {("2026-03-16", "tokens"): 4}


async def test_a_refused_event_id_is_free_for_another_event(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="3")
    async with unchanged(gateway):
        assert (await record(gateway, **FIRST))["__typename"] == "InsufficientCredits"
        old = await record(gateway, **FIRST | {"occurredAt": "1969-12-31T00:00:00Z"})
        assert old["__typename"] == "InvalidInput"
    answer = await record(gateway, amount="2")
    assert (answer["accepted"], answer["replayed"]) == ("2", False)


async def test_an_event_id_names_an_event_of_one_meter(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await make_meter(gateway, externalMeterId="n", totalCredits="10")
    await make_meter(gateway, workspaceId="v", totalCredits="10")
    for values in ({"amount": "1"}, {"amount": "2", "externalMeterId": "n"}, {"amount": "3", "workspaceId": "v"}):
        answer = await record(gateway, **values)
        assert (answer["accepted"], answer["replayed"]) == (values["amount"], False)
    assert (await books_of(gateway)).meter.used_credits == 1
    assert (await books_of(gateway, "n")).meter.used_credits == 2
    assert (await books_of(gateway, workspace_id="v")).meter.used_credits == 3


async def test_an_event_id_is_apart_from_the_key_of_a_refill(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    refilled = await gateway.mutate(
        "refillBillingMeter", "", workspaceId="w", externalMeterId="m", refill="5", idempotencyKey="e"
    )
    assert refilled["__typename"] == "RefillBillingMeterSuccess"
    answer = await record(gateway, amount="5")
    assert (answer["accepted"], answer["replayed"]) == ("5", False)


@pytest.mark.parametrize("event_id", ["E", "e ", " e", "é", "e\u0301", "%", "_", "'", '"', "\\", "e\n", "0", "null"])
async def test_event_ids_are_distinguished_by_each_character(gateway: Gateway, event_id: str) -> None:
    await make_meter(gateway, totalCredits="10")
    for place, id_ in enumerate(("e", event_id, "é" if event_id == "e\u0301" else "ee"), start=2):
        entry = await entry_of(gateway, eventId=id_, amount="1")
        assert (entry.seq, entry.key) == (place, id_)
    async with unchanged(gateway):
        again = await record(gateway, eventId=event_id, amount="1")
    assert (again["replayed"], again["entry"]["usedCreditsAfter"]) == (True, "2")


# Time.


@pytest.fixture
async def recorder(gateway: Gateway) -> Caller:
    """Who may record, but not correct, usage."""
    return await gateway.caller(Scope.BILLING_READ, Scope.USAGE_WRITE)


OLDEST = NOON - timedelta(days=35)
NEWEST = NOON + timedelta(minutes=5)
MICROSECOND = timedelta(microseconds=1)


async def test_an_event_of_35_days_ago_is_accepted(gateway: Gateway, recorder: Caller) -> None:
    await make_meter(gateway, totalCredits="10")
    answer = await record(recorder, amount="1", occurredAt=instant(OLDEST))
    assert (answer["__typename"], answer["replayed"]) == ("RecordUsageSuccess", False)
    books = await books_of(gateway)
    assert books.entries[-1].occurred_at == OLDEST
    assert books.entries[-1].recorded_at == NOON
    assert books.days == {("2026-02-09", "default"): 1}


async def test_an_older_event_needs_its_scope(gateway: Gateway, recorder: Caller) -> None:
    await make_meter(gateway, totalCredits="10")
    older = instant(OLDEST - MICROSECOND)
    async with unchanged(gateway):
        answer = await record(recorder, amount="1", occurredAt=older)
    assert answer == {
        "__typename": "InvalidInput",
        "code": "INVALID_INPUT",
        "message": "occurredAt must be at most 35 days ago; older ones need the scope usage:correct.",
        "field": ["input", "occurredAt"],
    }
    corrector = await gateway.caller(Scope.USAGE_WRITE, Scope.USAGE_CORRECT)
    query = "mutation ($input: RecordUsageInput!) { recordUsage(input: $input) { __typename } }"
    values = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": "1", "occurredAt": older}
    assert await corrector.data(query, {"input": values}) == {"recordUsage": {"__typename": "RecordUsageSuccess"}}
    books = await books_of(gateway)
    assert books.entries[-1].occurred_at == OLDEST - MICROSECOND
    assert books.days == {("2026-02-09", "default"): 1}


async def test_an_event_of_5_minutes_ahead_is_accepted(gateway: Gateway, recorder: Caller) -> None:
    await make_meter(gateway, totalCredits="10")
    answer = await record(recorder, amount="1", occurredAt=instant(NEWEST))
    assert answer["__typename"] == "RecordUsageSuccess"
    assert (await books_of(gateway)).entries[-1].occurred_at == NEWEST


async def test_an_event_further_ahead_is_refused_from_any_caller(gateway: Gateway, recorder: Caller) -> None:
    await make_meter(gateway, totalCredits="10")
    for caller in (recorder, gateway):
        for occurred_at in (instant(NEWEST + MICROSECOND), "9999-12-31T23:59:59.999999Z"):
            async with unchanged(gateway):
                answer = await record(caller, amount="1", occurredAt=occurred_at)
            assert (answer["__typename"], answer["field"]) == ("InvalidInput", ["input", "occurredAt"])
            assert answer["message"] == "occurredAt must be at most 5 minutes ahead."


async def test_an_event_before_1970_is_refused_from_any_caller(gateway: Gateway, recorder: Caller) -> None:
    await make_meter(gateway, totalCredits="10")
    for caller in (recorder, gateway):
        for occurred_at in ("1969-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"):
            async with unchanged(gateway):
                answer = await record(caller, amount="1", occurredAt=occurred_at)
            assert (answer["__typename"], answer["field"]) == ("InvalidInput", ["input", "occurredAt"])
            assert answer["message"] == "occurredAt must not be before 1970."
    answer = await record(gateway, amount="1", occurredAt="1970-01-01T00:00:00Z")
    assert answer["__typename"] == "RecordUsageSuccess"
    assert (await books_of(gateway)).days == {("1970-01-01", "default"): 1}


async def test_a_replay_on_day_36_is_still_the_replay(gateway: Gateway, recorder: Caller) -> None:
    await make_meter(gateway, totalCredits="10")
    event = {"amount": "4", "occurredAt": instant(NOON)}
    first = await record(recorder, **event)
    gateway.clock.forward(days=36)
    async with unchanged(gateway):
        assert await record(recorder, **event) == first | {"replayed": True}
        # An id that is used for something else is reported as that, too, whatever the time says.
        conflict = await record(recorder, **event | {"amount": "5"})
        assert conflict["__typename"] == "IdempotencyConflict"
        # The first debit under an id of its own is too late.
        late = await record(recorder, eventId="late", **event)
        assert (late["__typename"], late["field"]) == ("InvalidInput", ["input", "occurredAt"])


async def test_of_several_reasons_the_first_in_the_order_of_precedence_is_reported(
    gateway: Gateway, recorder: Caller
) -> None:
    await make_meter(gateway, totalCredits="10")
    old = instant(OLDEST - MICROSECOND)
    async with unchanged(gateway):
        answer = await record(recorder, externalMeterId="other", usageName="", amount="11", occurredAt=old)
        assert answer["field"] == ["input", "usageName"]
        answer = await record(recorder, externalMeterId="other", amount="11", occurredAt=old)
        assert answer["__typename"] == "BillingMeterNotFound"
        answer = await record(recorder, amount="11", occurredAt=old)
        assert answer["field"] == ["input", "occurredAt"]
        answer = await record(recorder, amount="11")
        assert answer["__typename"] == "InsufficientCredits"


# Days.


@pytest.mark.parametrize(
    ("timezone", "occurred_at", "day"),
    [
        ("UTC", "2026-03-15T23:59:59.999999Z", "2026-03-15"),
        ("UTC", "2026-03-16T00:00:00Z", "2026-03-16"),
        ("UTC", "2026-03-16T01:00:00+05:00", "2026-03-15"),
        # East of Greenwich days begin earlier, 14 hours at most; west of it later.
        ("Pacific/Kiritimati", "2026-03-15T09:59:59.999999Z", "2026-03-15"),
        ("Pacific/Kiritimati", "2026-03-15T10:00:00Z", "2026-03-16"),
        ("Asia/Kathmandu", "2026-03-15T18:14:59.999999Z", "2026-03-15"),
        ("Asia/Kathmandu", "2026-03-15T18:15:00Z", "2026-03-16"),
        ("Pacific/Pago_Pago", "2026-03-16T10:59:59.999999Z", "2026-03-15"),
        ("Pacific/Pago_Pago", "2026-03-16T11:00:00Z", "2026-03-16"),
        # The 8th of March has 23 hours in New York, where clocks go forward at two in the morning.
        ("America/New_York", "2026-03-08T04:59:59.999999Z", "2026-03-07"),
        ("America/New_York", "2026-03-08T05:00:00Z", "2026-03-08"),
        ("America/New_York", "2026-03-09T03:59:59.999999Z", "2026-03-08"),
        ("America/New_York", "2026-03-09T04:00:00Z", "2026-03-09"),
        # In Havana they go forward at midnight: the day begins at one.
        ("America/Havana", "2026-03-08T04:59:59.999999Z", "2026-03-07"),
        ("America/Havana", "2026-03-08T05:00:00Z", "2026-03-08"),
        # The 26th of October 2025 had 25 hours in Zurich, one of them twice.
        ("Europe/Zurich", "2025-10-25T21:59:59.999999Z", "2025-10-25"),
        ("Europe/Zurich", "2025-10-25T22:00:00Z", "2025-10-26"),
        ("Europe/Zurich", "2025-10-26T00:30:00Z", "2025-10-26"),
        ("Europe/Zurich", "2025-10-26T01:30:00Z", "2025-10-26"),
        ("Europe/Zurich", "2025-10-26T22:59:59.999999Z", "2025-10-26"),
        ("Europe/Zurich", "2025-10-26T23:00:00Z", "2025-10-27"),
        # Half an hour is all that Lord Howe's clocks change.
        ("Australia/Lord_Howe", "2025-10-04T13:29:59.999999Z", "2025-10-04"),
        ("Australia/Lord_Howe", "2025-10-04T13:30:00Z", "2025-10-05"),
        ("Australia/Lord_Howe", "2025-10-05T12:59:59.999999Z", "2025-10-05"),
        ("Australia/Lord_Howe", "2025-10-05T13:00:00Z", "2025-10-06"),
        # Samoa had no 30th of December 2011.
        ("Pacific/Apia", "2011-12-30T09:59:59.999999Z", "2011-12-29"),
        ("Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-31"),
        # West of Greenwich the epoch is the evening before.
        ("America/New_York", "1970-01-01T00:00:00Z", "1969-12-31"),
    ],
)
async def test_an_event_counts_on_the_day_of_its_meters_zone(
    gateway: Gateway, timezone: str, occurred_at: str, day: str
) -> None:
    await make_meter(gateway, totalCredits="10", timezone=timezone)
    entry = await entry_of(gateway, amount="3", occurredAt=occurred_at)
    assert str(entry.day) == day
    books = await books_of(gateway)
    assert books.days == {(day, "default"): 3}
    assert books.meter.timezone == timezone


@pytest.mark.parametrize(
    ("timezone", "day"),
    [("UTC", "2026-03-16"), ("Pacific/Kiritimati", "2026-03-17"), ("Pacific/Pago_Pago", "2026-03-16")],
)
async def test_without_a_time_an_event_counts_on_the_present_day_of_its_meters_zone(
    gateway: Gateway, timezone: str, day: str
) -> None:
    await make_meter(gateway, totalCredits="10", timezone=timezone)
    await record(gateway, amount="3")
    assert (await books_of(gateway)).days == {(day, "default"): 3}


async def test_the_balance_is_debited_when_the_event_is_received(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await record(gateway, eventId="today", amount="8")
    # It happened before the other, when there were credits enough.
    async with unchanged(gateway):
        answer = await record(gateway, eventId="yesterday", amount="3", occurredAt=instant(NOON - timedelta(days=1)))
    assert (answer["__typename"], answer["available"]) == ("InsufficientCredits", "2")
    await record(gateway, eventId="yesterday", amount="2", occurredAt=instant(NOON - timedelta(days=1)))
    books = await books_of(gateway)
    assert [entry.key for entry in books.entries] == [None, "today", "yesterday"]
    assert books.days == {("2026-03-15", "default"): 2, ("2026-03-16", "default"): 8}


async def test_a_day_adds_up_by_usage_name(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    for number, (name, amount) in enumerate([("a", "1"), ("b", "20"), ("a", "3"), ("A", "40"), ("b", "5")]):
        await record(gateway, eventId=f"e{number}", usageName=name, amount=amount)
    assert (await books_of(gateway)).days == {
        ("2026-03-16", "A"): 40,
        ("2026-03-16", "a"): 4,
        ("2026-03-16", "b"): 25,
    }


# Reading usage.

USAGE = """query ($id: ID!, $from: Date, $to: Date, $names: [String!], $zeros: Boolean! = false) {
  usage(billingId: $id, from: $from, to: $to, names: $names, fillZeros: $zeros) {
    billingId day totalBillingUsage billingUsageName
  }
}"""


async def add_days(gateway: Gateway, meter_id: str, days: dict[tuple[str, str], int]) -> None:
    """Write usage days (day, name) of a meter, without the events that they come from."""
    rows = {(meter_id, date.fromisoformat(day), name): amount for (day, name), amount in days.items()}
    bucket = bucket_with(gateway.database, meter_id)
    await gateway.database.write(lambda writer: usage.add(writer, rows), bucket=bucket)


async def days_of(gateway: Gateway, meter_id: str, **variables: Any) -> list[tuple[str, str, str]]:
    """Return the usage days of a meter: (day, name, total)."""
    data = await gateway.data(USAGE, {"id": meter_id} | variables)
    assert {row["billingId"] for row in data["usage"]} <= {meter_id}
    return [(row["day"], row["billingUsageName"], row["totalBillingUsage"]) for row in data["usage"]]


async def test_usage_is_that_of_the_30_days_ending_today_unless_days_are_named(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway)
    days = ["2025-03-16", "2026-02-14", "2026-02-15", "2026-03-01", "2026-03-16", "2026-03-17"]
    await add_days(gateway, meter_id, {(day, "a"): number for number, day in enumerate(days)})
    assert await days_of(gateway, meter_id) == [
        ("2026-02-15", "a", "2"),
        ("2026-03-01", "a", "3"),
        ("2026-03-16", "a", "4"),
    ]
    # Only the first day: to today.
    assert await days_of(gateway, meter_id, **{"from": "2026-03-01"}) == [
        ("2026-03-01", "a", "3"),
        ("2026-03-16", "a", "4"),
    ]
    # Only the last day: the 30 days ending there.
    assert await days_of(gateway, meter_id, to="2026-03-15") == [
        ("2026-02-14", "a", "1"),
        ("2026-02-15", "a", "2"),
        ("2026-03-01", "a", "3"),
    ]
    assert await days_of(gateway, meter_id, to="2026-03-16") == await days_of(gateway, meter_id)
    # Both are inclusive, and may lie ahead.
    assert await days_of(gateway, meter_id, **{"from": "2026-03-16", "to": "2026-03-17"}) == [
        ("2026-03-16", "a", "4"),
        ("2026-03-17", "a", "5"),
    ]
    assert await days_of(gateway, meter_id, **{"from": "2026-03-16", "to": "2026-03-16"}) == [("2026-03-16", "a", "4")]
    assert await days_of(gateway, meter_id, **{"from": "2026-03-02", "to": "2026-03-15"}) == []
    # 366 days.
    assert await days_of(gateway, meter_id, **{"from": "2025-03-16", "to": "2026-03-16"}) == [
        ("2025-03-16", "a", "0"),
        ("2026-02-14", "a", "1"),
        ("2026-02-15", "a", "2"),
        ("2026-03-01", "a", "3"),
        ("2026-03-16", "a", "4"),
    ]


async def test_today_is_that_of_the_meters_zone(gateway: Gateway) -> None:
    gateway.clock.now = datetime(2026, 3, 16, 10, 30, tzinfo=UTC)
    east = await make_meter(gateway, externalMeterId="east", timezone="Pacific/Kiritimati")
    west = await make_meter(gateway, externalMeterId="west", timezone="Pacific/Pago_Pago")
    middle = await make_meter(gateway, externalMeterId="middle", timezone="UTC")
    days = ["2026-02-13", "2026-02-14", "2026-02-15", "2026-02-16", "2026-03-15", "2026-03-16", "2026-03-17"]
    for meter_id in (east, west, middle):
        await add_days(gateway, meter_id, {(day, "a"): 1 for day in days})
    data = await gateway.data(
        """query ($east: ID!, $west: ID!, $middle: ID!) {
          east: usage(billingId: $east) { day }
          west: usage(billingId: $west) { day }
          middle: usage(billingId: $middle) { day }
          meter: billingMeter(workspaceId: "w", externalMeterId: "east") { usage { day } }
        }""",
        {"east": east, "west": west, "middle": middle},
    )
    east_days = [{"day": day} for day in ("2026-02-16", "2026-03-15", "2026-03-16", "2026-03-17")]
    assert data == {
        "east": east_days,
        "west": [{"day": day} for day in ("2026-02-14", "2026-02-15", "2026-02-16", "2026-03-15")],
        "middle": [{"day": day} for day in ("2026-02-15", "2026-02-16", "2026-03-15", "2026-03-16")],
        "meter": {"usage": east_days},
    }


async def test_usage_is_ordered_by_day_and_then_by_the_names_code_points(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway)
    names = ["a", "B", "b", "A", "é", "z", "Z", "_", "10", "9", "a b", "aa", "日", "\U0001f600", "\uffee"]
    days = {(day, name): 1 for day in ("2026-03-16", "2026-03-15") for name in names}
    await add_days(gateway, meter_id, days)
    ordered = ["10", "9", "A", "B", "Z", "_", "a", "a b", "aa", "b", "z", "é", "日", "\uffee", "\U0001f600"]
    expected = [(day, name, "1") for day in ("2026-03-15", "2026-03-16") for name in ordered]
    assert await days_of(gateway, meter_id) == expected
    zeros = {"from": "2026-03-15", "to": "2026-03-16", "zeros": True}
    assert await days_of(gateway, meter_id, **zeros) == expected
    assert await days_of(gateway, meter_id, **zeros, names=sorted(names, reverse=True)) == expected


async def test_names_keep_the_days_of_these_names(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway)
    await add_days(
        gateway,
        meter_id,
        {("2026-03-15", "a"): 1, ("2026-03-15", "b"): 2, ("2026-03-15", "c"): 3, ("2026-03-16", "b"): 4},
    )
    assert await days_of(gateway, meter_id, names=["b"]) == [("2026-03-15", "b", "2"), ("2026-03-16", "b", "4")]
    assert await days_of(gateway, meter_id, names=["c", "a", "c"]) == [
        ("2026-03-15", "a", "1"),
        ("2026-03-15", "c", "3"),
    ]
    assert await days_of(gateway, meter_id, names=["B"]) == []
    assert await days_of(gateway, meter_id, names=[f"n{number}" for number in range(99)] + ["a"]) == [
        ("2026-03-15", "a", "1")
    ]


async def test_zeros_fill_the_days_between_for_the_names_seen_or_asked_for(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway)
    await add_days(
        gateway,
        meter_id,
        {("2026-03-14", "b"): 2, ("2026-03-16", "a"): 1, ("2026-03-16", "b"): 3, ("2026-03-10", "elsewhere"): 9},
    )
    range_ = {"from": "2026-03-14", "to": "2026-03-16", "zeros": True}
    assert await days_of(gateway, meter_id, **range_) == [
        ("2026-03-14", "a", "0"),
        ("2026-03-14", "b", "2"),
        ("2026-03-15", "a", "0"),
        ("2026-03-15", "b", "0"),
        ("2026-03-16", "a", "1"),
        ("2026-03-16", "b", "3"),
    ]
    assert await days_of(gateway, meter_id, **range_, names=["new", "b", "b"]) == [
        ("2026-03-14", "b", "2"),
        ("2026-03-14", "new", "0"),
        ("2026-03-15", "b", "0"),
        ("2026-03-15", "new", "0"),
        ("2026-03-16", "b", "3"),
        ("2026-03-16", "new", "0"),
    ]
    # Where nothing is seen and no name is asked for, there is nothing to fill.
    assert await days_of(gateway, meter_id, **{"from": "2026-03-01", "to": "2026-03-02", "zeros": True}) == []
    zeros = await days_of(gateway, meter_id, zeros=True, names=["a"])
    assert len(zeros) == 30
    assert zeros[0] == ("2026-02-15", "a", "0")
    assert zeros[-1] == ("2026-03-16", "a", "1")


@pytest.mark.parametrize(
    "variables",
    [
        {"from": "2026-03-16", "to": "2026-03-15"},
        {"from": "2026-03-17"},
        {"from": "2025-03-15", "to": "2026-03-16"},
        {"from": "2025-03-15"},
        {"from": "0001-01-01", "to": "9999-12-31"},
        {"names": []},
        {"names": [""]},
        {"names": ["n" * 129]},
        {"names": ["a\0"]},
        {"names": [f"n{number}" for number in range(101)]},
        {"from": "2026-3-1"},
        {"from": "2026-02-29"},
        {"to": "2026-W12-1"},
        {"to": "20260316"},
        {"to": "2026-03-16T00:00:00Z"},
    ],
    ids=lambda variables: str(variables)[:40],
)
async def test_a_range_that_is_none_is_the_callers_fault(gateway: Gateway, variables: dict[str, Any]) -> None:
    meter_id = await make_meter(gateway)
    error = await gateway.error(USAGE, {"id": meter_id} | variables)
    assert error["extensions"] == {"code": "BAD_USER_INPUT"}


@pytest.mark.parametrize(
    "variables",
    [{"from": "2026-03-16", "to": "2026-03-15"}, {"from": "2025-03-15", "to": "2026-03-16"}, {"names": []}],
    ids=str,
)
async def test_malformed_arguments_are_reported_before_whether_the_meter_exists(
    gateway: Gateway, variables: dict[str, Any]
) -> None:
    error = await gateway.error(USAGE, {"id": "mtr_000000000000000000000000"} | variables)
    assert error["extensions"] == {"code": "BAD_USER_INPUT"}


async def test_the_first_and_the_last_days_of_the_calendar_can_be_asked_for(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway)
    assert await days_of(gateway, meter_id, to="0001-01-02") == []
    assert await days_of(gateway, meter_id, to="9999-12-31") == []
    zeros = await days_of(gateway, meter_id, to="0001-01-02", zeros=True, names=["a"])
    assert zeros == [("0001-01-01", "a", "0"), ("0001-01-02", "a", "0")]


@pytest.mark.slow
async def test_more_than_10_000_usage_days_are_too_many(gateway: Gateway) -> None:
    many = await make_meter(gateway, externalMeterId="many")
    few = await make_meter(gateway, externalMeterId="few")
    first = date(2026, 2, 15)
    days = [str(first + timedelta(days=number)) for number in range(25)]
    rows = {(day, f"n{number:03}"): number for day in days for number in range(400)}
    await add_days(gateway, many, rows)
    await add_days(gateway, few, {("2026-03-16", "a"): 7})
    found = await days_of(gateway, many)
    assert len(found) == 10_000
    assert found == [(day, name, str(amount)) for (day, name), amount in sorted(rows.items())]

    await add_days(gateway, many, {("2026-03-16", "one more"): 1})
    error = await gateway.error(USAGE, {"id": many})
    assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
    # Fewer days, or names, are not; and another meter's days are not taken down with them.
    assert len(await days_of(gateway, many, **{"from": days[1]})) == 9_601
    assert await days_of(gateway, many, names=["one more"]) == [("2026-03-16", "one more", "1")]
    body = await gateway.run(
        """query ($many: ID!, $few: ID!) {
          many: usage(billingId: $many) { day }
          few: usage(billingId: $few) { day totalBillingUsage }
        }""",
        {"many": many, "few": few},
    )
    assert body["data"] == {"many": None, "few": [{"day": "2026-03-16", "totalBillingUsage": "7"}]}
    assert [(error["path"], error["extensions"]) for error in body["errors"]] == [
        (["many"], {"code": "LIMIT_EXCEEDED"})
    ]


@pytest.mark.one_server("it asks for meters of several buckets by one statement")
async def test_the_days_of_ranges_are_read_as_far_as_they_may_be(gateway: Gateway) -> None:
    first, last = date(2026, 3, 1), date(2026, 3, 3)
    meter_ids = [await make_meter(gateway, externalMeterId=f"m{number}") for number in range(3)]
    rows = {(f"2026-03-0{day}", name): 10 * day for day in (3, 2, 1) for name in ("b", "a")}
    await add_days(gateway, meter_ids[0], rows)
    await add_days(gateway, meter_ids[2], {("2026-03-02", "a"): 7, ("2026-02-28", "a"): 1, ("2026-03-04", "a"): 1})
    # In no order of the meters' ids, with one that has no days, and one that is asked for twice.
    ranges = [UsageRange(meter_ids[place], first, last) for place in (2, 1, 0, 2)]
    sorted_rows = [(day, name, amount) for (day, name), amount in sorted(rows.items())]
    expected = [[("2026-03-02", "a", 7)], [], sorted_rows, [("2026-03-02", "a", 7)]]

    async def found(max_of_range: int, most: int, names: list[str] | None = None) -> list[list[tuple[str, str, int]]]:
        async with gateway.database.read() as reader:
            read = await usage.columns_of(reader, ranges, usage_names=names, max_of_range=max_of_range, most=most)
        days = await usage.arranged(read, ranges, reader.dialect, most=most)
        for range_, of_range in zip(ranges, days, strict=True):
            assert {row.meter_id for row in of_range} <= {range_.meter_id}
        return [[(str(row.day), row.usage_name, row.total_usage) for row in of_range] for of_range in days]

    assert await found(6, 9) == expected
    assert await found(4, 9) == [expected[0], [], sorted_rows[:4], expected[3]]
    assert await found(6, 9, ["b", "c"]) == [[], [], sorted_rows[1::2], []]
    assert await found(6, 9, []) == [[], [], [], []]
    with pytest.raises(usage.TooManyDays):
        await found(6, 8)
    async with gateway.database.read() as reader:
        assert [list(days) for days in await usage.by_ranges(reader, [])] == []
        assert list(map(len, await usage.by_ranges(reader, ranges))) == [1, 0, 6, 1]


async def test_days_that_the_database_gives_in_another_order_are_sorted() -> None:
    days = [(date(2026, 3, day) - date.min).days for day in (2, 1, 1)]
    ranges = [UsageRange(meter_id, date(2026, 3, 1), date(2026, 3, 2)) for meter_id in ("m0", "m1")]
    row = ([1, 1, 0], days, ["a", "b", "c"], [7, 8, 9])
    found = await usage.arranged([row], ranges, "postgresql", most=10)
    assert [list(of_range) for of_range in found] == [
        [("m0", date(2026, 3, 1), "c", 9)],
        [("m1", date(2026, 3, 1), "b", 8), ("m1", date(2026, 3, 2), "a", 7)],
    ]


async def test_zeros_are_not_filled_beyond_10_000_usage_days(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway)
    year = {"from": "2025-03-16", "to": "2026-03-16", "zeros": True}
    names = [f"n{number:02}" for number in range(28)]
    assert len(await days_of(gateway, meter_id, **year, names=names[:27])) == 9_882
    error = await gateway.error(USAGE, {"id": meter_id} | year | {"names": names})
    assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
    # The names seen in the range count as those asked for.
    await add_days(gateway, meter_id, {("2026-03-16", name): 1 for name in names})
    error = await gateway.error(USAGE, {"id": meter_id} | year)
    assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}


async def test_usage_of_an_unknown_meter_is_null(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway)
    stranger = await gateway.caller(org_id=f"{gateway.org_id}-other")
    live = await gateway.caller(environment=Environment.LIVE)
    elsewhere = await gateway.caller(workspaces=["v"])
    assert await gateway.data(USAGE, {"id": meter_id}) == {"usage": []}
    for caller in (stranger, live, elsewhere):
        assert await caller.data(USAGE, {"id": meter_id}) == {"usage": None}
    for unknown in ("mtr_000000000000000000000000", "", "m", meter_id.upper(), meter_id.replace("mtr_", "cus_")):
        assert await gateway.data(USAGE, {"id": unknown}) == {"usage": None}


async def test_usage_needs_its_scope(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway)
    caller = await gateway.caller(Scope.USAGE_WRITE, Scope.USAGE_CORRECT, Scope.BILLING_WRITE)
    error = await caller.error(USAGE, {"id": meter_id})
    assert error["extensions"] == {"code": "FORBIDDEN"}


async def test_usage_is_read_as_it_was_recorded(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, allowOverages=True)
    await record(gateway, eventId="a", amount=str(MAX - 5), usageName="tokens")
    await record(gateway, eventId="b", amount="5", usageName="tokens")
    await record(gateway, eventId="c", amount="1", usageName="tokens")
    assert await days_of(gateway, meter_id) == [("2026-03-16", "tokens", "9223372036854775807")]
