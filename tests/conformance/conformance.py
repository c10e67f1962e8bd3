"""What others wrote down about GraphQL servers, checked by their own programs: `make conformance`.

The name of this file keeps it out of `make test`: it needs npm packages, which `make conformance` installs.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.services import Services
from gateway.settings import Settings
from resolvers.actor import Scope
from resolvers.api_keys import create_api_key
from resolvers.context import utc_now
from storage import migrations
from storage.tables import Environment
from tests.servers import serving

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NODE = Path(sys.executable).with_name("node")


class Served(NamedTuple):
    """A running gateway: where it answers GraphQL, and a key for it."""

    url: str
    key: str


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A gateway as its users start it, on a new SQLite database."""
    database_url = f"sqlite+aiosqlite:///{tmp_path}/tollgate.db"
    services = Services(Settings(database_url=database_url))
    try:
        await migrations.upgrade(services.database)
        _, key = await create_api_key(
            services.database, org_id="conformance", environment=Environment.SANDBOX, scopes=tuple(Scope), now=utc_now()
        )
    finally:
        await services.close()
    async with serving(database_url, tmp_path) as server:
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


async def test_graphql_over_http(served: Served) -> None:
    printed = await node(HERE / "graphql-over-http.mjs", *served)
    assert re.findall(r"^(\d+) of (\d+) audits", printed, re.MULTILINE) == [("61", "61")]


async def test_the_schema_has_no_lint() -> None:
    eslint = HERE / "node_modules" / "eslint" / "bin" / "eslint.js"
    await node(eslint, "--config", HERE / "eslint.config.js", "--max-warnings", "0", "schema/schema.graphql")
