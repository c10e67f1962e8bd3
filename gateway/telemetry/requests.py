"""What operators learn of each request: its id, how it ended, and where its time went.

It stands around all else, so that what the gate refuses is also reported, counted, and has an id.
"""

import asyncio
import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resolvers.actor import Actor
from resolvers.observation import Observation, current

if TYPE_CHECKING:
    from gateway.telemetry.tracing import Tracing

#: A request's id that is taken over from a proxy: a UUID or up to 36 hexadecimal digits. No key looks like it.
_REQUEST_ID = re.compile(rb"[0-9a-fA-F-]{16,36}")

#: The maximum number of parts of a path that are reported.
_MAX_PARTS = 8

#: What is longer is not kept: callers ask for any path.
_LONGEST_KEPT_PATH = 200

#: Operations are named by callers, who may name one by anything.
_LONGEST_NAME = 64
_LIKE_A_KEY = re.compile(r"(sk|cst)_(live|test)", re.IGNORECASE)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

#: The statements of transactions, which are not counted.
_OF_TRANSACTIONS = ("BEGIN", "COMMIT", "ROLLBACK")

#: Of several errors the one that an operator must see first; after them, the first one.
_WORST = ("INTERNAL_SERVER_ERROR", "UNAVAILABLE")

#: What became of a request that was answered by a status alone.
_BY_STATUS = {401: "UNAUTHENTICATED", 403: "FORBIDDEN", 413: "LIMIT_EXCEEDED", 503: "UNAVAILABLE"}

#: The steps in the order in which they are reported. A group is waited for while a debit is executed, as
#: statements are.
_STEPS = ("auth", "read", "parse", "validate", "execute", "queue", "group", "sql", "serialize", "total")

#: Why the server itself refuses something, before the application has the whole request or after it has answered: the
#: status and the code that the client gets, if it can get an answer.
REASONS: dict[str, tuple[int, str]] = {
    "TOO_MANY_CONNECTIONS": (503, "UNAVAILABLE"),
    "TOO_MANY_PIPELINED": (503, "UNAVAILABLE"),
    "MALFORMED": (400, "BAD_USER_INPUT"),
    "CODING_NOT_SUPPORTED": (501, "BAD_USER_INPUT"),
    "VERSION_NOT_SUPPORTED": (505, "BAD_USER_INPUT"),
    "HEAD_TOO_LARGE": (431, "LIMIT_EXCEEDED"),
    "HEAD_TOO_SLOW": (408, "TIMEOUT"),
    "TOO_MANY_HEADERS": (431, "LIMIT_EXCEEDED"),
    "BODY_TOO_LARGE": (413, "LIMIT_EXCEEDED"),
    "BODY_TOO_SLOW": (408, "TIMEOUT"),
    "ANSWER_UNREAD": (408, "TIMEOUT"),
}

#: Where a request's scope has what is observed of it, for the server that it came from; and where that puts its reason
#: when it refuses the rest of it.
OBSERVED = "tollgate.request"
REFUSAL = "tollgate.refusal"

#: Where a request's scope has what counts the lines of its connection.
REPEATS = "tollgate.repeats"

#: How long, after the line of a request without a key, those that follow it on its connection have none of their own.
REPEAT_SECONDS = 10

#: Where the application's lifespan state has the function that takes what the server refuses.
REFUSED = "refused"

OK = "OK"
DISCONNECTED = "DISCONNECTED"
INTERNAL_SERVER_ERROR = "INTERNAL_SERVER_ERROR"

_MILLION = 1_000_000


class Request(Observation):
    """What became of one HTTP request."""

    method = ""
    path = ""
    """The path as it may be reported: see `redacted_path`."""
    status: int | None = None
    """None: nobody was there any more to be answered."""
    took_ns = 0
    trace_id: str | None = None
    refusal: str | None = None
    """Why the server itself has ended it: one of `REASONS`."""
    is_of_server = False
    """Whether the application never had it, or had answered it before."""
    repeats: "Repeats | None" = None
    """What counts the lines of its connection; None: each request has its line."""
    repeated = 1
    """How many requests its line stands for."""

    def name(self) -> str | None:
        """Return the operation's name as it may be reported."""
        if self.operation is None:
            return None
        return _redacted_name(self.operation) if len(self.operation) <= _LONGEST_NAME else "…"


class Repeats:
    """The lines of what one connection sends without a key: one at once, and then one for all that comes within a time.

    So nobody without a key fills the log.
    """

    def __init__(self) -> None:
        self._write: Callable[[Request], None] | None = None
        self._request: Request | None = None
        self._timer: asyncio.TimerHandle | None = None

    def holds(self, request: Request, write: Callable[[Request], None]) -> bool:
        """Return whether the request is held for a later line, which is written then; the first one is not."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REPEAT_SECONDS, self.flush)
            return False
        if self._request is not None:
            request.repeated += self._request.repeated
        self._request, self._write = request, write
        return True

    def flush(self) -> None:
        """Write the line of what is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._request is not None and self._write is not None:
            request, self._request = self._request, None
            self._write(request)


class Observed:
    """The application, whose every request is reported to the listeners when it is answered."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        words: frozenset[str],
        listeners: Sequence[Callable[[Request], None]],
        tracing: "Tracing | None" = None,
    ) -> None:
        self.in_flight = 0
        """How many requests are being answered."""
        self._app = app
        self._words = words
        self._listeners = listeners
        self._tracing = tracing
        self._refused_connections = Repeats()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and report it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter_ns()
        headers = dict(scope["headers"])
        request = Request()
        request.request_id = request_id(headers.get(b"x-request-id"))
        request.method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        request.path = redacted_path(scope["path"], self._words)
        request.repeats = scope.get(REPEATS)
        is_timed = headers.get(b"x-tollgate-timing", b"").lower() == b"on"
        span = self._tracing.begin(request, headers, began=began) if self._tracing is not None else None
        if is_timed or span is not None:
            request.steps, request.step_began = [], began

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                added = [(b"x-request-id", request.request_id.encode())]
                if is_timed and request.key_id is not None and not request.is_session:
                    added.append((b"server-timing", _server_timing(request, perf_counter_ns() - began)))
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        scope[OBSERVED] = request
        token = current.set(request)
        self.in_flight += 1
        try:
            await self._app(scope, receive, send_noted)
        except Exception:  # Written down whatever it is, and raised again: the server answers what nothing else has.
            request.status = request.status or 500
            request.outcome = INTERNAL_SERVER_ERROR
            raise
        finally:
            self.in_flight -= 1
            current.reset(token)
            request.took_ns = perf_counter_ns() - began
            request.refusal = scope.get(REFUSAL)
            if request.refusal is not None:
                # The application only saw the body end early.
                request.status, request.outcome = REASONS[request.refusal]
            request.outcome = request.outcome or _outcome_of_status(request.status)
            if self._tracing is not None and span is not None:
                self._tracing.end(span, request)
            self._notify(request)

    def refused(self, reason: str, *, request_id: str, url: str, is_answered: bool) -> None:
        """Report what the server itself has refused like a request; of its URL only the path."""
        request = Request()
        request.is_of_server = True
        request.request_id, request.refusal = request_id, reason
        request.path = redacted_path(url.partition("?")[0], self._words)
        status, request.outcome = REASONS[reason]
        request.status = status if is_answered else None
        if reason == "TOO_MANY_CONNECTIONS":
            request.repeats = self._refused_connections
        self._notify(request)

    def _notify(self, request: Request) -> None:
        for report in self._listeners:
            report(request)


class Statements:
    """Counts the SQL statements of the process and of the request that each is run for."""

    def __init__(self) -> None:
        self.count = 0
        self._begun: dict[int, int] = {}

    def begun(self, connection: object, _cursor: object, statement: str, *_: object) -> None:
        """Hear that a statement is given to the driver."""
        if statement.startswith(_OF_TRANSACTIONS):
            return
        self.count += 1
        request = current.get()
        request.statements += 1
        if request.steps is not None:
            self._begun[id(connection)] = perf_counter_ns()

    def done(self, connection: object, *_: object) -> None:
        """Hear that it is done."""
        if self._begun:
            began = self._begun.pop(id(connection), None)
            if began is not None:
                current.get().sql_ns += perf_counter_ns() - began


def is_answered(scope: Scope) -> bool:
    """Whether the answer to an observed request has begun."""
    request: Request | None = scope.get(OBSERVED)
    return request is not None and request.status is not None


def note_actor(actor: Actor) -> None:
    """Note the key that asks, once it is known."""
    request = current.get()
    request.key_id = actor.key_id
    request.is_session = actor.customer_id is not None
    request.ended("auth")


def note_errors(errors: Sequence[dict[str, Any]]) -> None:
    """Note which of the errors of an answer matters most."""
    codes = [error["extensions"]["code"] for error in errors]
    current.get().outcome = next((code for code in _WORST if code in codes), codes[0])


def words_of(paths: Iterable[str]) -> frozenset[str]:
    """Return what the paths of routes are made of, their parameters aside."""
    return frozenset(part for path in paths for part in path.split("/") if "{" not in part)


def redacted_path(path: str, words: frozenset[str]) -> str:
    """Return the path by those of its parts that are such words; any other may be a secret, and is a `…`."""
    return _redacted_path(path, words) if len(path) <= _LONGEST_KEPT_PATH else _redacted_path.__wrapped__(path, words)


@lru_cache(maxsize=1_024)
def _redacted_path(path: str, words: frozenset[str]) -> str:
    parts = path.split("/")
    shown = [part if part in words else "…" for part in parts[:_MAX_PARTS]]
    return "/".join([*shown, *(["…"] if len(parts) > _MAX_PARTS else [])])


@lru_cache(maxsize=1_024)
def _redacted_name(name: str) -> str:
    return "…" if _LIKE_A_KEY.search(name) else name


def request_id(given: bytes | None) -> str:
    """Return the id that a proxy gave, where it is one, or else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    # It must differ from others, and may be guessed.
    return f"{random.getrandbits(64):016x}"


def _outcome_of_status(status: int | None) -> str:
    if status is None:
        return DISCONNECTED
    if status < 400:  # noqa: PLR2004  # HTTP's own classes.
        return OK
    return _BY_STATUS.get(status, "BAD_USER_INPUT" if status < 500 else INTERNAL_SERVER_ERROR)  # noqa: PLR2004  # HTTP's own classes.


def _server_timing(request: Request, took_ns: int) -> bytes:
    """Return the header of the steps, in milliseconds."""
    steps = {name: ended - began for name, began, ended in request.steps or ()}
    steps |= {"sql": request.sql_ns, "total": took_ns}
    parts = {name: f"{name};dur={steps[name] / _MILLION:.3f}" for name in _STEPS if name in steps}
    if request.document is not None and "parse" not in steps:
        parts["parse"] = 'parse;dur=0;desc="known"'
    parts["sql"] += f';desc="statements: {request.statements}"'
    return ", ".join(parts[name] for name in _STEPS if name in parts).encode()
