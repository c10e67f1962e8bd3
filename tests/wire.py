"""Raw HTTP over a socket: an application served by our protocol, and bytes sent to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

from tests.servers import free_port


@asynccontextmanager
async def served(app: ASGIApp, *, lifespan: Literal["on", "off"] = "off", idle_seconds: int = 5) -> AsyncIterator[int]:
    """Serve the application by our protocol, and return the port."""
    async with running_server(app, lifespan=lifespan, idle_seconds=idle_seconds) as running:
        yield running.config.port


@asynccontextmanager
async def running_server(
    app: ASGIApp, *, lifespan: Literal["on", "off"] = "off", idle_seconds: int = 5
) -> AsyncIterator[uvicorn.Server]:
    """Serve the application by our protocol on a free port, and return the server."""
    config = uvicorn.Config(
        app,
        port=free_port(),
        http="gateway.server.protocol:Protocol",
        ws="none",
        lifespan=lifespan,
        timeout_keep_alive=idle_seconds,
        # The tests see what it logs.
        log_config=None,
        log_level="warning",
    )
    running = uvicorn.Server(config)
    serving = asyncio.create_task(running.serve())
    while not running.started:  # noqa: ASYNC110  # It gives no sign.
        await asyncio.sleep(0.01)
    try:
        yield running
    finally:
        running.should_exit = True
        await serving


async def sent(port: int, *parts: bytes) -> bytes:
    """Send the parts, a moment apart, and return all that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(30):
        for number, part in enumerate(parts):
            if number:
                await asyncio.sleep(0.1)
            writer.write(part)
            await writer.drain()
        answer = await reader.read()
    writer.close()
    return answer
