"""Running one operation: from a request to the answer's data and errors.

The steps are graphql-core's own, parse, validate and execute, with Strawberry's executor. They are taken one by one,
the first two in `schema/documents.py`, so that each kind of error is told by the step it comes from.
"""

from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

from graphql import ExecutionResult, OperationType, execute, get_operation_ast
from strawberry.execution import optimized_is_awaitable

from resolvers.context import Context
from schema import faults
from schema.documents import Document, document_of
from schema.root import schema

#: How many errors of the variables are told.
MOST_ERRORS = 20


class OperationNotAllowed(Exception):
    """The operation is of a kind that the request's method may not carry: a mutation by GET."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One GraphQL request: a document or its text, which of its operations to run, and the values of its variables."""

    document: Document | str
    variables: dict[str, Any] | None = None
    operation_name: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation came to. `is_executed` tells whether it was run at all, so that there is data, if only null."""

    body: dict[str, Any]
    is_executed: bool


async def answer(operation: Operation, context: Context, *, only_queries: bool = False) -> Answer:
    """Run the operation and return its answer. Raises `OperationNotAllowed`."""
    document = operation.document
    if isinstance(document, str):
        prepared = document_of(document)
        if not isinstance(prepared, Document):
            return _not_executed([faults.of_document(error) for error in prepared])
        document = prepared
    chosen = get_operation_ast(document.node, operation.operation_name)
    if chosen is None:
        return _not_executed([faults.of_choice(operation.operation_name)])
    if only_queries and chosen.operation is not OperationType.QUERY:
        raise OperationNotAllowed
    result = execute(
        schema._schema,  # noqa: SLF001  # Strawberry has no other name for the schema of graphql-core.
        document.node,
        context_value=context,
        variable_values=operation.variables,
        operation_name=operation.operation_name,
        max_coercion_errors=MOST_ERRORS,
        executor_class=schema.execution_context_class,
        is_awaitable=optimized_is_awaitable,  # type: ignore[arg-type]  # It answers what a TypeGuard would.
        operation_extensions=None,
    )
    if isawaitable(result):
        result = await result
    return _executed(result, context, is_mutation=chosen.operation is OperationType.MUTATION)


def _executed(result: ExecutionResult, context: Context, *, is_mutation: bool) -> Answer:
    errors = result.errors or []
    if result.data is None and errors and all(error.path is None for error in errors):
        # graphql-core could not read the variables; an error of a field has a path.
        return _not_executed([faults.of_variables(error) for error in errors])
    body: dict[str, Any] = {"data": result.data}
    if errors:
        body["errors"] = [
            faults.of_field(error, request_id=context.request_id, is_mutation=is_mutation) for error in errors
        ]
    return Answer(body, is_executed=True)


def _not_executed(errors: list[dict[str, Any]]) -> Answer:
    return Answer({"errors": errors}, is_executed=False)
