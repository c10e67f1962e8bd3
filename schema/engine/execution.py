"""Running one operation: from a request to the answer's data and errors.

The steps are graphql-core's own, parse, validate and execute. They are taken one by one, in `documents.py`, so that
each kind of error is told by the step it comes from.
"""

from dataclasses import dataclass
from typing import Any

from graphql import ExecutionResult, OperationType

from resolvers.context import Context
from resolvers.observation import current
from schema.engine import faults
from schema.engine.documents import Document, digest_of, document_of
from schema.engine.limits import DEFAULT, Limits
from schema.engine.room import Room

#: The maximum number of errors of one execution that are answered: a list may have one for each of its records.
MAX_FIELD_ERRORS = 100


class OperationNotAllowed(Exception):
    """The operation is of a kind that the request's method may not carry: a mutation by GET."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One GraphQL request: a document or its text, which of its operations to run, and the values of its variables.

    `tells_cost`: the answer's extensions tell the rows that it may have read.
    """

    document: Document | str
    variables: dict[str, Any] | None = None
    operation_name: str | None = None
    limits: Limits = DEFAULT
    tells_cost: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation came to. `is_executed` tells whether it was run at all, so that there is data, if only null."""

    body: dict[str, Any]
    is_executed: bool


async def answer(operation: Operation, context: Context, room: Room, *, only_queries: bool = False) -> Answer:
    """Run the operation and return its answer, for which it takes room. Raises `OperationNotAllowed`."""
    document = operation.document
    observation = current.get()
    if isinstance(document, str):
        prepared = await document_of(document, operation.limits)
        if not isinstance(prepared, Document):
            observation.document = digest_of(document)
            return _not_executed(prepared)
        document = prepared
    observation.document = document.digest
    chosen = document.operation(operation.operation_name)
    if chosen is None:
        return _not_executed([faults.of_choice(operation.operation_name)])
    observation.operation, observation.kind = chosen.name, chosen.kind.value
    if only_queries and chosen.kind is not OperationType.QUERY:
        raise OperationNotAllowed
    result = await chosen.run(context, operation.variables or {}, room)
    observation.ended("execute")
    if not isinstance(result, ExecutionResult):
        return _not_executed([faults.of_variables(error) for error in result])
    body: dict[str, Any] = {"data": result.data}
    if result.errors:
        is_mutation = chosen.kind is OperationType.MUTATION
        body["errors"] = [
            faults.of_field(error, request_id=context.request_id, is_mutation=is_mutation)
            for error in result.errors[:MAX_FIELD_ERRORS]
        ]
        if (left := len(result.errors) - MAX_FIELD_ERRORS) > 0:
            body["errors"].append(faults.of_rest(left, code=body["errors"][-1]["extensions"]["code"]))
    if operation.tells_cost:
        body["extensions"] = result.extensions
    return Answer(body, is_executed=True)


def _not_executed(errors: list[dict[str, Any]]) -> Answer:
    return Answer({"errors": errors}, is_executed=False)
