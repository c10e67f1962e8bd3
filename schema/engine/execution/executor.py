"""The executor: graphql-core's, with the plain parts of an answer compiled.

Most of an answer is plain data: fields without a resolver, read from a record, checked and written down. graphql-core
walks through them generically, which costs some microseconds a leaf. Here such a subtree is compiled, once for an
operation and the values of its `@skip` and `@include`, into Python functions that go straight from the record to the
answer's dict. Which fields are selected is decided by graphql-core's own `collect_subfields`.

Batched fields are compiled too: the subtree is answered level by level, and each of them is one call for all of its
records instead of a resolver, an awaitable and a future for each.

At any surprise, a null where none may be, a class that is not expected, an awaitable, an exception, the subtree is done
again by graphql-core itself. Doing it again changes nothing: the plain fields have no resolver, and batched fields only
read. Other fields with a resolver or arguments, and what `@defer` and middleware touch, always go to graphql-core; the
plain fields beside them are still compiled. What of an operation is compiled as a whole is executed in `operations.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

from graphql import (
    GraphQLList,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLResolveInfoHelpers,
    default_field_resolver,
)
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet
from graphql.execution.incremental import IncrementalExecutor
from graphql.pyutils import Path
from graphql.type import GraphQLResolveInfo
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from schema.engine.execution.arguments import SelectedArguments
from schema.engine.execution.batching import Function, Subtree
from schema.engine.execution.compiler import Compiler
from schema.engine.execution.plans import CompiledMutation, Plan
from schema.engine.execution.resolving import Resolver
from storage.engine.turns import MAX_AT_ONCE, Starts, Turn


class CompilingExecutor(IncrementalExecutor):
    """graphql-core's executor with the subtrees of a `plan` compiled, if one is given."""

    def __init__(self, *args: Any, plan: Plan | None = None, is_batching: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan: Plan | None = None
        #: The fields that begin to be resolved, and those that go on with what they were resolved to.
        self._starts, self._ends = Starts(), Starts()
        #: Whether batched fields are compiled: until one has met a surprise, which the loaders are to meet only once.
        self._is_batching = is_batching
        self._only_compiles = False
        is_usual = self.middleware_manager is None and self.abort_signal is None
        if is_usual and self.field_resolver is default_field_resolver:
            self.plan = plan
        if self.plan is not None:
            self._relevant_sub_fields = self.plan.sub_fields

    @property
    def async_helpers(self) -> GraphQLResolveInfoHelpers:
        """What resolvers have of the executor, made when they are asked for.

        Kept, as graphql-core does, it would lead back to the executor, which would then stay with all of its request
        until Python searches for cycles.
        """
        return GraphQLResolveInfoHelpers(gather=self.gather_async_work, track=self.track_async_work)

    @async_helpers.setter
    def async_helpers(self, _: GraphQLResolveInfoHelpers) -> None: ...

    def compile(self) -> None:
        """Compile what answers the operation, and execute nothing. It needs a plan."""
        assert self.plan is not None  # noqa: S101  # Without one, graphql-core would execute the operation.
        self._only_compiles = True
        self.execute_operation()

    def execute_root_grouped_field_set(
        self,
        root_type: GraphQLObjectType,
        root_value: Any,
        grouped_field_set: GroupedFieldSet,
        serially: bool,  # noqa: FBT001  # The signature is graphql-core's.
        position_context: Any,
    ) -> Any:
        """Execute the root's fields: those of the plan, which are the same ones and whose identity is known."""
        if self.plan is not None:
            self.plan.root = grouped_field_set = self.plan.root or grouped_field_set
            if self._only_compiles:
                self.plan.whole = self._compile_whole(root_type, grouped_field_set)
                return {}
        # One mutation has none to take turns with, and graphql-core takes twice as long where there might be.
        serially = serially and len(grouped_field_set) > 1
        return super().execute_root_grouped_field_set(
            root_type, root_value, grouped_field_set, serially, position_context
        )

    def execute_fields(
        self,
        parent_type: GraphQLObjectType,
        source_value: Any,
        path: Path | None,
        grouped_field_set: GroupedFieldSet,
        position_context: Any,
    ) -> Any:
        """Execute an object's fields: the plain ones by their function, and then the others."""
        if self.plan is None:
            return super().execute_fields(parent_type, source_value, path, grouped_field_set, position_context)
        fields = self.plan.fields.get(id(grouped_field_set))
        if fields is None:
            fields = self.plan.fields[id(grouped_field_set)] = self._compile_fields(parent_type, grouped_field_set)
        plain, others = fields
        if plain is None:
            return super().execute_fields(parent_type, source_value, path, grouped_field_set, position_context)
        try:
            results = plain(source_value, [])
        except Exception:  # noqa: BLE001  # Any surprise: graphql-core will meet it again, and report it.
            return super().execute_fields(parent_type, source_value, path, grouped_field_set, position_context)
        if not others:
            return results
        # Their places in the answer are kept by nulls.
        rest = super().execute_fields(parent_type, source_value, path, others, position_context)
        if not self.is_awaitable(rest):
            return results | rest

        async def all_results() -> dict[str, Any]:
            results.update(await rest)
            return results  # type: ignore[no-any-return]

        return all_results()

    def complete_value(
        self,
        return_type: GraphQLOutputType,
        field_details_list: FieldDetailsList,
        info: GraphQLResolveInfo[Any],
        path: Path,
        result: Any,
        position_context: Any,
    ) -> Any:
        """Complete the value of a field by its function, where all below it is plain."""

        def by_graphql_core() -> Any:
            return super(CompilingExecutor, self).complete_value(
                return_type, field_details_list, info, path, result, position_context
            )

        if self.plan is None or result is None:
            return by_graphql_core()
        key = (id(return_type), id(field_details_list), self._is_batching)
        if key not in self.plan.subtrees:
            self.plan.subtrees[key] = self._compiled(lambda compiler: compiler.value(return_type, field_details_list))
        subtree = self.plan.subtrees[key]
        return by_graphql_core() if subtree is None else self._complete(subtree, result, by_graphql_core)

    def complete_list_value(
        self,
        return_type: GraphQLList[GraphQLOutputType],
        field_details_list: FieldDetailsList,
        info: GraphQLResolveInfo[Any],
        path: Path,
        result: Any,
        position_context: Any,
    ) -> Any:
        """Complete a list that is not compiled, in turns with others where it is long."""
        is_list = isinstance(result, Collection) and not isinstance(result, str | bytes | Mapping)
        if is_list and len(result) > MAX_AT_ONCE and _is_asynchronous():
            result = _in_turns(result)
        return super().complete_list_value(return_type, field_details_list, info, path, result, position_context)

    async def complete_awaitable_value(
        self,
        return_type: GraphQLOutputType,
        field_details_list: FieldDetailsList,
        info: GraphQLResolveInfo[Any],
        path: Path,
        result: Any,
        position_context: Any,
    ) -> Any:
        """Await and complete what a resolver returns; of many that would do so at once, a few do in each round."""
        await self._starts.next()

        async def resolved() -> Any:
            value = await result
            await self._ends.next()
            return value

        return await super().complete_awaitable_value(
            return_type, field_details_list, info, path, resolved(), position_context
        )

    def _complete(self, subtree: Subtree, value: Any, by_graphql_core: Callable[[], Any]) -> Any:
        """Return what the answer says of the value, by the subtree, or else by graphql-core."""
        try:
            completed, waiting = subtree.begin(value)
        except Exception:  # noqa: BLE001  # graphql-core will meet it again, and report it.
            return by_graphql_core()
        if not any(waiting):
            return completed

        async def with_batches() -> Any:
            try:
                await subtree.follow(waiting, self.context_value, self.variable_values)
            except Exception:  # noqa: BLE001  # graphql-core will meet it again, and report it.
                self._is_batching = False
                again = by_graphql_core()
                return await again if self.is_awaitable(again) else again
            return completed

        return with_batches()

    def _compile_whole(
        self, root_type: GraphQLObjectType, fields: GroupedFieldSet
    ) -> Subtree | CompiledMutation | None:
        if root_type is self.schema.query_type:
            return self._compiled(lambda compiler: compiler.object(root_type, fields))
        if root_type is self.schema.mutation_type and len(fields) == 1:
            return self._compile_mutation(root_type, fields)
        return None

    def _compile_mutation(self, root_type: GraphQLObjectType, fields: GroupedFieldSet) -> CompiledMutation | None:
        """Return what answers a mutation of this one field, if its resolver needs nothing of graphql-core's."""
        ((name, details),) = fields.items()
        definition = self.schema.get_field(root_type, details[0].node.name.value)
        resolver = definition.resolve if definition is not None else None
        if definition is None or not isinstance(resolver, Resolver) or not resolver.is_direct:
            return None
        return_type = definition.type
        subtree = self._compiled(lambda compiler: compiler.value(return_type, details))
        if subtree is None:
            return None
        return CompiledMutation(name, resolver, SelectedArguments(definition, details[0]), subtree)

    def _compile_fields(
        self, parent_type: GraphQLObjectType, grouped_field_set: GroupedFieldSet
    ) -> tuple[Function | None, GroupedFieldSet]:
        others: GroupedFieldSet = {}
        plain = self._compiled(
            lambda compiler: compiler.object(parent_type, grouped_field_set, others), is_batching=False
        )
        if plain is None or len(others) == len(grouped_field_set):
            return None, grouped_field_set
        return plain.complete, others

    def _compiled(self, write: Callable[[Compiler], str], *, is_batching: bool = True) -> Subtree | None:
        compiler = Compiler(self, is_batching=is_batching and self._is_batching)
        try:
            return compiler.finish(write(compiler))
        except Exception:  # noqa: BLE001  # Also of what is never reached; graphql-core will meet what is, and report it.
            return None


def _is_asynchronous() -> bool:
    """Whether an event loop runs; without one there is nobody to take turns with."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _in_turns(items: Collection[Any]) -> AsyncIterator[Any]:
    turn = Turn()
    for item in items:
        if turn.is_over:
            await turn.next()
        yield item


class Executor(CompilingExecutor, StrawberryGraphQLCoreExecutionContext):
    """The same for Strawberry's resolvers."""
