"""Keys: who is let in, for how long, and what each scope allows."""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url, select, text

from resolvers.actor import Scope
from resolvers.api_keys import MAX_LOOK_UPS, create_api_key, revoke_api_key
from resolvers.errors import InvalidInput
from storage.api_keys import api_keys
from storage.engine.transactions import Writer
from storage.tables import metadata
from storage.tenants import Environment
from tests.comparisons import recorded_comparisons
from tests.conftest import NOW, Caller, Gateway, on_postgresql
from tests.steps import held, make_customer, make_endpoint, make_meter, must, new_key, session_of

VIEWER = "{ viewer { orgId environment scopes workspaceIds } }"
CREATE_CUSTOMER = 'mutation { createCustomer(input: {email: "ada@example.com"}) { __typename } }'
NAMES = 'workspaceId: "w", externalMeterId: "m"'
HELD = 'workspaceId: "w", externalMeterId: "n"'


async def send(gateway: Gateway, *authorization: str, body: bytes | None = None, **headers: str) -> httpx.Response:
    """Send a request with these `Authorization` headers."""
    raw: list[tuple[str, str | bytes]] = [("authorization", value.encode("latin-1")) for value in authorization]
    raw += [("content-type", "application/json"), *headers.items()]
    content = json.dumps({"query": VIEWER}).encode() if body is None else body
    return await gateway.client.post("/graphql", content=content, headers=raw)  # type: ignore[arg-type]


def assert_unauthenticated(response: httpx.Response) -> str:
    """Hold a response against what a request without a good key is answered, and return its message."""
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    (error,) = response.json()["errors"]
    assert response.json() == {"errors": [error]}
    assert error["extensions"] == {"code": "UNAUTHENTICATED"}
    return str(error["message"])


class TestUnauthenticated:
    async def test_any_caller_that_has_no_key_is_401(self, gateway: Gateway, subtests: pytest.Subtests) -> None:
        key = gateway.key
        for authorization in (
            (),
            ("",),
            (" ",),
            (key,),
            ("Bearer",),
            (f"Bearer{key}",),
            (f"Basic {key}",),
            (f"Token {key}",),
            (f"Bearer\t{key}",),
            (f"Basic Bearer {key}",),
            (f"Bearer {key}", f"Bearer {key}"),
            (f"Bearer {key}", "Basic x"),
            ("", f"Bearer {key}"),
        ):
            with subtests.test(authorization=authorization), gateway.statements() as statements:
                message = assert_unauthenticated(await send(gateway, *authorization))
                assert message in {
                    "Send one header `Authorization: Bearer KEY`.",
                    "The API key is missing, malformed, unknown, expired or revoked.",
                }
                assert statements == []

    async def test_a_malformed_key_is_401_without_a_look_at_the_database(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        key = gateway.key
        for malformed in (
            "",
            "x",
            "sk_test_",
            key[:-1],
            f"{key}a",
            f"{key} {key}",
            f"{key},",
            f'"{key}"',
            f"{key}, Bearer {key}",
            key.upper(),
            key.replace("sk_test_", "sk_prod_"),
            key.replace("sk_test_", ""),
            f"{key[:-1]}é",
            f"{key[:-1]}=",
            f"{key[:-1]}\xb2",
        ):
            with subtests.test(key=malformed), gateway.statements() as statements:
                message = assert_unauthenticated(await send(gateway, f"Bearer {malformed}"))
                assert message == "The API key is missing, malformed, unknown, expired or revoked."
                assert statements == []

    async def test_an_unknown_key_is_401(self, gateway: Gateway) -> None:
        changed = "a" if gateway.key[-1] != "a" else "b"
        for key in (
            "sk_test_" + "a" * 43,
            "sk_live_" + "a" * 43,
            gateway.key.replace("sk_test_", "sk_live_"),
            gateway.key[:-1] + changed,
        ):
            with gateway.statements() as statements:
                assert_unauthenticated(await send(gateway, f"Bearer {key}"))
            assert len(statements) == 1

    async def test_the_scheme_is_known_in_any_case(self, gateway: Gateway) -> None:
        for scheme in ("Bearer", "bearer", "BEARER", "bEaReR"):
            response = await send(gateway, f"{scheme} {gateway.key}")
            assert response.status_code == 200
            assert response.json()["data"]["viewer"]["orgId"] == gateway.org_id

    async def test_it_comes_before_anything_of_the_request_is_looked_at(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        read: list[str] = []

        async def body() -> Any:
            read.append("body")
            yield b"{}"

        for headers in ({}, {"authorization": "Bearer sk_test_" + "a" * 43}):
            response = await gateway.client.post("/graphql", content=body(), headers=headers)
            assert_unauthenticated(response)
        assert read == []
        for content in (
            b"",
            b"not JSON",
            b"[" * 100_000,
            b"x" * 2_000_000,
            b'{"query": "{"}',
            b'{"query": "{ nope }"}',
            b'{"query": "{ __schema { types { name } } }"}',
            json.dumps({"query": CREATE_CUSTOMER}).encode(),
        ):
            with subtests.test(content=content[:60]):
                assert_unauthenticated(await send(gateway, body=content))
                assert_unauthenticated(await send(gateway, "Bearer x", body=content))
        assert_unauthenticated(await send(gateway, accept="text/html"))
        assert_unauthenticated(await gateway.client.post("/graphql", content=b"x", headers={"content-type": "x"}))
        for parameters in ({}, {"query": "{"}, {"query": CREATE_CUSTOMER}, {"query": VIEWER, "variables": "{"}):
            assert_unauthenticated(await gateway.client.get("/graphql", params=parameters))
        assert await gateway.data("{ customers { nodes { id } } }") == {"customers": {"nodes": []}}


class TestLifetime:
    async def test_a_revocation_holds_after_5_seconds(self, gateway: Gateway) -> None:
        key_id, caller = await new_key(gateway)
        await caller.data(VIEWER)
        await revoke_api_key(gateway.database, key_id, now=gateway.clock())
        # The key is still remembered.
        gateway.clock.forward(seconds=4.999999)
        await caller.data(VIEWER)
        gateway.clock.forward(seconds=0.000001)
        assert_unauthenticated(await caller.post(CREATE_CUSTOMER))
        assert await gateway.data("{ customers { nodes { id } } }") == {"customers": {"nodes": []}}

    async def test_a_revocation_of_a_key_that_is_not_remembered_holds_at_once(self, gateway: Gateway) -> None:
        key_id, caller = await new_key(gateway)
        await revoke_api_key(gateway.database, key_id, now=gateway.clock())
        assert_unauthenticated(await caller.post(VIEWER))

    async def test_using_a_key_does_not_prolong_how_long_it_is_remembered(self, gateway: Gateway) -> None:
        key_id, caller = await new_key(gateway)
        await caller.data(VIEWER)
        await revoke_api_key(gateway.database, key_id, now=gateway.clock())
        for _ in range(4):
            gateway.clock.forward(seconds=1)
            await caller.data(VIEWER)
        gateway.clock.forward(seconds=1)
        assert_unauthenticated(await caller.post(VIEWER))

    async def test_a_revoked_key_stays_revoked_since_the_first_time(self, gateway: Gateway) -> None:
        key_id, _ = await new_key(gateway)
        first = await revoke_api_key(gateway.database, key_id, now=gateway.clock())
        gateway.clock.forward(days=1)
        again = await revoke_api_key(gateway.database, key_id, now=gateway.clock())
        assert first is not None
        assert first.revoked_at == NOW
        assert again == first
        assert await revoke_api_key(gateway.database, f"key_{'0' * 24}", now=gateway.clock()) is None

    async def test_a_key_is_looked_up_once_in_5_seconds(self, gateway: Gateway) -> None:
        _, caller = await new_key(gateway)
        with gateway.statements() as statements:
            await caller.data(VIEWER)
        assert len(statements) == 1
        assert "FROM api_keys" in statements[0]
        with gateway.statements() as statements:
            await caller.data(VIEWER)
            gateway.clock.forward(seconds=4.9)
            await caller.data(VIEWER)
        assert statements == []
        gateway.clock.forward(seconds=0.1)
        with gateway.statements() as statements:
            await caller.data(VIEWER)
        assert len(statements) == 1

    async def test_an_expiry_holds_at_once_although_the_key_is_remembered(self, gateway: Gateway) -> None:
        caller = await gateway.caller(expires_at=NOW + timedelta(seconds=3))
        await caller.data(VIEWER)
        gateway.clock.forward(seconds=2.999999)
        await caller.data(VIEWER)
        gateway.clock.forward(seconds=0.000001)
        assert_unauthenticated(await caller.post(CREATE_CUSTOMER))
        gateway.clock.forward(days=1_000)
        assert_unauthenticated(await caller.post(VIEWER))
        assert await gateway.data("{ customers { nodes { id } } }") == {"customers": {"nodes": []}}

    async def test_a_key_without_an_expiry_does_not_end(self, gateway: Gateway) -> None:
        gateway.clock.forward(days=36_500)
        await gateway.data(VIEWER)

    async def test_a_key_that_would_have_ended_already_is_not_made(self, gateway: Gateway) -> None:
        for back in (timedelta(0), timedelta(seconds=1), timedelta(days=1)):
            with pytest.raises(InvalidInput) as refusal:
                await gateway.caller(expires_at=NOW - back)
            assert refusal.value.message == "expires must lie ahead."
        async with gateway.database.read() as reader:
            rows = await reader.fetch(select(api_keys.c.id).where(api_keys.c.org_id == gateway.org_id))
        assert len(rows) == 1


class TestSecrecy:
    async def test_only_a_digest_is_stored(self, gateway: Gateway) -> None:
        row, key = await create_api_key(
            gateway.database,
            org_id=gateway.org_id,
            environment=Environment.LIVE,
            scopes=[Scope.USAGE_WRITE, Scope.BILLING_READ, Scope.USAGE_WRITE],
            workspace_ids=["b", "a", "b"],
            expires_at=NOW + timedelta(days=30),
            name="backend",
            now=NOW,
        )
        async with gateway.database.read() as reader:
            stored = await reader.fetch_one(select(api_keys).where(api_keys.c.id == row.id))
        assert stored is not None
        assert stored._asdict() == {
            "id": row.id,
            "org_id": gateway.org_id,
            "environment": Environment.LIVE,
            "name": "backend",
            "scopes": ["billing:read", "usage:write"],
            "workspace_ids": ["a", "b"],
            "digest": hashlib.sha256(key.encode()).hexdigest(),
            "expires_at": NOW + timedelta(days=30),
            "revoked_at": None,
            "created_at": NOW,
            "customer_id": None,
            "parent_id": None,
        }

    async def test_the_key_is_nowhere_in_the_database(self, own: Gateway) -> None:
        secret = own.key.removeprefix("sk_test_")
        # Everything that a request can leave behind is left behind.
        await make_meter(own, totalCredits="9")
        await must(own, "recordUsage", eventId="e", amount="1")
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

    async def test_keys_and_tokens_are_compared_by_their_digests_in_constant_time(
        self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compared = recorded_comparisons(monkeypatch)
        session = await session_of(gateway, await make_customer(gateway))
        for secret in (gateway.key, session.key):
            gateway.clock.forward(seconds=10)
            compared.clear()
            assert (await send(gateway, f"Bearer {secret}")).status_code == 200
            digest = hashlib.sha256(secret.encode()).hexdigest()
            assert compared == [(digest, digest)]
            # One that was looked up is known by its digest, too.
            assert list(gateway.services.api_keys._remembered)[-1] == digest

    async def test_a_key_is_32_random_bytes_after_the_prefix_of_its_environment(self, gateway: Gateway) -> None:
        keys = set()
        for environment, prefix in ((Environment.LIVE, "sk_live_"), (Environment.SANDBOX, "sk_test_")):
            caller = await gateway.caller(environment=environment)
            # 43 digits of base 64 hold 32 bytes.
            assert re.fullmatch(f"{prefix}[A-Za-z0-9_-]{{43}}", caller.key)
            keys.add(caller.key)
            data = await caller.data(VIEWER)
            assert data["viewer"] == {
                "orgId": gateway.org_id,
                "environment": environment.name,
                "scopes": ["BILLING_READ", "BILLING_WRITE", "USAGE_WRITE", "USAGE_CORRECT", "WEBHOOKS_WRITE"],
                "workspaceIds": None,
            }
        assert len(keys) == 2

    async def test_the_viewer_shows_what_its_key_may(self, gateway: Gateway) -> None:
        caller = await gateway.caller(Scope.USAGE_CORRECT, Scope.BILLING_READ, workspaces=["b", "a"])
        data = await caller.data("{ viewer { scopes workspaceIds customer { id } } }")
        assert data["viewer"] == {
            "scopes": ["BILLING_READ", "USAGE_CORRECT"],
            "workspaceIds": ["a", "b"],
            "customer": None,
        }


#: Every query, as text with the ids of what it is about, and every mutation of its own accord.
QUERIES = {
    "node of a customer": 'node(id: "CUSTOMER") { id }',
    "node of a meter": 'node(id: "METER") { id }',
    "node of an entry": 'node(id: "ENTRY") { id }',
    "node of a grant": 'node(id: "GRANT") { id }',
    "node of a hold": 'node(id: "HOLD") { id }',
    "nodes": 'nodes(ids: ["CUSTOMER"]) { id }',
    "viewer": "viewer { orgId }",
    "customer": 'customer(id: "CUSTOMER") { id }',
    "customerByExternalId": 'customerByExternalId(externalId: "ada") { id }',
    "customers": "customers { nodes { id } }",
    "billingMeter": f"billingMeter({NAMES}) {{ id }}",
    "billingMeters": "billingMeters { nodes { id } }",
    "billingMeters of a filter": 'billingMeters(filter: {workspaceId: "w"}) { nodes { id } }',
    "usage": 'usage(billingId: "METER") { day }',
    "events": "events { nodes { id } }",
    "alerts": "alerts { nodes { id } }",
    "webhookEndpoints": "webhookEndpoints { nodes { id } }",
}

#: Each mutation, the scope that it needs, and its success. A session reads, so making one needs `billing:read` as well.
MUTATIONS = {
    "createCustomer": ('input: {email: "new@example.com"}', Scope.BILLING_WRITE, "CreateCustomerSuccess"),
    "updateCustomer": ('input: {id: "CUSTOMER", name: "Changed"}', Scope.BILLING_WRITE, "UpdateCustomerSuccess"),
    "createCustomerSession": (
        'input: {customerId: "CUSTOMER"}',
        Scope.BILLING_WRITE,
        "CreateCustomerSessionSuccess",
    ),
    "createBillingMeter": (
        'input: {workspaceId: "w", externalMeterId: "new"}',
        Scope.BILLING_WRITE,
        "CreateBillingMeterSuccess",
    ),
    "updateBillingMeter": (f"input: {{{NAMES}, spendCap: 5}}", Scope.BILLING_WRITE, "UpdateBillingMeterSuccess"),
    "refillBillingMeter": (f"input: {{{NAMES}, refill: 5}}", Scope.BILLING_WRITE, "RefillBillingMeterSuccess"),
    "recordUsage": (f'input: {{{NAMES}, eventId: "new", amount: 1}}', Scope.USAGE_WRITE, "RecordUsageSuccess"),
    "recordUsageBatch": (
        f'input: [{{{NAMES}, eventId: "batch", amount: 1}}]',
        Scope.USAGE_WRITE,
        "RecordUsageSuccess",
    ),
    "voidUsage": (
        f'input: {{{NAMES}, eventId: "first", amount: 1, reason: "why", idempotencyKey: "new"}}',
        Scope.USAGE_CORRECT,
        "VoidUsageSuccess",
    ),
    "grantCredits": (f"input: {{{NAMES}, amount: 5}}", Scope.BILLING_WRITE, "GrantCreditsSuccess"),
    "updateCreditGrant": ('input: {id: "GRANT", priority: 70}', Scope.BILLING_WRITE, "UpdateCreditGrantSuccess"),
    "revokeCreditGrant": ('input: {id: "GRANT", amount: 1}', Scope.BILLING_WRITE, "RevokeCreditGrantSuccess"),
    "holdCredits": (f'input: {{{HELD}, holdId: "new", amount: 1}}', Scope.USAGE_WRITE, "HoldCreditsSuccess"),
    "extendHold": (
        f'input: {{{HELD}, holdId: "other", expiresInSeconds: 9000}}',
        Scope.USAGE_WRITE,
        "ExtendHoldSuccess",
    ),
    "commitHold": (f'input: {{{HELD}, holdId: "held", amount: 1}}', Scope.USAGE_WRITE, "CommitHoldSuccess"),
    "releaseHold": (f'input: {{{HELD}, holdId: "other"}}', Scope.USAGE_WRITE, "ReleaseHoldSuccess"),
    "createAlert": (
        f"input: {{{NAMES}, kind: REMAINING_BELOW, threshold: 5}}",
        Scope.BILLING_WRITE,
        "CreateAlertSuccess",
    ),
    "updateAlert": ('input: {id: "ALERT", threshold: 6}', Scope.BILLING_WRITE, "UpdateAlertSuccess"),
    "deleteAlert": ('input: {id: "ALERT"}', Scope.BILLING_WRITE, "DeleteAlertSuccess"),
    "failAutoRefill": ('input: {requestId: "REQUEST", reason: "r"}', Scope.BILLING_WRITE, "FailAutoRefillSuccess"),
    "resumeAutoRefill": (f"input: {{{HELD}}}", Scope.BILLING_WRITE, "ResumeAutoRefillSuccess"),
    "setAutoRefill": (f"input: {{{HELD}, isEnabled: false}}", Scope.BILLING_WRITE, "SetAutoRefillSuccess"),
    "createWebhookEndpoint": (
        'input: {url: "https://example.com/"}',
        Scope.WEBHOOKS_WRITE,
        "CreateWebhookEndpointSuccess",
    ),
    "updateWebhookEndpoint": (
        'input: {id: "ENDPOINT", description: "d"}',
        Scope.WEBHOOKS_WRITE,
        "UpdateWebhookEndpointSuccess",
    ),
    "rotateWebhookSecret": (
        'input: {id: "ENDPOINT", generation: 2}',
        Scope.WEBHOOKS_WRITE,
        "RotateWebhookSecretSuccess",
    ),
    "sendTestEvent": ('input: {endpointId: "ENDPOINT"}', Scope.WEBHOOKS_WRITE, "SendTestEventSuccess"),
    "redeliverEvents": (
        'input: {endpointId: "ENDPOINT", from: "2026-01-01T00:00:00Z", before: "2026-01-02T00:00:00Z"}',
        Scope.WEBHOOKS_WRITE,
        "RedeliverEventsSuccess",
    ),
    "deleteWebhookEndpoint": ('input: {id: "ENDPOINT"}', Scope.WEBHOOKS_WRITE, "DeleteWebhookEndpointSuccess"),
}

#: The mutations that also need `billing:read`, and change nothing of `STATE`.
WITH_READING = {"createCustomerSession"} | {
    name for name, (_, scope, _) in MUTATIONS.items() if scope is Scope.WEBHOOKS_WRITE
}

#: The edges of what a mutation answers: none but `billing:read` may follow them.
EDGES = {
    "Customer.billingMeters": ("createCustomer", "customer { billingMeters { nodes { id } } }"),
    "BillingMeter.customer": ("refillBillingMeter", "billingMeter { customer { id } }"),
    "BillingMeter.usage": ("refillBillingMeter", "billingMeter { usage { day } }"),
    "BillingMeter.ledger": ("refillBillingMeter", "billingMeter { ledger { nodes { id } } }"),
    "BillingMeter.customer of usage": ("recordUsage", "billingMeter { customer { id } }"),
    "BillingMeter.usage of usage": ("recordUsage", "billingMeter { usage { day } }"),
    "BillingMeter.ledger of usage": ("recordUsage", "billingMeter { ledger { nodes { id } } }"),
    "LedgerEntry.billingMeter": ("recordUsage", "entry { billingMeter { id } }"),
    "LedgerEntry.voids": ("recordUsage", "entry { voids { id } }"),
    "LedgerEntry.voids of a void": ("voidUsage", "entry { voids { id } }"),
    "LedgerEntry.draws": ("recordUsage", "entry { draws { amount } }"),
    "LedgerEntry.creditGrant": ("grantCredits", "entry { creditGrant { id } }"),
    "LedgerEntry.hold": ("holdCredits", "entry { hold { id } }"),
    "BillingMeter.creditGrants": ("recordUsage", "billingMeter { creditGrants { nodes { id } } }"),
    "BillingMeter.burnDown": ("recordUsage", "billingMeter { burnDown { openCredits } }"),
    "BillingMeter.holds": ("recordUsage", "billingMeter { holds { nodes { id } } }"),
    "BillingMeter.alerts": ("recordUsage", "billingMeter { alerts { state } }"),
    "BillingMeter.autoRefill": ("recordUsage", "billingMeter { autoRefill { state } }"),
    "CreditGrant.billingMeter": ("updateCreditGrant", "creditGrant { billingMeter { id } }"),
    "Hold.billingMeter": ("holdCredits", "hold { billingMeter { id } }"),
}

STATE = """{
  customers { nodes { email name } }
  billingMeters { nodes {
    externalMeterId totalCredits usedCredits spendCap ledger { nodes { id } }
    creditGrants { nodes { openCredits priority } } holds { nodes { holdId state expiresAt } }
    autoRefill { state isEnabled }
  } }
  alerts { nodes { id threshold } }
}"""


@pytest.fixture
async def tenant(gateway: Gateway) -> Callable[[str], str]:
    """A customer `ada` with the meter `m`, 30 of its 100 credits used, and a meter `n` with a grant and two holds.

    Puts their ids into a text.
    """
    customer = await gateway.mutate(
        "createCustomer",
        "... on CreateCustomerSuccess { customer { id } }",
        email="ada@example.com",
        externalId="ada",
    )
    meter = await gateway.mutate(
        "createBillingMeter",
        "... on CreateBillingMeterSuccess { billingMeter { id } }",
        workspaceId="w",
        externalMeterId="m",
        totalCredits="100",
        customerId=customer["customer"]["id"],
    )
    used = await gateway.mutate(
        "recordUsage",
        "... on RecordUsageSuccess { entry { id } }",
        workspaceId="w",
        externalMeterId="m",
        eventId="first",
        amount="30",
    )
    await make_meter(gateway, "n", totalCredits="100")
    names = {"workspaceId": "w", "externalMeterId": "n"}
    granted = await must(gateway, "grantCredits", "creditGrant { id }", **names, amount="40", priority=60)
    held = await must(gateway, "holdCredits", "hold { id }", **names, holdId="held", amount="10")
    await must(gateway, "holdCredits", **names, holdId="other", amount="10")
    alert = await must(gateway, "createAlert", "alert { id }", **names, kind="REMAINING_BELOW", threshold="9")
    caps: dict[str, Any] = {"maxRefills": 1, "maxCredits": "1000", "windowSeconds": 60, "maxFailures": 1}
    await must(gateway, "setAutoRefill", **names, mode="FIXED", below="1000", amount="10", **caps)
    await must(gateway, "recordUsage", **names, eventId="asks", amount="1")
    ids = {
        "CUSTOMER": customer["customer"]["id"],
        "METER": meter["billingMeter"]["id"],
        "ENTRY": used["entry"]["id"],
        "GRANT": granted["creditGrant"]["id"],
        "HOLD": held["hold"]["id"],
        "ALERT": alert["alert"]["id"],
        "REQUEST": f"arr_{held['hold']['id'].removeprefix('hld_').partition('_')[0]}_1",
        "ENDPOINT": (await make_endpoint(gateway))[0],
    }
    return lambda document: re.sub("|".join(ids), lambda match: ids[match[0]], document)


class TestScopes:
    @pytest.mark.slow
    @pytest.mark.parametrize("scope", Scope)
    async def test_every_query_needs_billing_read(
        self, gateway: Gateway, tenant: Callable[[str], str], scope: Scope, subtests: pytest.Subtests
    ) -> None:
        caller = await gateway.caller(scope)
        for name, query in QUERIES.items():
            with subtests.test(query=name):
                if scope is Scope.BILLING_READ:
                    (answer,) = (await caller.data(f"{{ {tenant(query)} }}")).values()
                    assert answer
                else:
                    error = await caller.error(f"{{ {tenant(query)} }}")
                    assert error["message"] == "The key lacks the scope billing:read."
                    assert error["extensions"] == {"code": "FORBIDDEN"}

    @pytest.mark.slow
    @pytest.mark.parametrize("scope", Scope)
    async def test_every_mutation_needs_its_scope_and_no_other(
        self, gateway: Gateway, tenant: Callable[[str], str], scope: Scope, subtests: pytest.Subtests
    ) -> None:
        caller = await gateway.caller(scope)
        for name, (arguments, needed, success) in MUTATIONS.items():
            with subtests.test(mutation=name):
                before = await gateway.data(STATE)
                mutation = f"mutation {{ {name}({tenant(arguments)}) {{ __typename }} }}"
                if scope is needed and name in WITH_READING:
                    error = await caller.error(mutation)
                    assert error["message"] == "The key lacks the scope billing:read."
                    both = await gateway.caller(scope, Scope.BILLING_READ)
                    assert await both.data(mutation) == {name: {"__typename": success}}
                    assert await gateway.data(STATE) == before
                elif scope is needed:
                    answer = {"__typename": success}
                    assert await caller.data(mutation) == {name: [answer] if name.endswith("Batch") else answer}
                    assert await gateway.data(STATE) != before
                else:
                    error = await caller.error(mutation)
                    assert error["message"] == f"The key lacks the scope {needed}."
                    assert error["path"] == [name]
                    assert error["extensions"] == {"code": "FORBIDDEN"}
                    assert await gateway.data(STATE) == before

    async def test_the_tables_above_name_every_query_mutation_and_edge(self, gateway: Gateway) -> None:
        data = await gateway.data(
            """{ __schema { types { name interfaces { name } fields { name args { name } type { ...Of } } } } }
            fragment Of on __Type { name kind ofType { name kind ofType { name kind ofType { name kind } } } }"""
        )
        types = {each["name"]: each for each in data["__schema"]["types"]}
        assert {name.partition(" ")[0] for name in QUERIES} == {field["name"] for field in types["Query"]["fields"]}
        assert set(MUTATIONS) == {field["name"] for field in types["Mutation"]["fields"]}
        edges = {
            f"{name}.{field['name']}"
            for name in ("Customer", "BillingMeter", "LedgerEntry", "CreditGrant", "Hold")
            for field in types[name]["fields"]
            if field["args"] or named(field["type"])["kind"] == "OBJECT"
        }
        assert {name.partition(" ")[0] for name in EDGES} == edges

    @pytest.mark.slow
    @pytest.mark.parametrize("besides", [(), (Scope.BILLING_READ,)], ids=["alone", "with billing:read"])
    async def test_every_edge_of_an_answer_needs_billing_read(
        self, gateway: Gateway, tenant: Callable[[str], str], besides: tuple[Scope, ...], subtests: pytest.Subtests
    ) -> None:
        for name, (mutation, selection) in EDGES.items():
            arguments, scope, success = MUTATIONS[mutation]
            # Each is made anew: the entry of another key's would not be shown.
            arguments = arguments.replace('"new"', f'"{name}"')
            caller = await gateway.caller(scope, *besides)
            with subtests.test(edge=name):
                answer = f"{{ __typename ... on {success} {{ {selection} }} }}"
                document = f"mutation {{ {mutation}({tenant(arguments)}) {answer} }}"
                body = await caller.run(document)
                if besides:
                    assert "errors" not in body
                    assert body["data"][mutation]["__typename"] == success
                else:
                    (error,) = body["errors"]
                    assert error["message"] == "The key lacks the scope billing:read."
                    assert error["extensions"] == {"code": "FORBIDDEN"}

    async def test_introspection_is_for_any_caller_that_holds_a_key(self, gateway: Gateway) -> None:
        for scope in Scope:
            caller = await gateway.caller(scope)
            data = await caller.data('{ __typename __schema { queryType { name } } __type(name: "Query") { name } }')
            assert data == {
                "__typename": "Query",
                "__schema": {"queryType": {"name": "Query"}},
                "__type": {"name": "Query"},
            }


@pytest.mark.usefixtures("tenant")
class TestUsageWriteAlone:
    async def test_of_the_meter_and_the_entry_their_own_scalars_are_answered(self, gateway: Gateway) -> None:
        caller = await gateway.caller(Scope.USAGE_WRITE)
        answer = await caller.mutate(
            "recordUsage",
            """... on RecordUsageSuccess {
              accepted refused overLimit replayed
              billingMeter {
                workspaceId externalMeterId timezone totalCredits usedCredits overageCredits availableCredits
                allowOverages spendCap createdAt updatedAt
              }
              entry { kind amount key usedCreditsAfter metadata }
            }""",
            workspaceId="w",
            externalMeterId="m",
            eventId="e",
            amount="5",
        )
        assert answer == {
            "__typename": "RecordUsageSuccess",
            "accepted": "5",
            "refused": "0",
            "overLimit": False,
            "replayed": False,
            "billingMeter": {
                "workspaceId": "w",
                "externalMeterId": "m",
                "timezone": "UTC",
                "totalCredits": "100",
                "usedCredits": "35",
                "overageCredits": "0",
                "availableCredits": "65",
                "allowOverages": False,
                "spendCap": None,
                "createdAt": "2026-03-16T12:00:00Z",
                "updatedAt": "2026-03-16T12:00:00Z",
            },
            "entry": {"kind": "USAGE", "amount": "5", "key": "e", "usedCreditsAfter": "35", "metadata": {}},
        }

    async def test_a_refusal_shows_the_meter_s_own_scalars_too(self, gateway: Gateway) -> None:
        caller = await gateway.caller(Scope.USAGE_WRITE)
        values = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": "71"}
        answer = await caller.mutate(
            "recordUsage", "... on InsufficientCredits { available billingMeter { usedCredits } }", **values
        )
        assert answer["available"] == "70"
        assert answer["billingMeter"] == {"usedCredits": "30"}
        error = await caller.error(
            f'mutation {{ recordUsage(input: {{{NAMES}, eventId: "e", amount: 71}}) '
            "{ ... on InsufficientCredits { billingMeter { usage { day } } } } }"
        )
        assert error["extensions"] == {"code": "FORBIDDEN"}

    async def test_an_event_stays_recorded_although_an_edge_of_its_answer_is_forbidden(self, gateway: Gateway) -> None:
        caller = await gateway.caller(Scope.USAGE_WRITE)
        edges = ("usage { day }", "ledger { nodes { id } }", "customer { id }")
        for number, edge in enumerate(edges, start=1):
            body = await caller.run(
                f'mutation {{ recordUsage(input: {{{NAMES}, eventId: "{number}", amount: 10}}) '
                f"{{ ... on RecordUsageSuccess {{ accepted billingMeter {{ {edge} }} }} }} }}"
            )
            (error,) = body["errors"]
            assert error["extensions"] == {"code": "FORBIDDEN"}
            assert error["path"] == ["recordUsage", "billingMeter", edge.partition(" ")[0]]
            data = await gateway.data(
                f"{{ billingMeter({NAMES}) {{ usedCredits ledger(first: 1) {{ nodes {{ key }} }} }} }}"
            )
            assert data["billingMeter"] == {
                "usedCredits": str(30 + 10 * number),
                "ledger": {"nodes": [{"key": str(number)}]},
            }
            # Asked for less, the repeated event is answered as it was.
            answer = await caller.mutate(
                "recordUsage",
                "... on RecordUsageSuccess { accepted replayed }",
                workspaceId="w",
                externalMeterId="m",
                eventId=str(number),
                amount="10",
            )
            assert answer == {"__typename": "RecordUsageSuccess", "accepted": "10", "replayed": True}

    @pytest.mark.parametrize("batch", [False, True], ids=["alone", "in a batch"])
    async def test_a_conflict_does_not_show_what_was_recorded(self, gateway: Gateway, *, batch: bool) -> None:
        secret = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "metadata": {"secret": 1}}
        await gateway.mutate("recordUsage", "", **secret, amount="7")
        name, type_ = ("recordUsageBatch", "[RecordUsageInput!]!") if batch else ("recordUsage", "RecordUsageInput!")
        query = f"""mutation ($input: {type_}) {{ {name}(input: $input) {{
          __typename ... on UserError {{ code message }}
          ... on IdempotencyConflict {{
            entry: firstEntry {{ amount metadata recordedBy totalCreditsAfter usedCreditsAfter }}
          }}
        }} }}"""
        caller = await gateway.caller(Scope.USAGE_WRITE)
        # Also of what the key itself has recorded: a thief of the key learns nothing by it.
        own = secret | {"eventId": "own"}
        await caller.mutate("recordUsage", "", **own, amount="7")
        before = await gateway.data(STATE)
        for event in (secret, own):
            sent = event | {"amount": "8"}
            conflict = conflict_of(str(event["eventId"]))
            (answer,) = (await caller.data(query, {"input": [sent] if batch else sent})).values()
            assert answer == ([conflict] if batch else conflict)
            (answer,) = (await gateway.data(query, {"input": [sent] if batch else sent})).values()
            entry = (answer[0] if batch else answer)["entry"]
            assert (entry["amount"], entry["metadata"]) == ("7", {"secret": 1})
        assert await gateway.data(STATE) == before

    async def test_what_another_key_attached_to_a_hold_is_not_shown(self, gateway: Gateway) -> None:
        caller = await gateway.caller(Scope.USAGE_WRITE)
        reader = await gateway.caller(Scope.USAGE_WRITE, Scope.BILLING_READ)
        meter = {"workspaceId": "w", "externalMeterId": "m"}
        steps: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("extendHold", "ExtendHoldSuccess", {"holdId": "h", "expiresInSeconds": 1}),
            ("commitHold", "CommitHoldSuccess", {"holdId": "h", "amount": "3"}),
            ("releaseHold", "ReleaseHoldSuccess", {"holdId": "g"}),
            ("extendHold", "HoldNotOpen", {"holdId": "g", "expiresInSeconds": 1}),
        )
        for key, shown in ((caller, {}), (reader, {"secret": 1})):
            for name in ("h", "g"):
                secret = {"holdId": f"{name}{key.key}", "metadata": {"secret": 1}}
                await gateway.mutate("holdCredits", "", **meter, **secret, amount="3")
            for mutation, type_, values in steps:
                values |= {"holdId": f"{values['holdId'][0]}{key.key}"}
                selection = f"... on {type_} {{ hold {{ amount metadata }} }}"
                answer = await key.mutate(mutation, selection, **meter, **values)
                assert (answer["__typename"], answer["hold"]) == (type_, {"amount": "3", "metadata": shown})

    async def test_a_replay_shows_the_entry_to_the_key_that_recorded_it(self, gateway: Gateway) -> None:
        values = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": "7", "policy": "PARTIAL"}
        selection = """... on RecordUsageSuccess {
          accepted refused overLimit replayed billingMeter { usedCredits } entry { amount usedCreditsAfter }
        }"""
        caller, other = await gateway.caller(Scope.USAGE_WRITE), await gateway.caller(Scope.USAGE_WRITE)
        reader = await gateway.caller(Scope.USAGE_WRITE, Scope.BILLING_READ)
        first = await caller.mutate("recordUsage", selection, **values)
        assert first["entry"] == {"amount": "7", "usedCreditsAfter": "37"}
        for replayer, entry in ((caller, first["entry"]), (other, None), (reader, first["entry"])):
            again = await replayer.mutate("recordUsage", selection, **values)
            assert again == first | {"replayed": True, "entry": entry}

    async def test_force_is_forbidden_and_nothing_is_recorded(self, gateway: Gateway) -> None:
        caller = await gateway.caller(Scope.USAGE_WRITE)
        before = await gateway.data(STATE)
        force = (
            f'mutation {{ recordUsage(input: {{{NAMES}, eventId: "e", amount: 1, policy: FORCE}}) {{ __typename }} }}'
        )
        error = await caller.error(force)
        assert error["message"] == "The key lacks the scope usage:correct."
        assert error["extensions"] == {"code": "FORBIDDEN"}
        assert await gateway.data(STATE) == before
        # The other way round it is as forbidden: forcing is recording.
        error = await (await gateway.caller(Scope.USAGE_CORRECT)).error(force)
        assert error["message"] == "The key lacks the scope usage:write."
        assert await gateway.data(STATE) == before
        both = await gateway.caller(Scope.USAGE_WRITE, Scope.USAGE_CORRECT)
        assert await both.data(force) == {"recordUsage": {"__typename": "RecordUsageSuccess"}}

    async def test_events_older_than_35_days_are_invalid(self, gateway: Gateway) -> None:
        caller = await gateway.caller(Scope.USAGE_WRITE)
        before = await gateway.data(STATE)
        values = {"workspaceId": "w", "externalMeterId": "m", "eventId": "e", "amount": "1"}
        answer = await caller.mutate("recordUsage", "", **values, occurredAt="2026-02-09T11:59:59.999999Z")
        assert answer == {
            "__typename": "InvalidInput",
            "code": "INVALID_INPUT",
            "message": "occurredAt must be at most 35 days ago; older ones need the scope usage:correct.",
            "field": ["input", "occurredAt"],
        }
        assert await gateway.data(STATE) == before
        both = await gateway.caller(Scope.USAGE_WRITE, Scope.USAGE_CORRECT)
        answer = await both.mutate("recordUsage", "", **values, occurredAt="2026-02-09T11:59:59.999999Z")
        assert answer == {"__typename": "RecordUsageSuccess"}
        answer = await caller.mutate("recordUsage", "", **values | {"eventId": "f"}, occurredAt="2026-02-09T12:00:00Z")
        assert answer == {"__typename": "RecordUsageSuccess"}


def conflict_of(key: str) -> dict[str, Any]:
    """Return what a conflict of this event id or idempotency key is to a key that may not read."""
    return {
        "__typename": "IdempotencyConflict",
        "code": "IDEMPOTENCY_CONFLICT",
        "message": f"{key!r} was used before with other values.",
        "entry": None,
    }


@pytest.mark.usefixtures("tenant")
class TestWritingAlone:
    """Keys that may write and not read: each answer holds what the request did, and nothing of others."""

    async def test_a_conflict_of_a_refill_or_meter_does_not_show_what_was_recorded(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        caller = await gateway.caller(Scope.BILLING_WRITE)
        selection = "... on IdempotencyConflict { entry: firstEntry { amount recordedBy totalCreditsAfter } }"
        new = {"workspaceId": "w", "externalMeterId": "new"}
        for field, first, second in (
            ("refillBillingMeter", {"externalMeterId": "m", "refill": "7"}, {"refill": "8"}),
            ("createBillingMeter", new | {"totalCredits": "7"}, {"totalCredits": "8"}),
        ):
            with subtests.test(field=field):
                values = {"workspaceId": "w", "idempotencyKey": "k"} | first
                await gateway.mutate(field, "", **values)
                before = await gateway.data(STATE)
                assert await caller.mutate(field, selection, **values | second) == conflict_of("k")
                shown = await gateway.mutate(field, selection, **values | second)
                assert shown["entry"]["amount"] == "7"
                assert await gateway.data(STATE) == before

    async def test_a_conflict_of_a_void_does_not_show_what_was_voided(self, gateway: Gateway) -> None:
        caller = await gateway.caller(Scope.USAGE_CORRECT)
        selection = "... on IdempotencyConflict { entry: firstEntry { amount reason recordedBy } }"
        values = {"workspaceId": "w", "externalMeterId": "m", "eventId": "first", "idempotencyKey": "k"}
        await gateway.mutate("voidUsage", "", **values, amount="7", reason="secret")
        before = await gateway.data(STATE)
        assert await caller.mutate("voidUsage", selection, **values, amount="8", reason="r") == conflict_of("k")
        shown = await gateway.mutate("voidUsage", selection, **values, amount="8", reason="r")
        assert (shown["entry"]["amount"], shown["entry"]["reason"]) == ("7", "secret")
        assert await gateway.data(STATE) == before

    async def test_a_replayed_refill_shows_the_entry_to_the_key_that_made_it(self, gateway: Gateway) -> None:
        values = {"workspaceId": "w", "externalMeterId": "m", "refill": "7", "idempotencyKey": "k"}
        selection = """... on RefillBillingMeterSuccess {
          replayed billingMeter { totalCredits } entry { amount totalCreditsAfter }
        }"""
        caller, other = await gateway.caller(Scope.BILLING_WRITE), await gateway.caller(Scope.BILLING_WRITE)
        first = await caller.mutate("refillBillingMeter", selection, **values)
        assert first["entry"] == {"amount": "7", "totalCreditsAfter": "107"}
        for replayer, entry in ((caller, first["entry"]), (other, None), (gateway, first["entry"])):
            again = await replayer.mutate("refillBillingMeter", selection, **values)
            assert again == first | {"replayed": True, "entry": entry}

    @pytest.mark.parametrize(
        ("mutation", "scope", "values"),
        [
            ("voidUsage", Scope.USAGE_CORRECT, {"eventId": "first", "amount": "7", "reason": "r"}),
            ("grantCredits", Scope.BILLING_WRITE, {"amount": "7"}),
            ("holdCredits", Scope.USAGE_WRITE, {"holdId": "h", "amount": "7", "idempotencyKey": None}),
            ("commitHold", Scope.USAGE_WRITE, {"holdId": "held", "amount": "7", "idempotencyKey": None}),
            ("revokeCreditGrant", Scope.BILLING_WRITE, {"id": "GRANT", "amount": "7"}),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_the_replay_of_another_key_shows_no_entry(
        self, gateway: Gateway, tenant: Callable[[str], str], mutation: str, scope: Scope, values: dict[str, Any]
    ) -> None:
        meter = "n" if "holdId" in values else "m"
        names = {} if "id" in values else {"workspaceId": "w", "externalMeterId": meter}
        values = {"idempotencyKey": "k"} | names | values
        values = {name: tenant(value) for name, value in values.items() if value is not None}
        success = f"{mutation[0].upper()}{mutation[1:]}Success"
        selection = f"... on {success} {{ replayed billingMeter {{ id }} entry {{ amount recordedBy }} }}"
        caller, other = await gateway.caller(scope), await gateway.caller(scope)
        first = await caller.mutate(mutation, selection, **values)
        assert first["entry"]["amount"] == "7"
        for replayer, entry in ((caller, first["entry"]), (other, None), (gateway, first["entry"])):
            again = await replayer.mutate(mutation, selection, **values)
            assert again == first | {"replayed": True, "entry": entry}


def named(type_: dict[str, Any]) -> dict[str, Any]:
    """Return the type within lists and non-nulls."""
    while type_.get("ofType"):
        type_ = type_["ofType"]
    return type_


@pytest.mark.one_server("it counts the connections to one server")
@on_postgresql
async def test_unknown_keys_take_no_connections_from_the_requests_that_are_let_in(gateway: Gateway) -> None:
    query = "{ customers(first: 1) { nodes { id } } }"
    assert await gateway.data(query) == {"customers": {"nodes": []}}

    async def hide_keys(writer: Writer) -> None:
        await writer.execute(text("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"))

    async with held(gateway.database, hide_keys):
        strangers = [Caller(gateway.client, f"sk_test_{number:043}") for number in range(30)]
        refused = [asyncio.create_task(stranger.post(query)) for stranger in strangers]
        async with asyncio.timeout(60):
            while gateway.database.connections["all"].in_use < 1 + MAX_LOOK_UPS:  # noqa: ASYNC110  # Nobody reports it.
                await asyncio.sleep(0)
        assert await gateway.data(query) == {"customers": {"nodes": []}}
        assert gateway.database.connections["all"] == (1 + MAX_LOOK_UPS, 0, 8)
    assert {response.status_code for response in await asyncio.gather(*refused)} == {401}
    # A key that has just been made is known at once.
    assert await (await gateway.caller()).data(query) == {"customers": {"nodes": []}}


async def test_keys_are_accepted_also_when_no_more_can_be_remembered(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.api_keys.MAX_REMEMBERED", 1)
    callers = [await gateway.caller(), await gateway.caller()]
    for caller in callers * 2:
        assert await caller.data("{ viewer { orgId } }") == {"viewer": {"orgId": gateway.org_id}}
    assert len(gateway.services.api_keys._remembered) == 1
