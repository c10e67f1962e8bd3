"""What the tests of the examples stand on: a gateway as a process of its own, with the demo's data."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.servers import NO_TLS, TOLLGATE, Server, free_port, serving

ROOT = Path(__file__).parent.parent.parent
FRONTEND = ROOT / "examples" / "frontend"
CLIENT = ROOT / "examples" / "python-client"
LLM_PROXY = ROOT / "examples" / "llm-proxy"
PYTHON_RECEIVER = ROOT / "examples" / "receiver-python"
TYPESCRIPT_RECEIVER = ROOT / "examples" / "receiver-typescript"
STRIPE = ROOT / "examples" / "stripe"


class Demo(NamedTuple):
    """A running gateway with the demo's data, the demo's key, and the port whose pages it lets in."""

    server: Server
    key: str
    page_port: int

    async def ask(self, query: str, **variables: Any) -> Any:
        """Send an operation with the demo's key, and return its data."""
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
            response = await client.post(
                f"{self.server.url}/graphql",
                json={"query": query, "variables": variables},
                headers={"authorization": f"Bearer {self.key}"},
            )
        body = response.json()
        assert "errors" not in body, body
        return body["data"]

    async def meters(self, customer: str) -> dict[str, dict[str, Any]]:
        """Return the customer's meters with their balances and usage, by workspace."""
        data = await self.ask(
            """query ($customer: String!) {
                customerByExternalId(externalId: $customer) {
                    billingMeters {
                        nodes {
                            id workspaceId externalMeterId totalCredits usedCredits availableCredits
                            usage { day billingUsageName totalBillingUsage }
                            ledger { nodes { kind amount } }
                        }
                    }
                }
            }""",
            customer=customer,
        )
        return {meter["workspaceId"]: meter for meter in data["customerByExternalId"]["billingMeters"]["nodes"]}


@pytest.fixture(scope="module")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Demo]:
    """The demo's data, served to those who hold a key or a session, and to the pages of one origin."""
    folder = tmp_path_factory.mktemp("demo")
    url = f"sqlite+aiosqlite:///{folder}/tollgate.db"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
    seeding = await asyncio.create_subprocess_exec(
        TOLLGATE, "demo", cwd=folder, env=environment | {"TOLLGATE_DATABASE_URL": url}, stdout=subprocess.DEVNULL
    )
    assert await seeding.wait() == 0
    port = free_port()
    async with serving(url, folder, TOLLGATE_CORS_ORIGINS=f"http://127.0.0.1:{port}") as server:
        yield Demo(server, (folder / "tollgate-demo.key").read_text().strip(), port)
