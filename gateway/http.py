"""What both faces have of HTTP: reading a body, the type of an answer, and telling what is wrong with a request."""

import re
from functools import lru_cache
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from resolvers.values import parse_json

JSON = "application/json"
GRAPHQL_RESPONSE = "application/graphql-response+json"

#: Where the paths of the REST operations and of their description begin; everything else speaks GraphQL.
REST_PATHS = ("/api/", "/v1/", "/openapi.json/")

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


def problem_response(request: Request, problem: HTTPProblem) -> Response:
    """Answer a problem in the form of the face that the request is for."""
    body: dict[str, Any]
    media_type, headers = JSON, problem.headers
    if f"{request.scope['path']}/".startswith(REST_PATHS):
        body = {"error": {"code": problem.status, "message": problem.message}}
    else:
        body = {"errors": [{"message": problem.message, "extensions": problem.extensions}]}
        media_type = graphql_media_type(request) or JSON
        # A query by GET that is refused now may be answered a moment later.
        headers = {"cache-control": "no-store"} | (headers or {})
    return Response(orjson.dumps(body), problem.status, headers, media_type=media_type)


def graphql_media_type(request: Request) -> str | None:
    """Return which of the two types of a GraphQL answer the client likes best; None: it takes neither."""
    return _liked_best(",".join(request.headers.getlist("accept")).lower() or "*/*")


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


async def read_json(request: Request, *, most_bytes: int) -> Any:
    """Return the JSON value that the body is. Raises `HTTPProblem` for anything else and for too large a body."""
    media_type, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    if media_type.strip() != JSON or charset not in {"", "charset=utf-8"}:
        message = f"The body must be {JSON} in UTF-8."
        raise HTTPProblem(415, message)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most_bytes:
                message = f"The body must have at most {most_bytes} bytes."
                raise HTTPProblem(413, message, code="LIMIT_EXCEEDED")
    except ClientDisconnect:
        # Nobody is there to be told.
        message = "The body ended early."
        raise HTTPProblem(400, message) from None
    return read_json_text(bytes(body), "The body")


def read_json_text(text: bytes | str, what: str) -> Any:
    """Return the JSON value of a text. Raises `HTTPProblem`."""
    try:
        return parse_json(text)
    except ValueError as error:
        message = f"{what} must be JSON in UTF-8: {error}"
        raise HTTPProblem(400, message) from None
