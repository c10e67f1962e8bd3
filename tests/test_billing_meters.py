"""Billing meters: making, changing, refilling and listing them."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.conftest import Caller, Gateway
from tests.steps import make_customer, make_meter

MOST = 2**63 - 1

METER = """id workspaceId externalMeterId timezone totalCredits usedCredits overageCredits availableCredits
  allowOverages spendCap createdAt updatedAt customer { id }"""
ENTRY = "id kind amount totalCreditsAfter usedCreditsAfter key metadata recordedAt"

CREATED = f"... on CreateBillingMeterSuccess {{ billingMeter {{ {METER} }} replayed }}"
UPDATED = f"... on UpdateBillingMeterSuccess {{ billingMeter {{ {METER} }} }}"
REFILLED = f"... on RefillBillingMeterSuccess {{ billingMeter {{ {METER} }} entry {{ {ENTRY} }} replayed }}"
EXISTS = "... on AlreadyExists { existingId }"
CONFLICT = f"... on IdempotencyConflict {{ entry: firstEntry {{ {ENTRY} }} }}"

#: All that is kept of a meter: its row, its ledger from the newest entry on, and its days.
STATE = f"""query ($w: String!, $m: String!) {{
  billingMeter(workspaceId: $w, externalMeterId: $m) {{
    {METER}
    ledger(first: 100) {{ nodes {{ {ENTRY} }} }}
    usage {{ day billingUsageName totalBillingUsage }}
  }}
}}"""
LISTED = """query ($filter: BillingMeterFilter, $first: Int, $after: String) {
  billingMeters(filter: $filter, first: $first, after: $after) {
    nodes { workspaceId externalMeterId }
    pageInfo { hasNextPage endCursor }
  }
}"""

#: Of the form of a customer's id, and nobody's.
NOBODY = "cus_0123456789abcdef01234567"


async def create(caller: Caller, **values: Any) -> dict[str, Any]:
    names = {"workspaceId": "w", "externalMeterId": "m"}
    return await caller.mutate("createBillingMeter", f"{CREATED} {EXISTS} {CONFLICT}", **(names | values))


async def update(caller: Caller, **values: Any) -> dict[str, Any]:
    names = {"workspaceId": "w", "externalMeterId": "m"}
    return await caller.mutate("updateBillingMeter", UPDATED, **(names | values))


async def refill(caller: Caller, **values: Any) -> dict[str, Any]:
    names = {"workspaceId": "w", "externalMeterId": "m"}
    return await caller.mutate("refillBillingMeter", f"{REFILLED} {CONFLICT}", **(names | values))


async def record(caller: Caller, amount: int, **values: Any) -> dict[str, Any]:
    event = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": str(amount)}
    return await caller.mutate("recordUsage", "", **(event | values))


async def use(caller: Caller, amount: int, **values: Any) -> str:
    """Record usage under the event id `e`, unless another is given, and return what kind of answer came."""
    return str((await record(caller, amount, **values))["__typename"])


async def created(caller: Caller, **values: Any) -> dict[str, Any]:
    """Create a meter and return it."""
    answer = await create(caller, **values)
    assert answer["__typename"] == "CreateBillingMeterSuccess", answer
    assert answer["replayed"] is False
    meter: dict[str, Any] = answer["billingMeter"]
    return meter


def capped(cap: str | None) -> dict[str, str]:
    """Return the cap as an input has it: none by leaving it out."""
    return {} if cap is None else {"spendCap": cap}


async def state(caller: Caller, workspace_id: str = "w", external_meter_id: str = "m") -> Any:
    """Return all that is kept of a meter, or None."""
    return (await caller.data(STATE, {"w": workspace_id, "m": external_meter_id}))["billingMeter"]


async def ledger(caller: Caller) -> list[dict[str, Any]]:
    """Return the entries of the meter `m`, oldest first."""
    return list(reversed((await state(caller))["ledger"]["nodes"]))


async def listed(caller: Caller, **filters: Any) -> list[str]:
    """Return the external ids of the meters that pass the filters, newest first."""
    data = await caller.data(LISTED, {"filter": filters})
    return [meter["externalMeterId"] for meter in data["billingMeters"]["nodes"]]


async def race(*requests: Coroutine[Any, Any, dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the requests at once, a few turns of the event loop apart, so that each meets the others at another step."""

    async def begin(turns: int, request: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await request

    return await asyncio.gather(*[begin(3 * place, request) for place, request in enumerate(requests)])


# Creating


async def test_a_meter_is_made_of_what_was_given(gateway: Gateway) -> None:
    customer_id = await make_customer(gateway)
    meter = await created(
        gateway,
        workspaceId="Videos",
        externalMeterId="team/42",
        totalCredits="1000",
        allowOverages=True,
        spendCap="500",
        customerId=customer_id,
        timezone="Europe/Zurich",
    )
    assert meter == {
        "id": meter["id"],
        "workspaceId": "Videos",
        "externalMeterId": "team/42",
        "timezone": "Europe/Zurich",
        "totalCredits": "1000",
        "usedCredits": "0",
        "overageCredits": "0",
        "availableCredits": "1500",
        "allowOverages": True,
        "spendCap": "500",
        "createdAt": "2026-03-16T12:00:00Z",
        "updatedAt": "2026-03-16T12:00:00Z",
        "customer": {"id": customer_id},
    }
    opening: dict[str, Any] = {
        "id": f"ent_{meter['id'].removeprefix('mtr_')}_1",
        "kind": "OPENING",
        "amount": "1000",
        "totalCreditsAfter": "1000",
        "usedCreditsAfter": "0",
        "key": None,
        "metadata": {},
        "recordedAt": "2026-03-16T12:00:00Z",
    }
    assert await state(gateway, "Videos", "team/42") == meter | {"ledger": {"nodes": [opening]}, "usage": []}


@pytest.mark.parametrize("absent", [{}, {"customerId": None, "idempotencyKey": None}])
async def test_a_meter_needs_only_its_names(gateway: Gateway, absent: dict[str, None]) -> None:
    meter = await created(gateway, **absent)
    assert meter == {
        "id": meter["id"],
        "workspaceId": "w",
        "externalMeterId": "m",
        "timezone": "UTC",
        "totalCredits": "0",
        "usedCredits": "0",
        "overageCredits": "0",
        "availableCredits": "0",
        "allowOverages": False,
        "spendCap": None,
        "createdAt": "2026-03-16T12:00:00Z",
        "updatedAt": "2026-03-16T12:00:00Z",
        "customer": None,
    }
    (opening,) = await ledger(gateway)
    assert (opening["kind"], opening["amount"]) == ("OPENING", "0")


async def test_a_cap_that_was_lost_does_not_make_a_meter_without_one(gateway: Gateway) -> None:
    refused = await create(gateway, allowOverages=True, spendCap=None)
    assert refused["__typename"] == "InvalidInput"
    assert (refused["field"], refused["message"]) == (
        ["input", "spendCap"],
        "spendCap must not be null; leave it out for no cap.",
    )
    assert await state(gateway) is None


async def test_what_is_available_follows_from_total_overages_and_cap(gateway: Gateway) -> None:
    table: list[tuple[str, bool, str | None, str | None]] = [
        # Total, overages, cap, available.
        ("100", False, None, "100"),
        ("100", False, "50", "100"),
        ("100", True, "50", "150"),
        ("100", True, "0", "100"),
        ("100", True, None, None),
        ("0", True, "50", "50"),
        (str(MOST), False, None, str(MOST)),
        (str(MOST), True, "1", str(MOST)),
        (str(MOST - 1), True, str(MOST), str(MOST)),
    ]
    for number, (total, overages, cap, available) in enumerate(table):
        name = f"{number}"
        meter = await created(gateway, externalMeterId=name, totalCredits=total, allowOverages=overages, **capped(cap))
        assert (meter["totalCredits"], meter["availableCredits"], meter["spendCap"]) == (total, available, cap)
        kept = await state(gateway, "w", name)
        assert {field: kept[field] for field in meter} == meter


async def test_usage_moves_what_is_available_and_then_the_overage(gateway: Gateway) -> None:
    meter = await created(gateway, totalCredits="100", allowOverages=True, spendCap="50")
    gateway.clock.forward(hours=1)
    assert await use(gateway, 80, eventId="1") == "RecordUsageSuccess"
    after = await state(gateway)
    assert (after["usedCredits"], after["overageCredits"], after["availableCredits"]) == ("80", "0", "70")
    assert (after["createdAt"], after["updatedAt"]) == (meter["createdAt"], "2026-03-16T13:00:00Z")
    assert await use(gateway, 60, eventId="2") == "RecordUsageSuccess"
    after = await state(gateway)
    assert (after["usedCredits"], after["overageCredits"], after["availableCredits"]) == ("140", "40", "10")
    assert await use(gateway, 60, eventId="3", policy="FORCE") == "RecordUsageSuccess"
    after = await state(gateway)
    assert (after["usedCredits"], after["overageCredits"], after["availableCredits"]) == ("200", "100", "0")


async def test_meters_are_distinguished_by_both_names_exactly(gateway: Gateway) -> None:
    names = [("w", "m"), ("W", "m"), ("w", "M"), ("w ", "m"), ("m", "w"), ("w", "m\u0301"), ("1", "01"), ("01", "1")]
    for number, (workspace_id, external_meter_id) in enumerate(names):
        await created(gateway, workspaceId=workspace_id, externalMeterId=external_meter_id, totalCredits=str(number))
    for number, (workspace_id, external_meter_id) in enumerate(names):
        assert (await state(gateway, workspace_id, external_meter_id))["totalCredits"] == str(number)
    assert await state(gateway, "w", "x") is None
    assert await state(gateway, "1", "1") is None


async def test_a_taken_name_is_refused(gateway: Gateway) -> None:
    meter = await created(gateway, totalCredits="10")
    before = await state(gateway)
    answer = await create(gateway, totalCredits="20")
    assert answer["__typename"] == "AlreadyExists"
    assert answer["code"] == "ALREADY_EXISTS"
    assert answer["existingId"] == meter["id"]
    assert await state(gateway) == before
    assert await listed(gateway) == ["m"]


async def test_a_meter_of_a_customer_that_is_not_there_is_not_made(gateway: Gateway) -> None:
    for customer_id in (NOBODY, "cus_", "", "mtr_0123456789abcdef01234567"):
        answer = await create(gateway, customerId=customer_id)
        assert answer["__typename"] == "CustomerNotFound", customer_id
        assert answer["code"] == "CUSTOMER_NOT_FOUND"
    assert await listed(gateway) == []


async def test_a_malformed_value_makes_no_meter(gateway: Gateway) -> None:
    for field, value in (
        ("workspaceId", ""),
        ("workspaceId", "w" * 257),
        ("externalMeterId", ""),
        ("externalMeterId", "m" * 257),
        ("externalMeterId", "m\0"),
        ("timezone", ""),
        ("timezone", "Mars/Olympus"),
        ("timezone", "../UTC"),
        ("timezone", "europe/zurich"),
        ("idempotencyKey", ""),
        ("idempotencyKey", "k" * 256),
    ):
        answer = await create(gateway, **{field: value})
        assert answer["__typename"] == "InvalidInput", value
        assert answer["code"] == "INVALID_INPUT"
        assert answer["field"] == ["input", field]
        assert await listed(gateway) == []


# Idempotency keys of creates


async def test_a_replay_answers_the_first_meter(gateway: Gateway) -> None:
    meter = await created(gateway, totalCredits="100", spendCap="50", idempotencyKey="k")
    before = await state(gateway)
    gateway.clock.forward(days=400)
    answer = await create(
        gateway, totalCredits=100, spendCap=50, allowOverages=False, timezone="UTC", idempotencyKey="k"
    )
    assert answer == {"__typename": "CreateBillingMeterSuccess", "billingMeter": meter, "replayed": True}
    assert await state(gateway) == before


async def test_a_replay_answers_the_meter_as_it_is_now(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100", idempotencyKey="k")
    await refill(gateway, refill="50")
    await use(gateway, 30)
    await update(gateway, allowOverages=True)
    before = await state(gateway)
    answer = await create(gateway, totalCredits="100", idempotencyKey="k")
    meter = answer["billingMeter"]
    assert answer["replayed"] is True
    assert (meter["totalCredits"], meter["usedCredits"], meter["allowOverages"]) == ("150", "30", True)
    assert await state(gateway) == before


async def test_a_key_used_for_another_meter_is_a_conflict(gateway: Gateway) -> None:
    values = {"totalCredits": "100", "idempotencyKey": "k"}
    await created(gateway, **values)
    (opening,) = await ledger(gateway)
    await refill(gateway, refill="50")
    before = await state(gateway)
    others: list[dict[str, Any]] = [
        {"workspaceId": "v"},
        {"externalMeterId": "n"},
        {"totalCredits": "101"},
        {"allowOverages": True},
        {"spendCap": "50"},
        {"spendCap": "0"},
        {"timezone": "Etc/UTC"},
    ]
    for other in others:
        answer = await create(gateway, **(values | other))
        assert answer["__typename"] == "IdempotencyConflict", other
        assert answer["code"] == "IDEMPOTENCY_CONFLICT"
        assert answer["entry"] == opening
        assert await state(gateway) == before
        assert await listed(gateway) == ["m"]


async def test_another_customer_under_the_same_key_is_a_conflict(gateway: Gateway) -> None:
    ada, bob = await make_customer(gateway), await make_customer(gateway)
    await created(gateway, customerId=ada, idempotencyKey="k")
    before = await state(gateway)
    for other in ({"customerId": bob}, {"customerId": None}, {}):
        answer = await create(gateway, **other, idempotencyKey="k")
        assert (answer["__typename"], answer["entry"]["kind"]) == ("IdempotencyConflict", "OPENING")
    assert await state(gateway) == before


async def test_a_customer_that_is_not_there_is_reported_before_a_conflict_or_a_taken_name(gateway: Gateway) -> None:
    await created(gateway, idempotencyKey="k")
    before = await state(gateway)
    assert (await create(gateway, customerId=NOBODY))["__typename"] == "CustomerNotFound"
    assert (await create(gateway, customerId=NOBODY, idempotencyKey="k"))["__typename"] == "CustomerNotFound"
    assert await state(gateway) == before


async def test_a_taken_name_under_another_key_is_refused(gateway: Gateway) -> None:
    meter = await created(gateway, idempotencyKey="k")
    before = await state(gateway)
    answer = await create(gateway, idempotencyKey="other")
    assert (answer["__typename"], answer["existingId"]) == ("AlreadyExists", meter["id"])
    assert await state(gateway) == before


async def test_a_refused_create_does_not_use_the_key_up(gateway: Gateway) -> None:
    await created(gateway, externalMeterId="taken")
    for values, refusal in (
        ({"externalMeterId": "taken"}, "AlreadyExists"),
        ({"customerId": NOBODY}, "CustomerNotFound"),
        ({"timezone": "Mars/Olympus"}, "InvalidInput"),
    ):
        answer = await create(gateway, **values, idempotencyKey="k")
        assert answer["__typename"] == refusal
    await created(gateway, idempotencyKey="k")
    assert await listed(gateway) == ["m", "taken"]


async def test_of_racing_creates_under_one_key_one_makes_the_meter(gateway: Gateway) -> None:
    for number in range(4):
        values = {"externalMeterId": f"{number}", "totalCredits": "10", "idempotencyKey": f"k{number}"}
        answers = await race(*[create(gateway, **values) for _ in range(8)])
        after = await state(gateway, "w", f"{number}")
        assert [answer["__typename"] for answer in answers] == ["CreateBillingMeterSuccess"] * 8
        assert {answer["billingMeter"]["id"] for answer in answers} == {after["id"]}
        assert sorted(answer["replayed"] for answer in answers) == [False] + [True] * 7
        assert [entry["kind"] for entry in after["ledger"]["nodes"]] == ["OPENING"]
    assert await listed(gateway) == ["3", "2", "1", "0"]


async def test_of_racing_creates_of_one_name_one_succeeds(gateway: Gateway) -> None:
    answers = await race(*[create(gateway, totalCredits=str(number)) for number in range(8)])
    (made,) = [answer["billingMeter"] for answer in answers if answer["__typename"] == "CreateBillingMeterSuccess"]
    refused = [answer for answer in answers if answer["__typename"] == "AlreadyExists"]
    assert [answer["existingId"] for answer in refused] == [made["id"]] * 7
    after = await state(gateway)
    assert after["totalCredits"] == made["totalCredits"]
    assert [entry["amount"] for entry in after["ledger"]["nodes"]] == [made["totalCredits"]]


# Changing


async def test_a_changed_spend_cap_is_recorded_with_old_and_new(gateway: Gateway) -> None:
    meter = await created(gateway, totalCredits="100", allowOverages=True)
    assert meter["availableCredits"] is None
    gateway.clock.forward(hours=1)
    answer = await update(gateway, spendCap="500")
    changed = meter | {"spendCap": "500", "availableCredits": "600", "updatedAt": "2026-03-16T13:00:00Z"}
    assert answer == {"__typename": "UpdateBillingMeterSuccess", "billingMeter": changed}
    opening, settings = await ledger(gateway)
    assert settings == {
        "id": opening["id"].removesuffix("1") + "2",
        "kind": "SETTINGS",
        "amount": "0",
        "totalCreditsAfter": "100",
        "usedCreditsAfter": "0",
        "key": None,
        "metadata": {"spendCap": [None, "500"]},
        "recordedAt": "2026-03-16T13:00:00Z",
    }
    assert await state(gateway) == changed | {"ledger": {"nodes": [settings, opening]}, "usage": []}


async def test_several_changes_at_once_are_one_entry(gateway: Gateway) -> None:
    ada, bob = await make_customer(gateway), await make_customer(gateway)
    await created(gateway, totalCredits="100", spendCap="50", customerId=ada)
    answer = await update(gateway, allowOverages=True, spendCap="0", customerId=bob)
    meter = answer["billingMeter"]
    assert (meter["allowOverages"], meter["spendCap"], meter["customer"]) == (True, "0", {"id": bob})
    assert meter["availableCredits"] == "100"
    _, settings = await ledger(gateway)
    assert settings["kind"] == "SETTINGS"
    assert settings["metadata"] == {
        "allowOverages": [False, True],
        "spendCap": ["50", "0"],
        "customerId": [ada, bob],
    }


async def test_an_entry_shows_only_what_changed(gateway: Gateway) -> None:
    await created(gateway, allowOverages=True, spendCap="50")
    await update(gateway, allowOverages=False, spendCap="50", customerId=None)
    _, settings = await ledger(gateway)
    assert settings["metadata"] == {"allowOverages": [True, False]}


async def test_where_nothing_changes_there_is_no_entry(gateway: Gateway) -> None:
    ada = await make_customer(gateway)
    meter = await created(gateway, totalCredits="100", allowOverages=True, spendCap="50", customerId=ada)
    before = await state(gateway)
    gateway.clock.forward(hours=1)
    same: list[dict[str, Any]] = [{}, {"allowOverages": True, "spendCap": 50, "customerId": ada}]
    for values in same:
        answer = await update(gateway, **values)
        assert answer == {"__typename": "UpdateBillingMeterSuccess", "billingMeter": meter}
    await created(gateway, externalMeterId="bare")
    bare = await state(gateway, "w", "bare")
    answer = await update(gateway, externalMeterId="bare", removeSpendCap=True, customerId=None, allowOverages=False)
    assert answer["__typename"] == "UpdateBillingMeterSuccess"
    assert await state(gateway) == before
    assert await state(gateway, "w", "bare") == bare


async def test_the_limit_may_be_lowered_below_what_is_used(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100", allowOverages=True)
    assert await use(gateway, 150) == "RecordUsageSuccess"
    for values in ({"spendCap": "10"}, {"spendCap": "0"}, {"allowOverages": False}):
        answer = await update(gateway, **values)
        meter = answer["billingMeter"]
        assert (meter["usedCredits"], meter["overageCredits"], meter["availableCredits"]) == ("150", "50", "0")
    before = await state(gateway)
    assert [entry["kind"] for entry in before["ledger"]["nodes"]] == ["SETTINGS"] * 3 + ["USAGE", "OPENING"]
    assert await use(gateway, 1, eventId="more") == "InsufficientCredits"
    assert await use(gateway, 1, eventId="more", policy="PARTIAL") == "InsufficientCredits"
    assert await state(gateway) == before
    # A refill first makes good what was overused.
    assert (await refill(gateway, refill="51"))["billingMeter"]["availableCredits"] == "1"
    assert await use(gateway, 1, eventId="more") == "RecordUsageSuccess"


async def test_a_raised_limit_can_be_used_at_once(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100")
    assert await use(gateway, 120) == "InsufficientCredits"
    await update(gateway, allowOverages=True, spendCap="19")
    assert await use(gateway, 120) == "SpendCapExceeded"
    await update(gateway, spendCap="20")
    assert await use(gateway, 120) == "RecordUsageSuccess"
    after = await state(gateway)
    assert (after["usedCredits"], after["availableCredits"]) == ("120", "0")


async def test_the_spend_cap_is_removed_only_when_asked_for(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100", allowOverages=True, spendCap="50")
    answer = await update(gateway, removeSpendCap=True)
    meter = answer["billingMeter"]
    assert (meter["spendCap"], meter["availableCredits"]) == (None, None)
    _, settings = await ledger(gateway)
    assert settings["metadata"] == {"spendCap": ["50", None]}


async def test_a_malformed_update_changes_nothing(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100", allowOverages=True, spendCap="50")
    before = await state(gateway)
    malformed: list[tuple[str, dict[str, Any]]] = [
        ("allowOverages", {"allowOverages": None}),
        ("spendCap", {"spendCap": None}),
        ("spendCap", {"spendCap": None, "removeSpendCap": True}),
        ("removeSpendCap", {"spendCap": "50", "removeSpendCap": True}),
        ("workspaceId", {"workspaceId": ""}),
        ("externalMeterId", {"externalMeterId": "m" * 257}),
    ]
    for field, values in malformed:
        answer = await update(gateway, **({"allowOverages": False} | values))
        assert answer["__typename"] == "InvalidInput", values
        assert answer["code"] == "INVALID_INPUT"
        assert answer["field"] == ["input", field]
        assert await state(gateway) == before


async def test_a_null_customer_detaches_the_meter(gateway: Gateway) -> None:
    ada = await make_customer(gateway)
    meter = await created(gateway, customerId=ada)
    assert await listed(gateway, customerId=ada) == ["m"]
    answer = await update(gateway, customerId=None)
    assert answer["billingMeter"] == meter | {"customer": None}
    assert (await ledger(gateway))[1]["metadata"] == {"customerId": [ada, None]}
    assert await listed(gateway, customerId=ada) == []


async def test_a_meter_is_not_given_to_a_customer_that_is_not_there(gateway: Gateway) -> None:
    await created(gateway, customerId=await make_customer(gateway))
    before = await state(gateway)
    for customer_id in (NOBODY, "cus_", "", "mtr_0123456789abcdef01234567"):
        answer = await update(gateway, customerId=customer_id, allowOverages=True)
        assert answer["__typename"] == "CustomerNotFound", customer_id
        assert answer["code"] == "CUSTOMER_NOT_FOUND"
    assert await state(gateway) == before


async def test_a_meter_that_is_not_there_is_neither_changed_nor_refilled(gateway: Gateway) -> None:
    await created(gateway)
    before = await state(gateway)
    for answer in (
        await update(gateway, externalMeterId="other", allowOverages=True),
        await update(gateway, externalMeterId="other", customerId=NOBODY),
        await refill(gateway, workspaceId="other", refill="1", idempotencyKey="k"),
        await refill(gateway, workspaceId="other"),
    ):
        assert answer["__typename"] == "BillingMeterNotFound"
        assert answer["code"] == "BILLING_METER_NOT_FOUND"
    assert await listed(gateway) == ["m"]
    assert await state(gateway) == before


async def test_a_malformed_value_is_reported_before_a_meter_that_is_not_there(gateway: Gateway) -> None:
    assert (await update(gateway, spendCap=None))["__typename"] == "InvalidInput"
    assert (await refill(gateway, refill="0"))["__typename"] == "InvalidInput"


# Refilling


async def test_a_refill_adds_to_the_total(gateway: Gateway) -> None:
    meter = await created(gateway, totalCredits="100")
    await use(gateway, 30)
    gateway.clock.forward(hours=1)
    answer = await refill(gateway, refill="50", idempotencyKey="k")
    opening, usage, entry = await ledger(gateway)
    assert entry == {
        "id": opening["id"].removesuffix("1") + "3",
        "kind": "REFILL",
        "amount": "50",
        "totalCreditsAfter": "150",
        "usedCreditsAfter": "30",
        "key": "k",
        "metadata": {},
        "recordedAt": "2026-03-16T13:00:00Z",
    }
    refilled = meter | {
        "totalCredits": "150",
        "usedCredits": "30",
        "availableCredits": "120",
        "updatedAt": "2026-03-16T13:00:00Z",
    }
    assert answer == {
        "__typename": "RefillBillingMeterSuccess",
        "billingMeter": refilled,
        "entry": entry,
        "replayed": False,
    }
    day = {"day": "2026-03-16", "billingUsageName": "default", "totalBillingUsage": "30"}
    assert await state(gateway) == refilled | {"ledger": {"nodes": [entry, usage, opening]}, "usage": [day]}


async def test_a_refill_is_spendable_whatever_the_cap(gateway: Gateway) -> None:
    table: list[tuple[bool, str | None, str | None]] = [
        # Overages, cap, available.
        (False, "5", "30"),
        (True, "5", "35"),
        (True, "0", "30"),
        (True, None, None),
    ]
    for number, (overages, cap, available) in enumerate(table):
        name = f"{number}"
        await created(gateway, externalMeterId=name, totalCredits="10", allowOverages=overages, **capped(cap))
        answer = await refill(gateway, externalMeterId=name, refill="20")
        assert answer["billingMeter"]["availableCredits"] == available
        assert await use(gateway, 30, externalMeterId=name) == "RecordUsageSuccess"


async def test_without_a_refill_the_meter_comes_back_unchanged(gateway: Gateway) -> None:
    meter = await created(gateway, totalCredits="100")
    before = await state(gateway)
    gateway.clock.forward(hours=1)
    absent: list[dict[str, None]] = [{}, {"refill": None}, {"refill": None, "idempotencyKey": None}]
    for values in absent:
        assert await refill(gateway, **values) == {
            "__typename": "RefillBillingMeterSuccess",
            "billingMeter": meter,
            "entry": None,
            "replayed": False,
        }
    assert await state(gateway) == before


async def test_a_malformed_refill_changes_nothing(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100")
    before = await state(gateway)
    malformed: list[tuple[str, dict[str, Any]]] = [
        ("refill", {"refill": "0"}),
        ("refill", {"refill": 0, "idempotencyKey": "k"}),
        ("refill", {"idempotencyKey": "k"}),
        ("refill", {"refill": None, "idempotencyKey": "k"}),
        ("idempotencyKey", {"refill": "1", "idempotencyKey": ""}),
        ("idempotencyKey", {"refill": "1", "idempotencyKey": "k" * 256}),
        ("workspaceId", {"refill": "1", "workspaceId": ""}),
    ]
    for field, values in malformed:
        answer = await refill(gateway, **values)
        assert answer["__typename"] == "InvalidInput", values
        assert answer["code"] == "INVALID_INPUT"
        assert answer["field"] == ["input", field]
        assert await state(gateway) == before
    # The key was not used up.
    assert (await refill(gateway, refill="1", idempotencyKey="k"))["replayed"] is False


async def test_a_replay_answers_the_first_refill(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100")
    first = await refill(gateway, refill="50", idempotencyKey="k")
    await refill(gateway, refill="7")
    await use(gateway, 30)
    before = await state(gateway)
    gateway.clock.forward(days=400)
    answer = await refill(gateway, refill=50, idempotencyKey="k")
    assert answer["entry"] == first["entry"]
    assert answer["entry"]["totalCreditsAfter"] == "150"
    meter = answer["billingMeter"]
    assert (answer["replayed"], meter["totalCredits"], meter["usedCredits"]) == (True, "157", "30")
    assert meter == {field: before[field] for field in meter}
    gateway.clock.forward(days=-400)
    assert await state(gateway) == before


async def test_another_refill_under_the_same_key_is_a_conflict(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100")
    first = await refill(gateway, refill="50", idempotencyKey="k")
    await refill(gateway, refill="7")
    before = await state(gateway)
    answer = await refill(gateway, refill="51", idempotencyKey="k")
    assert answer["__typename"] == "IdempotencyConflict"
    assert answer["code"] == "IDEMPOTENCY_CONFLICT"
    assert answer["entry"] == first["entry"]
    assert await state(gateway) == before


async def test_without_a_key_every_refill_counts(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100")
    for total in ("150", "200"):
        answer = await refill(gateway, refill="50")
        assert (answer["replayed"], answer["billingMeter"]["totalCredits"]) == (False, total)


async def test_a_key_of_refills_belongs_to_its_meter_and_to_refills(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100", idempotencyKey="k")
    await created(gateway, externalMeterId="n")
    assert await use(gateway, 5, eventId="k") == "RecordUsageSuccess"
    for values, total in (({}, "150"), ({"externalMeterId": "n"}, "50")):
        answer = await refill(gateway, **values, refill="50", idempotencyKey="k")
        assert (answer["replayed"], answer["billingMeter"]["totalCredits"]) == (False, total)


async def test_a_refill_past_the_greatest_amount_is_refused(gateway: Gateway) -> None:
    await created(gateway, totalCredits=str(MOST - 2), allowOverages=True, spendCap="10")
    await use(gateway, 5)
    answer = await refill(gateway, refill="2", idempotencyKey="last")
    assert answer["billingMeter"]["totalCredits"] == str(MOST)
    assert answer["billingMeter"]["availableCredits"] == str(MOST - 5)
    before = await state(gateway)
    for amount in ("1", str(MOST)):
        answer = await refill(gateway, refill=amount, idempotencyKey="k")
        assert answer["__typename"] == "AmountOutOfRange"
        assert answer["code"] == "AMOUNT_OUT_OF_RANGE"
        assert await state(gateway) == before
    # What was done before is still returned.
    answer = await refill(gateway, refill="2", idempotencyKey="last")
    assert (answer["__typename"], answer["replayed"]) == ("RefillBillingMeterSuccess", True)
    answer = await refill(gateway, refill="3", idempotencyKey="last")
    assert answer["__typename"] == "IdempotencyConflict"
    assert await state(gateway) == before


async def test_racing_refills_under_one_key_are_one_refill(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100")
    answers = await race(*[refill(gateway, refill="50", idempotencyKey="k") for _ in range(8)])
    assert sorted(answer["replayed"] for answer in answers) == [False] + [True] * 7
    _, entry = await ledger(gateway)
    assert [answer["entry"] for answer in answers] == [entry] * 8
    assert (await state(gateway))["totalCredits"] == "150"


async def test_of_racing_different_refills_under_one_key_one_succeeds(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100")
    answers = await race(*[refill(gateway, refill=str(amount), idempotencyKey="k") for amount in range(1, 9)])
    _, entry = await ledger(gateway)
    kinds = sorted(answer["__typename"] for answer in answers)
    assert kinds == ["IdempotencyConflict"] * 7 + ["RefillBillingMeterSuccess"]
    assert [answer["entry"] for answer in answers] == [entry] * 8
    assert (await state(gateway))["totalCredits"] == str(100 + int(entry["amount"]))


async def test_racing_refills_all_count(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100")
    amounts = [2**number for number in range(12)]
    await race(*[refill(gateway, refill=str(amount)) for amount in amounts])
    opening, *entries = await ledger(gateway)
    assert sorted(int(entry["amount"]) for entry in entries) == amounts
    total = 100
    for entry in entries:
        total += int(entry["amount"])
        assert entry["totalCreditsAfter"] == str(total)
    assert [entry["id"].rpartition("_")[2] for entry in [opening, *entries]] == [str(seq) for seq in range(1, 14)]
    after = await state(gateway)
    assert (after["totalCredits"], after["availableCredits"]) == ("4195", "4195")


async def test_racing_refills_settings_and_usage_all_count(gateway: Gateway) -> None:
    await created(gateway, totalCredits="100")
    await race(
        *[refill(gateway, refill=str(10**number)) for number in range(4)],
        *[update(gateway, spendCap=str(number)) for number in range(4)],
        *[record(gateway, 2**number, eventId=str(number)) for number in range(4)],
        update(gateway, allowOverages=True),
    )
    entries = await ledger(gateway)
    assert sorted(entry["kind"] for entry in entries) == (
        ["OPENING"] + ["REFILL"] * 4 + ["SETTINGS"] * 5 + ["USAGE"] * 4
    )
    assert [entry["id"].rpartition("_")[2] for entry in entries] == [str(seq) for seq in range(1, 15)]
    total, used = 0, 0
    for entry in entries:
        total += int(entry["amount"]) if entry["kind"] in {"OPENING", "REFILL"} else 0
        used += int(entry["amount"]) if entry["kind"] == "USAGE" else 0
        assert (entry["totalCreditsAfter"], entry["usedCreditsAfter"]) == (str(total), str(used))
    caps = [entry["metadata"]["spendCap"] for entry in entries if "spendCap" in entry["metadata"]]
    assert [old for old, _ in caps] == [None] + [new for _, new in caps[:-1]]
    after = await state(gateway)
    assert (after["totalCredits"], after["usedCredits"]) == ("1211", "15")
    assert (after["allowOverages"], after["spendCap"]) == (True, caps[-1][1])
    assert after["availableCredits"] == str(1211 + int(caps[-1][1]) - 15)


# Listing


async def test_meters_are_listed_newest_first(gateway: Gateway) -> None:
    for name in ("1", "2", "3"):
        await created(gateway, externalMeterId=name)
    assert await listed(gateway) == ["3", "2", "1"]


async def test_meters_are_listed_by_workspace_and_customer(gateway: Gateway) -> None:
    ada, bob = await make_customer(gateway), await make_customer(gateway)
    for name, workspace_id, customer_id in (
        ("1", "w", ada),
        ("2", "w", None),
        ("3", "v", ada),
        ("4", "v", bob),
        ("5", "w", ada),
    ):
        await created(gateway, externalMeterId=name, workspaceId=workspace_id, customerId=customer_id)
    assert await listed(gateway, workspaceId="w") == ["5", "2", "1"]
    assert await listed(gateway, workspaceId="v") == ["4", "3"]
    assert await listed(gateway, workspaceId="W") == []
    assert await listed(gateway, customerId=ada) == ["5", "3", "1"]
    assert await listed(gateway, customerId=ada, workspaceId="v") == ["3"]
    assert await listed(gateway, customerId=bob, workspaceId="w") == []
    for nobody in (NOBODY, "cus_", ""):
        assert await listed(gateway, customerId=nobody) == []


async def test_meters_are_listed_by_what_is_available(gateway: Gateway) -> None:
    await created(gateway, externalMeterId="ten", totalCredits="10")
    await created(gateway, externalMeterId="none left", totalCredits="10")
    await use(gateway, 10, externalMeterId="none left")
    await created(gateway, externalMeterId="over", totalCredits="10")
    await use(gateway, 25, externalMeterId="over", policy="FORCE")
    await created(gateway, externalMeterId="capped", totalCredits="10", allowOverages=True, spendCap="5")
    await use(gateway, 12, externalMeterId="capped")
    await created(gateway, externalMeterId="unlimited", allowOverages=True)
    await use(gateway, 1000, externalMeterId="unlimited")
    await created(gateway, externalMeterId="most", totalCredits=str(MOST), allowOverages=True, spendCap=str(MOST))
    await created(gateway, externalMeterId="far over")
    await use(gateway, MOST, externalMeterId="far over", policy="FORCE")

    assert await listed(gateway, availableBelow="0") == []
    assert await listed(gateway, availableBelow="1") == ["far over", "over", "none left"]
    assert await listed(gateway, availableBelow="3") == ["far over", "over", "none left"]
    assert await listed(gateway, availableBelow="4") == ["far over", "capped", "over", "none left"]
    assert await listed(gateway, availableBelow="10") == ["far over", "capped", "over", "none left"]
    assert await listed(gateway, availableBelow=11) == ["far over", "capped", "over", "none left", "ten"]
    assert await listed(gateway, availableBelow=str(MOST)) == ["far over", "capped", "over", "none left", "ten"]
    assert len(await listed(gateway)) == 7

    # The limit that counts is the present one.
    await update(gateway, externalMeterId="unlimited", spendCap="1001")
    assert await listed(gateway, availableBelow="2") == ["far over", "unlimited", "over", "none left"]
    await refill(gateway, externalMeterId="none left", refill="2")
    assert await listed(gateway, availableBelow="2") == ["far over", "unlimited", "over"]


async def test_filters_hold_on_every_page(gateway: Gateway) -> None:
    ada = await make_customer(gateway)
    for number in range(1, 7):
        await created(gateway, externalMeterId=f"{number}", totalCredits="5", customerId=ada)
        await created(gateway, externalMeterId=f"{number} rich", totalCredits="50", customerId=ada)
        await created(gateway, externalMeterId=f"{number} alone", totalCredits="5")
        await created(gateway, externalMeterId=f"{number} elsewhere", workspaceId="v", customerId=ada)
    filters = {"workspaceId": "w", "customerId": ada, "availableBelow": "6"}
    seen: list[list[str]] = []
    after = None
    while True:
        data = await gateway.data(LISTED, {"filter": filters, "first": 2, "after": after})
        seen.append([meter["externalMeterId"] for meter in data["billingMeters"]["nodes"]])
        after = data["billingMeters"]["pageInfo"]["endCursor"]
        if not data["billingMeters"]["pageInfo"]["hasNextPage"]:
            break
    assert seen == [["6", "5"], ["4", "3"], ["2", "1"]]


async def test_a_filter_is_held_against_its_rules(gateway: Gateway) -> None:
    await created(gateway)
    for filters in ({"workspaceId": ""}, {"availableBelow": "-1"}, {"availableBelow": "1.0"}):
        error = await gateway.error(LISTED, {"filter": filters})
        assert error["extensions"]["code"] == "BAD_USER_INPUT"


async def test_a_meter_and_its_customer_know_each_other(gateway: Gateway) -> None:
    customers = [await make_customer(gateway, f"c{number}@example.com") for number in range(3)]
    for number, customer_id in enumerate([customers[0], None, customers[1], customers[0]]):
        await created(gateway, externalMeterId=f"{number}", customerId=customer_id)
    data = await gateway.data(
        """{
          billingMeters { nodes { externalMeterId customer { email billingMeters { nodes { externalMeterId } } } } }
          customers { nodes { email billingMeters { nodes { externalMeterId customer { email } } } } }
        }"""
    )
    zero = {"email": "c0@example.com", "billingMeters": {"nodes": [{"externalMeterId": "3"}, {"externalMeterId": "0"}]}}
    one = {"email": "c1@example.com", "billingMeters": {"nodes": [{"externalMeterId": "2"}]}}
    assert data["billingMeters"]["nodes"] == [
        {"externalMeterId": "3", "customer": zero},
        {"externalMeterId": "2", "customer": one},
        {"externalMeterId": "1", "customer": None},
        {"externalMeterId": "0", "customer": zero},
    ]
    assert [
        (customer["email"], [meter["externalMeterId"] for meter in customer["billingMeters"]["nodes"]])
        for customer in data["customers"]["nodes"]
    ] == [("c2@example.com", []), ("c1@example.com", ["2"]), ("c0@example.com", ["3", "0"])]


async def test_a_refills_key_is_none_of_the_gateways_own(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    refused = await gateway.mutate(
        "refillBillingMeter",
        "... on InvalidInput { field message }",
        workspaceId="w",
        externalMeterId="m",
        refill="5",
        idempotencyKey="tollgate/1",
    )
    assert (refused["__typename"], refused["field"], refused["message"]) == (
        "InvalidInput",
        ["input", "idempotencyKey"],
        "idempotencyKey must not begin with tollgate/, which is reserved.",
    )
    found = await gateway.data('{ billingMeter(workspaceId: "w", externalMeterId: "m") { totalCredits } }')
    assert found == {"billingMeter": {"totalCredits": "10"}}


async def test_a_mutation_reads_what_the_one_before_it_in_the_request_has_changed(gateway: Gateway) -> None:
    customer_id = await make_customer(gateway)
    await make_meter(gateway, customerId=customer_id)
    data = await gateway.data(
        """mutation ($c: ID!) {
          first: refillBillingMeter(input: {workspaceId: "w", externalMeterId: "m", refill: "1"}) { ...Name }
          updateCustomer(input: {id: $c, name: "New"}) { __typename }
          second: refillBillingMeter(input: {workspaceId: "w", externalMeterId: "m", refill: "1"}) { ...Name }
        }
        fragment Name on RefillBillingMeterResult {
          ... on RefillBillingMeterSuccess { billingMeter { totalCredits customer { name } } }
        }""",
        {"c": customer_id},
    )
    assert data == {
        "first": {"billingMeter": {"totalCredits": "1", "customer": {"name": None}}},
        "updateCustomer": {"__typename": "UpdateCustomerSuccess"},
        "second": {"billingMeter": {"totalCredits": "2", "customer": {"name": "New"}}},
    }
