"""Leaving without a request lost: a gateway that is asked to stop says so first, and serves until others know."""

import asyncio
import signal
from types import FrameType
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.gate import SafeAnswers


class Draining:
    """Stands before the application. From SIGTERM on, it is not ready, and goes on serving for so many seconds.

    Meanwhile each answer ends its connection, so that a client's next request opens another one, which what balances
    the load leads elsewhere. Then the server stops as it would have at once: it takes no connection any more and
    finishes what it has begun. A second SIGTERM, and SIGINT, end it without that wait.
    """

    def __init__(self, app: ASGIApp, *, seconds: int) -> None:
        self._app = app
        self._seconds = seconds
        self._is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, as far as it is not leaving."""
        if scope["type"] == "lifespan":
            self._listen()
        elif self._is_draining and scope["type"] == "http":
            send = _ending_connection(send)
            if scope["path"] == "/readyz":
                leaving = {"status": "unavailable", "reason": "The gateway is stopping."}
                await SafeAnswers(JSONResponse(leaving, 503))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _listen(self) -> None:
        # The server has set its own handler before it starts the application.
        stop: Any = signal.getsignal(signal.SIGTERM)
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._is_draining:
                stop(number, frame)
            self._is_draining = True
            loop.call_soon_threadsafe(loop.call_later, self._seconds, stop, number, frame)

        signal.signal(signal.SIGTERM, on_signal)


def _ending_connection(send: Send) -> Send:
    async def send_ending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return send_ending
