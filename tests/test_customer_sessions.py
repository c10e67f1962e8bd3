"""Customers' sessions: who makes them, how long they live, and that they see one customer and change nothing."""

import hashlib
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import make_url, select, text

from resolvers.actor import Scope
from resolvers.api_keys import revoke_api_key
from resolvers.customers.sessions import MAX_DELETED
from schema.root import schema
from storage import api_keys as api_key_rows
from storage.api_keys import api_keys
from storage.tables import metadata
from storage.tenants import Environment
from tests.conftest import NOW, Caller, Gateway
from tests.credit_walks import Walk
from tests.steps import execute, make_customer, make_grant, make_meter, must, new_key, session_of

CREATED = "... on CreateCustomerSessionSuccess { token expiresAt customer { id email } }"
VIEWER = "{ viewer { orgId environment scopes workspaceIds customer { id } } }"
METER_IDS = "{ billingMeters { nodes { id } } }"

#: Of the form of ids, and nobody's.
MADE_UP = {"customer": f"cus_{'0' * 24}", "meter": f"mtr_{'0' * 24}", "entry": f"ent_{'0' * 24}_1"}


async def sessions(gateway: Gateway) -> list[dict[str, Any]]:
    """Return the rows of the organization's sessions, oldest first."""
    statement = select(api_keys).where(api_keys.c.org_id == gateway.org_id, api_keys.c.parent_id.is_not(None))
    async with gateway.database.read() as reader:
        return [row._asdict() for row in await reader.fetch(statement.order_by(api_keys.c.id))]


def assert_unauthenticated(response: httpx.Response) -> None:
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    (error,) = response.json()["errors"]
    assert error == {
        "message": "The API key is missing, malformed, unknown, expired or revoked.",
        "extensions": {"code": "UNAUTHENTICATED"},
    }


class TestMaking:
    async def test_a_session_shows_its_token_its_customer_and_its_end(self, gateway: Gateway) -> None:
        customer_id = await make_customer(gateway)
        made = await gateway.mutate("createCustomerSession", CREATED, customerId=customer_id)
        # 43 digits of base 64 hold 32 bytes.
        assert re.fullmatch("cst_test_[A-Za-z0-9_-]{43}", made.pop("token"))
        assert made == {
            "__typename": "CreateCustomerSessionSuccess",
            "expiresAt": "2026-03-16T13:00:00Z",
            "customer": {"id": customer_id, "email": "ada@example.com"},
        }

    @pytest.mark.parametrize(("environment", "prefix"), [(Environment.LIVE, "live"), (Environment.SANDBOX, "test")])
    async def test_its_token_names_the_environment_of_the_key(
        self, gateway: Gateway, environment: Environment, prefix: str
    ) -> None:
        backend = await gateway.caller(environment=environment)
        browser = await session_of(backend, await make_customer(backend))
        assert browser.key.startswith(f"cst_{prefix}_")
        assert (await browser.data(VIEWER))["viewer"]["environment"] == environment.name

    async def test_only_a_digest_is_stored(self, own: Gateway) -> None:
        key_id, backend = await new_key(own, workspace_ids=["w", "v"])
        customer_id = await make_customer(own)
        await make_meter(own, customerId=customer_id)
        browser = await session_of(backend, customer_id, expiresInSeconds=60)
        (stored,) = await sessions(own)
        assert re.fullmatch("key_[0-9a-f]{24}", stored.pop("id"))
        assert stored == {
            "org_id": own.org_id,
            "environment": Environment.SANDBOX,
            "name": None,
            "scopes": ["billing:read"],
            "workspace_ids": ["v", "w"],
            "digest": hashlib.sha256(browser.key.encode()).hexdigest(),
            "expires_at": NOW + timedelta(seconds=60),
            "revoked_at": None,
            "created_at": NOW,
            "customer_id": customer_id,
            "parent_id": key_id,
        }
        secret = browser.key.removeprefix("cst_test_")
        async with own.database.read() as reader:
            for table in metadata.sorted_tables:
                for row in await reader.fetch(text(f"SELECT * FROM {table.name}")):  # noqa: S608  # Our own names.
                    assert secret not in repr(row)
        # To open a file and close it ends the locks that SQLite has on it, so the database is the test's own.
        if own.database.dialect == "sqlite":
            file = make_url(str(own.database.url)).database
            assert file is not None
            for path in Path(file).parent.glob(f"{Path(file).name}*"):
                assert secret.encode() not in path.read_bytes()

    async def test_it_lives_from_a_minute_to_a_day(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        customer_id = await make_customer(gateway)
        for seconds, end in ((60, "2026-03-16T12:01:00Z"), (86_400, "2026-03-17T12:00:00Z")):
            made = await gateway.mutate(
                "createCustomerSession", CREATED, customerId=customer_id, expiresInSeconds=seconds
            )
            assert made["expiresAt"] == end
        before = await sessions(gateway)
        for seconds in (59, 0, -1, 86_401, 2**31 - 1):
            with subtests.test(seconds=seconds):
                refused = await gateway.mutate(
                    "createCustomerSession", CREATED, customerId=customer_id, expiresInSeconds=seconds
                )
                assert refused == {
                    "__typename": "InvalidInput",
                    "code": "INVALID_INPUT",
                    "message": "expiresInSeconds must be 60 to 86400.",
                    "field": ["input", "expiresInSeconds"],
                }
        assert await sessions(gateway) == before

    async def test_it_ends_with_its_key_where_that_is_earlier(self, gateway: Gateway) -> None:
        backend = await gateway.caller(expires_at=NOW + timedelta(seconds=100))
        customer_id = await make_customer(gateway)
        for seconds, end in ((60, "2026-03-16T12:01:00Z"), (101, "2026-03-16T12:01:40Z")):
            made = await backend.mutate(
                "createCustomerSession", CREATED, customerId=customer_id, expiresInSeconds=seconds
            )
            assert made["expiresAt"] == end

    async def test_malformed_comes_before_permission_and_permission_before_the_customer(self, gateway: Gateway) -> None:
        reader = await gateway.caller(Scope.BILLING_READ, Scope.USAGE_WRITE, Scope.USAGE_CORRECT)
        refused = await reader.mutate("createCustomerSession", "", customerId="nobody", expiresInSeconds=59)
        assert refused["__typename"] == "InvalidInput"
        mutation = 'mutation { createCustomerSession(input: {customerId: "nobody"}) { __typename } }'
        error = await reader.error(mutation)
        assert error["message"] == "The key lacks the scope billing:write."
        assert error["extensions"] == {"code": "FORBIDDEN"}
        # What a session reads, its key has to be allowed to read.
        writer = await gateway.caller(*set(Scope) - {Scope.BILLING_READ})
        for customer_id in ("nobody", await make_customer(gateway)):
            error = await writer.error(mutation.replace("nobody", customer_id))
            assert error["message"] == "The key lacks the scope billing:read."
            assert error["extensions"] == {"code": "FORBIDDEN"}
        both = await gateway.caller(Scope.BILLING_WRITE, Scope.BILLING_READ)
        assert await both.data(mutation) == {"createCustomerSession": {"__typename": "CustomerNotFound"}}
        assert await sessions(gateway) == []

    async def test_a_customer_that_the_key_may_not_see_is_not_found(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        limited = await gateway.caller(workspaces=["w"])
        live = await gateway.caller(environment=Environment.LIVE)
        other = await gateway.caller(org_id=f"{gateway.org_id}-other")
        without, outside = await make_customer(gateway), await make_customer(gateway)
        await make_meter(gateway, workspaceId="v", customerId=outside)
        for caller, customer_id in (
            (gateway, MADE_UP["customer"]),
            (gateway, "x"),
            (gateway, ""),
            (live, outside),
            (other, outside),
            (limited, without),
            (limited, outside),
        ):
            with subtests.test(customer_id=customer_id):
                refused = await caller.mutate("createCustomerSession", "", customerId=customer_id)
                assert refused == {
                    "__typename": "CustomerNotFound",
                    "code": "CUSTOMER_NOT_FOUND",
                    "message": "There is no customer of this id.",
                }
        assert await sessions(gateway) == []

    async def test_a_key_that_was_revoked_while_it_is_remembered_makes_none(self, gateway: Gateway) -> None:
        key_id, backend = await new_key(gateway)
        customer_id = await make_customer(backend)
        await revoke_api_key(gateway.database, key_id, now=gateway.clock())
        error = await backend.error(
            f'mutation {{ createCustomerSession(input: {{customerId: "{customer_id}"}}) {{ __typename }} }}'
        )
        assert error["message"] == "The API key has been revoked."
        assert error["extensions"] == {"code": "UNAUTHENTICATED"}
        assert await sessions(gateway) == []


class TestLifetime:
    async def test_it_ends_at_once_when_its_time_is_over(self, gateway: Gateway) -> None:
        browser = await session_of(gateway, await make_customer(gateway), expiresInSeconds=60)
        gateway.clock.forward(seconds=58)
        await browser.data(VIEWER)
        gateway.clock.forward(seconds=1.999999)
        await browser.data(VIEWER)
        gateway.clock.forward(seconds=0.000001)
        assert_unauthenticated(await browser.post(VIEWER))
        gateway.clock.forward(days=1_000)
        assert_unauthenticated(await browser.post(VIEWER))
        await gateway.data(VIEWER)

    async def test_it_ends_at_once_when_its_key_expires(self, gateway: Gateway) -> None:
        _, backend = await new_key(gateway, expires_at=NOW + timedelta(seconds=3))
        browser = await session_of(backend, await make_customer(gateway))
        await browser.data(VIEWER)
        gateway.clock.forward(seconds=2.999999)
        await browser.data(VIEWER)
        gateway.clock.forward(seconds=0.000001)
        assert_unauthenticated(await browser.post(VIEWER))

    async def test_it_ends_with_its_key_also_when_that_was_shortened_since(self, gateway: Gateway) -> None:
        key_id, backend = await new_key(gateway)
        browser = await session_of(backend, await make_customer(gateway))
        sooner = {"sqlite": "'2026-03-16T12:00:02+00:00'", "postgresql": "'2026-03-16T12:00:02Z'"}
        await execute(
            gateway.database,
            f"UPDATE api_keys SET expires_at = {sooner[gateway.database.dialect]} WHERE id = :id",  # noqa: S608
            id=key_id,
        )
        gateway.clock.forward(seconds=1.999999)
        await browser.data(VIEWER)
        gateway.clock.forward(seconds=0.000001)
        assert_unauthenticated(await browser.post(VIEWER))

    async def test_it_ends_within_5_seconds_of_its_keys_revocation(self, gateway: Gateway) -> None:
        key_id, backend = await new_key(gateway)
        customer_id = await make_customer(gateway)
        seen, unseen = await session_of(backend, customer_id), await session_of(backend, customer_id)
        of_another_key = await session_of(gateway, customer_id)
        await seen.data(VIEWER)
        await revoke_api_key(gateway.database, key_id, now=gateway.clock())
        assert_unauthenticated(await unseen.post(VIEWER))
        # The other token is still remembered.
        gateway.clock.forward(seconds=4.999999)
        await seen.data(VIEWER)
        gateway.clock.forward(seconds=0.000001)
        assert_unauthenticated(await seen.post(VIEWER))
        await of_another_key.data(VIEWER)

    async def test_it_may_never_do_more_than_its_key(self, gateway: Gateway) -> None:
        """As when the row of the key was changed, or the session was made by a release that asked for less."""
        key_id, backend = await new_key(gateway, workspace_ids=["v", "w"])
        customer_id = await make_customer(gateway)
        meter_ids = {
            workspace_id: await make_meter(gateway, workspaceId=workspace_id, customerId=customer_id)
            for workspace_id in ("v", "w")
        }
        browser = await session_of(backend, customer_id)
        query = "{ viewer { scopes workspaceIds } billingMeters { nodes { id } } }"
        assert await browser.data(query) == {
            "viewer": {"scopes": ["BILLING_READ"], "workspaceIds": ["v", "w"]},
            "billingMeters": {"nodes": [{"id": meter_ids["w"]}, {"id": meter_ids["v"]}]},
        }
        await execute(gateway.database, "UPDATE api_keys SET workspace_ids = '[\"w\"]' WHERE id = :id", id=key_id)
        gateway.clock.forward(seconds=5)
        assert await browser.data(query) == {
            "viewer": {"scopes": ["BILLING_READ"], "workspaceIds": ["w"]},
            "billingMeters": {"nodes": [{"id": meter_ids["w"]}]},
        }
        await execute(gateway.database, "UPDATE api_keys SET scopes = '[\"billing:write\"]' WHERE id = :id", id=key_id)
        gateway.clock.forward(seconds=5)
        error = await browser.error("{ viewer { orgId } }")
        assert error["message"] == "The key lacks the scope billing:read."

    async def test_it_does_not_outlive_the_row_of_its_key(self, gateway: Gateway) -> None:
        key_id, backend = await new_key(gateway)
        browser = await session_of(backend, await make_customer(gateway))
        await execute(gateway.database, "DELETE FROM api_keys WHERE id = :id", id=key_id)
        assert_unauthenticated(await browser.post(VIEWER))

    async def test_a_token_is_looked_up_by_one_statement_once_in_5_seconds(self, gateway: Gateway) -> None:
        browser = await session_of(gateway, await make_customer(gateway))
        for forward, count in ((0, 1), (4.9, 0), (0.1, 1)):
            gateway.clock.forward(seconds=forward)
            with gateway.statements() as statements:
                await browser.data("{ viewer { orgId } }")
            assert len(statements) == count

    async def test_a_token_of_the_other_environment_or_changed_is_unknown(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        token = (await session_of(gateway, await make_customer(gateway))).key
        changed = "a" if token[-1] != "a" else "b"
        for unknown in (
            token.replace("cst_test_", "cst_live_"),
            token.replace("cst_test_", "sk_test_"),
            token[:-1] + changed,
            token[:-1],
            f"{token}a",
            token.upper(),
            "cst_test_",
        ):
            with subtests.test(token=unknown):
                assert_unauthenticated(await Caller(gateway.client, unknown).post(VIEWER))

    async def test_expired_sessions_are_deleted_a_few_at_a_time_when_one_is_made(self, gateway: Gateway) -> None:
        # Other tests' sessions, made by the same clock, would be among the deleted.
        await execute(gateway.database, "DELETE FROM api_keys WHERE parent_id IS NOT NULL")
        customer_id = await make_customer(gateway)
        for _ in range(MAX_DELETED + 5):
            await session_of(gateway, customer_id, expiresInSeconds=60)
        gateway.clock.forward(seconds=1)
        alive = await session_of(gateway, customer_id, expiresInSeconds=60)
        gateway.clock.forward(seconds=58.999999)
        await session_of(gateway, customer_id)
        assert len(await sessions(gateway)) == MAX_DELETED + 7
        gateway.clock.forward(seconds=0.000001)
        for left in (5 + 3, 4):
            await session_of(gateway, customer_id)
            assert len(await sessions(gateway)) == left
        await alive.data(VIEWER)
        # Keys that have expired stay where they are.
        key_id, _ = await new_key(gateway, expires_at=gateway.clock() + timedelta(seconds=1))
        gateway.clock.forward(seconds=1)
        await session_of(gateway, customer_id)
        assert len(await sessions(gateway)) == 4
        async with gateway.database.read() as reader:
            assert await api_key_rows.by_id(reader, key_id) is not None

    async def test_sessions_are_not_listed_among_the_keys(self, gateway: Gateway) -> None:
        async with gateway.database.read() as reader:
            before = await api_key_rows.all_keys(reader)
        await session_of(gateway, await make_customer(gateway))
        async with gateway.database.read() as reader:
            assert await api_key_rows.all_keys(reader) == before


class House(NamedTuple):
    """An organization with two customers, Ada and Bob, and a session of Ada's."""

    browser: Caller
    ada: str
    bob: str
    #: The ids of the meters by (workspace, name): Ada's two, Bob's one, nobody's one.
    meters: dict[tuple[str, str], str]

    def entry(self, workspace_id: str, name: str, seq: int = 2) -> str:
        return f"ent_{self.meters[workspace_id, name].removeprefix('mtr_')}_{seq}"


@pytest.fixture
async def house(gateway: Gateway) -> House:
    """The organization, furnished."""
    ada = await make_customer(gateway, externalId="ada")
    bob = await make_customer(gateway, email="bob@example.com", externalId="bob")
    meters = {}
    for workspace_id, name, customer_id in (
        ("w", "ada", ada),
        ("v", "ada", ada),
        ("w", "bob", bob),
        ("w", "nobody", None),
    ):
        meters[workspace_id, name] = await make_meter(
            gateway, name, workspaceId=workspace_id, totalCredits="100", customerId=customer_id
        )
        await gateway.mutate(
            "recordUsage", "", workspaceId=workspace_id, externalMeterId=name, eventId="e", amount="30"
        )
    return House(await session_of(gateway, ada), ada, bob, meters)


#: What a session may ask, with what it is about as variables.
QUESTIONS = {
    "node": [
        "query ($customer: ID!) { node(id: $customer) { id } }",
        "query ($meter: ID!) { node(id: $meter) { id } }",
        "query ($entry: ID!) { node(id: $entry) { id } }",
    ],
    "nodes": ["query ($customer: ID!, $meter: ID!, $entry: ID!) { nodes(ids: [$customer, $meter, $entry]) { id } }"],
    "customer": ["query ($customer: ID!) { customer(id: $customer) { id } }"],
    "billingMeter": [
        "query ($w: String!, $name: String!) { billingMeter(workspaceId: $w, externalMeterId: $name) { id } }"
    ],
    "billingMeters": [
        "query ($customer: ID!) { billingMeters(filter: {customerId: $customer}) { nodes { id } } }",
    ],
    "usage": ["query ($meter: ID!) { usage(billingId: $meter, fillZeros: true) { day totalBillingUsage } }"],
}
#: What a session may not ask, whatever it is about.
FORBIDDEN_QUERIES = [
    "{ customers { nodes { id } } }",
    '{ customerByExternalId(externalId: "ada") { id } }',
    '{ customerByExternalId(externalId: "bob") { id } }',
    '{ customerByExternalId(externalId: "missing") { id } }',
    "{ events { nodes { id } } }",
    "{ alerts { nodes { id } } }",
    "{ webhookEndpoints { nodes { id } } }",
]
NAMES = 'workspaceId: "w", externalMeterId: "ada"'
MUTATIONS = {
    "createCustomer": 'input: {email: "new@example.com"}',
    "updateCustomer": 'input: {id: "CUSTOMER", name: "Changed"}',
    "createCustomerSession": 'input: {customerId: "CUSTOMER"}',
    "createBillingMeter": 'input: {workspaceId: "w", externalMeterId: "new"}',
    "updateBillingMeter": f"input: {{{NAMES}, allowOverages: true}}",
    "refillBillingMeter": f"input: {{{NAMES}, refill: 5}}",
    "recordUsage": f'input: {{{NAMES}, eventId: "new", amount: 1}}',
    "recordUsageBatch": f'input: [{{{NAMES}, eventId: "batch", amount: 1}}]',
    "voidUsage": f'input: {{{NAMES}, eventId: "e", amount: 1, reason: "why", idempotencyKey: "new"}}',
    "grantCredits": f"input: {{{NAMES}, amount: 1}}",
    "updateCreditGrant": 'input: {id: "GRANT", priority: 1}',
    "revokeCreditGrant": 'input: {id: "GRANT"}',
    "holdCredits": f'input: {{{NAMES}, holdId: "new", amount: 1}}',
    "commitHold": f'input: {{{NAMES}, holdId: "held", amount: 1}}',
    "releaseHold": f'input: {{{NAMES}, holdId: "held"}}',
    "extendHold": f'input: {{{NAMES}, holdId: "held", expiresInSeconds: 9000}}',
    "createAlert": f"input: {{{NAMES}, kind: REMAINING_BELOW, threshold: 5}}",
    "updateAlert": 'input: {id: "alr_1", threshold: 6}',
    "deleteAlert": 'input: {id: "alr_1"}',
    "setAutoRefill": f"input: {{{NAMES}, isEnabled: false}}",
    "resumeAutoRefill": f"input: {{{NAMES}}}",
    "failAutoRefill": 'input: {requestId: "arr_1", reason: "r"}',
    "createWebhookEndpoint": 'input: {url: "https://example.com/"}',
    "updateWebhookEndpoint": 'input: {id: "whe_1"}',
    "rotateWebhookSecret": 'input: {id: "whe_1", generation: 2}',
    "deleteWebhookEndpoint": 'input: {id: "whe_1"}',
    "sendTestEvent": 'input: {endpointId: "whe_1"}',
    "redeliverEvents": 'input: {endpointId: "whe_1", eventId: "evt_1"}',
}
STATE = """{
  customers { nodes { id email name } }
  billingMeters { nodes { id totalCredits usedCredits allowOverages ledger { nodes { id } } } }
}"""


class TestSeeing:
    async def test_the_viewer_is_the_customer_and_may_read_alone(self, gateway: Gateway, house: House) -> None:
        assert await house.browser.data(VIEWER) == {
            "viewer": {
                "orgId": gateway.org_id,
                "environment": "SANDBOX",
                "scopes": ["BILLING_READ"],
                "workspaceIds": None,
                "customer": {"id": house.ada},
            }
        }
        assert (await gateway.data(VIEWER))["viewer"]["customer"] is None

    async def test_the_customer_sees_its_meters_their_usage_and_their_ledgers(self, house: House) -> None:
        data = await house.browser.data(
            """query ($customer: ID!, $meter: ID!, $entry: ID!) {
              customer(id: $customer) { email externalId billingMeters { nodes { id } } }
              billingMeter(workspaceId: "w", externalMeterId: "ada") {
                id availableCredits customer { id } usage { totalBillingUsage }
                ledger { nodes { kind key amount billingMeter { id } } }
              }
              billingMeters { nodes { id } }
              below: billingMeters(filter: {availableBelow: "71"}) { nodes { id } }
              inWorkspace: billingMeters(filter: {workspaceId: "w"}) { nodes { id } }
              usage(billingId: $meter) { billingId totalBillingUsage }
              nodes(ids: [$customer, $meter, $entry]) { __typename id }
            }""",
            {"customer": house.ada, "meter": house.meters["v", "ada"], "entry": house.entry("v", "ada")},
        )
        older, newer = house.meters["w", "ada"], house.meters["v", "ada"]
        both = {"nodes": [{"id": newer}, {"id": older}]}
        assert data == {
            "customer": {"email": "ada@example.com", "externalId": "ada", "billingMeters": both},
            "billingMeter": {
                "id": older,
                "availableCredits": "70",
                "customer": {"id": house.ada},
                "usage": [{"totalBillingUsage": "30"}],
                "ledger": {
                    "nodes": [
                        {"kind": "USAGE", "key": "e", "amount": "30", "billingMeter": {"id": older}},
                        {"kind": "OPENING", "key": None, "amount": "100", "billingMeter": {"id": older}},
                    ]
                },
            },
            "billingMeters": both,
            "below": both,
            "inWorkspace": {"nodes": [{"id": older}]},
            "usage": [{"billingId": newer, "totalBillingUsage": "30"}],
            "nodes": [
                {"__typename": "Customer", "id": house.ada},
                {"__typename": "BillingMeter", "id": newer},
                {"__typename": "LedgerEntry", "id": house.entry("v", "ada")},
            ],
        }

    async def test_a_void_shows_what_it_voids(self, gateway: Gateway, house: House) -> None:
        await gateway.mutate(
            "voidUsage",
            "",
            workspaceId="w",
            externalMeterId="ada",
            eventId="e",
            amount="1",
            reason="r",
            idempotencyKey="v",
        )
        data = await house.browser.data(
            "query ($id: ID!) { node(id: $id) { ... on LedgerEntry { kind voids { id } } } }",
            {"id": house.entry("w", "ada", 3)},
        )
        assert data == {"node": {"kind": "VOID", "voids": {"id": house.entry("w", "ada")}}}

    @pytest.mark.slow
    async def test_the_customer_sees_grants_holds_and_draws_and_not_why(self, gateway: Gateway, house: House) -> None:
        of_ada, of_bob = Walk(gateway, name="ada"), Walk(gateway, name="bob")
        reason = {"reason": "he complained"}
        for walk, name in ((of_ada, "ada"), (of_bob, "bob")):
            made = await make_grant(
                gateway, 20, externalMeterId=name, priority=1, metadata={"campaign": "spring"}, **reason
            )
            walk.ids["a"] = made
            await gateway.mutate("updateCreditGrant", "", id=made, priority=2, **reason)
            await gateway.mutate("revokeCreditGrant", "", id=made, amount="1", **reason)
            await walk.take("hold h 25; use f 3; commit h 24; void h 2; hold open 1")
        ids = {
            "meter": house.meters["w", "ada"],
            "grant": of_ada.ids["a"],
            "hold": house.entry("w", "ada", 6).replace("ent_", "hld_"),
            "entry": house.entry("w", "ada", 3),
        }
        query = """query ($meter: ID!, $grant: ID!, $hold: ID!, $entry: ID!) {
          billingMeter(workspaceId: "w", externalMeterId: "ada") { ...meter }
          grant: node(id: $grant) { ... on CreditGrant { amount reason metadata billingMeter { id } } }
          hold: node(id: $hold) { ... on Hold { holdId state metadata billingMeter { id } } }
          nodes(ids: [$meter, $grant, $hold, $entry]) { __typename id ... on LedgerEntry { reason } }
        }
        fragment meter on BillingMeter {
          heldCredits pinnedCredits maxOpenHolds availableCredits
          creditGrants(first: 9) { nodes { ...grant metadata billingMeter { id } } }
          burnDown { openCredits creditGrant { ...grant } }
          holds(first: 9) { nodes { ...hold metadata billingMeter { id } } }
          ledger(first: 9) { nodes {
            kind amount reason metadata heldCreditsAfter
            draws { amount creditGrant { ...grant } } creditGrant { ...grant } hold { ...hold }
          } }
        }
        fragment grant on CreditGrant { id amount openCredits drawnCredits revokedCredits state reason }
        fragment hold on Hold { id holdId amount committedAmount state }"""
        seen, of_key = await house.browser.run(query, ids), await gateway.run(query, ids)
        assert "errors" not in seen
        # Of what was given back without a grant it sees why, as before.
        assert json.dumps(of_key).count('"reason": "he complained"') > 5
        assert json.dumps(of_key).count('"reason": "wrong"') == 1
        expected = json.dumps(of_key).replace('"reason": "he complained"', '"reason": null')
        assert seen == json.loads(expected)
        assert [each["__typename"] for each in seen["data"]["nodes"]] == [
            *("BillingMeter", "CreditGrant", "Hold", "LedgerEntry")
        ]
        assert [grant["id"] for grant in seen["data"]["billingMeter"]["creditGrants"]["nodes"]] == [of_ada.ids["a"]]
        # Another customer's are as if they were not there.
        others = {
            "meter": house.meters["w", "bob"],
            "grant": of_bob.ids["a"],
            "hold": house.entry("w", "bob", 6).replace("ent_", "hld_"),
            "entry": house.entry("w", "bob", 3),
        }
        hidden = await house.browser.data(query, others)
        assert (hidden["grant"], hidden["hold"], hidden["nodes"]) == (None, None, [None] * 4)
        assert (await gateway.data(query, others))["grant"]["reason"] == "he complained"

    @pytest.mark.one_server("it counts statements or reads their text, and in a bucket there are others")
    async def test_a_session_reads_by_as_many_statements_as_its_key(self, gateway: Gateway, house: House) -> None:
        query = "query ($id: ID!) { customer(id: $id) { billingMeters { nodes { usage { totalBillingUsage } } } } }"
        for caller in (gateway, house.browser):
            await caller.data(query, {"id": house.ada})
            with gateway.statements() as statements:
                await caller.data(query, {"id": house.ada})
            assert len(statements) == 3

    async def test_what_is_not_the_customers_is_as_if_it_were_not_there(
        self, gateway: Gateway, house: House, subtests: pytest.Subtests
    ) -> None:
        missing = MADE_UP | {"w": "w", "name": "missing"}
        for name, customer_id in (("bob", house.bob), ("nobody", house.bob)):
            there = {
                "customer": customer_id,
                "meter": house.meters["w", name],
                "entry": house.entry("w", name),
                "w": "w",
                "name": name,
            }
            for field, questions in QUESTIONS.items():
                for question in questions:
                    with subtests.test(name=name, question=question):
                        variables = {key: value for key, value in there.items() if f"${key}:" in question}
                        answer = await house.browser.run(question, variables)
                        nothing = await house.browser.run(question, {key: missing[key] for key in variables})
                        assert answer == nothing
                        assert answer["data"][field] in (None, [None, None, None], {"nodes": []})
                        assert await gateway.run(question, variables) != answer

    async def test_a_meter_that_goes_to_another_customer_disappears(self, gateway: Gateway, house: House) -> None:
        meter_id = house.meters["w", "ada"]
        bobs = await session_of(gateway, house.bob)
        query = """query ($meter: ID!, $entry: ID!) {
          node(id: $meter) { id }
          entry: node(id: $entry) { id }
          billingMeter(workspaceId: "w", externalMeterId: "ada") { id }
          usage(billingId: $meter) { totalBillingUsage }
          billingMeters { nodes { id } }
          viewer { customer { billingMeters { nodes { id } } } }
        }"""
        ids = {"meter": meter_id, "entry": house.entry("w", "ada")}

        def all_of(meters: list[str], *, is_seen: bool) -> dict[str, Any]:
            nodes = {"nodes": [{"id": each} for each in meters]}
            return {
                "node": {"id": meter_id} if is_seen else None,
                "entry": {"id": ids["entry"]} if is_seen else None,
                "billingMeter": {"id": meter_id} if is_seen else None,
                "usage": [{"totalBillingUsage": "30"}] if is_seen else None,
                "billingMeters": nodes,
                "viewer": {"customer": {"billingMeters": nodes}},
            }

        others, bobs_own = house.meters["v", "ada"], house.meters["w", "bob"]
        assert await house.browser.data(query, ids) == all_of([others, meter_id], is_seen=True)
        assert await bobs.data(query, ids) == all_of([bobs_own], is_seen=False)
        for customer_id in (house.bob, None):
            await gateway.mutate(
                "updateBillingMeter", "", workspaceId="w", externalMeterId="ada", customerId=customer_id
            )
            assert await house.browser.data(query, ids) == all_of([others], is_seen=False)
            is_bobs = customer_id is not None
            expected = all_of([bobs_own, meter_id] if is_bobs else [bobs_own], is_seen=is_bobs)
            assert await bobs.data(query, ids) == expected

    async def test_another_customers_cursor_opens_nothing(self, gateway: Gateway, house: House) -> None:
        data = await gateway.data(
            "query ($id: ID!) { billingMeters(filter: {customerId: $id}) { pageInfo { startCursor } } }",
            {"id": house.bob},
        )
        page = "query ($after: String) { billingMeters(after: $after) { nodes { id } } }"
        cursor = data["billingMeters"]["pageInfo"]["startCursor"]
        # Ada's meters are the older ones.
        assert await house.browser.data(page, {"after": cursor}) == {
            "billingMeters": {"nodes": [{"id": house.meters["v", "ada"]}, {"id": house.meters["w", "ada"]}]}
        }
        assert await house.browser.data(page.replace("after", "before"), {"before": cursor}) == {
            "billingMeters": {"nodes": []}
        }

    async def test_a_session_sees_nothing_of_the_other_environment(self, gateway: Gateway, house: House) -> None:
        live = await gateway.caller(environment=Environment.LIVE)
        customer_id = await make_customer(live, externalId="ada")
        meter_id = await make_meter(live, "ada", customerId=customer_id)
        browser = await session_of(live, customer_id)
        query = """query ($customer: ID!, $meter: ID!) {
          customer(id: $customer) { id }
          nodes(ids: [$meter]) { id }
          billingMeter(workspaceId: "w", externalMeterId: "ada") { id }
          billingMeters { nodes { id } }
        }"""
        ids = {"customer": house.ada, "meter": house.meters["w", "ada"]}
        assert await browser.data(query, ids) == {
            "customer": None,
            "nodes": [None],
            "billingMeter": {"id": meter_id},
            "billingMeters": {"nodes": [{"id": meter_id}]},
        }
        sandbox = await house.browser.data(query, {"customer": customer_id, "meter": meter_id})
        assert (sandbox["customer"], sandbox["nodes"]) == (None, [None])
        assert sandbox["billingMeter"] == {"id": house.meters["w", "ada"]}

    async def test_a_session_stays_in_the_workspaces_of_its_key(self, gateway: Gateway, house: House) -> None:
        browser = await session_of(await gateway.caller(workspaces=["w"]), house.ada)
        data = await browser.data(
            """query ($customer: ID!, $inside: ID!, $outside: ID!, $entry: ID!) {
              viewer { workspaceIds customer { id } }
              customer(id: $customer) { billingMeters { nodes { id } } }
              billingMeters { nodes { id } }
              nodes(ids: [$inside, $outside, $entry]) { id }
              usage(billingId: $outside) { day }
            }""",
            {
                "customer": house.ada,
                "inside": house.meters["w", "ada"],
                "outside": house.meters["v", "ada"],
                "entry": house.entry("v", "ada"),
            },
        )
        inside = {"nodes": [{"id": house.meters["w", "ada"]}]}
        assert data == {
            "viewer": {"workspaceIds": ["w"], "customer": {"id": house.ada}},
            "customer": {"billingMeters": inside},
            "billingMeters": inside,
            "nodes": [{"id": house.meters["w", "ada"]}, None, None],
            "usage": None,
        }
        error = await browser.error('{ billingMeter(workspaceId: "v", externalMeterId: "ada") { id } }')
        assert error["extensions"] == {"code": "FORBIDDEN"}
        # With its last meter there, the customer leaves the workspace.
        await must(gateway, "updateBillingMeter", externalMeterId="ada", customerId=None)
        assert await browser.data("{ viewer { customer { id } } billingMeters { nodes { id } } }") == {
            "viewer": {"customer": None},
            "billingMeters": {"nodes": []},
        }


class TestForbidden:
    async def test_it_may_not_look_for_customers(self, house: House, subtests: pytest.Subtests) -> None:
        for query in FORBIDDEN_QUERIES:
            with subtests.test(query=query):
                error = await house.browser.error(query)
                assert error["message"] == "A customer's session may not do this."
                assert error["extensions"] == {"code": "FORBIDDEN"}
        # Malformed comes before it.
        error = await house.browser.error('{ customerByExternalId(externalId: "") { id } }')
        assert error["extensions"] == {"code": "BAD_USER_INPUT"}

    @pytest.mark.slow
    async def test_it_may_not_change_anything(self, gateway: Gateway, house: House, subtests: pytest.Subtests) -> None:
        before, made = await gateway.data(STATE), await sessions(gateway)
        for name, arguments in MUTATIONS.items():
            with subtests.test(mutation=name):
                error = await house.browser.error(
                    f"mutation {{ {name}({arguments.replace('CUSTOMER', house.ada)}) {{ __typename }} }}"
                )
                assert error["path"] == [name]
                assert error["extensions"] == {"code": "FORBIDDEN"}
        assert await gateway.data(STATE) == before
        assert await sessions(gateway) == made

    def test_the_tables_above_name_every_query_and_mutation(self) -> None:
        roots = schema._schema.query_type, schema._schema.mutation_type
        queries, mutations = [set(root.fields) for root in roots if root is not None]
        forbidden = {re.findall(r"\w+", query)[0] for query in FORBIDDEN_QUERIES}
        assert set(QUESTIONS) | {"viewer"} | forbidden == queries
        assert set(MUTATIONS) == mutations

    async def test_of_rest_it_may_read_its_own_meters_and_usage_alone(self, gateway: Gateway, house: House) -> None:
        headers = {"authorization": f"Bearer {house.browser.key}"}
        client = gateway.client
        for name, billing in (("ada", house.meters["w", "ada"]), ("bob", None), ("missing", None)):
            found = await client.get(
                "/api/v1/customer-billing", params={"workspaceId": "w", "externalMeterId": name}, headers=headers
            )
            assert found.status_code == 200
            body = found.json()["billing"]
            assert (body and body["id"]) == billing
        for meter_id, used in (
            (house.meters["w", "ada"], ["30"]),
            (house.meters["w", "bob"], []),
            (MADE_UP["meter"], []),
        ):
            found = await client.get(f"/api/v1/usage/{meter_id}", headers=headers)
            assert found.status_code == 200
            assert [day["totalBillingUsage"] for day in found.json()["data"]] == used
        before = await gateway.data(STATE)
        for path, sent in (
            ("/api/v1/customer-billing", {"workspaceId": "w", "externalMeterId": "new"}),
            ("/api/v1/customer-billing/refill", {"workspaceId": "w", "externalMeterId": "ada", "refill": 5}),
            ("/v1/customers", {"email": "new@example.com"}),
        ):
            refused = await client.post(path, json=sent, headers=headers)
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == 403
        assert await gateway.data(STATE) == before

    async def test_the_schema_is_for_any_caller_that_holds_a_key_or_token(self, gateway: Gateway, house: House) -> None:
        headers = {"authorization": f"Bearer {house.browser.key}"}
        answer = await gateway.client.get("/schema.graphql", headers=headers)
        assert (answer.status_code, answer.text) == (200, schema.as_str())
        assert await house.browser.data("{ __schema { queryType { name } } }") == {
            "__schema": {"queryType": {"name": "Query"}}
        }
