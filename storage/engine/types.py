"""What tables are made of: the types of their columns, and the names of their keys and indexes.

Each column holds plain data that both databases order, compare and return alike.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import (
    Date,
    DateTime,
    Dialect,
    Enum,
    MetaData,
    Text,
    TypeDecorator,
)
from sqlalchemy.dialects import postgresql


class Word(StrEnum):
    """A word of a closed list. It is hashed as the text that it is, which `Enum` would do in Python each time."""

    __hash__ = str.__hash__


class Instant(TypeDecorator[datetime]):
    """An aware moment in UTC: `timestamptz` on PostgreSQL, ISO 8601 text in UTC on SQLite, which has no such type.

    The text is what `datetime.isoformat` and orjson write, and sorts as the moments do.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Write the text."""
        return _write_instant if dialect.name == "sqlite" else None

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:  # noqa: ARG002
        """Read the text."""
        return _read_instant if dialect.name == "sqlite" else None


def _write_instant(value: datetime | None) -> str | None:
    if value is None:
        return None
    return (value if value.tzinfo is UTC else value.astimezone(UTC)).isoformat()


def _read_instant(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


class Day(TypeDecorator[date]):
    """A day of the calendar: `date` on PostgreSQL, ISO 8601 text on SQLite."""

    impl = Date
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Write the text."""
        return _write_day if dialect.name == "sqlite" else None

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:  # noqa: ARG002
        """Read the text."""
        return _read_day if dialect.name == "sqlite" else None


def _write_day(value: date | None) -> str | None:
    return None if value is None else value.isoformat()


@lru_cache(maxsize=4_096)
def _read_day(value: str | None) -> date | None:
    # There are few days, and many rows of each.
    return None if value is None else date.fromisoformat(value)


class JsonText(TypeDecorator[Any]):
    """A JSON value as compact text with sorted keys, so that both databases keep and compare the same bytes."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002  # the signature is SQLAlchemy's
        """Write the canonical text."""
        return None if value is None else json_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002  # the signature is SQLAlchemy's
        """Read it back."""
        return None if value is None else orjson.loads(value)


def json_text(value: Any) -> str:
    """Return the JSON value as `JsonText` keeps it."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


#: Text ordered by code point on both databases. SQLite does so by itself, PostgreSQL by this collation.
Name = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def enum_type(members: type[StrEnum]) -> Enum:
    """Return the column type of an enum: its values as short text, checked by the code that writes them."""
    return Enum(
        members,
        native_enum=False,
        create_constraint=False,
        length=16,
        values_callable=lambda enum: [member.value for member in enum],
    )


#: Each feature's file adds its tables to it; `storage.tables` has imported them all.
metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    },
)
