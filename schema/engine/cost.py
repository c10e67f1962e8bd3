"""How much one operation may come to: the rows that it reads, and the values and bytes of its answer, at most.

It is known before anything is read: from the selection, the pages and ranges that are asked for, and how long each
value may be. An operation is compiled once into functions of its variables' values, and each fragment once, so that it
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
    is_enum_type,
    is_introspection_type,
    is_list_type,
)
from graphql.type import SchemaMetaFieldDef, TypeMetaFieldDef

from resolvers.bounds import DEFAULT_BOUNDS, Bounds
from resolvers.context import Clock
from resolvers.usage import DEFAULT_DAYS
from resolvers.values import (
    KEY_LENGTH,
    METADATA_BYTES,
    NAME_LENGTH,
    ORG_LENGTH,
    REASON_LENGTH,
    USAGE_NAME_LENGTH,
    parse_day,
)
from schema.relay import DEFAULT_PAGE

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


class _Request(NamedTuple):
    """What an operation's size depends on besides its document."""

    values: _Values
    today: date
    usage_name_bytes: int
    """The longest usage name of the usage days around what is measured."""


#: What something comes to in one object of the answer.
_Count: TypeAlias = Callable[[_Request], Size]

#: Gives the value of an argument.
_Value: TypeAlias = Callable[[_Values], Any]


def _text_bytes(characters: int) -> int:
    # JSON writes a control character in six bytes; any other takes four at most.
    return 6 * characters + 2


#: The longest value of each field that is a text or an id, in bytes of JSON; that of the other scalars is below.
_ID_BYTES = 50
TEXT_BYTES = {
    "id": _ID_BYTES,
    "billingId": _ID_BYTES,
    "existingId": _ID_BYTES,
    "recordedBy": _ID_BYTES,
    "cursor": 80,
    "startCursor": 80,
    "endCursor": 80,
    "timezone": 66,
    "token": 130,
    "field": 66,
    "orgId": _text_bytes(ORG_LENGTH),
    "workspaceId": _text_bytes(NAME_LENGTH),
    "workspaceIds": _text_bytes(NAME_LENGTH),
    "externalMeterId": _text_bytes(NAME_LENGTH),
    "externalId": _text_bytes(NAME_LENGTH),
    "email": _text_bytes(NAME_LENGTH),
    "name": _text_bytes(NAME_LENGTH),
    "key": _text_bytes(KEY_LENGTH),
    "usageName": _text_bytes(USAGE_NAME_LENGTH),
    "billingUsageName": _text_bytes(USAGE_NAME_LENGTH),
    "reason": _text_bytes(REASON_LENGTH),
    "message": _text_bytes(2 * NAME_LENGTH),
}
SCALAR_BYTES = {
    "Boolean": len("false"),
    "Int": len("-2147483648"),
    "BigInt": len('"9223372036854775807"'),
    "Date": len('"2026-03-16"'),
    "DateTime": len('"2026-03-16T12:00:00.123456Z"'),
    "JSON": METADATA_BYTES,
}

#: The longest text of the introspection, descriptions aside.
_NAME_IN_SCHEMA_BYTES = 100

#: How long the lists of leaves are at most; of its workspaces, a key's are as many as its operator has given it.
LIST_ITEMS = {"scopes": 10, "workspaceIds": 100, "field": 10, "locations": 30}

#: What an object, a list or a field has around its value: brackets, quotes, a colon, a comma.
_AROUND = 4

#: The maximum number of values of its variables for which an operation's size is remembered.
MAX_REMEMBERED = 64


class Cost:
    """What one operation of a valid document comes to at most, by the values of its variables."""

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
        #: Those of them that are lists of usage names, whose lengths count.
        self._names: set[str] = set()
        self._needs_today = False
        #: What one usage day of each field comes to.
        self._usage_day_counts: list[_Count] = []
        #: Whether it asks the schema about itself.
        self.introspects = False
        root = schema.get_root_type(node.operation)
        assert root is not None  # noqa: S101  # The document is valid.
        self._count = self._of_selections(node.selection_set, root)
        self._keys = tuple([(name, name in self._names) for name in sorted(self._variables)])
        self._remembered: dict[tuple[Any, ...], Size] = {}

    @property
    def has_usage(self) -> bool:
        """Whether usage days are asked for."""
        return bool(self._usage_day_counts)

    def of_usage_day(self, values: _Values, *, name_length: int) -> Size:
        """Return what a usage day comes to at most whose name has so many characters."""
        request = _Request(values, date.min, _text_bytes(name_length))
        sizes = [count(request) for count in self._usage_day_counts]
        return Size(1, 1 + max(size.values for size in sizes), _AROUND + max(size.bytes for size in sizes))

    def of(self, values: _Values, clock: Clock) -> Size:
        """Return the size for these coerced values of the variables; the clock tells today."""
        key = tuple([_brief(values.get(name), has_names=has_names) for name, has_names in self._keys])
        today = date.min
        if self._needs_today:
            today = clock().date()
            key = (today, *key)
        size = self._remembered.get(key)
        if size is None:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            size = self._count(_Request(values, today, TEXT_BYTES["billingUsageName"]))
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
        rows = self._rows(node, field, parent)
        names = None
        if get_named_type(field.type).name == "UsageDay":
            names = self._usage_names(node)
            self._usage_day_counts.append(below)

        def count(request: _Request) -> Size:
            number = 1 if rows is None else rows(request.values, request.today)
            if names is not None:
                request = request._replace(usage_name_bytes=names(request.values))
            each = below(request)
            return Size(
                number * each.rows + (0 if rows is None else number),
                1 + number * (each.values + 1),
                around + _AROUND + number * (each.bytes + _AROUND),
            )

        return count

    def _of_leaf(self, name: str, field: GraphQLField | None, parent: GraphQLNamedType, around: int) -> _Count:
        type_ = get_named_type(field.type) if field is not None else None
        if name == "__typename" or type_ is None:
            most = max(map(len, self._schema.type_map)) + 2
        elif is_enum_type(type_):
            most = max(map(len, type_.values)) + 2
        elif type_.name in SCALAR_BYTES:
            most = SCALAR_BYTES[type_.name]
        elif is_introspection_type(parent):
            most = self._longest_description if name == "description" else _NAME_IN_SCHEMA_BYTES
        else:
            most = TEXT_BYTES[name]
        if field is not None and is_list_type(get_nullable_type(field.type)):
            items = LIST_ITEMS[name]
            size = Size(0, items, around + items * (most + 1) + 2)
        else:
            size = Size(0, 1, around + most)
        if name == "billingUsageName":
            return lambda request: Size(0, 1, around + request.usage_name_bytes)
        return lambda _request: size

    def _usage_names(self, node: FieldNode) -> Callable[[_Values], int]:
        """Return the function that gives the bytes of the longest of the usage names that are asked for."""
        names = self._argument(node, "names", are_names=True)
        unknown = TEXT_BYTES["billingUsageName"]

        def longest(values: _Values) -> int:
            given = names(values)
            return _longest(given) if isinstance(given, list | tuple) and given else unknown

        return longest

    def _definition(self, name: str, parent: GraphQLNamedType) -> GraphQLField | None:
        if name in {"__schema", "__type"}:
            self.introspects = True
            return SchemaMetaFieldDef if name == "__schema" else TypeMetaFieldDef
        return parent.fields.get(name) if isinstance(parent, GraphQLObjectType | GraphQLInterfaceType) else None

    def _rows(
        self, node: FieldNode, field: GraphQLField, parent: GraphQLNamedType
    ) -> Callable[[_Values, date], int] | None:
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

    def _page(self, node: FieldNode) -> Callable[[_Values, date], int]:
        first, last = self._argument(node, "first"), self._argument(node, "last")
        most = self._bounds.page_rows

        def rows(values: _Values, _today: date) -> int:
            asked = first(values) or last(values)
            # What is out of range is refused where the page is read.
            return min(max(asked, 1) if isinstance(asked, int) else DEFAULT_PAGE, most)

        return rows

    def _usage_days(self, node: FieldNode) -> Callable[[_Values, date], int]:
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

    def _argument(self, node: FieldNode | DirectiveNode, name: str, *, are_names: bool = False) -> _Value:
        for argument in node.arguments or ():
            if argument.name.value == name:
                if are_names and isinstance(argument.value, VariableNode):
                    self._names.add(argument.value.name.value)
                return self._value(argument.value)
        return lambda _values: None

    def _value(self, node: ValueNode) -> _Value:
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

    @cached_property
    def _longest_description(self) -> int:
        described: list[Any] = [*self._schema.type_map.values(), *self._schema.directives]
        for type_ in self._schema.type_map.values():
            members = [*getattr(type_, "fields", {}).values(), *getattr(type_, "values", {}).values()]
            described += members
            described += [argument for member in members for argument in getattr(member, "args", {}).values()]
        return max(_json_bytes(each.description or "") for each in described)

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


def _sum_of(counts: list[_Count]) -> _Count:
    if len(counts) == 1:
        return counts[0]

    def count(request: _Request) -> Size:
        rows = values = bytes_ = 0
        for each in counts:
            size = each(request)
            rows, values, bytes_ = rows + size.rows, values + size.values, bytes_ + size.bytes
        return Size(rows, values, bytes_)

    return count


def _largest_of(counts: list[_Count]) -> _Count:
    """Return the count of what is of one of several types; the rows of all are counted."""

    def count(request: _Request) -> Size:
        rows, values, bytes_ = zip(*[each(request) for each in counts], strict=True)
        return Size(sum(rows), max(values), max(bytes_))

    return count


def _counted_if(value: _Value, wanted: bool, count: _Count) -> _Count:  # noqa: FBT001  # A value to compare with.
    return lambda request: count(request) if value(request.values) is wanted else _NOTHING


_NOTHING = Size()


def _one(_values: _Values, _today: date) -> int:
    return 1


def _length(value: Any) -> int:
    # A single value stands for a list of it.
    return len(value) if isinstance(value, list | tuple) else value is not None


def _longest(names: Sequence[str | ValueNode]) -> int:
    """Return the bytes of the longest of some names, which are texts or their literals."""
    # More than may be asked for are refused before anything is read.
    some = names[: DEFAULT_BOUNDS.usage_names]
    return max(_json_bytes(name if isinstance(name, str) else getattr(name, "value", "")) for name in some)


def _json_bytes(text: str) -> int:
    try:
        return len(orjson.dumps(text))
    except TypeError:  # It has a lone surrogate, and is refused where it is read.
        return _text_bytes(len(text))


def _day(value: Any) -> date | None:
    return parse_day(value) if isinstance(value, str) else value


def _brief(value: Any, *, has_names: bool) -> Any:
    """Return what of a variable's value decides a size."""
    if isinstance(value, list):
        return (len(value), _longest(value)) if has_names and value else len(value)
    return value if isinstance(value, int | date) else value is not None
