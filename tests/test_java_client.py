"""Java's own HTTP client, as nobody has configured it: it asks each server to upgrade the connection to HTTP/2."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Gateway
from tests.servers import serving
from tests.wire import sent

CLIENT = Path(__file__).parent / "java" / "Client.java"

NAMES = '"workspaceId": "java", "externalMeterId": "m"'
QUERY = '{ billingMeter(workspaceId: \\"java\\", externalMeterId: \\"m\\") { totalCredits } }'

#: What the client sends: the path, the idempotency key and the body.
REQUESTS = (
    ("/api/v1/customer-billing", '"java-create"', f"{{{NAMES}}}"),
    *[("/api/v1/customer-billing/refill", '"java-refill"', f'{{{NAMES}, "refill": 10}}')] * 2,
    ("/graphql", None, f'{{"query": "{QUERY}"}}'),
)


@pytest.mark.one_python
async def test_a_client_of_java_creates_refills_once_and_queries(on_sqlite: Gateway, tmp_path: Path) -> None:
    async with serving(on_sqlite.services.settings.database_url, tmp_path) as server:
        bytes_, java = await by_bytes(server.port, on_sqlite.key), await by_java(server.url, on_sqlite.key)
        # What the bytes have made and refilled, the client only repeats.
        for answers, total in ((bytes_, "0"), *([(java, "10")] if java is not None else [])):
            assert [status for status, _ in answers] == [200] * 4
            made, first, again, queried = [json.loads(body) for _, body in answers]
            assert made["billing"]["totalCredits"] == total
            assert first["billing"]["totalCredits"] == again["billing"]["totalCredits"] == "10"
            assert queried == {"data": {"billingMeter": {"totalCredits": "10"}}}


async def by_java(url: str, key: str) -> list[tuple[int, str]] | None:
    """Return what the client reports of its answers; None: there is no Java."""
    java = shutil.which("java")
    if java is None:
        return None
    process = await asyncio.create_subprocess_exec(java, CLIENT, url, key, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    lines = [line.split(" ", 2) for line in out.decode().splitlines()]
    assert {version for version, _, _ in lines} == {"HTTP_1_1"}
    return [(int(status), body) for _, status, body in lines]


async def by_bytes(port: int, key: str) -> list[tuple[int, str]]:
    """Send the bytes that Java 17 sends, heads and bodies apart."""
    answers = []
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for path, idempotency_key, body in REQUESTS:
        lines = [
            f"POST {path} HTTP/1.1",
            "Connection: Upgrade, HTTP2-Settings",
            f"Content-Length: {len(body)}",
            f"Host: 127.0.0.1:{port}",
            "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
            "Upgrade: h2c",
            "User-Agent: Java-http-client/17.0.15",
            f"Authorization: Bearer {key}",
            "Content-Type: application/json",
            *([f"Idempotency-Key: {idempotency_key}"] if idempotency_key is not None else []),
        ]
        answer = await sent(port, "\r\n".join([*lines, "", ""]).encode(), body.encode(), last)
        head, _, rest = answer.decode().partition("\r\n\r\n")
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        # What follows on the connection is answered, too.
        assert rest[length:].startswith("HTTP/1.1 200 OK\r\n")
        answers.append((int(head.split(" ")[1]), rest[:length]))
    return answers
