"""The frontend is built from the schema, and does in a browser what its page says.

It is run by `make examples`, which installs what it needs from npm.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Locator, Page, Response, Route, expect

from tests.browsers import chromium
from tests.doc_pages import blocks_of
from tests.examples.conftest import FRONTEND, ROOT, Demo
from tests.servers import PATIENCE_SECONDS, serving

GUIDE = ROOT / "docs" / "frontend.md"

LARGEST = 9_223_372_036_854_775_807


def npm(*arguments: str, folder: Path = FRONTEND, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["npm", *arguments],  # noqa: S607  # The environment's own, by the PATH that the Makefile sets.
        cwd=folder,
        env=os.environ | {"NO_COLOR": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


#: What docs/frontend.md runs in its second terminal, and what that prints.
COMMANDS = next(block.text for block in blocks_of(GUIDE) if "npm start" in block.text).splitlines()
(PRINTED,) = [block.text for block in blocks_of(GUIDE) if block.language == "text"]


@pytest.fixture(scope="module", autouse=True)
def build() -> None:
    """Build the page as its guide says, from the schema as it is."""
    # The Makefile has installed the packages, by the same command.
    script = "\n".join(line for line in COMMANDS[:-1] if line != "npm ci")
    built = subprocess.run(
        ["/bin/sh", "-e", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr


def test_the_guide_builds_and_starts_the_page_that_its_gateway_lets_in() -> None:
    assert COMMANDS == ["cd examples/frontend", "npm ci", "npm run build", "npm start"]
    (serve,) = [block.text for block in blocks_of(GUIDE) if "make run" in block.text]
    origin = serve.removeprefix("TOLLGATE_CORS_ORIGINS=").removesuffix(" make run\n")
    assert f"The page of acme-robotics: {origin}\n" == PRINTED


class Shop:
    """A customer's page in a browser, and everything that the browser received."""

    def __init__(self, demo: Demo, customer: str, page: Page) -> None:
        self.demo = demo
        self.customer = customer
        self.page = page
        self.url = f"http://127.0.0.1:{demo.page_port}"
        self.responses: list[Response] = []
        self.complaints: list[str] = []
        # Playwright marks what it calls, and a method of a list cannot be marked.
        page.on("response", lambda response: self.responses.append(response))  # noqa: PLW0108
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    async def open(self) -> None:
        await self.page.goto(self.url)
        await expect(self.page.locator("section.card").first).to_be_visible()

    def meter(self, workspace: str) -> Locator:
        return self.page.get_by_role("region", name=workspace, exact=True)

    async def shows(self, workspace: str, meter: dict[str, Any]) -> None:
        """Wait until the page shows the balances of the meter."""
        texts = [f"{int(meter[name]):,}" for name in ("availableCredits", "usedCredits", "totalCredits")]
        await expect(self.meter(workspace).locator("dd")).to_have_text(texts)

    async def refill(self, workspace: str, amount: int) -> None:
        await self.meter(workspace).get_by_label("Refill").fill(str(amount))
        await self.meter(workspace).get_by_role("button", name="Add credits").click()

    def notice(self, workspace: str) -> Locator:
        return self.meter(workspace).get_by_role("status")

    def answers(self, path: str) -> list[Response]:
        """Return what was received of a path, preflights aside."""
        return [each for each in self.responses if each.url.endswith(path) and each.request.method != "OPTIONS"]


@asynccontextmanager
async def shop_of(
    demo: Demo, customer: str, *, folder: Path = FRONTEND, document_ids: bool = False, **options: Any
) -> AsyncIterator[Shop]:
    """Start the frontend's own backend for the customer, and open a browser."""
    backend = await asyncio.create_subprocess_exec(
        *shlex.split(COMMANDS[-1]),
        cwd=folder,
        env=os.environ
        | {
            "PORT": str(demo.page_port),
            "DOCUMENT_IDS": "1" if document_ids else "",
            "CUSTOMER": customer,
            "GATEWAY_URL": demo.server.url,
            "GATEWAY_KEY_FILE": str(demo.server.folder / "tollgate-demo.key"),
        },
        stdout=subprocess.PIPE,
        # npm starts Node: both end together.
        start_new_session=True,
    )
    try:
        assert backend.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            # npm says first what it runs.
            while not (line := (await backend.stdout.readline()).decode()).startswith("The page"):
                assert line, "The backend has ended."
        assert line == PRINTED.replace("acme-robotics", customer).replace("8100", str(demo.page_port))
        async with chromium() as browser, await browser.new_context(**options) as context:
            yield Shop(demo, customer, await context.new_page())
    finally:
        os.killpg(backend.pid, signal.SIGTERM)
        await backend.wait()


async def test_the_page_shows_the_balances_that_the_api_returns(demo: Demo) -> None:
    async with shop_of(demo, "acme-robotics") as shop:
        await shop.open()
        await expect(shop.page.get_by_role("heading", level=1)).to_have_text("Acme Robotics")
        meters = await demo.meters("acme-robotics")
        assert list(meters) == ["images", "assistant"]
        for workspace, meter in meters.items():
            await shop.shows(workspace, meter)
        assert await shop.page.locator("section.card").count() == 2
        assert shop.complaints == []


async def test_the_chart_has_a_part_for_each_usage_day_and_the_sums_agree(demo: Demo) -> None:
    async with shop_of(demo, "acme-robotics") as shop:
        await shop.open()
        for workspace, meter in (await demo.meters("acme-robotics")).items():
            parts = shop.meter(workspace).locator("[data-credits]")
            drawn = await parts.evaluate_all(
                "all => all.map(part => [part.parentElement.dataset.day, part.dataset.name, part.dataset.credits])"
            )
            used = [[row["day"], row["billingUsageName"], row["totalBillingUsage"]] for row in meter["usage"]]
            # The demo ends with yesterday, which may be the day before by now.
            assert len({day for day, *_ in used}) in {28, 29}
            assert drawn == used
            total = sum(int(row["totalBillingUsage"]) for row in meter["usage"])
            await expect(shop.meter(workspace).locator("figcaption strong")).to_have_text(f"{total:,}")


async def test_the_height_of_a_column_is_its_share_of_the_scale_and_its_label_shows_the_amounts(demo: Demo) -> None:
    async with shop_of(demo, "birch-finch") as shop:
        await shop.open()
        days: dict[str, dict[str, int]] = defaultdict(dict)
        for row in (await demo.meters("birch-finch"))["assistant"]["usage"]:
            days[row["day"]][row["billingUsageName"]] = int(row["totalBillingUsage"])
        chart = shop.meter("assistant").get_by_role("list", name="Usage by day")
        columns = await chart.get_by_role("listitem").evaluate_all(
            """columns => columns.map(column => [
                column.dataset.day,
                column.getAttribute("aria-label").replace(/^.+?: /, ""),
                [...column.querySelectorAll("[data-credits]")].reduce((sum, part) => sum + part.height.baseVal.value, 0)
            ])"""
        )
        assert len(columns) == 30
        used = [column for column in columns if column[2] > 0]
        assert [day for day, *_ in used] == sorted(days)
        highest = max(used, key=lambda column: column[2])
        for day, label, height in used:
            assert label == ", ".join(f"{name} {credits_:,}" for name, credits_ in sorted(days[day].items()))
            share = sum(days[day].values()) / sum(days[highest[0]].values())
            assert height == pytest.approx(highest[2] * share, abs=0.02)
        # Today has no usage yet.
        assert columns[-1][1:] == ["contextTokens 0, generatedTokens 0", 0]


async def test_a_refill_that_is_clicked_twice_counts_once(demo: Demo) -> None:
    async with shop_of(demo, "cobalt-freight") as shop:
        before = (await demo.meters("cobalt-freight"))["images"]
        await shop.open()
        both: list[Route] = []
        have_come = asyncio.Event()

        async def hold(route: Route) -> None:
            both.append(route)
            if len(both) == 2:
                have_come.set()

        # Both clicks are on their way before either is answered.
        await shop.page.route("**/api/refill", hold)
        await shop.meter("images").get_by_label("Refill").fill("750")
        await shop.meter("images").get_by_role("button", name="Add credits").dblclick()
        await asyncio.wait_for(have_come.wait(), PATIENCE_SECONDS)
        for route in both:
            await route.continue_()
        total = int(before["totalCredits"]) + 750
        await expect(shop.notice("images")).to_have_text(f"Added 750. The total was {total:,} then.")
        after = (await demo.meters("cobalt-freight"))["images"]
        assert int(after["totalCredits"]) == total
        assert after["usedCredits"] == before["usedCredits"]
        assert after["ledger"]["nodes"][0] == {"kind": "REFILL", "amount": "750"}
        assert [entry["kind"] for entry in after["ledger"]["nodes"]].count("REFILL") == 1
        await shop.shows("images", after)
        first, second = [json.loads(route.request.post_data or "") for route in both]
        assert first == second
        replayed = [(await response.json())["replayed"] for response in shop.answers("/api/refill")]
        assert sorted(replayed) == [False, True]


async def test_a_refill_whose_answer_was_lost_counts_once_when_it_is_tried_again(demo: Demo) -> None:
    async with shop_of(demo, "delta-dental") as shop:
        before = (await demo.meters("delta-dental"))["images"]
        await shop.open()

        async def lose(route: Route) -> None:
            await route.fetch()
            await route.abort()

        await shop.page.route("**/api/refill", lose)
        await shop.refill("images", 40)
        await expect(shop.notice("images")).to_have_text("There was no answer. Try again: it will not count twice.")
        # A person who is not sure what was typed types it anew.
        await shop.meter("images").get_by_label("Refill").fill("")
        await shop.refill("images", 40)
        await expect(shop.notice("images")).to_have_text("There was no answer. Try again: it will not count twice.")
        await shop.page.unroute("**/api/refill")
        await shop.meter("images").get_by_role("button", name="Add credits").click()
        total = int(before["totalCredits"]) + 40
        await expect(shop.notice("images")).to_have_text(f"Added 40. The total was {total:,} then.")
        assert int((await demo.meters("delta-dental"))["images"]["totalCredits"]) == total
        # The next refill of the same amount is another intention, and counts.
        await shop.refill("images", 40)
        await expect(shop.notice("images")).to_have_text(f"Added 40. The total was {total + 40:,} then.")
        after = (await demo.meters("delta-dental"))["images"]
        assert int(after["totalCredits"]) == total + 40
        await shop.shows("images", after)


@pytest.mark.parametrize(
    ("amount", "notice"),
    [
        (0, "Not added. refill must be greater than 0."),
        (LARGEST, "Not added: a meter cannot hold so many credits."),
    ],
)
async def test_a_refusal_is_shown_and_changes_nothing(demo: Demo, amount: int, notice: str) -> None:
    async with shop_of(demo, "elm-street-bakery") as shop:
        before = await demo.meters("elm-street-bakery")
        await shop.open()
        await shop.refill("images", amount)
        await expect(shop.notice("images")).to_have_text(notice)
        assert await demo.meters("elm-street-bakery") == before
        await shop.shows("images", before["images"])


async def test_the_backend_refills_no_meter_of_another_customer(demo: Demo) -> None:
    before = await demo.meters("fjord-analytics")
    async with shop_of(demo, "granite-legal") as shop, httpx.AsyncClient(base_url=shop.url, trust_env=False) as client:
        wanted = {"meterId": before["images"]["id"], "refill": "5", "idempotencyKey": "from-elsewhere"}
        refused = await client.post("/api/refill", json=wanted)
        assert (refused.status_code, refused.json()) == (404, {"error": "You have no such meter."})
        # A form of another site's page can send this type without asking.
        form = await client.post("/api/refill", content=json.dumps(wanted), headers={"content-type": "text/plain"})
        assert form.status_code == 415
    assert await demo.meters("fjord-analytics") == before


async def test_the_backend_serves_under_a_loopback_name_alone(demo: Demo) -> None:
    async with shop_of(demo, "granite-legal") as shop, httpx.AsyncClient(base_url=shop.url, trust_env=False) as client:
        for host, status in (("elsewhere.example", 403), ("127.0.0.1.elsewhere.example", 403), ("localhost", 200)):
            headers = {"host": f"{host}:{demo.page_port}"}
            assert (await client.post("/api/session", json={}, headers=headers)).status_code == status
            assert (await client.get("/", headers=headers)).status_code == status


async def test_the_secret_key_is_in_nothing_that_the_browser_receives(demo: Demo) -> None:
    async with shop_of(demo, "harbor-lights") as shop:
        await shop.open()
        await shop.refill("images", 0)
        await expect(shop.notice("images")).to_contain_text("Not added.")
        await shop.refill("images", 1)
        await expect(shop.notice("images")).to_contain_text("Added 1.")
        received = [
            str(response.url) + str(await response.all_headers()) + await response.text()
            for response in shop.responses
            if response.request.method != "OPTIONS"
        ]
        kept = await shop.page.evaluate("JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])")
    assert demo.key.startswith("sk_test_")
    assert not [text for text in [*received, kept] if "sk_test_" in text or demo.key in text]
    # What it holds is a token, which is kept nowhere.
    assert [bool(re.search(r"cst_test_\w", text)) for text in received].count(True) == 1
    assert kept == '["",{},{}]'


async def test_a_token_that_has_ended_is_renewed(demo: Demo) -> None:
    async with shop_of(demo, "iris-optics") as shop:
        await shop.open()
        (opened,) = shop.answers("/api/session")
        token = (await opened.json())["token"]
        end_sessions(demo)
        await until_refused(demo, token)
        # What the page then shows can only have been read with another token.
        await demo.ask(
            'mutation { refillBillingMeter(input: {workspaceId: "images", externalMeterId: "iris-optics", refill: "9"})'
            " { __typename } }"
        )
        await shop.page.get_by_role("button", name="Refresh").click()
        await shop.shows("images", (await demo.meters("iris-optics"))["images"])
        _, renewed = shop.answers("/api/session")
        assert (await renewed.json())["token"] != token
        assert [response.status for response in shop.answers("/graphql")] == [200, 401, 200]


def end_sessions(demo: Demo) -> None:
    """Let all sessions have ended when they were made."""
    with closing(sqlite3.connect(demo.server.folder / "tollgate.db", timeout=30)) as database, database:
        ended = database.execute("UPDATE api_keys SET expires_at = created_at WHERE customer_id IS NOT NULL")
    assert ended.rowcount >= 1
    database.close()


async def until_refused(demo: Demo, token: str) -> None:
    """Wait until the gateway has forgotten that it knew the token, which it does within seconds."""
    async with asyncio.timeout(PATIENCE_SECONDS), httpx.AsyncClient(trust_env=False) as client:
        while True:
            asked = await client.post(
                f"{demo.server.url}/graphql",
                json={"query": "{ viewer { orgId } }"},
                headers={"authorization": f"Bearer {token}"},
            )
            if asked.status_code == httpx.codes.UNAUTHORIZED:
                return
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("width", [1280, 390])
async def test_amounts_of_19_digits_are_shown_whole(demo: Demo, width: int) -> None:
    customer = f"astronomical-{width}"
    made = await demo.ask(
        "mutation ($input: CreateCustomerInput!) { createCustomer(input: $input) {"
        " ... on CreateCustomerSuccess { customer { id } } } }",
        input={"email": "owner@astronomical.example.com", "externalId": customer},
    )
    await demo.ask(
        "mutation ($input: CreateBillingMeterInput!) { createBillingMeter(input: $input) { __typename } }",
        input={
            "workspaceId": "assistant",
            "externalMeterId": customer,
            "totalCredits": str(LARGEST),
            "customerId": made["createCustomer"]["customer"]["id"],
        },
    )
    await demo.ask(
        "mutation ($input: RecordUsageInput!) { recordUsage(input: $input) { __typename } }",
        input={"workspaceId": "assistant", "externalMeterId": customer, "eventId": "1", "amount": str(LARGEST - 1)},
    )
    async with shop_of(demo, customer, viewport={"width": width, "height": 800}) as shop:
        await shop.open()
        await expect(shop.meter("assistant").locator("dd")).to_have_text(
            ["1", "9,223,372,036,854,775,806", "9,223,372,036,854,775,807"]
        )
        assert await shop.page.evaluate("document.documentElement.scrollWidth") == width
        # Each stands on one line, within its place.
        heights = (
            await shop.meter("assistant")
            .locator("dd")
            .evaluate_all(
                "all => all.map(each => [each.scrollWidth <= each.clientWidth, each.getClientRects().length,"
                " Math.round(each.clientHeight / parseFloat(getComputedStyle(each).lineHeight))])"
            )
        )
        assert heights == [[True, 1, 1]] * 3


def built_copy(folder: Path, *, schema: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Build a copy of the frontend in the folder, from this schema."""
    ignored = shutil.ignore_patterns("node_modules", "gql", "dist", "persisted-documents.json")
    shutil.copytree(FRONTEND, folder, ignore=ignored, dirs_exist_ok=True)
    (folder / "node_modules").symlink_to(FRONTEND / "node_modules")
    (folder / "schema.graphql").write_text(schema, "utf-8")
    return npm("run", "build", folder=folder, SCHEMA="schema.graphql", **variables)


def the_schema() -> str:
    return (ROOT / "schema" / "schema.graphql").read_text("utf-8")


def test_a_field_that_is_gone_fails_the_build(tmp_path: Path) -> None:
    without = re.sub(r'  """[^"]+"""\n  overageCredits: BigInt!\n', "", the_schema())
    assert without != the_schema()
    built = built_copy(tmp_path, schema=without)
    assert built.returncode == 1
    assert 'Cannot query field "overageCredits" on type "BillingMeter".' in built.stdout + built.stderr


def test_an_amount_that_became_nullable_fails_the_build(tmp_path: Path) -> None:
    nullable = the_schema().replace("  overageCredits: BigInt!\n", "  overageCredits: BigInt\n")
    assert nullable != the_schema()
    built = built_copy(tmp_path, schema=nullable)
    assert built.returncode != 0
    errors = re.findall(r"^(src/\w+\.tsx)\(.+?\): error (TS\d+): ", built.stdout, re.MULTILINE)
    assert ("src/Meter.tsx", "TS2345") in errors


def test_the_backends_operations_are_not_in_the_page() -> None:
    (script,) = (FRONTEND / "dist" / "assets").glob("*.js")
    text = script.read_text("utf-8")
    assert "CustomerPage" in text
    assert [name for name in ("createCustomerSession", "refillBillingMeter", "FindMeter") if name in text] == []


async def test_the_page_and_its_backend_name_their_operations_by_ids_alone(demo: Demo, tmp_path: Path) -> None:
    built = built_copy(tmp_path, schema=the_schema(), DOCUMENT_IDS="1")
    assert built.returncode == 0, built.stdout + built.stderr
    manifest = json.loads((tmp_path / "persisted-documents.json").read_text("utf-8"))
    assert len(manifest) == 5
    # Another gateway on the same data, which runs the operations of the manifest and no others.
    async with serving(
        demo.server.settings["TOLLGATE_DATABASE_URL"],
        demo.server.folder,
        TOLLGATE_CORS_ORIGINS=f"http://127.0.0.1:{demo.page_port}",
        TOLLGATE_DOCUMENTS=str(tmp_path / "persisted-documents.json"),
        TOLLGATE_TRUSTED_ONLY="on",
    ) as server:
        trusted = demo._replace(server=server)
        async with shop_of(trusted, "juniper-farms", folder=tmp_path, document_ids=True) as shop:
            before = await demo.meters("juniper-farms")
            await shop.open()
            await shop.shows("images", before["images"])
            await shop.refill("images", 12)
            await expect(shop.notice("images")).to_contain_text("Added 12.")
            after = await demo.meters("juniper-farms")
            assert int(after["images"]["totalCredits"]) == int(before["images"]["totalCredits"]) + 12
            await shop.shows("images", after["images"])
            asked = [json.loads(answer.request.post_data or "") for answer in shop.answers("/graphql")]
            assert [set(request) & {"query", "documentId"} for request in asked] == [{"documentId"}] * 2
            (document_id,) = {request["documentId"] for request in asked}
            assert "query CustomerPage" in manifest[document_id]
            assert shop.complaints == []
