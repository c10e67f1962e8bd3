"""Batched fields: those that are resolved for many records at once, and the subtrees that they lead to.

graphql-core calls a field's resolver once for each record. A field says by `batched` how it is resolved for all of
them, or by `DIRECT` that its resolver needs nothing of graphql-core's; then `compiler.py` compiles it, and a compiled
subtree is answered level by level: one call for each batched field of a level, whatever the number of records.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from graphql import GraphQLField
from graphql.execution.collect_fields import FieldDetails
from graphql.execution.values import VariableValues

from schema.engine.execution.arguments import SelectedArguments
from schema.engine.execution.resolving import Fetch, Resolver
from storage.engine.columns import joined
from storage.engine.turns import Turn, turn_for

#: How many values of records of nothing but leaves are completed before another request may have a turn.
VALUES_A_STEP = 3_000

#: For each batched field of a subtree those who wait for it: a record, and the dict that the answer has for it.
Waiting: TypeAlias = list[list[tuple[Any, dict[str, Any]]]]

#: Takes a value, returns what the answer says of it, and puts those who wait for a batched field into their lists.
Function: TypeAlias = Callable[[Any, Waiting], Any]


class BatchedField:
    """A batched field of one subtree: its name in the answer, what resolves it, and what completes its values."""

    def __init__(
        self, name: str, resolver: Resolver, fetch: Fetch, definition: GraphQLField, details: FieldDetails
    ) -> None:
        self.name = name
        self._resolver = resolver
        self.fetch = fetch
        self._selected = SelectedArguments(definition, details)
        self.complete: Function | None = None
        """What its values are completed by, once that is compiled."""
        self.complete_columns: Function | None = None
        """What `Columns` of its values' records are completed by, where its values are lists of nothing but leaves."""
        self.width = 1
        """How many leaves those records have in the answer."""

    def arguments(self, variables: VariableValues) -> dict[str, Any]:
        """Return what its fetch takes besides the context and the records. Raises what is wrong with them."""
        return self._resolver.arguments.converted(self._selected.values(variables))

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


@dataclass(frozen=True, slots=True)
class Subtree:
    """What answers a value and all below it: a function, and the batched fields, those above before those below."""

    complete: Function
    fields: Sequence[BatchedField]
    is_chain: bool
    """Whether there is one batched field at most on each level."""

    def begin(self, value: Any) -> tuple[Any, Waiting]:
        """Return what the answer says of the value, as far as it needs no batched field, and what waits for which."""
        waiting: Waiting = [[] for _ in self.fields]
        return self.complete(value, waiting), waiting

    async def follow(self, waiting: Waiting, context: Any, variables: VariableValues) -> None:
        """Resolve the batched fields level by level, and put their values into the dicts that wait for them."""
        while level := [(field, those) for field, those in zip(self.fields, waiting, strict=True) if those]:
            waiting[:] = [[] for _ in self.fields]
            # All of them before any is fetched: what is begun must be awaited.
            arguments = [field.arguments(variables) for field, _ in level]
            resolved = [
                field.fetch(context, [record for record, _ in those], **given)
                for (field, those), given in zip(level, arguments, strict=True)
            ]
            found = await _all_of(resolved)
            turn = await turn_for(max(len(those) for _, those in level))
            for (field, those), values in zip(level, found, strict=True):
                answers = await field.answers(values, waiting, turn)
                for (_, answered), answer in zip(those, answers, strict=True):
                    answered[field.name] = answer

    async def answer(self, value: Any, context: Any, variables: VariableValues) -> Any:
        """Return what the answer says of the value, batched fields and all. Raises at any surprise."""
        answered, waiting = self.begin(value)
        await self.follow(waiting, context, variables)
        return answered
