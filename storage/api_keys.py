"""API keys and the sessions made with them: rows that hold a digest of the key or token, never itself."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Column, Index, Table, Text, delete, insert, or_, select, text, update

from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, JsonText, Name, enum_type, metadata
from storage.tenants import Environment

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Name, primary_key=True),
    Column("org_id", Name, nullable=False),
    Column("environment", enum_type(Environment), nullable=False),
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


class ApiKeyRow(NamedTuple):
    """A key's holder and what it may do. `workspace_ids` null: all of them.

    A customer's session has its customer, and the key that made it as its parent.
    """

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
    customer_id: str | None = None
    parent_id: str | None = None


_COLUMNS = [api_keys.c[name] for name in ApiKeyRow._fields]

_parent = api_keys.alias("parent")

#: A key, or a session whose parent is there, with what ends and limits the parent.
_WITH_PARENT = (
    select(
        *_COLUMNS,
        *[_parent.c[name].label(f"parent_{name}") for name in ("expires_at", "revoked_at", "scopes", "workspace_ids")],
    )
    .outerjoin(_parent, _parent.c.id == api_keys.c.parent_id)
    .where(or_(api_keys.c.parent_id.is_(None), _parent.c.id.is_not(None)))
)


async def by_digest(reader: Reader, digest: str) -> ApiKeyRow | None:
    """Return the key or session whose SHA-256, in hexadecimal digits, this is.

    A session is as if it had been revoked with its parent, expires with it at the latest, and may do what its parent
    may do at the most.
    """
    row = await reader.fetch_one(_WITH_PARENT.where(api_keys.c.digest == digest))
    if row is None:
        return None
    *values, parent_expires_at, parent_revoked_at, parent_scopes, parent_workspace_ids = tuple(row)
    key = ApiKeyRow._make(values)
    if key.parent_id is None:
        return key
    ends = [end for end in (key.expires_at, parent_expires_at) if end is not None]
    return key._replace(
        scopes=[scope for scope in key.scopes if scope in parent_scopes],
        workspace_ids=parent_workspace_ids,
        expires_at=min(ends, default=None),
        revoked_at=key.revoked_at or parent_revoked_at,
    )


async def by_id(reader: Reader, key_id: str) -> ApiKeyRow | None:
    """Return the key of this id."""
    row = await reader.fetch_one(select(*_COLUMNS).where(api_keys.c.id == key_id))
    return ApiKeyRow._make(row) if row is not None else None


async def all_keys(reader: Reader) -> Sequence[ApiKeyRow]:
    """Return every key, oldest first, without the sessions."""
    statement = select(*_COLUMNS).where(api_keys.c.parent_id.is_(None)).order_by(api_keys.c.id)
    return [ApiKeyRow._make(row) for row in await reader.fetch(statement)]


async def insert_key(writer: Writer, row: ApiKeyRow) -> None:
    """Write a new key or session."""
    await writer.execute(insert(api_keys), row._asdict())


async def revoke(writer: Writer, key_id: str, *, revoked_at: datetime) -> None:
    """Mark a key as revoked, where it is not already."""
    statement = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    await writer.execute(statement.values(revoked_at=revoked_at))


async def delete_expired_sessions(writer: Writer, *, now: datetime, limit: int) -> None:
    """Delete some of the sessions that have expired by now, those that another transaction is deleting aside."""
    expired = (
        select(api_keys.c.id)
        .where(api_keys.c.parent_id.is_not(None), api_keys.c.expires_at <= now)
        .order_by(api_keys.c.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    found = [row.id for row in await writer.fetch(expired)]
    if found:
        await writer.execute(delete(api_keys).where(api_keys.c.id.in_(found)))
