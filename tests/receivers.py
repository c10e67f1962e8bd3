"""Receivers of webhooks: real servers on loopback that check each signature, and answer as a test says."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from standardwebhooks import Webhook

#: What a receiver does with an event: it answers a status, or the whole of what it writes; None: it never answers.
Behaviour = Callable[["Received"], int | bytes | None]

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass
class Received:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = orjson.loads(self.body)
        return event

    def is_signed_with(self, secret: str) -> bool:
        """Whether the specification's own library takes it."""
        Webhook(secret).verify(self.body, self.headers)
        return True


@dataclass
class Receiver:
    """What came to a server, by the path of its URL, and what each path does."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    in_flight: Counter[str] = field(default_factory=Counter)
    most_in_flight: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    is_open: bool = True
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def at(self, path: str) -> list[Received]:
        """Return what came to a path."""
        return [each for each in self.received if each.path == path]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what has come makes the condition hold."""
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(condition)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                received = await _read(reader)
                path = received.path
                self.in_flight[path] += 1
                self.most_in_flight[path] = max(self.most_in_flight[path], self.in_flight[path])
                async with self.changed:
                    self.received.append(received)
                    self.changed.notify_all()
                behaviour = self.behaviours.get(path)
                answer = OK if behaviour is None else behaviour(received)
                if answer is None:
                    # Until the other side has had enough of it.
                    await reader.read()
                    self.in_flight[path] -= 1
                    break
                is_whole = isinstance(answer, int)
                if isinstance(answer, int):
                    answer = f"HTTP/1.1 {answer} Status\r\ncontent-length: 0\r\n\r\n".encode()
                self.in_flight[path] -= 1
                writer.write(answer)
                await writer.drain()
                if not is_whole and answer is not OK:
                    break
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    line, *fields = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Received(line.split(" ")[1], headers, body)


@asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    """Receive while the body runs."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", port)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield receiver
    finally:
        server.close()
