"""The gate before the application: how many requests are in flight, how long each may take, and what every answer says.

Both are plain ASGI and know nothing of what they stand before. What is refused before there is a request, because its
head or body does not come to an end, is `gateway/server/protocol.py`'s matter.
"""

import asyncio
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.messages import send_problem
from gateway.http.rest import problem_of
from gateway.settings import Settings
from gateway.telemetry.requests import is_answered
from resolvers.errors import Unavailable
from storage.engine.database import Outcome

_log = logging.getLogger(__name__)

#: What watches the gateway is answered however much else is asked.
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})

#: What every answer says, where it says nothing else of it.
SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))

#: What an answer over TLS says besides: for a year, nothing is to be asked without it.
_TRANSPORT_SECURITY = (b"strict-transport-security", b"max-age=31536000")


class Gate:
    """Refuses requests beyond the most that may be in flight, and ends what takes too long.

    One timer looks after all of them: a timer for each would cost more than all else here.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._most = settings.max_in_flight
        self._seconds = settings.request_seconds
        #: The tasks of the requests in flight, the oldest first, and when each began.
        self._begun: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with the status 503."""
        task = asyncio.current_task()
        if scope["type"] != "http" or scope["path"] in PROBES or task is None:
            await self._app(scope, receive, send)
            return
        if len(self._begun) >= self._most:
            await _refuse(scope, send, Outcome.NOT_WRITTEN)
            return
        self._begun[task] = time.monotonic()
        if self._timer is None:
            self._look_again()
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if is_answered(scope):
                raise
            # Another may have cancelled it as well: the server does, when it stops.
            is_overdue = task in self._overdue and task.uncancel() == 0
            if is_overdue:
                _log.warning("%s %s was ended after %s seconds", scope["method"], scope["path"], self._seconds)
            # A write under way is finished or rolled back by the database's own task, and nobody waits for which.
            is_read = scope["method"] in {"GET", "HEAD"}
            await _refuse(scope, send, Outcome.NOT_WRITTEN if is_read else Outcome.UNKNOWN)
            if not is_overdue:
                raise
        finally:
            del self._begun[task]
            self._overdue.discard(task)

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(min(1, self._seconds / 4), self._end_overdue)

    def _end_overdue(self) -> None:
        self._timer = None
        latest = time.monotonic() - self._seconds
        for task, begun in self._begun.items():
            if begun > latest:
                break
            if task not in self._overdue:
                self._overdue.add(task)
                task.cancel()
        if self._begun:
            self._look_again()


async def _refuse(scope: Scope, send: Send, outcome: Outcome) -> None:
    await send_problem(scope, send, problem_of(Unavailable(outcome)))


class SafeAnswers:
    """Adds to every answer the headers that keep browsers from misusing it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its answer back with the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [*SECURITY_HEADERS, _TRANSPORT_SECURITY] if scope["scheme"] == "https" else SECURITY_HEADERS
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self._app(scope, receive, send_safely)
