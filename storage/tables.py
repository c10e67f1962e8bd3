"""The tables, and the types of their columns.

Each column holds plain data that both databases order, compare and return alike. An index names the query it serves.

Rows of `usage_days` and `ledger_entries` carry their meter's id first in every key: on PostgreSQL both are
hash-partitioned by it. They have no foreign key to the meter: they are written only under the meter's lock, in the
statements that changed it, and a check a row would cost more than the row.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import postgresql


class Word(StrEnum):
    """A word of a closed list. It is hashed as the text that it is, which `Enum` would do in Python each time."""

    __hash__ = str.__hash__


class Environment(Word):
    """Which of an organization's two separate worlds a row belongs to."""

    LIVE = "live"
    SANDBOX = "sandbox"


class LedgerEntryKind(Word):
    """What a ledger entry did: `OPENING` and `REFILL` add to total, `USAGE` to used, `VOID` takes from used."""

    OPENING = "opening"
    REFILL = "refill"
    USAGE = "usage"
    VOID = "void"
    SETTINGS = "settings"


class OverLimitPolicy(Word):
    """What the caller wants of a debit that the available credits do not cover."""

    REJECT = "reject"
    PARTIAL = "partial"
    FORCE = "force"


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
        return read_day if dialect.name == "sqlite" else None


def _write_day(value: date | None) -> str | None:
    return None if value is None else value.isoformat()


@lru_cache(maxsize=4_096)
def read_day(value: str | None) -> date | None:
    """Return the day that SQLite keeps as this text."""
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


#: Text ordered by code point on both databases. SQLite does so by itself; PostgreSQL needs to be told.
Name = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def _enum(members: type[StrEnum]) -> Enum:
    """Return the column type of an enum: its values as short text, checked by the code that writes them."""
    return Enum(
        members,
        native_enum=False,
        create_constraint=False,
        length=16,
        values_callable=lambda enum: [member.value for member in enum],
    )


metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    },
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Name, primary_key=True),
    Column("org_id", Name, nullable=False),
    Column("environment", _enum(Environment), nullable=False),
    Column("name", Text),
    Column("scopes", JsonText, nullable=False),
    Column("workspace_ids", JsonText),
    # SHA-256 of the whole key, in hexadecimal digits: the key itself is shown once and never stored.
    Column("digest", Name, nullable=False, unique=True),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Column("created_at", Instant, nullable=False),
    # Of a customer's session: the customer that it is for, and the key that made it. Neither is ever deleted.
    Column("customer_id", Name),
    Column("parent_id", Name),
    # Serves the search for sessions that have expired.
    Index(
        None,
        "expires_at",
        sqlite_where=text("parent_id IS NOT NULL"),
        postgresql_where=text("parent_id IS NOT NULL"),
    ),
)

customers = Table(
    "customers",
    metadata,
    Column("id", Name, primary_key=True),
    Column("org_id", Name, nullable=False),
    Column("environment", _enum(Environment), nullable=False),
    Column("email", Text, nullable=False),
    Column("name", Text),
    Column("external_id", Name),
    Column("metadata", JsonText, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    # The email and the name without regard to case, as Python folds it: neither database does so beyond ASCII by
    # itself. Null in rows that a release before 2026_11_21_filters has written since.
    Column("email_folded", Name),
    Column("name_folded", Name),
    # The id of the key that made the customer. Null in rows that a release before 2026_11_26_makers_of_customers has
    # written.
    Column("created_by", Name),
    # The idempotency key of the request that made it: the row of `idempotency_keys` can then be missed.
    Column("idempotency_key", Name),
    # Serves the lookup by external id, and the list by its beginning; where it is null, rows do not collide.
    UniqueConstraint("org_id", "environment", "external_id"),
    # Serves the list of customers, newest first.
    Index(None, "org_id", "environment", "id"),
    # Serves the list by email, newest first.
    Index(None, "org_id", "environment", "email_folded", "id"),
    # Serves the list by the beginning of the name.
    Index(None, "org_id", "environment", "name_folded"),
    # Serves the list by the time of making.
    Index(None, "org_id", "environment", "created_at"),
)

billing_meters = Table(
    "billing_meters",
    metadata,
    Column("id", Name, primary_key=True),
    Column("org_id", Name, nullable=False),
    Column("environment", _enum(Environment), nullable=False),
    Column("workspace_id", Name, nullable=False),
    Column("external_meter_id", Name, nullable=False),
    Column("customer_id", Name, ForeignKey("customers.id")),
    Column("timezone", Text, nullable=False),
    Column("total_credits", BigInteger, nullable=False),
    Column("used_credits", BigInteger, nullable=False),
    Column("allow_overages", Boolean, nullable=False),
    Column("spend_cap", BigInteger),
    # The most that `used_credits` may become by REJECT and PARTIAL; null: no limit. Written whenever its inputs change
    # and never computed in SQL, where the sum overflows on PostgreSQL and becomes a float on SQLite.
    Column("limit_credits", BigInteger),
    # The number of the meter's newest ledger entry.
    Column("last_seq", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    # How many binary digits the available credits have; null: no limit. It stands in an index for them, because it
    # changes so seldom: an index of the credits themselves would be written by every debit, which on PostgreSQL could
    # then no longer leave all indexes alone (HOT). Null or too great in rows that a release before 2026_11_21_filters
    # has written since.
    Column("available_bits", SmallInteger),
    # Serves the lookup by the caller's names.
    UniqueConstraint("org_id", "environment", "workspace_id", "external_meter_id", name="billing_meters_names_key"),
    # Serves the list of meters, newest first.
    Index(None, "org_id", "environment", "id"),
    # Serves a customer's meters, newest first.
    Index(None, "customer_id", "id"),
    # Serves a workspace's meters, newest first.
    Index(None, "org_id", "environment", "workspace_id", "id"),
    # Serves the meters of which few credits are available.
    Index(None, "org_id", "environment", "available_bits", "id"),
)

usage_days = Table(
    "usage_days",
    metadata,
    Column("meter_id", Name, nullable=False),
    Column("day", Day, nullable=False),
    Column("usage_name", Name, nullable=False),
    Column("total_usage", BigInteger, nullable=False),
    # Serves a meter's days in their order.
    PrimaryKeyConstraint("meter_id", "day", "usage_name"),
    sqlite_with_rowid=False,
    postgresql_partition_by="HASH (meter_id)",
)

ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("meter_id", Name, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kind", _enum(LedgerEntryKind), nullable=False),
    # The caller's name of it: the event id of a USAGE, the idempotency key of a REFILL, a VOID, or an OPENING's meter.
    # A REFILL without one, and each SETTINGS, has one of the gateway's.
    Column("key", Name),
    Column("amount", BigInteger, nullable=False),
    Column("total_credits_after", BigInteger, nullable=False),
    Column("used_credits_after", BigInteger, nullable=False),
    # The meter's limit at the decision; null: there was none.
    Column("limit_credits", BigInteger),
    Column("usage_name", Text),
    Column("day", Day),
    Column("requested_amount", BigInteger),
    Column("policy", _enum(OverLimitPolicy)),
    # Of a VOID: the `seq` of the usage that it takes back.
    Column("voids_seq", BigInteger),
    # The time as the caller sent it; null: none was sent, and it happened when it was recorded.
    Column("sent_at", Instant),
    Column("recorded_at", Instant, nullable=False),
    Column("recorded_by", Text, nullable=False),
    Column("reason", Text),
    # Of a USAGE: what the caller attached. Of an OPENING and SETTINGS: each setting, with its old and its new value.
    Column("metadata", JsonText, nullable=False),
    # Serves a meter's ledger, and an entry by its id.
    PrimaryKeyConstraint("meter_id", "seq"),
    # What makes an event count once. Serves the search for what a key has already done.
    UniqueConstraint("meter_id", "kind", "key"),
    # Serves the sum of what is already voided of a usage entry.
    Index(
        None,
        "meter_id",
        "voids_seq",
        sqlite_where=text("voids_seq IS NOT NULL"),
        postgresql_where=text("voids_seq IS NOT NULL"),
    ),
    postgresql_partition_by="HASH (meter_id)",
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("org_id", Name, nullable=False),
    Column("environment", _enum(Environment), nullable=False),
    Column("operation", Name, nullable=False),
    Column("key", Name, nullable=False),
    # SHA-256 of the request's values, in hexadecimal digits.
    Column("request_digest", Text, nullable=False),
    # The id of what the request made.
    Column("result_id", Name, nullable=False),
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("org_id", "environment", "operation", "key"),
)
