"""The mutations of webhook endpoints."""

from typing import Annotated

import strawberry

from resolvers.webhooks import endpoints
from resolvers.webhooks.endpoints import KEPT_SECONDS, EndpointOutcome, NewWebhookEndpoint
from schema.engine.execution.resolving import DIRECT
from schema.engine.limits.sizes import AN_ID, of_bytes
from schema.enums import EventType
from schema.errors import IdempotencyConflict, InvalidInput, TooManyWebhookEndpoints, WebhookEndpointNotFound
from schema.info import Info, changes_of, not_null, values_of
from schema.webhooks.endpoints import WebhookEndpoint
from storage.meters import events

#: The bytes of a secret in JSON: `whsec_` and 32 bytes in base64.
_SECRET = of_bytes(2 + len("whsec_") + 44)

_NOW = "The endpoint, as it is now."


def _rows_of(types: list[EventType]) -> list[events.EventType]:
    return [events.EventType[each.name] for each in types]


@strawberry.input(description="A new webhook endpoint.")
class CreateWebhookEndpointInput:
    """The fields of a new endpoint."""

    url: str = strawberry.field(
        description=(
            "Where events are sent to: `https:`, of a public address, at most 2,048 characters of ASCII, without "
            "credentials."
        )
    )
    types: list[EventType] = strawberry.field(
        default_factory=list, description="The types of the events that it gets; empty: all."
    )
    workspace_ids: list[str] | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "The workspaces whose events it gets, at most 100; left out: all, and null is refused. A key that is "
            "limited to workspaces names some of them."
        ),
    )
    description: str | None = strawberry.field(
        default=strawberry.UNSET, description="What to know it by, 1 to 256 characters; left out or null: nothing."
    )
    idempotency_key: str | None = strawberry.field(
        default=strawberry.UNSET,
        description=(
            "The caller's name of this request, 1 to 255 characters: repeating it answers the endpoint it made."
        ),
    )


@strawberry.input(description="A change of a webhook endpoint; what is left out stays.")
class UpdateWebhookEndpointInput:
    """The fields of an endpoint that can be changed."""

    id: strawberry.ID = strawberry.field(description="The endpoint's id.")
    url: strawberry.Maybe[str | None] = strawberry.field(
        default=None, description="Where events are sent to; null is refused."
    )
    types: strawberry.Maybe[list[EventType] | None] = strawberry.field(
        default=None, description="The types of the events that it gets; empty: all. Null is refused."
    )
    is_enabled: strawberry.Maybe[bool | None] = strawberry.field(
        default=None,
        description="Whether events are sent to it; what is pending of one that is disabled fails. Null is refused.",
    )
    description: strawberry.Maybe[str | None] = strawberry.field(
        default=None, description="What to know it by, 1 to 256 characters; null clears it."
    )


@strawberry.input(description="A new secret of a webhook endpoint.")
class RotateWebhookSecretInput:
    """The fields of a rotation."""

    id: strawberry.ID = strawberry.field(description="The endpoint's id.")
    generation: int = strawberry.field(
        description="The number of the new secret: one more than `secretGeneration`. Repeating it changes nothing."
    )
    keep_previous_seconds: int = strawberry.field(
        default=KEPT_SECONDS, description="How long the earlier secret signs as well, 0 to 604,800 seconds."
    )


@strawberry.input(description="A webhook endpoint to delete.")
class DeleteWebhookEndpointInput:
    """The fields of a deletion."""

    id: strawberry.ID = strawberry.field(description="The endpoint's id.")


@strawberry.type(description="A webhook endpoint was made.")
class CreateWebhookEndpointSuccess:
    """See `resolvers.webhooks.endpoints.EndpointOutcome`."""

    endpoint: WebhookEndpoint = strawberry.field(description=_NOW)
    secret: str = strawberry.field(
        description="What its newest secret is; only this mutation and a rotation answer it.", metadata=_SECRET
    )
    replayed: bool = strawberry.field(description="Whether an earlier request under the same key had made it.")


@strawberry.type(description="A webhook endpoint was changed, or already was as wanted.")
class UpdateWebhookEndpointSuccess:
    """See `resolvers.webhooks.endpoints.update_endpoint`."""

    endpoint: WebhookEndpoint = strawberry.field(description=_NOW)


@strawberry.type(description="A webhook endpoint has a new secret.")
class RotateWebhookSecretSuccess:
    """See `resolvers.webhooks.endpoints.rotate_secret`."""

    endpoint: WebhookEndpoint = strawberry.field(description=_NOW)
    secret: str = strawberry.field(description="What its newest secret is.", metadata=_SECRET)
    replayed: bool = strawberry.field(description="Whether it had that secret before.")


@strawberry.type(description="A webhook endpoint was deleted, with what was sent to it.")
class DeleteWebhookEndpointSuccess:
    """See `resolvers.webhooks.endpoints.delete_endpoint`."""

    deleted_id: strawberry.ID = strawberry.field(description="The id that it had.", metadata=AN_ID)


CreateWebhookEndpointResult = Annotated[
    CreateWebhookEndpointSuccess | InvalidInput | IdempotencyConflict | TooManyWebhookEndpoints,
    strawberry.union("CreateWebhookEndpointResult", description="The new endpoint, or why there is none."),
]
UpdateWebhookEndpointResult = Annotated[
    UpdateWebhookEndpointSuccess | InvalidInput | WebhookEndpointNotFound,
    strawberry.union("UpdateWebhookEndpointResult", description="The changed endpoint, or why it was not changed."),
]
RotateWebhookSecretResult = Annotated[
    RotateWebhookSecretSuccess | InvalidInput | WebhookEndpointNotFound,
    strawberry.union("RotateWebhookSecretResult", description="The new secret, or why there is none."),
]
DeleteWebhookEndpointResult = Annotated[
    DeleteWebhookEndpointSuccess | WebhookEndpointNotFound,
    strawberry.union("DeleteWebhookEndpointResult", description="What was deleted, or why nothing was."),
]


def _endpoint(outcome: EndpointOutcome) -> WebhookEndpoint:
    return WebhookEndpoint.of(outcome.endpoint)


@strawberry.type
class WebhookMutation:
    """The mutations of webhook endpoints."""

    @strawberry.mutation(
        description="Makes a webhook endpoint. Needs `webhooks:write` and `billing:read`.", metadata=DIRECT
    )
    async def create_webhook_endpoint(
        self,
        info: Info,
        input: Annotated[CreateWebhookEndpointInput, strawberry.argument(description="The new endpoint.")],
    ) -> CreateWebhookEndpointResult | None:
        """Make the endpoint."""
        workspace_ids = not_null("workspaceIds", input.workspace_ids, "leave it out for all workspaces.")
        values = values_of(input) | {"types": _rows_of(input.types), "workspace_ids": workspace_ids}
        key = values.pop("idempotency_key", None)
        request = NewWebhookEndpoint(**values)
        outcome = await endpoints.create_endpoint(info.context, request, idempotency_key=key)
        return CreateWebhookEndpointSuccess(
            endpoint=_endpoint(outcome), secret=outcome.secret, replayed=outcome.replayed
        )

    @strawberry.mutation(
        description="Changes a webhook endpoint. Needs `webhooks:write` and `billing:read`.", metadata=DIRECT
    )
    async def update_webhook_endpoint(
        self,
        info: Info,
        input: Annotated[
            UpdateWebhookEndpointInput, strawberry.argument(description="The endpoint, and what to change of it.")
        ],
    ) -> UpdateWebhookEndpointResult | None:
        """Change the endpoint."""
        changes = changes_of(input)
        if changes.get("types") is not None:
            changes["types"] = _rows_of(changes["types"])
        row = await endpoints.update_endpoint(info.context, endpoint_id=input.id, changes=changes)
        return UpdateWebhookEndpointSuccess(endpoint=WebhookEndpoint.of(row))

    @strawberry.mutation(
        description=(
            "Gives a webhook endpoint a new secret; the earlier one signs as well for a while. Needs `webhooks:write` "
            "and `billing:read`."
        ),
        metadata=DIRECT,
    )
    async def rotate_webhook_secret(
        self,
        info: Info,
        input: Annotated[RotateWebhookSecretInput, strawberry.argument(description="The endpoint, and which secret.")],
    ) -> RotateWebhookSecretResult | None:
        """Rotate the secret."""
        values = values_of(input)
        outcome = await endpoints.rotate_secret(info.context, endpoint_id=values.pop("id"), **values)
        return RotateWebhookSecretSuccess(endpoint=_endpoint(outcome), secret=outcome.secret, replayed=outcome.replayed)

    @strawberry.mutation(
        description="Deletes a webhook endpoint. Needs `webhooks:write` and `billing:read`.", metadata=DIRECT
    )
    async def delete_webhook_endpoint(
        self, info: Info, input: Annotated[DeleteWebhookEndpointInput, strawberry.argument(description="The endpoint.")]
    ) -> DeleteWebhookEndpointResult | None:
        """Delete the endpoint."""
        deleted_id = await endpoints.delete_endpoint(info.context, endpoint_id=input.id)
        return DeleteWebhookEndpointSuccess(deleted_id=strawberry.ID(deleted_id))
