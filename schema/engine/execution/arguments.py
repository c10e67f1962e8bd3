"""Arguments: from what a document says and graphql-core has read to what a resolver takes.

At each call Strawberry goes through the field's arguments, their types and names. Here that is decided once a field,
and what is the same in all requests is read once for each place in a document.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING
from functools import partial
from typing import Any, TypeAlias

from graphql import GraphQLField, ListValueNode, ObjectValueNode, ValueNode, VariableNode
from graphql.execution.collect_fields import FieldDetails
from graphql.execution.values import VariableValues, get_argument_values
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types import get_object_definition
from strawberry.types.arguments import convert_argument
from strawberry.types.base import (
    StrawberryContainer,
    StrawberryList,
    StrawberryMaybe,
    StrawberryObjectDefinition,
    StrawberryOptional,
)
from strawberry.types.field import StrawberryField
from strawberry.types.lazy_type import LazyType

from resolvers.errors import InvalidInput

_Convert: TypeAlias = Callable[[Any], Any]

#: The arguments whose null is taken for nothing, as clients send it: they say where a page lies, and never which rows
#: are in its list.
_PAGE_ARGUMENTS = {"first", "after", "last", "before"}


class Arguments:
    """The arguments of one field of a schema, by the names that its resolver has for them."""

    def __init__(self, field: StrawberryField, converter: GraphQLCoreConverter) -> None:
        self._conversions: dict[str, tuple[str, _Convert | None]] = {
            converter.config.name_converter.from_argument(argument): (
                argument.python_name,
                _conversion(argument.type, converter),
            )
            for argument in field.arguments
        }

    def converted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the resolver takes, of values that graphql-core has read, by their names in the schema.

        Null is no value of any argument: what a caller's lost variable leaves of a filter must not return more than was
        asked for. Raises `InvalidInput`.
        """
        arguments = {}
        for name, value in values.items():
            if value is None and name not in _PAGE_ARGUMENTS:
                raise null_refused(name)
            python_name, convert = self._conversions[name]
            arguments[python_name] = value if convert is None else convert(value)
        return arguments


def null_refused(path: str) -> InvalidInput:
    """Return the refusal of a null that would widen what is answered."""
    return InvalidInput(path, "must not be null; leave it out where it is not to restrict the answer.")


class SelectedArguments:
    """The arguments of one place in a document where a field is selected."""

    def __init__(self, definition: GraphQLField, details: FieldDetails) -> None:
        self._definition = definition
        self._details = details
        #: The variables that are arguments as they are, by the arguments' names; None: it is not so simple.
        self._variables: dict[str, str] | None = {}
        self._fixed: dict[str, Any] | None = None
        for argument in details.node.arguments or ():
            if isinstance(argument.value, VariableNode) and self._variables is not None:
                self._variables[argument.name.value] = argument.value.name.value
            elif _has_variables(argument.value):
                self._variables = None

    def values(self, variables: VariableValues) -> dict[str, Any]:
        """Return their values by their names in the schema, for these values of the operation's variables.

        Raises `GraphQLError` as graphql-core does.
        """
        if self._fixed is not None and self._variables is not None:
            coerced = variables.coerced
            given = {name: coerced.get(variable) for name, variable in self._variables.items()}
            # What is null or left out may stand for a default, or be an error.
            if None not in given.values():
                return self._fixed | given
        values = get_argument_values(
            self._definition, self._details.node, variables, self._details.fragment_variable_values
        )
        if self._variables is not None:
            self._fixed = {name: value for name, value in values.items() if name not in self._variables}
        return values


def _has_variables(value: ValueNode) -> bool:
    if isinstance(value, ListValueNode):
        return any(map(_has_variables, value.values))
    if isinstance(value, ObjectValueNode):
        return any(_has_variables(field.value) for field in value.fields)
    return isinstance(value, VariableNode)


def _conversion(type_: Any, converter: GraphQLCoreConverter) -> _Convert | None:
    """Return what makes of a value that graphql-core has read the one that the resolver takes; None: it is that."""
    if _is_plain(type_):
        return None
    if isinstance(type_, StrawberryList):
        convert = _conversion(type_.of_type, converter)
        assert convert is not None  # noqa: S101  # Else the list would be plain.
        return lambda values: [convert(value) for value in values]
    definition = get_object_definition(type_)
    if definition is not None and all(_is_plain_field(field, definition) for field in definition.fields):
        names = {converter.config.name_converter.from_field(field): field.python_name for field in definition.fields}
        return lambda value: type_(**{names[name]: each for name, each in value.items()})
    return partial(convert_argument, type_=type_, scalar_registry=converter.scalar_registry, config=converter.config)


def _is_plain(type_: Any) -> bool:
    """Whether values of the type are what graphql-core has read: there is no object in it, and no `Maybe`."""
    while isinstance(type_, StrawberryContainer) and not isinstance(type_, StrawberryMaybe):
        type_ = type_.of_type
    return not isinstance(type_, StrawberryMaybe | LazyType) and get_object_definition(type_) is None


def _is_plain_field(field: StrawberryField, definition: StrawberryObjectDefinition) -> bool:
    """Whether the field is plain, and the class has a value for it where clients may leave it out."""
    type_ = field.resolve_type(type_definition=definition)
    return _is_plain(type_) and (not isinstance(type_, StrawberryOptional) or field.default_value is not MISSING)
