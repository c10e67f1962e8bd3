"""The GraphQL endpoint: GraphQL over HTTP, and nothing of the domain.

The key is checked before anything of the request is read. A request that is no GraphQL request is answered by a status
of 400 to 499; one that is, by 200, and under `application/graphql-response+json` by 400 when it could not be run.
"""

from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.auth import authenticate
from resolvers.context import Context
from resolvers.values import parse_json
from schema.execution import Operation, OperationNotAllowed, answer

if TYPE_CHECKING:
    from gateway.services import Services

GRAPHQL_RESPONSE = "application/graphql-response+json"
JSON = "application/json"


class HTTPProblem(Exception):
    """A request that is answered by a status before it comes to GraphQL."""

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


async def graphql(request: Request) -> Response:
    """Answer one GraphQL request."""
    services: Services = request.app.state.services
    actor = await authenticate(request, services.api_keys)
    media_type = _answer_type(request.headers.get("accept"))
    # HEAD is answered as GET is, without the body.
    is_read = request.method in {"GET", "HEAD"}
    if is_read:
        operation = _from_query_string(request)
    else:
        operation = _from_body(await _body(request, services.settings.max_body_bytes))
    context = Context(actor, services.database, services.usage_writer, services.clock)
    try:
        found = await answer(operation, context, only_queries=is_read)
    except OperationNotAllowed:
        raise HTTPProblem(405, "A mutation must be sent by POST.", headers={"allow": "POST"}) from None
    try:
        body = orjson.dumps(found.body)
    except TypeError:
        # The objects lead to each other in circles, so a selection can be as deep as its text is long.
        raise HTTPProblem(400, "The answer would be nested too deeply.", code="LIMIT_EXCEEDED") from None
    status = 400 if media_type == GRAPHQL_RESPONSE and not found.is_executed else 200
    return Response(body, status, media_type=f"{media_type}; charset=utf-8")


def problem_response(_request: Request, problem: HTTPProblem) -> Response:
    """Answer a request that never came to GraphQL, in GraphQL's form all the same."""
    body = {"errors": [{"message": problem.message, "extensions": problem.extensions}]}
    return Response(orjson.dumps(body), problem.status, problem.headers, media_type=JSON)


def _answer_type(accept: str | None) -> str:
    """Return the media type to answer in: what the client names first of the two, else the older one."""
    if accept is None:
        return JSON
    for entry in accept.lower().split(","):
        media_range = entry.partition(";")[0].strip()
        if media_range == GRAPHQL_RESPONSE:
            return GRAPHQL_RESPONSE
        if media_range in {JSON, "application/*", "*/*"}:
            return JSON
    message = f"Answers are {GRAPHQL_RESPONSE} or {JSON}."
    raise HTTPProblem(406, message)


async def _body(request: Request, most_bytes: int) -> bytes:
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
    return bytes(body)


def _parse_json(text: bytes | str, what: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        message = f"{what} must be JSON in UTF-8: {error}"
        raise HTTPProblem(400, message) from None


def _from_body(body: bytes) -> Operation:
    request = _parse_json(body, "The body")
    if not isinstance(request, dict):
        message = "The body must be a JSON object with a query."
        raise HTTPProblem(400, message)
    return _operation(request)


def _from_query_string(request: Request) -> Operation:
    parameters: dict[str, Any] = dict(request.query_params)
    for name in ("variables", "extensions"):
        if parameters.get(name):
            parameters[name] = _parse_json(parameters[name], name)
    return _operation(parameters)


def _operation(request: dict[str, Any]) -> Operation:
    query = request.get("query")
    if not isinstance(query, str):
        message = "query must be a string."
        raise HTTPProblem(400, message)
    for name, kind, what in (
        ("variables", dict, "an object"),
        ("extensions", dict, "an object"),
        ("operationName", str, "a string"),
    ):
        if not isinstance(request.get(name), kind | None):
            message = f"{name} must be {what}."
            raise HTTPProblem(400, message)
    return Operation(query, request.get("variables"), request.get("operationName"))
