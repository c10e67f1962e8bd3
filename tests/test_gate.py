"""The gate before the application: requests in flight, time per request, and what every answer says."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.app import create_app
from gateway.http.gate import Gate, SafeAnswers
from gateway.settings import Settings
from gateway.telemetry.requests import Observed
from storage.meters.billing_meters import MeterName
from storage.tenants import Environment
from tests.conftest import Gateway, gateway_on
from tests.steps import locked, make_meter, until

NOT_WRITTEN = "The service is unavailable for the moment. Nothing was written. Repeat the request with the same id."
UNKNOWN = (
    "The service is unavailable for the moment. Whether it was written is not known. "
    "Repeat the request only under the id or key that it had."
)


class Waiting:
    """An application that answers when it is let."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.entered = 0
        self.cancelled = 0

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        self.entered += 1
        if scope["path"] != "/healthz":
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


@asynccontextmanager
async def client_of(app: ASGIApp, scheme: str = "http") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"{scheme}://tollgate.test") as client:
        yield client


class TestInFlight:
    async def test_as_many_as_the_limit_are_served_and_one_more_is_503(self) -> None:
        waiting = Waiting()
        async with client_of(Gate(waiting, Settings(max_in_flight=2))) as client:
            served = [asyncio.create_task(client.post("/graphql")) for _ in range(2)]
            await until(lambda: waiting.entered == 2)

            refused = await client.post("/graphql")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json() == {
                "errors": [{"message": NOT_WRITTEN, "extensions": {"code": "UNAVAILABLE", "outcome": "NOT_WRITTEN"}}]
            }
            refused = await client.post("/v1/customers")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json() == {"error": {"code": 503, "message": NOT_WRITTEN}}
            assert waiting.entered == 2
            # What watches the gateway is answered all the same.
            assert (await client.get("/healthz")).status_code == 200

            waiting.go.set()
            assert [response.status_code for response in await asyncio.gather(*served)] == [200, 200]
            assert (await client.post("/graphql")).status_code == 200

    async def test_a_page_of_another_origin_can_read_that_it_was_refused(self, database_url: str) -> None:
        origin = "https://app.example.com"
        async with gateway_on(database_url, cors_origins=(origin,), max_in_flight=1) as gateway:
            headers = {"authorization": f"Bearer {gateway.key}", "origin": origin}
            body = {"query": "{ customers { nodes { id } } }"}
            responses = await asyncio.gather(
                *[gateway.client.post("/graphql", json=body, headers=headers) for _ in range(5)]
            )
            assert sorted({response.status_code for response in responses}) == [200, 503]
            assert {response.headers["access-control-allow-origin"] for response in responses} == {origin}


class TestDeadline:
    async def test_what_takes_too_long_is_ended_and_logged(
        self, subtests: pytest.Subtests, caplog: pytest.LogCaptureFixture
    ) -> None:
        for method, path, outcome in (
            ("POST", "/graphql", "UNKNOWN"),
            ("GET", "/graphql", "NOT_WRITTEN"),
            ("POST", "/v1/customers", None),
        ):
            with subtests.test(method=method, path=path):
                waiting = Waiting()
                caplog.clear()
                async with client_of(Gate(waiting, Settings(request_seconds=0))) as client:
                    response = await client.request(method, path)
                    assert response.status_code == 503
                    assert waiting.cancelled == 1
                    if outcome is None:
                        assert response.json() == {"error": {"code": 503, "message": UNKNOWN}}
                    else:
                        (error,) = response.json()["errors"]
                        assert error["extensions"] == {"code": "UNAVAILABLE", "outcome": outcome}
                        assert error["message"] == (UNKNOWN if outcome == "UNKNOWN" else NOT_WRITTEN)
                    # A client must not repeat by itself what may have been written.
                    assert ("retry-after" in response.headers) == (outcome == "NOT_WRITTEN")
                assert caplog.record_tuples == [
                    ("gateway.http.gate", logging.WARNING, f"{method} {path} was ended after 0 seconds")
                ]

    async def test_what_another_cancels_is_answered_and_stays_cancelled(self, subtests: pytest.Subtests) -> None:
        """So does the server with what is still in flight when it stops."""
        for method, outcome in (("POST", b"UNKNOWN"), ("GET", b"NOT_WRITTEN")):
            with subtests.test(method=method):
                waiting = Waiting()
                gate = Gate(waiting, Settings(max_in_flight=1))
                messages: list[Message] = []

                async def send(message: Message, messages: list[Message] = messages) -> None:
                    messages.append(message)

                async def receive() -> Message:
                    return {"type": "http.request", "body": b"", "more_body": False}

                scope = {"type": "http", "method": method, "path": "/graphql", "headers": []}
                cancelled = asyncio.ensure_future(gate(scope, receive, send))
                while not waiting.entered:  # noqa: ASYNC110  # Nothing signals it.
                    await asyncio.sleep(0)
                cancelled.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
                assert waiting.cancelled == 1
                start, body = messages
                assert start["status"] == 503
                assert b'{"code":"UNAVAILABLE","outcome":"%s"}' % outcome in body["body"]
                # Its place is free again.
                waiting.go.set()
                async with client_of(gate) as client:
                    assert (await client.post("/graphql")).status_code == 200

    async def test_what_has_begun_to_be_answered_is_not_answered_again(self) -> None:
        begun = asyncio.Event()
        messages: list[Message] = []

        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            begun.set()
            await asyncio.Event().wait()

        async def send(message: Message) -> None:
            messages.append(message)

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        observed = Observed(Gate(app, Settings()), words=frozenset(), listeners=[])
        scope = {"type": "http", "method": "GET", "path": "/graphql", "headers": []}
        cancelled = asyncio.ensure_future(observed(scope, receive, send))
        await begun.wait()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert [message["type"] for message in messages] == ["http.response.start"]

    @pytest.mark.slow
    async def test_a_write_under_way_is_finished_and_is_there_under_its_key(self, own: Gateway) -> None:
        """The deadline passes while the write waits for another's lock."""
        await make_meter(own)
        url = own.services.settings.database_url
        refill = "mutation ($input: RefillBillingMeterInput!) { refillBillingMeter(input: $input) { %s } }"
        values = {"workspaceId": "w", "externalMeterId": "m", "refill": "5", "idempotencyKey": "once"}
        async with gateway_on(url, request_seconds=1) as gateway:
            name = MeterName(own.org_id, Environment.SANDBOX, "w", "m")
            async with locked(own.database, name):
                headers = {"authorization": f"Bearer {own.key}"}
                body = {"query": refill % "__typename", "variables": {"input": values}}
                response = await gateway.client.post("/graphql", json=body, headers=headers)
                assert response.status_code == 503
                assert response.json()["errors"][0]["extensions"] == {"code": "UNAVAILABLE", "outcome": "UNKNOWN"}
            again = refill % "... on RefillBillingMeterSuccess { billingMeter { totalCredits } }"
            answer = await own.data(again, {"input": values})
            assert answer["refillBillingMeter"]["billingMeter"] == {"totalCredits": "5"}


#: What every answer says.
EVERY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class TestHeaders:
    async def test_every_answer_is_safe_in_a_browser(self, database_url: str, subtests: pytest.Subtests) -> None:
        async with gateway_on(database_url, cors_origins=("https://app.example.com",)) as gateway:
            headers = {"authorization": f"Bearer {gateway.key}"}
            preflight = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
            for method, path, given, status in (
                ("POST", "/graphql", headers, 415),
                ("GET", "/graphql?query={__typename}", headers, 200),
                ("GET", "/graphql?query={__typename}", {}, 401),
                ("OPTIONS", "/graphql", preflight, 200),
                ("GET", "/schema.graphql", headers, 200),
                ("GET", "/", {}, 200),
                ("GET", "/graphiql/config.json", {}, 200),
                ("GET", "/healthz", {}, 200),
                ("GET", "/nowhere", {}, 404),
                ("GET", "/v1/customers", {}, 405),
                ("GET", "/openapi.json", {}, 200),
            ):
                with subtests.test(method=method, path=path, given=given):
                    response = await gateway.client.request(method, path, headers=given)
                    assert response.status_code == status
                    for name, value in EVERY.items():
                        assert response.headers.get_list(name) == [value]
                    assert "strict-transport-security" not in response.headers

    async def test_a_bug_s_answer_is_safe_too(self) -> None:
        app = create_app(Settings())
        # Without its lifespan it has no database, so that every request is a bug.
        async with client_of(app) as client:
            response = await client.post("/graphql")
            assert response.status_code == 500
            for name, value in EVERY.items():
                assert response.headers.get_list(name) == [value]

    async def test_only_over_tls_is_it_said_that_there_is_tls(self) -> None:
        waiting = Waiting()
        waiting.go.set()
        for scheme, expected in (("https", ["max-age=31536000"]), ("http", [])):
            async with client_of(SafeAnswers(waiting), scheme) as client:
                response = await client.get("/")
                assert response.headers.get_list("strict-transport-security") == expected
