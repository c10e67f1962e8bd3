"""The REST operations: their frozen shapes, their errors, and that they are the same meters as GraphQL's."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.http.rest import ROUTES, problem_of
from gateway.settings import Settings
from resolvers.actor import Scope
from resolvers.errors import Unavailable
from storage.engine.database import Outcome
from storage.tenants import Environment
from tests.conftest import NOW, Gateway, gateway_on
from tests.credit_walks import Walk
from tests.servers import serving
from tests.steps import disagreements, make_meter
from tests.wire import sent, served

OPENAPI: dict[str, Any] = json.loads((Path(__file__).parent.parent / "gateway" / "openapi.json").read_text("utf-8"))
BILLING, REFILL, USAGE = "/api/v1/customer-billing", "/api/v1/customer-billing/refill", "/api/v1/usage"
CUSTOMERS = "/v1/customers"
NAMES = {"workspaceId": "w", "externalMeterId": "m"}

METER = """query ($w: String!, $m: String!) { billingMeter(workspaceId: $w, externalMeterId: $m) {
  id totalCredits usedCredits allowOverages spendCap createdAt updatedAt
  usage { billingId day totalBillingUsage billingUsageName } ledger { nodes { kind amount } } } }"""


async def call(
    gateway: Gateway, method: str, path: str, *, key: str | None = None, **options: Any
) -> tuple[int, dict[str, Any]]:
    """Send a request and return its status and its body."""
    headers = {"authorization": f"Bearer {key or gateway.key}"} | options.pop("headers", {})
    response = await gateway.client.request(method, path, headers=headers, **options)
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json()


async def refused(gateway: Gateway, method: str, path: str, **options: Any) -> tuple[int, str]:
    """Send a request that is refused, and return its status and its message."""
    status, body = await call(gateway, method, path, **options)
    assert body == {"error": {"code": status, "message": body["error"]["message"]}}
    return status, str(body["error"]["message"])


async def meter(gateway: Gateway, **names: str) -> dict[str, Any]:
    """Return what GraphQL shows of the meter."""
    wanted = NAMES | names
    data = await gateway.data(METER, {"w": wanted["workspaceId"], "m": wanted["externalMeterId"]})
    found: dict[str, Any] = data["billingMeter"]
    return found


class TestOperations:
    async def test_a_meter_is_made_found_and_the_same_as_in_graphql(self, gateway: Gateway) -> None:
        new = NAMES | {"totalCredits": "9223372036854775807", "allowOverages": True, "spendCap": "5"}
        status, made = await call(gateway, "POST", BILLING, json=new)
        found = await meter(gateway)
        days, ledger = found.pop("usage"), found.pop("ledger")
        assert (status, made) == (200, {"billing": found})
        assert days == []
        assert ledger == {"nodes": [{"kind": "OPENING", "amount": "9223372036854775807"}]}
        assert made["billing"] == {
            "id": found["id"],
            "totalCredits": "9223372036854775807",
            "usedCredits": "0",
            "allowOverages": True,
            "spendCap": "5",
            "createdAt": "2026-03-16T12:00:00Z",
            "updatedAt": "2026-03-16T12:00:00Z",
        }
        assert await call(gateway, "GET", BILLING, params=NAMES) == (200, made)

    async def test_what_is_left_out_has_its_default(self, gateway: Gateway) -> None:
        _, made = await call(gateway, "POST", BILLING, json=NAMES)
        assert {name: made["billing"][name] for name in ("totalCredits", "allowOverages", "spendCap")} == {
            "totalCredits": "0",
            "allowOverages": False,
            "spendCap": None,
        }

    async def test_a_miss_is_null(self, gateway: Gateway) -> None:
        assert await call(gateway, "GET", BILLING, params=NAMES) == (200, {"billing": None})

    async def test_a_refill_adds_and_without_one_nothing_changes(self, gateway: Gateway) -> None:
        await make_meter(gateway, totalCredits="10")
        _, before = await call(gateway, "GET", BILLING, params=NAMES)
        gateway.clock.forward(minutes=1)
        assert await call(gateway, "POST", REFILL, json=NAMES) == (200, before)
        refilled = before["billing"] | {"totalCredits": "15", "updatedAt": "2026-03-16T12:01:00Z"}
        assert await call(gateway, "POST", REFILL, json=NAMES | {"refill": 5}) == (200, {"billing": refilled})
        # JSON knows one kind of number: 1.0 is an integer.
        status, again = await call(gateway, "POST", REFILL, content=json.dumps(NAMES | {"refill": 1.0}), headers=JSON)
        assert (status, again["billing"]["totalCredits"]) == (200, "16")
        assert [entry["amount"] for entry in (await meter(gateway))["ledger"]["nodes"]] == ["1", "5", "10"]

    @pytest.mark.slow
    async def test_of_a_meter_with_grants_and_holds_total_less_used_is_what_is_unspent(self, gateway: Gateway) -> None:
        walk = Walk(gateway)
        for steps, total, used in (
            ("meter 10; grant a 20 60s; grant b 5", "35", "0"),
            # What is held is unspent.
            ("hold h 12", "35", "0"),
            ("use e 4", "35", "4"),
            ("commit h 9", "35", "13"),
            ("revoke b 2", "33", "13"),
            ("void h 3", "33", "10"),
            # Of 20 credits 9 + 4 - 3 are drawn, and 10 end.
            ("wait 60", "23", "10"),
            ("refill 1", "24", "10"),
        ):
            await walk.take(steps)
            status, found = await call(gateway, "GET", BILLING, params=NAMES)
            assert status == 200
            assert (found["billing"]["totalCredits"], found["billing"]["usedCredits"]) == (total, used), steps
            assert set(found["billing"]) == {
                *("id", "totalCredits", "usedCredits", "allowOverages", "spendCap", "createdAt", "updatedAt")
            }
        refilled = (await call(gateway, "POST", REFILL, json=NAMES | {"refill": 5}))[1]["billing"]
        assert (refilled["totalCredits"], refilled["usedCredits"]) == ("29", "10")
        _, days = await call(gateway, "GET", f"{USAGE}/{walk.meter_id}")
        assert [day["totalBillingUsage"] for day in days["data"]] == ["10"]
        await walk.check()

    async def test_usage_is_that_of_the_last_366_days_unless_the_query_says_which(self, gateway: Gateway) -> None:
        meter_id = await make_meter(gateway, allowOverages=True)
        for days_back in (0, 365, 366):
            await gateway.mutate(
                "recordUsage",
                "... on RecordUsageSuccess { accepted }",
                **NAMES,
                eventId=str(days_back),
                amount=str(days_back + 1),
                occurredAt=(NOW - timedelta(days=days_back)).isoformat(),
                usageName="tokens",
            )
        today, last, older = (
            {
                "billingId": meter_id,
                "day": str((NOW - timedelta(days=days_back)).date()),
                "totalBillingUsage": str(days_back + 1),
                "billingUsageName": "tokens",
            }
            for days_back in (0, 365, 366)
        )
        path = f"{USAGE}/{meter_id}"
        assert await call(gateway, "GET", path) == (200, {"data": [last, today]})
        assert (await meter(gateway))["usage"] == [today]
        span = {"from": older["day"], "to": last["day"]}
        assert await call(gateway, "GET", path, params=span) == (200, {"data": [older, last]})
        assert await call(gateway, "GET", path, params={"to": last["day"]}) == (200, {"data": [older, last]})
        assert await call(gateway, "GET", path, params={"from": today["day"]}) == (200, {"data": [today]})

    async def test_of_an_unknown_meter_there_is_no_usage(self, gateway: Gateway, other: Gateway) -> None:
        foreign = await make_meter(other, totalCredits="10")
        for bid in ("none", "mtr_000000000000000000000000", foreign, "%00", "é"):
            assert await call(gateway, "GET", f"{USAGE}/{bid}") == (200, {"data": []})

    async def test_a_customer_is_made(self, gateway: Gateway) -> None:
        new = {"email": "Ada@example.com", "name": "Ada", "external_id": "crm-1", "metadata": {"plan": "pro"}}
        status, made = await call(gateway, "POST", CUSTOMERS, json=new)
        times = {"created_at": "2026-03-16T12:00:00Z", "updated_at": "2026-03-16T12:00:00Z"}
        assert (status, made) == (
            201,
            new | {"id": made["id"], "org_id": gateway.org_id, "environment": "sandbox"} | times,
        )
        order = ("id", "org_id", "email", "name", "external_id", "metadata", "environment", "created_at", "updated_at")
        assert tuple(made) == order
        query = "query ($id: ID!) { node(id: $id) { ... on Customer { email name externalId metadata } } }"
        assert await gateway.data(query, {"id": made["id"]}) == {
            "node": {"email": "Ada@example.com", "name": "Ada", "externalId": "crm-1", "metadata": {"plan": "pro"}}
        }
        status, least = await call(gateway, "POST", CUSTOMERS, json={"email": "b@example.com", "name": None})
        assert status == 201
        assert {name: least[name] for name in ("name", "external_id", "metadata")} == {
            "name": None,
            "external_id": None,
            "metadata": {},
        }

    async def test_a_live_key_makes_live_customers(self, gateway: Gateway) -> None:
        live = await gateway.caller(environment=Environment.LIVE)
        _, made = await call(gateway, "POST", CUSTOMERS, key=live.key, json={"email": "ada@example.com"})
        assert made["environment"] == "live"


JSON = {"content-type": "application/json"}

#: Bodies and queries that are malformed, each with how its refusal begins.
MALFORMED: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", BILLING, {"json": {"workspaceId": "w"}}, "externalMeterId is required."),
    ("POST", BILLING, {"json": NAMES | {"workspaceId": 1}}, "workspaceId is refused: It must be a string."),
    ("POST", BILLING, {"json": NAMES | {"workspaceId": ""}}, "workspaceId must have 1 to 256 characters; it has 0."),
    ("POST", BILLING, {"json": NAMES | {"externalMeterId": "\0"}}, "externalMeterId must not contain NUL"),
    (
        "POST",
        BILLING,
        {"json": NAMES | {"totalCredits": 5}},
        "totalCredits is refused: An amount is a string of ASCII digits, from 0 to",
    ),
    (
        "POST",
        BILLING,
        {"json": NAMES | {"totalCredits": None}},
        "totalCredits is refused: An amount is a string of ASCII digits, from 0 to",
    ),
    (
        "POST",
        BILLING,
        {"json": NAMES | {"totalCredits": "-1"}},
        "totalCredits is refused: An amount is a string of ASCII digits, from 0 to",
    ),
    (
        "POST",
        BILLING,
        {"json": NAMES | {"totalCredits": "٣"}},
        "totalCredits is refused: An amount is a string of ASCII digits, from 0 to",
    ),
    (
        "POST",
        BILLING,
        {"json": NAMES | {"totalCredits": str(2**63)}},
        "totalCredits is refused: An amount is a string of ASCII digits, from 0 to",
    ),
    (
        "POST",
        BILLING,
        {"json": NAMES | {"spendCap": None}},
        "spendCap is refused: An amount is a string of ASCII digits, from 0 to",
    ),
    (
        "POST",
        BILLING,
        {"json": NAMES | {"spendCap": 5}},
        "spendCap is refused: An amount is a string of ASCII digits, from 0 to",
    ),
    (
        "POST",
        BILLING,
        {"json": NAMES | {"allowOverages": "yes"}},
        "allowOverages is refused: It must be true or false.",
    ),
    ("POST", BILLING, {"json": NAMES | {"allowOverages": None}}, "allowOverages is refused: It must be true or false."),
    ("POST", BILLING, {"json": NAMES | {"spendcap": "5"}}, "'spendcap' is not known here; known are workspaceId,"),
    ("POST", BILLING, {}, "The body must be a JSON object; there is none."),
    ("POST", BILLING, {"content": b"", "headers": JSON}, "The body must be a JSON object; there is none."),
    ("POST", BILLING, {"content": b"{", "headers": JSON}, "The body must be JSON in UTF-8: "),
    ("POST", BILLING, {"content": b"null", "headers": JSON}, "The body must be a JSON object."),
    ("POST", BILLING, {"content": b"[]", "headers": JSON}, "The body must be a JSON object."),
    ("POST", BILLING, {"content": b'{"workspaceId": "\xff"}', "headers": JSON}, "The body must be JSON in UTF-8: "),
    ("POST", REFILL, {"json": NAMES | {"refill": 0}}, "refill must be greater than 0."),
    ("POST", REFILL, {"json": NAMES | {"refill": -1}}, "refill is refused: A refill is a JSON integer, from 1 to"),
    ("POST", REFILL, {"json": NAMES | {"refill": 1.5}}, "refill is refused: A refill is a JSON integer, from 1 to"),
    ("POST", REFILL, {"json": NAMES | {"refill": "5"}}, "refill is refused: A refill is a JSON integer, from 1 to"),
    ("POST", REFILL, {"json": NAMES | {"refill": True}}, "refill is refused: A refill is a JSON integer, from 1 to"),
    ("POST", REFILL, {"json": NAMES | {"refill": None}}, "refill is refused: A refill is a JSON integer, from 1 to"),
    ("POST", REFILL, {"json": NAMES | {"refill": 2**63}}, "refill is refused: A refill is a JSON integer, from 1 to"),
    # Where 9007199254740993 was meant, this is what many clients send.
    ("POST", REFILL, {"json": NAMES | {"refill": 2**53}}, "refill is refused: A refill is a JSON integer, from 1 to"),
    (
        "POST",
        REFILL,
        {"content": b'{"workspaceId":"w","externalMeterId":"m","refill":9007199254740993.0}', "headers": JSON},
        "refill is refused: A refill is a JSON integer, from 1 to",
    ),
    ("POST", REFILL, {"json": NAMES | {"amount": 5}}, "'amount' is not known here"),
    ("POST", CUSTOMERS, {"json": {}}, "email is required."),
    ("POST", CUSTOMERS, {"json": {"email": "ada"}}, "email must be a valid email address"),
    ("POST", CUSTOMERS, {"json": {"email": "a@example.com", "name": ""}}, "name must have 1 to 256 characters"),
    (
        "POST",
        CUSTOMERS,
        {"json": {"email": "a@example.com", "external_id": "x" * 257}},
        "external_id must have 1 to 256 characters; it has 257.",
    ),
    ("POST", CUSTOMERS, {"json": {"email": "a@example.com", "externalId": "x"}}, "'externalId' is not known here"),
    (
        "POST",
        CUSTOMERS,
        {"json": {"email": "a@example.com", "metadata": []}},
        "metadata is refused: It must be an object",
    ),
    ("GET", BILLING, {"params": {"workspaceId": "w"}}, "externalMeterId is required."),
    ("GET", BILLING, {"params": NAMES | {"externalMeterId": ""}}, "externalMeterId must have 1 to 256 characters"),
    ("GET", BILLING, {"params": [*NAMES.items(), ("workspaceId", "v")]}, "'workspaceId' must be given once."),
    ("GET", BILLING, {"params": NAMES | {"page": "1"}}, "'page' is not known here"),
    ("POST", REFILL, {"json": NAMES, "params": {"refill": "5"}}, "'refill' is not known here; nothing is."),
    ("GET", f"{USAGE}/x", {"params": {"from": "2026-02-30"}}, "from is refused: A date is a day of the calendar"),
    ("GET", f"{USAGE}/x", {"params": {"to": "yesterday"}}, "to is refused: A date is a day of the calendar"),
    ("GET", f"{USAGE}/x", {"params": {"from": "2026-02-02", "to": "2026-02-01"}}, "from must not be after to"),
    ("GET", f"{USAGE}/x", {"params": {"from": "2025-01-01", "to": "2026-01-02"}}, "from and to must span at most 366"),
]


class TestRefusals:
    async def test_what_is_malformed_is_400_names_the_field_and_changes_nothing(
        self, gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        await make_meter(gateway, totalCredits="10")
        before = await meter(gateway)
        for method, path, options, message in MALFORMED:
            with subtests.test(method=method, path=path, options=options):
                status, reported = await refused(gateway, method, path, **options)
                assert status == 400
                assert reported.startswith(message)
        assert await meter(gateway) == before
        meters = "{ billingMeters { nodes { id } } customers { nodes { id } } }"
        data = await gateway.data(meters)
        assert (len(data["billingMeters"]["nodes"]), data["customers"]["nodes"]) == (1, [])

    async def test_a_second_create_names_the_existing_one(self, gateway: Gateway) -> None:
        meter_id = await make_meter(gateway)
        assert await refused(gateway, "POST", BILLING, json=NAMES) == (
            400,
            f"Billing meter 'm' exists already in workspace 'w'. Its id is {meter_id}.",
        )
        new = {"email": "ada@example.com", "external_id": "crm-1"}
        _, made = await call(gateway, "POST", CUSTOMERS, json=new)
        assert await refused(gateway, "POST", CUSTOMERS, json=new) == (
            400,
            f"There is already a customer of external id 'crm-1'. Its id is {made['id']}.",
        )

    async def test_a_refill_of_an_unknown_or_full_meter_is_400(self, gateway: Gateway) -> None:
        assert await refused(gateway, "POST", REFILL, json=NAMES | {"refill": 1}) == (
            400,
            "There is no billing meter 'm' in workspace 'w'.",
        )
        await make_meter(gateway, totalCredits="9223372036854775807")
        status, message = await refused(gateway, "POST", REFILL, json=NAMES | {"refill": 1})
        assert (status, message[:41]) == (400, "The meter's total credits would pass 9223")
        assert (await meter(gateway))["totalCredits"] == "9223372036854775807"

    async def test_any_caller_that_has_no_key_is_401_before_anything_is_read(self, gateway: Gateway) -> None:
        for method, path in OPERATIONS:
            response = await gateway.client.request(method, path.replace("{bid}", "x"), content=b"{")
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json() == {
                "error": {"code": 401, "message": "Send one header `Authorization: Bearer KEY`."}
            }

    async def test_every_operation_needs_its_scope(self, gateway: Gateway) -> None:
        await make_meter(gateway)
        reads: Sequence[tuple[str, str, dict[str, Any]]] = (
            ("GET", BILLING, {"params": NAMES}),
            ("GET", f"{USAGE}/x", {}),
        )
        writes: Sequence[tuple[str, str, dict[str, Any]]] = (
            ("POST", BILLING, {"json": NAMES | {"externalMeterId": "n"}}),
            ("POST", REFILL, {"json": NAMES | {"refill": 1}}),
            ("POST", CUSTOMERS, {"json": {"email": "ada@example.com"}}),
        )
        for scope, allowed, forbidden in (
            (Scope.BILLING_READ, reads, writes),
            (Scope.BILLING_WRITE, writes, reads),
        ):
            key = (await gateway.caller(scope)).key
            for method, path, options in forbidden:
                status, message = await refused(gateway, method, path, key=key, **options)
                assert (status, message[:24]) == (403, "The key lacks the scope ")
            for method, path, options in allowed:
                status, _ = await call(gateway, method, path, key=key, **options)
                assert status in {200, 201}

    async def test_a_workspace_that_the_key_is_not_for_is_403(self, gateway: Gateway) -> None:
        meter_id = await make_meter(gateway, totalCredits="10")
        key = (await gateway.caller(workspaces=["v"])).key
        for method, path, options in (
            ("GET", BILLING, {"params": NAMES}),
            ("POST", BILLING, {"json": NAMES}),
            ("POST", REFILL, {"json": NAMES | {"refill": 1}}),
        ):
            status, _ = await refused(gateway, method, path, key=key, **options)
            assert status == 403
        assert await call(gateway, "GET", f"{USAGE}/{meter_id}", key=key) == (200, {"data": []})
        assert (await meter(gateway))["totalCredits"] == "10"

    async def test_another_tenant_s_meter_is_as_one_that_does_not_exist(self, gateway: Gateway, other: Gateway) -> None:
        await make_meter(other, totalCredits="10")
        live = await gateway.caller(environment=Environment.LIVE)
        await make_meter(live, totalCredits="10")
        assert await call(gateway, "GET", BILLING, params=NAMES) == (200, {"billing": None})
        assert await refused(gateway, "POST", REFILL, json=NAMES | {"refill": 1}) == (
            400,
            "There is no billing meter 'm' in workspace 'w'.",
        )
        assert [(await meter(each))["totalCredits"] for each in (other, live)] == ["10", "10"]  # type: ignore[arg-type]

    async def test_paths_methods_and_media_types_that_there_are_not(self, gateway: Gateway) -> None:
        assert await refused(gateway, "GET", "/api/v1/none") == (404, "Not Found")
        for path in ("/v1/none", "/v1", "/api", f"{USAGE}/a/b"):
            assert await refused(gateway, "POST", path) == (404, "Not Found")
        assert await refused(gateway, "POST", "/openapi.json") == (405, "Method Not Allowed")
        for method, path, allowed in (
            ("PUT", BILLING, {"GET", "HEAD", "POST"}),
            ("DELETE", CUSTOMERS, {"POST"}),
            ("GET", REFILL, {"POST"}),
            ("POST", f"{USAGE}/x", {"GET", "HEAD"}),
        ):
            response = await gateway.client.request(method, path, headers={"authorization": f"Bearer {gateway.key}"})
            assert response.status_code == 405
            assert set(response.headers["allow"].split(", ")) == allowed
            assert response.json() == {"error": {"code": 405, "message": "Method Not Allowed"}}
        form = {"content": b"workspaceId=w", "headers": {"content-type": "application/x-www-form-urlencoded"}}
        assert await refused(gateway, "POST", BILLING, **form) == (415, "The body must be application/json in UTF-8.")

    async def test_a_body_that_is_too_large_is_413(self, gateway: Gateway) -> None:
        huge = NAMES | {"externalMeterId": "x" * 2_000_000}
        status, message = await refused(gateway, "POST", BILLING, json=huge)
        assert (status, message[:30]) == (413, "The body must have at most 104")

    async def test_a_database_that_is_away_is_503(self, tmp_path: Path) -> None:
        app = create_app(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/none/tollgate.db"))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://tollgate.test") as client:
                headers = {"authorization": f"Bearer sk_test_{'A' * 43}"}
                response = await client.get(BILLING, params=NAMES, headers=headers)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        message = "The service is unavailable for the moment. Nothing was written. Repeat the request with the same id."
        assert response.json() == {"error": {"code": 503, "message": message}}

    def test_what_may_have_been_written_is_not_to_be_repeated_by_itself(self) -> None:
        problem = problem_of(Unavailable(Outcome.UNKNOWN))
        assert (problem.status, problem.headers) == (503, None)
        assert problem.message == (
            "The service is unavailable for the moment. Whether it was written is not known. Repeat the request only "
            "under the id or key that it had."
        )

    async def test_thousands_of_parameters_are_refused_at_once(self, gateway: Gateway) -> None:
        query = "&".join(f"{number}=" for number in range(9_000))
        status, message = await refused(gateway, "GET", f"{BILLING}?{query}")
        assert (status, message[:26]) == (400, "'0' is not known here; kno")


class TestIdempotencyKeys:
    async def test_a_repeated_request_answers_the_first_result(self, gateway: Gateway) -> None:
        headers = {"idempotency-key": "k"}
        await make_meter(gateway, "old", totalCredits="10")
        old = NAMES | {"externalMeterId": "old"}
        for path, body, other in (
            (BILLING, NAMES | {"totalCredits": "3"}, NAMES | {"totalCredits": "4"}),
            (REFILL, old | {"refill": 5}, old | {"refill": 6}),
            (CUSTOMERS, {"email": "ada@example.com"}, {"email": "bob@example.com"}),
        ):
            first = await call(gateway, "POST", path, json=body, headers=headers)
            assert await call(gateway, "POST", path, json=body, headers=headers) == first
            assert await refused(gateway, "POST", path, json=other, headers=headers) == (
                400,
                "'k' was used before with other values.",
            )
        assert (await meter(gateway))["totalCredits"] == "3"
        assert (await meter(gateway, externalMeterId="old"))["totalCredits"] == "15"
        assert len((await gateway.data("{ customers { nodes { id } } }"))["customers"]["nodes"]) == 1

    async def test_graphql_and_rest_share_the_keys_of_refills(self, gateway: Gateway) -> None:
        await make_meter(gateway, totalCredits="10")
        body = NAMES | {"refill": 5}
        await call(gateway, "POST", REFILL, json=body, headers={"idempotency-key": "k"})
        again = await gateway.mutate(
            "refillBillingMeter",
            "... on RefillBillingMeterSuccess { replayed }",
            **NAMES,
            refill="5",
            idempotencyKey="k",
        )
        assert again == {"__typename": "RefillBillingMeterSuccess", "replayed": True}
        assert (await meter(gateway))["totalCredits"] == "15"

    async def test_a_key_is_the_same_text_in_both(self, gateway: Gateway) -> None:
        await make_meter(gateway, totalCredits="10")
        headers = [(b"authorization", f"Bearer {gateway.key}".encode()), (b"idempotency-key", "clé-1".encode())]
        response = await gateway.client.post(REFILL, json=NAMES | {"refill": 7}, headers=headers)
        assert response.status_code == 200
        selection = "... on RefillBillingMeterSuccess { replayed }"
        again = await gateway.mutate("refillBillingMeter", selection, **NAMES, refill="7", idempotencyKey="clé-1")
        assert again["replayed"] is True
        assert (await meter(gateway))["totalCredits"] == "17"
        latin = [headers[0], (b"idempotency-key", "clé-1".encode("latin-1"))]
        response = await gateway.client.post(REFILL, json=NAMES | {"refill": 7}, headers=latin)
        assert response.json() == {"error": {"code": 400, "message": "Idempotency-Key must be in UTF-8."}}

    async def test_white_space_around_a_key_and_quotes_around_it_are_no_part_of_it(self, gateway: Gateway) -> None:
        await make_meter(gateway, totalCredits="10")
        body = json.dumps(NAMES | {"refill": 10}).encode()
        totals = []
        async with served(create_app(gateway.services.settings), lifespan="on") as port:
            for value in (b"inv-7", b"inv-7 ", b"inv-7\t", b" \t inv-7 \t ", b'"inv-7"', b'"inv-7"\t'):
                head = f"POST {REFILL} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\t\r\n".encode()
                head += b"content-type: application/json \r\ncontent-length: %d \t\r\n" % len(body)
                head += b"connection: close\r\nidempotency-key:%s\r\n\r\n" % value
                answer = await sent(port, head + body)
                assert answer.startswith(b"HTTP/1.1 200 "), (value, answer)
                totals.append((await meter(gateway))["totalCredits"])
        assert totals == ["20"] * 6

    async def test_a_key_in_double_quotes_is_the_same_as_in_graphql_without_them(self, gateway: Gateway) -> None:
        await make_meter(gateway, totalCredits="10")
        selection = "... on RefillBillingMeterSuccess { replayed }"
        for quoted, key in (
            ('"inv-8"', "inv-8"),
            (r'"a\"b\\c"', r'a"b\c'),
            ('"a b; c=1, d"', "a b; c=1, d"),
            ('a"b"', 'a"b"'),
            ("a;b=1", "a;b=1"),
        ):
            status, _ = await call(
                gateway, "POST", REFILL, json=NAMES | {"refill": 1}, headers={"idempotency-key": quoted}
            )
            again = await gateway.mutate("refillBillingMeter", selection, **NAMES, refill="1", idempotencyKey=key)
            assert (status, again["replayed"]) == (200, True), quoted
        # GraphQL's field is no header: its quotes are the caller's own.
        other = await gateway.mutate("refillBillingMeter", selection, **NAMES, refill="1", idempotencyKey='"inv-8"')
        assert other["replayed"] is False
        assert (await meter(gateway))["totalCredits"] == "16"

    async def test_a_key_whose_quotes_are_broken_is_refused(self, gateway: Gateway) -> None:
        await make_meter(gateway, totalCredits="10")
        for key in ('"', '"inv-7', '"inv-7"x', '"inv-7";a=1', '"a", "b"', r'"a\b"', '"a"b"', '"a\tb"', '"clé"'):
            raw = [(b"authorization", f"Bearer {gateway.key}".encode()), (b"idempotency-key", key.encode())]
            response = await gateway.client.post(REFILL, json=NAMES | {"refill": 1}, headers=raw)
            assert response.json() == {
                "error": {
                    "code": 400,
                    "message": "Idempotency-Key begins with a double quote, so it must end with one, and have between "
                    'them printable ASCII, with a backslash before each " and each backslash.',
                }
            }, key
        assert await refused(
            gateway, "POST", REFILL, json=NAMES | {"refill": 1}, headers={"idempotency-key": '""'}
        ) == (400, "Idempotency-Key must have 1 to 255 characters; it has 0.")
        assert (await meter(gateway))["totalCredits"] == "10"

    async def test_a_malformed_key_is_refused(self, gateway: Gateway) -> None:
        await make_meter(gateway, totalCredits="10")
        for path, body in ((BILLING, NAMES), (REFILL, NAMES | {"refill": 1}), (CUSTOMERS, {"email": "a@example.com"})):
            for key, length in (("", 0), ("x" * 256, 256)):
                assert await refused(gateway, "POST", path, json=body, headers={"idempotency-key": key}) == (
                    400,
                    f"Idempotency-Key must have 1 to 255 characters; it has {length}.",
                )
            response = await gateway.client.post(
                path,
                json=body,
                headers=[
                    ("authorization", f"Bearer {gateway.key}"),
                    ("idempotency-key", "a"),
                    ("idempotency-key", "b"),
                ],
            )
            message = "Idempotency-Key must be given once."
            assert response.json() == {"error": {"code": 400, "message": message}}
        assert await refused(gateway, "POST", REFILL, json=NAMES, headers={"idempotency-key": "k"}) == (
            400,
            "refill must be given with an Idempotency-Key.",
        )
        assert (await meter(gateway))["totalCredits"] == "10"


#: The operations that the description names.
OPERATIONS = [(method.upper(), path) for path, methods in OPENAPI["paths"].items() for method in methods]


class TestDescription:
    async def test_it_is_served_as_it_is_committed(self, gateway: Gateway) -> None:
        response = await gateway.client.get("/openapi.json")
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        assert response.json() == OPENAPI

    def test_it_describes_exactly_the_operations_that_there_are(self) -> None:
        routes = set()
        for route in ROUTES:
            methods = route.methods or {name.upper() for name in ("get", "post") if hasattr(route.endpoint, name)}
            routes |= {(method, route.path) for method in methods - {"HEAD"}}
        assert routes == {*OPERATIONS, ("GET", "/openapi.json")}

    def test_it_is_a_valid_description(self) -> None:
        assert OPENAPI["openapi"] == "3.1.0"
        from jsonschema_rs import validator_for  # noqa: PLC0415  # A part of schemathesis.

        for schema in OPENAPI["components"]["schemas"].values():
            validator_for({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, **REFERENCES})

    async def test_each_operation_as_its_documentation_prints_it(self, gateway: Gateway, tmp_path: Path) -> None:
        """Over real HTTP, and read back through GraphQL."""
        bodies = {
            operation["operationId"]: operation["requestBody"]["content"]["application/json"]["example"]
            for methods in OPENAPI["paths"].values()
            for operation in methods.values()
            if "requestBody" in operation
        }
        names = {name: bodies["createCustomerBilling"][name] for name in NAMES}
        async with (
            serving(gateway.services.settings.database_url, tmp_path) as server,
            server.client() as client,
        ):
            client.headers["authorization"] = f"Bearer {gateway.key}"
            customer = (await client.post(CUSTOMERS, json=bodies["createCustomer"])).json()
            made = (await client.post(BILLING, json=bodies["createCustomerBilling"])).json()["billing"]
            refilled = (await client.post(REFILL, json=bodies["refillCustomerBilling"])).json()["billing"]
            event = names | {"eventId": "e", "amount": "7", "usageName": "tokens"}
            recorded = await client.post(
                "/graphql",
                json={
                    "query": "mutation ($i: RecordUsageInput!) { recordUsage(input: $i) { __typename } }",
                    "variables": {"i": event},
                },
            )
            assert recorded.json() == {"data": {"recordUsage": {"__typename": "RecordUsageSuccess"}}}
            found = (await client.get(BILLING, params=names)).json()["billing"]
            days = (await client.get(f"{USAGE}/{made['id']}")).json()["data"]
            query = {"query": METER, "variables": {"w": names["workspaceId"], "m": names["externalMeterId"]}}
            read = (await client.post("/graphql", json=query)).json()["data"]["billingMeter"]
        assert read == found | {
            "usage": days,
            "ledger": {
                "nodes": [
                    {"kind": "USAGE", "amount": "7"},
                    {"kind": "REFILL", "amount": "500"},
                    {"kind": "OPENING", "amount": "1000"},
                ]
            },
        }
        assert (made["totalCredits"], refilled["totalCredits"], found["usedCredits"]) == ("1000", "1500", "7")
        assert (found["allowOverages"], found["spendCap"]) == (True, "250")
        assert [(day["billingId"], day["totalBillingUsage"], day["billingUsageName"]) for day in days] == [
            (made["id"], "7", "tokens")
        ]
        customer_query = "query ($id: ID!) { node(id: $id) { ... on Customer { email name externalId metadata } } }"
        node = await gateway.data(customer_query, {"id": customer["id"]})
        sent = bodies["createCustomer"]
        assert node["node"] == {
            "email": sent["email"],
            "name": sent["name"],
            "externalId": sent["external_id"],
            "metadata": sent["metadata"],
        }

    @pytest.mark.one_python
    async def test_schemathesis_finds_nothing(self, own: Gateway, tmp_path: Path, pytestconfig: pytest.Config) -> None:
        """All its checks, good and bad requests of every operation, over real HTTP; thousands with `--fuzz`."""
        is_sqlite = own.database.dialect == "sqlite"
        if pytestconfig.getoption("fuzz"):
            max_examples, least = ("350", 2_000) if is_sqlite else ("45", 600)
        else:
            max_examples, least = ("20", 250) if is_sqlite else ("10", 100)
        meter_id = await make_meter(own, "seeded", workspaceId="seeded", totalCredits="10", allowOverages=True)
        event = {"workspaceId": "seeded", "externalMeterId": "seeded", "eventId": "e", "amount": "7"}
        await own.mutate("recordUsage", "... on RecordUsageSuccess { accepted }", **event)
        config = tmp_path / "schemathesis.toml"
        config.write_text(SCHEMATHESIS, "utf-8")
        async with serving(own.services.settings.database_url, tmp_path) as server:
            process = await asyncio.create_subprocess_exec(
                *(Path(sys.executable).with_name("schemathesis"), "--config-file", config),
                *("run", f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {own.key}"),
                *("--checks", "all", "--seed", "1", "--max-examples", max_examples, "--continue-on-failure"),
                *("--report", "ndjson", "--report-ndjson-path", tmp_path / "report.ndjson", "--no-color"),
                env=os.environ | {"TOLLGATE_TEST_METER": f"{meter_id} seeded seeded"},
                cwd=tmp_path,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await process.communicate()
        report = output.decode()
        assert process.returncode == 0, report
        cases = re.search(r"([0-9]+) generated", report)
        assert cases is not None, report
        assert int(cases[1]) >= least, report
        assert "Traceback" not in server.logged
        # Whatever was sent, the books are right.
        assert await disagreements(own.database) == []


#: How schemathesis judges: what is well-formed may still name an unknown meter, or one that there is already.
SCHEMATHESIS = f"""
hooks = "{Path(__file__).with_name("schemathesis_hooks.py")}"

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400"]
"""

REFERENCES = {"components": OPENAPI["components"]}


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Gateway]:
    """Another organization's gateway, on the same database."""
    async with gateway_on(database_url) as gateway:
        yield gateway
