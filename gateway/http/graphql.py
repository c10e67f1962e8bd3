"""The GraphQL endpoint: GraphQL over HTTP, and nothing of the domain.

The key is checked before anything of the request is read. A request that is no GraphQL request is answered by a status
of 400 to 499; one that is, by 200, and under `application/graphql-response+json` by 400 when it could not be run.

It speaks ASGI itself: routes, a request object and a response object cost a third of what a small query does.
"""

from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

from gateway.http.auth import authenticate
from gateway.http.messages import (
    GRAPHQL_RESPONSE,
    JSON,
    HTTPProblem,
    graphql_media_type,
    header,
    read_json,
    read_json_text,
    send_answer,
)
from gateway.http.trusted_documents import DocumentRefused, TrustedDocuments, persisted_id
from gateway.telemetry.requests import note_errors
from resolvers.observation import current
from schema.engine.documents import Document
from schema.engine.engine import Answer, GraphQLRequest, OperationNotAllowed
from schema.engine.limits.room import Room
from schema.root import engine
from storage.engine.turns import next_turn

if TYPE_CHECKING:
    from gateway.services import Services

#: The fields of a request and what each must be, where it is given.
_FIELDS: dict[str, tuple[type, str]] = {
    "query": (str, "a string"),
    "documentId": (str, "a string"),
    "variables": (dict, "an object"),
    "extensions": (dict, "an object"),
    "operationName": (str, "a string"),
}

#: Before an answer that is longer than this is sent, others have a turn.
LONG_ANSWER_BYTES = 100_000

#: The methods that it answers, and those of them that read. HEAD is answered as GET is, without the body.
METHODS = ("GET", "HEAD", "POST")
_READING = ("GET", "HEAD")


class GraphQL:
    """The endpoint: an ASGI application. Raises what `gateway.app` answers by a status."""

    def __init__(self, documents: TrustedDocuments) -> None:
        self._documents = documents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GraphQL request."""
        services: Services = scope["app"].state.services
        method = scope["method"]
        _check_method(scope)
        actor = await authenticate(scope, services.api_keys)
        media_type = graphql_media_type(scope)
        if media_type is None:
            raise HTTPProblem(406, f"Answers are {GRAPHQL_RESPONSE} or {JSON}.")
        status_if_not_run = 400 if media_type == GRAPHQL_RESPONSE else 200
        is_read = method in _READING
        if is_read:
            fields = _from_query_string(scope)
        else:
            fields = await read_json(scope, receive, max_bytes=services.settings.max_body_bytes)
        _check(fields)
        observation = current.get()
        observation.ended("read")
        try:
            document = self._documents.asked_for(fields)
        except DocumentRefused as refused:
            raise HTTPProblem(status_if_not_run, refused.message, code=refused.code) from None
        request = GraphQLRequest(
            document,
            fields.get("variables"),
            fields.get("operationName") or None,
            self._documents.limits,
            shows_cost=(fields.get("extensions") or {}).get("cost") is True,
        )
        context = services.context(actor)
        room = Room()
        try:
            found = await engine.answer(request, context, room, only_queries=is_read)
            body = await _written(found, room)
        except OperationNotAllowed:
            raise HTTPProblem(405, "A mutation must be sent by POST.", headers={"allow": "POST"}) from None
        finally:
            room.leave()
        observation.ended("serialize")
        if len(body) > LONG_ANSWER_BYTES:
            # Writing it took long, and so do sending it and letting go of what it was made of.
            await next_turn()
        if "errors" in found.body:
            note_errors(found.body["errors"])
        status = 200 if found.is_executed else status_if_not_run
        headers = {"content-type": f"{media_type}; charset=utf-8"}
        if is_read:
            is_kept = isinstance(document, Document) and found.is_executed and "errors" not in found.body
            headers |= _validators(headers["content-type"], body) if is_kept else {"cache-control": "no-store"}
            if is_kept and _has_validator(scope, headers["etag"]):
                del headers["content-type"]
                status, body = 304, b""
        await send_answer(send, status, headers, body)


def _check_method(scope: Scope) -> None:
    """Raise `HTTPProblem` for a method that is not answered, and for a GET that begins a WebSocket."""
    if scope["method"] not in METHODS:
        raise HTTPProblem(405, "Method Not Allowed", headers={"allow": ", ".join(METHODS)})
    if scope["method"] == "GET" and "websocket" in ",".join(header(scope, b"upgrade")).lower():
        raise HTTPProblem(400, "WebSocket is not spoken here: send a query or a mutation by POST.")


async def _written(found: Answer, room: Room) -> bytes:
    """Return the answer in JSON; a large one in a round of the event loop of its own, as writing it may take long."""
    if room.is_taken:
        await next_turn()
    return orjson.dumps(found.body)


def _validators(content_type: str, body: bytes) -> dict[str, str]:
    """Return the headers that let a client keep the answer for its key, if it asks each time whether it still holds."""
    digest = blake2b(content_type.encode() + body, digest_size=16).hexdigest()
    return {"etag": f'"{digest}"', "cache-control": "private, no-cache", "vary": "Authorization, Accept"}


def _has_validator(scope: Scope, etag: str) -> bool:
    """Whether the client has kept this very answer."""
    kept = {tag.strip().removeprefix("W/") for tag in ",".join(header(scope, b"if-none-match")).split(",")}
    return not kept.isdisjoint({etag, "*"})


def _from_query_string(scope: Scope) -> dict[str, Any]:
    # A parameter without a value is left out: so do forms and URL templates write what they do not have.
    try:
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), errors="strict")
    except UnicodeDecodeError:
        raise HTTPProblem(400, "The query string must be percent-encoded UTF-8.") from None
    parameters: dict[str, Any] = dict(pairs)
    if len(parameters) < len(pairs):
        repeated = next(name for name in parameters if [each for each, _ in pairs].count(name) > 1)
        raise HTTPProblem(400, f"{repeated[:256]!r} must be given once.")
    for name in ("variables", "extensions"):
        if name in parameters:
            parameters[name] = read_json_text(parameters[name], name)
    return parameters


def _check(fields: Any) -> None:
    """Raise `HTTPProblem` for what is no GraphQL request: a document, by its text or its id, and what goes with it."""
    if not isinstance(fields, dict):
        raise HTTPProblem(400, "The body must be a JSON object with a query.")
    for name, value in fields.items():
        if value is not None and name in _FIELDS:
            kind, what = _FIELDS[name]
            if not isinstance(value, kind):
                raise HTTPProblem(400, f"{name} must be {what}.")
    if fields.get("query") is None:
        if fields.get("documentId") is None and persisted_id(fields) is None:
            raise HTTPProblem(400, "query must be a string.")
    elif fields.get("documentId") is not None:
        raise HTTPProblem(400, "A request has a query or a documentId, and not both.")
