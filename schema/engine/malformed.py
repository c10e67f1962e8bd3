"""Values that a scalar refuses: the fault of the whole request, except in a batch.

Of a batch each item has a result of its own, also the one whose amount or time is malformed. There a `Malformed` takes
the place of the value, and the rest goes its way; a value of another shape is graphql-core's matter, as everywhere.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from graphql import (
    SKIP,
    BooleanValueNode,
    EnumValueNode,
    FloatValueNode,
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLInputType,
    IntValueNode,
    ListValueNode,
    ObjectValueNode,
    StringValueNode,
    ValidationRule,
    ValueNode,
    VisitorAction,
    get_named_type,
    get_nullable_type,
    is_list_type,
    is_scalar_type,
    is_specified_scalar_type,
)
from strawberry.types.base import StrawberryObjectDefinition

from schema.engine.execution.resolving import DEFINITION


class Malformed(NamedTuple):
    """What stands for a value that a scalar refused, where that is not the fault of the whole request."""

    rule: str


class BatchItem:
    """The base of an input whose list is a batch: each item has a result of its own, also a malformed one."""


def is_batch(type_: GraphQLInputType | None) -> bool:
    """Whether values of the type are batches."""
    if type_ is None or not is_list_type(get_nullable_type(type_)):
        return False
    definition = get_named_type(type_).extensions.get(DEFINITION)
    return isinstance(definition, StrawberryObjectDefinition) and issubclass(definition.origin, BatchItem)


def with_malformed(batch: Any, type_: GraphQLInputType) -> Any:
    """Return a variable's batch with what stands for each value that a scalar refuses."""
    item_type = cast("GraphQLInputObjectType", get_named_type(type_))
    scalars = {
        name: scalar
        for name, field in item_type.fields.items()
        if is_scalar_type(scalar := get_nullable_type(field.type))
    }

    def read(name: str, value: Any) -> Any:
        try:
            scalars[name].coerce_input_value(value)
        except GraphQLError as error:
            # A scalar of GraphQL's own says nothing of whose fault it is: it is one of shape.
            return Malformed(error.message) if error.extensions else value
        return value

    def item_of(item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        return {
            name: read(name, value) if name in scalars and value is not None else value for name, value in item.items()
        }

    return [item_of(item) for item in batch] if isinstance(batch, list) else item_of(batch)


class MalformedLiterals(ValidationRule):
    """Reports each literal that a scalar refuses, except those of a batch."""

    def enter_int_value(self, node: IntValueNode, *_: object) -> VisitorAction:
        return self._check(node, self.context.get_input_type())

    def enter_float_value(self, node: FloatValueNode, *_: object) -> VisitorAction:
        return self._check(node, self.context.get_input_type())

    def enter_string_value(self, node: StringValueNode, *_: object) -> VisitorAction:
        return self._check(node, self.context.get_input_type())

    def enter_boolean_value(self, node: BooleanValueNode, *_: object) -> VisitorAction:
        return self._check(node, self.context.get_input_type())

    def enter_enum_value(self, node: EnumValueNode, *_: object) -> VisitorAction:
        return self._check(node, self.context.get_input_type())

    def enter_object_value(self, node: ObjectValueNode, *_: object) -> VisitorAction:
        return self._check(node, self.context.get_input_type())

    def enter_list_value(self, node: ListValueNode, *_: object) -> VisitorAction:
        # The type of what is within the list has been entered.
        return self._check(node, self.context.get_parent_input_type())

    def _check(self, node: ValueNode, type_: GraphQLInputType | None) -> VisitorAction:
        scalar = get_nullable_type(type_) if type_ is not None else None
        # graphql-core's own scalars raise, which its own rule reports.
        if scalar is None or not is_scalar_type(scalar) or is_specified_scalar_type(scalar):
            return None
        value = scalar.parse_literal(node)
        if type(value) is Malformed and not self._is_in_batch():
            self.report_error(GraphQLError(value.rule, node, extensions={"code": "BAD_USER_INPUT"}))
        return SKIP

    def _is_in_batch(self) -> bool:
        enclosing: Iterable[GraphQLInputType | None] = self.context._type_info._input_type_stack  # noqa: SLF001  # It shows but the last two.
        return any(map(is_batch, enclosing))
