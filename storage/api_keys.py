"""API keys: rows that hold a digest of the key, never the key."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import insert, select, update

from storage.database import Reader, Writer
from storage.tables import Environment, api_keys


class ApiKeyRow(NamedTuple):
    """A key's holder and what it may do. `workspace_ids` null: all of them."""

    id: str
    org_id: str
    environment: Environment
    name: str | None
    scopes: list[str]
    workspace_ids: list[str] | None
    digest: str
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


_COLUMNS = [api_keys.c[name] for name in ApiKeyRow._fields]


async def by_digest(reader: Reader, digest: str) -> ApiKeyRow | None:
    """Return the key whose SHA-256, in hexadecimal digits, this is."""
    row = await reader.fetch_one(select(*_COLUMNS).where(api_keys.c.digest == digest))
    return ApiKeyRow._make(row) if row is not None else None


async def by_id(reader: Reader, key_id: str) -> ApiKeyRow | None:
    """Return the key of this id."""
    row = await reader.fetch_one(select(*_COLUMNS).where(api_keys.c.id == key_id))
    return ApiKeyRow._make(row) if row is not None else None


async def all_keys(reader: Reader) -> Sequence[ApiKeyRow]:
    """Return every key, oldest first."""
    return [ApiKeyRow._make(row) for row in await reader.fetch(select(*_COLUMNS).order_by(api_keys.c.id))]


async def insert_key(writer: Writer, row: ApiKeyRow) -> None:
    """Write a new key."""
    await writer.execute(insert(api_keys), row._asdict())


async def revoke(writer: Writer, key_id: str, *, revoked_at: datetime) -> None:
    """Mark a key as revoked, where it is not already."""
    statement = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    await writer.execute(statement.values(revoked_at=revoked_at))
