"""Plans: what the executions of an operation have in common that select the same fields."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from graphql import (
    DirectiveNode,
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLObjectType,
    VariableNode,
    Visitor,
    visit,
)
from graphql.execution.collect_fields import CollectedFields, FieldDetailsList, GroupedFieldSet
from graphql.execution.values import VariableValues

from schema.engine.execution.arguments import SelectedArguments
from schema.engine.execution.batching import Function, Subtree
from schema.engine.execution.resolving import ContextOnly, MutationOutcome, Resolver

#: The maximum number of plans that one operation keeps: one for each combination of the values of its `@skip` and
#: `@include`; and of those combinations that were seen once, and have a plan when they recur.
MAX_PLANS = 8


@dataclass(frozen=True, slots=True)
class CompiledMutation:
    """What answers a mutation of one field: its resolver, and the subtree that completes what that returns."""

    name: str
    """The field's name in the answer."""
    resolver: Resolver
    arguments: SelectedArguments
    subtree: Subtree

    @property
    def is_chain(self) -> bool:
        """See `Subtree`."""
        return self.subtree.is_chain

    async def answer(self, outcome: MutationOutcome, context: Any, variables: VariableValues) -> dict[str, Any]:
        """Execute it, unless the outcome is known, and return the whole answer. Raises at any surprise."""
        value = await outcome.of(self.resolver, ContextOnly(context), self.arguments.values(variables))
        return {self.name: await self.subtree.answer(value, context, variables)}


class Plan:
    """What the executions of an operation share that select the same fields."""

    def __init__(self) -> None:
        self.root: GroupedFieldSet | None = None
        #: What answers the whole operation, if it is a query or one mutation, of but batched and plain fields.
        self.whole: Subtree | CompiledMutation | None = None
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
