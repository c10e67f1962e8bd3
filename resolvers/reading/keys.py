"""What the loaders' keys are, where they are more than an id or names."""

from datetime import date
from typing import NamedTuple

from storage.engine.pages import Page
from storage.meters.credit_grants import GrantFilter
from storage.meters.holds import HoldState
from storage.meters.webhook_deliveries import DeliveryState


class MetersOfCustomer(NamedTuple):
    """The key of a page of a customer's meters."""

    customer_id: str
    page: Page


class UsageOfMeter(NamedTuple):
    """The key of a meter's usage days: inclusive days, and the names asked for, or all."""

    meter_id: str
    first: date
    last: date
    usage_names: tuple[str, ...] | None


class EntriesOfMeter(NamedTuple):
    """The key of a stretch of a meter's ledger, both ends inclusive."""

    meter_id: str
    first_seq: int
    last_seq: int


class GrantsOfMeter(NamedTuple):
    """The key of a page of a meter's grants."""

    meter_id: str
    page: Page
    wanted: GrantFilter


class RequestsOfMeter(NamedTuple):
    """The key of a page of the requests of a meter's automatic refill."""

    meter_id: str
    page: Page


class HoldsOfMeter(NamedTuple):
    """The key of a page of a meter's holds; of all states where none is given."""

    meter_id: str
    page: Page
    state: HoldState | None


class DeliveriesOfEndpoint(NamedTuple):
    """The key of a page of a webhook endpoint's deliveries; of all states where none is given."""

    endpoint_id: str
    page: Page
    state: DeliveryState | None
