"""The schema: every feature's queries and mutations in one."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Annotated, Any

import strawberry
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.name_converter import NameConverter
from strawberry.utils.str_converters import to_camel_case

from resolvers.errors import LimitExceeded
from resolvers.reading.loaders import Loaders
from resolvers.reading.loading import Loader
from schema.customer_sessions import CustomerSessionMutation
from schema.customers import Customer, CustomerMutation, CustomerQuery
from schema.engine.engine import Engine
from schema.engine.execution.resolving import DIRECT
from schema.engine.limits.sizes import given_length, records
from schema.errors import EXCEPTION_HANDLERS, UserError
from schema.info import Info
from schema.meters.alerts import Alert, AlertMutation, AlertQuery
from schema.meters.auto_refills import AutoRefillMutation, AutoRefillRequest
from schema.meters.billing_meter_mutations import BillingMeterMutation
from schema.meters.billing_meters import BillingMeter, BillingMeterQuery
from schema.meters.credit_grants import CreditGrant, CreditGrantMutation
from schema.meters.events import Event, EventQuery
from schema.meters.holds import Hold, HoldMutation
from schema.meters.ledger import LedgerEntry
from schema.meters.usage import UsageMutation, UsageQuery
from schema.meters.webhook_deliveries import WebhookDelivery
from schema.relay import Node
from schema.scalars import SCALAR_BYTES, SCALARS
from schema.viewer import ViewerQuery
from schema.webhooks.endpoints import WebhookEndpoint, WebhookQuery
from schema.webhooks.mutations import WebhookMutation
from schema.webhooks.sending import SendingMutation
from storage import ids


@strawberry.type
class NodeQuery:
    """The queries of objects by their ids alone."""

    @strawberry.field(
        description="The object of this id, of whatever type that is a `Node`; null: there is none.",
        metadata=DIRECT,
    )
    async def node(
        self, info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="The object's id.")]
    ) -> Node | None:
        """Return the object of this id."""
        (node,) = await _nodes(info.context.reading, [id])
        return node

    @strawberry.field(
        description=(
            "The objects of these ids, 100 at most or fewer where the operator says so, in their order; null for each "
            "that there is not."
        ),
        metadata=DIRECT | records(given_length("ids")),
    )
    async def nodes(
        self,
        info: Info,
        ids: Annotated[list[strawberry.ID], strawberry.argument(description="The objects' ids.")],
    ) -> list[Node | None]:
        """Return the objects of these ids."""
        loaders = info.context.reading
        most = info.context.bounds.nodes
        if len(ids) > most:
            raise LimitExceeded(f"ids must have at most {most} items; it has {len(ids)}.")
        return await _nodes(loaders, ids)


async def _nodes(loaders: Loaders, wanted: Sequence[str]) -> list[Node | None]:
    """Return the object of each id, with one statement for all of a kind."""
    found: dict[str, Node] = {}
    of_ids: tuple[tuple[str, Callable[[], Loader[str, Any]], type[Node]], ...] = (
        (ids.CUSTOMER, lambda: loaders.customer_by_id, Customer),
        (ids.BILLING_METER, lambda: loaders.billing_meter_by_id, BillingMeter),
        (ids.WEBHOOK_ENDPOINT, lambda: loaders.webhook_endpoint_by_id, WebhookEndpoint),
        (ids.WEBHOOK_DELIVERY, lambda: loaders.webhook_delivery_by_id, WebhookDelivery),
        (ids.ALERT, lambda: loaders.alert_by_id, Alert),
    )
    for prefix, loader, type_ in of_ids:
        if some := [id_ for id_ in wanted if id_.startswith(prefix)]:
            found |= {row.id: type_.of(row) for row in await loader().load_many(some) if row}
    of_numbers: tuple[tuple[str, Callable[[], Loader[tuple[str, int], Any]], type[Node]], ...] = (
        (ids.LEDGER_ENTRY, lambda: loaders.ledger_entry_by_id, LedgerEntry),
        (ids.CREDIT_GRANT, lambda: loaders.credit_grant_by_id, CreditGrant),
        (ids.HOLD, lambda: loaders.hold_by_id, Hold),
        (ids.EVENT, lambda: loaders.event_by_id, Event),
        (ids.AUTO_REFILL_REQUEST, lambda: loaders.auto_refill_request_by_id, AutoRefillRequest),
    )
    for prefix, numbered, type_ in of_numbers:
        parse = ids.parse_event_id if prefix == ids.EVENT else partial(ids.parse_numbered_id, prefix=prefix)
        places = {id_: place for id_ in wanted if (place := parse(id_)) is not None}
        if places:
            rows = await numbered().load_many([*places.values()])
            found |= {id_: type_.of(row) for id_, row in zip(places, rows, strict=True) if row}
    return [found.get(id_) for id_ in wanted]


@strawberry.type(description="What can be read. Everything needs the scope `billing:read`.")
class Query(NodeQuery, ViewerQuery, CustomerQuery, BillingMeterQuery, UsageQuery, EventQuery, WebhookQuery, AlertQuery):
    """The root of queries."""


@strawberry.type(
    description=(
        "What can be changed. Every field answers a union: its success, or a refusal by the domain. A field "
        "is null only beside "
        "a top-level error, so that one field's fault never hides what another has committed."
    )
)
class Mutation(
    CustomerMutation,
    CustomerSessionMutation,
    BillingMeterMutation,
    CreditGrantMutation,
    UsageMutation,
    HoldMutation,
    WebhookMutation,
    SendingMutation,
    AutoRefillMutation,
    AlertMutation,
):
    """The root of mutations."""


class _Names(NameConverter):
    """Strawberry's names. It asks for them again for each argument of each request, and for each item of a batch."""

    def apply_naming_config(self, name: str) -> str:
        """Return the name as clients see it."""
        return _camel_case(name)


@cache
def _camel_case(name: str) -> str:
    return to_camel_case(name)


schema = strawberry.Schema(
    query=Query,
    mutation=Mutation,
    types=[UserError],
    config=StrawberryConfig(scalar_map=SCALARS, name_converter=_Names()),
    exception_handlers=EXCEPTION_HANDLERS,
)
engine = Engine(schema, scalar_bytes=SCALAR_BYTES)
