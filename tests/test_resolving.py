"""Resolvers called directly: the same values reach them as by Strawberry's own way."""

from collections.abc import Iterator
from typing import Any

import pytest
from strawberry.types import get_object_definition
from strawberry.types.arguments import convert_argument
from strawberry.types.base import StrawberryContainer, StrawberryOptional
from strawberry.types.field import StrawberryField

from resolvers.errors import InvalidInput
from schema.engine.execution.arguments import _conversion
from schema.engine.execution.resolving import Resolver
from schema.root import schema

CONVERTER = schema.schema_converter


def fields_with_resolvers() -> Iterator[tuple[str, Any, StrawberryField]]:
    for type_ in schema._schema.type_map.values():
        for name, definition in getattr(type_, "fields", {}).items():
            field = definition.extensions.get("strawberry-definition")
            if isinstance(field, StrawberryField) and field.base_resolver is not None:
                yield f"{type_}.{name}", definition, field


ARGUMENTS = {
    f"{name}({argument.python_name}:)": argument.type
    for name, _, field in fields_with_resolvers()
    for argument in field.arguments
}


def values_of(type_: Any) -> list[Any]:
    """Return values as graphql-core has read them: of an object with all fields, with the required ones, with nulls."""
    if isinstance(type_, StrawberryOptional):
        return [None, *values_of(type_.of_type)]
    if isinstance(type_, StrawberryContainer):
        return [[], values_of(type_.of_type)]
    definition = get_object_definition(type_)
    if definition is None:
        return [object()]
    name_of = CONVERTER.config.name_converter.from_field
    fields = {name_of(field): field.resolve_type(type_definition=definition) for field in definition.fields}
    required = {name: values_of(each)[-1] for name, each in fields.items() if not isinstance(each, StrawberryOptional)}
    nulls = dict.fromkeys(fields) | required
    return [required, nulls, {name: values_of(each)[-1] for name, each in fields.items()}]


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_an_argument_s_value_is_what_strawberry_makes_of_it(argument: str) -> None:
    type_ = ARGUMENTS[argument]
    convert = _conversion(type_, CONVERTER) or (lambda value: value)
    for value in values_of(type_):
        try:
            converted = convert(value)
        except InvalidInput as refusal:
            # Strawberry lets a null in a filter pass, which the gateway does not.
            assert refusal.field.startswith("filter.")  # noqa: PT017  # It is raised for some values alone.
            continue
        assert converted == convert_argument(value, type_, CONVERTER.scalar_registry, CONVERTER.config)


def test_every_asynchronous_resolver_is_called_directly() -> None:
    fields = list(fields_with_resolvers())
    direct = {name for name, definition, _ in fields if isinstance(definition.resolve, Resolver)}
    assert direct == {name for name, _, field in fields if field.is_async}
    assert {"Query.billingMeter", "BillingMeter.usage", "Mutation.recordUsage"} <= direct
