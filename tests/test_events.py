"""Events: which there are of what happens to a meter, what their bodies say, and who may list them."""

import json
from typing import Any

import pytest
from sqlalchemy import text

from resolvers.api_keys import create_api_key
from resolvers.rules.event_schema import event_schema
from storage.meters.events import EventType
from storage.tenants import Environment
from tests.conftest import Caller, Gateway
from tests.credit_walks import Walk
from tests.event_bodies import check_body
from tests.steps import disagreements, found_after, make_customer, make_meter, must, new_key, session_of, unchanged

EVENTS = """query ($types: [EventType!], $meter: ID, $first: Int, $after: String, $last: Int) {
  events(types: $types, billingMeterId: $meter, first: $first, after: $after, last: $last) {
    nodes { id type seq number createdAt payload billingMeter { id } }
    pageInfo { hasNextPage hasPreviousPage endCursor }
  }
}"""


async def events(caller: Caller, **variables: Any) -> list[dict[str, Any]]:
    """Return a page of the events, newest first."""
    answer = await caller.data(EVENTS, variables)
    found: list[dict[str, Any]] = answer["events"]["nodes"]
    return found


@pytest.mark.parametrize(
    ("steps", "types"),
    [
        ("use e 5; refill 5; void e 2; use f 999 PARTIAL; use g 1", []),
        ("overages on; cap 5", ["BILLING_METER_UPDATED", "BILLING_METER_UPDATED"]),
        # What changes nothing is none, and so is what is refused.
        ("overages off; use x 999", []),
        ("grant a 5; grant b 5 60s", ["CREDIT_GRANT_CREATED", "CREDIT_GRANT_CREATED"]),
        ("grant a 5; update a p1", ["CREDIT_GRANT_CREATED"]),
        ("grant a 5; revoke a", ["CREDIT_GRANT_CREATED", "CREDIT_GRANT_REVOKED"]),
        # What comes back to a revoked grant is taken, too.
        (
            "grant a 5 p1; use e 3; revoke a; void e",
            ["CREDIT_GRANT_CREATED", "CREDIT_GRANT_REVOKED", "CREDIT_GRANT_REVOKED"],
        ),
        ("grant a 5 60s; wait 60; use e 1", ["CREDIT_GRANT_CREATED", "CREDIT_GRANT_EXPIRED"]),
        ("hold h 5; commit h 3; hold i 5; release i", []),
        # At one moment the hold first, in the order of the ledger.
        (
            "grant a 5 p1 60s; hold h 3 60s; wait 60; use e 1",
            ["CREDIT_GRANT_CREATED", "HOLD_EXPIRED", "CREDIT_GRANT_EXPIRED"],
        ),
    ],
)
async def test_what_happens_is_an_event_in_the_order_of_the_ledger(
    gateway: Gateway, steps: str, types: list[str]
) -> None:
    walk = Walk(gateway)
    await walk.take(f"meter 10; {steps}")
    found = await events(gateway, meter=walk.meter_id)
    assert [event["type"] for event in found[::-1]] == ["BILLING_METER_CREATED", *types]
    assert [event["number"] for event in found[::-1]] == [str(n) for n in range(1, len(types) + 2)]
    assert {event["billingMeter"]["id"] for event in found} == {walk.meter_id}
    for event in found:
        check_body(event["payload"])
    await walk.check()


async def test_a_body_says_what_the_meter_was_right_after_it(gateway: Gateway) -> None:
    walk = Walk(gateway)
    await walk.take("meter 10; use e 4; grant a 5 60s; hold h 2; use f 1; wait 60; use g 1")
    expired, created, opened = await events(gateway, meter=walk.meter_id)
    grant = {
        "id": walk.ids["a"],
        "amount": "5",
        "priority": 50,
        "category": "PAID",
        "expiresAt": "2026-03-16T12:01:00+00:00",
    }
    meter = {
        "id": walk.meter_id,
        "workspaceId": "w",
        "externalMeterId": "m",
        "customerId": None,
        "totalCredits": "15",
        "usedCredits": "4",
        "heldCredits": "0",
        "availableCredits": "11",
    }
    assert created["payload"] == {
        "type": "credit_grant.created",
        "timestamp": "2026-03-16T12:00:00+00:00",
        "data": {"billingMeter": meter, "number": "2", "seq": "3", "creditGrant": grant, "amount": "5"},
    }
    assert (created["seq"], created["createdAt"]) == ("3", "2026-03-16T12:00:00Z")
    # The hold had reserved 2 of the grant, which ends first, and the debit 1.
    after = {"totalCredits": "13", "usedCredits": "5", "heldCredits": "2", "availableCredits": "6"}
    assert expired["payload"]["data"]["amount"] == "2"
    assert expired["payload"]["data"]["billingMeter"] == meter | after
    assert expired["payload"]["timestamp"] == "2026-03-16T12:01:00+00:00"
    assert opened["payload"]["data"]["billingMeter"]["totalCredits"] == "10"


async def test_a_meter_without_a_limit_has_null_for_what_is_available(gateway: Gateway) -> None:
    customer_id = await make_customer(gateway)
    meter_id = await make_meter(gateway, allowOverages=True, customerId=customer_id)
    (event,) = await events(gateway, meter=meter_id)
    meter = event["payload"]["data"]["billingMeter"]
    assert (meter["availableCredits"], meter["customerId"]) == (None, customer_id)
    check_body(event["payload"])


async def test_a_body_has_nothing_of_metadata_reasons_and_addresses(gateway: Gateway) -> None:
    customer_id = await make_customer(gateway, "secret@example.com", metadata={"a": "secret"})
    await make_meter(gateway, customerId=customer_id)
    names = {"workspaceId": "w", "externalMeterId": "m"}
    await must(gateway, "grantCredits", **names, amount="5", reason="secret", metadata={"b": "secret"})
    await must(gateway, "holdCredits", **names, holdId="h", amount="1", metadata={"c": "secret"}, expiresInSeconds=60)
    gateway.clock.forward(seconds=60)
    await must(gateway, "recordUsage", **names, eventId="e", amount="1", metadata={"d": "secret"})
    async with gateway.database.read() as reader:
        rows = await reader.fetch(text("SELECT payload FROM events WHERE org_id = :org"), {"org": gateway.org_id})
    payloads = [row.payload for row in rows]
    assert [json.loads(each)["type"] for each in payloads].count("hold.expired") == 1
    assert not [each for each in payloads if "secret" in each]


async def test_a_replay_and_a_refusal_add_no_event(gateway: Gateway) -> None:
    await make_meter(gateway, "m")
    names = {"workspaceId": "w", "externalMeterId": "m"}
    await must(gateway, "grantCredits", **names, amount="5", idempotencyKey="k")
    async with unchanged(gateway, "m"):
        await must(gateway, "grantCredits", **names, amount="5", idempotencyKey="k")
        refused = await gateway.data(
            "mutation ($i: GrantCreditsInput!) { grantCredits(input: $i) { __typename } }",
            {"i": {**names, "amount": "6", "idempotencyKey": "k"}},
        )
        assert refused == {"grantCredits": {"__typename": "IdempotencyConflict"}}
    assert [event["type"] for event in await events(gateway)] == ["CREDIT_GRANT_CREATED", "BILLING_METER_CREATED"]


class TestList:
    """The list of a tenant's events."""

    async def test_it_is_in_the_order_of_time_and_in_pages(self, gateway: Gateway) -> None:
        meters = []
        for name in ("a", "b", "c"):
            meters.append(await make_meter(gateway, name))
            gateway.clock.forward(seconds=1)
        await must(gateway, "updateBillingMeter", workspaceId="w", externalMeterId="a", allowOverages=True)
        everything = await events(gateway)
        assert [(each["billingMeter"]["id"], each["number"]) for each in everything] == [
            (meters[0], "2"),
            (meters[2], "1"),
            (meters[1], "1"),
            (meters[0], "1"),
        ]
        first = (await gateway.data(EVENTS, {"first": 3}))["events"]
        assert (first["nodes"], first["pageInfo"]["hasNextPage"]) == (everything[:3], True)
        rest = (await gateway.data(EVENTS, {"after": first["pageInfo"]["endCursor"]}))["events"]
        assert (rest["nodes"], rest["pageInfo"]["hasPreviousPage"]) == (everything[3:], True)
        assert await events(gateway, last=2) == everything[2:]
        assert await events(gateway, types=["BILLING_METER_UPDATED"]) == everything[:1]
        both = ["BILLING_METER_CREATED", "BILLING_METER_UPDATED", "BILLING_METER_CREATED"]
        assert await events(gateway, types=both) == everything
        assert await events(gateway, types=both, last=2) == everything[2:]
        assert await events(gateway, meter=meters[0], types=["BILLING_METER_CREATED"]) == everything[3:]
        assert await events(gateway, meter=meters[0]) == [everything[0], everything[3]]
        assert await events(gateway, types=["HOLD_EXPIRED"]) == []
        for foreign in ("mtr_0", "cus_000000000000000000000000", f"{meters[0]}0"):
            assert await events(gateway, meter=foreign) == []

    async def test_an_event_is_a_node(self, gateway: Gateway) -> None:
        meter_id = await make_meter(gateway)
        (event,) = await events(gateway)
        assert event["id"] == f"evt_{meter_id.removeprefix('mtr_')}_1"
        query = "query ($ids: [ID!]!) { nodes(ids: $ids) { id ... on Event { type } } }"
        found = await gateway.data(
            query, {"ids": [event["id"], f"{event['id']}0", event["id"].replace("evt_", "evt_w")]}
        )
        assert found == {"nodes": [{"id": event["id"], "type": "BILLING_METER_CREATED"}, None, None]}

    async def test_no_type_at_all_is_refused(self, gateway: Gateway) -> None:
        answer = await gateway.post(EVENTS, {"types": []})
        (error,) = answer.json()["errors"]
        assert error["message"] == "types must have 1 item or more; leave it out for all types."
        (error,) = (await gateway.post(EVENTS, {"after": "bXRyXzA"})).json()["errors"]
        assert error["message"] == "after is not a cursor of this list."

    async def test_it_is_the_organization_s_own_and_of_the_key_s_workspaces(self, gateway: Gateway) -> None:
        meter_id = await make_meter(gateway, "m", workspaceId="w")
        await make_meter(gateway, "m", workspaceId="v")
        (first, own) = await events(gateway)
        _, limited = await new_key(gateway, workspace_ids=["w"])
        assert await events(limited) == [own]
        assert await events(limited, meter=first["billingMeter"]["id"]) == []
        tenants = ((gateway.org_id, Environment.LIVE), (f"{gateway.org_id}-stranger", Environment.SANDBOX))
        others = [
            (await create_api_key(gateway.database, org_id=org_id, environment=environment, now=gateway.clock()))[1]
            for org_id, environment in tenants
        ]
        node = "query ($id: ID!) { node(id: $id) { id } }"
        for other in (Caller(gateway.client, key) for key in others):
            assert await events(other) == await events(other, meter=meter_id) == []
            assert await other.data(node, {"id": own["id"]}) == {"node": None}
        assert await limited.data(node, {"id": first["id"]}) == {"node": None}
        assert await limited.data(node, {"id": own["id"]}) == {"node": {"id": own["id"]}}

    async def test_a_customer_s_session_may_not_ask_for_it(self, gateway: Gateway) -> None:
        customer_id = await make_customer(gateway)
        await make_meter(gateway, customerId=customer_id)
        (event,) = await events(gateway)
        session = await session_of(gateway, customer_id)
        for query, variables in ((EVENTS, {}), ("query ($id: ID!) { node(id: $id) { id } }", {"id": event["id"]})):
            (error,) = (await session.post(query, variables)).json()["errors"]
            assert error["extensions"]["code"] == "FORBIDDEN"


def test_each_type_of_event_is_described() -> None:
    described = {each["$ref"].removeprefix("#/$defs/") for each in event_schema()["oneOf"]}
    assert described == set(EventType)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ("DELETE FROM events WHERE number = 2", ["event 3: it follows event 1", "entry 2: its event is missing"]),
        (
            "DELETE FROM events WHERE number = 3",
            ["its last event is 3 and should be 2", "entry 3: its event is missing"],
        ),
        # The oldest are deleted in time.
        ("DELETE FROM events WHERE number < 3", []),
        ("DELETE FROM events", []),
        (
            "UPDATE events SET type = 'hold.expired' WHERE number = 2",
            [
                "event 2: it is a hold.expired, and entry 2 is a SETTINGS",
                "event 2: the type of its body is 'billing_meter.updated' and should be 'hold.expired'",
                "entry 2: its event is missing",
            ],
        ),
        (
            "UPDATE events SET seq = 4 WHERE number = 3",
            [
                "event 3: it is a billing_meter.updated, and entry 4 is a USAGE",
                "event 3: the seq of its body is '3' and should be '4'",
                "event 3: the used credits of its body is '0' and should be '1'",
                "entry 3: its event is missing",
            ],
        ),
        (
            "UPDATE events SET workspace_id = 'v' WHERE number = 1",
            ["event 1: it is another tenant's, or of another workspace, than its meter"],
        ),
        (
            "UPDATE events SET position = 'x' WHERE number = 1",
            ["event 1: its position does not follow from its time and number"],
        ),
        ("UPDATE events SET payload = '{}' WHERE number = 1", ["it cannot be read: 'data'"]),
        (
            """UPDATE events SET payload = replace(payload, '"usedCredits":"0"', '"usedCredits":"1"')
             WHERE number = 1""",
            ["event 1: the used credits of its body is '1' and should be '0'"],
        ),
        ("UPDATE billing_meters SET last_event = 4", ["its last event is 4 and should be 3"]),
    ],
)
async def test_what_is_changed_of_events_is_found(own: Gateway, change: str, messages: list[str]) -> None:
    await Walk(own).take("meter 10; overages on; overages off; use e 1")
    assert await disagreements(own.database) == []

    found = [each.message for each in await found_after(own.database, [change])]
    assert sorted(found) == sorted(messages)
