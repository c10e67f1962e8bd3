"""What each idempotency key of a create has made."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Column, PrimaryKeyConstraint, Table, Text, insert, select

from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, Name, enum_type, metadata
from storage.tenants import Environment

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("org_id", Name, nullable=False),
    Column("environment", enum_type(Environment), nullable=False),
    Column("operation", Name, nullable=False),
    Column("key", Name, nullable=False),
    # SHA-256 of the request's values, in hexadecimal digits.
    Column("request_digest", Text, nullable=False),
    # The id of what the request made.
    Column("result_id", Name, nullable=False),
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("org_id", "environment", "operation", "key"),
)


class IdempotencyKeyRow(NamedTuple):
    """The first request under a key: what it asked for, as a digest, and the id of what it made."""

    org_id: str
    environment: Environment
    operation: str
    key: str
    request_digest: str
    result_id: str
    created_at: datetime


_COLUMNS = [idempotency_keys.c[name] for name in IdempotencyKeyRow._fields]


async def find(
    reader: Reader, *, org_id: str, environment: Environment, operation: str, key: str
) -> IdempotencyKeyRow | None:
    """Return the first request of the tenant for this operation under this key."""
    row = await reader.fetch_one(
        select(*_COLUMNS).where(
            idempotency_keys.c.org_id == org_id,
            idempotency_keys.c.environment == environment,
            idempotency_keys.c.operation == operation,
            idempotency_keys.c.key == key,
        ),
    )
    return IdempotencyKeyRow._make(row) if row is not None else None


async def insert_key(writer: Writer, row: IdempotencyKeyRow) -> None:
    """Write the first request under a key."""
    await writer.execute(insert(idempotency_keys), row._asdict())
