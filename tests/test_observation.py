"""What is observed of a request: its id, the facts of its line, and on demand where its time went."""

import asyncio
import re
import secrets
import sys
from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import Settings
from gateway.telemetry.requests import Request, redacted_path
from tests.conftest import Caller, Gateway, gateway_on
from tests.operations import READ_METER, READ_METER_DIGEST, RECORD_USAGE, RECORD_USAGE_DIGEST
from tests.steps import execute, make_customer, make_meter, session_of

TIMED = {"x-tollgate-timing": "on"}


class Observed(NamedTuple):
    """A gateway, and the requests that it has answered."""

    gateway: Gateway
    requests: list[Request]

    @property
    def last(self) -> dict[str, object]:
        """What was logged of the last one, without what differs each time."""
        return facts_of(self.requests[-1])


def facts_of(request: Request) -> dict[str, object]:
    names = ("method", "path", "status", "outcome", "kind", "operation", "document", "statements", "key_id")
    return {name: getattr(request, name) for name in names}


@pytest.fixture
async def observed(database_url: str) -> AsyncIterator[Observed]:
    requests: list[Request] = []
    async with gateway_on(database_url, request_log=requests.append) as gateway:
        yield Observed(gateway, requests)


async def send(caller: Caller, query: str, headers: dict[str, str], **variables: object) -> httpx.Response:
    return await caller.client.post(
        "/graphql",
        json={"query": query, "variables": variables},
        headers={"authorization": f"Bearer {caller.key}"} | headers,
    )


def timing_of(response: httpx.Response) -> dict[str, str]:
    """Return the parts of the `Server-Timing` header: the name and, without the duration, what it says of itself."""
    parts = {}
    for part in response.headers["server-timing"].split(", "):
        match = re.fullmatch(r'([a-z]+);dur=[0-9]+(?:\.[0-9]{3})?(?:;desc="([^"]*)")?', part)
        assert match is not None, part
        parts[match[1]] = match[2] or ""
    return parts


class TestRequestId:
    async def test_every_answer_has_its_own(self, observed: Observed) -> None:
        gateway = observed.gateway
        bearer = {"authorization": f"Bearer {gateway.key}"}
        answers = [
            await gateway.post("{ viewer { orgId } }"),
            await gateway.post("{"),
            await gateway.client.post("/graphql"),
            await gateway.client.get("/nowhere"),
            await gateway.client.get("/healthz"),
            await gateway.client.put("/graphql", headers=bearer),
            await gateway.client.get("/api/v1/usage/mtr_1", headers=bearer),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 401, 404, 200, 405, 200]
        ids = [answer.headers["x-request-id"] for answer in answers]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch("[0-9a-f]{16}", each) for each in ids)
        assert [request.request_id for request in observed.requests] == ids

    @pytest.mark.parametrize(
        "given", ["0123456789abcdef", "6F9619FF-8B86-D011-B42D-00CF4FC964FF", "4bf92f3577b34da6a3ce929d0e0e4736"]
    )
    async def test_a_proxy_s_is_kept(self, observed: Observed, given: str) -> None:
        response = await observed.gateway.client.get("/healthz", headers={"x-request-id": given})
        assert response.headers["x-request-id"] == given
        assert observed.requests[-1].request_id == given

    @pytest.mark.parametrize(
        "given",
        ["", "0123456789abcde", "0" * 37, "not-hexadecimal-digits", "sk_live_" + "a" * 24, "0123456789abcdef\t0"],
    )
    async def test_anything_else_is_replaced(self, observed: Observed, given: str) -> None:
        response = await observed.gateway.client.get("/healthz", headers={"x-request-id": given})
        assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])
        assert response.headers["x-request-id"] != given


class TestFacts:
    async def test_a_query_s(self, observed: Observed) -> None:
        gateway, requests = observed
        await make_meter(gateway)
        key_id = requests[-1].key_id
        assert key_id is not None
        assert key_id.startswith("key_")
        await gateway.data(READ_METER, {"w": "w", "m": "m"})
        assert observed.last == {
            "method": "POST",
            "path": "/graphql",
            "status": 200,
            "outcome": "OK",
            "kind": "query",
            "operation": "Meter",
            "document": READ_METER_DIGEST,
            "statements": 1,
            "key_id": key_id,
        }
        assert requests[-1].took_ns > 0
        assert requests[-1].steps is None

    async def test_a_debit_s_group_is_counted_for_none_of_its_requests(self, observed: Observed) -> None:
        gateway, requests = observed
        await make_meter(gateway, totalCredits="1000")
        event = {"workspaceId": "w", "externalMeterId": "m", "amount": "1"}
        inputs = [event | {"eventId": str(each)} for each in range(5)]
        await asyncio.gather(*[gateway.data(RECORD_USAGE, {"input": each}) for each in inputs])
        for request in requests[-5:]:
            assert (request.kind, request.operation, request.document, request.statements) == (
                "mutation",
                "Record",
                RECORD_USAGE_DIGEST,
                0,
            )

    async def test_what_went_wrong_is_logged_by_the_code_that_the_caller_got(
        self, observed: Observed, subtests: pytest.Subtests
    ) -> None:
        gateway = observed.gateway
        bearer = {"authorization": f"Bearer {gateway.key}"}
        for what, request, expected in (
            ("no key", {"url": "/graphql"}, (401, "UNAUTHENTICATED", None)),
            ("no JSON", {"url": "/graphql", "headers": bearer, "content": "x"}, (415, "BAD_USER_INPUT", None)),
            ("syntax", {"query": "{"}, (200, "GRAPHQL_PARSE_FAILED", None)),
            ("no such field", {"query": "{ nope }"}, (200, "GRAPHQL_VALIDATION_FAILED", None)),
            ("two", {"query": "query A { __typename } query B { __typename }"}, (200, "BAD_USER_INPUT", None)),
            ("variable", {"query": READ_METER}, (200, "BAD_USER_INPUT", "query")),
            ("rule", {"query": '{ customerByExternalId(externalId: "") { id } }'}, (200, "BAD_USER_INPUT", "query")),
            ("path", {"url": "/nowhere"}, (404, "BAD_USER_INPUT", None)),
        ):
            with subtests.test(what):
                if "query" in request:
                    await gateway.post(str(request["query"]))
                else:
                    await gateway.client.request("POST", **request)
                last = observed.requests[-1]
                assert (last.status, last.outcome, last.kind) == expected

    async def test_of_several_errors_the_worst_is_logged(self, observed: Observed) -> None:
        gateway = observed.gateway
        await make_customer(gateway, externalId="broken")
        await execute(
            gateway.database, "UPDATE customers SET metadata = 'planted' WHERE org_id = :org", org=gateway.org_id
        )
        query = (
            '{ a: customerByExternalId(externalId: "") { id } b: customerByExternalId(externalId: "broken") { id } }'
        )
        body = await gateway.run(query)
        assert [error["extensions"]["code"] for error in body["errors"]] == ["BAD_USER_INPUT", "INTERNAL_SERVER_ERROR"]
        assert body["errors"][1]["extensions"]["requestId"] == observed.requests[-1].request_id
        assert observed.requests[-1].outcome == "INTERNAL_SERVER_ERROR"

    async def test_an_unnamed_operation_has_no_name_and_one_that_looks_like_a_key_is_not_logged(
        self, observed: Observed
    ) -> None:
        for query, name in (
            ("{ __typename }", None),
            ("query Q { __typename }", "Q"),
            (f"query {'N' * 64} {{ __typename }}", "N" * 64),
            (f"query {'N' * 65} {{ __typename }}", "…"),
            (f"query sk_live_{'a' * 43} {{ __typename }}", "…"),
            (f"query _CST_TEST_{'a' * 43} {{ __typename }}", "…"),
        ):
            await observed.gateway.data(query)
            assert observed.requests[-1].name() == name

    def test_what_is_long_is_logged_and_not_kept(self) -> None:
        long = 1_000_000
        named = f"N{secrets.token_hex(long // 2)}"
        request = Request()
        request.operation = named
        words = frozenset({"", "v1"})
        path = f"/v1/{'x' * long}"
        # Whatever keeps one of them has one more reference to it.
        references = sys.getrefcount(named), sys.getrefcount(path)
        assert request.name() == "…"
        assert redacted_path(path, words) == "/v1/…"
        assert (sys.getrefcount(named), sys.getrefcount(path)) == references


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/graphql", "/graphql"),
        ("/", "/"),
        ("/graphql/", "/graphql/"),
        ("/api/v1/customer-billing/refill", "/api/v1/customer-billing/refill"),
        ("/api/v1/usage/mtr_0123456789", "/api/v1/usage/…"),
        ("/v1/customers/ada@example.com", "/v1/customers/…"),
        ("/sk_live_abc/usage", "/…/usage"),
        ("/Graphql", "/…"),
        ("/api/api/api/api/api/api/api/api", "/api/api/api/api/api/api/api/…"),
    ],
)
async def test_a_path_is_logged_by_the_words_of_the_gateway_s_own(path: str, logged: str, observed: Observed) -> None:
    await observed.gateway.client.get(path)
    assert observed.requests[-1].path == logged


class TestServerTiming:
    async def test_a_key_holder_who_asks_is_shown_the_steps(self, observed: Observed) -> None:
        gateway = observed.gateway
        await make_meter(gateway)
        query = READ_METER.replace("query Meter", f"query Timed_{secrets.token_hex(4)}")  # Parsed by nobody yet.
        first = timing_of(await send(gateway, query, TIMED, w="w", m="m"))
        assert first == dict.fromkeys(("auth", "read", "parse", "validate", "execute", "serialize", "total"), "") | {
            "sql": "statements: 1"
        }
        again = timing_of(await send(gateway, query, TIMED, w="w", m="m"))
        del first["validate"]
        assert again == first | {"parse": "known"}

    async def test_a_debit_shows_how_long_it_waited_for_its_group(self, observed: Observed) -> None:
        gateway = observed.gateway
        await make_meter(gateway, totalCredits="10")
        event = {"workspaceId": "w", "externalMeterId": "m", "amount": "1", "eventId": "e"}
        timing = timing_of(await send(gateway, RECORD_USAGE, TIMED, input=event))
        assert {"queue", "group", "execute"} <= timing.keys()
        assert timing["sql"] == "statements: 0"

    async def test_rest_shows_them_too(self, observed: Observed) -> None:
        headers = {"authorization": f"Bearer {observed.gateway.key}"} | TIMED
        response = await observed.gateway.client.get("/api/v1/usage/mtr_1", headers=headers)
        assert timing_of(response) == {"auth": "", "sql": "statements: 1", "total": ""}

    async def test_who_does_not_ask_or_holds_no_key_is_shown_nothing(self, observed: Observed) -> None:
        gateway = observed.gateway
        session = await session_of(gateway, await make_customer(gateway))
        for response in (
            await gateway.post("{ __typename }"),
            await send(gateway, "{ __typename }", {"x-tollgate-timing": "off"}),
            await send(session, "{ viewer { orgId } }", TIMED),
            await send(Caller(gateway.client, "nobody's"), "{ __typename }", TIMED),
            await gateway.client.get("/healthz", headers=TIMED),
        ):
            assert "server-timing" not in response.headers


class TestProbes:
    @pytest.mark.slow
    async def test_readyz_does_not_wait_for_a_database_that_hangs_and_asks_it_once_for_all(self) -> None:
        connected = 0

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connected
            connected += 1
            await reader.read()
            writer.close()

        silent = await asyncio.start_server(hang, "127.0.0.1")
        port = silent.sockets[0].getsockname()[1]
        url = f"postgresql+asyncpg://tollgate:hidden@127.0.0.1:{port}/tollgate"
        requests: list[Request] = []
        app = create_app(Settings(database_url=url, wait_seconds=30), request_log=requests.append, sweeps=False)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://tollgate.test") as client,
        ):
            # The gateway itself asks how the database is divided.
            assert connected == 1
            answers = await asyncio.gather(*[client.get("/readyz") for _ in range(20)])
            for answer in answers:
                assert (answer.status_code, answer.json()) == (
                    503,
                    {"status": "unavailable", "reason": "The database does not answer."},
                )
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            # They all waited for one attempt.
            assert connected == 2
        assert [request.outcome for request in requests] == ["UNAVAILABLE"] * 20 + ["OK"]
        silent.close()
