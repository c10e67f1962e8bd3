"""The values of variables, read as graphql-core reads them, by functions that are made once for each type.

As in the executor, graphql-core does at any surprise: for a value that is not as it should be, it reads all of them
again, so that the errors are its own.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any, TypeAlias

from graphql import (
    GraphQLError,
    GraphQLID,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLSchema,
    GraphQLString,
    OperationDefinitionNode,
    Undefined,
    get_variable_values,
    is_input_object_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    is_required_input_field,
    validate_input_value,
)
from graphql.execution.get_variable_signature import GraphQLVariableSignature, get_variable_signature
from graphql.execution.values import VariableValues, VariableValueSource
from graphql.utilities.coerce_input_value import coerce_default_value

from schema.engine.execution.surprise import Surprise
from schema.engine.limits.document import exceeded
from schema.engine.malformed import is_batch, with_malformed

#: How many errors of one request's variables are returned.
MAX_ERRORS = 20

#: The maximum number of items of a list, and of fields of an object, that graphql-core reads again to describe what is
#: wrong with them: no argument of the schema takes more.
MAX_ITEMS = 1_000

_Read: TypeAlias = Callable[[Any], Any]


class Variables:
    """The variables that one operation declares."""

    def __init__(self, schema: GraphQLSchema, operation: OperationDefinitionNode) -> None:
        self._schema = schema
        self._definitions = operation.variable_definitions or ()
        self._readers: list[tuple[GraphQLVariableSignature, _Read, bool]] = []
        for definition in self._definitions:
            signature = get_variable_signature(schema, definition)
            assert isinstance(signature, GraphQLVariableSignature)  # noqa: S101  # The document is valid.
            may_be_absent = definition.default_value is None and not is_non_null_type(signature.type)
            self._readers.append((signature, _reader_of(signature.type), may_be_absent))

    def read(self, given: Mapping[str, Any]) -> VariableValues | list[GraphQLError]:
        """Return the values, or what is wrong with those that are given."""
        sources: dict[str, VariableValueSource] = {}
        coerced: dict[str, Any] = {}
        try:
            for signature, read, may_be_absent in self._readers:
                value = given.get(signature.name, Undefined)
                sources[signature.name] = VariableValueSource(signature, value)
                if value is not Undefined:
                    coerced[signature.name] = read(value)
                elif not may_be_absent:
                    raise Surprise  # noqa: TRY301  # A default is graphql-core's matter as well.
        except Exception:  # noqa: BLE001  # graphql-core will meet it again, and report it.
            return self._read_by_core(given)
        return VariableValues(sources, coerced)

    def _read_by_core(self, given: Mapping[str, Any]) -> VariableValues | list[GraphQLError]:
        for signature, *_ in self._readers:
            too_large = _too_large(given.get(signature.name), signature.type)
            if too_large is not None:
                message = (
                    f"Variable '${signature.name}' has {too_large}, and is malformed; at most {MAX_ITEMS} may be sent."
                )
                return [exceeded(message)]
        values = self._core_values(given)
        batches = [signature for signature, *_ in self._readers if is_batch(signature.type)]
        if isinstance(values, list) and batches:
            # What a scalar refuses in a batch is the fault of its item alone; if that is all, there is nothing else.
            tolerant = self._core_values(
                {**given}
                | {each.name: with_malformed(given[each.name], each.type) for each in batches if each.name in given}
            )
            if not isinstance(tolerant, list):
                return tolerant
        return self._placed(values, given) if isinstance(values, list) else values

    def _placed(self, errors: list[GraphQLError], given: Mapping[str, Any]) -> list[GraphQLError]:
        """Return the errors, each of an item of a list with the path to it, for programs: the message is for people."""
        paths: list[list[str | int]] = []
        for signature, *_ in self._readers:
            value = given.get(signature.name, Undefined)
            if value is Undefined and signature.default is not None:
                continue

            def note(_: GraphQLError, path: list[str | int], name: str = signature.name) -> None:
                if len(paths) == len(errors):
                    raise Surprise
                paths.append([name, *path])

            # graphql-core validates them in this order, and keeps no path. What is nested too deeply has one error.
            with suppress(RecursionError, Surprise):
                validate_input_value(value, signature.type, note, hide_suggestions=True)
        for error, path in zip(errors, paths, strict=False):
            if any(isinstance(step, int) for step in path):
                error.extensions = {**(error.extensions or {}), "path": path}
        return errors

    def _core_values(self, given: Mapping[str, Any]) -> VariableValues | list[GraphQLError]:
        return get_variable_values(
            self._schema, self._definitions, dict(given), max_errors=MAX_ERRORS, hide_suggestions=True
        )


def _too_large(value: Any, type_: GraphQLInputType) -> str | None:
    """Return what of a variable's value is too large to be read by graphql-core, if anything is."""
    if is_non_null_type(type_):
        return _too_large(value, type_.of_type)
    if is_list_type(type_) and isinstance(value, list):
        if len(value) > MAX_ITEMS:
            return f"a list of {len(value)} items"
        return next((found for item in value if (found := _too_large(item, type_.of_type))), None)
    if is_input_object_type(type_) and isinstance(value, dict) and len(value) > MAX_ITEMS:
        return f"an object of {len(value)} fields"
    return None


def _reader_of(type_: GraphQLInputType) -> _Read:
    """Return the function that reads a value of this type. It raises anything for what it is not for."""
    if is_non_null_type(type_):
        return _given(type_.of_type)
    read = _given(type_)
    return lambda value: None if value is None else read(value)


def _given(type_: GraphQLInputType) -> _Read:
    if is_list_type(type_):
        read_item = _reader_of(type_.of_type)
        return lambda value: [read_item(item) for item in _checked(value, list)]
    return _reader_of_named(type_)


# Those of the schema alone: each document makes lists and non-null types of its own.
@cache
def _reader_of_named(type_: GraphQLInputType) -> _Read:
    if is_input_object_type(type_):
        return _InputObject(type_).read
    if type_ in {GraphQLString, GraphQLID}:
        return lambda value: _checked(value, str)
    assert is_leaf_type(type_)  # noqa: S101  # There is no other input type.
    coerce = type_.coerce_input_value

    def read_leaf(value: Any) -> Any:
        found = coerce(value) if value is not None else Undefined
        if found is Undefined:
            raise Surprise
        return found

    return read_leaf


class _InputObject:
    """Reads the objects of one input type."""

    def __init__(self, type_: GraphQLInputObjectType) -> None:
        self._type = type_
        # Filled when it is first used: types may refer to themselves.
        self._fields: list[tuple[str, str, _Read, bool, Callable[[], Any]]] = []

    def read(self, value: Any) -> Any:
        """Return the object by the names of its fields."""
        if not self._fields:
            if self._type.is_one_of:
                raise Surprise
            self._fields = [
                (
                    name,
                    field.out_name or name,
                    _reader_of(field.type),
                    is_required_input_field(field),
                    _default_of(field),
                )
                for name, field in self._type.fields.items()
            ]
        left = len(_checked(value, dict))
        found = {}
        for name, out_name, read, is_required, default_of in self._fields:
            if name in value:
                left -= 1
                found[out_name] = read(value[name])
            elif is_required:
                raise Surprise
            elif (default := default_of()) is not Undefined:
                found[out_name] = default
        if left:
            raise Surprise
        return self._type.out_type(found)


def _default_of(field: GraphQLInputField) -> Callable[[], Any]:
    """Return what returns the field's default, or `Undefined`; one that could be changed is made anew each time."""
    default = coerce_default_value(field)
    return partial(coerce_default_value, field) if isinstance(default, list | dict) else lambda: default


def _checked(value: Any, class_: type) -> Any:
    if type(value) is not class_:
        raise Surprise
    return value
