"""GraphiQL in a real browser, and what the gateway answers for it."""

import gzip
import hashlib
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from playwright.async_api import Page, expect

from gateway.app import create_app
from gateway.pages.graphiql import ASSETS
from gateway.settings import Settings
from tests import commands
from tests.browsers import chromium, needs_chromium
from tests.servers import Server, serving

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "gateway" / "pages" / "graphiql" / "source"

#: The most that is waited for what a page is to show; far more than it takes on a slow machine.
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)

POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; connect-src 'self'; font-src 'self'; "
    "img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

ColorScheme = Literal["light", "dark", "null"]

#: The end of an address at which what was stored on the device is gone before the page sees it.
NEW_VISITOR = "#new-visitor"

#: What stands in the demo's key file in the tests that have no database.
DEMO_KEY = f"sk_test_{'d' * 43}"

LOOPBACK = {"host": "127.0.0.1:8000"}


@pytest.fixture(scope="module")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """The demo, as `tollgate serve --demo` serves it."""
    folder = tmp_path_factory.mktemp("demo")
    async with serving(f"sqlite+aiosqlite:///{folder}/tollgate.db", folder, TOLLGATE_DEMO="on") as server:
        yield server


@pytest.fixture(scope="module")
async def page() -> AsyncIterator[Page]:
    """The page of all tests here: to load GraphiQL anew where it was loaded before takes a third of the time."""
    async with chromium() as browser, await browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        # A violation inside a library may be caught there; the document hears of all.
        await context.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " (event) => console.error('policy', event.violatedDirective, event.blockedURI))"
        )
        await context.add_init_script(
            f"if (location.hash === '{NEW_VISITOR}') {{"
            " sessionStorage.clear(); localStorage.clear(); history.replaceState(null, '', location.pathname) }"
        )
        yield await context.new_page()


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A gateway that serves no demo."""
    folder = tmp_path_factory.mktemp("own")
    async with serving(f"sqlite+aiosqlite:///{folder}/tollgate.db", folder) as server:
        yield server


def demo_key(server: Server) -> str:
    return (server.folder / "tollgate-demo.key").read_text().strip()


def key_by_command(server: Server) -> str:
    """Make a live key in the server's database, by the command."""
    arguments = ("keys", "create", "--org", "acme", "--environment", "live")
    done = commands.run(*arguments, folder=server.folder, environment=commands.environment(**server.settings))
    assert done.code == 0, done.err
    return done.out.strip()


class Explorer:
    """GraphiQL in one browser, and all that went wrong in it."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.url = f"{server.url}/"
        #: The paths that were asked for.
        self.asked: list[str] = []
        self.faults: list[str] = []

    async def open(self) -> None:
        """Open the page as a new visitor does, and wait for its editor."""
        await self.page.goto(f"{self.url}{NEW_VISITOR}")
        await self.is_open()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Note while the body runs what is asked for and what goes wrong."""
        heard: list[tuple[Any, Callable[[Any], None]]] = [
            ("request", lambda request: self._asked(request.url)),
            ("requestfailed", lambda request: self._failed(request.url, request.failure)),
            ("weberror", lambda error: self.faults.append(f"error: {error.error}")),
            ("console", lambda message: self._heed(message.type, message.text)),
        ]
        for event, listener in heard:
            self.page.context.on(event, listener)
        try:
            yield
        finally:
            for event, listener in heard:
                self.page.context.remove_listener(event, listener)

    async def is_open(self) -> None:
        await expect(self.page.locator(".graphiql-query-editor .view-line").first).to_be_visible()

    def _asked(self, url: str) -> None:
        if not url.startswith((self.url, "blob:", "data:")):
            self.faults.append(f"asked another origin: {url}")
        self.asked.append(url.removeprefix(self.url))

    def _failed(self, url: str, why: str | None) -> None:
        # The browser itself gives up what it is loading when the page is left.
        if why != "net::ERR_ABORTED":
            self.faults.append(f"failed: {url}: {why}")

    def _heed(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.faults.append(f"{kind}: {text}")

    async def reload(self) -> None:
        await self.page.reload()
        await self.is_open()

    async def has_schema(self) -> None:
        """Wait until the schema has come: the reference then shows its root types."""
        await self.page.get_by_label("Show Documentation Explorer").click()
        await expect(self.page.locator(".graphiql-doc-explorer")).to_contain_text("mutation: Mutation")
        await self.page.get_by_label("Hide Documentation Explorer").click()

    async def select_all(self, editor: str = ".graphiql-query-editor") -> None:
        """Select what is in an editor, that of the operation unless another one is named."""
        await self.page.locator(f"{editor} .view-lines").click()
        await self.page.keyboard.press("Control+A")

    async def _paste(self, text: str) -> None:
        """Paste over what is selected; when one types, the editor closes braces by itself."""
        await self.page.evaluate(
            """(text) => {
                const clipboardData = new DataTransfer()
                clipboardData.setData('text/plain', text)
                const paste = new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true })
                document.activeElement.dispatchEvent(paste)
            }""",
            text,
        )

    async def write(self, text: str) -> None:
        """Write an operation with a name over what is there."""
        await self.select_all()
        await self._paste(text)
        # GraphiQL reads the document a moment later, and sends the name with it.
        name = text.split()[1]
        await expect(self.page.locator(".graphiql-tab-active .graphiql-tab-button")).to_have_text(name)

    async def write_variables(self, text: str) -> None:
        """Write variables over what is there. Their editor must be open."""
        editor = "section[aria-label=Variables]"
        await self.select_all(editor)
        await self._paste(text)
        await expect(self.page.locator(f"{editor} .view-lines")).to_have_text(text)

    async def run(self) -> None:
        await self.page.locator(".graphiql-execute-button").click()

    async def answers(self, *texts: str) -> None:
        """Wait until the answer shows each of the texts, which each are within a line."""
        for text in texts:
            await expect(self.page.locator(".graphiql-response .view-lines")).to_contain_text(text)

    async def enter_key(self, key: str) -> None:
        await self.page.get_by_role("textbox", name="API key").fill(key)
        await self.page.keyboard.press("Enter")

    async def stored(self) -> dict[str, str]:
        """Return all that the page has stored on the device."""
        found: dict[str, str] = await self.page.evaluate("({...sessionStorage, ...localStorage})")
        return found


@asynccontextmanager
async def explorer(page: Page, server: Server, *, color_scheme: ColorScheme = "null") -> AsyncIterator[Explorer]:
    """Open GraphiQL; at the end nothing may have gone wrong, and no other origin may have been asked."""
    opened = Explorer(page, server)
    # What was open before asks for nothing any more.
    await page.goto("about:blank")
    await page.emulate_media(color_scheme=color_scheme)
    with opened.heard():
        await opened.open()
        yield opened
    assert opened.faults == []


@needs_chromium
@pytest.mark.one_python
class TestPage:
    async def test_the_starters_run_as_they_stand_on_the_demos_data(self, page: Page, demo: Server) -> None:
        async with explorer(page, demo) as graphiql:
            await expect(graphiql.page.locator(".graphiql-tab-button")).to_have_text(
                ["Customer", "Refill", "RecordUsage", "Hold"]
            )
            await graphiql.run()
            await graphiql.answers('"name": "Acme Robotics"', '"workspaceId": "images"', '"totalBillingUsage": "')
            await graphiql.page.get_by_role("tab", name="Refill").click()
            await graphiql.run()
            await graphiql.answers('"__typename": "RefillBillingMeterSuccess"', '"replayed": false')
            await graphiql.answers('"totalCredits": "3000"')
            await graphiql.run()
            await graphiql.answers('"replayed": true', '"totalCredits": "3000"')
            await graphiql.page.get_by_role("tab", name="RecordUsage").click()
            await graphiql.run()
            await graphiql.answers('"__typename": "InsufficientCredits"', '"code": "INSUFFICIENT_CREDITS"')
            await graphiql.page.get_by_role("tab", name="Hold").click()
            await graphiql.run()
            await graphiql.answers('"__typename": "HoldCreditsSuccess"', '"heldCreditsAfter": "20"')
            await graphiql.answers('"__typename": "CommitHoldSuccess"', '"accepted": "12"', '"heldCredits": "0"')
            assert set(graphiql.asked) >= {"", "graphiql/config.json", "graphql"}

    async def test_it_completes_names_of_the_schema(self, page: Page, demo: Server) -> None:
        async with explorer(page, demo) as graphiql:
            await graphiql.has_schema()
            await graphiql.select_all()
            await graphiql.page.keyboard.type("{ customerB")
            offered = graphiql.page.locator(".suggest-widget .monaco-list-row")
            await expect(offered.first).to_contain_text("customerByExternalId")
            await graphiql.page.keyboard.press("Enter")
            await expect(graphiql.page.locator(".graphiql-query-editor")).to_contain_text("{ customerByExternalId")

    async def test_it_marks_and_shows_what_is_wrong(self, page: Page, demo: Server) -> None:
        async with explorer(page, demo) as graphiql:
            await graphiql.has_schema()
            await graphiql.write("query Wrong { nonsense }")
            await expect(graphiql.page.locator(".graphiql-query-editor .squiggly-error").first).to_be_visible()
            await graphiql.run()
            await graphiql.answers('"code": "GRAPHQL_VALIDATION_FAILED"', "Cannot query field 'nonsense'")

    async def test_it_brings_an_operation_into_shape(self, page: Page, demo: Server) -> None:
        async with explorer(page, demo) as graphiql:
            await graphiql.has_schema()
            await graphiql.write("query Who {viewer{orgId}}")
            await graphiql.page.get_by_label("Prettify query").click()
            lines = graphiql.page.locator(".graphiql-query-editor .view-line")
            await expect(lines).to_have_text(["query Who {", "  viewer {", "    orgId", "  }", "}", ""])

    async def test_an_amount_is_decided_as_it_was_written_or_not_at_all(self, page: Page, demo: Server) -> None:
        decide = """mutation Decide ($amount: BigInt!) {
          recordUsage(
            input: { workspaceId: "images", externalMeterId: "acme-robotics", eventId: "decide", amount: $amount }
          ) { __typename ... on UserError { message } }
        }"""
        async with explorer(page, demo) as graphiql:
            await graphiql.write(decide)
            await graphiql.page.get_by_role("button", name="Variables").click()
            # JavaScript reads the number as 9007199254740992.
            await graphiql.write_variables('{"amount": 9007199254740993}')
            await graphiql.run()
            await graphiql.answers('"code": "BAD_USER_INPUT"', "9007199254740991 must be a string of digits")
            await graphiql.write_variables('{"amount": "9007199254740993"}')
            await graphiql.run()
            await graphiql.answers('"__typename": "InsufficientCredits"', '"9007199254740993 credits are asked for')

    async def test_its_explorer_and_its_history_open(self, page: Page, demo: Server) -> None:
        async with explorer(page, demo) as graphiql:
            await graphiql.has_schema()
            await graphiql.page.get_by_label("Show GraphiQL Explorer").click()
            await expect(graphiql.page.locator(".graphiql-explorer-root")).to_contain_text("allowOverages")
            await graphiql.run()
            await graphiql.answers('"name": "Acme Robotics"')
            await graphiql.page.get_by_label("Show History").click()
            await expect(graphiql.page.locator(".graphiql-history-item")).to_have_count(1)

    async def test_its_colours_follow_the_system_and_can_be_chosen(self, page: Page, demo: Server) -> None:
        white, dark_blue = "rgb(255, 255, 255)", "rgb(33, 42, 59)"
        async with explorer(page, demo, color_scheme="light") as graphiql:
            container, editor = page.locator(".graphiql-container").last, page.locator(".monaco-editor").first
            await expect(container).to_have_css("background-color", white)
            await expect(editor).to_have_class(re.compile(r"\bvs\b"))
            await page.emulate_media(color_scheme="dark")
            await expect(container).to_have_css("background-color", dark_blue)
            await expect(editor).to_have_class(re.compile(r"\bvs-dark\b"))
            await page.get_by_label("Open settings dialog").click()
            await page.get_by_role("button", name="Light").click()
            await page.keyboard.press("Escape")
            await graphiql.reload()
            await expect(container).to_have_css("background-color", white)
            await expect(editor).to_have_class(re.compile(r"\bvs\b"))


@needs_chromium
@pytest.mark.one_python
class TestKey:
    async def test_the_demos_key_is_filled_in_and_not_stored(self, page: Page, demo: Server) -> None:
        async with explorer(page, demo) as graphiql:
            await expect(graphiql.page.locator("#key")).to_have_value(demo_key(demo))
            await expect(graphiql.page.locator(".key-environment")).to_have_text("sandbox")
            await expect(graphiql.page.get_by_label("Remember on this device")).not_to_be_checked()
            await graphiql.run()
            await graphiql.answers('"name": "Acme Robotics"')
            stored = await graphiql.stored()
            assert "graphiql:tabState" in stored
            assert "sk_test_" not in str(stored)

    async def test_without_a_key_it_says_so_and_asks_nothing(self, page: Page, own: Server) -> None:
        async with explorer(page, own) as graphiql:
            await expect(graphiql.page.locator("#key")).to_have_value("")
            await expect(graphiql.page.locator("#key-message")).to_contain_text("Enter a key to load the schema")
            await graphiql.run()
            await graphiql.answers('"Enter an API key in the field above')
            assert "graphql" not in graphiql.asked

    async def test_a_key_that_is_entered_loads_the_schema_and_is_kept_in_memory_alone(
        self, page: Page, own: Server
    ) -> None:
        key = key_by_command(own)
        async with explorer(page, own) as graphiql:
            await graphiql.enter_key(key)
            await graphiql.has_schema()
            await expect(graphiql.page.locator(".key-environment")).to_have_text("live")
            await graphiql.write("query Who { viewer { orgId environment } }")
            await graphiql.run()
            await graphiql.answers('"orgId": "acme"', '"environment": "LIVE"')
            assert "sk_live_" not in str(await graphiql.stored())
            await graphiql.reload()
            await expect(graphiql.page.locator("#key")).to_have_value("")

    async def test_a_key_is_remembered_if_its_user_says_so_until_he_says_otherwise(
        self, page: Page, own: Server
    ) -> None:
        key = key_by_command(own)
        async with explorer(page, own) as graphiql:
            await graphiql.enter_key(key)
            remember = graphiql.page.get_by_label("Remember on this device")
            await remember.check()
            await graphiql.reload()
            await expect(graphiql.page.locator("#key")).to_have_value(key)
            await expect(remember).to_be_checked()
            await graphiql.has_schema()
            stored = await graphiql.stored()
            assert [name for name, value in stored.items() if key in value] == ["graphiql:tollgate-key"]
            await remember.uncheck()
            assert "sk_live_" not in str(await graphiql.stored())
            await graphiql.reload()
            await expect(graphiql.page.locator("#key")).to_have_value("")

    async def test_clearing_the_pages_data_forgets_the_key(self, page: Page, own: Server) -> None:
        key = key_by_command(own)
        async with explorer(page, own) as graphiql:
            await graphiql.enter_key(key)
            await graphiql.page.get_by_label("Remember on this device").check()
            assert key in str(await graphiql.stored())
            await graphiql.page.get_by_label("Open settings dialog").click()
            await graphiql.page.get_by_role("button", name="Clear data").click()
            await expect(graphiql.page.get_by_role("button", name="Cleared data")).to_be_visible()
            assert key not in str(await graphiql.stored())

    async def test_a_key_that_is_refused_is_reported_and_another_one_clears_what_was_shown(
        self, page: Page, own: Server
    ) -> None:
        key = key_by_command(own)
        async with explorer(page, own) as graphiql:
            await graphiql.enter_key("sk_live_nonsense")
            status = graphiql.page.locator("#key-message")
            await expect(status).to_have_text("The gateway refuses this key: it is unknown, expired or revoked.")
            await graphiql.answers('"code": "UNAUTHENTICATED"')
            # The browser itself logs a status 401.
            unauthorized = "error: Failed to load resource: the server responded with a status of 401 (Unauthorized)"
            assert set(graphiql.faults) == {unauthorized}
            graphiql.faults.clear()
            await graphiql.enter_key(key)
            await graphiql.has_schema()
            await expect(status).to_have_text("")
            await expect(graphiql.page.locator(".graphiql-response .view-lines")).to_have_text("")


@asynccontextmanager
async def client_of(settings: Settings, address: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    """Ask an application without a server, from an address."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=(address, 50_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            yield client


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """The settings of a demo whose database is not asked."""
    key_file = tmp_path / "demo.key"
    key_file.write_text(f"{DEMO_KEY}\n")
    database_url = f"sqlite+aiosqlite:///{tmp_path}/tollgate.db"
    return {"database_url": database_url, "demo": "on", "demo_key_file": str(key_file)}


class TestServing:
    @pytest.mark.parametrize(
        ("graphiql", "host", "status"),
        [
            ("auto", "127.0.0.1", 200),
            ("auto", "localhost", 200),
            ("auto", "::1", 200),
            ("auto", "0.0.0.0", 404),  # noqa: S104  # Nobody listens there.
            ("auto", "192.0.2.1", 404),
            ("on", "0.0.0.0", 200),  # noqa: S104
            ("off", "127.0.0.1", 404),
        ],
    )
    async def test_it_is_on_where_only_this_machine_listens_unless_it_is_said(
        self, settings: dict[str, Any], graphiql: str, host: str, status: int
    ) -> None:
        async with client_of(Settings(**settings, graphiql=graphiql, host=host)) as client:
            for path in ("/", "/graphiql/config.json", "/graphiql/THIRD_PARTY.txt"):
                response = await client.get(path)
                assert response.status_code == status
                if status == 404:
                    assert response.json()["errors"][0]["message"] == "Not Found"

    async def test_the_page_and_its_files_have_a_strict_policy(self, settings: dict[str, Any]) -> None:
        async with client_of(Settings(**settings)) as client:
            page = await client.get("/")
            for path in ("/", "/graphiql/config.json", *map("/{}".format, files_of(page.text))):
                response = await client.get(path)
                assert response.status_code == 200
                assert response.headers["content-security-policy"] == POLICY
                assert response.headers["x-content-type-options"] == "nosniff"
                assert response.headers["referrer-policy"] == "no-referrer"
                assert response.headers["cross-origin-resource-policy"] == "same-origin"
                assert "access-control-allow-origin" not in response.headers
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert re.findall(r"<script(?![^>]* src=)|<style| style=| on\w+=|https?:", page.text) == []

    async def test_the_page_is_asked_for_again_and_its_files_are_kept_for_ever(self, settings: dict[str, Any]) -> None:
        async with client_of(Settings(**settings)) as client:
            page = await client.get("/")
            assert page.headers["cache-control"] == "no-cache"
            file = f"/{next(name for name in files_of(page.text) if name.endswith('.js'))}"
            packed = await client.get(file, headers={"accept-encoding": "br, gzip"})
            assert packed.headers["cache-control"] == "public, max-age=31536000, immutable"
            for path, etag in (("/", page.headers["etag"]), (file, packed.headers["etag"])):
                same = await client.get(path, headers={"if-none-match": f'"other", {etag}'})
                assert (same.status_code, same.content) == (304, b"")
                assert same.headers["etag"] == etag
                assert (await client.get(path, headers={"if-none-match": '"other"'})).status_code == 200

    async def test_a_file_is_sent_packed_to_who_understands_it(self, settings: dict[str, Any]) -> None:
        async with client_of(Settings(**settings)) as client:
            file = f"/{next(name for name in files_of((await client.get('/')).text) if name.endswith('.js'))}"
            packed = await client.get(file, headers={"accept-encoding": "gzip"})
            plain = await client.get(file, headers={"accept-encoding": "identity"})
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert packed.headers["vary"] == plain.headers["vary"] == "accept-encoding"
        assert packed.headers["content-type"] == plain.headers["content-type"] == "text/javascript; charset=utf-8"
        assert plain.content == packed.content
        assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) == len(plain.content)

    async def test_there_are_no_other_files(self, settings: dict[str, Any]) -> None:
        async with client_of(Settings(**settings)) as client:
            for path in ("index.html", "sources.sha256", "none.js", "..%2F__init__.py", "%2e%2e/__init__.py"):
                assert (await client.get(f"/graphiql/{path}")).status_code == 404
            assert (await client.post("/")).status_code == 405


class TestDemoKey:
    @pytest.mark.parametrize(
        "headers",
        [
            {"host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"},
            {"host": "localhost:8000", "sec-fetch-site": "same-origin"},
            {"host": "[::1]:8000", "sec-fetch-site": "same-origin"},
            {"host": "LOCALHOST"},
            LOOPBACK,
        ],
    )
    async def test_the_demos_own_page_is_given_it(self, settings: dict[str, Any], headers: dict[str, str]) -> None:
        async with client_of(Settings(**settings)) as client:
            response = await client.get("/graphiql/config.json", headers=headers)
        assert response.json() == {"demoKey": DEMO_KEY}
        assert response.headers["cache-control"] == "no-store"

    @pytest.mark.parametrize(
        "headers",
        [
            # A name of somebody else's that leads to loopback.
            {"host": "rebound.example:8000", "sec-fetch-site": "same-origin"},
            {"host": "127.0.0.1.example"},
            {"host": "localhost.example:8000"},
            {"host": "localhost:8000@example"},
            {"host": "example@localhost"},
            {"host": ""},
            # A page of another origin, or of another port of this machine.
            LOOPBACK | {"sec-fetch-site": "cross-site"},
            LOOPBACK | {"sec-fetch-site": "same-site"},
            LOOPBACK | {"sec-fetch-site": "none"},
            LOOPBACK | {"origin": "http://localhost:3000"},
            LOOPBACK | {"origin": "null"},
            # A proxy on this machine, which asks for somebody else.
            LOOPBACK | {"x-forwarded-for": "203.0.113.7"},
            LOOPBACK | {"x-forwarded-for": "127.0.0.1"},
            LOOPBACK | {"X-Forwarded-Proto": "https"},
            LOOPBACK | {"x-forwarded-host": "tollgate.example"},
            LOOPBACK | {"forwarded": "for=203.0.113.7"},
            LOOPBACK | {"x-real-ip": "203.0.113.7"},
            LOOPBACK | {"via": "1.1 proxy"},
            LOOPBACK | {"x-forwarded-for": ""},
        ],
    )
    async def test_nobody_else_is_given_it(self, settings: dict[str, Any], headers: dict[str, str]) -> None:
        async with client_of(Settings(**settings)) as client:
            response = await client.get("/graphiql/config.json", headers=headers)
        assert response.json() == {"demoKey": None}
        assert DEMO_KEY not in str(response.headers)

    def test_a_proxy_that_says_nothing_and_speaks_an_old_http_is_not_given_it(self, demo: Server) -> None:
        for version, is_given in ((b"1.1", True), (b"1.0", False)):
            with socket.create_connection(("127.0.0.1", demo.port)) as connection:
                connection.sendall(
                    b"GET /graphiql/config.json HTTP/%s\r\nhost: 127.0.0.1:%d\r\nconnection: close\r\n\r\n"
                    % (version, demo.port)
                )
                answer = b"".join(iter(lambda: connection.recv(4_096), b""))
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert (b"sk_test_" in answer) == is_given

    async def test_no_other_machine_is_given_it(self, settings: dict[str, Any]) -> None:
        for address in ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "unknown"):
            async with client_of(Settings(**settings), address) as client:
                response = await client.get("/graphiql/config.json", headers=LOOPBACK)
            assert response.json() == {"demoKey": None}

    async def test_without_the_demo_or_its_key_file_nobody_is_given_it(self, settings: dict[str, Any]) -> None:
        for changed in ({"demo": "off"}, {"demo_key_file": str(Path(settings["demo_key_file"]).with_name("none"))}):
            async with client_of(Settings(**settings | changed)) as client:
                response = await client.get("/graphiql/config.json", headers=LOOPBACK)
            assert response.json() == {"demoKey": None}


def files_of(page: str) -> list[str]:
    """Return what the page refers to."""
    return re.findall(r' (?:src|href)="([^"]+)"', page)


class TestAssets:
    def test_they_are_at_most_3_mb(self) -> None:
        packed = [len(file.read_bytes()) for file in ASSETS.glob("*.gz")]
        assert len(packed) > 10
        assert sum(packed) <= 3_000_000

    def test_they_were_built_from_the_sources_beside_them(self) -> None:
        """Else: `make graphiql`."""
        lines = (ASSETS / "sources.sha256").read_text().splitlines()
        built_from = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        assert built_from == {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in SOURCE.iterdir()
            if file.name != "node_modules"
        }

    def test_the_page_refers_to_files_that_are_there(self) -> None:
        files = files_of((ASSETS / "index.html").read_text())
        assert {Path(name).suffix for name in files} == {".js", ".css", ".svg"}
        assert [name for name in files if not (ASSETS / f"{name.removeprefix('graphiql/')}.gz").exists()] == []

    def test_the_licences_of_what_they_contain_are_with_them(self) -> None:
        text = gzip.decompress((ASSETS / "THIRD_PARTY.txt.gz").read_bytes()).decode()
        contained = re.findall(r"^={80}\n\n(\S+) \S+ \(\S+\)$", text, re.MULTILINE)
        assert {"graphiql", "@graphiql/plugin-explorer", "monaco-editor", "react", "graphql"} <= set(contained)
        assert text.count("Permission is hereby granted, free of charge") >= len(contained) // 2

    def test_no_lock_file_names_a_registry(self) -> None:
        assert '"resolved"' not in (SOURCE / "package-lock.json").read_text()

    def test_the_wheel_has_the_assets_and_not_their_sources(self, tmp_path: Path) -> None:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
            cwd=ROOT,
            capture_output=True,
            timeout=120,
            check=True,
        )
        (wheel,) = tmp_path.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("gateway/pages/graphiql/")]
        assert sorted(names) == sorted(
            [
                "gateway/pages/graphiql/__init__.py",
                *(f"gateway/pages/graphiql/assets/{file.name}" for file in ASSETS.iterdir()),
            ]
        )
