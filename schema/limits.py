"""How much one request may ask for: of its document, when it is prepared, and of the rows it reads, when it is run.

A document is measured before graphql-core validates it, because some rules of validation take far longer than the text
is long. Each fragment is measured once, so measuring takes as long as reading, however fragments spread each other.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple, TypeAlias

from graphql import (
    BooleanValueNode,
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    Node,
    ObjectValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    StringValueNode,
    ValueNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_introspection_type,
    is_list_type,
)
from graphql.type import SchemaMetaFieldDef, TypeMetaFieldDef

from resolvers.actor import Actor
from resolvers.bounds import DEFAULT_BOUNDS, Bounds
from resolvers.context import Clock
from resolvers.errors import LimitExceeded
from resolvers.usage import DEFAULT_DAYS
from resolvers.values import parse_day
from schema.connections import DEFAULT_PAGE
from storage.tables import Environment


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limits:
    """The most of each that one request may have; `docs/limits.md` tells why."""

    tokens: int = 5_000
    depth: int = 20
    fields: int = 1_000
    aliases: int = 100
    directives: int = 100
    fragments: int = 100
    list_items: int = 1_000
    cost: int = 100_000
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

#: What a key is told that may not ask the schema about itself.
NOT_INTROSPECTED = "The schema is not told to this key."


def exceeded(message: str, node: Node | None = None) -> GraphQLError:
    """Return the error that tells of a passed limit."""
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


#: The coerced values of an operation's variables.
_Values: TypeAlias = Mapping[str, Any]

#: How many rows something comes to, by the values of the variables and the day of today.
_Count: TypeAlias = Callable[[_Values, date], int]

#: The most values of its variables for which an operation's cost is remembered.
MOST_REMEMBERED = 64


class Cost:
    """The rows that one operation of a valid document may read at most, by the values of its variables."""

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: Mapping[str, FragmentDefinitionNode],
        node: OperationDefinitionNode,
        bounds: Bounds,
    ) -> None:
        self._schema = schema
        self._bounds = bounds
        self._fragments = fragments
        self._compiled: dict[str, _Count] = {}
        self._variables: set[str] = set()
        self._needs_today = False
        #: Whether it asks the schema about itself.
        self.introspects = False
        root = schema.get_root_type(node.operation)
        assert root is not None  # noqa: S101  # The document is valid.
        self._count = self._of_selections(node.selection_set, root)
        self._names = tuple(sorted(self._variables))
        self._remembered: dict[tuple[Any, ...], int] = {}

    def of(self, values: _Values, clock: Clock) -> int:
        """Return the rows for these coerced values of the variables; the clock tells today."""
        key = tuple([_brief(values.get(name)) for name in self._names])
        today = date.min
        if self._needs_today:
            today = clock().date()
            key = (today, *key)
        rows = self._remembered.get(key)
        if rows is None:
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered.clear()
            rows = self._remembered[key] = self._count(values, today)
        return rows

    def _of_selections(self, selection_set: SelectionSetNode | None, parent: GraphQLNamedType) -> _Count:
        counts: list[_Count] = []
        for selection in selection_set.selections if selection_set is not None else ():
            if isinstance(selection, FieldNode):
                count = self._of_field(selection, parent)
            elif isinstance(selection, FragmentSpreadNode):
                count = self._of_fragment(selection.name.value)
            else:
                assert isinstance(selection, InlineFragmentNode)  # noqa: S101  # There is no other selection.
                condition = selection.type_condition
                type_ = parent if condition is None else self._schema.type_map[condition.name.value]
                count = self._of_selections(selection.selection_set, type_)
            if count is not _nothing:
                counts.append(self._where_included(selection.directives, count))
        if not counts:
            return _nothing
        return counts[0] if len(counts) == 1 else lambda values, today: sum([count(values, today) for count in counts])

    def _of_fragment(self, name: str) -> _Count:
        if name not in self._compiled:
            fragment = self._fragments[name]
            type_ = self._schema.type_map[fragment.type_condition.name.value]
            self._compiled[name] = self._of_selections(fragment.selection_set, type_)
        return self._compiled[name]

    def _of_field(self, node: FieldNode, parent: GraphQLNamedType) -> _Count:
        field = self._definition(node.name.value, parent)
        if field is None or node.selection_set is None:
            return _nothing
        below = self._of_selections(node.selection_set, get_named_type(field.type))
        rows = self._rows(node, field, parent)
        if rows is None:
            return below
        if below is _nothing:
            return rows

        def count(values: _Values, today: date) -> int:
            own = rows(values, today)
            return own + own * below(values, today)

        return count

    def _definition(self, name: str, parent: GraphQLNamedType) -> GraphQLField | None:
        if name in {"__schema", "__type"}:
            self.introspects = True
            return SchemaMetaFieldDef if name == "__schema" else TypeMetaFieldDef
        return parent.fields.get(name) if isinstance(parent, GraphQLObjectType | GraphQLInterfaceType) else None

    def _rows(self, node: FieldNode, field: GraphQLField, parent: GraphQLNamedType) -> _Count | None:
        """Return how many rows one of these fields reads; None: no other than those of the field it lies in."""
        type_ = get_named_type(field.type)
        is_list = is_list_type(get_nullable_type(field.type))
        if is_introspection_type(parent):
            most = self._most_in_schema(node.name.value) if is_list else 0
            return (lambda _values, _today: most) if most else None
        if parent.name.endswith(("Connection", "Edge")):
            return None
        if type_.name.endswith("Connection"):
            return self._page(node)
        if type_.name == "UsageDay":
            return self._usage_days(node)
        if is_list:
            # The two lists that are as long as one that is given: `nodes` and `recordUsageBatch`.
            given = self._argument(node, "ids" if type_.name == "Node" else "input")
            return lambda values, _today: _length(given(values))
        is_row = type_.name == "Node" or "Node" in [each.name for each in getattr(type_, "interfaces", ())]
        return _one if is_row or parent is self._schema.mutation_type else None

    def _page(self, node: FieldNode) -> _Count:
        first, last = self._argument(node, "first"), self._argument(node, "last")
        most = self._bounds.page_rows

        def rows(values: _Values, _today: date) -> int:
            asked = first(values) or last(values)
            # What is out of range is refused where the page is read.
            return min(max(asked, 1) if isinstance(asked, int) else DEFAULT_PAGE, most)

        return rows

    def _usage_days(self, node: FieldNode) -> _Count:
        first, last, names, fills = (self._argument(node, name) for name in ("from", "to", "names", "fillZeros"))
        # A range without an end ends today.
        self._needs_today = self._needs_today or any(each.name.value == "from" for each in node.arguments or ())
        bounds = self._bounds
        # Which names are filled with zeros is known from what is read: there may be as many as may be answered over the
        # longest range.
        most_names = bounds.usage_days // bounds.range_days

        def rows(values: _Values, today: date) -> int:
            start, end = _day(first(values)), _day(last(values))
            days = DEFAULT_DAYS if start is None else ((end or today) - start).days + 1
            all_names = most_names if fills(values) else 1
            days = min(max(days, 1), bounds.range_days)
            return min(days * (_length(names(values)) or all_names), bounds.usage_days)

        return rows

    def _argument(self, node: FieldNode | DirectiveNode, name: str) -> Callable[[_Values], Any]:
        for argument in node.arguments or ():
            if argument.name.value == name:
                return self._value(argument.value)
        return lambda _values: None

    def _value(self, node: ValueNode) -> Callable[[_Values], Any]:
        """Return the function that tells an argument's value: of a list, its items or their nodes."""
        if isinstance(node, VariableNode):
            name = node.name.value
            self._variables.add(name)
            return lambda values: values.get(name)
        value: Any = None
        if isinstance(node, IntValueNode):
            value = int(node.value)
        elif isinstance(node, StringValueNode | BooleanValueNode):
            value = node.value
        elif isinstance(node, ListValueNode):
            value = node.values
        elif isinstance(node, ObjectValueNode):
            value = (node,)
        return lambda _values: value

    def _where_included(self, directives: Iterable[DirectiveNode] | None, count: _Count) -> _Count:
        for directive in directives or ():
            if directive.name.value not in {"skip", "include"}:
                continue
            value, wanted = self._argument(directive, "if"), directive.name.value == "include"
            count = _counted_if(value, wanted, count)
        return count

    def _most_in_schema(self, name: str) -> int:
        """Return how long this list of the introspection is at most: as its fields are called."""
        types = self._schema.type_map.values()
        if name == "types":
            return len(types)
        if name == "directives":
            return len(self._schema.directives)
        if name == "args":
            every = [field for type_ in types for field in getattr(type_, "fields", {}).values()]
            return max(len(getattr(field, "args", ())) for field in every)
        of_types = {"enumValues": "values", "possibleTypes": "types", "inputFields": "fields"}
        return max(len(getattr(type_, of_types.get(name, name), ())) for type_ in types)


def _counted_if(value: Callable[[_Values], Any], wanted: bool, count: _Count) -> _Count:  # noqa: FBT001
    return lambda values, today: count(values, today) if value(values) is wanted else 0


def _nothing(_values: _Values, _today: date) -> int:
    return 0


def _one(_values: _Values, _today: date) -> int:
    return 1


def _length(value: Any) -> int:
    # A single value stands for a list of it.
    return len(value) if isinstance(value, list | tuple) else value is not None


def _day(value: Any) -> date | None:
    return parse_day(value) if isinstance(value, str) else value


def _brief(value: Any) -> Any:
    """Return what of a variable's value decides a cost."""
    return len(value) if isinstance(value, list) else value if isinstance(value, int | date) else value is not None
