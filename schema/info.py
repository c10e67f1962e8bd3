"""What a resolver is given besides its arguments, and how optional ones are read."""

from typing import Any, TypeAlias, TypeVar

import strawberry

from resolvers.context import Context

Info: TypeAlias = strawberry.Info[Context, None]

T = TypeVar("T")


def given(value: T | None) -> T | None:
    """Return an optional argument's value, and None where it was left out.

    Such arguments default to `UNSET`, because a default of None would be printed in the schema as `= null`.
    """
    return None if value is strawberry.UNSET else value


def changes_of(change: object, *names: str) -> dict[str, Any]:
    """Return the values of those `Maybe` fields of the input that were given, null included, by name."""
    return {name: some.value for name in names if (some := getattr(change, name)) is not None}
