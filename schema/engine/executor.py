"""The executor: graphql-core's, with the plain parts of an answer compiled.

Most of an answer is plain data: fields without a resolver, read from a record, checked and written down. graphql-core
walks through them generically, which costs some microseconds a leaf. Here such a subtree is compiled, once for an
operation and the values of its `@skip` and `@include`, into Python functions that go straight from the record to the
answer's dict. Which fields are selected is decided by graphql-core's own `collect_subfields`.

An edge, a field that leads to other records, may say by `together` how it is resolved for many records at once. Then it
is compiled too: the subtree is answered level by level, and each edge of a level is one call for all of its records
instead of a resolver, an awaitable and a future for each.

**Any surprise bails out**: a null where none may be, a class that is not expected, an awaitable, an exception. Then the
subtree is done again by graphql-core itself, so that errors, their paths and how far nulls spread are its own. Doing it
again changes nothing: the plain fields have no resolver, and edges only read. Other fields with a resolver or
arguments, and what `@defer` and middleware touch, always go to graphql-core; the plain fields beside them are still
compiled.

**A mutation is never executed again.** One of a single field is compiled as well: its resolver is called, and what it
returns is completed by the field's subtree. What the resolver came to, a value or an exception, is kept as an
`Outcome`, and at a surprise that is what graphql-core is given instead of a resolver to call.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from graphql import (
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLField,
    GraphQLList,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLResolveInfoHelpers,
    VariableNode,
    Visitor,
    default_field_resolver,
    visit,
)
from graphql.execution.collect_fields import CollectedFields, FieldDetailsList, GroupedFieldSet
from graphql.execution.incremental import IncrementalExecutor
from graphql.execution.values import VariableValues, get_argument_values
from graphql.pyutils import Path
from graphql.type import GraphQLResolveInfo
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from schema.engine.batching import ALONE, DEFINITION, ContextOnly, Function, Subtree
from schema.engine.compiler import Compiler
from schema.engine.resolving import Outcome, Resolver
from storage.engine.turns import MOST_AT_ONCE, Starts, Turn

#: What the root of a query is where the request gives none: whom an edge answers, the context tells.
ROOT = object()

#: The maximum number of plans that one operation keeps: one for each combination of the values of its `@skip` and
#: `@include`; and of those combinations that were seen once, and have a plan when they recur.
MAX_PLANS = 8


@dataclass(frozen=True, slots=True)
class Mutation:
    """What answers a mutation of one field: its resolver, and the subtree that completes what that returns."""

    name: str
    """The field's name in the answer."""
    definition: GraphQLField
    node: FieldNode
    resolver: Resolver
    subtree: Subtree
    variables: dict[str, str] | None
    """The names of its arguments with those of the variables that they are; None: some are something else."""

    @property
    def is_chain(self) -> bool:
        """See `Subtree`."""
        return self.subtree.is_chain

    async def answer(self, outcome: Outcome, context: Any, variables: VariableValues) -> dict[str, Any]:
        """Execute it, unless the outcome is known, and return the whole answer. Raises at any surprise."""
        value = await outcome.of(self.resolver, ContextOnly(context), self._arguments(variables))
        return {self.name: await self.subtree.answer(value, context, variables)}

    def _arguments(self, variables: VariableValues) -> dict[str, Any]:
        if self.variables is not None:
            values = {name: variables.coerced.get(variable) for name, variable in self.variables.items()}
            # What is null or left out may be an error.
            if None not in values.values():
                return values
        return get_argument_values(self.definition, self.node, variables)


class Plan:
    """What the executions of an operation share that select the same fields."""

    def __init__(self) -> None:
        self.root: GroupedFieldSet | None = None
        #: What answers the whole operation, if it is a query or one mutation, of but edges and plain fields.
        self.whole: Subtree | Mutation | None = None
        self.is_root_compiled = False
        #: graphql-core's memo. It also keeps the lists of fields alive, so that their identities can be keys.
        self.sub_fields: dict[tuple[GraphQLObjectType, int], tuple[FieldDetailsList, CollectedFields]] = {}
        self.subtrees: dict[tuple[int, int, bool], Subtree | None] = {}
        #: Of an object's fields: the function of the plain ones, if there are any, and the others.
        self.fields: dict[int, tuple[Function | None, GroupedFieldSet]] = {}


class Plans:
    """The plans of one operation of a document.

    It has the first one `at_once`, or else from the second time on that it is executed; and one for other values of the
    variables that decide what is selected when they recur, or `at_once` as well. `on_new` is called for each.
    """

    def __init__(
        self, document: DocumentNode, *, at_once: bool = False, on_new: Callable[[], None] | None = None
    ) -> None:
        self._document = document
        self._at_once = at_once
        self._is_wanted = at_once
        self._on_new = on_new
        self._seen: _Seen | None = None
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._seen_once: deque[tuple[Any, ...]] = deque(maxlen=MAX_PLANS)

    def __len__(self) -> int:
        return len(self._plans)

    def known(self, variables: dict[str, Any]) -> Plan | None:
        """Return the plan for these coerced values of the variables, if there is one."""
        return self._plans.get(self._key(self._seen, variables)) if self._seen is not None else None

    def is_wanted(self, variables: dict[str, Any]) -> bool:
        """Whether a plan is to be made for these values, of which none is known."""
        if not self._is_wanted:
            # What is asked only once is answered sooner than it is compiled.
            self._is_wanted = True
            return False
        seen = self._look()
        if not seen.is_plannable or len(self._plans) >= MAX_PLANS:
            return False
        key = self._key(seen, variables)
        if not self._plans or self._at_once or key in self._seen_once:
            return True
        self._seen_once.append(key)
        return False

    def keep(self, variables: dict[str, Any], plan: Plan) -> None:
        """Keep the plan for these values."""
        self._plans[self._key(self._look(), variables)] = plan
        if self._on_new is not None:
            self._on_new()

    def of(self, variables: dict[str, Any]) -> Plan | None:
        """Return the plan for these values, a new one where it is wanted; None where graphql-core is to do it all."""
        plan = self.known(variables)
        if plan is None and self.is_wanted(variables):
            plan = Plan()
            self.keep(variables, plan)
        return plan

    @property
    def is_plannable(self) -> bool:
        """Whether the values of variables alone decide what is selected."""
        return self._look().is_plannable

    @property
    def are_known(self) -> bool:
        """Whether there is one plan, whatever the variables' values are, and it is wanted before the first run."""
        return self._is_wanted and self._look().is_plannable and not self._look().names

    def _look(self) -> "_Seen":
        if self._seen is None:
            self._seen = _Seen()
            visit(self._document, self._seen)
        return self._seen

    @staticmethod
    def _key(seen: "_Seen", variables: dict[str, Any]) -> tuple[Any, ...]:
        return tuple([variables.get(name) for name in seen.names])


class _Seen(Visitor):
    """What of a document decides which fields are selected."""

    def __init__(self) -> None:
        super().__init__()
        self.variables: set[str] = set()
        self.is_plannable = True

    @cached_property
    def names(self) -> list[str]:
        """The names of the variables, in an order."""
        return sorted(self.variables)

    def enter_directive(self, node: DirectiveNode, *_: object) -> None:
        if node.name.value in {"skip", "include"}:
            self.variables |= {
                argument.value.name.value
                for argument in node.arguments or ()
                if isinstance(argument.value, VariableNode)
            }
        else:
            self.is_plannable = False

    def enter_fragment_definition(self, node: FragmentDefinitionNode, *_: object) -> None:
        if node.variable_definitions:
            self.is_plannable = False


class CompilingExecutor(IncrementalExecutor):
    """graphql-core's executor with compiled plain subtrees: by the `plan`, or one of the `plans`, if any is given."""

    def __init__(
        self,
        *args: Any,
        plans: Plans | None = None,
        plan: Plan | None = None,
        has_edges: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.plan: Plan | None = None
        #: The fields that begin to be resolved, and those that go on with what they were resolved to.
        self._starts, self._ends = Starts(), Starts()
        #: Whether edges are compiled: until one of them has met a surprise, which the loaders are to meet only once.
        self._has_edges = has_edges
        self._only_compiles = False
        is_usual = self.middleware_manager is None and self.abort_signal is None
        if is_usual and self.field_resolver is default_field_resolver:
            self.plan = plan if plans is None else plans.of(self.variable_values.coerced)
        if self.plan is not None:
            self._relevant_sub_fields = self.plan.sub_fields

    @property
    def async_helpers(self) -> GraphQLResolveInfoHelpers:
        """What resolvers have of the executor, made for whoever asks.

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
        # One mutation has none to take turns with, and graphql-core takes twice as long where there might be.
        serially = serially and len(grouped_field_set) > 1

        def by_graphql_core(value: Any = root_value) -> Any:
            return super(CompilingExecutor, self).execute_root_grouped_field_set(
                root_type, value, grouped_field_set, serially, position_context
            )

        if self.plan is None:
            return by_graphql_core()
        self.plan.root = grouped_field_set = self.plan.root or grouped_field_set
        if not self.plan.is_root_compiled:
            self.plan.is_root_compiled = True
            self.plan.whole = (
                self._compiled(lambda compiler: compiler.object(root_type, grouped_field_set))
                if root_type is self.schema.query_type
                else self._compile_mutation(root_type, grouped_field_set)
            )
        if self._only_compiles:
            return {}
        whole = self.plan.whole if self._has_edges else None
        if isinstance(whole, Mutation):
            return self._mutate(whole, by_graphql_core)
        return by_graphql_core() if whole is None else self._complete(whole, root_value or ROOT, by_graphql_core)

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
        except Exception:  # noqa: BLE001  # Any surprise: graphql-core will meet it again, and tell it.
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
        key = (id(return_type), id(field_details_list), self._has_edges)
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
        if is_list and len(result) > MOST_AT_ONCE and _is_asynchronous():
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
        except Exception:  # noqa: BLE001  # graphql-core will meet it again, and tell it.
            return by_graphql_core()
        if not any(waiting):
            return completed

        async def with_edges() -> Any:
            try:
                await subtree.follow(waiting, self.context_value, self.variable_values)
            except Exception:  # noqa: BLE001  # graphql-core will meet it again, and tell it.
                self._has_edges = False
                again = by_graphql_core()
                return await again if self.is_awaitable(again) else again
            return completed

        return with_edges()

    async def _mutate(self, mutation: Mutation, by_graphql_core: Callable[[Outcome], Any]) -> Any:
        """Return the answer of the mutation; at a surprise graphql-core's, which takes the outcome as it is."""
        outcome = Outcome()
        try:
            return await mutation.answer(outcome, self.context_value, self.variable_values)
        except Exception as error:  # noqa: BLE001  # graphql-core is given the outcome, meets it again, and tells it.
            error.with_traceback(None)  # It leads to the outcome, which leads to the error.
            self._has_edges = False
            again = by_graphql_core(outcome)
            return await again if self.is_awaitable(again) else again

    def _compile_mutation(self, root_type: GraphQLObjectType, grouped_field_set: GroupedFieldSet) -> Mutation | None:
        """Return what answers a mutation of this one field, if its resolver needs nothing of graphql-core's."""
        if root_type is not self.schema.mutation_type or len(grouped_field_set) != 1:
            return None
        ((name, fields),) = grouped_field_set.items()
        node = fields[0].node
        definition = self.schema.get_field(root_type, node.name.value)
        if definition is None or not isinstance(definition.resolve, Resolver):
            return None
        if definition.extensions[DEFINITION].metadata != ALONE:
            return None
        return_type = definition.type
        subtree = self._compiled(lambda compiler: compiler.value(return_type, fields))
        if subtree is None:
            return None
        variables = {
            argument.name.value: argument.value.name.value
            for argument in node.arguments or ()
            if isinstance(argument.value, VariableNode)
        }
        # What is left out may have a default.
        is_simple = variables.keys() == definition.args.keys()
        return Mutation(name, definition, node, definition.resolve, subtree, variables if is_simple else None)

    def _compile_fields(
        self, parent_type: GraphQLObjectType, grouped_field_set: GroupedFieldSet
    ) -> tuple[Function | None, GroupedFieldSet]:
        others: GroupedFieldSet = {}
        plain = self._compiled(
            lambda compiler: compiler.object(parent_type, grouped_field_set, others), has_edges=False
        )
        if plain is None or len(others) == len(grouped_field_set):
            return None, grouped_field_set
        return plain.complete, others

    def _compiled(self, write: Callable[[Compiler], str], *, has_edges: bool = True) -> Subtree | None:
        compiler = Compiler(self, has_edges=has_edges and self._has_edges)
        try:
            return compiler.finish(write(compiler))
        except Exception:  # noqa: BLE001  # Also of what is never reached; graphql-core will meet what is, and tell it.
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
