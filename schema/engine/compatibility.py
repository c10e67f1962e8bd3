"""What changed between two releases of the schema, and what that means for clients."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from graphql import (
    BreakingChange,
    DangerousChange,
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    build_schema,
    find_schema_changes,
)


class Change(NamedTuple):
    """One change, and whether it breaks clients, may surprise them, or is safe."""

    severity: Literal["breaking", "dangerous", "safe"]
    description: str


def changes_between(old: str, new: str) -> list[Change]:
    """Return what changed between two schemas, in GraphQL's definition language: breaking changes first.

    Raises `GraphQLError` or `TypeError` when one is no schema.
    """
    before, after = build_schema(old), build_schema(new)
    changes = [
        Change(
            "breaking"
            if isinstance(change, BreakingChange)
            else "dangerous"
            if isinstance(change, DangerousChange)
            else "safe",
            change.description,
        )
        for change in find_schema_changes(before, after)
    ]
    # graphql-core does not look at deprecations. They break nobody: what is deprecated goes on to work.
    deprecated = dict(_deprecations(before)), dict(_deprecations(after))
    changes += [
        Change("safe", f"{coordinate} was deprecated: {reason}")
        for coordinate, reason in deprecated[1].items()
        if reason is not None and reason != deprecated[0].get(coordinate)
    ]
    return sorted(changes)


def _deprecations(of: GraphQLSchema) -> Iterator[tuple[str, str | None]]:
    """Return what can be deprecated, by its coordinate, and why it is; None: it is not."""
    members: Mapping[str, Any]
    for type_ in of.type_map.values():
        match type_:
            case GraphQLEnumType():
                members = type_.values
            case GraphQLObjectType() | GraphQLInterfaceType() | GraphQLInputObjectType():
                members = type_.fields
            case _:
                continue
        for name, member in members.items():
            yield f"{type_}.{name}", member.deprecation_reason
            for argument, definition in getattr(member, "args", {}).items():
                yield f"{type_}.{name}({argument}:)", definition.deprecation_reason
