"""Alerts: what triggers and recovers, what does not, and how rules are made, changed and deleted."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from resolvers.actor import Scope
from resolvers.meters.refill import Refill
from storage.meters.ledger import OverLimitPolicy
from tests.alerting import ALERT, alert_events, delete_alert, lines, make_alert, make_workspace_alert, states
from tests.conftest import Gateway
from tests.credit_walks import Walk
from tests.steps import books_of, make_customer, make_meter, must, new_key, session_of, unchanged, usage_event

if TYPE_CHECKING:
    from resolvers.rules.commands import Command

# Each kind: what is there before the alert, the alert, what happens then, and the events.

REMAINING, AVAILABLE, OVERAGE = "REMAINING_BELOW", "AVAILABLE_BELOW", "OVERAGE_ABOVE"

CROSSINGS = [
    # Below is less than.
    ("meter 20", f"{REMAINING} 10", "use a 10", []),
    ("meter 20", f"{REMAINING} 10", "use a 10; use b 1", ["triggered at 3: REMAINING_BELOW 10 v1"]),
    (
        "meter 20",
        f"{REMAINING} 10",
        "use a 11; use b 1; refill 3; use c 1; use d 1",
        ["triggered at 2", "recovered at 4", "triggered at 6"],
    ),
    # A void, a grant and its revocation count; holds and the limit do not.
    ("meter 20", f"{REMAINING} 10", "use a 11; void a 1; void a 1", ["triggered at 2", "recovered at 3"]),
    ("meter 20", f"{REMAINING} 10", "hold h 15; release h; hold g 15; commit g 12", ["triggered at 5"]),
    ("meter 5", f"{REMAINING} 10", "grant g 10; revoke g 6", ["recovered at 2", "triggered at 3"]),
    ("meter 5 overages", f"{REMAINING} 0", "use a 5; use b 1", ["triggered at 3"]),
    # A refusal and a replay are none.
    ("meter 20; use a 11", f"{REMAINING} 10", "use b 10; use a 11; use c 0", []),
    # Holds count for what is available, and so does the cap.
    ("meter 20", f"{AVAILABLE} 10", "hold h 11; release h", ["triggered at 2", "recovered at 3"]),
    (
        "meter 20 overages cap 5",
        f"{AVAILABLE} 10",
        "use a 16; cap 20; cap 1",
        ["triggered at 2", "recovered at 3", "triggered at 4"],
    ),
    (
        "meter 20 overages",
        f"{AVAILABLE} 10",
        "use a 30; overages off; overages on",
        ["triggered at 3", "recovered at 4"],
    ),
    ("meter 20 overages", f"{AVAILABLE} 1", "use a 90", []),
    # Above is more than.
    ("meter 10 overages", f"{OVERAGE} 0", "use a 10; use b 1; refill 1", ["triggered at 3", "recovered at 4"]),
    ("meter 10 overages", f"{OVERAGE} 5", "use a 15; use b 1; void b", ["triggered at 3", "recovered at 4"]),
    # An expiry at its own moment, though another command books it; and not between it and what it causes.
    ("meter 5; grant g 10 60s", f"{REMAINING} 6", "wait 60; use a 1", ["triggered at 3"]),
    ("meter 0; grant g 10 60s; use a 10; wait 61", f"{REMAINING} 5", "void a", []),
    ("meter 9; grant g 10 60s; hold h 10 60s", f"{AVAILABLE} 5", "wait 60; refill 1", []),
    ("meter 9; grant g 10 60s; hold h 10 60s", f"{AVAILABLE} 9", "wait 60; use a 1", ["triggered at 6"]),
]


async def after_alert(gateway: Gateway, before: str, alert: str, then: str, **values: Any) -> list[str]:
    walk = Walk(gateway)
    await walk.take(before)
    kind, threshold = alert.split()
    await make_alert(gateway, kind, int(threshold), **values)
    await walk.take(then)
    await walk.check()
    return await lines(gateway, walk.meter_id)


@pytest.mark.parametrize(("before", "alert", "then", "expected"), CROSSINGS)
async def test_a_threshold_that_is_crossed_is_an_event(
    gateway: Gateway, before: str, alert: str, then: str, expected: list[str]
) -> None:
    found = await after_alert(gateway, before, alert, then)
    assert [line[: len(begin)] for line, begin in zip(found, expected, strict=True)] == expected
    assert all(line.endswith(f": {alert} v1") for line in found)


DAY = "DAY_USAGE_ABOVE"


async def test_each_day_is_watched_for_itself(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="100", timezone="Pacific/Kiritimati")
    await must(gateway, "recordUsage", eventId="before", amount="10")
    await make_alert(gateway, DAY, 10)
    await must(gateway, "recordUsage", eventId="a", amount="1", usageName="x")
    # Midnight does nothing, and the next day begins with nothing.
    gateway.clock.forward(days=1)
    await must(gateway, "recordUsage", eventId="b", amount="10")
    assert await lines(gateway, meter_id) == ["triggered at 3: DAY_USAGE_ABOVE 10 v1 on 2026-03-17"]
    # What is back-filled, and what is voided, is of the event's day.
    back = (gateway.clock.now - timedelta(days=5)).isoformat()
    await must(gateway, "recordUsage", eventId="c", amount="11", occurredAt=back)
    await must(gateway, "voidUsage", eventId="a", reason="r", idempotencyKey="v1")
    await must(gateway, "recordUsage", eventId="d", amount="1")
    await must(gateway, "voidUsage", eventId="c", amount="1", reason="r", idempotencyKey="v2")
    assert (await lines(gateway, meter_id))[1:] == [
        "triggered at 5: DAY_USAGE_ABOVE 10 v1 on 2026-03-13",
        "recovered at 6: DAY_USAGE_ABOVE 10 v1 on 2026-03-17",
        "triggered at 7: DAY_USAGE_ABOVE 10 v1 on 2026-03-18",
        "recovered at 8: DAY_USAGE_ABOVE 10 v1 on 2026-03-13",
    ]


async def test_one_usage_name_may_be_watched_beside_all(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="100")
    await make_alert(gateway, DAY, 5, usageName="x")
    for number, name in enumerate(["y", "x", "x"]):
        await must(gateway, "recordUsage", eventId=f"{number}", amount="5", usageName=name)
    assert await lines(gateway, meter_id) == ["triggered at 4: DAY_USAGE_ABOVE 5 x v1 on 2026-03-16"]
    await make_alert(gateway, DAY, 15)
    await must(gateway, "recordUsage", eventId="z", amount="1", usageName="z")
    assert (await lines(gateway, meter_id))[1:] == ["triggered at 5: DAY_USAGE_ABOVE 15 v1 on 2026-03-16"]


async def test_down_up_and_down_in_one_group_are_three_events(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    await make_alert(gateway, REMAINING, 5)
    await make_alert(gateway, DAY, 6)
    name = usage_event(gateway).meter
    refill = Refill(name, 10, "r", "key_test")
    forced = {"policy": OverLimitPolicy.FORCE}
    commands: list[Command] = [
        usage_event(gateway, "a", 6),
        refill,
        usage_event(gateway, "b", 10, **forced),
        usage_event(gateway, "a", 6),
    ]
    await gateway.services.meter_writer.submit(commands)
    assert await lines(gateway, meter_id) == [
        "triggered at 2: REMAINING_BELOW 5 v1",
        "recovered at 3: REMAINING_BELOW 5 v1",
        "triggered at 4: REMAINING_BELOW 5 v1",
        "triggered at 4: DAY_USAGE_ABOVE 6 v1 on 2026-03-16",
    ]
    books = await books_of(gateway)
    assert (books.meter.has_alerts, books.meter.last_event) == (True, 5)


async def test_an_event_has_the_meter_as_its_entry_leaves_it(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    alert_id = await make_alert(gateway, REMAINING, 5, name="low")
    await gateway.services.meter_writer.submit([usage_event(gateway, "a", 6), usage_event(gateway, "b", 3)])
    (event,) = await alert_events(gateway, meter_id)
    assert event.payload == (
        '{"type":"alert.triggered","timestamp":"2026-03-16T12:00:00+00:00","data":{"billingMeter":{"id":"'
        + meter_id
        + '","workspaceId":"w","externalMeterId":"m","customerId":null,"totalCredits":"10","usedCredits":"6",'
        '"heldCredits":"0","availableCredits":"4"},"number":"2","seq":"2","alert":{"id":"'
        + alert_id
        + '","version":1,"kind":"REMAINING_BELOW","threshold":"5","usageName":null,"name":"low"}}}'
    )


# Making, changing and deleting.


async def test_an_alert_is_made_changed_listed_and_deleted(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    made = await must(gateway, "createAlert", ALERT, kind=REMAINING, threshold="5", name="low")
    alert = made["alert"]
    assert alert == {
        "id": alert["id"],
        "workspaceId": "w",
        "externalMeterId": "m",
        "kind": REMAINING,
        "threshold": "5",
        "usageName": None,
        "name": "low",
        "version": 1,
        "createdAt": "2026-03-16T12:00:00Z",
    }
    by_id = "query ($id: ID!) { node(id: $id) { id ... on Alert { threshold } } }"
    assert (await gateway.data(by_id, {"id": alert["id"]}))["node"] == {"id": alert["id"], "threshold": "5"}
    changed = await gateway.mutate(
        "updateAlert", f"... on UpdateAlertSuccess {{ {ALERT} }}", id=alert["id"], threshold="8", name=None
    )
    assert changed["alert"] == alert | {"threshold": "8", "name": None, "version": 2}
    # A name alone is the same version.
    renamed = await gateway.mutate("updateAlert", f"... on UpdateAlertSuccess {{ {ALERT} }}", id=alert["id"], name="n")
    assert renamed["alert"] == alert | {"threshold": "8", "name": "n", "version": 2}
    listing = "query ($w: String) { alerts(workspaceId: $w) { nodes { id version } } }"
    for workspace_id, expected in (
        ("w", [{"id": alert["id"], "version": 2}]),
        (None, [{"id": alert["id"], "version": 2}]),
        ("x", []),
    ):
        variables = {} if workspace_id is None else {"w": workspace_id}
        assert (await gateway.data(listing, variables))["alerts"]["nodes"] == expected
    assert await delete_alert(gateway, alert["id"]) == {"__typename": "DeleteAlertSuccess", "deletedId": alert["id"]}
    assert (await delete_alert(gateway, alert["id"]))["code"] == "ALERT_NOT_FOUND"
    assert (await gateway.mutate("updateAlert", "", id=alert["id"], threshold="1"))["code"] == "ALERT_NOT_FOUND"
    assert (await gateway.data(by_id, {"id": alert["id"]}))["node"] is None
    assert (await gateway.data(listing))["alerts"]["nodes"] == []
    await must(gateway, "recordUsage", eventId="a", amount="10")
    assert await lines(gateway, meter_id) == []


async def test_another_threshold_is_taken_on_silently_from_then_on(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    alert_id = await make_alert(gateway, REMAINING, 5)
    await must(gateway, "recordUsage", eventId="a", amount="2")
    await gateway.mutate("updateAlert", "", id=alert_id, threshold="9")
    await must(gateway, "recordUsage", eventId="b", amount="5")
    assert await lines(gateway, meter_id) == []
    await must(gateway, "refillBillingMeter", refill="6")
    await must(gateway, "recordUsage", eventId="c", amount="1")
    assert await lines(gateway, meter_id) == [
        "recovered at 4: REMAINING_BELOW 9 v2",
        "triggered at 5: REMAINING_BELOW 9 v2",
    ]
    await gateway.mutate("updateAlert", "", id=alert_id, threshold="8")
    await delete_alert(gateway, alert_id)
    await must(gateway, "recordUsage", eventId="d", amount="5")
    assert len(await lines(gateway, meter_id)) == 2


async def test_what_is_past_already_triggers_where_that_is_asked_for(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    await must(gateway, "recordUsage", eventId="a", amount="7")
    for kind, threshold, is_past in (
        (REMAINING, 5, True),
        (REMAINING, 3, False),
        (AVAILABLE, 4, True),
        (OVERAGE, 0, False),
        (DAY, 6, True),
    ):
        before = len(await lines(gateway, meter_id))
        await make_alert(gateway, kind, threshold, triggerIfPast=True)
        day = " on 2026-03-16" if kind == DAY else ""
        expected = [f"triggered at 2: {kind} {threshold} v1{day}"] if is_past else []
        assert (await lines(gateway, meter_id))[before:] == expected
    await must(gateway, "refillBillingMeter", refill="10")
    assert (await lines(gateway, meter_id))[3:] == [
        "recovered at 3: REMAINING_BELOW 5 v1",
        "recovered at 3: AVAILABLE_BELOW 4 v1",
    ]


async def test_a_change_triggers_at_once_where_that_is_asked_for(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    alert_id = await make_alert(gateway, REMAINING, 5)
    await gateway.mutate("updateAlert", "", id=alert_id, threshold="11", triggerIfPast=True)
    await gateway.mutate("updateAlert", "", id=alert_id, threshold="11", triggerIfPast=True)
    assert await lines(gateway, meter_id) == ["triggered at 1: REMAINING_BELOW 11 v2"]


async def test_the_state_of_an_alert_is_that_of_the_meter_as_it_is(gateway: Gateway) -> None:
    walk = Walk(gateway)
    await walk.take("meter 10; grant g 10 60s; use a 3")
    await make_alert(gateway, REMAINING, 8)
    await make_alert(gateway, DAY, 2)
    await make_alert(gateway, "GRANT_EXPIRES_WITHIN", 30)
    await make_workspace_alert(gateway, OVERAGE, 0)
    assert await states(gateway) == [
        "REMAINING_BELOW 8 ARMED",
        "DAY_USAGE_ABOVE 2 TRIGGERED",
        "GRANT_EXPIRES_WITHIN 30 ARMED",
        "OVERAGE_ABOVE 0 ARMED",
    ]
    gateway.clock.forward(seconds=30)
    assert (await states(gateway))[2] == "GRANT_EXPIRES_WITHIN 30 TRIGGERED"
    # It has ended, which nobody has written yet.
    gateway.clock.forward(seconds=30)
    assert (await states(gateway))[2] == "GRANT_EXPIRES_WITHIN 30 ARMED"
    assert (await states(gateway))[0] == "REMAINING_BELOW 8 ARMED"
    await walk.take("use b 9")
    assert await states(gateway) == [
        "REMAINING_BELOW 8 TRIGGERED before",
        "DAY_USAGE_ABOVE 2 TRIGGERED",
        "GRANT_EXPIRES_WITHIN 30 ARMED before",
        "OVERAGE_ABOVE 0 ARMED",
    ]
    gateway.clock.forward(days=1)
    assert (await states(gateway))[1] == "DAY_USAGE_ABOVE 2 ARMED"


async def test_a_request_under_a_key_is_replayed(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    values: dict[str, Any] = {"kind": REMAINING, "threshold": "5", "idempotencyKey": "k"}
    selection = f"replayed {ALERT}"
    first = await must(gateway, "createAlert", selection, **values)
    again = await must(gateway, "createAlert", selection, **values)
    assert (first["replayed"], again["replayed"], again["alert"]) == (False, True, first["alert"])
    other = await gateway.mutate("createAlert", "", workspaceId="w", externalMeterId="m", **values | {"threshold": "6"})
    assert other["code"] == "IDEMPOTENCY_CONFLICT"
    of_workspace = await gateway.mutate("createAlert", "", workspaceId="w", **values)
    assert of_workspace["code"] == "IDEMPOTENCY_CONFLICT"
    assert len(await states(gateway)) == 1
    values["idempotencyKey"] = "of the workspace"
    selection = f"... on CreateAlertSuccess {{ replayed {ALERT} }}"
    first = await gateway.mutate("createAlert", selection, workspaceId="w", **values)
    again = await gateway.mutate("createAlert", selection, workspaceId="w", **values)
    assert (first["replayed"], again["replayed"], again["alert"]) == (False, True, first["alert"])
    assert len(await states(gateway)) == 2


@pytest.mark.parametrize(
    ("values", "field", "rule"),
    [
        (
            {"externalMeterId": None},
            "externalMeterId",
            "must not be null; leave it out for each meter of the workspace.",
        ),
        ({"externalMeterId": ""}, "externalMeterId", "must have 1 to 256 characters; it has 0."),
        ({"usageName": "x"}, "usageName", "must be left out, but for DAY_USAGE_ABOVE."),
        ({"kind": DAY, "usageName": None}, "usageName", "must not be null; leave it out for all names together."),
        ({"kind": DAY, "usageName": "x" * 129}, "usageName", "must have 1 to 128 characters; it has 129."),
        (
            {"kind": AVAILABLE, "threshold": "0"},
            "threshold",
            "must be greater than 0 for AVAILABLE_BELOW: fewer are never available.",
        ),
        (
            {"kind": "GRANT_EXPIRES_WITHIN", "threshold": "0"},
            "threshold",
            "must be 1 to 31622400 seconds for GRANT_EXPIRES_WITHIN.",
        ),
        (
            {"kind": "GRANT_EXPIRES_WITHIN", "threshold": "31622401"},
            "threshold",
            "must be 1 to 31622400 seconds for GRANT_EXPIRES_WITHIN.",
        ),
        ({"name": ""}, "name", "must have 1 to 256 characters; it has 0."),
        ({"idempotencyKey": ""}, "idempotencyKey", "must have 1 to 255 characters; it has 0."),
    ],
)
async def test_what_is_no_alert_is_refused(gateway: Gateway, values: dict[str, Any], field: str, rule: str) -> None:
    await make_meter(gateway, totalCredits="10")
    given = {"workspaceId": "w", "externalMeterId": "m", "kind": REMAINING, "threshold": "5"} | values
    async with unchanged(gateway):
        answer = await gateway.mutate("createAlert", "", **given)
    assert (answer["code"], answer["message"], answer["field"]) == (
        "INVALID_INPUT",
        f"{field} {rule}",
        ["input", field],
    )
    assert await states(gateway) == []


async def test_what_is_no_change_of_an_alert_is_refused(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    of_meter = await make_alert(gateway, AVAILABLE, 5)
    of_workspace = await make_workspace_alert(gateway, REMAINING, 5)
    for values, message in (
        ({"id": of_meter, "threshold": None}, "threshold must not be null; leave it out to keep it."),
        (
            {"id": of_meter, "threshold": "0"},
            "threshold must be greater than 0 for AVAILABLE_BELOW: fewer are never available.",
        ),
        ({"id": of_meter, "name": ""}, "name must have 1 to 256 characters; it has 0."),
        ({"id": of_workspace, "triggerIfPast": True}, "triggerIfPast must not be true for an alert of a workspace."),
    ):
        assert (await gateway.mutate("updateAlert", "", **values))["message"] == message
    answer = await gateway.mutate("createAlert", "", workspaceId="w", kind=REMAINING, threshold="1", triggerIfPast=True)
    assert answer["message"] == "triggerIfPast must not be true without an externalMeterId."
    assert await states(gateway) == ["AVAILABLE_BELOW 5 ARMED", "REMAINING_BELOW 5 ARMED"]


async def test_an_alert_of_an_unknown_meter_is_refused(gateway: Gateway) -> None:
    answer = await gateway.mutate(
        "createAlert", "", workspaceId="w", externalMeterId="m", kind=REMAINING, threshold="5"
    )
    assert answer["code"] == "BILLING_METER_NOT_FOUND"
    assert (await gateway.data("{ alerts { nodes { id } } }"))["alerts"]["nodes"] == []


@pytest.mark.slow
async def test_a_meter_and_a_workspace_may_have_25_alerts_each(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    of_meter = [await make_alert(gateway, REMAINING, number) for number in range(25)]
    of_workspace = [await make_workspace_alert(gateway, REMAINING, number) for number in range(25)]
    values = {"workspaceId": "w", "kind": REMAINING, "threshold": "5"}
    for given, made in (({"externalMeterId": "m"}, of_meter), ({}, of_workspace)):
        answer = await gateway.mutate("createAlert", "... on TooManyAlerts { max }", **values, **given)
        assert (answer["code"], answer["max"]) == ("TOO_MANY_ALERTS", 25)
        await delete_alert(gateway, made[0])
        assert (await gateway.mutate("createAlert", "", **values, **given))["__typename"] == "CreateAlertSuccess"
    assert len(await states(gateway)) == 50


# Who may.


async def test_alerts_need_their_scopes(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    alert_id = await make_alert(gateway, REMAINING, 5)
    writing = await gateway.caller(Scope.BILLING_WRITE)
    reading = await gateway.caller(Scope.BILLING_READ)
    create = 'mutation { createAlert(input: {workspaceId: "w", kind: REMAINING_BELOW, threshold: 1}) { __typename } }'
    change = f'mutation {{ updateAlert(input: {{id: "{alert_id}", threshold: 1}}) {{ __typename }} }}'
    remove = f'mutation {{ deleteAlert(input: {{id: "{alert_id}"}}) {{ __typename }} }}'
    read = "{ alerts { nodes { id } } }"
    for mutation in (create, change, remove):
        assert (await reading.error(mutation))["message"] == "The key lacks the scope billing:write."
    assert (await writing.error(read))["message"] == "The key lacks the scope billing:read."
    assert len((await reading.data(read))["alerts"]["nodes"]) == 1
    assert (await writing.data(change))["updateAlert"]["__typename"] == "UpdateAlertSuccess"


async def test_a_key_for_other_workspaces_has_no_such_alerts(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    alert_id = await make_alert(gateway, REMAINING, 5)
    _, other = await new_key(gateway, workspace_ids=["x"])
    _, own = await new_key(gateway, workspace_ids=["w", "x"])
    stranger = await gateway.for_new_organization()
    by_id = "query ($id: ID!) { node(id: $id) { id } }"
    for caller in (other, stranger):
        assert (await caller.mutate("updateAlert", "", id=alert_id, threshold="1"))["code"] == "ALERT_NOT_FOUND"
        assert (await delete_alert(caller, alert_id))["code"] == "ALERT_NOT_FOUND"
        assert (await caller.data(by_id, {"id": alert_id}))["node"] is None
        assert (await caller.data("{ alerts { nodes { id } } }"))["alerts"]["nodes"] == []
    error = await other.error('{ alerts(workspaceId: "w") { nodes { id } } }')
    assert error["message"] == "The key is limited to other workspaces than 'w'."
    error = await other.error(
        'mutation { createAlert(input: {workspaceId: "w", kind: OVERAGE_ABOVE, threshold: 1}) { __typename } }'
    )
    assert error["message"] == "The key is limited to other workspaces than 'w'."
    assert (await own.data(by_id, {"id": alert_id}))["node"] == {"id": alert_id}
    assert len((await own.data("{ alerts { nodes { id } } }"))["alerts"]["nodes"]) == 1


async def test_a_customers_session_sees_no_alerts(gateway: Gateway) -> None:
    customer_id = await make_customer(gateway)
    meter_id = await make_meter(gateway, totalCredits="10", customerId=customer_id)
    alert_id = await make_alert(gateway, REMAINING, 5)
    session = await session_of(gateway, customer_id)
    for query in (
        "{ alerts { nodes { id } } }",
        f'{{ node(id: "{alert_id}") {{ id }} }}',
        f'{{ node(id: "{meter_id}") {{ ... on BillingMeter {{ alerts {{ state }} }} }} }}',
    ):
        error = await session.error(query)
        assert (error["extensions"]["code"], error["message"]) == ("FORBIDDEN", "A customer's session may not do this.")
