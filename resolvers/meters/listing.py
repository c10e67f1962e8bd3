"""Billing meters: the lists of them."""

from collections.abc import Sequence

from resolvers.actor import Scope
from resolvers.context import Context
from resolvers.meters.settings import check_settings
from resolvers.rules.due import due_of_all
from resolvers.values import NAME_LENGTH, check_text
from storage import ids
from storage.engine.pages import Page
from storage.meters import billing_meters
from storage.meters.billing_meters import BillingMeterRow, MeterFilter


async def list_billing_meters(
    context: Context,
    page: Page,
    wanted: MeterFilter,
) -> Sequence[BillingMeterRow]:
    """Return a page of the meters that the actor may see, and one more row where there is one.

    Raises `InvalidInput`, and `Forbidden` for a workspace that the key is not for.
    """
    if wanted.workspace_id is not None:
        check_text("workspaceId", wanted.workspace_id, length=NAME_LENGTH)
    check_settings(wanted._asdict())
    actor = context.actor
    actor.require(Scope.BILLING_READ)
    if wanted.workspace_id is not None:
        actor.require_workspace(wanted.workspace_id)
    if wanted.customer_id is None:
        wanted = wanted._replace(customer_id=actor.customer_id)
    customer_id = wanted.customer_id
    if customer_id is not None and not (ids.is_id(customer_id, ids.CUSTOMER) and actor.may_see_customer(customer_id)):
        return []
    if wanted.available_below == 0:
        return []
    async with context.database.read() as reader:
        rows = await billing_meters.page(
            reader,
            page,
            org_id=actor.org_id,
            environment=actor.environment,
            workspace_ids=actor.workspace_ids,
            wanted=wanted,
        )
    due = await due_of_all(context.database, rows, context.moment())
    return [due.meter(row) for row in rows]
