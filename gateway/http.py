"""What both faces have of HTTP: reading a body, and telling what is wrong with a request."""

from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from resolvers.values import parse_json

JSON = "application/json"

#: Where the paths of the REST operations and of their description begin; everything else speaks GraphQL.
REST_PATHS = ("/api/", "/v1/", "/openapi.json/")


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
    if f"{request.scope['path']}/".startswith(REST_PATHS):
        body = {"error": {"code": problem.status, "message": problem.message}}
    else:
        body = {"errors": [{"message": problem.message, "extensions": problem.extensions}]}
    return Response(orjson.dumps(body), problem.status, problem.headers, media_type=JSON)


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
