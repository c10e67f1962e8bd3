"""What changed between two releases of the schema, and what that means for clients."""

from typing import Literal, NamedTuple

from graphql import BreakingChange, DangerousChange, build_schema, find_schema_changes

from schema.root import schema


class Change(NamedTuple):
    """One change, and whether it breaks clients, may surprise them, or is safe."""

    severity: Literal["breaking", "dangerous", "safe"]
    description: str


def changes_since(old: str) -> list[Change]:
    """Return what changed since the older schema, in GraphQL's definition language: breaking changes first.

    Raises `GraphQLError` or `TypeError` when it is no schema.
    """
    changes = [
        Change(
            "breaking"
            if isinstance(change, BreakingChange)
            else "dangerous"
            if isinstance(change, DangerousChange)
            else "safe",
            change.description,
        )
        for change in find_schema_changes(build_schema(old), build_schema(schema.as_str()))
    ]
    return sorted(changes)
