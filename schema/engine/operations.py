"""Operations: how one of a valid document is executed, and what it may come to before it is."""

import asyncio
from collections.abc import Callable
from functools import partial
from inspect import isawaitable
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    default_field_resolver,
    default_type_resolver,
)
from graphql.execution.collect_fields import FragmentDetails
from graphql.execution.values import VariableValues
from strawberry.execution import optimized_is_awaitable

from resolvers.context import Context
from resolvers.errors import Forbidden, LimitExceeded
from resolvers.observation import current
from schema.engine.execution.executor import CompilingExecutor, Executor
from schema.engine.execution.plans import CompiledMutation, Plan, Plans
from schema.engine.execution.resolving import MutationOutcome
from schema.engine.limits.cost import Cost, Size
from schema.engine.limits.document import NOT_INTROSPECTED, Limits, exceeded
from schema.engine.limits.room import SMALL_WEIGHT, Room
from schema.engine.limits.sizes import Sizes
from schema.engine.threads import in_thread
from schema.engine.variables import Variables

#: An answer of more values than this is compiled before it is first asked for.
LARGE_VALUES = 2_000

#: The root of a query where the caller gives none: a batched field has all it needs in the context.
ROOT = object()


class Operation:
    """One operation of a valid document in a schema, and how it is executed: compiled, and at a surprise not.

    **A mutation is never executed again.** One of a single field is compiled as well: its resolver is called, and what
    it returns is completed by the field's subtree. What the resolver came to, a value or an exception, is kept as a
    `MutationOutcome`, and at a surprise that is what graphql-core is given instead of a resolver to call.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        document: DocumentNode,
        node: OperationDefinitionNode,
        *,
        plans_at_once: bool = False,
        on_new_plan: Callable[[], None] | None = None,
        executor: type[CompilingExecutor] = Executor,
    ) -> None:
        self.node = node
        self.fragments = {
            definition.name.value: definition
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }
        self.variables = Variables(schema, node)
        self.plans = Plans(document, at_once=plans_at_once, on_new=on_new_plan)
        self._schema = schema
        self._executor_class = executor
        self._fragment_details = {name: FragmentDetails(fragment) for name, fragment in self.fragments.items()}
        if self.plans.are_known:
            self.plans.keep({}, self.compiled(VariableValues({}, {})))

    def compiled(self, values: VariableValues) -> Plan:
        """Return a new plan for these values of the variables."""
        plan = Plan()
        self._executor(None, None, values, plan, is_batching=True).compile()
        return plan

    async def execute(
        self,
        root: Any,
        context: Any,
        values: VariableValues,
        plan: Plan | None,
        *,
        on_surprise: Callable[[Exception], None] | None = None,
    ) -> ExecutionResult:
        """Execute it by its plan, or by graphql-core. `on_surprise` is called before graphql-core begins again."""
        whole = plan.whole if plan is not None else None
        if isinstance(whole, CompiledMutation):
            root = MutationOutcome()
        if whole is not None:
            try:
                data = await whole.answer(root or ROOT, context, values)  # type: ignore[arg-type]  # A mutation's is one.
                return ExecutionResult(data, None)
            except Exception as error:  # noqa: BLE001  # graphql-core meets it again, and reports it.
                # Its traceback leads to the outcome, which leads to the error.
                error.with_traceback(None)
                if on_surprise is not None:
                    on_surprise(error)
        executor = self._executor(root, context, values, plan, is_batching=whole is None)
        result: Any = executor.execute_operation()
        if isawaitable(result):
            result = await result
        assert isinstance(result, ExecutionResult)  # noqa: S101  # Ours has neither @defer nor @stream.
        return result

    def _executor(
        self, root: Any, context: Any, values: VariableValues, plan: Plan | None, *, is_batching: bool
    ) -> CompilingExecutor:
        return self._executor_class(
            self._schema,
            self.fragments,
            self._fragment_details,
            root,
            context,
            self.node,
            values,
            default_field_resolver,
            default_type_resolver,
            default_field_resolver,
            is_awaitable=optimized_is_awaitable,
            hide_suggestions=True,
            plan=plan,
            is_batching=is_batching,
        )


class LimitedOperation:
    """An operation that is executed where its size is within the limits, and when there is room for it."""

    def __init__(
        self, operation: Operation, schema: GraphQLSchema, sizes: Sizes, limits: Limits, *, is_long: bool
    ) -> None:
        self._operation = operation
        self._limits = limits
        self._is_long = is_long
        self._cost = Cost(schema, sizes, operation.fragments, operation.node, limits.bounds)

    @property
    def plan_count(self) -> int:
        """How many plans it keeps."""
        return len(self._operation.plans)

    @property
    def name(self) -> str | None:
        """The operation's name, if it has one."""
        name = self._operation.node.name
        return name.value if name is not None else None

    @property
    def kind(self) -> OperationType:
        """Whether it is a query or a mutation."""
        return self._operation.node.operation

    async def run(
        self, context: Context, variables: dict[str, Any], room: Room, *, shows_cost: bool = False
    ) -> ExecutionResult | list[GraphQLError]:
        """Run it and return what it came to, or what is wrong with the variables, or which limit they pass.

        What is large is run when there is room for it, which it keeps.

        The steps are those of graphql-core's `execute`. The result's extensions have the cost, where that is asked for.
        """
        if self._cost.introspects and not self._limits.may_introspect(context.actor):
            return [GraphQLError(NOT_INTROSPECTED, extensions={"code": Forbidden.code})]
        values = self._operation.variables.read(variables)
        if isinstance(values, list):
            return values
        size, limits = self._cost.of(values.coerced, context.clock), self._limits
        current.get().cost = size.rows
        too_much = _passed(size, limits)
        if too_much is not None:
            return [too_much]
        if size.weight > SMALL_WEIGHT:
            await room.take(size.weight)

        def begin(surprise: Exception | None = None) -> None:
            if surprise is not None:
                context.begin_again(surprise)
            if self._cost.may_grow:
                of_record = partial(self._cost.of_growing_record, values.coerced)
                context.admit = _Growth(size, limits, room, of_record).admit

        begin()
        plan = await self._plan(values, size)
        if plan is not None and plan.whole is not None:
            context.has_one_reader = plan.whole.is_chain
        result = await self._operation.execute(None, context, values, plan, on_surprise=begin)
        if shows_cost:
            result.extensions = {
                "cost": {
                    "rows": size.rows,
                    "most": limits.cost,
                    "values": size.values,
                    "mostValues": limits.answer_values,
                    "bytes": size.bytes,
                    "mostBytes": limits.answer_bytes,
                }
            }
        return result

    async def _plan(self, values: VariableValues, size: Size) -> Plan | None:
        """Return the plan for these values, made now where it is wanted or the answer is large."""
        plans, coerced, compiled = self._operation.plans, values.coerced, self._operation.compiled
        plan = plans.known(coerced)
        if plan is not None:
            return plan
        is_wanted = plans.is_wanted(coerced)
        if not (is_wanted or size.values > LARGE_VALUES) or not plans.is_plannable:
            return None
        plan = await in_thread(compiled, values) if self._is_long else compiled(values)
        if is_wanted or not plans:
            plans.keep(coerced, plan)
        return plan


def _passed(size: Size, limits: Limits) -> GraphQLError | None:
    """Return which limit an operation of this size passes, if any."""
    if size.rows > limits.cost:
        return exceeded(
            f"The operation may read {size.rows} rows, and at most {limits.cost} may be read at once: "
            "ask for smaller pages or fewer days."
        )
    for what, count, most in (
        ("values", size.values, limits.answer_values),
        ("bytes", size.bytes, limits.answer_bytes),
    ):
        if count > most:
            return exceeded(
                f"The answer may have {count} {what}, and at most {most} may be returned at once: "
                "ask for fewer fields, smaller pages, fewer days, or the usage names that are needed."
            )
    return None


class _Growth:
    """What an answer comes to beyond what was foreseen, as by the usage days of names that were not asked for."""

    def __init__(self, size: Size, limits: Limits, room: Room, of_record: Callable[..., Size]) -> None:
        self._size = size
        self._limits = limits
        self._room = room
        self._of_record = of_record
        self._lock = asyncio.Lock()

    async def admit(self, count: int, *, name_length: int = 0) -> None:
        """See `Admit`."""
        record, size = self._of_record(name_length=name_length), self._size
        grown = Size(size.rows, size.values + count * record.values, size.bytes + count * record.bytes)
        too_much = _passed(grown, self._limits)
        if too_much is not None:
            raise LimitExceeded(too_much.message)
        self._size = grown
        if grown.weight > SMALL_WEIGHT:
            # Waiting with what it has could have two of them wait for each other.
            async with self._lock:
                self._room.leave()
                await self._room.take(self._size.weight)
