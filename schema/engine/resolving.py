"""Resolvers called directly: what stays of Strawberry's way to them is decided once, and not at each call.

At each call Strawberry goes through the field's arguments, their types and names, and a chain of extensions, which
takes longer than most resolvers here do before they wait for the database.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import MISSING
from functools import partial
from types import TracebackType
from typing import Any

from graphql import GraphQLObjectType, GraphQLResolveInfo
from strawberry import Info, Schema
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

from schema.info import refuse_nulls

_Convert = Callable[[Any], Any]


def resolve_directly(schema: Schema) -> None:
    """Give each field that has an asynchronous resolver and no extension a function that goes straight to it."""
    converter = schema.schema_converter
    for type_ in schema._schema.type_map.values():  # noqa: SLF001  # Strawberry has no other name for it.
        if isinstance(type_, GraphQLObjectType):
            for definition in type_.fields.values():
                field = definition.extensions.get(GraphQLCoreConverter.DEFINITION_BACKREF)
                if isinstance(field, StrawberryField) and field.is_async and not field.extensions:
                    definition.resolve = Resolver(field, converter)


class Outcome:
    """What the only field of a mutation comes to. Whoever asks for it and however often, it is resolved once."""

    __slots__ = ("_error", "_is_begun", "_traceback", "_value")

    def __init__(self) -> None:
        self._is_begun = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None

    async def of(self, resolver: "Resolver", info: Any, values: Mapping[str, Any]) -> Any:
        """Return what the resolver returns for these arguments, or raise what it raises."""
        if not self._is_begun:
            self._is_begun = True
            try:
                self._value = await resolver.resolve(None, info, values)
            except BaseException as error:
                self._error, self._traceback = error, error.__traceback__
                raise
        if self._error is not None:
            # Where it came from is told to whoever asks again, and then kept no longer: it leads back to here.
            traceback, self._traceback = self._traceback, None
            raise self._error.with_traceback(traceback)
        return self._value


class Resolver:
    """A field's resolver, called with what graphql-core has read of the arguments.

    graphql-core calls it as a function. Where the root's value is an `Outcome`, that decides whether it is executed.
    """

    def __init__(self, field: StrawberryField, converter: GraphQLCoreConverter) -> None:
        resolver = field.base_resolver
        assert resolver is not None  # noqa: S101  # What is asynchronous is a resolver.
        assert resolver.self_parameter is not None  # noqa: S101  # Ours are methods, which take `info`.
        assert resolver.info_parameter is not None  # noqa: S101
        self._field = field
        self._function: Callable[..., Any] = resolver.wrapped_func  # type: ignore[assignment]  # No classmethod.
        self._arguments = {
            converter.config.name_converter.from_argument(argument): (
                argument.python_name,
                _conversion(argument.type, converter),
            )
            for argument in field.arguments
        }
        self._handlers = converter._get_field_exception_handlers(field)  # noqa: SLF001  # As Strawberry's own does.
        self._handled = tuple(kind for kinds, _ in self._handlers for kind in kinds)

    def __call__(self, source: Any, raw_info: GraphQLResolveInfo[Any], **values: Any) -> Awaitable[Any]:
        """Resolve the field, as graphql-core asks for it."""
        info: Info[Any, Any] = Info(raw_info, self._field)
        return source.of(self, info, values) if type(source) is Outcome else self.resolve(source, info, values)

    async def resolve(self, source: Any, info: Any, values: Mapping[str, Any]) -> Any:
        """Return what the resolver returns, or what shows what it raises where the field has a type for that."""
        try:
            refuse_nulls(values)
            given = {}
            for name, value in values.items():
                python_name, convert = self._arguments[name]
                given[python_name] = value if convert is None else convert(value)
            return await self._function(source, info=info, **given)
        except self._handled as error:
            handler = next(handler for kinds, handler in self._handlers if isinstance(error, kinds))
            # Its traceback knows what holds the error itself, and would keep all of the request in memory.
            return handler.handle(error.with_traceback(None), field=self._field, info=info)


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
