"""The loaders: one for each batched field. Each gathers the keys that a request's fields ask for into one statement.

A loader belongs to one request, so it sees one actor's rows: another tenant's are missing like rows that do not exist.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from resolvers.actor import Actor
from resolvers.bounds import Bounds
from resolvers.reading.alerts import AlertOfMeter
from resolvers.reading.fetches import Fetches
from resolvers.reading.keys import (
    DeliveriesOfEndpoint,
    EntriesOfMeter,
    GrantsOfMeter,
    HoldsOfMeter,
    MetersOfCustomer,
    RequestsOfMeter,
    UsageOfMeter,
)
from resolvers.reading.loading import Loader
from resolvers.reading.long_values import LongValue
from resolvers.reading.moment import Moment
from resolvers.reading.webhook_fetches import WebhookFetches
from storage.alerts import AlertRow
from storage.customers import CustomerRow
from storage.engine.columns import Columns
from storage.engine.database import Database
from storage.meters.auto_refills import AutoRefill, AutoRefillRequestRow
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.credit_grants import CreditGrantRow
from storage.meters.events import EventRow
from storage.meters.holds import HoldRow
from storage.meters.ledger import LedgerEntryRow
from storage.meters.usage import UsageDayRow
from storage.meters.webhook_deliveries import DeliveryRow
from storage.webhook_endpoints import WebhookEndpointRow

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Loaders:
    """The loaders of one request, each made when it is first used."""

    def __init__(
        self,
        database: Database,
        actor: Actor,
        bounds: Bounds,
        moment: Moment,
        *,
        gathers: bool = True,
    ) -> None:
        self._fetches = Fetches(database, actor, bounds, moment)
        self._webhooks = WebhookFetches(database, actor)
        self._gathers = gathers

    @cached_property
    def customer_by_id(self) -> Loader[str, CustomerRow | None]:
        """The customer of an id."""
        return self._loader(self._fetches.customers_by_ids)

    @cached_property
    def customer_by_external_id(self) -> Loader[str, CustomerRow | None]:
        """The customer of an external id."""
        return self._loader(self._fetches.customers_by_external_ids)

    @cached_property
    def billing_meter_by_id(self) -> Loader[str, BillingMeterRow | None]:
        """The meter of an id."""
        return self._loader(self._fetches.billing_meters_by_ids)

    @cached_property
    def billing_meter_by_names(self) -> Loader[tuple[str, str], BillingMeterRow | None]:
        """The meter of a workspace and an external meter id."""
        return self._loader(self._fetches.billing_meters_by_names)

    @cached_property
    def billing_meters_of_customer(self) -> Loader[MetersOfCustomer, list[BillingMeterRow]]:
        """A page of a customer's meters."""
        return self._loader(self._fetches.billing_meters_of_customers)

    @cached_property
    def usage_of_meter(self) -> Loader[UsageOfMeter, Columns[UsageDayRow]]:
        """A meter's usage days. Raises `LimitExceeded`."""
        return self._loader(self._fetches.usage_of_meters)

    @cached_property
    def ledger_entry_by_id(self) -> Loader[tuple[str, int], LedgerEntryRow | None]:
        """The ledger entry of a meter's id and a `seq`."""
        return self._loader(self._fetches.ledger_entries_by_ids)

    @cached_property
    def entries_of_meter(self) -> Loader[EntriesOfMeter, list[LedgerEntryRow]]:
        """A stretch of a meter's ledger. Raises `LimitExceeded`."""
        return self._loader(self._fetches.entries_of_meters)

    @cached_property
    def credit_grant_by_id(self) -> Loader[tuple[str, int], CreditGrantRow | None]:
        """The grant of a meter's id and a `seq`."""
        return self._loader(self._fetches.grants_by_ids)

    @cached_property
    def grants_of_meter(self) -> Loader[GrantsOfMeter, list[CreditGrantRow]]:
        """A page of a meter's grants."""
        return self._loader(self._fetches.grants_of_meters)

    @cached_property
    def usable_grants_of_meter(self) -> Loader[str, list[CreditGrantRow]]:
        """What is open of a meter's base and grants, in the order of use."""
        return self._loader(self._fetches.usable_grants_of_meters)

    @cached_property
    def event_by_id(self) -> Loader[tuple[str, int], EventRow | None]:
        """The event of an owner's id and a number. Raises `Forbidden` for a customer's session."""
        return self._loader(self._fetches.events_by_ids)

    @cached_property
    def hold_by_id(self) -> Loader[tuple[str, int], HoldRow | None]:
        """The hold of a meter's id and a `seq`."""
        return self._loader(self._fetches.holds_by_ids)

    @cached_property
    def holds_of_meter(self) -> Loader[HoldsOfMeter, list[HoldRow]]:
        """A page of a meter's holds."""
        return self._loader(self._fetches.holds_of_meters)

    @cached_property
    def webhook_endpoint_by_id(self) -> Loader[str, WebhookEndpointRow | None]:
        """The webhook endpoint of an id."""
        return self._loader(self._webhooks.endpoints_by_ids)

    @cached_property
    def webhook_delivery_by_id(self) -> Loader[str, DeliveryRow | None]:
        """The webhook delivery of an id."""
        return self._loader(self._webhooks.deliveries_by_ids)

    @cached_property
    def deliveries_of_endpoint(self) -> Loader[DeliveriesOfEndpoint, list[DeliveryRow]]:
        """A page of a webhook endpoint's deliveries."""
        return self._loader(self._webhooks.deliveries_of_endpoints)

    @cached_property
    def deliveries_of_event(self) -> Loader[tuple[str, int], list[DeliveryRow]]:
        """All deliveries of an event that the actor may see."""
        return self._loader(self._webhooks.deliveries_of_events)

    @cached_property
    def auto_refill_of_meter(self) -> Loader[str, AutoRefill | None]:
        """The automatic refill of a meter's id."""
        return self._loader(self._fetches.auto_refills_of_meters)

    @cached_property
    def auto_refill_request_by_id(self) -> Loader[tuple[str, int], AutoRefillRequestRow | None]:
        """The request of a meter's id and a number."""
        return self._loader(self._fetches.requests_by_ids)

    @cached_property
    def requests_of_meter(self) -> Loader[RequestsOfMeter, list[AutoRefillRequestRow]]:
        """A page of the requests of a meter's automatic refill."""
        return self._loader(self._fetches.requests_of_meters)

    @cached_property
    def alert_by_id(self) -> Loader[str, AlertRow | None]:
        """The alert of an id. Raises `Forbidden` for a customer's session."""
        return self._loader(self._fetches.alerts_by_ids)

    @cached_property
    def alerts_of_meter(self) -> Loader[str, list[AlertOfMeter]]:
        """The alerts of a meter. Raises `Forbidden` for a customer's session."""
        return self._loader(self._fetches.alerts_of_meters)

    @cached_property
    def long_value(self) -> Loader[LongValue, Any]:
        """A JSON value that its row was read without."""
        return self._loader(self._fetches.long_values)

    def _loader(self, fetch: Callable[[list[K]], Awaitable[Sequence[V | Exception]]]) -> Loader[K, V]:
        return Loader(fetch, gathers=self._gathers)

    def clear(self) -> None:
        """Forget what was read, because something was written."""
        for loader in vars(self).values():
            if isinstance(loader, Loader):
                loader.clear()
