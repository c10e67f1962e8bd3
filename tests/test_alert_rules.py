"""Alerts of workspaces, which meters take on, and those of grants that come near their ends."""

import pytest

from gateway.workers.alerts import follow
from gateway.workers.sweeper import sweep
from storage import alerts
from tests.alerting import alert_events, delete_alert, lines, make_alert, make_workspace_alert, states
from tests.conftest import Gateway, gateway_on
from tests.credit_walks import Walk
from tests.steps import books_of, make_meter, must

REMAINING, NEAR = "REMAINING_BELOW", "GRANT_EXPIRES_WITHIN"

# Workspaces.


async def test_each_meter_of_a_workspace_takes_its_alerts_on_with_its_next_entry(gateway: Gateway) -> None:
    old = await make_meter(gateway, "old", totalCredits="10")
    await make_workspace_alert(gateway, REMAINING, 5)
    new = await make_meter(gateway, "new", totalCredits="3")
    other = await make_meter(gateway, "other", workspaceId="x", totalCredits="10")
    assert (await books_of(gateway, "old")).meter.has_alerts is False
    for name in ("old", "new"):
        assert await states(gateway, name) == [f"REMAINING_BELOW 5 {'ARMED' if name == 'old' else 'TRIGGERED'}"]
        # A refusal, and what changes nothing, takes nothing on.
        assert (
            await gateway.mutate("recordUsage", "", workspaceId="w", externalMeterId=name, eventId="r", amount="90")
        )["code"] == "INSUFFICIENT_CREDITS"
        assert (await books_of(gateway, name)).meter.has_alerts is False
        # The first entry is the first that may cross.
        await must(gateway, "recordUsage", externalMeterId=name, eventId="a", amount="3")
        await must(gateway, "refillBillingMeter", externalMeterId=name, refill="9")
        await must(gateway, "recordUsage", externalMeterId=name, eventId="b", amount="8")
        assert (await books_of(gateway, name)).meter.has_alerts is True
    await must(gateway, "recordUsage", workspaceId="x", externalMeterId="other", eventId="a", amount="9")
    assert await lines(gateway, old) == []
    assert await lines(gateway, new) == ["recovered at 3: REMAINING_BELOW 5 v1", "triggered at 4: REMAINING_BELOW 5 v1"]
    assert await lines(gateway, other) == []


async def test_an_alert_that_another_gateway_makes_is_known_when_it_is_read(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    async with gateway_on(gateway.services.settings.database_url) as elsewhere:
        elsewhere.org_id, elsewhere.key = gateway.org_id, gateway.key
        await make_workspace_alert(elsewhere, REMAINING, 8)
        await must(gateway, "recordUsage", eventId="a", amount="3")
        assert (await books_of(gateway)).meter.has_alerts is False
        await follow(gateway.services)
        await must(gateway, "recordUsage", eventId="b", amount="1")
        await must(gateway, "refillBillingMeter", refill="3")
        assert await lines(gateway, meter_id) == ["recovered at 4: REMAINING_BELOW 8 v1"]
        # A gateway that has never heard of it keeps it: the meter has it.
        await must(elsewhere, "recordUsage", eventId="c", amount="3")
    assert (await lines(gateway, meter_id))[1:] == ["triggered at 5: REMAINING_BELOW 8 v1"]


async def test_a_change_and_a_deletion_elsewhere_hold_from_the_next_entry_on(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    alert_id = await make_workspace_alert(gateway, REMAINING, 8)
    await must(gateway, "recordUsage", eventId="a", amount="1")
    async with gateway_on(gateway.services.settings.database_url) as elsewhere:
        elsewhere.org_id, elsewhere.key = gateway.org_id, gateway.key
        await elsewhere.mutate("updateAlert", "", id=alert_id, threshold="6", name="six")
        await must(gateway, "recordUsage", eventId="b", amount="2")
        await must(gateway, "recordUsage", eventId="c", amount="2")
        assert await lines(gateway, meter_id) == ["triggered at 4: REMAINING_BELOW 6 v2"]
        await delete_alert(elsewhere, alert_id)
        await must(gateway, "refillBillingMeter", refill="9")
    assert len(await lines(gateway, meter_id)) == 1
    assert await states(gateway) == []
    # One that is deleted is forgotten where a meter would take it on.
    await make_meter(gateway, "n", totalCredits="10")
    await must(gateway, "recordUsage", externalMeterId="n", eventId="a", amount="1")
    assert (await books_of(gateway, "n")).meter.has_alerts is False
    with gateway.statements() as statements:
        await must(gateway, "recordUsage", externalMeterId="n", eventId="b", amount="1")
    assert [each for each in statements if "alerts.id" in each] == []


async def test_what_was_changed_before_a_meter_takes_it_on_is_taken_on_as_it_is(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    alert_id = await make_workspace_alert(gateway, REMAINING, 2)
    await gateway.mutate("updateAlert", "", id=alert_id, threshold="8")
    await must(gateway, "recordUsage", eventId="a", amount="3")
    assert await lines(gateway, meter_id) == ["triggered at 2: REMAINING_BELOW 8 v2"]
    (event,) = await alert_events(gateway, meter_id)
    assert event.alert_id == alert_id


# Grants that come near their ends.

NEAR_ENDS = [
    # Once, at its moment, with the entry before; a debit or a sweep decides it, whichever comes first.
    ("meter 5; grant g 10 100s", 40, "wait 60; use a 1; use b 1; wait 20; use c 1", ["triggered at 2 grant 2"]),
    ("meter 5; grant g 10 100s", 40, "wait 59; use a 1; wait 2; sweep; sweep", ["triggered at 3 grant 2"]),
    ("meter 5; grant g 10 100s", 40, "wait 200; use a 1", ["triggered at 2 grant 2"]),
    # What is used up or revoked by then does not.
    ("meter 5; grant g 10 100s", 40, "use a 10; wait 60; sweep; void a; sweep", []),
    ("meter 5; grant g 10 100s", 40, "revoke g; wait 60; sweep", []),
    ("meter 5; grant g 10 100s", 40, "use a 10; wait 61; void a; wait 40; sweep", []),
    ("meter 5; grant g 10 100s; hold h 10 80s", 40, "wait 60; sweep; release h; wait 1; sweep", []),
    ("meter 5; grant g 10 100s; hold h 10 50s", 40, "wait 70; sweep", ["triggered at 4 grant 2"]),
    ("meter 5; grant g 10 100s; hold h 10 80s", 40, "wait 90; sweep; use a 1", []),
    # What has come near before the alert was made is done with.
    ("meter 5; grant g 10 100s; wait 61", 40, "sweep; use a 1; wait 10; sweep", []),
    # An end that is set and is near already triggers with that entry; so does each end that is set.
    ("meter 5", 40, "grant g 10 30s; use a 1; sweep", ["triggered at 2 grant 2"]),
    ("meter 5; grant g 10 100s", 40, "update g 30s; update g p9; sweep", ["triggered at 3 grant 2"]),
    (
        "meter 5; grant g 10 100s",
        40,
        "wait 61; sweep; update g 100s; wait 60; sweep",
        ["triggered at 2 grant 2", "triggered at 3 grant 2"],
    ),
    (
        "meter 5; grant g 10 100s; grant h 5 90s",
        40,
        "wait 99; sweep",
        ["triggered at 3 grant 3", "triggered at 3 grant 2"],
    ),
    ("meter 5; grant g 10", 40, "wait 99; sweep; use a 1", []),
]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "seconds", "then", "expected"), NEAR_ENDS)
async def test_a_grant_that_comes_near_its_end_triggers_once(
    gateway: Gateway, before: str, seconds: int, then: str, expected: list[str]
) -> None:
    walk = Walk(gateway)
    await walk.take(before)
    await make_alert(gateway, NEAR, seconds)
    for step in then.split("; "):
        if step == "sweep":
            await sweep(gateway.services)
        else:
            await walk.take(step)
    found = await lines(gateway, walk.meter_id)
    assert found == [line.replace(" grant", f": {NEAR} {seconds} v1 grant") for line in expected]
    await walk.check()


async def test_a_grant_that_is_near_already_triggers_at_once_where_that_is_asked_for(gateway: Gateway) -> None:
    walk = Walk(gateway)
    await walk.take("meter 5; grant near 10 30s; grant far 10 99s; grant used 1 p0 20s; use a 1")
    await make_alert(gateway, NEAR, 40, triggerIfPast=True)
    assert await lines(gateway, walk.meter_id) == [f"triggered at 5: {NEAR} 40 v1 grant 2"]
    await walk.take("use b 1")
    assert len(await lines(gateway, walk.meter_id)) == 1
    await walk.check()


async def test_a_workspaces_alert_of_grants_is_taken_on_with_the_next_entry(gateway: Gateway) -> None:
    walk = Walk(gateway)
    await walk.take("meter 5; grant near 10 30s; grant far 10 99s")
    await make_workspace_alert(gateway, NEAR, 40)
    await walk.take("use a 1; wait 59")
    await sweep(gateway.services)
    assert await lines(gateway, walk.meter_id) == [f"triggered at 5: {NEAR} 40 v1 grant 3"]
    await walk.check()


async def test_what_is_no_longer_watched_is_no_longer_due(gateway: Gateway) -> None:
    walk = Walk(gateway)
    await walk.take("meter 5; grant g 10 100s")
    alert_id = await make_alert(gateway, NEAR, 40)
    assert (await books_of(gateway)).meter.next_due_at == walk.gateway.clock.now.replace(second=0, minute=1)
    await delete_alert(gateway, alert_id)
    assert (await books_of(gateway)).meter.next_due_at == walk.gateway.clock.now.replace(second=40, minute=1)
    async with gateway.database.read() as reader:
        assert (await alerts.by_ids(reader, [alert_id]))[alert_id].is_deleted
