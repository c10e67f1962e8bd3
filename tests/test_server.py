"""The server's protocol: who does not read an answer is left behind, however the answers come about."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import server
from tests.servers import free_port


def answering(body: bytes) -> ASGIApp:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[int]:
    """Serve the application by our protocol, and return the port."""
    port = free_port()
    config = uvicorn.Config(app, port=port, http="gateway.server:Protocol", lifespan="off", log_level="warning")
    running = uvicorn.Server(config)
    serving = asyncio.create_task(running.serve())
    while not running.started:  # noqa: ASYNC110  # Nothing tells of it.
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        running.should_exit = True
        await serving


def ask_and_read_late(port: int, requests: int) -> int:
    """Ask without reading until the server has had enough, and return how much is there to be read then."""
    count = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * requests)
        time.sleep(2.5)
        with suppress(ConnectionError):
            while data := connection.recv(1_000_000):
                count += len(data)
    return count


async def test_who_does_not_read_an_answer_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    monkeypatch.setenv("TOLLGATE_ANSWER_SECONDS", "1")
    server._settings.cache_clear()
    try:
        # One that is large, and many that were asked for in advance; both are more than the machine keeps.
        for size, requests in ((60_000_000, 1), (60_000, 1_000)):
            with subtests.test(size=size):
                async with served(answering(b"x" * size)) as port:
                    read = await asyncio.to_thread(ask_and_read_late, port, requests)
                    assert 0 < read < size * requests
                # What was still to be answered is no bug.
                assert caplog.records == []
    finally:
        server._settings.cache_clear()
