"""How much each field may come to: said where the field is declared, and checked when the schema is built.

A list of records says by `records` how many it has at most, a text by `text` how long it is at most, and a list of
leaves how many it has. A field that does not say it would cost nothing, and so would all below it: it is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple, TypeAlias

from graphql import (
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    get_named_type,
    get_nullable_type,
    is_composite_type,
    is_enum_type,
    is_introspection_type,
    is_list_type,
)

from resolvers.bounds import Bounds
from schema.engine.execution.resolving import DEFINITION

#: The longest value of each scalar of GraphQL's own that is no text, in bytes of JSON.
BUILT_IN_BYTES = {"Boolean": len("false"), "Int": len("-2147483648")}

#: The longest value of an id of ours, in bytes of JSON.
ID_BYTES = 50

_RECORDS, _LEAF = "records", "leaf"


class Asked(NamedTuple):
    """What a list field is asked for."""

    arguments: Mapping[str, Any]
    """The arguments that are given, by their names in the schema; of a list that is a literal, its items' nodes."""
    bounds: Bounds
    today: date


#: Returns how many records a list has at most.
Count: TypeAlias = Callable[[Asked], int]


class Records(NamedTuple):
    """What a list field says of its records. `maximum` None: as many as the field above it says, as in a connection."""

    maximum: Count | None
    names: str | None = None
    """The argument that lists the texts of which each record has one; without it, each may have any."""
    is_dated: bool = False
    """Whether the number depends on what day it is."""
    grows: bool = False
    """Whether it may have more than that, which are admitted when they are read: see `Context.admit`."""


class Leaf(NamedTuple):
    """What a leaf says of itself: the bytes of its longest value in JSON, and how many values a list of it has."""

    bytes: int
    items: int = 1
    is_named: bool = False
    """Whether its value is one of the `names` of the list that it lies in."""


def records(
    maximum: Count | None, *, names: str | None = None, is_dated: bool = False, grows: bool = False
) -> dict[str, Any]:
    """Return the metadata of a Strawberry field that is a list of records: see `Records`."""
    return {_RECORDS: Records(maximum, names, is_dated, grows)}


def foreseen(count: int) -> dict[str, Any]:
    """Return the metadata of a list that has so many records as a rule, and more where they are admitted."""
    return records(lambda _asked: count, grows=True)


#: The metadata of what has no more records than the field above it says.
AS_ABOVE = records(None)


def given_length(argument: str) -> Count:
    """Return the count of a list that has a record for each item of an argument."""
    return lambda asked: length_of(asked.arguments.get(argument))


def length_of(value: Any) -> int:
    """Return how many items a list argument has: one value stands for a list of it."""
    return len(value) if isinstance(value, list | tuple) else value is not None


def of_bytes(most: int, *, items: int = 1) -> dict[str, Any]:
    """Return the metadata of a Strawberry field whose longest value has so many bytes in JSON."""
    return {_LEAF: Leaf(most, items)}


def text(characters: int, *, items: int = 1, is_named: bool = False) -> dict[str, Any]:
    """Return the metadata of a Strawberry field that is a text of at most so many characters."""
    return {_LEAF: Leaf(text_bytes(characters), items, is_named)}


def text_bytes(characters: int) -> int:
    """Return how long a text of so many characters is at most, in bytes of JSON."""
    # JSON writes a control character in six bytes; any other takes four at most.
    return 6 * characters + 2


#: The longest value of a field that is an id of ours.
AN_ID = of_bytes(ID_BYTES)


class UndeclaredSize(Exception):
    """A field does not say how much it may come to."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the fields of a schema say of themselves, by the names of their types and their own."""

    records: Mapping[tuple[str, str], Records]
    leaves: Mapping[tuple[str, str], Leaf]

    @classmethod
    def of(cls, schema: GraphQLSchema, scalar_bytes: Mapping[str, int]) -> "Sizes":
        """Return what the fields say. `scalar_bytes` are the longest values of the schema's own scalars.

        Raises `UndeclaredSize` for the first field that says too little.
        """
        found: dict[tuple[str, str], Records] = {}
        leaves: dict[tuple[str, str], Leaf] = {}
        scalars = {**BUILT_IN_BYTES, **scalar_bytes}
        for type_ in schema.type_map.values():
            if is_introspection_type(type_) or not isinstance(type_, GraphQLObjectType | GraphQLInterfaceType):
                continue
            for name, field in type_.fields.items():
                named, is_list = get_named_type(field.type), is_list_type(get_nullable_type(field.type))
                metadata = getattr(field.extensions.get(DEFINITION), "metadata", {})
                if is_composite_type(named):
                    if _RECORDS in metadata:
                        found[type_.name, name] = metadata[_RECORDS]
                    elif is_list:
                        raise UndeclaredSize(f"{type_}.{name} is a list, and does not say how many records it has.")
                    continue
                leaf = metadata.get(_LEAF) or _leaf_of(named, scalars)
                if leaf is None:
                    raise UndeclaredSize(f"{type_}.{name} does not say how long its values are.")
                if is_list and leaf.items == 1:
                    raise UndeclaredSize(f"{type_}.{name} is a list, and does not say how many values it has.")
                leaves[type_.name, name] = leaf
        return cls(found, leaves)


def _leaf_of(type_: GraphQLNamedType, scalar_bytes: Mapping[str, int]) -> Leaf | None:
    """Return what the type says of a leaf that says nothing itself."""
    if is_enum_type(type_):
        return Leaf(max(map(len, type_.values)) + 2)
    most = scalar_bytes.get(type_.name)
    return Leaf(most) if most is not None else None
