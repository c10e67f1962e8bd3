"""Tenants: what belongs to another organization, environment or workspace is as if it were not there."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from storage.tenants import Environment
from tests.conftest import REFUSALS, Caller, Gateway
from tests.steps import entry_id, make_customer, make_endpoint, make_meter, must

pytestmark = pytest.mark.slow

CUSTOMER = "id orgId environment email name externalId updatedAt billingMeters { nodes { id externalMeterId } }"
METER = """id workspaceId externalMeterId totalCredits usedCredits spendCap updatedAt customer { id email }
  usage { day totalBillingUsage } ledger { nodes { id key amount recordedBy } }
  creditGrants { nodes { id openCredits } } holds { nodes { id state } }"""

#: What every query and mutation asks that takes an id or a name, by the name of its field.
QUESTIONS = {
    "node": [
        "query ($customer: ID!) { node(id: $customer) { __typename id } }",
        "query ($meter: ID!) { node(id: $meter) { __typename id } }",
        "query ($entry: ID!) { node(id: $entry) { __typename id } }",
        "query ($grant: ID!) { node(id: $grant) { __typename id } }",
        "query ($hold: ID!) { node(id: $hold) { __typename id } }",
        "query ($event: ID!) { node(id: $event) { __typename id } }",
        "query ($alert: ID!) { node(id: $alert) { __typename id } }",
        "query ($request: ID!) { node(id: $request) { __typename id } }",
        "query ($endpoint: ID!) { node(id: $endpoint) { __typename id } }",
        "query ($delivery: ID!) { node(id: $delivery) { __typename id } }",
    ],
    "nodes": [
        """query ($customer: ID!, $meter: ID!, $entry: ID!, $grant: ID!, $hold: ID!) {
          nodes(ids: [$customer, $meter, $entry, $grant, $hold]) { id }
        }"""
    ],
    "customer": [f"query ($customer: ID!) {{ customer(id: $customer) {{ {CUSTOMER} }} }}"],
    "customerByExternalId": [f'{{ customerByExternalId(externalId: "crm-1") {{ {CUSTOMER} }} }}'],
    "customers": [f"{{ customers {{ nodes {{ {CUSTOMER} }} pageInfo {{ hasNextPage }} }} }}"],
    "billingMeter": [f'{{ billingMeter(workspaceId: "w", externalMeterId: "m") {{ {METER} }} }}'],
    "billingMeters": [
        '{ billingMeters(filter: {workspaceId: "w"}) { nodes { id } } }',
        "query ($customer: ID!) { billingMeters(filter: {customerId: $customer}) { nodes { id } } }",
        '{ billingMeters(filter: {availableBelow: "1000"}) { nodes { id workspaceId } } }',
    ],
    "usage": ["query ($meter: ID!) { usage(billingId: $meter, fillZeros: true) { day totalBillingUsage } }"],
    "events": ["query ($meter: ID!) { events(billingMeterId: $meter) { nodes { id } } }"],
    "alerts": ['{ alerts(workspaceId: "w") { nodes { id } } }'],
    "webhookEndpoints": ["{ webhookEndpoints { nodes { id } } }"],
    "updateCustomer": [
        f"""mutation ($customer: ID!) {{
          updateCustomer(input: {{id: $customer, name: "Mallory", externalId: null}}) {{ __typename {REFUSALS} }}
        }}"""
    ],
    "createCustomerSession": [
        f"""mutation ($customer: ID!) {{
          createCustomerSession(input: {{customerId: $customer}}) {{ __typename {REFUSALS} }}
        }}"""
    ],
    "createBillingMeter": [
        f"""mutation ($customer: ID!) {{
          createBillingMeter(input: {{workspaceId: "w", externalMeterId: "new", customerId: $customer}}) {{
            __typename {REFUSALS}
          }}
        }}"""
    ],
    "updateBillingMeter": [
        f"""mutation {{
          updateBillingMeter(input: {{workspaceId: "w", externalMeterId: "m", spendCap: "7"}}) {{
            __typename {REFUSALS}
          }}
        }}""",
        f"""mutation ($customer: ID!) {{
          updateBillingMeter(input: {{workspaceId: "own", externalMeterId: "own", customerId: $customer}}) {{
            __typename {REFUSALS} ... on UpdateBillingMeterSuccess {{ billingMeter {{ customer {{ email }} }} }}
          }}
        }}""",
    ],
    "refillBillingMeter": [
        f"""mutation {{
          refillBillingMeter(input: {{workspaceId: "w", externalMeterId: "m", refill: "1", idempotencyKey: "k"}}) {{
            __typename {REFUSALS} ... on IdempotencyConflict {{ entry: firstEntry {{ id }} }}
          }}
        }}""",
        f"""mutation {{
          refillBillingMeter(input: {{workspaceId: "w", externalMeterId: "m"}}) {{ __typename {REFUSALS} }}
        }}""",
    ],
    "recordUsage": [
        f"""mutation {{
          recordUsage(input: {{workspaceId: "w", externalMeterId: "m", eventId: "e", amount: "1"}}) {{
            __typename {REFUSALS} ... on IdempotencyConflict {{ entry: firstEntry {{ id }} }}
          }}
        }}""",
        f"""mutation {{
          recordUsage(input: {{workspaceId: "w", externalMeterId: "m", eventId: "f", amount: "1000000"}}) {{
            __typename {REFUSALS} ... on InsufficientCredits {{ available }}
          }}
        }}""",
    ],
    "recordUsageBatch": [
        f"""mutation {{
          recordUsageBatch(input: [{{workspaceId: "w", externalMeterId: "m", eventId: "e", amount: "1"}}]) {{
            __typename {REFUSALS} ... on IdempotencyConflict {{ entry: firstEntry {{ id }} }}
          }}
        }}""",
    ],
    "voidUsage": [
        f"""mutation {{
          voidUsage(input: {{
            workspaceId: "w", externalMeterId: "m", eventId: "e", amount: "1000000", reason: "r", idempotencyKey: "v"
          }}) {{ __typename {REFUSALS} }}
        }}""",
    ],
    "grantCredits": [
        f"""mutation {{
          grantCredits(input: {{workspaceId: "w", externalMeterId: "m", amount: "1", idempotencyKey: "g"}}) {{
            __typename {REFUSALS} ... on IdempotencyConflict {{ firstEntry {{ id }} }}
          }}
        }}""",
    ],
    "updateCreditGrant": [
        f"""mutation ($grant: ID!) {{
          updateCreditGrant(input: {{id: $grant, expiresAt: "2000-01-01T00:00:00Z"}}) {{ __typename {REFUSALS} }}
        }}""",
    ],
    "revokeCreditGrant": [
        f"""mutation ($grant: ID!) {{
          revokeCreditGrant(input: {{id: $grant, amount: "1", idempotencyKey: "r"}}) {{
            __typename {REFUSALS} ... on IdempotencyConflict {{ firstEntry {{ id }} }}
          }}
        }}""",
    ],
    "holdCredits": [
        f"""mutation {{
          holdCredits(input: {{workspaceId: "w", externalMeterId: "m", holdId: "h", amount: "1"}}) {{
            __typename {REFUSALS} ... on IdempotencyConflict {{ firstEntry {{ id }} }}
          }}
        }}""",
    ],
    "createAlert": [
        f"""mutation {{
          createAlert(input: {{
            workspaceId: "w", externalMeterId: "m", kind: REMAINING_BELOW, threshold: "5", idempotencyKey: "a"
          }}) {{ __typename {REFUSALS} }}
        }}""",
    ],
    "updateAlert": [
        f"""mutation ($alert: ID!) {{
          updateAlert(input: {{id: $alert, threshold: "6"}}) {{ __typename {REFUSALS} }}
        }}""",
    ],
    "deleteAlert": [
        """mutation ($alert: ID!) {
          deleteAlert(input: {id: $alert}) { __typename ... on UserError { code message } }
        }""",
    ],
    **{
        name: [
            f"""mutation {{
              {name}(input: {{workspaceId: "w", externalMeterId: "m" {values}}}) {{ __typename {REFUSALS} }}
            }}"""
        ]
        for name, values in {"setAutoRefill": ", isEnabled: false", "resumeAutoRefill": ""}.items()
    },
    "failAutoRefill": [
        f"""mutation ($request: ID!) {{
          failAutoRefill(input: {{requestId: $request, reason: "r"}}) {{ __typename {REFUSALS} }}
        }}""",
    ],
    "updateWebhookEndpoint": [
        f"""mutation ($endpoint: ID!) {{
          updateWebhookEndpoint(input: {{id: $endpoint, description: "d"}}) {{ __typename {REFUSALS} }}
        }}""",
    ],
    "rotateWebhookSecret": [
        f"""mutation ($endpoint: ID!) {{
          rotateWebhookSecret(input: {{id: $endpoint, generation: 2}}) {{ __typename {REFUSALS} }}
        }}""",
    ],
    "sendTestEvent": [
        """mutation ($endpoint: ID!) {
          sendTestEvent(input: {endpointId: $endpoint}) { __typename ... on UserError { code message } }
        }""",
    ],
    "redeliverEvents": [
        f"""mutation ($endpoint: ID!, $event: ID!) {{
          redeliverEvents(input: {{endpointId: $endpoint, eventId: $event}}) {{ __typename {REFUSALS} }}
        }}""",
    ],
    "deleteWebhookEndpoint": [
        """mutation ($endpoint: ID!) {
          deleteWebhookEndpoint(input: {id: $endpoint}) { __typename ... on UserError { code message } }
        }""",
    ],
    **{
        name: [
            f"""mutation {{
              {name}(input: {{workspaceId: "w", externalMeterId: "m", holdId: "h" {values}}}) {{
                __typename {REFUSALS} ... on HoldNotOpen {{ hold {{ id }} }}
              }}
            }}"""
        ]
        for name, values in {
            "commitHold": ', amount: "1"',
            "releaseHold": "",
            "extendHold": ", expiresInSeconds: 1",
        }.items()
    },
}
#: All that an organization has, as far as it is not too much for a page.
EVERYTHING = f"""{{
  customers(first: 100) {{ nodes {{ {CUSTOMER} }} }}
  billingMeters(first: 100) {{ nodes {{ {METER} }} }}
}}"""
#: Root fields that take arguments. Of a viewer there is nothing to name.
ROOT_FIELDS = "{ __schema { queryType { fields { name args { name } } } mutationType { fields { name } } } }"


class Ids(NamedTuple):
    """One object of each kind."""

    customer: str
    meter: str
    entry: str
    grant: str
    hold: str
    event: str
    alert: str
    request: str
    endpoint: str
    delivery: str


#: Of the form of ids, and nobody's.
MADE_UP = Ids(
    "cus_0123456789abcdef01234567",
    "mtr_0123456789abcdef01234567",
    "ent_0123456789abcdef01234567_1",
    "grt_0123456789abcdef01234567_1",
    "hld_0123456789abcdef01234567_1",
    "evt_0123456789abcdef01234567_1",
    "alr_0123456789abcdef01234567",
    "arr_0123456789abcdef01234567_1",
    "whe_0123456789abcdef01234567",
    "whd_0123456789abcdef01234567000",
)


async def attach(caller: Caller, name: str, customer_id: str | None, workspace_id: str = "w") -> str:
    """Give a meter to a customer and return what kind of answer came."""
    answer = await caller.mutate(
        "updateBillingMeter", "", workspaceId=workspace_id, externalMeterId=name, customerId=customer_id
    )
    return str(answer["__typename"])


async def furnish(caller: Caller) -> Ids:
    """Make one object of each kind, under the names that the questions use."""
    customer = await make_customer(caller, name="Ada", externalId="crm-1")
    meter = await make_meter(caller, "m", totalCredits="100", customerId=customer)
    names = {"workspaceId": "w", "externalMeterId": "m"}
    refill = await caller.mutate(
        "refillBillingMeter",
        "... on RefillBillingMeterSuccess { entry { id } }",
        **names,
        refill="50",
        idempotencyKey="k",
    )
    await caller.mutate("recordUsage", "", **names, eventId="e", amount="30")
    granted = await must(caller, "grantCredits", "creditGrant { id }", amount="5", idempotencyKey="g")
    input_ = {"id": granted["creditGrant"]["id"], "amount": "2", "idempotencyKey": "r"}
    await caller.mutate("revokeCreditGrant", "", **input_)
    held = await must(caller, "holdCredits", "hold { id }", holdId="h", amount="5")
    await must(caller, "releaseHold", holdId="h")
    alert = await must(
        caller, "createAlert", "alert { id }", **names, kind="REMAINING_BELOW", threshold="9", idempotencyKey="alert"
    )
    caps: dict[str, Any] = {"maxRefills": 1, "maxCredits": "1000", "windowSeconds": 60}
    await must(caller, "setAutoRefill", **names, mode="FIXED", below="1000", amount="10", **caps)
    await caller.mutate("recordUsage", "", **names, eventId="g", amount="1")
    shown = "query ($id: ID!) { node(id: $id) { ... on BillingMeter { autoRefill { requestId } } } }"
    request = (await caller.data(shown, {"id": meter}))["node"]["autoRefill"]["requestId"]
    endpoint, _ = await make_endpoint(caller)
    sent = await caller.mutate(
        "sendTestEvent", "... on SendTestEventSuccess { event { id } delivery { id } }", endpointId=endpoint
    )
    return Ids(
        customer,
        meter,
        refill["entry"]["id"],
        granted["creditGrant"]["id"],
        held["hold"]["id"],
        f"evt_{meter.removeprefix('mtr_')}_1",
        alert["alert"]["id"],
        request,
        endpoint,
        sent["delivery"]["id"],
    )


async def ask_all(caller: Caller, ids: Ids) -> dict[str, Any]:
    """Ask every question, and return the whole answers by question."""
    return {
        question: await caller.run(question, ids._asdict())
        for questions in QUESTIONS.values()
        for question in questions
    }


@pytest.fixture(params=["organization", "environment"])
async def outsider(request: pytest.FixtureRequest, gateway: Gateway) -> AsyncIterator[Caller]:
    """Who has a key for all scopes, of another organization or of the other environment of the same one."""
    if request.param == "organization":
        yield await gateway.caller(org_id=f"{gateway.org_id}-other")
    else:
        yield await gateway.caller(environment=Environment.LIVE)


# Organizations and environments


async def test_every_field_that_takes_an_id_or_a_name_is_asked_about(gateway: Gateway) -> None:
    schema = (await gateway.data(ROOT_FIELDS))["__schema"]
    fields = {field["name"] for field in schema["queryType"]["fields"] if field["args"]}
    fields |= {field["name"] for field in schema["mutationType"]["fields"]}
    # The names that it makes are asked about below; an endpoint has none.
    assert set(QUESTIONS) | {"createCustomer", "createWebhookEndpoint"} == fields


@pytest.mark.slow
async def test_what_is_another_tenants_is_as_if_it_were_not_there(gateway: Gateway, outsider: Caller) -> None:
    await make_meter(outsider, "own", workspaceId="own")
    own = await outsider.data(EVERYTHING)
    before = await ask_all(outsider, MADE_UP)
    assert await outsider.data(EVERYTHING) == own

    ids = await furnish(gateway)
    await make_meter(gateway, "own", workspaceId="own")
    there = await gateway.data(EVERYTHING)
    assert await ask_all(outsider, ids) == before
    assert await outsider.data(EVERYTHING) == own
    assert await gateway.data(EVERYTHING) == there

    # Their owner gets another answer to each of the questions.
    found = await ask_all(gateway, ids)
    assert [question for question, answer in found.items() if answer == before[question]] == []


async def test_the_same_names_may_exist_in_two_tenants_and_stay_apart(gateway: Gateway, outsider: Caller) -> None:
    names = {"workspaceId": "w", "externalMeterId": "m"}
    ids = {}
    for caller, total, refill in ((gateway, "100", "10"), (outsider, "200", "20")):
        answer = await caller.mutate(
            "createCustomer",
            "... on CreateCustomerSuccess { customer { id } replayed }",
            email=f"{total}@example.com",
            externalId="crm-1",
            idempotencyKey="k",
        )
        assert answer["replayed"] is False
        customer_id = answer["customer"]["id"]
        answer = await caller.mutate(
            "createBillingMeter",
            "... on CreateBillingMeterSuccess { billingMeter { id } replayed }",
            **names,
            totalCredits=total,
            customerId=customer_id,
            idempotencyKey="k",
        )
        assert answer["replayed"] is False
        ids[caller] = customer_id, answer["billingMeter"]["id"]
        answer = await caller.mutate(
            "refillBillingMeter",
            "... on RefillBillingMeterSuccess { replayed }",
            **names,
            refill=refill,
            idempotencyKey="k",
        )
        assert answer == {"__typename": "RefillBillingMeterSuccess", "replayed": False}
    # At once, so that one group decides both.
    answers = await asyncio.gather(
        *[
            caller.mutate(
                "recordUsage",
                "... on RecordUsageSuccess { replayed billingMeter { id usedCredits } }",
                **names,
                eventId="e",
                amount=amount,
            )
            for caller, amount in ((gateway, "1"), (outsider, "2"))
        ]
    )
    for caller, answer, used in zip((gateway, outsider), answers, ("1", "2"), strict=True):
        assert answer == {
            "__typename": "RecordUsageSuccess",
            "replayed": False,
            "billingMeter": {"id": ids[caller][1], "usedCredits": used},
        }

    for caller, total, used in ((gateway, "110", "1"), (outsider, "220", "2")):
        customer_id, meter_id = ids[caller]
        data = await caller.data(EVERYTHING)
        (customer,) = data["customers"]["nodes"]
        (meter,) = data["billingMeters"]["nodes"]
        assert (customer["id"], customer["externalId"]) == (customer_id, "crm-1")
        assert customer["billingMeters"] == {"nodes": [{"id": meter_id, "externalMeterId": "m"}]}
        assert (meter["id"], meter["totalCredits"], meter["usedCredits"]) == (meter_id, total, used)
        assert meter["customer"] == {"id": customer_id, "email": customer["email"]}
        assert meter["usage"] == [{"day": "2026-03-16", "totalBillingUsage": used}]
        assert len(meter["ledger"]["nodes"]) == 3
        # What has a taken name is named within the caller's own tenant alone.
        taken = await caller.mutate(
            "createCustomer", "... on AlreadyExists { existingId }", email="a@example.com", externalId="crm-1"
        )
        assert (taken["__typename"], taken["existingId"]) == ("AlreadyExists", customer_id)
        taken = await caller.mutate("createBillingMeter", "... on AlreadyExists { existingId }", **names)
        assert (taken["__typename"], taken["existingId"]) == ("AlreadyExists", meter_id)


async def test_a_tenant_is_shown_with_the_customer_and_the_viewer(gateway: Gateway, outsider: Caller) -> None:
    query = "{ viewer { orgId environment workspaceIds } customers { nodes { orgId environment } } }"
    for caller in (gateway, outsider):
        await make_customer(caller)
        data = await caller.data(query)
        viewer = data["viewer"]
        assert viewer["workspaceIds"] is None
        assert data["customers"]["nodes"] == [{"orgId": viewer["orgId"], "environment": viewer["environment"]}]
    viewers = [(await caller.data(query))["viewer"] for caller in (gateway, outsider)]
    assert (viewers[0]["orgId"], viewers[0]["environment"]) == (gateway.org_id, "SANDBOX")
    assert viewers[0] != viewers[1]


async def test_another_tenants_cursor_opens_nothing(gateway: Gateway, outsider: Caller) -> None:
    older = await make_customer(outsider), await make_meter(outsider, "older")
    await furnish(gateway)
    newer = await make_customer(outsider), await make_meter(outsider, "newer")
    query = """{
      customers { pageInfo { startCursor } }
      billingMeters { pageInfo { startCursor } nodes { ledger { pageInfo { startCursor } } } }
    }"""
    data = await gateway.data(query)
    cursors = [data[field]["pageInfo"]["startCursor"] for field in ("customers", "billingMeters")]
    page = """query ($customer: String, $meter: String) {
      customersAfter: customers(after: $customer) { nodes { id } }
      customersBefore: customers(before: $customer) { nodes { id } }
      metersAfter: billingMeters(after: $meter) { nodes { id } }
      metersBefore: billingMeters(before: $meter) { nodes { id } }
    }"""
    assert await outsider.data(page, {"customer": cursors[0], "meter": cursors[1]}) == {
        "customersAfter": {"nodes": [{"id": older[0]}]},
        "customersBefore": {"nodes": [{"id": newer[0]}]},
        "metersAfter": {"nodes": [{"id": older[1]}]},
        "metersBefore": {"nodes": [{"id": newer[1]}]},
    }
    # In a ledger it is refused, just as the cursor of another ledger of one's own.
    entry = """query ($cursor: String) {
      billingMeter(workspaceId: "w", externalMeterId: "newer") { ledger(after: $cursor) { nodes { id } } }
    }"""
    foreign = data["billingMeters"]["nodes"][0]["ledger"]["pageInfo"]["startCursor"]
    other = (await outsider.data(query))["billingMeters"]["nodes"][1]["ledger"]["pageInfo"]["startCursor"]
    error = await outsider.error(entry, {"cursor": foreign})
    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
    assert error == await outsider.error(entry, {"cursor": other})


# Keys that are limited to workspaces


class House(NamedTuple):
    """An organization with the workspaces `w` and `v`, and a caller whose key is limited to `w`."""

    limited: Caller
    #: Customers with meters in both workspaces, in `w` alone, in `v` alone, and without a meter.
    both: str
    inside: str
    outside: str
    meterless: str
    #: Meters by workspace and name.
    meters: dict[tuple[str, str], str]


@pytest.fixture
async def house(gateway: Gateway) -> House:
    """The organization of the test, furnished."""
    both, inside, outside, meterless = [
        await make_customer(gateway, email=f"{name}@example.com", externalId=name)
        for name in ("both", "inside", "outside", "meterless")
    ]
    meters = {}
    for workspace_id, name, customer_id in (
        ("v", "1", both),
        ("w", "1", both),
        ("w", "2", inside),
        ("v", "2", outside),
        ("v", "3", None),
        ("w", "3", None),
    ):
        meters[workspace_id, name] = await make_meter(
            gateway, name, workspaceId=workspace_id, totalCredits="10", customerId=customer_id
        )
        names = {"workspaceId": workspace_id, "externalMeterId": name}
        await gateway.mutate("recordUsage", "", **names, eventId="e", amount="3")
    return House(await gateway.caller(workspaces=["w"]), both, inside, outside, meterless, meters)


async def test_a_workspace_named_outside_the_keys_own_is_forbidden(gateway: Gateway, house: House) -> None:
    before = await gateway.data(EVERYTHING)
    names = "$w: String!, $m: String!"
    named = "workspaceId: $w, externalMeterId: $m"
    questions = {
        "billingMeter": f"query ({names}) {{ billingMeter({named}) {{ id }} }}",
        "billingMeters": "query ($w: String!) { billingMeters(filter: {workspaceId: $w}) { nodes { id } } }",
        "createBillingMeter": f"""mutation ({names}) {{
          createBillingMeter(input: {{{named}, idempotencyKey: "k"}}) {{ __typename }}
        }}""",
        "updateBillingMeter": f"""mutation ({names}) {{
          updateBillingMeter(input: {{{named}, spendCap: "7"}}) {{ __typename }}
        }}""",
        "refillBillingMeter": f"""mutation ({names}) {{
          refillBillingMeter(input: {{{named}, refill: "7", idempotencyKey: "k"}}) {{ __typename }}
        }}""",
        "recordUsage": f"""mutation ({names}) {{
          recordUsage(input: {{{named}, eventId: "e", amount: "3"}}) {{ __typename }}
        }}""",
    }
    for field, question in questions.items():
        there = await house.limited.run(question, {"w": "v", "m": "1"})
        (error,) = there["errors"]
        assert error["extensions"] == {"code": "FORBIDDEN"}, field
        assert error["path"] == [field]
        assert (there["data"] or {field: None}) == {field: None}
        # Whether there is such a meter, and such a workspace, is not shown.
        assert await house.limited.run(question, {"w": "v", "m": "missing"}) == there
        error = await house.limited.error(question, {"w": "W", "m": "1"})
        assert error["extensions"] == {"code": "FORBIDDEN"}
    assert await gateway.data(EVERYTHING) == before


async def test_a_forbidden_workspace_does_not_hide_a_permitted_one(house: House) -> None:
    body = await house.limited.run(
        """{
          inside: billingMeter(workspaceId: "w", externalMeterId: "1") { id }
          outside: billingMeter(workspaceId: "v", externalMeterId: "1") { id }
        }"""
    )
    assert body["data"] == {"inside": {"id": house.meters["w", "1"]}, "outside": None}
    assert [(error["path"], error["extensions"]["code"]) for error in body["errors"]] == [(["outside"], "FORBIDDEN")]


async def test_a_malformed_value_is_reported_before_a_forbidden_workspace(gateway: Gateway, house: House) -> None:
    before = await gateway.data(EVERYTHING)
    names = {"workspaceId": "v", "externalMeterId": "1"}
    malformed: list[tuple[str, dict[str, Any]]] = [
        ("createBillingMeter", {"timezone": "Mars/Olympus"}),
        ("updateBillingMeter", {"spendCap": None}),
        ("refillBillingMeter", {"refill": "0"}),
        ("recordUsage", {"eventId": "", "amount": "1"}),
    ]
    for field, values in malformed:
        answer = await house.limited.mutate(field, "", **names, **values)
        assert answer["__typename"] == "InvalidInput", field
    assert await gateway.data(EVERYTHING) == before


async def test_a_limited_key_works_in_its_own_workspace(gateway: Gateway, house: House) -> None:
    names = {"workspaceId": "w", "externalMeterId": "new"}
    works: list[tuple[str, dict[str, Any]]] = [
        ("createBillingMeter", {"customerId": house.inside}),
        ("updateBillingMeter", {"spendCap": "7", "allowOverages": True}),
        ("refillBillingMeter", {"refill": "5"}),
        ("recordUsage", {"eventId": "e", "amount": "12"}),
    ]
    for field, values in works:
        answer = await house.limited.mutate(field, "", **names, **values)
        assert answer["__typename"] == f"{field[0].upper()}{field[1:]}Success"
    question = f'{{ billingMeter(workspaceId: "w", externalMeterId: "new") {{ {METER} }} }}'
    meter = (await house.limited.data(question))["billingMeter"]
    assert (meter["totalCredits"], meter["usedCredits"], meter["customer"]["id"]) == ("5", "12", house.inside)
    assert (await gateway.data(question))["billingMeter"] == meter


@pytest.mark.slow
async def test_an_id_outside_the_workspaces_is_as_one_that_is_not_there(gateway: Gateway, house: House) -> None:
    outside = house.meters["v", "2"]
    names = {"workspaceId": "v", "externalMeterId": "2"}
    granted = await must(gateway, "grantCredits", "creditGrant { id }", **names, amount="5")
    held = await must(gateway, "holdCredits", "hold { id }", **names, holdId="h", amount="1")
    ids = MADE_UP._replace(
        customer=house.outside,
        meter=outside,
        entry=entry_id(outside, 2),
        grant=granted["creditGrant"]["id"],
        hold=held["hold"]["id"],
        event=f"evt_{outside.removeprefix('mtr_')}_1",
        alert=(await must(gateway, "createAlert", "alert { id }", **names, kind="REMAINING_BELOW", threshold="1"))[
            "alert"
        ]["id"],
        endpoint=(await make_endpoint(gateway, workspaceIds=["v"]))[0],
    )
    caps: dict[str, Any] = {"maxRefills": 1, "maxCredits": "1000", "windowSeconds": 60}
    await must(gateway, "setAutoRefill", **names, mode="FIXED", below="100000", amount="10", **caps)
    await must(gateway, "recordUsage", **names, eventId="request", amount="1")
    shown = "query ($id: ID!) { node(id: $id) { ... on BillingMeter { autoRefill { requestId } } } }"
    request = (await gateway.data(shown, {"id": outside}))["node"]["autoRefill"]["requestId"]
    sent = await gateway.mutate(
        "sendTestEvent", "... on SendTestEventSuccess { delivery { id } }", endpointId=ids.endpoint
    )
    ids = ids._replace(request=request, delivery=sent["delivery"]["id"])
    before = await gateway.data(EVERYTHING)
    nothing = {"node": None, "nodes": [None] * 5, "customer": None, "usage": None}
    for field, answer in nothing.items():
        for question in QUESTIONS[field]:
            assert await house.limited.run(question, ids._asdict()) == {"data": {field: answer}}
            assert await house.limited.run(question, MADE_UP._asdict()) == {"data": {field: answer}}
            assert (await gateway.data(question, ids._asdict()))[field] != answer
    for field in ("updateCustomer", "createCustomerSession", "createBillingMeter"):
        for question in QUESTIONS[field]:
            body = await house.limited.run(question, ids._asdict())
            assert body["data"][field]["__typename"] == "CustomerNotFound"
            assert body == await house.limited.run(question, MADE_UP._asdict())
    by_customer = "query ($customer: ID!) { billingMeters(filter: {customerId: $customer}) { nodes { id } } }"
    for customer_id in (house.outside, house.meterless, MADE_UP.customer):
        data = await house.limited.data(by_customer, {"customer": customer_id})
        assert data == {"billingMeters": {"nodes": []}}
    assert await gateway.data(EVERYTHING) == before


async def test_an_id_inside_the_workspaces_is_found(house: House) -> None:
    meter_id = house.meters["w", "2"]
    ids = MADE_UP._replace(customer=house.inside, meter=meter_id, entry=entry_id(meter_id, 2))
    data = await house.limited.data(QUESTIONS["nodes"][0], ids._asdict())
    assert data["nodes"] == [{"id": id_} for id_ in ids[:3]] + [None, None]
    usage = "query ($meter: ID!) { usage(billingId: $meter) { day totalBillingUsage } }"
    assert (await house.limited.data(usage, {"meter": meter_id}))["usage"] == [
        {"day": "2026-03-16", "totalBillingUsage": "3"}
    ]


async def test_lists_leave_out_what_is_outside_the_workspaces(house: House) -> None:
    meters = [house.meters["w", name] for name in ("3", "2", "1")]
    query = """query ($first: Int, $after: String) {
      billingMeters(first: $first, after: $after) { nodes { id } pageInfo { hasNextPage endCursor } }
    }"""
    found = (await house.limited.data(query))["billingMeters"]
    assert [meter["id"] for meter in found["nodes"]] == meters
    assert found["pageInfo"]["hasNextPage"] is False
    found = (await house.limited.data(query, {"first": 2}))["billingMeters"]
    assert [meter["id"] for meter in found["nodes"]] == meters[:2]
    found = (await house.limited.data(query, {"first": 1, "after": found["pageInfo"]["endCursor"]}))["billingMeters"]
    assert [meter["id"] for meter in found["nodes"]] == meters[2:]
    assert found["pageInfo"]["hasNextPage"] is False

    query = "query ($first: Int) { customers(first: $first) { nodes { id } pageInfo { hasNextPage } } }"
    for first, is_more in ((1, True), (2, False), (25, False)):
        found = (await house.limited.data(query, {"first": first}))["customers"]
        assert [customer["id"] for customer in found["nodes"]] == [house.inside, house.both][:first]
        assert found["pageInfo"]["hasNextPage"] is is_more


async def test_customers_are_visible_only_through_their_meters(gateway: Gateway, house: House) -> None:
    query = """query ($id: ID!, $name: String!) {
      customer(id: $id) { id }
      node(id: $id) { id }
      nodes(ids: [$id]) { id }
      customerByExternalId(externalId: $name) { id }
    }"""
    for name in ("both", "inside", "outside", "meterless"):
        id_ = getattr(house, name)
        shown = {"id": id_}
        whole = {"customer": shown, "node": shown, "nodes": [shown], "customerByExternalId": shown}
        nothing = {"customer": None, "node": None, "nodes": [None], "customerByExternalId": None}
        assert await gateway.data(query, {"id": id_, "name": name}) == whole
        visible = name in {"both", "inside"}
        assert await house.limited.data(query, {"id": id_, "name": name}) == (whole if visible else nothing)


async def test_of_a_visible_customer_the_meters_outside_stay_hidden(gateway: Gateway, house: House) -> None:
    query = """query ($id: ID!) {
      customer(id: $id) { billingMeters { nodes { id } pageInfo { hasNextPage } } }
      billingMeters(filter: {customerId: $id}) { nodes { id customer { id } } }
      billingMeter(workspaceId: "w", externalMeterId: "1") { customer { billingMeters(last: 1) { nodes { id } } } }
    }"""
    inside, outside = house.meters["w", "1"], house.meters["v", "1"]
    data = await house.limited.data(query, {"id": house.both})
    assert data == {
        "customer": {"billingMeters": {"nodes": [{"id": inside}], "pageInfo": {"hasNextPage": False}}},
        "billingMeters": {"nodes": [{"id": inside, "customer": {"id": house.both}}]},
        "billingMeter": {"customer": {"billingMeters": {"nodes": [{"id": inside}]}}},
    }
    data = await gateway.data(query, {"id": house.both})
    assert data["customer"]["billingMeters"]["nodes"] == [{"id": inside}, {"id": outside}]


async def test_a_customer_comes_and_goes_with_its_meters_in_the_workspace(gateway: Gateway, house: House) -> None:
    async def is_visible() -> bool:
        data = await house.limited.data("query ($id: ID!) { customer(id: $id) { id } }", {"id": house.outside})
        return data == {"customer": {"id": house.outside}}

    assert not await is_visible()
    assert await attach(gateway, "3", house.outside) == "UpdateBillingMeterSuccess"
    assert await is_visible()
    assert await attach(gateway, "3", None) == "UpdateBillingMeterSuccess"
    assert not await is_visible()


async def test_a_meter_may_be_given_to_a_customer_that_the_key_sees_or_has_made(gateway: Gateway, house: House) -> None:
    own = await make_customer(house.limited, email="own@example.com")
    for customer_id in (house.inside, house.both, own):
        assert await attach(house.limited, "3", customer_id) == "UpdateBillingMeterSuccess"
        await make_meter(house.limited, f"of {customer_id}", customerId=customer_id)
    query = "query ($id: ID!) { customer(id: $id) { billingMeters { nodes { externalMeterId } } } }"
    data = await house.limited.data(query, {"id": own})
    names = [meter["externalMeterId"] for meter in data["customer"]["billingMeters"]["nodes"]]
    assert names == [f"of {own}", "3"]
    assert await gateway.data(query, {"id": own}) == data


@pytest.mark.slow
async def test_a_meter_is_not_given_to_a_customer_that_is_not_visible(
    gateway: Gateway, house: House, subtests: pytest.Subtests
) -> None:
    # One that has lost its last meter, and one that another key of the same workspace has made.
    bereft = await make_customer(gateway, email="bereft@example.com")
    assert await attach(gateway, "3", bereft) == "UpdateBillingMeterSuccess"
    assert await attach(house.limited, "3", None) == "UpdateBillingMeterSuccess"
    sibling = await gateway.caller(workspaces=["w"])
    of_sibling = await make_customer(sibling, email="sibling@example.com")
    before = await gateway.data(EVERYTHING)
    create = {"workspaceId": "w", "externalMeterId": "new", "idempotencyKey": "k"}
    update = {"workspaceId": "w", "externalMeterId": "3", "spendCap": "7"}
    for customer_id in (house.outside, house.meterless, bereft, of_sibling):
        for field, values in (("createBillingMeter", create), ("updateBillingMeter", update)):
            with subtests.test(customer_id=customer_id, field=field):
                answer = await house.limited.mutate(field, "", **values, customerId=customer_id)
                assert answer["__typename"] == "CustomerNotFound"
                assert answer == await house.limited.mutate(field, "", **values, customerId=MADE_UP.customer)
        for field, values in (
            ("updateCustomer", {"id": customer_id, "name": "Mallory"}),
            ("createCustomerSession", {"customerId": customer_id}),
        ):
            with subtests.test(customer_id=customer_id, field=field):
                assert (await house.limited.mutate(field, "", **values))["__typename"] == "CustomerNotFound"
    assert await gateway.data(EVERYTHING) == before


async def test_a_customer_that_is_not_there_is_looked_up_as_one_that_is_not_visible(
    gateway: Gateway, house: House
) -> None:
    await house.limited.data("{ viewer { orgId } }")  # Its key is looked up.
    counts = set()
    for customer_id in (house.outside, house.meterless, MADE_UP.customer):
        with gateway.statements() as statements:
            await house.limited.mutate(
                "createBillingMeter", "", workspaceId="w", externalMeterId="new", customerId=customer_id
            )
        counts.add(len(statements))
    assert len(counts) == 1


async def test_a_key_gives_back_a_meter_that_it_took_from_a_customer_that_it_made(house: House) -> None:
    own = await make_customer(house.limited, email="own@example.com")
    for customer_id in (own, None, own):
        assert await attach(house.limited, "3", customer_id) == "UpdateBillingMeterSuccess"
    assert await attach(house.limited, "2", None) == "UpdateBillingMeterSuccess"
    assert await attach(house.limited, "2", house.inside) == "CustomerNotFound"


async def test_a_taken_external_id_names_a_customer_only_to_a_key_that_sees_or_has_made_it(
    gateway: Gateway, house: House
) -> None:
    own = await make_customer(house.limited, email="own@example.com", externalId="own")
    before = await gateway.data(EVERYTHING)
    selection = "... on AlreadyExists { existingId }"
    create = {"email": "new@example.com"}
    for name, customer_id in (("both", house.both), ("inside", house.inside), ("own", own)):
        answer = await house.limited.mutate("createCustomer", selection, **create, externalId=name)
        assert (answer["__typename"], answer["existingId"]) == ("AlreadyExists", customer_id)
    taken = {
        "__typename": "InvalidInput",
        "code": "INVALID_INPUT",
        "message": "externalId is taken by a customer that the key may not see; choose another.",
        "field": ["input", "externalId"],
    }
    for name in ("outside", "meterless"):
        assert await house.limited.mutate("createCustomer", selection, **create, externalId=name) == taken
        values = {**create, "externalId": name, "idempotencyKey": "k"}
        assert await house.limited.mutate("createCustomer", selection, **values) == taken
        assert await house.limited.mutate("updateCustomer", selection, id=house.inside, externalId=name) == taken
        answer = await gateway.mutate("createCustomer", selection, **create, externalId=name)
        assert answer["existingId"] == getattr(house, name)
    response = await house.limited.client.post(
        "/v1/customers",
        json={"email": "new@example.com", "external_id": "outside"},
        headers={"authorization": f"Bearer {house.limited.key}"},
    )
    assert (response.status_code, response.json()["error"]["message"]) == (
        400,
        "external_id is taken by a customer that the key may not see; choose another.",
    )
    assert await gateway.data(EVERYTHING) == before


async def test_a_create_is_replayed_to_the_key_that_made_it_or_sees_the_customer_alone(
    gateway: Gateway, house: House, subtests: pytest.Subtests
) -> None:
    selection = """... on CreateCustomerSuccess { customer { id email metadata } replayed }
      ... on IdempotencyConflict { entry: firstEntry { id } }"""
    sibling = await gateway.caller(workspaces=["w"])
    for key, maker in (("unlimited", gateway), ("limited", sibling)):
        with subtests.test(maker=key):
            values = {"email": "old@example.com", "idempotencyKey": key}
            made = await maker.mutate("createCustomer", selection, **values)
            id_ = made["customer"]["id"]
            new = {"id": id_, "email": "new@example.com", "metadata": {"secret": 1}}
            await gateway.mutate("updateCustomer", "", **new)
            before = await gateway.data(EVERYTHING)
            conflict = await house.limited.mutate("createCustomer", selection, **values)
            assert conflict == {
                "__typename": "IdempotencyConflict",
                "code": "IDEMPOTENCY_CONFLICT",
                "message": f"{key!r} was used before with other values.",
                "entry": None,
            }
            # Whether the values were the same is not shown.
            assert await house.limited.mutate("createCustomer", selection, **values | {"name": "x"}) == conflict
            response = await house.limited.client.post(
                "/v1/customers",
                json={"email": "old@example.com"},
                headers={"authorization": f"Bearer {house.limited.key}", "idempotency-key": key},
            )
            assert response.status_code == 400
            assert "new@example.com" not in response.text
            replay = {"__typename": "CreateCustomerSuccess", "customer": new, "replayed": True}
            for caller in (maker, gateway):
                assert await caller.mutate("createCustomer", selection, **values) == replay
            assert await gateway.data(EVERYTHING) == before
            # From its first meter in the workspace on, the other key sees it.
            await make_meter(gateway, key, customerId=id_)
            assert await house.limited.mutate("createCustomer", selection, **values) == replay


async def test_a_limited_key_makes_no_session_of_a_customer_that_it_made_and_does_not_see(house: House) -> None:
    own = await make_customer(house.limited, email="own@example.com")
    refused = await house.limited.mutate("createCustomerSession", "", customerId=own)
    assert refused["__typename"] == "CustomerNotFound"
    await make_meter(house.limited, "own", customerId=own)
    made = await house.limited.mutate("createCustomerSession", "", customerId=own)
    assert made["__typename"] == "CreateCustomerSessionSuccess"


async def test_a_meter_may_be_taken_from_its_customer(gateway: Gateway, house: House) -> None:
    assert await attach(house.limited, "2", None) == "UpdateBillingMeterSuccess"
    data = await gateway.data('{ billingMeter(workspaceId: "w", externalMeterId: "2") { customer { id } } }')
    assert data == {"billingMeter": {"customer": None}}


async def test_a_customer_that_is_not_visible_is_not_changed(gateway: Gateway, house: House) -> None:
    before = await gateway.data(EVERYTHING)
    for customer_id in (house.outside, house.meterless):
        answer = await house.limited.mutate("updateCustomer", "", id=customer_id, name="Mallory", externalId=None)
        assert answer["__typename"] == "CustomerNotFound"
        assert answer == await house.limited.mutate("updateCustomer", "", id=MADE_UP.customer, name="Mallory")
    assert await gateway.data(EVERYTHING) == before
    for customer_id in (house.inside, house.both):
        answer = await house.limited.mutate("updateCustomer", "", id=customer_id, name="Ada")
        assert answer["__typename"] == "UpdateCustomerSuccess"


async def test_a_limited_key_makes_a_customer_and_sees_it_from_its_first_meter_on(house: House) -> None:
    values = {"email": "new@example.com", "externalId": "new", "idempotencyKey": "k"}
    selection = "... on CreateCustomerSuccess { customer { id email billingMeters { nodes { id } } } replayed }"
    made = await house.limited.mutate("createCustomer", selection, **values)
    id_ = made["customer"]["id"]
    assert made["customer"] == {"id": id_, "email": "new@example.com", "billingMeters": {"nodes": []}}
    assert made["replayed"] is False
    # It may repeat the request, and still does not see the customer.
    assert await house.limited.mutate("createCustomer", selection, **values) == made | {"replayed": True}
    query = "query ($id: ID!) { customer(id: $id) { id } }"
    assert await house.limited.data(query, {"id": id_}) == {"customer": None}
    await make_meter(house.limited, "new", customerId=id_)
    assert await house.limited.data(query, {"id": id_}) == {"customer": {"id": id_}}


async def test_a_conflict_does_not_show_an_entry_of_another_workspace(gateway: Gateway, house: House) -> None:
    await make_meter(gateway, "keyed", workspaceId="v", totalCredits="5", idempotencyKey="k")
    before = await gateway.data(EVERYTHING)
    names = {"workspaceId": "w", "externalMeterId": "keyed", "idempotencyKey": "k"}
    selection = "... on IdempotencyConflict { entry: firstEntry { kind amount } }"
    answer = await house.limited.mutate("createBillingMeter", selection, **names)
    assert (answer["__typename"], answer["entry"]) == ("IdempotencyConflict", None)
    answer = await gateway.mutate("createBillingMeter", selection, **names)
    assert answer["entry"] == {"kind": "OPENING", "amount": "5"}
    assert await gateway.data(EVERYTHING) == before


async def test_a_key_may_be_limited_to_several_workspaces_and_to_ones_without_meters(
    gateway: Gateway, house: House
) -> None:
    query = "{ viewer { workspaceIds } billingMeters { nodes { id } } customers { nodes { id } } }"
    several = await gateway.caller(workspaces=["v", "x", "w"])
    data = await several.data(query)
    assert data["viewer"] == {"workspaceIds": ["v", "w", "x"]}
    assert [meter["id"] for meter in data["billingMeters"]["nodes"]] == list(house.meters.values())[::-1]
    assert [customer["id"] for customer in data["customers"]["nodes"]] == [house.outside, house.inside, house.both]
    none = await gateway.caller(workspaces=["x"])
    assert await none.data(query) == {
        "viewer": {"workspaceIds": ["x"]},
        "billingMeters": {"nodes": []},
        "customers": {"nodes": []},
    }
