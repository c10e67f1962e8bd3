"""Automatic refills: when a meter asks for credits, for how many, and what becomes of its requests."""

from datetime import timedelta
from typing import Any

import pytest

from gateway.workers.sweeper import sweep
from resolvers.actor import Scope
from tests.conftest import NOW, Gateway, gateway_on
from tests.refill_walks import REFILL, REQUEST, SETTINGS, RefillWalk, events_of
from tests.steps import books_of, make_customer, make_meter, must, new_key, session_of, unchanged

# When it asks, and for how many.


async def test_a_debit_that_leaves_fewer_than_below_asks_for_credits(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(90)
    assert await walk.requests() == []
    await walk.use(1)
    shown = await walk.shown()
    (request,) = shown.pop("requests")
    assert request == {
        "id": walk.id_of(1),
        "amount": "41",
        "state": "OPEN",
        "requestedAt": "2026-03-16T12:00:00Z",
        "expiresAt": "2026-03-16T13:00:00Z",
        "closedAt": None,
        "failure": None,
        "entry": None,
    }
    assert shown == SETTINGS | {
        "isEnabled": True,
        "requestSeconds": 3_600,
        "maxFailures": 3,
        "state": "REQUESTED",
        "requestId": walk.id_of(1),
        "requestedAt": "2026-03-16T12:00:00Z",
        "requestedAmount": "41",
        "failures": 0,
        "lastFailure": None,
    }
    # It is no entry of the ledger, and adds nothing.
    books = await books_of(gateway)
    assert (books.meter.last_seq, books.meter.total_credits) == (3, 100)
    await walk.check()


async def test_a_request_is_an_event_with_all_that_a_backend_needs(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(95)
    event = (await events_of(gateway, walk.meter_id))[-1]
    assert event == {
        "type": "refill.requested",
        "timestamp": "2026-03-16T12:00:00+00:00",
        "data": {
            "billingMeter": {
                "id": walk.meter_id,
                "workspaceId": "w",
                "externalMeterId": "m",
                "customerId": None,
                "totalCredits": "100",
                "usedCredits": "95",
                "heldCredits": "0",
                "availableCredits": "5",
            },
            "number": "2",
            "seq": "2",
            "refill": {
                "requestId": walk.id_of(1),
                "amount": "45",
                "requestedAt": "2026-03-16T12:00:00+00:00",
                "expiresAt": "2026-03-16T13:00:00+00:00",
            },
        },
    }


@pytest.mark.parametrize(
    ("settings", "options", "used", "asked"),
    [
        # TARGET: what is missing, also where more is used than there is.
        ({}, "", 91, "41"),
        ({}, "", 100, "50"),
        ({}, "overages", 130, "80"),
        ({"below": "50"}, "", 51, "1"),
        # FIXED: the least multiple that reaches `below`.
        ({"mode": "FIXED", "amount": "7"}, "", 91, "7"),
        ({"mode": "FIXED", "amount": "7"}, "", 97, "7"),
        ({"mode": "FIXED", "amount": "7"}, "", 98, "14"),
        ({"mode": "FIXED", "amount": "10"}, "", 100, "10"),
        ({"mode": "FIXED", "amount": "10"}, "overages", 101, "20"),
        ({"mode": "FIXED", "amount": "1000", "maxCredits": "1000"}, "", 100, "1000"),
        # Either is cut to what the cap leaves, FIXED by whole steps.
        ({"maxCredits": "30"}, "", 91, "30"),
        ({"mode": "FIXED", "amount": "7", "maxCredits": "13"}, "", 98, "7"),
        ({"mode": "FIXED", "amount": "7", "maxCredits": "14"}, "", 98, "14"),
    ],
)
async def test_it_asks_for_what_its_mode_says(
    gateway: Gateway, settings: dict[str, Any], options: str, used: int, asked: str
) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(options=options, **settings)
    await walk.use(used)
    assert await walk.requests() == [f"{asked} OPEN"]
    assert await walk.events() == [f"requested 1 {asked}"]
    await walk.check()


async def test_it_never_asks_for_so_much_that_the_total_would_pass_the_greatest_amount(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    most = 2**63 - 1
    await walk.begin(most - 30, below="100", amount="200", maxCredits=str(most))
    assert await walk.use(most - 30) == "RecordUsageSuccess"
    assert await walk.requests() == ["30 OPEN"]
    await walk.refill(1, 30)
    # Now there is no room, whatever the caps say; it says so once.
    await walk.use(1)
    await walk.use(1)
    assert await walk.requests() == ["30 FULFILLED"]
    assert await walk.events() == ["requested 1 30", "fulfilled 1 30", "capped"]
    assert (await books_of(gateway)).meter.next_due_at is None


async def test_held_credits_are_unspent(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.take("hold h 95")
    assert await walk.requests() == []
    await walk.take("commit h 95")
    assert await walk.requests() == ["45 OPEN"]


@pytest.mark.parametrize(
    ("before", "step", "asked"),
    [
        ("grant a 20 p90; use e 95", "revoke a", "45"),
        ("grant a 20 p90; use e 95", "revoke a 16", "41"),
        ("use e 50; hold h 45", "commit h 45", "45"),
        # The end of a grant, which the next command books.
        ("grant a 20 p90 60s; use e 100", "wait 60; use f 0", "50"),
    ],
)
async def test_whatever_takes_credits_makes_it_ask(gateway: Gateway, before: str, step: str, asked: str) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.take(before)
    assert await walk.requests() == []
    await walk.take(step)
    assert await walk.requests() == [f"{asked} OPEN"]
    await walk.check()


@pytest.mark.parametrize(("command", "asked"), [("use f 1000", ["50 OPEN"]), ("refill 100", [])])
async def test_what_is_due_makes_it_ask_after_the_command_that_books_it(
    gateway: Gateway, command: str, asked: list[str]
) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    # A command that is refused brings nothing; one that refills brings what would be asked for.
    await walk.take(f"grant a 20 p90 60s; use e 100; wait 60; {command}")
    assert await walk.requests() == asked
    await walk.check()


async def test_the_end_of_a_grant_alone_makes_it_ask(own: Gateway) -> None:
    walk = RefillWalk(own)
    await walk.begin()
    await walk.take("grant a 20 p90 60s; use e 100; wait 60")
    assert await sweep(own.services) == 1
    assert await walk.requests() == ["50 OPEN"]
    await walk.check()


# What does not make it ask.


async def test_a_refused_debit_and_a_read_do_not_make_it_ask(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(85)
    async with unchanged(gateway):
        for _ in range(30):
            assert await walk.use(16) == "InsufficientCredits"
        assert await walk.requests() == []


async def test_while_one_is_open_it_asks_for_no_other(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    for _ in range(3):
        await walk.use(31)
    await walk.use(5)
    # Another refill leaves it open.
    await walk.take("refill 100; use e 95")
    assert await walk.requests() == ["43 OPEN"]
    assert await walk.events() == ["requested 1 43"]


async def test_switched_off_it_asks_for_nothing_and_what_is_open_stays_open(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(isEnabled=False)
    await walk.use(95)
    assert await walk.requests() == []
    # On again, it looks at once.
    assert (await walk.set(isEnabled=True))["requestedAmount"] == "45"
    shown = await walk.set(isEnabled=False)
    assert (shown["isEnabled"], shown["state"], shown["requestId"]) == (False, "REQUESTED", walk.id_of(1))
    assert (await walk.refill(1, 45))["__typename"] == "RefillBillingMeterSuccess"
    await walk.use(45)
    assert await walk.requests() == ["45 FULFILLED"]


async def test_setting_it_on_a_meter_that_runs_low_makes_it_ask_at_once(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.take("meter 5")
    shown = await walk.set(**SETTINGS)
    assert (shown["state"], shown["requestedAmount"]) == ("REQUESTED", "45")
    # The same again changes nothing.
    assert await walk.set(**SETTINGS) == shown


# The cool-down, the window and the end of a request.


async def test_after_a_request_has_ended_it_waits_for_the_cool_down(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(cooldownSeconds=60)
    await walk.use(95)
    gateway.clock.forward(seconds=30)
    await walk.refill(1, 45)
    await walk.use(45)
    gateway.clock.forward(seconds=59.999999)
    await walk.use(1)
    assert await walk.requests() == ["45 FULFILLED"]
    gateway.clock.forward(seconds=0.000001)
    await walk.use(1)
    assert await walk.requests() == ["45 FULFILLED", "47 OPEN"]
    await walk.check()


async def test_requests_count_from_when_they_were_made_for_as_long_as_the_window(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(maxRefills=2, requestSeconds=60, windowSeconds=100)
    await walk.use(95)
    await walk.take("wait 60")
    await walk.use(1)
    await walk.take("wait 39.999999")
    await walk.refill(2, 46)
    await walk.use(47)
    assert await walk.requests() == ["45 EXPIRED", "46 FULFILLED"]
    assert await walk.events() == ["requested 1 45", "requested 2 46", "fulfilled 2 46", "capped"]
    await walk.take("wait 0.000001")
    await walk.use(1)
    assert await walk.requests() == ["45 EXPIRED", "46 FULFILLED", "48 OPEN"]
    await walk.check()


async def test_the_cap_of_credits_leaves_room_for_less_and_then_for_nothing(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(maxCredits="60")
    await walk.use(95)
    await walk.refill(1, 45)
    await walk.use(45)
    assert await walk.requests() == ["45 FULFILLED", "15 OPEN"]
    await walk.refill(2, 15)
    await walk.use(15)
    await walk.use(1)
    # Said once, until the next request.
    assert (await walk.events())[-1] == "capped"
    assert (await walk.events()).count("capped") == 1
    await walk.set(maxCredits="70")
    assert await walk.requests() == ["45 FULFILLED", "15 FULFILLED", "10 OPEN"]
    await walk.refill(3, 10)
    await walk.use(10)
    assert (await walk.events()).count("capped") == 2
    await walk.check()


async def test_what_the_caps_are_is_said_where_they_leave_no_room(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(mode="FIXED", amount="60", maxCredits="59")
    await walk.use(95)
    event = (await events_of(gateway, walk.meter_id))[-1]
    assert event["type"] == "refill.capped"
    assert event["data"]["refill"] == {"maxRefills": 3, "maxCredits": "59", "windowSeconds": 3_600}
    # A step that is greater than the cap never fits, so that nobody need look again.
    assert (await books_of(gateway)).meter.next_due_at is None


async def test_requests_count_under_whatever_settings_they_were_made(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(maxRefills=3, windowSeconds=60, maxCredits="1000")
    for number in (1, 2, 3):
        await walk.use(95 if number == 1 else 45)
        await walk.refill(number, 45)
    gateway.clock.forward(seconds=60)
    await walk.set(windowSeconds=61)
    await walk.use(45)
    assert len(await walk.requests()) == 3
    await walk.set(windowSeconds=60)
    assert len(await walk.requests()) == 4
    await walk.check()


async def test_an_open_request_expires_at_its_own_moment_without_an_event(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(requestSeconds=60, cooldownSeconds=86_400)
    await walk.use(95)
    gateway.clock.forward(seconds=59.999999)
    assert (await walk.shown())["state"] == "REQUESTED"
    gateway.clock.forward(seconds=0.000001)
    # A read sees it, whether or not it is written.
    shown = await walk.shown()
    assert (shown["state"], shown["requestId"]) == ("IDLE", None)
    assert shown["requests"][0] == {
        "id": walk.id_of(1),
        "amount": "45",
        "state": "EXPIRED",
        "requestedAt": "2026-03-16T12:00:00Z",
        "expiresAt": "2026-03-16T12:01:00Z",
        "closedAt": "2026-03-16T12:01:00Z",
        "failure": None,
        "entry": None,
    }
    by_id = await gateway.data(f'{{ node(id: "{walk.id_of(1)}") {{ ... on AutoRefillRequest {{ {REQUEST} }} }} }}')
    assert by_id["node"] == shown["requests"][0]
    gateway.clock.forward(seconds=60)
    await walk.use(1)
    assert await walk.shown() == shown
    assert await walk.events() == ["requested 1 45"]
    await walk.check()


@pytest.mark.parametrize(
    ("settings", "moments"),
    [
        # A request that nobody answers ends after a minute, and the cool-down after another one.
        ({"cooldownSeconds": 60, "requestSeconds": 60}, (60, 120)),
        ({"cooldownSeconds": 0, "requestSeconds": 60}, (60,)),
        # The cap of one leaves room when the window has moved on.
        ({"maxRefills": 1, "windowSeconds": 100, "requestSeconds": 60}, (60, 100)),
        ({"maxCredits": "45", "windowSeconds": 100, "requestSeconds": 60}, (60, 100)),
        ({"maxRefills": 1, "windowSeconds": 100, "requestSeconds": 60, "cooldownSeconds": 70}, (60, 130)),
    ],
)
async def test_the_sweeper_asks_again_when_time_alone_makes_it_so(
    own: Gateway, settings: dict[str, Any], moments: tuple[int, ...]
) -> None:
    walk = RefillWalk(own)
    await walk.begin(**settings)
    await walk.use(95)
    for seconds in moments:
        due = NOW + timedelta(seconds=seconds)
        assert (await books_of(own)).meter.next_due_at == due
        own.clock.now = due - timedelta(microseconds=1)
        assert await sweep(own.services) == 0
        assert await walk.requests() == [f"45 {'OPEN' if seconds == moments[0] else 'EXPIRED'}"]
        own.clock.now = due
        assert await sweep(own.services) == 1
        # It looks forward, and so does not come again at once.
        assert await sweep(own.services) == 0
    assert await walk.requests() == ["45 EXPIRED", "45 OPEN"]
    await walk.check()


async def test_a_meter_that_wants_nothing_is_not_looked_at(own: Gateway) -> None:
    walk = RefillWalk(own)
    await walk.begin()
    assert (await books_of(own)).meter.next_due_at is None
    await walk.use(95)
    await walk.refill(1, 45)
    assert (await books_of(own)).meter.next_due_at is None
    own.clock.forward(days=1)
    assert await sweep(own.services) == 0


async def test_with_holds_and_grants_whatever_is_due_first_is_looked_at_first(own: Gateway) -> None:
    walk = RefillWalk(own)
    await walk.begin(requestSeconds=60, cooldownSeconds=60)
    await walk.take("use e 95; hold h 5 100s; grant a 3 110s")
    for seconds in (60, 100, 110, 120):
        assert (await books_of(own)).meter.next_due_at == NOW + timedelta(seconds=seconds)
        own.clock.now = NOW + timedelta(seconds=seconds)
        assert await sweep(own.services) == 1
    assert await walk.requests() == ["45 EXPIRED", "45 OPEN"]
    await walk.check()


# The refill under a request's id.


async def test_a_refill_under_the_requests_id_fulfils_it(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(95)
    gateway.clock.forward(seconds=5)
    answer = await walk.refill(1, 45)
    key = walk.id_of(1)
    entry = {"id": f"ent_{walk.meter_id.removeprefix('mtr_')}_3", "key": key}
    assert answer == {
        "__typename": "RefillBillingMeterSuccess",
        "replayed": False,
        "billingMeter": {"totalCredits": "145"},
        "entry": entry,
    }
    shown = await walk.shown()
    assert (shown["state"], shown["requestId"]) == ("IDLE", None)
    assert shown["requests"][0] == {
        "id": key,
        "amount": "45",
        "state": "FULFILLED",
        "requestedAt": "2026-03-16T12:00:00Z",
        "expiresAt": "2026-03-16T13:00:00Z",
        "closedAt": "2026-03-16T12:00:05Z",
        "failure": None,
        "entry": entry | {"kind": "REFILL", "amount": "45"},
    }
    assert (await events_of(gateway, walk.meter_id))[-1]["data"]["refill"] == {
        "requestId": key,
        "amount": "45",
        "requestedAt": "2026-03-16T12:00:00+00:00",
        "expiresAt": "2026-03-16T13:00:00+00:00",
        "late": False,
    }
    # Once, however often it is sent.
    async with unchanged(gateway):
        assert await walk.refill(1, 45) == answer | {"replayed": True}
        assert await walk.refill(1, 46) == {
            "__typename": "IdempotencyConflict",
            "code": "IDEMPOTENCY_CONFLICT",
            "message": f"'{key}' was used before with other values.",
            "firstEntry": {"amount": "45"},
        }
    assert await walk.events() == ["requested 1 45", "fulfilled 1 45"]
    await walk.check()


async def test_another_amount_than_was_asked_for_is_a_conflict_with_no_first_entry(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(95)
    async with unchanged(gateway):
        for amount in (44, 46):
            answer = await walk.refill(1, amount)
            assert (answer["__typename"], answer["firstEntry"]) == ("IdempotencyConflict", None)
    assert await walk.requests() == ["45 OPEN"]


@pytest.mark.parametrize("state", ["EXPIRED", "FAILED"])
async def test_a_late_refill_is_taken_and_says_so(gateway: Gateway, state: str) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(requestSeconds=60, cooldownSeconds=86_400)
    await walk.use(95)
    if state == "EXPIRED":
        gateway.clock.forward(days=40)
    else:
        await walk.fail(1)
    assert await walk.requests() == [f"45 {state}"]
    assert (await walk.refill(1, 45))["billingMeter"] == {"totalCredits": "145"}
    assert await walk.requests() == ["45 FULFILLED"]
    assert (await walk.events())[-1] == "fulfilled 1 45 late"
    shown = await walk.shown()
    assert (shown["failures"], shown["lastFailure"], shown["requests"][0]["failure"]) == (0, None, None)
    async with unchanged(gateway):
        assert (await walk.refill(1, 45))["replayed"] is True
        assert (await walk.fail(1))["__typename"] == "AutoRefillNotOpen"
    await walk.check()


async def test_of_two_requests_the_older_may_be_fulfilled_while_the_newer_is_open(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(requestSeconds=60)
    await walk.use(95)
    gateway.clock.forward(seconds=60)
    await walk.use(1)
    assert await walk.requests() == ["45 EXPIRED", "46 OPEN"]
    await walk.refill(1, 45)
    assert await walk.requests() == ["45 FULFILLED", "46 OPEN"]
    await walk.refill(2, 46)
    assert (await books_of(gateway)).meter.total_credits == 191
    await walk.check()


@pytest.mark.parametrize("number", [2, 10**17])
async def test_the_id_of_a_request_that_the_meter_never_made_is_invalid(gateway: Gateway, number: int) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(95)
    async with unchanged(gateway):
        answer = await walk.refill(number, 45)
    assert (answer["__typename"], answer["field"]) == ("InvalidInput", ["input", "idempotencyKey"])
    assert answer["message"] == "idempotencyKey is the id of a request that this meter never made."


async def test_a_request_is_of_its_own_meter(gateway: Gateway) -> None:
    walk, other, plain = (RefillWalk(gateway, name=name) for name in ("m", "n", "o"))
    for each in (walk, other):
        await each.begin()
        await each.use(95)
    await plain.take("meter 10")
    for each in (other, plain):
        values = {"refill": "45", "idempotencyKey": walk.id_of(1), **each.names}
        async with unchanged(gateway, "m", each.names["externalMeterId"]):
            answer = await gateway.mutate("refillBillingMeter", "", **values)
        assert (answer["__typename"], answer["field"]) == ("InvalidInput", ["input", "idempotencyKey"])


@pytest.mark.parametrize("key", ["arr_1", "arr_", "arr_0123456789abcdef01234567_0", "ARR_0123456789abcdef01234567_1"])
async def test_a_key_that_has_not_the_form_of_a_requests_id_is_a_key_like_any(gateway: Gateway, key: str) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    answer = await must(gateway, "refillBillingMeter", "entry { key }", refill="5", idempotencyKey=key)
    assert answer["entry"] == {"key": key}


async def test_a_refill_that_would_pass_the_greatest_amount_leaves_its_request_open(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(95)
    await must(gateway, "refillBillingMeter", refill=str(2**63 - 1 - 100))
    async with unchanged(gateway):
        assert (await walk.refill(1, 45))["__typename"] == "AmountOutOfRange"
    assert await walk.requests() == ["45 OPEN"]


# A request that fails.


async def test_a_failed_request_is_closed_once_with_its_reason(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(cooldownSeconds=60)
    await walk.use(95)
    gateway.clock.forward(seconds=5)
    answer = await walk.fail(1)
    assert (answer["replayed"], answer["autoRefill"]["failures"]) == (False, 1)
    assert answer["autoRefill"]["lastFailure"] == "card declined"
    assert answer["request"] == {
        "id": walk.id_of(1),
        "amount": "45",
        "state": "FAILED",
        "requestedAt": "2026-03-16T12:00:00Z",
        "expiresAt": "2026-03-16T13:00:00Z",
        "closedAt": "2026-03-16T12:00:05Z",
        "failure": "card declined",
        "entry": None,
    }
    gateway.clock.forward(seconds=5)
    assert await walk.fail(1, "another reason") == answer | {"replayed": True}
    assert await walk.events() == ["requested 1 45", "failed 1 45"]
    # What is sent has no reason.
    assert "declined" not in str(await events_of(gateway, walk.meter_id))
    await walk.check()


async def test_a_failed_request_no_longer_counts_until_it_is_refilled_after_all(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(maxRefills=1)
    await walk.use(95)
    await walk.fail(1)
    assert await walk.requests() == ["45 FAILED", "45 OPEN"]
    await walk.fail(2)
    await walk.refill(1, 45)
    assert await walk.requests() == ["45 FULFILLED", "45 FAILED", "45 OPEN"]
    await walk.fail(3)
    await walk.use(45)
    # The first one fills the cap of one now.
    assert await walk.requests() == ["45 FULFILLED", "45 FAILED", "45 FAILED"]
    await walk.check()


async def test_one_that_has_expired_can_still_fail(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(requestSeconds=60, maxRefills=1)
    await walk.use(95)
    gateway.clock.forward(seconds=60)
    answer = await walk.fail(1)
    assert (answer["request"]["state"], answer["replayed"]) == ("FAILED", False)
    assert answer["request"]["closedAt"] == "2026-03-16T12:01:00Z"
    assert await walk.requests() == ["45 FAILED", "45 OPEN"]


async def test_failures_in_a_row_suspend_it_until_it_is_resumed(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(maxFailures=2)
    await walk.use(95)
    await walk.fail(1)
    # One that is fulfilled begins the row anew.
    await walk.refill(2, 45)
    await walk.use(45)
    await walk.fail(3)
    assert (await walk.shown())["failures"] == 1
    answer = await walk.fail(4)
    assert (answer["autoRefill"]["state"], answer["autoRefill"]["failures"]) == ("SUSPENDED", 2)
    await walk.use(1)
    gateway.clock.forward(days=30)
    await walk.use(1)
    assert (await walk.requests())[2:] == ["45 FAILED", "45 FAILED"]
    assert (await walk.events())[-2:] == ["failed 4 45", "suspended"]
    assert (await events_of(gateway, walk.meter_id))[-1]["data"]["refill"] == {"failures": 2}
    resumed = await walk.resume()
    assert (resumed["state"], resumed["failures"], resumed["lastFailure"]) == ("REQUESTED", 0, None)
    assert (await walk.requests())[4:] == ["47 OPEN"]
    # Once more changes nothing.
    assert await walk.resume() == resumed
    await walk.fail(5)
    assert (await walk.resume())["failures"] == 1
    await walk.check()


async def test_a_late_refill_of_a_suspended_one_leaves_it_suspended(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(maxFailures=1)
    await walk.use(95)
    await walk.fail(1)
    await walk.refill(1, 45)
    shown = await walk.shown()
    assert (shown["state"], shown["failures"]) == ("SUSPENDED", 0)
    await walk.use(45)
    assert await walk.requests() == ["45 FULFILLED"]
    await walk.check()


async def test_what_was_never_asked_for_cannot_fail(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(95)
    other = await gateway.for_new_organization()
    _, of_workspace = await new_key(gateway, workspace_ids=["v"])
    for caller, number in ((gateway, 2), (other, 1), (of_workspace, 1)):
        async with unchanged(gateway):
            answer = await caller.mutate("failAutoRefill", "", requestId=walk.id_of(number), reason="x")
        assert (answer["__typename"], answer["code"]) == ("AutoRefillNotFound", "AUTO_REFILL_NOT_FOUND")
    for id_ in ("", "arr_1", walk.meter_id, f"{walk.id_of(1)}0000000000000000000"):
        answer = await gateway.mutate("failAutoRefill", "", requestId=id_, reason="x")
        assert answer["__typename"] == "AutoRefillNotFound"
    await make_meter(gateway, "plain")
    answer = await gateway.mutate("resumeAutoRefill", "", workspaceId="w", externalMeterId="plain")
    assert answer["__typename"] == "AutoRefillNotFound"


@pytest.mark.parametrize("reason", ["", " ", "x" * 501, "a\x00"])
async def test_a_failure_has_a_reason(gateway: Gateway, reason: str) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(95)
    answer = await walk.fail(1, reason)
    assert (answer["__typename"], answer["field"]) == ("InvalidInput", ["input", "reason"])
    assert await walk.requests() == ["45 OPEN"]


# Setting it.


@pytest.mark.parametrize("field", ["mode", "below", "amount", "maxRefills", "maxCredits", "windowSeconds"])
async def test_the_first_one_says_all_that_has_no_default(gateway: Gateway, field: str) -> None:
    await make_meter(gateway)
    values = {name: value for name, value in SETTINGS.items() if name != field}
    async with unchanged(gateway):
        answer = await gateway.mutate("setAutoRefill", "", workspaceId="w", externalMeterId="m", **values)
    assert (answer["__typename"], answer["field"]) == ("InvalidInput", ["input", field])
    assert answer["message"] == f"{field} must be given where the meter has no automatic refill yet."
    answer = await gateway.mutate("setAutoRefill", "", workspaceId="w", externalMeterId="m", isEnabled=False)
    assert answer["field"] == ["input", "mode"]


BAD = [
    *[("maxRefills", value) for value in (0, 101, -1)],
    *[("windowSeconds", value) for value in (0, 59, 2_678_401)],
    *[("cooldownSeconds", value) for value in (-1, 86_401)],
    *[("requestSeconds", value) for value in (0, 59, 43_201)],
    *[("maxFailures", value) for value in (0, 101)],
    *[(field, "0") for field in ("amount", "maxCredits")],
    *[(field, None) for field in [*SETTINGS, "isEnabled", "requestSeconds", "maxFailures"]],
    # A target that does not reach the line would ask again and again.
    ("amount", "9"),
]


@pytest.mark.parametrize(("field", "value"), BAD)
async def test_what_is_out_of_range_or_null_is_refused(gateway: Gateway, field: str, value: Any) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    before = await walk.shown()
    async with unchanged(gateway):
        answer = await gateway.mutate("setAutoRefill", "", **walk.names, **{field: value})
    assert (answer["__typename"], answer["field"]) == ("InvalidInput", ["input", field])
    assert await walk.shown() == before


GOOD = [
    *[("maxRefills", value) for value in (1, 100)],
    *[("windowSeconds", value) for value in (60, 2_678_400)],
    *[("cooldownSeconds", value) for value in (0, 86_400)],
    *[("requestSeconds", value) for value in (60, 43_200)],
    *[("maxFailures", value) for value in (1, 100)],
    *[("amount", value) for value in ("10", str(2**63 - 1))],
    *[("below", value) for value in ("0", "50")],
    *[("maxCredits", value) for value in ("1", str(2**63 - 1))],
    *[("mode", value) for value in ("TARGET", "FIXED")],
    *[("isEnabled", value) for value in (True, False)],
]


@pytest.mark.parametrize(("field", "value"), GOOD)
async def test_what_is_given_is_changed_alone(gateway: Gateway, field: str, value: Any) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    before = await walk.shown()
    assert (await walk.set(**{field: value}))[field] == value
    assert await walk.shown() == before | {field: value}
    await walk.check()


async def test_a_target_is_at_least_the_line_whichever_is_changed(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(mode="FIXED", amount="5")
    for values in ({"mode": "TARGET"}, {"mode": "TARGET", "amount": "9"}):
        answer = await gateway.mutate("setAutoRefill", "", **walk.names, **values)
        assert (answer["__typename"], answer["field"]) == ("InvalidInput", ["input", "amount"])
        assert answer["message"] == "amount must be at least below, 10, as it is a target."
    assert (await walk.shown())["mode"] == "FIXED"
    await walk.set(mode="TARGET", amount="10")


async def test_it_takes_billing_write(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await walk.use(95)
    others = await gateway.caller(Scope.BILLING_READ, Scope.USAGE_WRITE, Scope.USAGE_CORRECT)
    names = walk.names
    requests: list[tuple[str, dict[str, Any]]] = [
        ("setAutoRefill", names | {"isEnabled": False}),
        ("resumeAutoRefill", names),
        ("failAutoRefill", {"requestId": walk.id_of(1), "reason": "x"}),
    ]
    for field, values in requests:
        type_ = f"{field[0].upper()}{field[1:]}Input"
        query = f"mutation ($input: {type_}!) {{ {field}(input: $input) {{ __typename }} }}"
        error = await others.error(query, {"input": values})
        assert error["extensions"]["code"] == "FORBIDDEN"
    assert await walk.requests() == ["45 OPEN"]
    # And that alone: the answer has the automatic refill itself.
    writer = await gateway.caller(Scope.BILLING_WRITE)
    answer = await must(writer, "setAutoRefill", f"autoRefill {{ {REFILL} }}", isEnabled=False)
    assert (answer["autoRefill"]["isEnabled"], answer["autoRefill"]["requestedAmount"]) == (False, "45")
    query = '{ billingMeter(workspaceId: "w", externalMeterId: "m") { autoRefill { state } } }'
    assert (await writer.error(query))["extensions"]["code"] == "FORBIDDEN"


async def test_a_customers_session_sees_its_meters_refill_without_failures(gateway: Gateway) -> None:
    customer = await make_customer(gateway)
    walk = RefillWalk(gateway)
    walk.meter_id = await make_meter(gateway, totalCredits="100", customerId=customer)
    await walk.set(**SETTINGS, maxFailures=1)
    await walk.use(95)
    await walk.fail(1)
    shown = await walk.shown()
    assert (shown["failures"], shown["lastFailure"]) == (1, "card declined")
    seen = RefillWalk(gateway)
    session = await session_of(gateway, customer)
    query = f"""{{ billingMeter(workspaceId: "w", externalMeterId: "m") {{
      autoRefill {{ {REFILL} requests(last: 100) {{ nodes {{ {REQUEST} }} }} }} }} }}"""
    of_customer = (await session.data(query))["billingMeter"]["autoRefill"]
    of_customer["requests"] = of_customer["requests"]["nodes"]
    assert of_customer == shown | {
        "failures": 0,
        "lastFailure": None,
        "requests": [shown["requests"][0] | {"failure": None}],
    }
    node = f'{{ node(id: "{walk.id_of(1)}") {{ ... on AutoRefillRequest {{ {REQUEST} }} }} }}'
    assert (await session.data(node))["node"] == of_customer["requests"][0]
    # Not those of others.
    seen.meter_id = await make_meter(gateway, "other", totalCredits="5")
    await must(gateway, "setAutoRefill", externalMeterId="other", **SETTINGS)
    node = f'{{ node(id: "{seen.id_of(1)}") {{ id }} }}'
    assert (await gateway.data(node))["node"] == {"id": seen.id_of(1)}
    assert (await session.data(node))["node"] is None


async def test_the_requests_are_listed_newest_first_in_pages(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(maxRefills=100, maxCredits="10000", maxFailures=100)
    await walk.use(95)
    for number in range(1, 5):
        await walk.fail(number)
    query = """query ($first: Int, $after: String, $last: Int, $before: String) {
      billingMeter(workspaceId: "w", externalMeterId: "m") { autoRefill {
        requests(first: $first, after: $after, last: $last, before: $before) {
          nodes { id billingMeter { id } } edges { cursor } pageInfo { hasNextPage hasPreviousPage }
        }
      } }
    }"""

    async def page(**values: Any) -> tuple[list[str], list[str], dict[str, bool]]:
        shown = (await gateway.data(query, values))["billingMeter"]["autoRefill"]["requests"]
        assert {node["billingMeter"]["id"] for node in shown["nodes"]} == {walk.meter_id}
        return [node["id"] for node in shown["nodes"]], [e["cursor"] for e in shown["edges"]], shown["pageInfo"]

    first, cursors, info = await page(first=2)
    assert first == [walk.id_of(5), walk.id_of(4)]
    assert info == {"hasNextPage": True, "hasPreviousPage": False}
    assert (await page(first=3, after=cursors[-1]))[0] == [walk.id_of(3), walk.id_of(2), walk.id_of(1)]
    assert (await page(last=2))[0] == [walk.id_of(2), walk.id_of(1)]
    assert (await page(last=1, before=cursors[-1]))[0] == [walk.id_of(5)]


async def test_a_meter_without_one_shows_none(gateway: Gateway) -> None:
    await make_meter(gateway)
    query = '{ billingMeter(workspaceId: "w", externalMeterId: "m") { autoRefill { state } } }'
    assert (await gateway.data(query))["billingMeter"] == {"autoRefill": None}


# Clocks.


@pytest.mark.slow
async def test_the_time_of_requests_never_runs_backwards(own: Gateway) -> None:
    walk = RefillWalk(own)
    await walk.begin(maxRefills=2, windowSeconds=60, requestSeconds=60)
    await walk.use(85)
    async with gateway_on(own.services.settings.database_url) as ahead:
        ahead.org_id, ahead.key = own.org_id, own.key
        ahead.clock.now = NOW + timedelta(hours=1)
        # The one whose clock is an hour ahead sets the line higher, which has no entry.
        await RefillWalk(ahead).set(below="20")
    await walk.refill(1, 35)
    await walk.use(45)
    await walk.refill(2, 45)
    shown = (await walk.shown())["requests"]
    assert [request["requestedAt"] for request in shown] == ["2026-03-16T13:00:00Z"] * 2
    # So of the cap of two nothing is left until both have left the window.
    await walk.use(40)
    own.clock.now = NOW + timedelta(hours=1, seconds=59)
    await walk.use(1)
    assert len(await walk.requests()) == 2
    own.clock.forward(seconds=1)
    await walk.use(1)
    assert len(await walk.requests()) == 3
    await walk.check()
