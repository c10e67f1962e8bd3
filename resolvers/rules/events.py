"""What happens to a meter that others want to know: the events of its entries, and the bodies that are sent of them.

A body has no metadata, no reason and no email address. Amounts and numbers are decimal strings, as in the API.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from resolvers.rules.balances import available_credits
from storage import ids
from storage.meters.auto_refills import AutoRefillRequestRow
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.credit_grants import CreditGrantRow
from storage.meters.events import EventRow, EventType
from storage.meters.holds import HoldRow
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow


class NewEvent(NamedTuple):
    """Something that has just been decided, which is given its number when all of the transaction is.

    `meter` is the meter right after it, whose newest entry the event is about, or follows. `data` is what its body has
    beside the meter.
    """

    type: EventType
    meter: BillingMeterRow
    at: datetime
    data: Mapping[str, Any]
    alert_id: str | None = None


#: The entries that are events, by kind.
EVENT_OF_KIND = {
    LedgerEntryKind.OPENING: EventType.BILLING_METER_CREATED,
    LedgerEntryKind.SETTINGS: EventType.BILLING_METER_UPDATED,
    LedgerEntryKind.GRANT: EventType.CREDIT_GRANT_CREATED,
    LedgerEntryKind.EXPIRY: EventType.CREDIT_GRANT_EXPIRED,
    LedgerEntryKind.REVOCATION: EventType.CREDIT_GRANT_REVOKED,
    LedgerEntryKind.HOLD_EXPIRY: EventType.HOLD_EXPIRED,
}


def event_of(
    meter: BillingMeterRow,
    entry: LedgerEntryRow,
    grants: Mapping[int, CreditGrantRow],
    holds: Mapping[str, HoldRow],
) -> NewEvent:
    """Return the event of an entry of a kind that is one, which leaves the meter so.

    What is known of the meter's grants, by `seq`, and of its holds, by name, has those that the entry is about.
    """
    type_ = EVENT_OF_KIND[entry.kind]
    return NewEvent(type_, meter, entry.recorded_at, _DATA[type_](entry, grants, holds))


_Data = Callable[[LedgerEntryRow, Mapping[int, CreditGrantRow], Mapping[str, HoldRow]], Mapping[str, Any]]


def _settings(entry: LedgerEntryRow, *_: object) -> Mapping[str, Any]:
    """Return which settings have changed; the meter has some of their values, and the ledger all."""
    return {"changes": sorted(entry.metadata)}


def _nothing(*_: object) -> Mapping[str, Any]:
    return {}


def _grant(entry: LedgerEntryRow, grants: Mapping[int, CreditGrantRow], _holds: object) -> Mapping[str, Any]:
    return {"creditGrant": grant_shown(grants[entry.grant_seq or 0]), "amount": str(entry.amount)}


def _hold(entry: LedgerEntryRow, _grants: object, holds: Mapping[str, HoldRow]) -> Mapping[str, Any]:
    hold = holds[entry.key or ""]
    shown = {"id": ids.numbered_id(ids.HOLD, hold.meter_id, hold.seq), "holdId": hold.hold_id}
    return {"hold": shown | {"expiresAt": _moment(hold.expires_at)}, "amount": str(entry.amount)}


_DATA: Mapping[EventType, _Data] = {
    EventType.BILLING_METER_CREATED: _nothing,
    EventType.BILLING_METER_UPDATED: _settings,
    EventType.CREDIT_GRANT_CREATED: _grant,
    EventType.CREDIT_GRANT_EXPIRED: _grant,
    EventType.CREDIT_GRANT_REVOKED: _grant,
    EventType.HOLD_EXPIRED: _hold,
}


def grant_shown(grant: CreditGrantRow) -> dict[str, Any]:
    """Return a grant as bodies have it."""
    return {
        "id": ids.numbered_id(ids.CREDIT_GRANT, grant.meter_id, grant.seq),
        "amount": str(grant.amount),
        "priority": grant.priority,
        "category": grant.category.name,
        "expiresAt": _moment(grant.expires_at),
    }


def request_shown(request: AutoRefillRequestRow) -> dict[str, Any]:
    """Return what bodies have of the request of an automatic refill."""
    shown = {"requestId": request.id, "amount": str(request.amount)}
    moments = {"requestedAt": _moment(request.requested_at), "expiresAt": _moment(request.expires_at)}
    return {"refill": shown | moments}


def meter_shown(meter: BillingMeterRow) -> dict[str, Any]:
    """Return a meter as bodies have it."""
    available = available_credits(meter.limit_credits, meter.used_credits, meter.held_credits)
    return {
        "id": meter.id,
        "workspaceId": meter.workspace_id,
        "externalMeterId": meter.external_meter_id,
        "customerId": meter.customer_id,
        "totalCredits": str(meter.total_credits),
        "usedCredits": str(meter.used_credits),
        "heldCredits": str(meter.held_credits),
        "availableCredits": None if available is None else str(available),
    }


def numbered(meter: BillingMeterRow, new: Sequence[NewEvent]) -> list[EventRow]:
    """Return the rows of a meter's new events, numbered after its newest one in the order of the entries."""
    in_order = sorted(new, key=lambda event: event.meter.last_seq)
    return [_row(event, meter.last_event + place) for place, event in enumerate(in_order, start=1)]


def _row(event: NewEvent, number: int) -> EventRow:
    meter = event.meter
    data = {"billingMeter": meter_shown(meter), "number": str(number), "seq": str(meter.last_seq), **event.data}
    return EventRow(
        owner_id=meter.id,
        number=number,
        org_id=meter.org_id,
        environment=meter.environment,
        workspace_id=meter.workspace_id,
        type=event.type,
        seq=meter.last_seq,
        alert_id=event.alert_id,
        created_at=event.at,
        position=ids.event_position(event.at, meter.id, number),
        payload=body(event.type, event.at, data),
    )


def body(type_: EventType, at: datetime, data: Mapping[str, Any]) -> str:
    """Return the body of an event as it is sent."""
    return orjson.dumps({"type": type_, "timestamp": _moment(at), "data": data}).decode()


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
