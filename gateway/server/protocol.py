"""The server's side of the limits: how large a request's head is, and how long it may take to come.

uvicorn waits for ever for a head or body that does not come to an end. The class here is its protocol on httptools,
with deadlines. They are armed only while something is incomplete, so that a request that arrives whole costs nothing.
"""

from itertools import chain
from typing import Any

import httptools

from gateway.server.connection import Connection
from gateway.server.flow import Flow
from gateway.server.heads import Refusal, origin_form, refusal_of
from gateway.server.refusals import refusal_answer, too_large_head, too_many_headers
from gateway.telemetry.requests import REFUSAL, REPEATS

#: A body may arrive in small chunks, each of which has a frame around it: this many bytes for one of the body.
_BYTES_FOR_ONE = 8

#: In how many chunks a body may arrive: each costs the time of some calls, however few bytes it has.
MAX_CHUNKS = 4096

#: How many requests of one connection may wait for the one that is being answered. What comes after them is not read.
MAX_PIPELINED = 16

#: How many bytes of such requests all connections of a process may hold.
MAX_HELD_BYTES = 32 * 1024 * 1024

#: An empty line ends each head.
_END_OF_HEAD = b"\r\n\r\n"

#: How much of a body is passed over after its answer: a connection that is closed earlier may take the answer with it.
MAX_IN_VAIN_BYTES = 64 * 1024 * 1024

#: How long, at most, what still comes is passed over after a refusal.
LINGER_SECONDS = 2

#: What a head has besides its method, its target and its headers: spaces, the version, the ends of lines.
_BYTES_OF_FRAME = len("  HTTP/1.1\r\n\r\n")

#: The connections that hold what is not parsed yet.
_HOLDING: "set[Protocol]" = set()


class Refused(Exception):
    """A head that is not read to its end."""


class Protocol(Connection):
    """One connection, which is closed when a request's head or body takes too long."""

    flow: Flow

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = self._new_parser()
        self._deadline: Any = None
        #: Whether a request's head, or then its body, is still to come.
        self._in_head = True
        self._in_body = False
        #: How many bytes of the request have come, and how many of them for nothing: it was answered already.
        self._received = 0
        self._in_vain = 0
        #: What has come while too many requests were waiting, and from where on it is still to be parsed.
        self._held = b""
        self._held_from = 0
        #: In how many chunks the body has come, and how many trailers after it.
        self._chunks = 0
        self._trailers = 0
        #: What the request asked to be upgraded to, which is ignored.
        self._upgrade: list[tuple[bytes, bytes]] = []
        #: Whether the last answer is given, and what still comes is passed over.
        self._lingers = False
        #: Whether what follows the requests that are under way was refused: they are answered, and nothing after them.
        self._is_over = False
        #: What the parser was not let read: why, and the message.
        self._refusal: Refusal | None = None

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        # What follows the last request of a connection is passed over. What version is served is decided here, so that
        # another one is named in the refusal.
        parser.set_dangerous_leniencies(lenient_data_after_close=True, lenient_version=True)
        return parser

    def connection_made(self, transport: Any) -> None:
        """Take the connection, or refuse it where there are too many."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        if len(self.connections) > self._limits.max_connections and not self._close_longest_idle():
            self._refuse("TOO_MANY_CONNECTIONS", "There are too many connections.")
        else:
            self._arm(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines, and what was asked in advance and nobody will read."""
        self._disarm()
        self._read_on()
        self.pipeline.clear()
        self._release()
        self._repeats.flush()
        if self._running is not None:
            self._running.disconnected = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, and hold what is incomplete against its limits."""
        if self._is_done():
            self._pass_over(len(data))
            return
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._held:
            self._held += data
        elif self.pipeline or data.count(_END_OF_HEAD) > MAX_PIPELINED:
            self._held = data
            self._parse_held()
        else:
            self._parse(data)
        if self._held and sum([len(each._held) for each in _HOLDING]) > MAX_HELD_BYTES:  # noqa: SLF001  # They are of this class.
            self._refuse("TOO_MANY_PIPELINED", "Too many requests are sent before those ahead of them are answered.")
        self._hold_against_limits()

    def _parse_held(self) -> None:
        """Parse as many requests of what is held as may wait."""
        data = self._held
        while self._held and len(self.pipeline) < MAX_PIPELINED:
            # No more than one head ends in each part.
            end = data.find(_END_OF_HEAD, self._held_from) + len(_END_OF_HEAD)
            part = data[self._held_from : end if end >= len(_END_OF_HEAD) else None]
            self._held_from += len(part)
            if self._held_from == len(data):
                self._release()
            self._parse(part)
        if self._held:
            _HOLDING.add(self)
            self.flow.is_held = True
            self.flow.pause_reading()
        elif not self.pipeline:
            self.flow.resume_reading()

    def _release(self) -> None:
        """Hold nothing any more."""
        self._held, self._held_from = b"", 0
        _HOLDING.discard(self)
        self.flow.is_held = False

    def _parse(self, data: bytes) -> None:
        self._received += len(data)
        # What is no body begins a head, also where the parser still passes over empty lines.
        self._in_head = not self._in_body
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    data = b""
                except httptools.HttpParserUpgrade as upgrade:
                    # The parser takes what follows the head for another protocol's. None is served, and so the upgrade
                    # is ignored (RFC 9110, section 7.8): a new parser, to which no request was the last one yet, gets
                    # the head again without it.
                    head = self._head_without_upgrade()
                    self.parser = self._new_parser()
                    self.parser.feed_data(head)
                    data = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._refuse(*(self._refusal or self._refusal_of(error)))

    def _head_without_upgrade(self) -> bytes:
        self._upgrade = [header for header in self.headers if header[0] == b"upgrade"]
        lines = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        return b"".join([b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version), *lines, b"\r\n"])

    def _refusal_of(self, error: httptools.HttpParserError) -> Refusal:
        if self.parser.get_method() == b"PRI":
            return "VERSION_NOT_SUPPORTED", "HTTP/2 is not served in clear text: the request line must end in HTTP/1.1."
        if isinstance(error, httptools.HttpParserCallbackError):
            return "MALFORMED", "The request's target cannot be read as a path and a query."
        return "MALFORMED", f"The request cannot be read as one of HTTP/1.1: {error}."

    def _hold_against_limits(self) -> None:
        if self._is_done():
            return
        if self._held or not (self._in_head or self._in_body) or self.transport.is_closing():
            self._disarm()
            return
        limits = self._limits
        if self._in_head:
            if self._received > limits.max_head_bytes:
                self._refuse(*too_large_head(limits))
            elif self._deadline is None:
                self._arm(limits.head_seconds)
            return
        if len(self.headers) + self._trailers > limits.max_headers:
            # Of a body in chunks there may be more of them after it.
            self._refuse(*too_many_headers(limits))
        elif self._received - self._in_vain > limits.max_head_bytes + _BYTES_FOR_ONE * limits.max_body_bytes:
            self._refuse("BODY_TOO_LARGE", f"The body must have at most {limits.max_body_bytes} bytes.")
        elif self._deadline is None:
            self._arm(limits.body_seconds)

    def on_message_begin(self) -> None:
        """Begin a head, of which at least one byte has come."""
        super().on_message_begin()
        scope: Any = self.scope
        scope[REPEATS] = self._repeats
        self._in_head = True
        self._received = self._received or 1

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, without the white space around its value (RFC 9110, section 5.5); a trailer is passed over."""
        if self._in_body:
            self._trailers += 1
            return
        name, value = name.lower(), value.strip(b" \t")
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin the request, unless its head is refused."""
        limits = self._limits
        if len(self.headers) > limits.max_headers:
            self._refusal = too_many_headers(limits)
            raise Refused
        # How much has come does not say so: a part of it may have come with the request before.
        size = len(self.parser.get_method()) + len(self.url) + _BYTES_OF_FRAME
        size += sum(map(len, chain.from_iterable(self.headers))) + 4 * len(self.headers)
        if size > limits.max_head_bytes:
            self._refusal = too_large_head(limits)
            raise Refused
        self._refusal = refusal_of(self.parser.get_http_version(), self.headers)
        if self._refusal is not None:
            raise Refused
        if not self.url.startswith(b"/") or b"#" in self.url:
            self.url = self._origin_form()
        if self.expect_100_continue and self.parser.get_http_version() == "1.0":
            # A client of HTTP/1.0 would take a 100 for its answer (RFC 9110, section 15.2).
            self.expect_100_continue = False
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._refusal = "MALFORMED", "CONNECT is not served: the gateway is no proxy."
                raise Refused
            return
        if self._upgrade:
            self.headers += self._upgrade
            self._upgrade = []
        # It raises for a URL that cannot be taken apart, which is no request then.
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        self._in_vain = self._chunks = self._trailers = 0
        self._disarm()

    def _origin_form(self) -> bytes:
        target = origin_form(self.parser.get_method(), self.url)
        if target is None:
            self._refusal = "MALFORMED", "The request's target must be a path, or the URL of one, and have no #."
            raise Refused
        return target

    def on_chunk_header(self) -> None:
        """Count a chunk, unless there are too many."""
        # The last one is empty.
        if self._chunks > MAX_CHUNKS:
            self._refusal = "BODY_TOO_LARGE", f"The body must come in at most {MAX_CHUNKS} chunks."
            raise Refused
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        """Hand on a part of the body, or count what nobody waits for."""
        if not self._is_under_way():
            self._pass_over(len(body))
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request; the next byte is of another one."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        # What comes next may not even be a head.
        self.url, self.headers = b"", []
        self._in_head = self._in_body = False
        self._received = 0

    def on_response_complete(self) -> None:
        """Go on to the next request, or close the connection when the client has read the answer."""
        # What the application has not read of the body would be kept for as long as the connection.
        self._running.body.clear()
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_soon()
            return
        if self._held:
            self._unset_keepalive_if_required()
            self._parse_held()
            self._hold_against_limits()
        elif self._in_head or self._in_body:
            # It has a deadline of its own.
            self._unset_keepalive_if_required()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._on_deadline)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if self.flow.read_paused and not self._in_vain:
            # It is the gateway that does not read what it is still to answer.
            self._arm(self._limits.body_seconds)
        elif self._received or self._in_body:
            what, seconds = (
                ("body", self._limits.body_seconds) if self._in_body else ("head", self._limits.head_seconds)
            )
            self._refuse(f"{what.upper()}_TOO_SLOW", f"The request's {what} took longer than {seconds} seconds.")
        else:
            self.transport.close()
            self._abort_soon()

    def _is_done(self) -> bool:
        """Whether what still comes is passed over."""
        return self._lingers or self._is_over

    def _refuse(self, reason: str, message: str) -> None:
        """Answer in the place of the application, unless it has begun to, report it, and close the connection."""
        if self._is_done():
            return
        self._disarm()
        if self.transport.is_closing():
            return
        self._release()
        is_under_way = self._is_under_way()
        waits = bool(self.pipeline) and self.pipeline[0][0] is self.cycle
        if is_under_way and (waits or not self._in_body):
            # It follows a request that is being answered, and is no part of that.
            self._report(reason)
            if waits and self._in_body:
                self.pipeline.popleft()
            self._is_over = True
            # The newest of those that wait is the last that is answered.
            last: Any = self.pipeline[0][0] if self.pipeline else self._running
            last.keep_alive = False
            # What is not read when the connection is closed takes the last answer with it.
            self.flow.resume_reading()
            return
        # It is the answer to the request whose body or head is read, where that is the next one to be answered.
        is_next = is_under_way and not self.cycle.response_started and not self.pipeline
        if is_next:
            # It is reported when the application is done with it, by the same id if it has not begun yet.
            scope: Any = self.cycle.scope
            scope[REFUSAL], id_ = reason, self._id_of(self.cycle)
            scope["headers"].append((b"x-request-id", id_.encode()))
            self._answer(reason, message, id_)
        elif not is_under_way and not self._in_body:
            self._answer(reason, message, self._report(reason, is_answered=True))
        else:
            self._report(reason, of=self.cycle)
        if is_under_way:
            # The application waits for a body that will not come.
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        if self._received:
            self._linger()
        else:
            self.transport.close()
        self._abort_soon()

    def _pass_over(self, size: int) -> None:
        self._in_vain += size
        if self._in_vain > MAX_IN_VAIN_BYTES and not self.transport.is_closing():
            if not self._is_done():
                self._report("BODY_TOO_LARGE", of=self.cycle)
            self.transport.close()
        self.flow.pace(size, self.loop)

    def _linger(self) -> None:
        """End what is answered, and pass over what still comes, for a moment.

        A connection that is closed before all has been read that has come takes the answer with it.
        """
        self._lingers = True
        self._in_vain = 0
        self.transport.write_eof()
        self.flow.resume_reading()
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _answer(self, reason: str, message: str, id_: str) -> None:
        self.transport.write(refusal_answer(reason, message, id_, is_rest=self._is_rest()))
