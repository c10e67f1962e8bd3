"""CORS: which pages may call the gateway from a browser."""

import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import BadSetting, Settings
from tests.conftest import Gateway, gateway_on
from tests.steps import plant_secret

APP = "https://app.example.com"
LOCAL = "http://localhost:5173"
ORIGINS = (APP, LOCAL)

#: Origins that look like an allowed one.
FOREIGN = [
    "https://evil.example.com",
    "http://app.example.com",
    "https://app.example.com:8443",
    "https://app.example.com.evil.com",
    "https://x.app.example.com",
    "https://APP.example.com",
    "http://localhost",
    "null",
    "*",
    "",
]

#: What a page may read of an answer's headers, besides what every page may.
EXPOSED = {"access-control-expose-headers": "retry-after, etag, x-request-id"}

VIEWER = {"query": "{ viewer { orgId } }"}


@pytest.fixture
async def open_gateway(database_url: str) -> AsyncIterator[Gateway]:
    """A gateway that lets the pages of two origins in."""
    async with gateway_on(database_url, cors_origins=ORIGINS) as gateway:
        yield gateway


def cors_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


def vary(response: httpx.Response) -> set[str]:
    return {name.strip().lower() for name in response.headers.get("vary", "").split(",")} - {""}


async def preflight(
    gateway: Gateway, origin: str, *, path: str = "/graphql", method: str = "POST", headers: str | None = None
) -> httpx.Response:
    asked = {"origin": origin, "access-control-request-method": method}
    return await gateway.client.options(
        path, headers=asked | ({"access-control-request-headers": headers} if headers is not None else {})
    )


async def post(gateway: Gateway, origin: str | None = APP, *, key: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {gateway.key if key is None else key}"}
    return await gateway.client.post(
        "/graphql", json=VIEWER, headers=headers | ({"origin": origin} if origin is not None else {})
    )


class TestPreflight:
    async def test_an_allowed_page_may_send_what_the_api_takes(
        self, open_gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for origin in ORIGINS:
            for path in ("/graphql", "/api/v1/customer-billing", "/v1/customers", "/schema.graphql"):
                for method in ("GET", "POST"):
                    with subtests.test(origin=origin, path=path, method=method):
                        response = await preflight(
                            open_gateway,
                            origin,
                            path=path,
                            method=method,
                            headers="authorization, Content-Type,idempotency-key",
                        )
                        assert response.status_code == 200
                        assert cors_headers(response) == {
                            "access-control-allow-origin": origin,
                            "access-control-allow-methods": "GET, POST",
                            "access-control-allow-headers": "authorization, Content-Type,idempotency-key",
                            "access-control-max-age": "600",
                        }
                        assert "origin" in vary(response)

    @pytest.mark.slow
    async def test_a_foreign_page_may_send_nothing(self, open_gateway: Gateway, subtests: pytest.Subtests) -> None:
        for origin in FOREIGN:
            with subtests.test(origin=origin):
                response = await preflight(open_gateway, origin, headers="authorization")
                assert response.status_code == 400
                assert "access-control-allow-origin" not in response.headers
                assert "origin" in vary(response)

    async def test_other_methods_are_refused(self, open_gateway: Gateway, subtests: pytest.Subtests) -> None:
        for method in ("PUT", "PATCH", "DELETE"):
            with subtests.test(method=method):
                assert (await preflight(open_gateway, APP, method=method)).status_code == 400

    async def test_an_allowed_page_may_send_the_headers_of_its_client_and_its_tracer(
        self, open_gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        for headers in (
            "apollographql-client-name, apollographql-client-version, apollo-require-preflight",
            "sentry-trace, baggage",
            "traceparent, tracestate",
            "x-datadog-trace-id,x-datadog-parent-id,x-datadog-origin,x-datadog-sampling-priority",
            "x-request-id, x-tollgate-timing, idempotency-key, if-none-match",
            "b3, x-b3-traceid, x-cloud-trace-context, graphql-preflight, x-other",
        ):
            with subtests.test(headers=headers):
                response = await preflight(open_gateway, APP, headers=headers)
                assert response.status_code == 200
                assert response.headers["access-control-allow-headers"] == headers
                # Only to a page that is let in at all.
                refused = await preflight(open_gateway, FOREIGN[0], headers=headers)
                assert refused.status_code == 400
                assert "access-control-allow-origin" not in refused.headers

    async def test_it_needs_no_key_and_no_statement(self, open_gateway: Gateway) -> None:
        with open_gateway.statements() as statements:
            await preflight(open_gateway, APP)
        assert statements == []


class TestAnswers:
    async def test_an_allowed_page_may_read_its_answer_and_no_cookies_are_meant(self, open_gateway: Gateway) -> None:
        for origin in ORIGINS:
            response = await post(open_gateway, origin)
            assert response.json() == {"data": {"viewer": {"orgId": open_gateway.org_id}}}
            assert cors_headers(response) == {"access-control-allow-origin": origin} | EXPOSED
            assert vary(response) == {"origin"}

    async def test_a_foreign_page_may_not_read_it(self, open_gateway: Gateway, subtests: pytest.Subtests) -> None:
        for origin in FOREIGN:
            with subtests.test(origin=origin):
                response = await post(open_gateway, origin)
                assert response.status_code == 200
                # Which headers could be read lets nobody read: that the origin may is what is not said.
                assert cors_headers(response) == EXPOSED
                assert vary(response) == {"origin"}

    async def test_a_caller_that_is_no_page_is_answered_as_ever(self, open_gateway: Gateway) -> None:
        response = await post(open_gateway, None)
        assert response.status_code == 200
        assert cors_headers(response) == {}

    async def test_an_allowed_page_may_read_what_went_wrong(
        self, open_gateway: Gateway, subtests: pytest.Subtests
    ) -> None:
        client = open_gateway.client
        allowed = {"origin": APP, "authorization": f"Bearer {open_gateway.key}"}
        for status, response in (
            (401, await post(open_gateway, key="sk_test_unknown")),
            (401, await client.post("/graphql", headers={"origin": APP})),
            (400, await client.post("/graphql", content="{", headers=allowed | {"content-type": "application/json"})),
            (415, await client.post("/graphql", content="{}", headers=allowed)),
            (404, await client.get("/nowhere", headers=allowed)),
            (405, await client.put("/graphql", headers=allowed)),
            (400, await client.post("/v1/customers", headers=allowed)),
        ):
            with subtests.test(status=status):
                assert response.status_code == status
                assert response.headers["access-control-allow-origin"] == APP
                assert "origin" in vary(response)

    async def test_an_allowed_page_may_read_the_id_of_a_bug(self, open_gateway: Gateway) -> None:
        caller = await open_gateway.caller()
        await plant_secret(open_gateway.database, open_gateway.org_id, "planted")
        headers = {"origin": APP, "authorization": f"Bearer {caller.key}"}
        for response in (
            await open_gateway.client.post("/graphql", json=VIEWER, headers=headers),
            await open_gateway.client.get("/schema.graphql", headers=headers),
        ):
            assert response.status_code == 500
            assert response.json()["errors"][0]["extensions"] == {"code": "INTERNAL_SERVER_ERROR"}
            assert cors_headers(response) == {"access-control-allow-origin": APP} | EXPOSED
            assert vary(response) == {"origin"}

    @pytest.mark.slow
    async def test_an_allowed_page_may_read_that_the_database_is_away(self) -> None:
        with socket.socket() as held:
            # Nothing listens there, and nothing else can begin to.
            held.bind(("127.0.0.1", 0))
            url = f"postgresql+asyncpg://tollgate@127.0.0.1:{held.getsockname()[1]}/tollgate"
            app = create_app(Settings(database_url=url, cors_origins=ORIGINS))
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app, raise_app_exceptions=False)
                async with httpx.AsyncClient(transport=transport, base_url="http://tollgate.test") as client:
                    headers = {"origin": APP, "authorization": f"Bearer sk_test_{'a' * 43}"}
                    response = await client.post("/graphql", json=VIEWER, headers=headers)
        assert response.status_code == 503
        assert cors_headers(response) == {"access-control-allow-origin": APP} | EXPOSED


class TestSetting:
    async def test_without_origins_no_page_is_let_in(self, gateway: Gateway) -> None:
        assert Settings().cors_origins == ()
        response = await post(gateway)
        assert response.status_code == 200
        assert (cors_headers(response), vary(response)) == ({}, set())
        refused = await preflight(gateway, APP)
        assert refused.status_code == 405
        assert cors_headers(refused) == {}

    def test_origins_are_listed_with_commas(self) -> None:
        for text, origins in (
            ("none", ()),
            (APP, (APP,)),
            (f"{APP},{LOCAL}", (APP, LOCAL)),
            (f" {APP} , {LOCAL} ", (APP, LOCAL)),
            ("http://[::1]:3000", ("http://[::1]:3000",)),
            ("http://127.0.0.1:8000", ("http://127.0.0.1:8000",)),
            ("capacitor://localhost", ("capacitor://localhost",)),
            ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
        ):
            assert Settings.read({"TOLLGATE_CORS_ORIGINS": text}).cors_origins == origins

    @pytest.mark.parametrize(
        "text",
        [
            ",",
            "*",
            "null",
            "app.example.com",
            "https://*.example.com",
            "https://",
            f"{APP}/",
            f"{APP}/path",
            f"{APP}?query",
            f"{APP}#part",
            f"{APP},",
            f"{APP},*",
            f"{APP} {LOCAL}",
            f"{APP}:443",
            "http://localhost:80",
            f"{APP}:",
            f"{APP}:x",
            f"{APP}:0",
            f"{APP}:100000",
            "https://user@app.example.com",
            "https://App.example.com",
            "HTTPS://app.example.com",
            "https://bücher.example",
            "https://.example.com",
        ],
    )
    def test_what_no_browser_sends_is_refused(self, text: str) -> None:
        with pytest.raises(BadSetting, match=r"^TOLLGATE_CORS_ORIGINS must be none, or origins"):
            Settings.read({"TOLLGATE_CORS_ORIGINS": text})
