"""A pooler before a PostgreSQL server, as PgBouncer is one: it gives its clients the server's sessions for a while."""

import asyncio
import itertools
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path

from sqlalchemy import make_url

_SSL_REQUEST, _CANCEL_REQUEST = 80877103, 80877102

#: What a client may set when it connects; PgBouncer refuses all else.
_PARAMETERS = {
    "user",
    "database",
    "client_encoding",
    "datestyle",
    "timezone",
    "standard_conforming_strings",
    "application_name",
}


class Mode(StrEnum):
    """For how long a client has a session."""

    SESSION = "until it disconnects"
    TRANSACTION = "until its transaction ends"


class Session:
    """A session of the server's, and what it was greeted with."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.greeting: list[tuple[bytes, bytes]] = []
        self.is_free = asyncio.Lock()

    async def ask(self, data: bytes, until: bytes = b"Z") -> list[tuple[bytes, bytes]]:
        """Send messages and return the answers, up to one of these kinds; by default that the session is ready."""
        self.writer.write(data)
        answers: list[tuple[bytes, bytes]] = []
        while not answers or answers[-1][0] not in until:
            answers.append(await message(self.reader))
        return answers


class Pooler:
    """Listens on a port; by transaction, all clients share one session, as PgBouncer's do that are not busy."""

    def __init__(self, server: Path, mode: Mode) -> None:
        self._server = server
        self._mode = mode
        self._shared: Session | None = None
        self._opening = asyncio.Lock()
        self._clients = itertools.count(1)
        self._sessions: list[Session] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._listener: asyncio.Server | None = None

    def url(self, url: str) -> str:
        """Return the URL by which a database of the server is reached through the pooler."""
        assert self._listener is not None
        port = self._listener.sockets[0].getsockname()[1]
        through = make_url(url).set(host="127.0.0.1", port=port, query={})
        return through.render_as_string(hide_password=False)

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1")

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for session in self._sessions:
            session.writer.transport.abort()
        for writer in self._writers:
            writer.transport.abort()
        await self._listener.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            startup = await self._startup(reader, writer)
            if startup is None:
                return
            session = await self._session(startup)
            key = struct.pack("!ii", next(self._clients), 1)
            for kind, body in session.greeting:
                writer.write(framed(kind, key if kind == b"K" else body))
            while await self._transaction(session, reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # The client or the server is gone.
        finally:
            writer.close()

    async def _startup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
        """Return the client's first message, unless it is refused."""
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            rest = await reader.readexactly(length - 8)
            if code == _CANCEL_REQUEST:
                return None
            if code != _SSL_REQUEST:
                break
            writer.write(b"N")
        names = {name.decode().lower() for name in rest.split(b"\0")[:-2:2]}
        if unknown := names - _PARAMETERS:
            refusal = f"SFATAL\0C08P01\0Munsupported startup parameter: {min(unknown)}\0\0"
            writer.write(framed(b"E", refusal.encode()))
            return None
        return struct.pack("!ii", length, code) + rest

    async def _session(self, startup: bytes) -> Session:
        async with self._opening:
            if self._shared is not None:
                return self._shared
            session = Session(*await asyncio.open_unix_connection(str(self._server)))
            self._sessions.append(session)
            session.greeting = await session.ask(startup)
            if self._mode is Mode.TRANSACTION:
                self._shared = session
            return session

    async def _transaction(self, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass a transaction on; return whether there may be another one."""
        request = await self._request(reader)
        async with session.is_free:
            while request is not None:
                answers = await session.ask(*request)
                writer.write(b"".join(framed(*answer) for answer in answers))
                if answers[-1] == (b"Z", b"I"):
                    return True
                request = await self._request(reader)
        return False

    async def _request(self, reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
        """Return messages up to one that is answered, and what its answer ends with; None: the client goes."""
        data = b""
        while True:
            kind, body = await message(reader)
            if kind == b"X":
                return None
            data += framed(kind, body)
            if kind in {b"Q", b"S"}:
                return data, b"Z"
            if kind == b"H":
                return data, b"TnE"  # What a statement returns, or its error.


async def message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind = await reader.readexactly(1)
    (length,) = struct.unpack("!i", await reader.readexactly(4))
    return kind, await reader.readexactly(length - 4)


def framed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


@asynccontextmanager
async def pooled(server: Path, mode: Mode) -> AsyncIterator[Pooler]:
    """Run a pooler before the server that listens on this socket."""
    pooler = Pooler(server, mode)
    await pooler.start()
    try:
        yield pooler
    finally:
        await pooler.stop()
