"""Gateways as processes of their own: started, asked, stopped and killed, as they are by those who run them."""

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import commands

#: The command, as it is installed beside the interpreter.
TOLLGATE = Path(sys.executable).with_name("tollgate")

#: The most that is waited for a server to be ready, or to end; far more than it takes on a slow machine.
PATIENCE_SECONDS = 120


#: What a client has for TLS, which no server here speaks: to read the authorities' certificates takes 70 ms.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class ConnectionLost(Exception):
    """The server went away before it answered; whether it has carried the request out is not known."""


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A `tollgate serve` on one port, which may be started again after it ended."""

    def __init__(self, database_url: str, folder: Path, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.settings = {"TOLLGATE_DATABASE_URL": database_url} | settings
        #: What it has written to standard error, in all its lives.
        self.log: list[str] = []
        self.process: asyncio.subprocess.Process | commands.Running | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def logged(self) -> str:
        return "".join(self.log)

    def client(self, **options: Any) -> httpx.AsyncClient:
        """Return a client of it, which is to be closed."""
        return httpx.AsyncClient(base_url=self.url, trust_env=False, verify=NO_TLS, **options)

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        environment = commands.environment(**self.settings)
        arguments = ("serve", "--port", str(self.port))
        if "TOLLGATE_WORKERS" in self.settings or not all(name.startswith("TOLLGATE_") for name in self.settings):
            # Workers import the program that they were started by, and other settings may be for its start.
            self.process = await asyncio.create_subprocess_exec(
                TOLLGATE,
                *arguments,
                env=environment,
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            written = self.process.stderr
        else:
            self.process, written = await commands.start(*arguments, folder=self.folder, environment=environment)
        assert written is not None
        # From the first line on it must not be held up by a full pipe.
        self._reading = asyncio.create_task(self._read(written))
        await self.ready()

    async def ready(self) -> None:
        """Wait until it says that it is ready."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                async with self.client() as client:
                    while not await self._is_ready(client):  # noqa: ASYNC110  # It is another process.
                        await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"The server is not ready after {PATIENCE_SECONDS} seconds:\n{self.logged}")

    async def _is_ready(self, client: httpx.AsyncClient) -> bool:
        if self.process is None or self.process.returncode is not None:
            pytest.fail(f"The server has ended:\n{self.logged}")
        try:
            return (await client.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    def memory(self) -> int:
        """Return how many bytes of the machine's memory the process has."""
        assert self.process is not None
        pages = Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    async def stop(self) -> int | None:
        """Ask it to stop, and return its exit status: it must end by itself."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop its process while the body runs, whatever it was about to do, and let it go on then."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """End it at once, as a loss of power would."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
        await self.ended()

    async def ended(self) -> int | None:
        """Wait until the process has ended, and return its exit status."""
        if self.process is None:
            return None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                status = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            pytest.fail(f"The server did not end within {PATIENCE_SECONDS} seconds:\n{self.logged}")
        if self._reading is not None:
            await self._reading
            self._reading = None
            print(self.logged)  # noqa: T201  # pytest shows it where the test fails.
        return status

    async def _read(self, written: asyncio.StreamReader) -> None:
        while line := await written.readline():
            self.log.append(line.decode())


@asynccontextmanager
async def serving(database_url: str, folder: Path, **settings: str) -> AsyncIterator[Server]:
    """Run a server on the database, as a process of its own."""
    server = Server(database_url, folder, **settings)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


class Connection:
    """One client of a server, which asks one thing after the other.

    It is written for its little cost: httpx takes as long for a request as the server does, on the same two cores.
    """

    def __init__(self, server: Server, key: str) -> None:
        self.server = server
        self.key = key
        self._head = (
            f"POST /graphql HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send an operation and return its body. Raises `ConnectionLost`."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self.server.port)
            reader, writer = self._streams
            writer.write(f"{self._head}content-length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            answer: dict[str, Any] = json.loads(await reader.readexactly(length))
            if "connection: close" in head:
                await self.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            await self.close()
            raise ConnectionLost from error
        return answer

    async def close(self) -> None:
        """Hang up; the next request connects again."""
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def connected(servers: Sequence[Server], key: str, *, clients: int) -> AsyncIterator[list[Connection]]:
    """Return as many clients, of each server in turn."""
    async with AsyncExitStack() as stack:
        connections = [Connection(servers[number % len(servers)], key) for number in range(clients)]
        for connection in connections:
            stack.push_async_callback(connection.close)
        yield connections
