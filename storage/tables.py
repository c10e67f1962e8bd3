"""All tables. A feature's file defines its own; whatever is about every table takes them from here."""

from typing import Any

from sqlalchemy import Column, Table

from storage.alerts import alerts
from storage.api_keys import api_keys
from storage.customers import customers
from storage.engine.types import metadata
from storage.idempotency_keys import idempotency_keys
from storage.meters.auto_refills import auto_refill_requests, auto_refills
from storage.meters.billing_meters import billing_meters
from storage.meters.credit_grants import credit_grants
from storage.meters.events import events
from storage.meters.holds import holds
from storage.meters.ledger import ledger_entries
from storage.meters.meter_alerts import meter_alerts
from storage.meters.usage import usage_days
from storage.meters.webhook_deliveries import webhook_deliveries
from storage.webhook_endpoints import webhook_endpoints

__all__ = ["TABLES", "metadata", "owner_column"]

#: Each table after those that it refers to.
TABLES = (
    customers,
    billing_meters,
    api_keys,
    idempotency_keys,
    usage_days,
    credit_grants,
    holds,
    auto_refills,
    auto_refill_requests,
    ledger_entries,
    events,
    alerts,
    meter_alerts,
    webhook_endpoints,
    webhook_deliveries,
)


def owner_column(table: Table) -> Column[Any]:
    """Return the column of a table of meters' rows that says whose a row is.

    `owner_id` is a meter's id, or that of a webhook endpoint.
    """
    if table is billing_meters:
        return billing_meters.c.id
    return table.c.owner_id if "owner_id" in table.c else table.c.meter_id
