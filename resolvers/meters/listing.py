"""Billing meters: the lists of them."""

from collections.abc import Sequence

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.rules.due import due_of
from resolvers.values import NAME_LENGTH, check_text
from storage import billing_meters, ids
from storage.billing_meters import BillingMeterRow
from storage.engine.pages import Page


async def list_billing_meters(
    context: Context,
    page: Page,
    *,
    workspace_id: str | None = None,
    customer_id: str | None = None,
    available_below: int | None = None,
) -> Sequence[BillingMeterRow]:
    """Return a page of the meters that the actor may see, and one more row where there is one.

    Raises `InvalidInput`, and `Forbidden` for a workspace that the key is not for.
    """
    if workspace_id is not None:
        check_text("workspaceId", workspace_id, length=NAME_LENGTH)
    actor = context.actor
    actor.require(Scope.BILLING_READ)
    if workspace_id is not None:
        actor.require_workspace(workspace_id)
    customer_id = actor.customer_id if customer_id is None else customer_id
    if customer_id is not None and not (ids.is_id(customer_id, ids.CUSTOMER) and actor.may_see_customer(customer_id)):
        return []
    if available_below == 0:
        return []
    async with context.database.read() as reader:
        rows = await billing_meters.page(
            reader,
            page,
            org_id=actor.org_id,
            environment=actor.environment,
            workspace_ids=actor.workspace_ids if workspace_id is None else (workspace_id,),
            customer_id=customer_id,
            available_below=available_below,
        )
        due = await due_of(reader, rows, context.moment())
    return [due.meter(row) for row in rows]
