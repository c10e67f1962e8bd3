"""What others wrote down about GraphQL servers, checked by their own programs: `make conformance`.

The name of this file keeps it out of `make test`: it needs npm packages, which `make conformance` installs.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from gateway.services import Services
from gateway.settings import Settings
from resolvers.actor import Scope
from resolvers.api_keys import create_api_key
from resolvers.context import utc_now
from storage import migrations
from storage.tenants import Environment
from tests.servers import serving

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NODE = Path(sys.executable).with_name("node")


class Served(NamedTuple):
    """A running gateway: where it answers GraphQL, and a key for it."""

    url: str
    key: str


@asynccontextmanager
async def served(tmp_path: Path, **settings: str) -> AsyncIterator[Served]:
    """Start a gateway as its users do, on a new SQLite database."""
    database_url = f"sqlite+aiosqlite:///{tmp_path}/tollgate.db"
    services = Services(Settings(database_url=database_url))
    try:
        await migrations.upgrade(services.database)
        _, key = await create_api_key(
            services.database, org_id="conformance", environment=Environment.SANDBOX, scopes=tuple(Scope), now=utc_now()
        )
    finally:
        await services.close()
    async with serving(database_url, tmp_path, **settings) as server:
        yield Served(f"{server.url}/graphql", key)


async def node(*arguments: str | Path) -> str:
    """Run a program in Node, show what it prints and return it; it must end with 0."""
    process = await asyncio.create_subprocess_exec(
        NODE, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    printed = (await process.communicate())[0].decode()
    print(printed)  # noqa: T201  # `make conformance` shows it.
    assert process.returncode == 0
    return printed


async def test_graphql_over_http(tmp_path: Path) -> None:
    async with served(tmp_path) as gateway:
        printed = await node(HERE / "graphql-over-http.mjs", *gateway)
    assert re.findall(r"^(\d+) of (\d+) audits", printed, re.MULTILINE) == [("61", "61")]


async def test_the_schema_has_no_lint() -> None:
    eslint = HERE / "node_modules" / "eslint" / "bin" / "eslint.js"
    await node(eslint, "--config", HERE / "eslint.config.js", "--max-warnings", "0", "schema/schema.graphql")


async def test_graphql_core_is_itself_with_our_executor(tmp_path: Path) -> None:
    """Its own tests, as they come with its source; those of its documentation and its speed are no tests of this."""
    (source,) = (path for path in (ROOT / "build" / "graphql-core").iterdir() if path.is_dir())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "tests", "--ignore=tests/benchmarks", "--ignore=tests/test_docs.py"),
        *(
            "--override-ini=addopts=",
            "--numprocesses=auto",
            "-p",
            "no:cacheprovider",
            "-p",
            "compiling",
        ),
        cwd=source,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT)))},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await process.communicate())[0].decode()
    print(printed)  # noqa: T201  # `make conformance` shows it.
    assert process.returncode == 0
    passed = re.search(r"(\d+) passed", printed)
    assert passed is not None
    assert int(passed[1]) > 3_500


def without_type_names(data: Any) -> Any:
    """Return the data without the names of types, which each client asks for as it likes."""
    if isinstance(data, dict):
        return {name: without_type_names(value) for name, value in data.items() if name != "__typename"}
    return data


class TestClients:
    """The clients of Apollo and urql, with the manifest that the client preset writes."""

    async def ask(self, folder: Path, **settings: str) -> dict[str, tuple[str | None, ...]]:
        """Return which error each client got from a gateway with these settings, and the requests that it took."""
        generated = folder / "generated"
        await node(HERE / "clients" / "generate.mjs", generated)
        async with served(folder, **settings) as gateway:
            answered = json.loads(await node(HERE / "clients" / "ask.mjs", *gateway, generated))
        outcomes: dict[str, tuple[str | None, ...]] = {}
        for client, answers in answered.items():
            read = {"viewer": {"orgId": "conformance"}}
            made = {"createCustomer": {"customer": {"email": f"{client}@example.com"}}}
            for kind, answer in answers.items():
                data = None if answer["error"] is not None else made if kind == "mutation" else read
                assert without_type_names(answer["data"]) == data
                outcomes[f"{client} {kind}"] = (answer["error"], *answer["requests"])
        return outcomes

    async def test_a_document_is_named_and_an_unknown_one_is_sent(self, tmp_path: Path) -> None:
        manifest = "generated/persisted-documents.json"
        assert await self.ask(tmp_path, TOLLGATE_DOCUMENTS=manifest) == {
            "apollo query": (None, "GET id 200"),
            "apollo mutation": (None, "POST id 200"),
            "apollo unknown": (None, "GET id 400", "POST text 200"),
            "urql query": (None, "GET id 200"),
            "urql mutation": (None, "POST id 200"),
            "urql unknown": (None, "GET id 400", "GET text 200"),
        }

    async def test_an_unknown_document_is_refused_where_only_trusted_ones_are_run(self, tmp_path: Path) -> None:
        manifest = "generated/persisted-documents.json"
        message = "Only trusted documents are run here: name one by documentId."
        assert await self.ask(tmp_path, TOLLGATE_DOCUMENTS=manifest, TOLLGATE_TRUSTED_ONLY="on") == {
            "apollo query": (None, "GET id 200"),
            "apollo mutation": (None, "POST id 200"),
            "apollo unknown": (message, "GET id 400", "POST text 400"),
            "urql query": (None, "GET id 200"),
            "urql mutation": (None, "POST id 200"),
            "urql unknown": (f"[GraphQL] {message}", "GET id 400", "GET text 400"),
        }

    async def test_without_a_manifest_a_client_tries_once(self, tmp_path: Path) -> None:
        assert await self.ask(tmp_path) == {
            "apollo query": (None, "GET id 400", "POST text 200"),
            "apollo mutation": (None, "POST text 200"),
            "apollo unknown": (None, "POST text 200"),
            "urql query": (None, "GET id 400", "GET text 200"),
            "urql mutation": (None, "POST text 200"),
            "urql unknown": (None, "GET text 200"),
        }


#: What a gateway is given before it is asked through caches.
FURNISHING = """mutation {
  a: createCustomer(input: {email: "a@example.com"}) { __typename }
  b: createCustomer(input: {email: "b@example.com"}) { __typename }
  c: createCustomer(input: {email: "c@example.com"}) { __typename }
  m: createBillingMeter(input: {workspaceId: "w", externalMeterId: "m", totalCredits: 100}) { __typename }
  days: recordUsageBatch(input: [
    {workspaceId: "w", externalMeterId: "m", eventId: "1", amount: 5, occurredAt: "2026-03-01T00:00:00Z"}
    {workspaceId: "w", externalMeterId: "m", eventId: "2", amount: 6, occurredAt: "2026-03-02T00:00:00Z"}
    {workspaceId: "w", externalMeterId: "m", eventId: "3", amount: 7}
  ]) { __typename }
}"""


async def test_caches_keep_what_was_asked_for_with_the_lines_of_the_page(tmp_path: Path) -> None:
    """Apollo Client's cache and urql's Graphcache, as they come and as `docs/frontend.md` sets them."""
    async with served(tmp_path) as gateway, httpx.AsyncClient() as client:
        headers = {"authorization": f"Bearer {gateway.key}"}
        made = (await client.post(gateway.url, json={"query": FURNISHING}, headers=headers)).json()
        assert "errors" not in made
        printed = await node(HERE / "clients" / "cache.mjs", *gateway, ROOT / "docs" / "frontend.md")
    caches = {name: without_type_names(seen) for name, seen in json.loads(printed).items()}

    def usage(seen: dict[str, Any], name: str) -> list[str] | None:
        return seen[name] and [day["totalBillingUsage"] for day in seen[name]["billingMeter"]["usage"]]

    def emails(seen: dict[str, Any], name: str) -> list[str]:
        return [edge["node"]["email"] for edge in seen[name]["customers"]["edges"]]

    for used, (name, seen) in enumerate(caches.items(), start=18):
        # An object that has an `id` is kept by it, and what a mutation answers of it is seen, whatever is set.
        assert seen["changed"]["billingMeter"]["usedCredits"] == str(used + 1), name
        assert usage(seen, "range") == ["5", "6"], name
        assert emails(seen, "filtered") == ["c@example.com"], name
        is_set = name.endswith("as the page says")
        assert emails(seen, "pages") == ["c@example.com", "b@example.com", "a@example.com"][: 3 if is_set else 2], name
        is_kept = is_set or name.startswith("graphcache")
        assert seen["viewer"] == ({"viewer": {"orgId": "conformance"}} if is_kept else None), name
        assert usage(seen, "usage") == ([str(used - 11)] if is_kept else None), name
        # Graphcache as it comes takes what has no key for a part of what it lies in, with a warning.
        assert bool(seen["warnings"]) == (name == "graphcache as it comes"), seen["warnings"]
        assert seen["refusesIncomplete"] == (name == "apollo as the page says"), name
