"""Resolvers called directly: what stays of Strawberry's way to them is decided once, and not at each call."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias, get_args

import strawberry
from graphql import GraphQLObjectType, GraphQLResolveInfo, GraphQLSchema
from strawberry import Info, Schema
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types.field import StrawberryField

from schema.engine.execution.arguments import Arguments

#: Resolves a field of many records at once: from the request's context, the records and the field's arguments to a
#: value for each record, in their order.
Fetch: TypeAlias = Callable[..., Awaitable[Sequence[Any]]]

#: Where Strawberry keeps its own definition in one of graphql-core.
DEFINITION = GraphQLCoreConverter.DEFINITION_BACKREF

_BATCHED, _DIRECT = "batched", "direct"

#: The metadata of a Strawberry field whose resolver needs the context and the arguments alone. It is called itself,
#: once for each record, without what graphql-core and Strawberry do around it: for the root's fields, and the like.
DIRECT = {_DIRECT: True}


def batched(fetch: Fetch, *, description: str | None = None, metadata: Mapping[str, Any] | None = None) -> Any:
    """Return a Strawberry field that is resolved for many records at once.

    `fetch` takes the context, the records and the field's arguments, and is annotated to return a list of the field's
    type. What graphql-core resolves one by one, as at a surprise, is fetched for one record.
    """

    async def resolve(root: Any, info: Any, **arguments: Any) -> Any:
        (value,) = await fetch(info.context, [root], **arguments)
        return value

    signature = inspect.signature(fetch)
    (type_,) = get_args(signature.return_annotation)
    own = [
        inspect.Parameter("root", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("info", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Info),
    ]
    parameters = [*own, *[*signature.parameters.values()][2:]]
    resolve.__signature__ = inspect.Signature(parameters, return_annotation=type_)  # type: ignore[attr-defined]
    resolve.__annotations__ = {each.name: each.annotation for each in parameters[1:]} | {"return": type_}
    resolve.__module__ = fetch.__module__  # Where Strawberry looks for the types that are named before they are made.
    return strawberry.field(
        resolver=resolve, description=description, metadata={_BATCHED: fetch} | dict(metadata or {})
    )


class ContextOnly(NamedTuple):
    """The info of a resolver that is called directly."""

    context: Any


def resolve_directly(schema: Schema) -> None:
    """Give each field that has an asynchronous resolver and no extension a function that goes straight to it."""
    for type_ in core_schema(schema).type_map.values():
        if isinstance(type_, GraphQLObjectType):
            for definition in type_.fields.values():
                field = definition.extensions.get(DEFINITION)
                if isinstance(field, StrawberryField) and field.is_async and not field.extensions:
                    definition.resolve = Resolver(field, schema.schema_converter)


def core_schema(schema: Schema) -> GraphQLSchema:
    """Return the schema of graphql-core that Strawberry's stands for."""
    return schema._schema  # noqa: SLF001  # Strawberry has no other name for it.


class MutationOutcome:
    """What the only field of a mutation comes to: it is executed once, however often it is asked for."""

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
            # The second one to ask gets the traceback, and then it is let go: it leads back to here.
            traceback, self._traceback = self._traceback, None
            raise self._error.with_traceback(traceback)
        return self._value


class Resolver:
    """A field's resolver, called with what graphql-core has read of the arguments.

    graphql-core calls it as a function. Where the root's value is a `MutationOutcome`, that decides whether it is
    executed.
    """

    def __init__(self, field: StrawberryField, converter: GraphQLCoreConverter) -> None:
        resolver = field.base_resolver
        assert resolver is not None  # noqa: S101  # What is asynchronous is a resolver.
        # Ours are methods or functions of the object, and take `info`.
        assert resolver.self_parameter is not None or resolver.root_parameter is not None  # noqa: S101
        assert resolver.info_parameter is not None  # noqa: S101
        self.arguments = Arguments(field, converter)
        self._field = field
        self._function: Callable[..., Any] = resolver.wrapped_func  # type: ignore[assignment]  # No classmethod.
        self._handlers = converter._get_field_exception_handlers(field)  # noqa: SLF001  # As Strawberry's own does.
        self._handled = tuple(kind for kinds, _ in self._handlers for kind in kinds)

    @property
    def is_direct(self) -> bool:
        """Whether it needs the context and the arguments alone."""
        return _DIRECT in self._field.metadata

    @property
    def fetch(self) -> Fetch | None:
        """What resolves the field for many records at once, if it is such a field."""
        if self.is_direct:
            return self._each
        return self._field.metadata.get(_BATCHED)

    def __call__(self, source: Any, raw_info: GraphQLResolveInfo[Any], **values: Any) -> Awaitable[Any]:
        """Resolve the field, as graphql-core asks for it."""
        info: Info[Any, Any] = Info(raw_info, self._field)
        return source.of(self, info, values) if type(source) is MutationOutcome else self.resolve(source, info, values)

    async def resolve(self, source: Any, info: Any, values: Mapping[str, Any]) -> Any:
        """Return what the resolver returns, or the member of the field's union for what it raises."""
        try:
            return await self._function(source, info=info, **self.arguments.converted(values))
        except self._handled as error:
            handler = next(handler for kinds, handler in self._handlers if isinstance(error, kinds))
            # Its traceback knows what holds the error itself, and would keep all of the request in memory.
            return handler.handle(error.with_traceback(None), field=self._field, info=info)

    async def _each(self, context: Any, records: Sequence[Any], **arguments: Any) -> Sequence[Any]:
        info = ContextOnly(context)
        return [await self._function(record, info=info, **arguments) for record in records]
