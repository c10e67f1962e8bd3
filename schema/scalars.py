"""The scalars: how amounts, days, moments and JSON are written on the wire."""

from collections.abc import Callable
from datetime import date, datetime
from typing import Any, NewType

import strawberry
from graphql import GraphQLError, IntValueNode, StringValueNode, ValueNode
from strawberry.scalars import JSON
from strawberry.types.scalar import ScalarDefinition

from resolvers.values import METADATA_BYTES, parse_amount, parse_day, parse_instant, parse_sent_amount
from schema.engine.malformed import Malformed
from storage.meters.usage import MAX_CACHED_DAYS

BigInt = NewType("BigInt", int)
"""An amount of credits, 0 to 2**63 - 1."""


def _value_reader(parse: Callable[[object], Any]) -> Callable[[object], Any]:
    """Return the parser for the values of variables, with its `ValueError` as the caller's fault."""

    def read(value: object) -> Any:
        if type(value) is Malformed:
            return value
        try:
            return parse(value)
        except ValueError as error:
            raise GraphQLError(str(error), extensions={"code": "BAD_USER_INPUT"}) from None

    return read


def _literal_reader(parse: Callable[[object], Any], *kinds: type[ValueNode]) -> Callable[..., Any]:
    """Return the parser for literals of these kinds, whose text is checked before it becomes anything else.

    One that is refused is `Malformed`; `schema.engine.malformed` reports it where it is the fault of the document.
    """

    def read(node: ValueNode, _variables: object = None) -> Any:
        try:
            return parse(node.value if isinstance(node, kinds) else None)  # type: ignore[attr-defined]  # Their text.
        except ValueError as error:
            return Malformed(str(error))

    return read


def write_instant(value: datetime) -> str:
    """Return the moment as answers write it: RFC 3339 in UTC, ending in Z."""
    return value.isoformat().removesuffix("+00:00") + "Z"


class _DayTexts(dict[date, str]):
    """The texts of days. There are few days, and many values of each."""

    def __missing__(self, day: date) -> str:
        text = date.isoformat(day)
        if len(self) < MAX_CACHED_DAYS:
            self[day] = text
        return text


SCALARS: dict[object, ScalarDefinition] = {
    BigInt: strawberry.scalar(
        name="BigInt",
        description=(
            "A whole number from 0 to 9223372036854775807, exact in every client. In answers it is a string of decimal "
            "digits; in requests a string of ASCII digits, or an integer, which in variables is at most "
            "9007199254740991: clients may have rounded a greater one."
        ),
        serialize=str,
        parse_value=_value_reader(parse_sent_amount),
        parse_literal=_literal_reader(parse_amount, IntValueNode, StringValueNode),
    ),
    date: strawberry.scalar(
        name="Date",
        description="A day of the calendar, written `YYYY-MM-DD`.",
        serialize=_DayTexts().__getitem__,
        parse_value=_value_reader(parse_day),
        parse_literal=_literal_reader(parse_day, StringValueNode),
    ),
    datetime: strawberry.scalar(
        name="DateTime",
        description=(
            "A moment, written as in RFC 3339. In answers it is in UTC and ends in `Z`; in requests it has an "
            "offset, and decimals of a second beyond the sixth are cut off."
        ),
        specified_by_url="https://www.rfc-editor.org/rfc/rfc3339",
        serialize=write_instant,
        parse_value=_value_reader(parse_instant),
        parse_literal=_literal_reader(parse_instant, StringValueNode),
    ),
    JSON: strawberry.scalar(
        name="JSON",
        description="A JSON value. Where it is metadata, it is an object of at most 16 KiB.",
        specified_by_url="https://www.rfc-editor.org/rfc/rfc8259",
        serialize=lambda value: value,
        parse_value=lambda value: value,
    ),
}

#: The longest value of each, in bytes of JSON.
SCALAR_BYTES = {
    "BigInt": len('"9223372036854775807"'),
    "Date": len('"2026-03-16"'),
    "DateTime": len('"2026-03-16T12:00:00.123456Z"'),
    "JSON": METADATA_BYTES,
}
