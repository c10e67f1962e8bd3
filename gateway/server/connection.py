"""The connections of clients: how many there are, those that do not read their answers, and what is reported of them.

uvicorn waits for ever for a client that does not read.
"""

from dataclasses import replace
from functools import cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.http.messages import REST_PATHS
from gateway.server.serving import max_connections
from gateway.settings import Settings
from gateway.telemetry.requests import OBSERVED, REFUSED, Repeats, request_id

#: The connections whose clients do not read as fast as they are answered, the one first that has not for longest.
_UNREAD: "dict[Connection, None]" = {}


#: The headers that say how long an answer is or what becomes of its connection, besides its length.
_OF_CONNECTION = frozenset({b"transfer-encoding", b"connection"})


@cache
def _settings() -> Settings:
    # The serving processes read the environment for themselves.
    settings = Settings.read()
    return replace(settings, max_connections=max_connections(settings))


#: Of what is longer no copy is made to join it with the head.
_LONG = 64 * 1024

#: What no header's value may have.
_CONTROLS = bytes([*range(9), *range(10, 32), 127])


class Answer:
    """The answer to one request: where it is whole, its head goes out with its body, in one packet.

    Until the first part of the body is there, the head is kept. uvicorn writes all other answers; it looks through
    every header by two expressions, and writes the head alone.
    """

    __slots__ = ("_cycle", "_start")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._start: Any = None

    async def send(self, message: Any) -> None:
        """Take a message of the application."""
        if message["type"] == "http.response.start" and self._start is None:
            self._start = message
            return
        cycle, start, self._start = self._cycle, self._start, None
        if start is not None:
            if cycle.flow.write_paused and not cycle.disconnected:
                await cycle.flow.drain()
            if self._write(start, message):
                return
            await cycle.send(start)
        await cycle.send(message)

    def _write(self, start: Any, message: Any) -> bool:
        """Write a whole answer, and return whether it was one."""
        cycle, body = self._cycle, message.get("body", b"")
        headers = [*cycle.default_headers, *start["headers"]]
        values = b"".join([value for _, value in headers])
        is_whole = (
            message["type"] == "http.response.body"
            and (b"content-length", b"%d" % len(body)) in headers
            and not message.get("more_body", False)
            and cycle.scope["method"] != "HEAD"
            and _OF_CONNECTION.isdisjoint([name for name, _ in headers])
            and len(values.translate(None, _CONTROLS)) == len(values)
        )
        if not is_whole or cycle.disconnected or cycle.response_started:
            return False
        lines = [b"%s: %s\r\n" % header for header in headers]
        end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        head = b"".join([STATUS_LINE[start["status"]], *lines, end])
        if len(body) <= _LONG:
            cycle.transport.write(head + body)
        else:
            cycle.transport.write(head)
            cycle.transport.write(body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True


class Connection(HttpToolsProtocol):
    """One connection, which is closed when its client does not read the answers, or another one needs its place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = _settings()
        self._unread: Any = None
        self._repeats = Repeats()
        #: The request that is being answered; uvicorn itself knows the last one that has come.
        self._running: Any = None

    def _close_longest_idle(self) -> bool:
        """Close the connection that has waited longest for a next request; return whether there was one."""
        idle = [each for each in self.connections if isinstance(each, Connection) and each.timeout_keep_alive_task]
        if not idle:
            return False
        min(idle, key=Connection._idle_until).timeout_keep_alive_handler()
        return True

    def _idle_until(self) -> float:
        return self.timeout_keep_alive_task.when() if self.timeout_keep_alive_task is not None else 0

    def pause_writing(self) -> None:
        """Give the client some time to read, and what is unread of all clients no more memory than it may have."""
        super().pause_writing()
        self._abort_soon()
        _UNREAD[self] = None
        unread = {each: each.transport.get_write_buffer_size() for each in _UNREAD}
        excess = sum(unread.values()) - self._limits.max_unread_bytes
        for each, size in unread.items():
            # One answer alone is always sent, however large the settings let it be.
            if excess <= 0 or each is self:
                break
            excess -= size
            each._abort()  # noqa: SLF001  # It is another one of this class.

    def resume_writing(self) -> None:
        """Go on, as it reads."""
        self._read_on()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close the idle connection, also when the client has not read all of the last answer."""
        self._unset_keepalive_if_required()
        super().timeout_keep_alive_handler()
        self._abort_soon()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, lambda scope, receive, _send: app(scope, receive, Answer(cycle).send))

    def _abort_soon(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(self._limits.answer_seconds, self._abort)

    def _abort(self) -> None:
        if self.transport.get_write_buffer_size():
            self._report("ANSWER_UNREAD", of=self._running)
        _UNREAD.pop(self, None)
        self.transport.abort()

    def _read_on(self) -> None:
        _UNREAD.pop(self, None)
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _is_under_way(self) -> bool:
        cycle: Any = self.cycle  # Until the first request, there is none.
        return cycle is not None and not cycle.response_complete

    def _report(self, reason: str, *, of: Any = None, is_answered: bool = False) -> str:
        """Report a refusal, by the id of the request that it ends, or else of the head that is read; return the id."""
        id_ = self._id_of(of)
        report = self.app_state.get(REFUSED)
        if report is not None:
            report(reason, request_id=id_, url=self._url(), is_answered=is_answered)
        return id_

    def _id_of(self, cycle: Any) -> str:
        """Return the id that the application gave a request, or, where it has not, one for the head that is read."""
        observed = cycle.scope.get(OBSERVED) if cycle is not None else None
        if observed is not None:
            return str(observed.request_id)
        return request_id(dict(self.headers or ()).get(b"x-request-id"))

    def _url(self) -> str:
        return getattr(self, "url", b"").decode("latin-1")  # Before the first request, there is none.

    def _is_rest(self) -> bool:
        return f"{self._url().partition('?')[0]}/".startswith(REST_PATHS)
