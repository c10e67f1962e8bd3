"""What a resolver is given besides its arguments, and how optional ones are read."""

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import strawberry
from strawberry.scalars import JSON
from strawberry.utils.str_converters import to_camel_case

from resolvers.context import Context
from resolvers.errors import InvalidInput
from schema.engine.execution.arguments import null_refused

Info: TypeAlias = strawberry.Info[Context, None]

T = TypeVar("T")


def given(value: T | None) -> T | None:
    """Return an optional argument's value, and None where it was left out.

    Such arguments default to `UNSET`, because a default of None would be printed in the schema as `= null`.
    """
    return None if value is strawberry.UNSET else value


def not_null(field: str, value: T | None, otherwise: str) -> T | None:
    """Return an optional value whose absence widens what is done, and None where it was left out.

    What a caller's lost variable leaves must not do more than was meant. Raises `InvalidInput` for null, with what to
    do `otherwise`.
    """
    if value is None:
        raise InvalidInput(field, f"must not be null; {otherwise}")
    return given(value)


async def metadata_of(context: Context, rows: Sequence[object]) -> list[JSON]:
    """Return what the caller keeps with each customer, ledger entry, credit grant or hold."""
    return await context.json_of(rows, "metadata")


class Filter:
    """What restricts a list: the base of the inputs of arguments called `filter`.

    Each of its fields is `UNSET` where it is left out. Making one with a null raises `InvalidInput`.
    """

    def __post_init__(self) -> None:
        """Refuse what is null."""
        for name, value in vars(self).items():
            if value is None:
                raise null_refused(f"filter.{to_camel_case(name)}")


def values_of(input: object) -> dict[str, Any]:
    """Return the values of the input's fields that were given, by their names in Python. Null is a value."""
    return {name: value for name, value in vars(input).items() if value is not strawberry.UNSET}


def changes_of(change: object) -> dict[str, Any]:
    """Return the values of those `Maybe` fields of the input that were given, null included, by name."""
    return {name: some.value for name, some in vars(change).items() if isinstance(some, strawberry.Some)}
