"""A TCP proxy before a PostgreSQL server, which cuts connections as a failing network does: abruptly, at any moment."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path

from sqlalchemy import make_url

#: How the message of a COMMIT looks; "READ COMMITTED" is another one's.
_COMMIT = b"COMMIT;"


class Cut(StrEnum):
    """The moments at which a connection is cut."""

    SOMEWHERE = "on any message, in either direction"
    BEFORE_COMMIT = "when COMMIT is sent, which does not arrive"
    AFTER_COMMIT = "when COMMIT has been passed on"
    BEFORE_ANSWER = "when COMMIT is answered, which does not arrive"


def socket_of(url: str) -> Path:
    """Return the socket that the PostgreSQL of a URL listens on."""
    return Path(str(make_url(url).query["host"])) / ".s.PGSQL.5432"


class Proxy:
    """Passes connections on to a server's socket, and cuts one in so many of their messages and of their commits.

    Rates are from 0, never, to 1, always.
    """

    def __init__(self, server: Path, *, seed: int) -> None:
        self._server = server
        self._random = random.Random(seed)  # noqa: S311  # So that a run can be repeated.
        self._connections: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._listener: asyncio.Server | None = None
        self.message_rate = 0.0
        self.commit_rate = 0.0
        #: How the next COMMIT is cut, and no other one.
        self.next_commit: Cut | None = None
        #: How many connections were cut, by the moment.
        self.cuts: Counter[Cut] = Counter()

    @property
    def port(self) -> int:
        assert self._listener is not None
        return int(self._listener.sockets[0].getsockname()[1])

    def url(self, url: str) -> str:
        """Return the URL by which a database of the server is reached through the proxy."""
        through = make_url(url).set(host="127.0.0.1", port=self.port, query={})
        return through.render_as_string(hide_password=False)

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._pass_on, "127.0.0.1")

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut_all()
        await self._listener.wait_closed()

    def cut_all(self) -> None:
        """Cut every connection there is."""
        for pair in list(self._connections):
            self._cut(pair)

    def _cut(self, pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        for writer in pair:
            # What was not sent yet is lost, as it is when a cable is pulled.
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(str(self._server))
        except OSError:
            # The server is down; the client sees it as it would from the server's own machine.
            writer.transport.abort()
            return
        pair = (writer, server_writer)
        self._connections.add(pair)
        is_committing = asyncio.Event()
        try:
            await asyncio.gather(
                self._requests(reader, server_writer, pair, is_committing),
                self._answers(server_reader, writer, pair, is_committing),
            )
        except OSError:
            pass  # One side is gone, and so the other one goes.
        finally:
            self._cut(pair)
            self._connections.discard(pair)

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        is_committing: asyncio.Event,
    ) -> None:
        while data := await reader.read(65_536):
            cut = None
            if _COMMIT in data and self.next_commit is not None:
                cut, self.next_commit = self.next_commit, None
            elif _COMMIT in data and self._random.random() < self.commit_rate:
                cut = self._random.choice([Cut.BEFORE_COMMIT, Cut.AFTER_COMMIT, Cut.BEFORE_ANSWER])
            elif self._random.random() < self.message_rate:
                cut = Cut.SOMEWHERE
            if cut in {Cut.SOMEWHERE, Cut.BEFORE_COMMIT}:
                self.cuts[cut] += 1
                break
            if cut is Cut.BEFORE_ANSWER:
                is_committing.set()
            writer.write(data)
            await writer.drain()
            if cut is Cut.AFTER_COMMIT:
                self.cuts[cut] += 1
                break
        self._cut(pair)

    async def _answers(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        is_committing: asyncio.Event,
    ) -> None:
        while data := await reader.read(65_536):
            if is_committing.is_set():
                self.cuts[Cut.BEFORE_ANSWER] += 1
                break
            if self._random.random() < self.message_rate:
                self.cuts[Cut.SOMEWHERE] += 1
                break
            writer.write(data)
            await writer.drain()
        self._cut(pair)


@asynccontextmanager
async def proxied(server: Path, *, seed: int) -> AsyncIterator[Proxy]:
    """Run a proxy before the server that listens on this socket."""
    proxy = Proxy(server, seed=seed)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
