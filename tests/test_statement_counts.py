"""How many SQL statements a request takes: a fixed number, whatever the page."""

import pytest

from tests.alerting import make_alert, make_workspace_alert
from tests.conftest import Gateway
from tests.credit_walks import Walk
from tests.refill_walks import SETTINGS, RefillWalk
from tests.steps import hold, make_customer, make_grant, make_meter, must

pytestmark = pytest.mark.one_server("it counts statements or reads their text, and in a bucket there are others")

METER = """query ($w: String!, $m: String!) {
  billingMeter(workspaceId: $w, externalMeterId: $m) { id totalCredits usedCredits availableCredits createdAt }
}"""

CUSTOMERS = """query ($first: Int!) {
  customers(first: $first) {
    nodes { name billingMeters(first: 5) { nodes { externalMeterId usage { day totalBillingUsage } } } }
  }
}"""


async def make_customers(gateway: Gateway, count: int) -> None:
    for number in range(count):
        customer_id = await make_customer(gateway, f"c{number}@example.com", name=f"c{number}")
        # Days begin at other hours in other zones, and the default range with them.
        for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
            name = f"{number} {zone}"
            await make_meter(gateway, name, totalCredits="10", customerId=customer_id, timezone=zone)
            await must(gateway, "recordUsage", externalMeterId=name, eventId="e", amount="3")


async def test_a_meter_by_its_names_takes_one_statement(gateway: Gateway) -> None:
    await make_customers(gateway, 1)
    with gateway.statements() as statements:
        data = await gateway.data(METER, {"w": "w", "m": "0 UTC"})
    assert data["billingMeter"]["usedCredits"] == "3"
    assert len(statements) == 1


@pytest.mark.parametrize("first", [1, 4, 20])
async def test_customers_with_meters_and_usage_take_three_statements(gateway: Gateway, first: int) -> None:
    await make_customers(gateway, 5)
    with gateway.statements() as statements:
        data = await gateway.data(CUSTOMERS, {"first": first})
    shown = data["customers"]["nodes"]
    assert [customer["name"] for customer in shown] == [f"c{number}" for number in range(4, -1, -1)][:first]
    days = [day for customer in shown for meter in customer["billingMeters"]["nodes"] for day in meter["usage"]]
    assert sum(int(day["totalBillingUsage"]) for day in days) == 9 * min(first, 5)
    assert {day["day"] for day in days} == {"2026-03-16", "2026-03-17"}
    assert len(statements) == 3


# Grants and holds.

PLAIN = "meter 100; use known 1"
GRANTED = f"{PLAIN}; grant a 10 p1; grant b 10 p2; use old 1"
HELD = f"{PLAIN}; hold h 5; hold g 5"
BOTH = f"{GRANTED}; hold h 5; hold g 5"
OVER = "meter 10 overages; use known 20; grant a 5 p1"
DUE = f"{PLAIN}; grant a 10 60s; hold h 5 60s; grant b 10 60s; hold i 20 60s; wait 60"

#: By what is there before: steps with how many statements each takes.
COMMANDS = {
    # As ever: lock and look up, update the meter, add to its day, add the entry; of a void what was voided before. What
    # others want to know, as of settings and grants, adds an event.
    PLAIN: {"use e 1": 5, "void known": 6, "refill 1": 4, "overages on": 5, "grant x 1": 6, "hold x 1": 5},
    # A grant's meter reads the grants that can be used, and writes those that change.
    GRANTED: {
        "use e 1": 7,
        "use e 15": 7,
        # It also reads by their numbers those that the event drew and are used up.
        "void old": 8,
        "refill 1": 5,
        "overages on": 6,
        "grant x 1": 7,
        # What an id names is found before: the meter and the grant.
        "revoke a": 9,
        "update a p3": 8,
        "hold x 1": 7,
    },
    # A hold's meter looks the ids of events up among its holds, by the statement that looks up the events. Extending
    # one changes of the meter when it was changed alone, and here the clock stands still: so not even that is written.
    HELD: {"use e 1": 5, "hold x 1": 5, "commit h 3": 7, "commit h 9": 7, "release h": 6, "extend h 1000s": 4},
    BOTH: {"use e 1": 7, "commit h 3": 9, "release h": 8, "void known": 7},
    # Of an event that no credit had paid, those that have covered usage since.
    OVER: {"use e 1": 6, "void known": 9},
    # What is due is booked by the same statements, with those that read and close the holds.
    DUE: {"use e 1": 10, "refill 1": 9},
}


@pytest.mark.parametrize(
    ("before", "step", "count"),
    [(before, step, count) for before, steps in COMMANDS.items() for step, count in steps.items()],
)
async def test_a_command_takes_a_fixed_number_of_statements(
    gateway: Gateway, before: str, step: str, count: int
) -> None:
    walk = Walk(gateway)
    await walk.take(before)
    # The gateway knows the meter's id from its names; the key it asks for again after some seconds.
    await gateway.data("{ viewer { orgId } }")
    with gateway.statements() as statements:
        await walk.send(step)
    assert len(statements) == count, "\n".join(statements)


@pytest.mark.parametrize(
    ("step", "count"),
    [
        # Beside what it takes anyway: the automatic refill, and the requests that count.
        ("use e 1", 5 + 2),
        ("refill 1", 4 + 2),
        ("overages on", 5 + 2),
        # One that asks adds the request and its event, and changes the refill.
        ("use e 95", 5 + 2 + 3),
    ],
)
async def test_with_an_automatic_refill_a_command_takes_two_statements_more(
    gateway: Gateway, step: str, count: int
) -> None:
    walk = RefillWalk(gateway)
    await walk.begin()
    await gateway.data("{ viewer { orgId } }")
    with gateway.statements() as statements:
        await walk.send(step)
    assert len(statements) == count, "\n".join(statements)


async def test_what_becomes_of_a_request_takes_a_fixed_number_of_statements(gateway: Gateway) -> None:
    walk = RefillWalk(gateway)
    await walk.begin(cooldownSeconds=60)
    await walk.use(95)
    await gateway.data("{ viewer { orgId } }")
    with gateway.statements() as statements:
        await walk.fail(1)
    # The meter that the id names is found before; then the lock, what the key has done, the two, and what is written:
    # the meter, the refill, the request and the event.
    assert len(statements) == 1 + 2 + 2 + 4, "\n".join(statements)
    with gateway.statements() as statements:
        await walk.refill(1, 45)
    # The newest request is known with the refill, and the entry is added.
    assert len(statements) == 2 + 2 + 5, "\n".join(statements)
    with gateway.statements() as statements:
        await walk.set(below="5", amount="40")
    assert len(statements) == 1 + 2 + 1, "\n".join(statements)


#: By the alerts that there are: steps with how many statements each takes, on a meter that has taken them on.
WITH_ALERTS: dict[str, dict[str, int]] = {
    # Five as many as one: they are read by one statement.
    "REMAINING_BELOW 1; AVAILABLE_BELOW 1; OVERAGE_ABOVE 9; REMAINING_BELOW 2; AVAILABLE_BELOW 2": {
        "use e 1": 6,
        "refill 1": 5,
        # An event, and the moment at which it has triggered.
        "use e 99": 8,
        # What a void gives back is looked up, as ever.
        "void known": 7,
    },
    # The usage of the day, where one is about that.
    "DAY_USAGE_ABOVE 50; REMAINING_BELOW 1": {"use e 1": 7, "refill 1": 5, "use e 80": 9},
}


@pytest.mark.parametrize(
    ("alerts", "step", "count"),
    [(alerts, step, count) for alerts, steps in WITH_ALERTS.items() for step, count in steps.items()],
)
async def test_alerts_take_one_statement_more(gateway: Gateway, alerts: str, step: str, count: int) -> None:
    walk = Walk(gateway)
    await walk.take("meter 100; use known 1")
    for alert in alerts.split("; "):
        kind, threshold = alert.split()
        await make_alert(gateway, kind, int(threshold))
    await gateway.data("{ viewer { orgId } }")
    with gateway.statements() as statements:
        await walk.send(step)
    assert len(statements) == count, "\n".join(statements)


async def test_alerts_of_a_workspace_take_one_statement_more_until_they_are_taken_on(gateway: Gateway) -> None:
    walk = Walk(gateway)
    await walk.take("meter 100")
    await make_workspace_alert(gateway, "REMAINING_BELOW", 5)
    await gateway.data("{ viewer { orgId } }")
    counts = []
    for step in ("use a 1", "use b 1", "use c 1"):
        with gateway.statements() as statements:
            await walk.send(step)
        counts.append(len(statements))
    # Once the alert is read and what is taken on is written, and the meter's id is asked for by its names.
    assert counts == [8, 6, 6]


#: What is read of meters: the selection, and how many statements it takes beside that which reads the meters.
READS = {
    "heldCredits pinnedCredits maxOpenHolds availableCredits": 0,
    "creditGrants { nodes { id state reason openCredits } }": 2,
    "creditGrants { nodes { billingMeter { id } } }": 3,
    "burnDown { creditGrant { id state } openCredits }": 2,
    "holds { nodes { id holdId state } }": 2,
    "holds { nodes { billingMeter { id } } }": 3,
    "ledger(first: 5) { nodes { kind heldCreditsAfter } }": 1,
    "ledger(first: 5) { nodes { draws { creditGrant { id } amount } } }": 3,
    "ledger(first: 5) { nodes { creditGrant { id } } }": 3,
    "ledger(first: 5) { nodes { hold { id } } }": 3,
    "ledger(first: 5) { nodes { draws { creditGrant { id } } creditGrant { id } hold { id } } }": 5,
    "autoRefill { state requestedAmount }": 2,
    "autoRefill { requests { nodes { id state failure } } }": 4,
    "autoRefill { requests { nodes { entry { id } billingMeter { id } } } }": 6,
    "creditGrants { nodes { id } } burnDown { openCredits } holds { nodes { id } }": 6,
}


@pytest.mark.parametrize("meters", [1, 4])
@pytest.mark.parametrize(("selection", "count"), READS.items())
async def test_grants_and_holds_of_many_meters_take_as_many_statements_as_of_one(
    gateway: Gateway, selection: str, count: int, meters: int
) -> None:
    for number in range(meters):
        walk = Walk(gateway, name=f"m{number}")
        await walk.take("meter 100; grant a 10 p1; grant b 10 p2; use e 15; hold h 5; hold g 5; commit h 3")
        if "autoRefill" in selection:
            refilled = RefillWalk(gateway, name=f"m{number}")
            refilled.meter_id = walk.meter_id
            await refilled.set(**SETTINGS | {"below": "200", "amount": "250"})
            await refilled.refill(1, 148)
            await refilled.set(below="250")
    query = f"{{ billingMeters(first: 4) {{ nodes {{ id {selection} }} }} }}"
    with gateway.statements() as statements:
        data = await gateway.data(query)
    assert len(data["billingMeters"]["nodes"]) == meters
    assert len(statements) == 1 + count, "\n".join(statements)


@pytest.mark.parametrize("many", [1, 3])
async def test_grants_and_holds_by_their_ids_take_two_statements_a_kind(gateway: Gateway, many: int) -> None:
    ids = []
    for number in range(many):
        name = f"m{number}"
        await make_meter(gateway, name, totalCredits="10")
        ids += [await make_grant(gateway, 1, externalMeterId=name) for _ in range(2)]
        ids += [await hold(gateway, f"h{each}", 1, externalMeterId=name) for each in range(2)]
    with gateway.statements() as statements:
        data = await gateway.data("query ($ids: [ID!]!) { nodes(ids: $ids) { id } }", {"ids": ids})
    assert [node["id"] for node in data["nodes"]] == ids
    assert len(statements) == 4


async def test_of_meters_with_something_due_two_statements_more_are_read(gateway: Gateway) -> None:
    for name in ("m", "n"):
        await Walk(gateway, name=name).take("meter 10; grant a 10 60s; hold h 5 60s")
    gateway.clock.forward(seconds=60)
    await gateway.data("{ viewer { orgId } }")
    with gateway.statements() as statements:
        data = await gateway.data("{ billingMeters { nodes { totalCredits } } }")
    assert data["billingMeters"]["nodes"] == [{"totalCredits": "10"}] * 2
    # Their usable grants and their open holds.
    assert len(statements) == 3
