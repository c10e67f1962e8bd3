"""The engine of one schema: from the text of a request to the answer's data and errors.

The steps are graphql-core's own, parse, validate and execute. They are taken one by one, so that each kind of error is
reported by the step that it comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphql import ExecutionResult, OperationType
from strawberry import Schema

from resolvers.context import Context
from resolvers.observation import current
from schema.engine import faults
from schema.engine.documents import LONGEST_KEPT, MAX_IN_LOOP, Document, KeptDocuments, Prepared, digest_of, parsed
from schema.engine.execution.resolving import core_schema, resolve_directly
from schema.engine.limits.document import DEFAULT, Limits
from schema.engine.limits.room import Room
from schema.engine.limits.sizes import Sizes
from schema.engine.threads import in_thread

#: The maximum number of errors of one execution that are answered: a list may have one for each of its records.
MAX_FIELD_ERRORS = 100


class OperationNotAllowed(Exception):
    """The operation is of a kind that the request's method may not carry: a mutation by GET."""


@dataclass(frozen=True, slots=True)
class GraphQLRequest:
    """One request: a document or its text, which of its operations to run, and the values of its variables.

    `shows_cost`: the answer's extensions have the rows that it may have read.
    """

    document: Document | str
    variables: dict[str, Any] | None = None
    operation_name: str | None = None
    limits: Limits = DEFAULT
    shows_cost: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation came to. `is_executed`: it was run at all, so that there is data, if only null."""

    body: dict[str, Any]
    is_executed: bool


class Engine:
    """Prepares and runs the operations of one schema.

    `scalar_bytes` are the longest values of the schema's own scalars, in bytes of JSON. Raises `UndeclaredSize` where a
    field does not say how much it may come to.
    """

    def __init__(self, schema: Schema, *, scalar_bytes: Mapping[str, int]) -> None:
        resolve_directly(schema)
        self._schema = core_schema(schema)
        self._sizes = Sizes.of(self._schema, scalar_bytes)
        self.kept = KeptDocuments()

    async def answer(
        self, request: GraphQLRequest, context: Context, room: Room, *, only_queries: bool = False
    ) -> Answer:
        """Run the operation and return its answer, for which it takes room. Raises `OperationNotAllowed`."""
        document = request.document
        observation = current.get()
        if isinstance(document, str):
            prepared = await self.document_of(document, request.limits)
            if not isinstance(prepared, Document):
                observation.document = digest_of(document)
                return _not_executed(prepared)
            document = prepared
        observation.document = document.digest
        chosen = document.operation(request.operation_name)
        if chosen is None:
            return _not_executed([faults.of_choice(request.operation_name)])
        observation.operation, observation.kind = chosen.name, chosen.kind.value
        if only_queries and chosen.kind is not OperationType.QUERY:
            raise OperationNotAllowed
        result = await chosen.run(context, request.variables or {}, room, shows_cost=request.shows_cost)
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
        if request.shows_cost:
            body["extensions"] = result.extensions
        return Answer(body, is_executed=True)

    def prepare(self, text: str, limits: Limits = DEFAULT, *, is_trusted: bool = False) -> Prepared:
        """Return the document, or the errors that say what is wrong with it."""
        node = parsed(text, self._schema, limits)
        if isinstance(node, list):
            return node
        return Document(
            node, self._schema, self._sizes, limits, text=text, is_trusted=is_trusted, on_growth=self.kept.trim
        )

    async def document_of(self, text: str, limits: Limits = DEFAULT) -> Prepared:
        """Return the document, or what is wrong with it. One that was asked for lately is not parsed again."""
        found = self.kept.get(text, limits)
        if found is None:
            is_short = len(text) <= MAX_IN_LOOP
            found = self.prepare(text, limits) if is_short else await in_thread(self.prepare, text, limits)
            if len(text) <= LONGEST_KEPT:
                self.kept.put(text, limits, found)
        return found


def _not_executed(errors: list[dict[str, Any]]) -> Answer:
    return Answer({"errors": errors}, is_executed=False)
