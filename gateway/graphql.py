"""The GraphQL endpoint: GraphQL over HTTP, and nothing of the domain.

The key is checked before anything of the request is read. A request that is no GraphQL request is answered by a status
of 400 to 499; one that is, by 200, and under `application/graphql-response+json` by 400 when it could not be run.
"""

from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.auth import authenticate
from gateway.http import GRAPHQL_RESPONSE, JSON, HTTPProblem, graphql_media_type, read_json, read_json_text
from resolvers.context import Context
from schema.execution import Operation, OperationNotAllowed, answer

if TYPE_CHECKING:
    from gateway.services import Services


async def graphql(request: Request) -> Response:
    """Answer one GraphQL request."""
    services: Services = request.app.state.services
    actor = await authenticate(request, services.api_keys)
    media_type = graphql_media_type(request)
    if media_type is None:
        raise HTTPProblem(406, f"Answers are {GRAPHQL_RESPONSE} or {JSON}.")
    # HEAD is answered as GET is, without the body.
    is_read = request.method in {"GET", "HEAD"}
    if is_read:
        operation = _from_query_string(request)
    else:
        operation = _from_body(await read_json(request, most_bytes=services.settings.max_body_bytes))
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


def _from_body(request: Any) -> Operation:
    if not isinstance(request, dict):
        message = "The body must be a JSON object with a query."
        raise HTTPProblem(400, message)
    return _operation(request)


def _from_query_string(request: Request) -> Operation:
    parameters: dict[str, Any] = dict(request.query_params)
    for name in ("variables", "extensions"):
        if parameters.get(name):
            parameters[name] = read_json_text(parameters[name], name)
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
