"""An HTTP proxy before several gateways, as simple as one may be: it asks who is ready, and never sends twice."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from tests.servers import Server

#: How often each gateway is asked whether it is ready.
INTERVAL_SECONDS = 0.1

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Balancer:
    """Passes each request on to a gateway that is ready, in turn, by connections that it keeps.

    A request that was sent is not sent again, because a proxy does not know what it has done: so each that a gateway
    drops is a failed one, which the client sees as a lost connection.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._kept: dict[Server, list[Streams]] = {server: [] for server in servers}
        self._turns = itertools.count()
        self._tasks: set[asyncio.Task[None] | None] = set()
        self._listener: asyncio.Server | None = None
        self.ready: set[Server] = set()
        #: How many requests each gateway was sent.
        self.sent: Counter[Server] = Counter()

    @property
    def port(self) -> int:
        assert self._listener is not None
        return int(self._listener.sockets[0].getsockname()[1])

    async def until_ready(self, *servers: Server) -> None:
        """Wait until just these gateways are known to be ready."""
        while self.ready != set(servers):  # noqa: ASYNC110  # The gateways are other processes.
            await asyncio.sleep(INTERVAL_SECONDS / 2)

    async def _watch(self, server: Server) -> None:
        while True:
            is_ready = False
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                try:
                    writer.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    is_ready = b" 200 " in await reader.readuntil(b"\r\n")
                finally:
                    writer.close()
            if is_ready:
                self.ready.add(server)
            else:
                self.ready.discard(server)
                for _, writer in self._kept[server]:
                    writer.close()
                self._kept[server].clear()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    request = await _message(reader)
                    answer = await self._ask(request)
                    writer.write(answer.replace(b"connection: close\r\n", b""))
                    await writer.drain()
        finally:
            self._tasks.discard(asyncio.current_task())
            writer.close()

    async def _ask(self, request: bytes) -> bytes:
        ready = [server for server in self._servers if server in self.ready]
        server = ready[next(self._turns) % len(ready)]
        self.sent[server] += 1
        kept = self._kept[server]
        # The newest one, whose end would be known: one that its gateway has closed is not used.
        while kept and kept[-1][0].at_eof():
            kept.pop()[1].close()
        reader, writer = kept.pop() if kept else await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(request)
            answer = await _message(reader)
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in answer.partition(b"\r\n\r\n")[0].lower() or server not in self.ready:
            writer.close()
        else:
            kept.append((reader, writer))
        return answer

    async def start(self) -> None:
        """Watch the gateways, which are all ready, and listen."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1")
        self._tasks |= {asyncio.create_task(self._watch(server)) for server in self._servers}
        await self.until_ready(*self._servers)

    async def stop(self) -> None:
        """End everything, and wait until it has ended."""
        assert self._listener is not None
        self._listener.close()
        tasks = [task for task in self._tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for kept in self._kept.values():
            for _, writer in kept:
                writer.close()
        await asyncio.sleep(0)


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Return a request or an answer as it was sent, with a body whose length its head names."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return head + await reader.readexactly(int(length))


@asynccontextmanager
async def balanced(*servers: Server) -> AsyncIterator[Balancer]:
    """Run a proxy before the gateways, which are all ready."""
    balancer = Balancer(servers)
    try:
        await balancer.start()
        yield balancer
    finally:
        await balancer.stop()
