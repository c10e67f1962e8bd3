"""Edges: fields that lead from records to others, and how they are followed for many records at once.

graphql-core calls a field's resolver once for each record. An edge says by `together` how it is resolved for all of
them, or by `ALONE` that its resolver needs nothing of graphql-core's; then `compiler.py` compiles it, and a compiled
subtree is answered level by level: one call for each edge of a level, whatever the number of records.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

from graphql import (
    GraphQLField,
    GraphQLSchema,
    ListValueNode,
    ObjectValueNode,
    ValueNode,
    VariableNode,
    is_scalar_type,
)
from graphql.execution.collect_fields import FieldDetails
from graphql.execution.values import VariableValues, get_argument_values
from graphql.type import get_nullable_type
from strawberry.types.arguments import convert_arguments
from strawberry.types.field import StrawberryField

from schema.info import refuse_nulls
from storage.engine.columns import joined
from storage.engine.turns import Turn, turn_for

#: How many values of records of nothing but leaves are completed before another request may have a turn.
VALUES_A_STEP = 3_000

#: Resolves an edge: from the request's context, the records and the edge's arguments to a value for each record, in
#: their order.
Fetch: TypeAlias = Callable[..., Awaitable[Sequence[Any]]]

#: For each edge of a subtree those who wait for it: a record, and the dict that the answer has for it.
Waiting: TypeAlias = list[list[tuple[Any, dict[str, Any]]]]

#: Takes a value, returns what the answer says of it, and puts those who wait for an edge into their lists.
Function: TypeAlias = Callable[[Any, Waiting], Any]

#: Where Strawberry keeps its own definition in one of graphql-core.
DEFINITION = "strawberry-definition"

_TOGETHER = "together"

#: The metadata of a Strawberry field that its resolver answers from the context and the arguments. It is called itself,
#: once for each record, without what graphql-core and Strawberry do around it: for the root's fields, and the like.
ALONE = {"alone": True}


def together(fetch: Fetch) -> dict[str, Fetch]:
    """Return the metadata of a Strawberry field that is resolved for many records at once."""
    return {_TOGETHER: fetch}


class ContextOnly(NamedTuple):
    """What the resolver of a field that is `ALONE` has for its info."""

    context: Any


def fetch_of(field: StrawberryField) -> Fetch | None:
    """Return what resolves the field if it is an edge."""
    if _TOGETHER in field.metadata:
        return field.metadata[_TOGETHER]  # type: ignore[no-any-return]
    if field.metadata != ALONE or field.base_resolver is None:
        return None
    resolve: Any = field.base_resolver.wrapped_func

    async def fetch(context: Any, records: Sequence[Any], **arguments: Any) -> Sequence[Any]:
        info = ContextOnly(context)
        return [await resolve(record, info, **arguments) for record in records]

    return fetch


class Edge:
    """An edge of one subtree: its name in the answer, what resolves it, and what completes its values."""

    def __init__(
        self, name: str, fetch: Fetch, definition: GraphQLField, details: FieldDetails, schema: GraphQLSchema
    ) -> None:
        self.name = name
        self.fetch = fetch
        self.complete: Function | None = None
        """What its values are completed by, once that is compiled."""
        self.complete_columns: Function | None = None
        """What `Columns` of its values' records are completed by, where its values are lists of nothing but leaves."""
        self.width = 1
        """How many leaves those records have in the answer."""
        self.arguments = Arguments(definition, details, schema)

    async def answers(self, values: Sequence[Any], waiting: Waiting, turn: Turn) -> list[Any]:
        """Return what the answer says of the values, in turns with others who work long."""
        assert self.complete is not None  # noqa: S101  # It is compiled together with the rest.
        answers = []
        records = joined(values) if self.complete_columns is not None else None
        if self.complete_columns is None or records is None:
            for value in values:
                answers.append(await self._answer(value, waiting, turn))
                if turn.is_over:
                    await turn.next()
            return answers
        while len(answers) < len(records):
            if turn.is_over:
                await turn.next()
            some = records[len(answers) : len(answers) + self._records_a_step]
            answers += self.complete_columns(some, waiting)
        lengths = [len(value) for value in values]
        return [answers[end - length : end] for length, end in zip(lengths, accumulate(lengths), strict=True)]

    @property
    def _records_a_step(self) -> int:
        return max(1, VALUES_A_STEP // self.width)

    async def _answer(self, value: Any, waiting: Waiting, turn: Turn) -> Any:
        """Return what the answer says of one value, which may be a long list of records."""
        assert self.complete is not None  # noqa: S101  # As above.
        step = self._records_a_step
        if self.complete_columns is None or type(value) is not list or len(value) <= step:
            return self.complete(value, waiting)
        answer: list[Any] = []
        for start in range(0, len(value), step):
            if turn.is_over:
                await turn.next()
            answer += self.complete(value[start : start + step], waiting)
        return answer


class Arguments:
    """An edge's arguments as Strawberry gives them to resolvers; what is the same in all requests is read once."""

    def __init__(self, definition: GraphQLField, details: FieldDetails, schema: GraphQLSchema) -> None:
        self._definition = definition
        self._details = details
        self._field: StrawberryField = definition.extensions[DEFINITION]
        self._converter = schema._strawberry_schema.schema_converter  # type: ignore[attr-defined]  # noqa: SLF001
        name_of = self._converter.config.name_converter.from_argument
        names = {name_of(argument): argument.python_name for argument in self._field.arguments}
        #: The variables that are arguments as they are, by the arguments' names in Python; None: it is not so simple.
        self._variables: dict[str, str] | None = {}
        self._fixed: dict[str, Any] | None = None
        for argument in details.node.arguments or ():
            value, type_ = argument.value, get_nullable_type(definition.args[argument.name.value].type)
            if isinstance(value, VariableNode) and is_scalar_type(type_) and self._variables is not None:
                self._variables[names[argument.name.value]] = value.name.value
            elif _has_variables(value):
                self._variables = None

    def read(self, variables: VariableValues) -> dict[str, Any]:
        """Return them, for these values of the operation's variables."""
        if self._fixed is not None and self._variables is not None:
            coerced = variables.coerced
            given = {name: coerced.get(variable) for name, variable in self._variables.items()}
            # What is null or left out may stand for a default, or be an error.
            if None not in given.values():
                return self._fixed | given
        values = get_argument_values(
            self._definition, self._details.node, variables, self._details.fragment_variable_values
        )
        refuse_nulls(values)
        arguments = convert_arguments(
            values, self._field.arguments, self._converter.scalar_registry, self._converter.config
        )
        if self._variables is not None:
            self._fixed = {name: value for name, value in arguments.items() if name not in self._variables}
        return arguments


async def _all_of(resolved: Sequence[Awaitable[Sequence[Any]]]) -> list[Sequence[Any]]:
    """Return what all come to. The first that fails ends the others."""
    if len(resolved) == 1:  # One is not worth a task.
        return [await resolved[0]]
    tasks = [asyncio.ensure_future(each) for each in resolved]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def _has_variables(value: ValueNode) -> bool:
    if isinstance(value, ListValueNode):
        return any(map(_has_variables, value.values))
    if isinstance(value, ObjectValueNode):
        return any(_has_variables(field.value) for field in value.fields)
    return isinstance(value, VariableNode)


@dataclass(frozen=True, slots=True)
class Subtree:
    """What answers a value and all below it: a function, and the edges, those above before those below."""

    complete: Function
    edges: Sequence[Edge]
    is_chain: bool
    """Whether there is one edge at most on each level."""

    def begin(self, value: Any) -> tuple[Any, Waiting]:
        """Return what the answer says of the value, as far as it needs no edge, and who waits for which."""
        waiting: Waiting = [[] for _ in self.edges]
        return self.complete(value, waiting), waiting

    async def follow(self, waiting: Waiting, context: Any, variables: VariableValues) -> None:
        """Resolve the edges level by level, and put their values into the dicts that wait for them."""
        while level := [(edge, those) for edge, those in zip(self.edges, waiting, strict=True) if those]:
            waiting[:] = [[] for _ in self.edges]
            arguments = [edge.arguments.read(variables) for edge, _ in level]
            resolved = [
                edge.fetch(context, [record for record, _ in those], **given)
                for (edge, those), given in zip(level, arguments, strict=True)
            ]
            found = await _all_of(resolved)
            turn = await turn_for(max(len(those) for _, those in level))
            for (edge, those), values in zip(level, found, strict=True):
                answers = await edge.answers(values, waiting, turn)
                for (_, answered), answer in zip(those, answers, strict=True):
                    answered[edge.name] = answer

    async def answer(self, value: Any, context: Any, variables: VariableValues) -> Any:
        """Return what the answer says of the value, edges and all. Raises at any surprise."""
        answered, waiting = self.begin(value)
        await self.follow(waiting, context, variables)
        return answered
