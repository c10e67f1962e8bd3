"""Webhook endpoints: the addresses that events are sent to, and what each of them wants.

No secret is stored: each is derived from the operator's key, the endpoint's id and the generation.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Column, Index, Integer, Select, Table, Text, delete, insert, select, tuple_, update

from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, JsonText, Name, enum_type, metadata
from storage.meters.events import EventType
from storage.tenants import Environment

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Name, primary_key=True),
    Column("org_id", Name, nullable=False),
    Column("environment", enum_type(Environment), nullable=False),
    Column("url", Text, nullable=False),
    # The types of the events that it wants; empty: all.
    Column("types", JsonText, nullable=False),
    # The workspaces whose events it gets; null: all.
    Column("workspace_ids", JsonText),
    Column("description", Text),
    # The number of its secret, and until when the one before it signs as well.
    Column("secret_generation", Integer, nullable=False),
    Column("previous_until", Instant),
    # Why nothing is sent to it; null: it is enabled.
    Column("disabled_reason", Text),
    # Since when attempts have done nothing but fail; null: the last one did not, or there was none since it is enabled.
    Column("failing_since", Instant),
    # The number of the newest event of its own.
    Column("last_event", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    # Serves the endpoints of a tenant.
    Index(None, "org_id", "environment", "id"),
)


class WebhookEndpointRow(NamedTuple):
    """An address that events are sent to."""

    id: str
    org_id: str
    environment: Environment
    url: str
    types: list[str]
    workspace_ids: list[str] | None
    description: str | None
    secret_generation: int
    previous_until: datetime | None
    disabled_reason: str | None
    failing_since: datetime | None
    last_event: int
    created_at: datetime

    @property
    def is_enabled(self) -> bool:
        """Whether events are sent to it."""
        return self.disabled_reason is None

    def wants(self, type_: EventType, workspace_id: str | None) -> bool:
        """Whether it is to get an event of this type, of this workspace or of none."""
        return self.may_know(workspace_id) and (not self.types or type_ in self.types)

    def may_know(self, workspace_id: str | None) -> bool:
        """Whether it may get events of this workspace, or of none."""
        return self.workspace_ids is None or workspace_id in self.workspace_ids


_COLUMNS = [webhook_endpoints.c[name] for name in WebhookEndpointRow._fields]

#: What changes of an endpoint.
_CHANGING = (
    *("url", "types", "description", "secret_generation", "previous_until"),
    *("disabled_reason", "failing_since", "last_event"),
)


def _of_tenant(org_id: str, environment: Environment) -> Select[Any]:
    found = webhook_endpoints.c
    return select(*_COLUMNS).where(found.org_id == org_id, found.environment == environment).order_by(found.id)


async def of_tenant(reader: Reader, *, org_id: str, environment: Environment) -> list[WebhookEndpointRow]:
    """Return the endpoints of a tenant, oldest first. They are few: see `resolvers.webhooks.endpoints`."""
    return list(map(WebhookEndpointRow._make, await reader.fetch(_of_tenant(org_id, environment))))


async def enabled_of(
    reader: Reader, tenants: Collection[tuple[str, Environment]]
) -> Mapping[tuple[str, Environment], Sequence[WebhookEndpointRow]]:
    """Return the enabled endpoints of these tenants, by them."""
    found = webhook_endpoints.c
    is_wanted = tuple_(found.org_id, found.environment).in_([*tenants])
    rows = await reader.fetch(select(*_COLUMNS).where(is_wanted, found.disabled_reason.is_(None)).order_by(found.id))
    by_tenant: dict[tuple[str, Environment], list[WebhookEndpointRow]] = {}
    for row in map(WebhookEndpointRow._make, rows):
        by_tenant.setdefault((row.org_id, row.environment), []).append(row)
    return by_tenant


async def by_ids(reader: Reader, ids: Iterable[str]) -> dict[str, WebhookEndpointRow]:
    """Return the endpoints of these ids, by id. Whose they are is the caller's to check."""
    rows = await reader.fetch(select(*_COLUMNS).where(webhook_endpoints.c.id.in_([*ids])))
    return {row.id: row for row in map(WebhookEndpointRow._make, rows)}


async def lock(writer: Writer, endpoint_id: str) -> WebhookEndpointRow | None:
    """Lock the endpoint of this id until the transaction ends, and return it as it then is."""
    locked = select(*_COLUMNS).where(webhook_endpoints.c.id == endpoint_id).with_for_update()
    row = await writer.fetch_one(locked)
    return WebhookEndpointRow._make(row) if row is not None else None


async def lock_all_of(writer: Writer, *, org_id: str, environment: Environment) -> None:
    """Lock the endpoints that a tenant has, so that of two transactions that add one the second counts the first's."""
    await writer.fetch(_of_tenant(org_id, environment).with_for_update())


async def insert_endpoint(writer: Writer, row: WebhookEndpointRow) -> None:
    """Write a new endpoint."""
    await writer.execute(insert(webhook_endpoints), row._asdict())


async def update_endpoint(writer: Writer, row: WebhookEndpointRow) -> None:
    """Write what may change of an endpoint, which the transaction has locked."""
    changed = {name: getattr(row, name) for name in _CHANGING}
    await writer.execute(update(webhook_endpoints).where(webhook_endpoints.c.id == row.id).values(changed))


async def disable_all(writer: Writer, reason: str) -> None:
    """Disable all endpoints, of whatever tenants, that are enabled."""
    enabled = update(webhook_endpoints).where(webhook_endpoints.c.disabled_reason.is_(None))
    await writer.execute(enabled.values(disabled_reason=reason))


async def delete_endpoint(writer: Writer, endpoint_id: str) -> None:
    """Delete an endpoint. Its deliveries are deleted by the workers."""
    await writer.execute(delete(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id))
