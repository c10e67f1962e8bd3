"""How much one operation may come to: the rows that it reads, and the values and bytes of its answer, at most.

It is known before anything is read: from the selection, the arguments, and what each field says of itself (see
`sizes.py`). An operation is compiled once into functions of its variables' values, and each fragment once, so that it
takes as long as the document, written out, is long.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import orjson
from graphql import (
    BooleanValueNode,
    DirectiveNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    StringValueNode,
    ValueNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_abstract_type,
    is_introspection_type,
    is_list_type,
)
from graphql.type import SchemaMetaFieldDef, TypeMetaFieldDef

from resolvers.bounds import DEFAULT_BOUNDS, Bounds
from resolvers.context import Clock
from schema.engine.limits.sizes import Asked, Leaf, Records, Sizes, text_bytes

#: The coerced values of an operation's variables.
_Values: TypeAlias = Mapping[str, Any]


class Size(NamedTuple):
    """What something comes to at most."""

    rows: int = 0
    values: int = 0
    """Fields, lists and objects of the answer."""
    bytes: int = 0
    """The answer's length in JSON."""

    @property
    def weight(self) -> int:
        """The memory that it takes until it is sent, in bytes: of the answer, of the values, and of what was read."""
        return self.bytes + _VALUE_WEIGHT * self.values + _ROW_WEIGHT * self.rows


_VALUE_WEIGHT = 50
_ROW_WEIGHT = 250


class _Inputs(NamedTuple):
    """What an operation's size depends on besides its document."""

    values: _Values
    today: date
    name_bytes: int | None = None
    """The longest of the names that the list around what is measured was asked for; None: any."""
    is_each_type: bool = False
    """Of the introspection: whether what is measured lies in a list that has each type of the schema once."""


#: What something comes to in one object of the answer.
_Count: TypeAlias = Callable[[_Inputs], Size]

#: Gives the value of an argument.
_Value: TypeAlias = Callable[[_Values], Any]


#: The longest text of the introspection, descriptions aside, and how long its lists of leaves are.
_NAME_IN_SCHEMA_BYTES = 100
_INTROSPECTED_ITEMS = 30

#: The lists of a type, by their names in the introspection.
_LISTS_OF_TYPES = {"inputFields": "fields", "enumValues": "values", "possibleTypes": "types"}
_LISTS_OF_TYPES |= {name: name for name in ("fields", "interfaces")}

#: What an object, a list or a field has around its value: brackets, quotes, a colon, a comma.
_AROUND = 4

#: The maximum number of values of its variables for which an operation's size is remembered.
MAX_REMEMBERED = 64


class Cost:
    """What one operation of a valid document comes to at most, by the values of its variables."""

    def __init__(
        self,
        schema: GraphQLSchema,
        sizes: Sizes,
        fragments: Mapping[str, FragmentDefinitionNode],
        node: OperationDefinitionNode,
        bounds: Bounds,
    ) -> None:
        self._schema = schema
        self._sizes = sizes
        self._bounds = bounds
        self._fragments = fragments
        self._compiled: dict[str, _Count] = {}
        self._variables: set[str] = set()
        #: Those of them that are lists of names, whose lengths count.
        self._names: set[str] = set()
        self._needs_today = False
        #: What one record of each list comes to that may have more of them than is foreseen.
        self._growing_counts: list[_Count] = []
        #: Whether it asks the schema about itself.
        self.introspects = False
        root = schema.get_root_type(node.operation)
        assert root is not None  # noqa: S101  # The document is valid.
        self._count = self._of_selections(node.selection_set, root)
        self._keys = tuple([(name, name in self._names) for name in sorted(self._variables)])
        self._remembered: dict[tuple[Any, ...], Size] = {}

    @property
    def may_grow(self) -> bool:
        """Whether there are lists of which nobody knows before they are read how many records they have."""
        return bool(self._growing_counts)

    def of_growing_record(self, values: _Values, *, name_length: int) -> Size:
        """Return what a record of such a list comes to at most, whose name, if it has one, has so many characters."""
        inputs = _Inputs(values, date.min, text_bytes(name_length))
        sizes = [count(inputs) for count in self._growing_counts]
        return Size(1, 1 + max(size.values for size in sizes), _AROUND + max(size.bytes for size in sizes))

    def of(self, values: _Values, clock: Clock) -> Size:
        """Return the size for these coerced values of the variables; the clock gives the day."""
        key = tuple([_brief(values.get(name), has_names=has_names) for name, has_names in self._keys])
        today = date.min
        if self._needs_today:
            today = clock().date()
            key = (today, *key)
        size = self._remembered.get(key)
        if size is None:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            size = self._count(_Inputs(values, today))
            self._remembered[key] = size
        return size

    def _of_selections(self, selection_set: SelectionSetNode | None, parent: GraphQLNamedType) -> _Count:
        own: list[_Count] = []
        #: Of an object of several types, what each type alone has.
        by_type: dict[str, list[_Count]] = {}
        for selection in selection_set.selections if selection_set is not None else ():
            counts = own
            if isinstance(selection, FieldNode):
                count = self._of_field(selection, parent)
            else:
                type_ = self._type_of(selection, parent)
                count = (
                    self._of_fragment(selection.name.value)
                    if isinstance(selection, FragmentSpreadNode)
                    else self._of_selections(getattr(selection, "selection_set", None), type_)
                )
                if is_abstract_type(parent) and isinstance(type_, GraphQLObjectType):
                    counts = by_type.setdefault(type_.name, [])
            counts.append(self._where_included(selection.directives, count))
        return _sum_of(own) if not by_type else _sum_of([*own, _largest_of([*map(_sum_of, by_type.values())])])

    def _type_of(self, selection: SelectionNode, parent: GraphQLNamedType) -> GraphQLNamedType:
        """Return the type that a fragment is for, wherever it stands."""
        if isinstance(selection, FragmentSpreadNode):
            return self._schema.type_map[self._fragments[selection.name.value].type_condition.name.value]
        assert isinstance(selection, InlineFragmentNode)  # noqa: S101  # There is no other fragment.
        condition = selection.type_condition
        return parent if condition is None else self._schema.type_map[condition.name.value]

    def _of_fragment(self, name: str) -> _Count:
        if name not in self._compiled:
            fragment = self._fragments[name]
            type_ = self._schema.type_map[fragment.type_condition.name.value]
            self._compiled[name] = self._of_selections(fragment.selection_set, type_)
        return self._compiled[name]

    def _of_field(self, node: FieldNode, parent: GraphQLNamedType) -> _Count:
        field = self._definition(node.name.value, parent)
        around = len((node.alias or node.name).value) + _AROUND
        if field is None or node.selection_set is None:
            return self._of_leaf(node.name.value, field, parent, around)
        below = self._of_selections(node.selection_set, get_named_type(field.type))
        said = self._sizes.records.get((parent.name, node.name.value))
        rows = self._rows(node, field, parent, said)
        names = None
        if said is not None and said.names is not None:
            names = self._names_of(node, said.names)
        if said is not None and said.grows:
            self._growing_counts.append(below)

        is_of_schema, name = is_introspection_type(parent), node.name.value

        def count(inputs: _Inputs) -> Size:
            number = 1 if rows is None else rows(inputs.values, inputs.today)
            if is_of_schema:
                if inputs.is_each_type and name in _LISTS_OF_TYPES:
                    number = self._mean_in_schema(name)
                inputs = inputs._replace(is_each_type=name == "types")
            if names is not None:
                inputs = inputs._replace(name_bytes=names(inputs.values))
            each = below(inputs)
            return Size(
                number * each.rows + (0 if rows is None else number),
                1 + number * (each.values + 1),
                around + _AROUND + number * (each.bytes + _AROUND),
            )

        return count

    def _of_leaf(self, name: str, field: GraphQLField | None, parent: GraphQLNamedType, around: int) -> _Count:
        if name == "__typename" or field is None:
            leaf = Leaf(max(map(len, self._schema.type_map)) + 2)
        elif is_introspection_type(parent):
            leaf = Leaf(self._longest_description if name == "description" else _NAME_IN_SCHEMA_BYTES)
            if is_list_type(get_nullable_type(field.type)):
                leaf = leaf._replace(items=_INTROSPECTED_ITEMS)
        else:
            leaf = self._sizes.leaves[parent.name, name]
        if leaf.items > 1:
            size = Size(0, leaf.items, around + leaf.items * (leaf.bytes + 1) + 2)
        else:
            size = Size(0, 1, around + leaf.bytes)
        if not leaf.is_named:
            return lambda _inputs: size
        return lambda inputs: size if inputs.name_bytes is None else Size(0, 1, around + inputs.name_bytes)

    def _names_of(self, node: FieldNode, argument: str) -> Callable[[_Values], int | None]:
        """Return the function that gives the bytes of the longest of the names that are asked for."""
        names = self._argument(node, argument, are_names=True)

        def longest(values: _Values) -> int | None:
            given = names(values)
            return _longest(given) if isinstance(given, list | tuple) and given else None

        return longest

    def _definition(self, name: str, parent: GraphQLNamedType) -> GraphQLField | None:
        if name in {"__schema", "__type"}:
            self.introspects = True
            return SchemaMetaFieldDef if name == "__schema" else TypeMetaFieldDef
        return parent.fields.get(name) if isinstance(parent, GraphQLObjectType | GraphQLInterfaceType) else None

    def _rows(
        self, node: FieldNode, field: GraphQLField, parent: GraphQLNamedType, said: Records | None
    ) -> Callable[[_Values, date], int] | None:
        """Return how many rows one of these fields reads; None: no other than those of the field it lies in."""
        type_ = get_named_type(field.type)
        if is_introspection_type(parent):
            most = self._most_in_schema(node.name.value) if is_list_type(get_nullable_type(field.type)) else 0
            return (lambda _values, _today: most) if most else None
        if said is not None:
            self._needs_today = self._needs_today or said.is_dated
            return self._records(node, said.maximum) if said.maximum is not None else None
        is_row = type_.name == "Node" or "Node" in [each.name for each in getattr(type_, "interfaces", ())]
        return _one if is_row or parent is self._schema.mutation_type else None

    def _records(self, node: FieldNode, count: Callable[[Asked], int]) -> Callable[[_Values, date], int]:
        arguments = {argument.name.value: self._value(argument.value) for argument in node.arguments or ()}
        bounds = self._bounds

        def rows(values: _Values, today: date) -> int:
            return count(Asked({name: value(values) for name, value in arguments.items()}, bounds, today))

        return rows

    def _argument(self, node: FieldNode | DirectiveNode, name: str, *, are_names: bool = False) -> _Value:
        for argument in node.arguments or ():
            if argument.name.value == name:
                if are_names and isinstance(argument.value, VariableNode):
                    self._names.add(argument.value.name.value)
                return self._value(argument.value)
        return lambda _values: None

    def _value(self, node: ValueNode) -> _Value:
        """Return the function that gives an argument's value: of a list, its items or their nodes."""
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

    @cached_property
    def _longest_description(self) -> int:
        described: list[Any] = [*self._schema.type_map.values(), *self._schema.directives]
        for type_ in self._schema.type_map.values():
            members = [*getattr(type_, "fields", {}).values(), *getattr(type_, "values", {}).values()]
            described += members
            described += [argument for member in members for argument in getattr(member, "args", {}).values()]
        return max(_json_bytes(each.description or "") for each in described)

    def _mean_in_schema(self, name: str) -> int:
        """Return how long this list of the introspection is on average, where it is asked of each type."""
        types = self._schema.type_map.values()
        return -(-sum(len(getattr(type_, _LISTS_OF_TYPES[name], ())) for type_ in types) // len(types))

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
        return max(len(getattr(type_, _LISTS_OF_TYPES.get(name, name), ())) for type_ in types)


def _sum_of(counts: list[_Count]) -> _Count:
    if len(counts) == 1:
        return counts[0]

    def count(inputs: _Inputs) -> Size:
        rows = values = bytes_ = 0
        for each in counts:
            size = each(inputs)
            rows, values, bytes_ = rows + size.rows, values + size.values, bytes_ + size.bytes
        return Size(rows, values, bytes_)

    return count


def _largest_of(counts: list[_Count]) -> _Count:
    """Return the count of what is of one of several types; the rows of all are counted."""

    def count(inputs: _Inputs) -> Size:
        rows, values, bytes_ = zip(*[each(inputs) for each in counts], strict=True)
        return Size(sum(rows), max(values), max(bytes_))

    return count


def _counted_if(value: _Value, wanted: bool, count: _Count) -> _Count:  # noqa: FBT001  # A value to compare with.
    return lambda inputs: count(inputs) if value(inputs.values) is wanted else _NOTHING


_NOTHING = Size()


def _one(_values: _Values, _today: date) -> int:
    return 1


def _longest(names: Sequence[str | ValueNode]) -> int:
    """Return the bytes of the longest of some names, which are texts or their literals."""
    # More than may be asked for are refused before anything is read.
    some = names[: DEFAULT_BOUNDS.usage_names]
    return max(_json_bytes(name if isinstance(name, str) else getattr(name, "value", "")) for name in some)


def _json_bytes(text: str) -> int:
    try:
        return len(orjson.dumps(text))
    except TypeError:  # It has a lone surrogate, and is refused where it is read.
        return text_bytes(len(text))


def _brief(value: Any, *, has_names: bool) -> Any:
    """Return what of a variable's value decides a size."""
    if isinstance(value, list):
        return (len(value), _longest(value)) if has_names and value else len(value)
    return value if isinstance(value, int | date) else value is not None
