"""The top-level errors: faults of the request with their code, and bugs, of which only a request id is answered."""

import logging
import re
from typing import Any

from graphql import ArgumentNode, DocumentNode, GraphQLError, GraphQLSyntaxError, ObjectFieldNode, Visitor, visit

from resolvers.errors import Fault, InvalidInput, Unavailable
from storage.engine.database import DatabaseUnavailable, Outcome
from storage.engine.failures import outages

_log = logging.getLogger(__name__)

#: The longest message, in characters: requests bring names and values of any length, which messages repeat.
MAX_MESSAGE_LENGTH = 300

#: What graphql-core, which is written in Python, calls null and the booleans; or a quoted text, which stays as it is.
_PYTHON_WORD = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\b(?:None|True|False)\b""")
_PYTHON_ERROR = re.compile(r", but encountered error '.*?'(?=; found: )")
_JSON_WORDS = {"None": "null", "True": "true", "False": "false"}


def of_document(error: GraphQLError, document: DocumentNode | None = None) -> dict[str, Any]:
    """Return what is wrong with a document: its syntax, a limit, a literal that a scalar refused, or a rule of it.

    `document`: the document, if it could be parsed.
    """
    if isinstance(error, GraphQLSyntaxError):
        return _shown(error, error.message, code="GRAPHQL_PARSE_FAILED")
    if document is not None and is_of_scalar(error):
        # The scalar's error names the rule; which argument breaks it is named here.
        return _shown(error, f"{_argument_of(error, document)}: {error.message}", code="BAD_USER_INPUT")
    code = "GRAPHQL_VALIDATION_FAILED"
    return _shown(error, _in_json_words(error.message), code=_code_of(error, code))


def is_of_scalar(error: GraphQLError) -> bool:
    """Whether a scalar has refused a literal. The message does not name the argument."""
    return error.extensions is not None and error.extensions.get("code") == "BAD_USER_INPUT"


def of_choice(operation_name: str | None) -> dict[str, Any]:
    """Return that the document has no operation of this name, or several and none is named."""
    message = (
        "The document has not exactly one operation: operationName must name one."
        if operation_name is None
        else f"The document has no operation {operation_name!r}."
    )
    return {"message": shortened(message), "extensions": {"code": "BAD_USER_INPUT"}}


def of_variables(error: GraphQLError) -> dict[str, Any]:
    """Return why an operation is not run: a variable's value, which the message names, a limit, or the key.

    Of a value in a list, such as a batch, the path to it is an extension.
    """
    extensions = error.extensions or {}
    place = {"path": extensions["path"]} if "path" in extensions else {}
    return _shown(error, _in_json_words(error.message), code=_code_of(error, "BAD_USER_INPUT"), **place)


def of_field(error: GraphQLError, *, request_id: str, is_mutation: bool) -> dict[str, Any]:
    """Return what went wrong in a field.

    Below a mutation's field nothing is known to be unwritten: what is read there is read after the commit. A bug is
    logged with its traceback under the request's id, and answered by that id alone.
    """
    shown = _of_field(error, request_id, is_mutation=is_mutation)
    # The functions that it passed through hold it, as its traceback holds them: the request would stay in memory.
    for raised in (error, error.original_error):
        if raised is not None:
            raised.with_traceback(None)
    return shown


def of_rest(count: int, *, code: str) -> dict[str, Any]:
    """Return that there are as many errors more of fields, which are not listed; the code is the last one's."""
    return {"message": f"There are {count} more errors, which are not listed.", "extensions": {"code": code}}


def _of_field(error: GraphQLError, request_id: str, *, is_mutation: bool) -> dict[str, Any]:
    cause = error.original_error
    if isinstance(cause, DatabaseUnavailable):
        outages.log(cause)
        is_of_answer = is_mutation and len(error.path or ()) > 1
        cause = Unavailable(Outcome.UNKNOWN if is_of_answer else cause.outcome)
    if isinstance(cause, Unavailable):
        return _shown(error, cause.message, code=cause.code, outcome=cause.outcome.value)
    if isinstance(cause, Fault):
        return _shown(error, cause.message, code=cause.code)
    if isinstance(cause, InvalidInput) or _is_of_arguments(error):
        # A query has no union to return it in.
        message = cause.message if isinstance(cause, InvalidInput) else _in_json_words(error.message)
        return _shown(error, message, code="BAD_USER_INPUT")
    _log.error("Request %s failed", request_id, exc_info=cause or error)
    return _shown(error, "Internal server error.", code="INTERNAL_SERVER_ERROR", requestId=request_id)


def _in_json_words(message: str) -> str:
    """Return graphql-core's message with the words of JSON for values, and without those of an error of Python's.

    Of a long one only the beginning, which is all that is shown: the patterns take long where a name repeats them.
    """
    message = _PYTHON_ERROR.sub("", message[: 4 * MAX_MESSAGE_LENGTH])
    return _PYTHON_WORD.sub(lambda found: _JSON_WORDS.get(found[0], found[0]), message)


def _is_of_arguments(error: GraphQLError) -> bool:
    """Whether graphql-core itself refused the field's arguments, as when a variable that it needs was not given."""
    cause = error.original_error or error
    return isinstance(cause, GraphQLError) and cause.original_error is None and cause.message.startswith("Argument ")


def _code_of(error: GraphQLError, usual: str) -> str:
    """Return the code that the error brings along, as one of a limit does, or the usual one of its kind."""
    return str((error.extensions or {}).get("code", usual))


def _shown(error: GraphQLError, message: str, **extensions: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {"message": shortened(message)}
    if error.locations is not None:
        shown["locations"] = [location.formatted for location in error.locations]
    if error.path is not None:
        shown["path"] = error.path
    shown["extensions"] = extensions
    return shown


def shortened(message: str) -> str:
    """Return the message on one line, or the beginning of one that is too long."""
    if len(message) <= MAX_MESSAGE_LENGTH and "\n" not in message:
        return message
    message = " ".join(message[: 2 * MAX_MESSAGE_LENGTH].split())
    return message if len(message) <= MAX_MESSAGE_LENGTH else f"{message[: MAX_MESSAGE_LENGTH - 1]}…"


def _argument_of(error: GraphQLError, document: DocumentNode) -> str:
    """Return the dotted name of the argument in which the error lies, like `input.amount`."""
    names: list[str] = []
    assert error.nodes is not None  # noqa: S101  # The scalars raise it with the literal's node.
    node = error.nodes[0]

    class Enclosing(Visitor):
        def enter(self, outer: object, *_: object) -> None:
            if not isinstance(outer, ArgumentNode | ObjectFieldNode) or outer.loc is None or node.loc is None:
                return
            if outer.loc.start <= node.loc.start and node.loc.end <= outer.loc.end:
                names.append(outer.name.value)

    visit(document, Enclosing())
    return ".".join(names)
