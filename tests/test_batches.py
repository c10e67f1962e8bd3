"""Batches of usage: results in order, one transaction, and one item's refusal is that item's alone."""

import json
from typing import Any

import pytest

from resolvers.actor import Scope
from tests.conftest import REFUSALS, Caller, Gateway
from tests.credit_walks import Walk
from tests.steps import books_of, disagreements, entry_id, make_meter, meter_of, unchanged

#: The statements of a batch on meters that are known, whatever its size: lock, look up, update, upsert, insert.
OF_A_BATCH = 5

ANSWER = f"""__typename {REFUSALS}
  ... on RecordUsageSuccess {{
    accepted refused overLimit replayed billingMeter {{ externalMeterId usedCredits }} entry {{ id usedCreditsAfter }}
  }}
  ... on InsufficientCredits {{ available billingMeter {{ usedCredits }} }}
  ... on SpendCapExceeded {{ available billingMeter {{ usedCredits }} }}
  ... on IdempotencyConflict {{ entry: firstEntry {{ id key amount }} }}"""
BATCH = f"mutation ($input: [RecordUsageInput!]!) {{ recordUsageBatch(input: $input) {{ {ANSWER} }} }}"
SHORT_BATCH = """mutation ($input: [RecordUsageInput!]!) {
  recordUsageBatch(input: $input) { ... on RecordUsageSuccess { accepted replayed entry { usedCreditsAfter } } }
}"""


def item(event_id: str, amount: int | str = 1, **values: Any) -> dict[str, Any]:
    """Return an event on the meter `m`, unless the values say otherwise."""
    return {"workspaceId": "w", "externalMeterId": "m", "eventId": event_id, "amount": str(amount)} | values


async def batch(caller: Caller, *items: dict[str, Any]) -> list[dict[str, Any]]:
    """Record the items and return their results."""
    results: list[dict[str, Any]] = (await caller.data(BATCH, {"input": items}))["recordUsageBatch"]
    assert len(results) == len(items)
    return results


async def test_each_item_has_its_result_in_the_order_of_the_items(gateway: Gateway) -> None:
    first = await make_meter(gateway, "one", totalCredits="10")
    second = await make_meter(gateway, "two", totalCredits="100")
    results = await batch(
        gateway,
        item("a", 4, externalMeterId="one"),
        item("a", 50, externalMeterId="two"),
        item("b", 7, externalMeterId="one"),
        item("c", 7, externalMeterId="one", policy="PARTIAL"),
        item("b", 1, externalMeterId="two"),
        item("d", 3, externalMeterId="one", policy="FORCE"),
    )

    def accepted(name: str, amount: int, id_: str, after: int, *, of: int = 0, over: bool = False) -> dict[str, Any]:
        return {
            "__typename": "RecordUsageSuccess",
            "accepted": str(amount),
            "refused": str(of - amount if of else 0),
            "overLimit": over,
            "replayed": False,
            # The meter is shown as it is after the commit, and the entry as it was right after the event.
            "billingMeter": {"externalMeterId": name, "usedCredits": "13" if name == "one" else "51"},
            "entry": {"id": id_, "usedCreditsAfter": str(after)},
        }

    assert results == [
        accepted("one", 4, entry_id(first, 2), 4),
        accepted("two", 50, entry_id(second, 2), 50),
        {
            "__typename": "InsufficientCredits",
            "code": "INSUFFICIENT_CREDITS",
            "message": "7 credits are asked for and 6 are available.",
            "available": "6",
            "billingMeter": {"usedCredits": "13"},
        },
        accepted("one", 6, entry_id(first, 3), 10, of=7),
        accepted("two", 1, entry_id(second, 3), 51),
        accepted("one", 3, entry_id(first, 4), 13, over=True),
    ]
    assert [entry["key"] for entry in (await meter_of(gateway, "one"))["ledger"]] == [None, "a", "c", "d"]
    assert [entry["key"] for entry in (await meter_of(gateway, "two"))["ledger"]] == [None, "a", "b"]
    assert await disagreements(gateway.database, first, second) == []


async def test_events_on_one_meter_are_decided_in_the_order_of_the_items(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    results = await batch(gateway, item("a", 6), item("b", 5), item("c", 3), item("d", 2), item("e", 1), item("f", 1))
    assert [result["__typename"] for result in results] == [
        "RecordUsageSuccess",
        "InsufficientCredits",
        "RecordUsageSuccess",
        "InsufficientCredits",
        "RecordUsageSuccess",
        "InsufficientCredits",
    ]
    assert [result.get("available") for result in results] == [None, "4", None, "1", None, "0"]
    meter = await meter_of(gateway)
    assert [(entry["key"], entry["usedCreditsAfter"]) for entry in meter["ledger"]] == [
        (None, "0"),
        ("a", "6"),
        ("c", "9"),
        ("e", "10"),
    ]
    assert meter["usage"] == {("2026-03-16", "default"): 10}


async def test_items_may_have_other_days_names_and_metadata(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="100", timezone="Asia/Tokyo")
    results = await batch(
        gateway,
        item("a", 1, usageName="tokens", occurredAt="2026-03-14T14:59:59.999999Z", metadata={"n": 1}),
        item("b", 2, usageName="tokens", occurredAt="2026-03-14T15:00:00Z"),
        item("c", 4, usageName="images", occurredAt="2026-03-15T00:00:00+09:00"),
        item("d", 8, usageName="tokens", occurredAt="2026-03-15T23:59:59+09:00"),
        item("e", 16),
    )
    assert [result["accepted"] for result in results] == ["1", "2", "4", "8", "16"]
    meter = await meter_of(gateway)
    assert meter["usage"] == {
        ("2026-03-14", "tokens"): 1,
        ("2026-03-15", "tokens"): 10,
        ("2026-03-15", "images"): 4,
        ("2026-03-16", "default"): 16,
    }
    assert [entry["metadata"] for entry in meter["ledger"]] == [{}, {"n": 1}, {}, {}, {}, {}]
    assert await disagreements(gateway.database, meter_id) == []


# How many items.


async def test_an_empty_batch_is_bad_user_input(gateway: Gateway) -> None:
    error = await gateway.error(BATCH, {"input": []})
    assert error["message"] == "input must have at least 1 item."
    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
    assert error["path"] == ["recordUsageBatch"]


@pytest.mark.slow
async def test_1_000_items_are_recorded(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="1000")
    items = [item(f"e{number}") for number in range(1_000)]
    results = (await gateway.data(SHORT_BATCH, {"input": items}))["recordUsageBatch"]
    assert results == [
        {"accepted": "1", "replayed": False, "entry": {"usedCreditsAfter": str(number)}} for number in range(1, 1_001)
    ]
    meter = await meter_of(gateway)
    assert meter["usedCredits"] == "1000"
    assert meter["usage"] == {("2026-03-16", "default"): 1_000}
    assert [entry["key"] for entry in meter["ledger"][1:]] == [f"e{number}" for number in range(1_000)]
    assert await disagreements(gateway.database, meter_id) == []


async def test_1_001_items_exceed_the_limit_and_none_is_written(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="2000")
    async with unchanged(gateway):
        error = await gateway.error(SHORT_BATCH, {"input": [item(f"e{number}") for number in range(1_001)]})
    assert error["message"] == "input must have at most 1000 items; it has 1001."
    assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}


# The same event id, within a batch and between batches.


async def test_an_event_that_is_twice_in_a_batch_counts_once(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    results = await batch(gateway, item("e", 4), item("f", 1), item("e", 4), item("e", 4))
    assert [result["replayed"] for result in results] == [False, False, True, True]
    assert [result["accepted"] for result in results] == ["4", "1", "4", "4"]
    assert [result["entry"] for result in results] == [
        {"id": entry_id(meter_id, 2), "usedCreditsAfter": "4"},
        {"id": entry_id(meter_id, 3), "usedCreditsAfter": "5"},
        {"id": entry_id(meter_id, 2), "usedCreditsAfter": "4"},
        {"id": entry_id(meter_id, 2), "usedCreditsAfter": "4"},
    ]
    assert (await meter_of(gateway))["usedCredits"] == "5"


async def test_an_event_id_that_is_twice_in_a_batch_for_other_events_conflicts(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    results = await batch(gateway, item("e", 4), item("e", 5), item("e", 4, usageName="other"))
    assert [result["__typename"] for result in results] == [
        "RecordUsageSuccess",
        "IdempotencyConflict",
        "IdempotencyConflict",
    ]
    for result in results[1:]:
        assert result["code"] == "IDEMPOTENCY_CONFLICT"
        assert result["message"] == "'e' was used before with other values."
        assert result["entry"] == {"id": entry_id(meter_id, 2), "key": "e", "amount": "4"}
    meter = await meter_of(gateway)
    assert meter["usage"] == {("2026-03-16", "default"): 4}
    assert len(meter["ledger"]) == 2


async def test_a_refused_item_leaves_its_event_id_to_a_later_one(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    results = await batch(gateway, item("e", 11), item("e", 9), item("e", 11))
    assert [result["__typename"] for result in results] == [
        "InsufficientCredits",
        "RecordUsageSuccess",
        "IdempotencyConflict",
    ]
    assert (await meter_of(gateway))["usedCredits"] == "9"


async def test_a_batch_that_is_sent_again_replays_each_result(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    items = [item("a", 3), item("b", 9, policy="PARTIAL"), item("c", 1), item("d", 0)]
    first = await batch(gateway, *items)
    assert [result["__typename"] for result in first] == [
        "RecordUsageSuccess",
        "RecordUsageSuccess",
        "InsufficientCredits",
        "RecordUsageSuccess",
    ]
    gateway.clock.forward(days=40)
    async with unchanged(gateway):
        again = await batch(gateway, *items)
    # A refusal and a check are decided anew, with the same outcome here.
    assert [result.get("replayed") for result in again] == [True, True, None, False]
    assert [result | {"replayed": None} for result in again] == [result | {"replayed": None} for result in first]


async def test_a_single_event_and_a_batch_share_their_event_ids(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    selection = "... on RecordUsageSuccess { accepted replayed entry { id } }"
    single = await gateway.mutate("recordUsage", selection, **item("e", 4))
    results = await batch(gateway, item("e", 4), item("f", 5))
    assert [result["replayed"] for result in results] == [True, False]
    assert results[0]["entry"]["id"] == single["entry"]["id"]
    single = await gateway.mutate("recordUsage", selection, **item("f", 5))
    assert single == {
        "__typename": "RecordUsageSuccess",
        "accepted": "5",
        "replayed": True,
        "entry": {"id": results[1]["entry"]["id"]},
    }
    assert (await meter_of(gateway))["usedCredits"] == "9"


async def test_a_check_in_a_batch_writes_nothing(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    async with unchanged(gateway):
        results = await batch(gateway, item("e", 0), item("e", 0))
    assert (
        results
        == [
            {
                "__typename": "RecordUsageSuccess",
                "accepted": "0",
                "refused": "0",
                "overLimit": False,
                "replayed": False,
                "billingMeter": {"externalMeterId": "m", "usedCredits": "0"},
                "entry": None,
            }
        ]
        * 2
    )


# An item that is refused, among good ones.


async def test_an_item_for_an_unknown_meter_leaves_the_others_alone(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    results = await batch(gateway, item("a", 1), item("b", 2, externalMeterId="nowhere"), item("c", 3))
    assert [result["__typename"] for result in results] == [
        "RecordUsageSuccess",
        "BillingMeterNotFound",
        "RecordUsageSuccess",
    ]
    assert results[1] == {
        "__typename": "BillingMeterNotFound",
        "code": "BILLING_METER_NOT_FOUND",
        "message": "There is no billing meter 'nowhere' in workspace 'w'.",
    }
    meter = await meter_of(gateway)
    assert [entry["key"] for entry in meter["ledger"]] == [None, "a", "c"]
    assert meter["usedCredits"] == "4"


async def test_a_batch_of_unknown_meters_alone_is_answered_and_writes_nothing(gateway: Gateway) -> None:
    results = await batch(gateway, item("a"), item("b"))
    assert [result["code"] for result in results] == ["BILLING_METER_NOT_FOUND"] * 2


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("eventId", "", "must have 1 to 255 characters"),
        ("eventId", "x" * 256, "must have 1 to 255 characters"),
        ("workspaceId", "", "must have 1 to 256 characters"),
        ("externalMeterId", "", "must have 1 to 256 characters"),
        ("usageName", "", "must have 1 to 128 characters"),
        ("metadata", [1], "must be a JSON object"),
        ("occurredAt", "2026-03-16T12:05:01Z", "must be at most 5 minutes ahead"),
        ("occurredAt", "1969-12-31T23:59:59Z", "must not be before 1970"),
    ],
)
async def test_an_invalid_item_is_named_by_its_place_and_leaves_the_others_alone(
    gateway: Gateway, field: str, value: Any, rule: str
) -> None:
    await make_meter(gateway, totalCredits="10")
    items = [item("a", 1), item("b", 1), item("c", 1), item("d", 1, **{field: value}), item("e", 1)]
    results = await batch(gateway, *items)
    assert [result["__typename"] for result in results] == [
        *["RecordUsageSuccess"] * 3,
        "InvalidInput",
        "RecordUsageSuccess",
    ]
    assert results[3]["code"] == "INVALID_INPUT"
    assert rule in results[3]["message"]
    assert results[3]["field"] == ["input", "3", field]
    meter = await meter_of(gateway)
    assert [entry["key"] for entry in meter["ledger"]] == [None, "a", "b", "c", "e"]


async def test_an_item_too_old_for_the_key_is_named_by_its_place_and_leaves_the_others_alone(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    recorder = await gateway.caller(Scope.USAGE_WRITE)
    results = await batch(recorder, item("a"), item("b", occurredAt="2026-02-09T11:59:59Z"), item("c"))
    assert [result["__typename"] for result in results] == ["RecordUsageSuccess", "InvalidInput", "RecordUsageSuccess"]
    assert results[1]["field"] == ["input", "1", "occurredAt"]
    assert [entry["key"] for entry in (await meter_of(gateway))["ledger"]] == [None, "a", "c"]


async def test_a_batch_of_invalid_items_alone_names_each_place(gateway: Gateway) -> None:
    results = await batch(gateway, item(""), item("x" * 256), item("e", usageName=""))
    assert [result["field"] for result in results] == [
        ["input", "0", "eventId"],
        ["input", "1", "eventId"],
        ["input", "2", "usageName"],
    ]


# What refuses the whole request.


async def test_one_item_by_force_without_its_scope_forbids_the_whole_batch(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    recorder = await gateway.caller(Scope.USAGE_WRITE, Scope.BILLING_READ)
    async with unchanged(gateway):
        error = await recorder.error(BATCH, {"input": [item("a"), item("b", policy="FORCE"), item("c")]})
    assert error["message"] == "The key lacks the scope usage:correct."
    assert error["extensions"] == {"code": "FORBIDDEN"}


async def test_one_item_of_a_workspace_outside_the_keys_list_forbids_the_whole_batch(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await make_meter(gateway, workspaceId="elsewhere", totalCredits="10")
    limited = await gateway.caller(workspaces=["w"])
    async with unchanged(gateway):
        error = await limited.error(BATCH, {"input": [item("a"), item("b", workspaceId="elsewhere"), item("c")]})
    assert error["message"] == "The key is limited to other workspaces than 'elsewhere'."
    assert error["extensions"] == {"code": "FORBIDDEN"}
    assert len((await meter_of(gateway, workspace_id="elsewhere"))["ledger"]) == 1
    assert [result["accepted"] for result in await batch(limited, item("a"), item("c"))] == ["1", "1"]


async def test_a_forbidden_item_after_an_invalid_one_forbids_the_whole_batch(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    limited = await gateway.caller(workspaces=["w"])
    async with unchanged(gateway):
        error = await limited.error(BATCH, {"input": [item("a"), item(""), item("b", workspaceId="elsewhere")]})
    assert error["extensions"] == {"code": "FORBIDDEN"}


async def test_a_batch_needs_its_scope(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    reader = await gateway.caller(Scope.BILLING_READ, Scope.BILLING_WRITE, Scope.USAGE_CORRECT)
    async with unchanged(gateway):
        error = await reader.error(BATCH, {"input": [item("a")]})
    assert error["message"] == "The key lacks the scope usage:write."
    assert error["extensions"] == {"code": "FORBIDDEN"}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"amount": None}, ["amount"]),
        ({"policy": "MAYBE"}, ["policy"]),
        ({"eventId": None}, ["eventId"]),
        ({"eventId": 7}, ["eventId"]),
        ({"unknown": 1}, []),
    ],
)
async def test_one_value_of_another_shape_refuses_the_whole_batch_and_has_its_place(
    gateway: Gateway, values: dict[str, Any], place: list[str]
) -> None:
    await make_meter(gateway, totalCredits="10")
    async with unchanged(gateway):
        error = await gateway.error(BATCH, {"input": [item("a"), item("b"), item("c") | values]})
    assert error["extensions"] == {"code": "BAD_USER_INPUT", "path": ["input", 2, *place]}
    assert error["message"].startswith(
        f"Variable '$input' has invalid value at [2]{''.join(f'.{name}' for name in place)}: "
    )


# What is malformed.

IS_AMOUNT = (
    "amount is refused: An amount is a whole number from 0 to 9223372036854775807, as an integer or a string of ASCII"
    " digits."
)
IS_ROUNDED = (
    "amount is refused: An amount greater than 9007199254740991 must be a string of digits, as many clients round a"
    " JSON number so great."
)

MALFORMED: list[tuple[str, Any, str]] = [
    ("amount", "1.5", IS_AMOUNT),
    ("amount", "-1", IS_AMOUNT),
    ("amount", "", IS_AMOUNT),
    ("amount", "9223372036854775808", IS_AMOUNT),
    ("amount", -1, IS_AMOUNT),
    ("amount", 1.5, IS_AMOUNT),
    ("amount", True, IS_AMOUNT),
    ("amount", [1], IS_AMOUNT),
    ("amount", {"credits": 1}, IS_AMOUNT),
    ("amount", 2**53, IS_ROUNDED),
    ("occurredAt", "2026-03-16", "occurredAt is refused: A time is written as in RFC 3339, "),
    ("occurredAt", 1773655200, "occurredAt is refused: A time is written as in RFC 3339, "),
]


def literal(value: Any) -> str:
    """Return the value as it is written in a document."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {literal(each)}" for name, each in value.items()) + "}"
    return json.dumps(value)


async def is_recorded_without_the_third(gateway: Gateway, body: dict[str, Any], field: str, message: str) -> None:
    """Assert that of five items all but the third are recorded, and that it has a result of its own."""
    assert "errors" not in body, body
    results = body["data"]["recordUsageBatch"]
    kinds = [result["__typename"] for result in results]
    assert kinds == [*["RecordUsageSuccess"] * 2, "InvalidInput", *["RecordUsageSuccess"] * 2]
    assert results[2]["code"] == "INVALID_INPUT"
    assert results[2]["message"].startswith(message)
    assert results[2]["field"] == ["input", "2", field]
    meter = await meter_of(gateway)
    assert [entry["key"] for entry in meter["ledger"]] == [None, "a", "b", "d", "e"]
    assert meter["usedCredits"] == "4"


@pytest.mark.parametrize(("field", "value", "message"), MALFORMED)
async def test_a_malformed_value_is_the_matter_of_its_item_alone(
    gateway: Gateway, field: str, value: Any, message: str
) -> None:
    await make_meter(gateway, totalCredits="10")
    items = [item(name) for name in "abcde"]
    items[2][field] = value
    first = await gateway.run(BATCH, {"input": items})
    await is_recorded_without_the_third(gateway, first, field, message)
    # Compiled, it answers the same; what was recorded is replayed, and the item can be sent again once it is right.
    again = (await gateway.data(BATCH, {"input": items}))["recordUsageBatch"]
    assert [result.get("replayed") for result in again] == [True, True, None, True, True]
    assert again[2] == first["data"]["recordUsageBatch"][2]
    assert [result["accepted"] for result in await batch(gateway, item("c"))] == ["1"]


@pytest.mark.parametrize(("field", "value", "message"), [each for each in MALFORMED if each[1] != 2**53])
async def test_a_malformed_literal_is_the_matter_of_its_item_alone(
    gateway: Gateway, field: str, value: Any, message: str
) -> None:
    await make_meter(gateway, totalCredits="10")
    items = [item(name) for name in "abcde"]
    items[2][field] = value
    written = f"[{', '.join(map(literal, items))}]"
    first = await gateway.run(f"mutation {{ recordUsageBatch(input: {written}) {{ {ANSWER} }} }}")
    await is_recorded_without_the_third(gateway, first, field, message)
    default = (
        f"mutation ($input: [RecordUsageInput!]! = {written}) {{ recordUsageBatch(input: $input) {{ {ANSWER} }} }}"
    )
    for _ in range(2):
        again = (await gateway.data(default))["recordUsageBatch"]
        assert [result.get("replayed") for result in again] == [True, True, None, True, True]
        assert again[2] == first["data"]["recordUsageBatch"][2]


async def test_a_malformed_value_is_the_matter_of_its_item_also_beside_a_default(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    query = """mutation ($input: [RecordUsageInput!]!, $all: Boolean = true) {
      recordUsageBatch(input: $input) { __typename ... on UserError @include(if: $all) { code } }
    }"""
    results = (await gateway.data(query, {"input": [item("a"), item("b", amount="x")]}))["recordUsageBatch"]
    assert results == [
        {"__typename": "RecordUsageSuccess"},
        {"__typename": "InvalidInput", "code": "INVALID_INPUT"},
    ]


async def test_a_malformed_value_elsewhere_refuses_the_request(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    single = 'recordUsage(input: { workspaceId: "w", externalMeterId: "m", eventId: "e", amount: "x" }) { __typename }'
    listed = (
        'recordUsageBatch(input: [{ workspaceId: "w", externalMeterId: "m", eventId: "e", amount: $a }]) { __typename }'
    )
    async with unchanged(gateway):
        error = await gateway.error(f"mutation {{ {single} }}")
        assert error["message"].startswith("input.amount: An amount is a whole number")
        error = await gateway.error(f"mutation ($a: BigInt!) {{ {listed} }}", {"a": "x"})
        assert error["message"].startswith("Variable '$a' has invalid value: An amount is a whole number")
        error = await gateway.error(f'mutation ($a: BigInt! = "x") {{ {listed} }}')
        assert error["extensions"] == {"code": "BAD_USER_INPUT"}


# Grants and holds.


@pytest.mark.slow
async def test_a_batch_draws_on_grants_and_leaves_what_is_held(gateway: Gateway) -> None:
    walks = [Walk(gateway, name=name) for name in ("plain", "granted", "held", "due")]
    for walk, steps in zip(
        walks,
        (
            "meter 10",
            "meter 10; grant a 5 p10; grant b 5 p90",
            "meter 10; hold h 6; hold g 1",
            "meter 10; grant a 5 60s; hold h 12 60s; wait 60",
        ),
        strict=True,
    ):
        await walk.take(steps)
    before = [(await books_of(gateway, walk.names["externalMeterId"])).meter.last_seq for walk in walks]
    results = await batch(
        gateway,
        *[
            item(event, amount, externalMeterId=walk.names["externalMeterId"])
            for event, amount in (("e", 4), ("f", 9))
            for walk in walks
        ],
        item("h", 1, externalMeterId="held"),
        item("x", 9, externalMeterId="held", policy="FORCE"),
        item("y", 9, externalMeterId="granted", policy="PARTIAL"),
    )
    assert [result.get("accepted", result.get("code")) for result in results] == [
        *("4", "4", "INSUFFICIENT_CREDITS", "4"),
        *("INSUFFICIENT_CREDITS", "9", "INSUFFICIENT_CREDITS", "INSUFFICIENT_CREDITS"),
        *("IDEMPOTENCY_CONFLICT", "9", "7"),
    ]
    drawn = {}
    for walk, seq in zip(walks, before, strict=True):
        entries = (await books_of(gateway, walk.names["externalMeterId"])).entries[seq:]
        drawn[walk.names["externalMeterId"]] = [(entry.kind.name, entry.amount, entry.draws) for entry in entries]
        await walk.check()
    assert drawn == {
        "plain": [("USAGE", 4, None)],
        "granted": [("USAGE", 4, [[2, 4]]), ("USAGE", 9, [[2, 1], [0, 8]]), ("USAGE", 7, [[0, 2], [3, 5]])],
        "held": [("USAGE", 9, [[0, 3]])],
        "due": [("HOLD_EXPIRY", 12, None), ("EXPIRY", 5, None), ("USAGE", 4, [[0, 4]])],
    }


# One transaction.


@pytest.mark.one_server("it counts statements or reads their text, and in a bucket there are others")
@pytest.mark.parametrize("size", [1, 2, 30, 400])
async def test_a_batch_takes_the_same_statements_whatever_its_size(gateway: Gateway, size: int) -> None:
    for number in range(3):
        await make_meter(gateway, f"m{number}", totalCredits="1000")
        await batch(gateway, item("known", externalMeterId=f"m{number}"))
    items = [item(f"e{number}", externalMeterId=f"m{number % 3}", usageName=f"n{number % 5}") for number in range(size)]
    with gateway.statements() as statements:
        results = await batch(gateway, *items)
    assert [result["accepted"] for result in results] == ["1"] * len(items)
    assert len(statements) == OF_A_BATCH


async def test_a_batch_that_is_wholly_refused_writes_nothing_and_takes_two_statements(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="1")
    await batch(gateway, item("known"))
    async with unchanged(gateway):
        with gateway.statements() as statements:
            results = await batch(gateway, item("a"), item("b"))
    assert [result["code"] for result in results] == ["INSUFFICIENT_CREDITS"] * 2
    assert len(statements) == 2
