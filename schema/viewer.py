"""The holder of the key."""

from typing import TYPE_CHECKING, Annotated

import strawberry

from resolvers.actor import Scope as ScopeValue
from schema.enums import Environment, Scope
from schema.info import Info

if TYPE_CHECKING:
    from schema.customers import Customer


@strawberry.type(description="The holder of the key that the request was made with.")
class Viewer:
    """See `resolvers.actor.Actor`."""

    org_id: strawberry.ID = strawberry.field(description="The organization that the key belongs to.")
    environment: Environment = strawberry.field(description="The world that the key is for.")
    scopes: list[Scope] = strawberry.field(description="What the key allows.")
    workspace_ids: list[str] | None = strawberry.field(
        description="The workspaces that the key is limited to; null: it is not limited."
    )
    customer: Annotated["Customer", strawberry.lazy("schema.customers")] | None = strawberry.field(
        description="The customer that the request is made for; null: it is made for the organization."
    )


@strawberry.type
class ViewerQuery:
    """The query of the viewer."""

    @strawberry.field(description="The holder of the key that the request was made with.")
    async def viewer(self, info: Info) -> Viewer:
        """Return who asks."""
        actor = info.context.actor
        actor.require(ScopeValue.BILLING_READ)
        return Viewer(
            org_id=strawberry.ID(actor.org_id),
            environment=Environment(actor.environment),
            scopes=[Scope(scope) for scope in ScopeValue if scope in actor.scopes],
            workspace_ids=list(actor.workspace_ids) if actor.workspace_ids is not None else None,
            customer=None,
        )
