"""The compiler: writes the functions that answer plain subtrees, and finds the batched fields in them.

Each function goes straight from a value to what the answer says of it. Which fields are selected is decided by
graphql-core's own `collect_subfields`. Whatever a function is not for is a `Surprise`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from enum import Enum
from typing import Any

from graphql import (
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLField,
    GraphQLFloat,
    GraphQLID,
    GraphQLInt,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLString,
    Undefined,
    get_nullable_type,
    is_abstract_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    is_object_type,
)
from graphql.execution import Executor
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet
from graphql.pyutils import is_awaitable
from graphql.type import GraphQLAbstractType, GraphQLLeafType
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.field import StrawberryField

from schema.engine.execution.batching import BatchedField, Subtree
from schema.engine.execution.records import IsRecord
from schema.engine.execution.resolving import DEFINITION, Resolver
from schema.engine.execution.surprise import NotCompilable, Surprise
from storage.engine.columns import Columns

#: The maximum number of functions that one subtree becomes; the limits of a document allow a third of it.
MAX_FUNCTIONS = 3_000


class Compiler:
    """Writes the functions of one subtree.

    Each takes a value and what waits for batched fields, and returns what the answer says of the value. Null is a
    surprise: the caller for a nullable type has looked before.
    """

    def __init__(self, executor: Executor[Any], *, is_batching: bool) -> None:
        self._executor = executor
        self._is_batching = is_batching
        self._fields: list[BatchedField] = []
        self._completed_by: list[str] = []
        self._columns_completed_by: list[str | None] = []
        #: The batched field whose values are being written, and those in whose values one was met.
        self._above: int | None = None
        self._followed: set[int | None] = set()
        self._is_chain = True
        self._by_columns_of: dict[tuple[int, int], str | None] = {}
        self._lines: list[str] = []
        self._functions = 0
        self._names: dict[str, Any] = {
            "Surprise": Surprise,
            "Columns": Columns,
            "Undefined": Undefined,
            "NOTHING": _NOTHING,
            "check": _check,
            "isfinite": math.isfinite,
            "read": _read,
        }

    def finish(self, function: str) -> Subtree:
        """Return the subtree that the function of this name answers, with all that was written."""
        # What is compiled is made of names that the schema gives and of literals; nothing of a request is in it but
        # aliases, which are quoted.
        exec("\n".join(self._lines), self._names)  # noqa: S102
        for field, name, of_columns in zip(self._fields, self._completed_by, self._columns_completed_by, strict=True):
            field.complete = self._names[name]
            field.complete_columns = self._names[of_columns] if of_columns is not None else None
        return Subtree(self._names[function], self._fields, self._is_chain)

    def value(self, type_: GraphQLOutputType, fields: FieldDetailsList) -> str:
        """Write the function of a value of this type and return its name. Raises `NotCompilable`."""
        if is_non_null_type(type_) and is_object_type(type_.of_type):
            return self._object_with_subfields(type_.of_type, fields)
        return self._function(self._conversion(type_, fields, "o"))

    def object(
        self, type_: GraphQLObjectType, grouped_field_set: GroupedFieldSet, others: GroupedFieldSet | None = None
    ) -> str:
        """Write the function of an object with these fields and return its name.

        A field that is not plain is put into `others` and null in what the function returns. Raises `NotCompilable`
        where there are no `others`.
        """
        lines: list[str] = []
        items = []
        waits = []
        for place, (name, fields) in enumerate(grouped_field_set.items()):
            number = self._batched_field(type_, name, fields) if self._is_batching else None
            if number is not None:
                waits.append(f"w[{number}].append((o, r))")
                items.append(f"{name!r}: None")
                continue
            try:
                conversion = self._field(type_, fields, f"v{place}")
            except (NotCompilable, RecursionError):
                if others is None:
                    raise NotCompilable from None
                others[name] = fields
                conversion = [f"v{place} = None"]
            if conversion:
                lines += conversion
                items.append(f"{name!r}: v{place}")
        check = self._class_check(type_, has_attributes=any(" = o." in line for line in lines))
        return self._function([*check, *lines, f"r = {{{', '.join(items)}}}", *waits], "r")

    def _by_columns(self, type_: GraphQLOutputType, fields: FieldDetailsList) -> str | None:
        """Write the function of `Columns` of objects and return its name, or None if there are others than leaves."""
        key = (id(type_), id(fields))
        if key not in self._by_columns_of:
            self._by_columns_of[key] = self._write_by_columns(type_, fields)
        return self._by_columns_of[key]

    def _write_by_columns(self, type_: GraphQLOutputType, fields: FieldDetailsList) -> str | None:
        object_type = get_nullable_type(type_)
        if not is_object_type(object_type) or object_type.is_type_of is not None:
            return None
        lines, items = [], []
        for place, (name, details) in enumerate(
            self._executor.collect_subfields(object_type, fields).grouped_field_set.items()
        ):
            definition = self._executor.schema.get_field(object_type, details[0].node.name.value)
            column = self._column(definition, f"c{place}") if definition is not None else None
            if column is None:
                return None
            lines += column
            items.append(f"{name!r}: v{place}")
        if not items:
            return None
        values = "".join(f"v{place}, " for place in range(len(items)))
        columns = ", ".join(f"c{place}" for place in range(len(items)))
        return self._function([*lines, f"o = [{{{', '.join(items)}}} for {values}in zip({columns})]"])

    def _column(self, definition: GraphQLField, name: str) -> list[str] | None:
        """Return the lines that read and write a field of all records of the `Columns` `o`, if it is a leaf."""
        is_nullable = not is_non_null_type(definition.type)
        type_ = get_nullable_type(definition.type)
        if definition.args or not is_leaf_type(type_) or type_ in _RANGES:
            return None
        attribute = _attribute(definition)
        if attribute is None:
            return None
        classes, write = _writing(type_)
        if is_nullable:
            classes |= {type(None)}
        lines = [f"{name} = o.column({attribute!r})"]
        if not _knows_its_values(write) or is_nullable:
            lines.append(f"if not {self._constant(classes)}.issuperset(map(type, {name})): raise Surprise")
        if write is not None and is_nullable:
            lines.append(f"{name} = [None if v is None else {self._constant(write)}(v) for v in {name}]")
        elif write is not None:
            lines.append(f"{name} = list(map({self._constant(write)}, {name}))")
            if not _knows_its_values(write) and not isinstance(write, type):  # A class makes but instances of itself.
                lines.append(f"if not NOTHING.isdisjoint(map(type, {name})): raise Surprise")
        return lines

    def _batched_field(self, parent_type: GraphQLObjectType, name: str, fields: FieldDetailsList) -> int | None:
        """Return the number of the batched field that the field is, if it is one."""
        definition = self._executor.schema.get_field(parent_type, fields[0].node.name.value)
        resolver = definition.resolve if definition is not None else None
        fetch = resolver.fetch if isinstance(resolver, Resolver) else None
        if definition is None or not isinstance(resolver, Resolver) or fetch is None:
            return None
        place = len(self._fields)
        self._fields.append(BatchedField(name, resolver, fetch, definition, fields[0]))
        self._completed_by.append("")
        type_ = get_nullable_type(definition.type)
        by_columns = self._by_columns(type_.of_type, fields) if is_list_type(type_) else None
        self._columns_completed_by.append(by_columns)
        if by_columns is not None and is_list_type(type_):
            record = get_nullable_type(type_.of_type)
            assert is_object_type(record)  # noqa: S101  # Else there are no columns.
            self._fields[place].width = len(self._executor.collect_subfields(record, fields).grouped_field_set)
        self._is_chain &= self._above not in self._followed
        self._followed.add(self._above)
        above, self._above = self._above, place
        self._completed_by[place] = self.value(definition.type, fields)
        self._above = above
        return place

    def _field(self, parent_type: GraphQLObjectType, fields: FieldDetailsList, name: str) -> list[str]:
        """Return the lines that read a field of the object `o` and convert it; none for one that does not exist."""
        node = fields[0].node
        if node.name.value == "__typename":
            return [f"{name} = {parent_type.name!r}"]
        definition = self._executor.schema.get_field(parent_type, node.name.value)
        if definition is None:
            return []
        if definition.args or node.arguments:
            raise NotCompilable
        reading = self._reading(definition, node.name.value)
        return [f"{name} = {reading}", *self._conversion(definition.type, fields, name)]

    def _reading(self, definition: GraphQLField, name: str) -> str:
        """Return the expression that reads a plain field from the object `o`. Raises `NotCompilable`."""
        if definition.resolve is None:
            return f"read(o, {name!r})"
        attribute = _attribute(definition)
        if attribute is not None:
            return f"o.{attribute}"
        function = _function_of(definition)
        if function is None:
            raise NotCompilable
        return f"{self._constant(function)}(o)"

    def _conversion(self, type_: GraphQLOutputType, fields: FieldDetailsList, name: str) -> list[str]:
        """Return the lines that make of a value what the answer says of it."""
        if is_non_null_type(type_):
            return self._given(type_.of_type, fields, name)
        return [f"if {name} is not None:", *[f"    {line}" for line in self._given(type_, fields, name)]]

    def _given(self, type_: GraphQLOutputType, fields: FieldDetailsList, name: str) -> list[str]:
        if is_leaf_type(type_):
            return self._leaf(type_, name)
        if is_list_type(type_):
            lines = [
                f"if type({name}) is not list and type({name}) is not tuple: raise Surprise",
                f"{name} = [{self.value(type_.of_type, fields)}(item, w) for item in {name}]",
            ]
            by_columns = self._by_columns(type_.of_type, fields)
            if by_columns is None:
                return lines
            return [
                f"if type({name}) is Columns: {name} = {by_columns}({name}, w)",
                "else:",
                *[f"    {line}" for line in lines],
            ]
        if is_abstract_type(type_):
            return [f"{name} = {self._by_class(type_, fields)}[type({name})]({name}, w)"]
        assert is_object_type(type_)  # noqa: S101  # There is no other output type.
        return [f"{name} = {self._object_with_subfields(type_, fields)}({name}, w)"]

    def _leaf(self, type_: GraphQLLeafType, name: str) -> list[str]:
        if type_ in _RANGES:
            return [f"if not ({_RANGES[type_].format(name)}): raise Surprise"]
        classes, write = _writing(type_)
        lines = [f"if type({name}) not in {self._constant(classes)}: raise Surprise"]
        if write is not None:
            lines += [f"{name} = {self._constant(write)}({name})", f"if type({name}) in NOTHING: raise Surprise"]
        return lines

    def _by_class(self, type_: GraphQLAbstractType, fields: FieldDetailsList) -> str:
        """Write the functions of the types that an abstract one can be, by the class of the value."""
        functions = []
        for possible in self._executor.schema.get_possible_types(type_):
            origin = _origin(possible)
            if origin is None or not _is_strawberrys(type_):
                raise NotCompilable
            functions.append(f"{self._constant(origin)}: {self._object_with_subfields(possible, fields)}")
        name = self._constant(None)
        self._lines.append(f"{name} = {{{', '.join(functions)}}}")
        return name

    def _object_with_subfields(self, type_: GraphQLObjectType, fields: FieldDetailsList) -> str:
        return self.object(type_, self._executor.collect_subfields(type_, fields).grouped_field_set)

    def _class_check(self, type_: GraphQLObjectType, *, has_attributes: bool) -> list[str]:
        origin = _origin(type_)
        if origin is not None and type_.is_type_of is not None:
            return [f"if type(o) is not {self._constant(origin)}: raise Surprise"]
        if type_.is_type_of is not None:
            raise NotCompilable
        # Records of any class will do for a type that implements no interface: what has their attributes is one.
        return ["if isinstance(o, Exception): raise Surprise"] if has_attributes else ["check(o)"]

    def _function(self, lines: Sequence[str], answered: str = "o") -> str:
        self._functions += 1
        if self._functions > MAX_FUNCTIONS:
            raise NotCompilable
        name = f"complete_{self._functions}"
        self._lines += [f"def {name}(o, w):", *[f"    {line}" for line in lines], f"    return {answered}"]
        return name

    def _constant(self, value: Any) -> str:
        name = f"constant_{len(self._names)}"
        self._names[name] = value
        return name


#: What is asked of the values of the leaves whose class does not say enough.
_RANGES = {
    GraphQLInt: "type({0}) is int and -2147483648 <= {0} <= 2147483647",
    GraphQLFloat: "type({0}) is float and isfinite({0})",
}

#: The class of the values that are answered as they are.
_PLAIN = {GraphQLString: str, GraphQLID: str, GraphQLBoolean: bool}

#: Classes whose values are neither null nor awaitable nor exceptions, so that a scalar may be asked about them.
_SAFE = frozenset((bool, int, float, str, bytes, dict, list, tuple, date, datetime))

#: Classes of what says that there is no value.
_NOTHING = frozenset((type(None), type(Undefined)))


def _writing(type_: GraphQLLeafType) -> tuple[frozenset[type], Callable[[Any], Any] | None]:
    """Return the classes of a leaf's values that hold no surprise, and what writes them, if anything does."""
    if type_ in _PLAIN:
        return frozenset((_PLAIN[type_],)), None
    members = getattr(type_, "wrapped_cls", None)
    if isinstance(type_, GraphQLEnumType) and members is not None:
        # Strawberry's enums go through all members to find a name.
        names = {value.value: each for each, value in reversed(type_.values.items())}
        written = {each: names[each.value] for each in members if each.value in names}
        # Records have the values that Strawberry's enum wraps, which are enums of their own.
        raw = {value: name for value, name in names.items() if isinstance(value, Enum)}
        return frozenset((members, *map(type, raw))), (written | raw).__getitem__
    return _SAFE, type_.coerce_output_value


def _knows_its_values(write: Callable[[Any], Any] | None) -> bool:
    """Whether it looks up what it writes, and so has nothing for a value that is not the type's."""
    return isinstance(getattr(write, "__self__", None), dict)


def _attribute(definition: GraphQLField) -> str | None:
    """Return the attribute that a field of Strawberry's without a resolver answers; None: it is none."""
    field = definition.extensions.get(DEFINITION)
    is_basic = isinstance(field, StrawberryField) and field.is_basic_field and field.default_resolver is getattr
    return field.python_name if is_basic else None  # type: ignore[union-attr]  # mypy forgets what it is.


def _function_of(definition: GraphQLField) -> Callable[[Any], Any] | None:
    """Return the resolver of a field of Strawberry's that takes its object alone and awaits nothing."""
    field = definition.extensions.get(DEFINITION)
    resolver = field.base_resolver if isinstance(field, StrawberryField) and not field.extensions else None
    if resolver is None or resolver.is_async or resolver.arguments or resolver.info_parameter is not None:
        return None
    takes_object = resolver.root_parameter is not None or resolver.self_parameter is not None
    return resolver.wrapped_func if takes_object else None  # type: ignore[return-value]  # No classmethod.


def _origin(type_: GraphQLObjectType) -> type | None:
    """Return the class whose instances are of this type of Strawberry's and of no other."""
    definition = type_.extensions.get(DEFINITION)
    if not isinstance(definition, StrawberryObjectDefinition):
        return None
    if isinstance(definition.is_type_of, IsRecord):
        return definition.is_type_of.record
    is_usual = definition.is_type_of is None and definition.concrete_of is None
    return definition.origin if is_usual else None


def _is_strawberrys(type_: GraphQLAbstractType) -> bool:
    """Whether Strawberry decides by the class which type a value is."""
    definition = type_.extensions.get(DEFINITION)
    return definition is not None and getattr(definition, "resolve_type", None) is None


def _read(source: Any, name: str) -> Any:
    """Read a field as graphql-core does where there is no resolver."""
    value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
    if callable(value):
        raise Surprise
    return value


def _check(source: Any) -> None:
    if source is None or source is Undefined or isinstance(source, Exception) or is_awaitable(source):
        raise Surprise
