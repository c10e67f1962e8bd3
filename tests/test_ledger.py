"""The ledger: what each kind of entry shows, and in which order."""

import re
from typing import Any

import pytest

from tests.conftest import Caller, Gateway
from tests.steps import entry_id, make_customer, make_meter, must, new_key

MOST = 2**63 - 1

ENTRY = """id kind amount totalCreditsAfter usedCreditsAfter key usageName day requestedAmount policy
  voids { id } occurredAt recordedAt recordedBy reason metadata"""
LEDGER = f"""query ($m: String!) {{
  billingMeter(workspaceId: "w", externalMeterId: $m) {{
    id totalCredits usedCredits updatedAt ledger(first: 100) {{ nodes {{ {ENTRY} billingMeter {{ id }} }} }}
  }}
}}"""
NODE = f"""query ($id: ID!) {{
  node(id: $id) {{ __typename id ... on LedgerEntry {{ {ENTRY} billingMeter {{ externalMeterId }} }} }}
}}"""

#: What the fields are of which an entry's kind has none.
NONE: dict[str, Any] = {
    "key": None,
    "usageName": None,
    "day": None,
    "requestedAmount": None,
    "policy": None,
    "voids": None,
    "reason": None,
    "metadata": {},
}


async def run(caller: Caller, field: str, **values: Any) -> Any:
    """Run a mutation of the meter `m`, which must succeed, and return the entry that it answers with, if any."""
    selection = "" if field == "updateBillingMeter" else f"entry {{ {ENTRY} }}"
    return (await must(caller, field, selection, **values)).get("entry")


async def ledger(caller: Caller, meter: str = "m") -> list[dict[str, Any]]:
    """Return the meter's entries, oldest first, without what they show of their meter."""
    nodes = (await caller.data(LEDGER, {"m": meter}))["billingMeter"]["ledger"]["nodes"]
    return [{name: entry[name] for name in entry if name != "billingMeter"} for entry in reversed(nodes)]


# What each kind shows


async def test_an_opening_entry_shows_what_the_meter_began_with(gateway: Gateway) -> None:
    key_id, caller = await new_key(gateway)
    meter_id = await make_meter(caller, totalCredits="100", idempotencyKey="k")
    assert await ledger(gateway) == [
        NONE
        | {
            "id": entry_id(meter_id, 1),
            "kind": "OPENING",
            "amount": "100",
            "totalCreditsAfter": "100",
            "usedCreditsAfter": "0",
            "occurredAt": "2026-03-16T12:00:00Z",
            "recordedAt": "2026-03-16T12:00:00Z",
            "recordedBy": key_id,
        }
    ]


async def test_an_opening_of_nothing_is_an_entry_too(gateway: Gateway) -> None:
    await make_meter(gateway)
    (opening,) = await ledger(gateway)
    assert (opening["kind"], opening["amount"], opening["totalCreditsAfter"]) == ("OPENING", "0", "0")


@pytest.mark.parametrize("key", ["order-7", None])
async def test_a_refill_entry_shows_its_amount_and_key(gateway: Gateway, key: str | None) -> None:
    meter_id = await make_meter(gateway, totalCredits="100")
    gateway.clock.forward(minutes=1, microseconds=250)
    key_id, caller = await new_key(gateway)
    entry = await run(caller, "refillBillingMeter", refill="50", idempotencyKey=key)
    assert entry == NONE | {
        "id": entry_id(meter_id, 2),
        "kind": "REFILL",
        "amount": "50",
        "totalCreditsAfter": "150",
        "usedCreditsAfter": "0",
        "key": key,
        "occurredAt": "2026-03-16T12:01:00.000250Z",
        "recordedAt": "2026-03-16T12:01:00.000250Z",
        "recordedBy": key_id,
    }
    assert (await ledger(gateway))[1:] == [entry]


async def test_keys_of_callers_are_shown_also_where_they_look_like_the_gateways(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    await run(gateway, "recordUsage", eventId="tollgate/e", amount="2")
    await run(gateway, "voidUsage", eventId="tollgate/e", reason="x", idempotencyKey="tollgate/v")
    await run(gateway, "refillBillingMeter", refill="5")
    await run(gateway, "updateBillingMeter", spendCap="7")
    assert [entry["key"] for entry in await ledger(gateway)] == [None, "tollgate/e", "tollgate/v", None, None]


async def test_a_settings_entry_shows_old_and_new(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="100")
    gateway.clock.forward(minutes=1)
    key_id, caller = await new_key(gateway)
    await run(caller, "updateBillingMeter", allowOverages=True, spendCap="500")
    assert (await ledger(gateway))[1:] == [
        NONE
        | {
            "id": entry_id(meter_id, 2),
            "kind": "SETTINGS",
            "amount": "0",
            "totalCreditsAfter": "100",
            "usedCreditsAfter": "0",
            "occurredAt": "2026-03-16T12:01:00Z",
            "recordedAt": "2026-03-16T12:01:00Z",
            "recordedBy": key_id,
            "metadata": {"allowOverages": [False, True], "spendCap": [None, "500"]},
        }
    ]


async def test_a_usage_entry_of_an_event_without_a_time_happened_when_it_was_recorded(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="100")
    gateway.clock.forward(minutes=1)
    key_id, caller = await new_key(gateway)
    entry = await run(caller, "recordUsage", eventId="e", amount="30")
    assert entry == NONE | {
        "id": entry_id(meter_id, 2),
        "kind": "USAGE",
        "amount": "30",
        "totalCreditsAfter": "100",
        "usedCreditsAfter": "30",
        "key": "e",
        "usageName": "default",
        "day": "2026-03-16",
        "requestedAmount": "30",
        "policy": "REJECT",
        "occurredAt": "2026-03-16T12:01:00Z",
        "recordedAt": "2026-03-16T12:01:00Z",
        "recordedBy": key_id,
    }
    assert (await ledger(gateway))[1:] == [entry]


async def test_a_usage_entry_shows_what_the_caller_sent(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="100", timezone="Europe/Zurich")
    key_id, caller = await new_key(gateway)
    entry = await run(
        caller,
        "recordUsage",
        eventId="job 1/é",
        amount="130",
        usageName="render.4k",
        occurredAt="2026-03-14T17:30:00.25-06:00",
        policy="PARTIAL",
        metadata={"job": {"id": 1, "ratio": 1.0}},
    )
    assert entry == NONE | {
        "id": entry_id(meter_id, 2),
        "kind": "USAGE",
        "amount": "100",
        "totalCreditsAfter": "100",
        "usedCreditsAfter": "100",
        "key": "job 1/é",
        "usageName": "render.4k",
        # In Zurich it was half past midnight.
        "day": "2026-03-15",
        "requestedAmount": "130",
        "policy": "PARTIAL",
        "occurredAt": "2026-03-14T23:30:00.250000Z",
        "recordedAt": "2026-03-16T12:00:00Z",
        "recordedBy": key_id,
        "metadata": {"job": {"id": 1, "ratio": 1.0}},
    }
    assert (await ledger(gateway))[1:] == [entry]


async def test_a_forced_usage_entry_shows_the_whole_amount(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    entry = await run(gateway, "recordUsage", eventId="e", amount="130", policy="FORCE")
    recorded = (entry["amount"], entry["requestedAmount"], entry["usedCreditsAfter"], entry["policy"])
    assert recorded == ("130", "130", "130", "FORCE")
    assert (await ledger(gateway))[1:] == [entry]


async def test_the_greatest_amounts_are_returned_exactly(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits=str(MOST - 1))
    refill = await run(gateway, "refillBillingMeter", refill="1")
    usage = await run(gateway, "recordUsage", eventId="e", amount=str(MOST))
    assert (refill["amount"], refill["totalCreditsAfter"]) == ("1", str(MOST))
    assert (usage["amount"], usage["requestedAmount"], usage["usedCreditsAfter"]) == (str(MOST),) * 3
    opening, *entries = await ledger(gateway)
    assert (opening["amount"], opening["totalCreditsAfter"]) == (str(MOST - 1),) * 2
    assert entries == [refill, usage]


# The order


async def test_entries_are_numbered_in_the_order_of_decisions_and_carry_the_totals_after_them(
    gateway: Gateway,
) -> None:
    meter_id = await make_meter(gateway, totalCredits="100")
    # Both happened before what was recorded before them.
    await run(gateway, "recordUsage", eventId="1", amount="30", occurredAt="2026-03-16T11:00:00Z")
    await run(gateway, "recordUsage", eventId="2", amount="20", occurredAt="2026-03-15T11:00:00Z")
    gateway.clock.forward(hours=1)
    await run(gateway, "refillBillingMeter", refill="40")
    await run(gateway, "updateBillingMeter", allowOverages=True)
    await run(gateway, "recordUsage", eventId="3", amount="100")
    await run(gateway, "updateBillingMeter", allowOverages=False)
    await run(gateway, "refillBillingMeter", refill="5", idempotencyKey="k")
    entries = await ledger(gateway)
    assert [
        (entry["kind"], entry["amount"], entry["totalCreditsAfter"], entry["usedCreditsAfter"]) for entry in entries
    ] == [
        ("OPENING", "100", "100", "0"),
        ("USAGE", "30", "100", "30"),
        ("USAGE", "20", "100", "50"),
        ("REFILL", "40", "140", "50"),
        ("SETTINGS", "0", "140", "50"),
        ("USAGE", "100", "140", "150"),
        ("SETTINGS", "0", "140", "150"),
        ("REFILL", "5", "145", "150"),
    ]
    assert [entry["id"] for entry in entries] == [entry_id(meter_id, seq) for seq in range(1, 9)]
    assert [entry["day"] for entry in entries if entry["kind"] == "USAGE"] == ["2026-03-16", "2026-03-15", "2026-03-16"]
    meter = (await gateway.data(LEDGER, {"m": "m"}))["billingMeter"]
    assert (meter["totalCredits"], meter["usedCredits"]) == ("145", "150")
    assert meter["updatedAt"] == entries[-1]["recordedAt"] == "2026-03-16T13:00:00Z"


async def test_what_changes_nothing_leaves_no_entry(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    await run(gateway, "recordUsage", eventId="e", amount="60")
    await run(gateway, "refillBillingMeter", refill="1", idempotencyKey="k")
    before = await ledger(gateway)
    names = {"workspaceId": "w", "externalMeterId": "m"}
    for field, kind, values in (
        ("recordUsage", "RecordUsageSuccess", {"eventId": "e", "amount": "60"}),
        ("recordUsage", "RecordUsageSuccess", {"eventId": "check", "amount": "0"}),
        ("recordUsage", "IdempotencyConflict", {"eventId": "e", "amount": "61"}),
        ("recordUsage", "InsufficientCredits", {"eventId": "f", "amount": "60"}),
        ("recordUsage", "AmountOutOfRange", {"eventId": "f", "amount": str(MOST), "policy": "FORCE"}),
        ("recordUsage", "InvalidInput", {"eventId": "f", "amount": "1", "occurredAt": "2026-03-16T13:00:00Z"}),
        ("refillBillingMeter", "RefillBillingMeterSuccess", {"refill": "1", "idempotencyKey": "k"}),
        ("refillBillingMeter", "RefillBillingMeterSuccess", {}),
        ("refillBillingMeter", "IdempotencyConflict", {"refill": "2", "idempotencyKey": "k"}),
        ("refillBillingMeter", "AmountOutOfRange", {"refill": str(MOST)}),
        ("updateBillingMeter", "UpdateBillingMeterSuccess", {"allowOverages": False}),
        ("updateBillingMeter", "InvalidInput", {"spendCap": None}),
        ("updateBillingMeter", "CustomerNotFound", {"customerId": "cus_0123456789abcdef01234567"}),
        ("createBillingMeter", "AlreadyExists", {}),
    ):
        answer = await gateway.mutate(field, "", **names, **values)
        assert answer["__typename"] == kind
    assert await ledger(gateway) == before


async def test_each_meter_has_a_ledger_of_its_own(gateway: Gateway) -> None:
    first = await make_meter(gateway)
    second = await make_meter(gateway, externalMeterId="n")
    await run(gateway, "refillBillingMeter", refill="1")
    await run(gateway, "refillBillingMeter", refill="2", externalMeterId="n")
    await run(gateway, "refillBillingMeter", refill="3")
    for name, meter_id, amounts in (("m", first, ["3", "1", "0"]), ("n", second, ["2", "0"])):
        meter = (await gateway.data(LEDGER, {"m": name}))["billingMeter"]
        entries = meter["ledger"]["nodes"]
        assert [entry["amount"] for entry in entries] == amounts
        assert [entry["id"] for entry in entries] == [entry_id(meter_id, seq) for seq in range(len(amounts), 0, -1)]
        assert [entry["billingMeter"] for entry in entries] == [{"id": meter_id}] * len(amounts)


async def test_entries_name_the_key_that_recorded_them(gateway: Gateway) -> None:
    first_id, first = await new_key(gateway)
    second_id, second = await new_key(gateway)
    await make_meter(first, totalCredits="100")
    await run(second, "refillBillingMeter", refill="1", idempotencyKey="k")
    await run(first, "recordUsage", eventId="e", amount="1")
    # A replay by another key leaves the author as it was.
    assert (await run(first, "refillBillingMeter", refill="1", idempotencyKey="k"))["recordedBy"] == second_id
    assert (await run(second, "recordUsage", eventId="e", amount="1"))["recordedBy"] == first_id
    await run(second, "updateBillingMeter", allowOverages=True)
    entries = await ledger(gateway)
    assert [entry["recordedBy"] for entry in entries] == [first_id, second_id, first_id, second_id]


# Ids


async def test_an_entry_is_found_by_its_id(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="100")
    await run(gateway, "recordUsage", eventId="e", amount="30", metadata={"job": 1})
    await run(gateway, "refillBillingMeter", refill="50", idempotencyKey="k")
    await run(gateway, "updateBillingMeter", spendCap="7")
    entries = await ledger(gateway)
    assert [entry["kind"] for entry in entries] == ["OPENING", "USAGE", "REFILL", "SETTINGS"]
    for entry in entries:
        found = (await gateway.data(NODE, {"id": entry["id"]}))["node"]
        assert found == entry | {"__typename": "LedgerEntry", "billingMeter": {"externalMeterId": "m"}}


async def test_an_id_that_no_entry_has_finds_none(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway)
    first = entry_id(meter_id, 1)
    for id_ in (
        entry_id(meter_id, 2),
        entry_id(meter_id, 0),
        entry_id(meter_id, -1),
        entry_id(meter_id, 10**17),
        entry_id(meter_id, 10**30),
        entry_id("mtr_0123456789abcdef01234567", 1),
        first.removesuffix("_1"),
        first.removesuffix("1"),
        first.removesuffix("1") + "01",
        first.removesuffix("1") + "1.0",
        first.removesuffix("1") + "\u0661",
        first + "\n",
        first.upper(),
        first.removeprefix("ent_"),
        "ent_",
    ):
        assert (await gateway.data(NODE, {"id": id_}))["node"] is None, id_


async def test_ids_have_their_kinds_prefix_and_their_digits_in_the_order_of_time(gateway: Gateway) -> None:
    customers, meters = [], []
    for number in range(3):
        customers.append(await make_customer(gateway, f"c{number}@example.com"))
        meters.append(await make_meter(gateway, externalMeterId=f"{number}"))
    key_id, _ = await new_key(gateway)
    for id_, form in (
        *[(customer_id, r"cus_[0-9a-f]{24}") for customer_id in customers],
        *[(meter_id, r"mtr_[0-9a-f]{27}") for meter_id in meters],
        (key_id, r"key_[0-9a-f]{24}"),
    ):
        assert re.fullmatch(form, id_)
    assert sorted(customers) == customers
    assert sorted(meters) == meters
    (opening,) = await ledger(gateway, "0")
    assert opening["id"] == f"ent_{meters[0][4:]}_1"
