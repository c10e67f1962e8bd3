"""The holder of the key or token."""

from typing import TYPE_CHECKING, Annotated, cast

import strawberry

from resolvers.actor import Scope as ScopeValue
from resolvers.values import NAME_LENGTH, ORG_LENGTH
from schema.engine.execution.resolving import DIRECT
from schema.engine.limits.sizes import of_bytes, text
from schema.enums import Environment, Scope
from schema.info import Info

if TYPE_CHECKING:
    from schema.customers import Customer

_CustomerType = Annotated["Customer", strawberry.lazy("schema.customers")]


@strawberry.type(description="The holder of the key that the request was made with.")
class Viewer:
    """See `resolvers.actor.Actor`."""

    org_id: strawberry.ID = strawberry.field(
        description="The id of the organization that the key belongs to.", metadata=text(ORG_LENGTH)
    )
    environment: Environment = strawberry.field(description="The world that the key is for.")
    scopes: list[Scope] = strawberry.field(description="What the key allows.", metadata=of_bytes(15, items=10))
    workspace_ids: list[str] | None = strawberry.field(
        description="The workspaces that the key is limited to; null: it is not limited.",
        metadata=text(NAME_LENGTH, items=100),
    )

    @strawberry.field(
        description="The customer that the request is made for; null: it is made for the organization.",
        metadata=DIRECT,
    )
    async def customer(self, info: Info) -> _CustomerType | None:
        """Return the customer whose session it is."""
        loaders = info.context.reading
        customer_id = info.context.actor.customer_id
        row = await loaders.customer_by_id.load(customer_id) if customer_id is not None else None
        return cast("Customer | None", row)


@strawberry.type
class ViewerQuery:
    """The query of the viewer."""

    @strawberry.field(description="The holder of the key that the request was made with.", metadata=DIRECT)
    async def viewer(self, info: Info) -> Viewer:
        """Return who asks."""
        actor = info.context.actor
        actor.require(ScopeValue.BILLING_READ)
        return Viewer(
            org_id=strawberry.ID(actor.org_id),
            environment=Environment(actor.environment),
            scopes=[Scope(scope) for scope in ScopeValue if scope in actor.scopes],
            workspace_ids=list(actor.workspace_ids) if actor.workspace_ids is not None else None,
        )
