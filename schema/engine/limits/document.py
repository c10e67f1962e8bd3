"""How much one request may ask for, and how much of that is its document; `cost.py` has the rest.

A document is measured before graphql-core validates it, because some rules of validation take far longer than the text
is long. Each fragment is measured once, so measuring takes as long as reading, however fragments spread each other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from graphql import (
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    ListValueNode,
    Node,
    ObjectValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValueNode,
)

from resolvers.actor import Actor
from resolvers.bounds import DEFAULT_BOUNDS, Bounds
from resolvers.errors import LimitExceeded
from storage.tenants import Environment


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limits:
    """The most of each that one request may have; `docs/limits.md` says why."""

    tokens: int = 5_000
    depth: int = 20
    fields: int = 1_000
    aliases: int = 100
    directives: int = 100
    fragments: int = 100
    list_items: int = 1_000
    cost: int = 100_000
    answer_values: int = 1_000_000
    answer_bytes: int = 83_886_080
    #: Who may ask the schema about itself: `all`, `keys` (no customer's session), `sandbox` (its keys alone), `none`.
    introspection: str = "all"
    #: What bounds the lists that are asked for; most are checked where they are read.
    bounds: Bounds = DEFAULT_BOUNDS

    def may_introspect(self, actor: Actor) -> bool:
        """Whether the actor may ask the schema about itself."""
        if self.introspection == "all":
            return True
        if self.introspection == "none" or actor.customer_id is not None:
            return False
        return self.introspection == "keys" or actor.environment is Environment.SANDBOX


DEFAULT = Limits()

#: The answer to a key that may not ask the schema about itself.
NOT_INTROSPECTED = "This key may not read the schema."


def exceeded(message: str, node: Node | None = None) -> GraphQLError:
    """Return the error of a passed limit."""
    return GraphQLError(message, node, extensions={"code": LimitExceeded.code})


def check_document(document: DocumentNode, limits: Limits) -> GraphQLError | None:
    """Return which limit the document passes, the first one that is met, if any."""
    fragments = {
        definition.name.value: definition
        for definition in document.definitions
        if isinstance(definition, FragmentDefinitionNode)
    }
    try:
        _Measure(fragments, limits).check(document)
    except GraphQLError as error:
        return error
    except RecursionError:
        return _too_deep(limits)
    return None


def _too_deep(limits: Limits, node: Node | None = None) -> GraphQLError:
    return exceeded(f"The document nests fields more than {limits.depth} levels deep.", node)


class _Size(NamedTuple):
    """What a selection comes to when each fragment is written out where it is spread."""

    depth: int = 0
    fields: int = 0
    aliases: int = 0
    directives: int = 0


class _Measure:
    """Measures a document that need not be valid. Raises `GraphQLError` for the first limit that it passes."""

    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode], limits: Limits) -> None:
        self._fragments = fragments
        self._limits = limits
        self._known: dict[str, _Size] = {}

    def check(self, document: DocumentNode) -> None:
        limits = self._limits
        count = sum(isinstance(definition, FragmentDefinitionNode) for definition in document.definitions)
        if count > limits.fragments:
            raise exceeded(f"The document has {count} fragments, and may have at most {limits.fragments}.")
        for definition in document.definitions:
            if isinstance(definition, FragmentDefinitionNode):
                # Also one that is spread nowhere is validated.
                self._of_fragment(definition.name.value)
            elif isinstance(definition, OperationDefinitionNode):
                directives = self._directives(definition.directives)
                for variable in definition.variable_definitions or ():
                    directives += self._directives(variable.directives)
                    self._check_value(variable.default_value)
                size = self._of_selections(definition.selection_set, 0)
                self._within(_Size(*size[:3], size.directives + directives), definition)

    def _of_fragment(self, name: str) -> _Size:
        size = self._known.get(name)
        if size is None:
            fragment = self._fragments.get(name)
            # One that leads to itself comes to nothing here, and is refused by validation.
            self._known[name] = _Size()
            if fragment is None:
                return _Size()
            size = self._of_selections(fragment.selection_set, 0)
            size = self._known[name] = _Size(*size[:3], size.directives + self._directives(fragment.directives))
        return size

    def _of_selections(
        self, selection_set: SelectionSetNode | None, level: int, names: set[str] | None = None
    ) -> _Size:
        """Return the size of the selections, which lie `level` fields deep in their definition.

        `names` are those that the same object's answer already has.
        """
        depth = fields = aliases = directives = 0
        names = set() if names is None else names
        for selection in selection_set.selections if selection_set is not None else ():
            fields += 1
            directives += self._directives(selection.directives)
            if isinstance(selection, FieldNode):
                if level >= self._limits.depth:
                    raise _too_deep(self._limits, selection)
                if selection.alias is not None:
                    aliases += 1
                if selection.selection_set is not None:
                    # What is selected twice under one name is compared with each other: as costly as an alias.
                    name = (selection.alias or selection.name).value
                    aliases += selection.alias is None and name in names
                    names.add(name)
                for argument in selection.arguments or ():
                    self._check_value(argument.value)
                below = self._of_selections(selection.selection_set, level + 1)
                below = below._replace(depth=below.depth + 1)
            elif isinstance(selection, InlineFragmentNode):
                below = self._of_selections(selection.selection_set, level, names)
            else:
                assert isinstance(selection, FragmentSpreadNode)  # noqa: S101  # There is no other selection.
                below = self._of_fragment(selection.name.value)
            depth = max(depth, below.depth)
            fields += below.fields
            aliases += below.aliases
            directives += below.directives
            self._within(_Size(depth, fields, aliases, directives), selection)
        return _Size(depth, fields, aliases, directives)

    def _within(self, size: _Size, node: Node) -> None:
        limits = self._limits
        if size.depth > limits.depth:
            raise _too_deep(limits, node)
        for what, count, most in (
            ("fields and fragments", size.fields, limits.fields),
            ("aliases and repeated fields", size.aliases, limits.aliases),
            ("directives", size.directives, limits.directives),
        ):
            if count > most:
                raise exceeded(f"The document selects more than {most} {what}, its fragments written out.", node)

    def _directives(self, directives: Iterable[DirectiveNode] | None) -> int:
        count = 0
        for directive in directives or ():
            count += 1
            for argument in directive.arguments or ():
                self._check_value(argument.value)
        return count

    def _check_value(self, value: ValueNode | None) -> None:
        if isinstance(value, ListValueNode):
            if len(value.values) > self._limits.list_items:
                raise exceeded(
                    f"A list in the document has {len(value.values)} items, and may have at most "
                    f"{self._limits.list_items}: send it as a variable.",
                    value,
                )
            for item in value.values:
                self._check_value(item)
        elif isinstance(value, ObjectValueNode):
            for field in value.fields:
                self._check_value(field.value)
