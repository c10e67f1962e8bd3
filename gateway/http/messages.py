"""What both faces have of HTTP: reading a body, the type of an answer, and saying what is wrong with a request."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from resolvers.observation import current
from resolvers.values import parse_json

JSON = "application/json"
GRAPHQL_RESPONSE = "application/graphql-response+json"

#: Where the paths of the REST operations and of their description begin; everything else speaks GraphQL.
REST_PATHS = ("/api/", "/v1/", "/openapi.json/")

#: The status whose answer has no body: the client has it already.
_NOT_MODIFIED = 304

#: How many characters of a header a message repeats.
_LONGEST_SHOWN = 64

#: How much a client likes a type: from 0, not at all, to 1.
_WEIGHT = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


class HTTPProblem(Exception):
    """A request that is answered by a status instead of what it asks for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "BAD_USER_INPUT",
        headers: dict[str, str] | None = None,
        **extensions: str,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.extensions = {"code": code} | extensions
        self.headers = headers


def header(scope: Scope, name: bytes) -> list[str]:
    """Return the values of a header, whose name is in lower case, one for each time that it was sent."""
    headers = scope["headers"]
    by_name = dict(headers)
    if len(by_name) == len(headers):
        return [by_name[name].decode("latin-1")] if name in by_name else []
    return [value.decode("latin-1") for each, value in headers if each == name]


async def send_answer(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Send a whole answer, with its length unless it is one that never has a body."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    if status != _NOT_MODIFIED:
        raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def send_problem(scope: Scope, send: Send, problem: HTTPProblem) -> None:
    """Answer a problem in the form of the face that the request is for."""
    current.get().outcome = problem.extensions["code"]
    body: dict[str, Any]
    media_type, headers = JSON, problem.headers or {}
    if f"{scope['path'].removeprefix(scope.get('root_path', ''))}/".startswith(REST_PATHS):
        body = {"error": {"code": problem.status, "message": problem.message}}
    else:
        body = {"errors": [{"message": problem.message, "extensions": problem.extensions}]}
        media_type = graphql_media_type(scope) or JSON
        # A query by GET that is refused now may be answered a moment later.
        headers = {"cache-control": "no-store"} | headers
    await send_answer(send, problem.status, headers | {"content-type": media_type}, orjson.dumps(body))


def graphql_media_type(scope: Scope) -> str | None:
    """Return which of the two types of a GraphQL answer the client likes best; None: it takes neither."""
    return _liked_best(",".join(header(scope, b"accept")).lower() or "*/*")


@lru_cache(maxsize=64)
def _liked_best(accept: str) -> str | None:
    weights: dict[str, float] = {}
    for entry in accept.split(","):
        media_range, *parameters = (part.strip() for part in entry.split(";"))
        weight = next(filter(None, map(_WEIGHT.fullmatch, parameters)), None)
        weights.setdefault(media_range, float(weight[1]) if weight else 1.0)

    def liking(media_type: str) -> float:
        # What is named says more than a pattern.
        return next((weights[name] for name in (media_type, "application/*", "*/*") if name in weights), 0.0)

    # Of two that are liked alike it is the one that is named first, and the older one where neither is named.
    named = [media_type for media_type in weights if media_type in {JSON, GRAPHQL_RESPONSE}]
    best = max([*named, JSON, GRAPHQL_RESPONSE], key=liking)
    return best if liking(best) > 0 else None


async def read_json(scope: Scope, receive: Receive, *, max_bytes: int) -> Any:
    """Return the JSON value that the body is. Raises `HTTPProblem` for anything else and for too large a body."""
    coding = header(scope, b"content-encoding")
    if coding and (coded := _codings(",".join(coding))):
        message = f"The body must be sent without a Content-Encoding, and has {coded}."
        raise HTTPProblem(415, message, headers={"accept-encoding": "identity"})
    if not _is_json(next(iter(header(scope, b"content-type")), "")):
        message = f"The body must be {JSON} in UTF-8."
        raise HTTPProblem(415, message)
    body = bytearray()
    has_more = True
    while has_more:
        part = await receive()
        if part["type"] == "http.disconnect":
            # Nobody is there to be answered.
            message = "The body ended early."
            raise HTTPProblem(400, message)
        body += part.get("body", b"")
        has_more = part.get("more_body", False)
        if len(body) > max_bytes:
            message = f"The body must have at most {max_bytes} bytes."
            raise HTTPProblem(413, message, code="LIMIT_EXCEEDED")
    return read_json_text(bytes(body), "The body")


def _codings(values: str) -> str:
    """Return the codings of a `Content-Encoding` that are any, by their names and shortened."""
    codings = [coding.strip() for coding in values.split(",")]
    return ", ".join(coding for coding in codings if coding.lower() not in {"", "identity"})[:_LONGEST_SHOWN]


@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    media_type, _, parameters = content_type.lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    return media_type.strip() == JSON and charset in {"", "charset=utf-8"}


def read_json_text(text: bytes | str, what: str) -> Any:
    """Return the JSON value of a text. Raises `HTTPProblem`."""
    try:
        return parse_json(text)
    except ValueError as error:
        message = f"{what} must be JSON in UTF-8: {error}"
        raise HTTPProblem(400, message) from None
