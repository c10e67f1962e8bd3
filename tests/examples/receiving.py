"""What the tests of receivers stand on: the program under test, the gateway behind a door, and a signer."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx

from tests import commands
from tests.doc_pages import blocks_of
from tests.examples.conftest import ROOT, Demo
from tests.servers import NO_TLS, PATIENCE_SECONDS, free_port

SCHEMA = (ROOT / "schema" / "schema.graphql").read_text("utf-8")

#: The receivers' key may do no more than their pages say.
SCOPE = "billing:write"


def key_of(demo: Demo) -> str:
    """Make a key for a receiver."""
    made = commands.run(
        *("keys", "create", "--org", "demo", "--environment", "sandbox", "--scope", SCOPE, "--json"),
        folder=demo.server.folder,
        environment=commands.environment(**demo.server.settings),
    )
    return str(made.json["key"])


class Call(NamedTuple):
    """A mutation that came to the door, and its input."""

    mutation: str
    input: dict[str, str]


class Door:
    """Stands before the gateway, and lets a test keep from it what a receiver sends, or its answers from a receiver."""

    def __init__(self, gateway: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.calls: list[Call] = []
        #: What becomes of the next calls of a meter, or of a request, each in its turn: 'keep', 'lose' or 'break'.
        self.faults: dict[str, list[str]] = {}
        #: Set when a call is kept, or its answer lost.
        self.reached = asyncio.Event()
        self._gateway = gateway

    def calls_of(self, subject: str) -> list[Call]:
        return [each for each in self.calls if subject in each.input.values()]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(headers["content-length"]))
                # A key is not lower case.
                key = next(line for line in head.split("\r\n") if line.lower().startswith("authorization: "))
                status, answer = await self._answer(key.partition(" ")[2], body)
                lines = f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(answer)}"
                writer.write("\r\n".join((*lines, "\r\n")).encode() + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, authorization: str, body: bytes) -> tuple[int, bytes]:
        sent = json.loads(body)
        values = sent["variables"]["input"]
        name = "failAutoRefill" if "failAutoRefill" in sent["query"] else "refillBillingMeter"
        self.calls.append(Call(name, values))
        faults = next((each for subject, each in self.faults.items() if subject in values.values()), [])
        fault = faults.pop(0) if faults else None
        if fault == "break":
            return 502, b"Bad gateway"
        if fault == "keep":
            self.reached.set()
            raise ConnectionError
        status, answer = await self._forwarded(authorization, body, name)
        if fault == "lose":
            self.reached.set()
            raise ConnectionError
        return status, answer

    async def _forwarded(self, authorization: str, body: bytes, name: str) -> tuple[int, bytes]:
        if name not in SCHEMA:
            # It comes with automatic refills.
            return 200, b'{"data": {"answer": {"__typename": "FailAutoRefillSuccess"}}}'
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
            response = await client.post(
                f"{self._gateway}/graphql",
                content=body,
                headers={"authorization": authorization, "content-type": "application/json"},
            )
        return response.status_code, response.content


class Signer:
    """A program that signs each line it reads by a public library, and prints the signature."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def running(cls, *command: str | Path, folder: Path) -> AsyncIterator[Self]:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1_000_000
        )
        try:
            yield cls(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

    async def signature(self, *values: str | int) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(json.dumps(values).encode() + b"\n")
            return (await self._process.stdout.readline()).decode().strip()


def starting_commands(page: Path) -> list[str]:
    """Return what the example's page runs to install and to start it."""
    return [line for block in blocks_of(page) if block.language == "sh" for line in block.text.splitlines()]


class Program:
    """An example, started as its page says, in a folder of its own where it keeps its files."""

    def __init__(self, example: Path, folder: Path, files: Sequence[str], **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        *_, started = starting_commands(example / "README.md")
        # uvicorn is given its port, Node's program reads it.
        self.command = shlex.split(started.replace("8200", str(self.port)).replace("8201", str(self.port)))
        self.environment = os.environ | settings | {"PORT": str(self.port), "NO_PROXY": "127.0.0.1"}
        self._process: asyncio.subprocess.Process | None = None
        folder.mkdir()
        for name in files:
            (folder / name).symlink_to(example / name)

    async def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # npm starts Node: both end together.
                start_new_session=True,
            )
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                assert self._process.returncode is None, self.logged
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.05)

    async def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, how)
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._process.wait()

    @property
    def logged(self) -> str:
        return (self.folder / "log").read_text("utf-8")

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        """Send a body, and return the status that is answered."""
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS, timeout=PATIENCE_SECONDS) as client:
            response = await client.post(f"http://127.0.0.1:{self.port}{path}", content=body, headers=headers)
        return response.status_code


@asynccontextmanager
async def running(program: Program) -> AsyncIterator[Program]:
    """Run an example until the tests have ended."""
    try:
        await program.start()
        yield program
    finally:
        await program.end(signal.SIGTERM)
        print(program.logged)  # noqa: T201  # pytest shows it where a test fails.


async def make_meter(demo: Demo, workspace: str, meter: str, **values: Any) -> dict[str, Any]:
    made = await demo.ask(
        """mutation ($input: CreateBillingMeterInput!) {
            createBillingMeter(input: $input) { ... on CreateBillingMeterSuccess { billingMeter { id } } }
        }""",
        input={"workspaceId": workspace, "externalMeterId": meter} | values,
    )
    meter_made: dict[str, Any] = made["createBillingMeter"]["billingMeter"]
    return meter_made


async def refills_of(demo: Demo, workspace: str, meter: str) -> list[str]:
    """Return the amounts of the meter's refills; its total is what they add up to."""
    data = await demo.ask(
        """query ($workspace: String!, $meter: String!) {
            billingMeter(workspaceId: $workspace, externalMeterId: $meter) {
                totalCredits ledger(first: 100) { nodes { kind amount } }
            }
        }""",
        workspace=workspace,
        meter=meter,
    )
    found = data["billingMeter"]
    amounts = [each["amount"] for each in found["ledger"]["nodes"] if each["kind"] == "REFILL"]
    assert int(found["totalCredits"]) == sum(map(int, amounts))
    return amounts
