"""Webhook endpoints: listing, making, changing and deleting them, and giving them new secrets."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from resolvers import idempotency
from resolvers.actor import Actor, Scope
from resolvers.context import Context
from resolvers.errors import (
    IdempotencyConflict,
    InvalidInput,
    TooManyWebhookEndpoints,
    WebhookEndpointNotFound,
)
from resolvers.reading.seeing import seen_by, sees
from resolvers.values import KEY_LENGTH, NAME_LENGTH, check_text
from resolvers.webhooks.addresses import check_url
from resolvers.webhooks.disabling import BY_REQUEST, fail_pending
from resolvers.webhooks.signing import Webhooks
from storage import ids, webhook_endpoints
from storage.engine.pages import Page, on_page
from storage.engine.transactions import Writer
from storage.meters.events import EventType
from storage.webhook_endpoints import WebhookEndpointRow

CREATE = "createWebhookEndpoint"

#: The maximum number of endpoints of an organization in an environment: each is looked at for each of its events.
MAX_ENDPOINTS = 50

#: The maximum number of workspaces that an endpoint is limited to.
MAX_WORKSPACES = 100

#: How long an earlier secret may be kept, and is when nothing is said, in seconds.
LONGEST_KEPT_SECONDS = 604_800
KEPT_SECONDS = 86_400


class NewWebhookEndpoint(NamedTuple):
    """What a caller says of an endpoint that is to be made. Each field is an endpoint's."""

    url: str
    types: Sequence[EventType] = ()
    workspace_ids: Sequence[str] | None = None
    description: str | None = None


class EndpointOutcome(NamedTuple):
    """An endpoint after a mutation, and its newest secret."""

    endpoint: WebhookEndpointRow
    secret: str
    replayed: bool


async def list_endpoints(context: Context, page: Page) -> list[WebhookEndpointRow]:
    """Return a page of the endpoints that the actor may see, and one more row where there is one.

    Raises `Forbidden`.
    """
    context.actor.require(Scope.BILLING_READ)
    context.actor.require_organization()
    async with context.database.read() as reader:
        return on_page(page, await seen_by(reader, context.actor), lambda row: row.id)


async def lock_seen(writer: Writer, actor: Actor, endpoint_id: str) -> WebhookEndpointRow:
    """Lock an endpoint that the actor may see, and return it as it then is. Raises `WebhookEndpointNotFound`."""
    found = await webhook_endpoints.lock(writer, endpoint_id) if ids.is_id(endpoint_id, ids.WEBHOOK_ENDPOINT) else None
    if found is None or not sees(actor, found):
        raise WebhookEndpointNotFound
    return found


def require_webhooks(context: Context) -> Webhooks:
    """Return what webhooks go by, for an actor that may change endpoints. Raises `Forbidden`."""
    actor = context.actor
    actor.require(Scope.WEBHOOKS_WRITE)
    # An endpoint is sent what can be read.
    actor.require(Scope.BILLING_READ)
    actor.require_organization()
    assert context.webhooks is not None  # noqa: S101  # Every gateway has them.
    return context.webhooks


async def create_endpoint(
    context: Context, request: NewWebhookEndpoint, *, idempotency_key: str | None = None
) -> EndpointOutcome:
    """Make an endpoint. A replay answers the endpoint and its newest secret, as they are now.

    Raises `InvalidInput`, `Forbidden`, `IdempotencyConflict` and `TooManyWebhookEndpoints`, in this order.
    """
    request = request._replace(types=tuple(dict.fromkeys(request.types)))
    _check_description(request.description)
    if idempotency_key is not None:
        check_text("idempotencyKey", idempotency_key, length=KEY_LENGTH)
    if request.workspace_ids is not None:
        request = request._replace(workspace_ids=tuple(dict.fromkeys(request.workspace_ids)))
        _check_workspaces(request.workspace_ids or ())
    webhooks = require_webhooks(context)
    check_url(request.url, allows_private=webhooks.allows_private)
    actor = context.actor
    if request.workspace_ids is None and actor.workspace_ids is not None:
        raise InvalidInput("workspaceIds", "must be given, as the key is limited to workspaces: some of them.")
    for workspace_id in request.workspace_ids or ():
        actor.require_workspace(workspace_id)

    # The same in every attempt, so that an attempt finds what an earlier one of this request has made.
    endpoint_id = ids.new_id(ids.WEBHOOK_ENDPOINT)
    # Before anything is written: without a key there is nothing to sign with.
    webhooks.secrets.secret_of(endpoint_id, 1)
    tenant: dict[str, Any] = {"org_id": actor.org_id, "environment": actor.environment}

    async def create(writer: Writer) -> tuple[WebhookEndpointRow, bool]:
        now = context.clock()
        await webhook_endpoints.lock_all_of(writer, **tenant)
        existing = {row.id: row for row in await webhook_endpoints.of_tenant(writer, **tenant)}
        earlier = await idempotency.earlier(writer, actor, operation=CREATE, key=idempotency_key)
        if earlier is not None:
            made = existing.get(earlier.result_id)
            if made is None or not sees(actor, made) or earlier.request_digest != idempotency.digest(request):
                raise IdempotencyConflict(earlier.key)
            return made, made.id != endpoint_id
        if len(existing) >= MAX_ENDPOINTS:
            raise TooManyWebhookEndpoints(MAX_ENDPOINTS)
        row = WebhookEndpointRow(
            id=endpoint_id,
            **tenant,
            url=request.url,
            types=list(request.types),
            workspace_ids=None if request.workspace_ids is None else list(request.workspace_ids),
            description=request.description,
            secret_generation=1,
            previous_until=None,
            disabled_reason=None,
            failing_since=None,
            last_event=0,
            created_at=now,
        )
        await webhook_endpoints.insert_endpoint(writer, row)
        await idempotency.remember(
            writer, actor, operation=CREATE, key=idempotency_key, request=request, result_id=row.id, now=now
        )
        return row, False

    made, replayed = await context.database.write(create, is_repeatable=idempotency_key is not None)
    context.forget()
    return EndpointOutcome(made, webhooks.secrets.secret_of(made.id, made.secret_generation), replayed)


async def update_endpoint(context: Context, *, endpoint_id: str, changes: Mapping[str, Any]) -> WebhookEndpointRow:
    """Change an endpoint's `url`, `types`, `is_enabled` or `description`; what `changes` leaves out stays.

    None clears `description` alone. What is pending of an endpoint that is disabled fails.

    Raises `InvalidInput`, `Forbidden` and `WebhookEndpointNotFound`, in this order.
    """
    for name, field in (("url", "url"), ("types", "types"), ("is_enabled", "isEnabled")):
        if name in changes and changes[name] is None:
            raise InvalidInput(field, "must not be null; leave it out to keep it.")
    _check_description(changes.get("description"))
    webhooks = require_webhooks(context)
    if "url" in changes:
        check_url(changes["url"], allows_private=webhooks.allows_private)
    changes = dict(changes)
    if "types" in changes:
        changes["types"] = [*dict.fromkeys(changes["types"])]
    is_enabled = changes.pop("is_enabled", None)

    async def change(writer: Writer) -> WebhookEndpointRow:
        row = await lock_seen(writer, context.actor, endpoint_id)
        after = row._replace(**changes)
        if is_enabled and not row.is_enabled:
            after = after._replace(disabled_reason=None, failing_since=None)
        elif is_enabled is False and row.is_enabled:
            after = after._replace(disabled_reason=BY_REQUEST, failing_since=None)
        if after != row:
            await webhook_endpoints.update_endpoint(writer, after)
        return after

    changed = await context.database.write(change)
    if is_enabled is False:
        await fail_pending(context.database, changed.id)
    context.forget()
    webhooks.wake()
    return changed


async def rotate_secret(
    context: Context, *, endpoint_id: str, generation: int, keep_previous_seconds: int = KEPT_SECONDS
) -> EndpointOutcome:
    """Give an endpoint its next secret; the one before signs as well for as long as is said.

    `generation` is the new secret's number, so that a repeated request changes nothing.

    Raises `InvalidInput`, `Forbidden` and `WebhookEndpointNotFound`.
    """
    if not 0 <= keep_previous_seconds <= LONGEST_KEPT_SECONDS:
        raise InvalidInput("keepPreviousSeconds", f"must be 0 to {LONGEST_KEPT_SECONDS}.")
    webhooks = require_webhooks(context)

    async def rotate(writer: Writer) -> tuple[WebhookEndpointRow, bool]:
        row = await lock_seen(writer, context.actor, endpoint_id)
        if generation == row.secret_generation:
            return row, True
        if generation != row.secret_generation + 1:
            raise InvalidInput("generation", f"must be {row.secret_generation + 1}, one more than the newest.")
        # Nothing is written without a key.
        webhooks.secrets.secret_of(row.id, generation)
        kept = timedelta(seconds=keep_previous_seconds)
        after = row._replace(secret_generation=generation, previous_until=context.clock() + kept if kept else None)
        await webhook_endpoints.update_endpoint(writer, after)
        return after, False

    row, replayed = await context.database.write(rotate)
    context.forget()
    return EndpointOutcome(row, webhooks.secrets.secret_of(row.id, row.secret_generation), replayed)


async def delete_endpoint(context: Context, *, endpoint_id: str) -> str:
    """Delete an endpoint and return its id. What was sent to it goes with it.

    Raises `Forbidden` and `WebhookEndpointNotFound`, in this order.
    """
    webhooks = require_webhooks(context)

    async def remove(writer: Writer) -> str:
        row = await lock_seen(writer, context.actor, endpoint_id)
        await webhook_endpoints.delete_endpoint(writer, row.id)
        return row.id

    deleted_id = await context.database.write(remove)
    context.forget()
    webhooks.wake()
    return deleted_id


def _check_description(description: str | None) -> None:
    if description is not None:
        check_text("description", description, length=NAME_LENGTH)


def _check_workspaces(workspace_ids: Sequence[str]) -> None:
    if not 1 <= len(workspace_ids) <= MAX_WORKSPACES:
        raise InvalidInput("workspaceIds", f"must have 1 to {MAX_WORKSPACES} workspaces; leave it out for all.")
    for workspace_id in workspace_ids:
        check_text("workspaceIds", workspace_id, length=NAME_LENGTH)
