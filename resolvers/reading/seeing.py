"""Which webhook endpoints an actor may see."""

from collections.abc import Iterable

from resolvers.actor import Actor
from storage import ids, webhook_endpoints
from storage.engine.transactions import Reader
from storage.meters.events import EventRow
from storage.webhook_endpoints import WebhookEndpointRow


def sees(actor: Actor, endpoint: WebhookEndpointRow) -> bool:
    """Whether the actor may see the endpoint: it is its tenant's, and gets nothing that the actor may not see."""
    if (endpoint.org_id, endpoint.environment) != (actor.org_id, actor.environment) or actor.customer_id is not None:
        return False
    if actor.workspace_ids is None:
        return True
    return endpoint.workspace_ids is not None and set(endpoint.workspace_ids) <= set(actor.workspace_ids)


async def seen_by(reader: Reader, actor: Actor) -> list[WebhookEndpointRow]:
    """Return the endpoints that the actor may see, oldest first."""
    found = await webhook_endpoints.of_tenant(reader, org_id=actor.org_id, environment=actor.environment)
    return [each for each in found if sees(actor, each)]


async def own_endpoints(reader: Reader, actor: Actor, rows: Iterable[EventRow]) -> set[str]:
    """Return which endpoints that the actor may see events are of that are of no meter.

    An actor that is not limited to workspaces need not ask.
    """
    owners = {row.owner_id for row in rows if row.owner_id.startswith(ids.WEBHOOK_ENDPOINT)}
    if actor.workspace_ids is None or not owners:
        return set()
    found = await webhook_endpoints.by_ids(reader, owners)
    return {id_ for id_, row in found.items() if sees(actor, row)}
