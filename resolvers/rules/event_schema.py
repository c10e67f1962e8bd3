"""The JSON Schema of the bodies of events, by which receivers check and type what they are sent."""

from collections.abc import Mapping
from typing import Any

from storage.meters.events import EventType
from storage.meters.meter_alerts import AlertKind

_TEXT: Mapping[str, Any] = {"type": "string"}
_MAYBE_TEXT: Mapping[str, Any] = {"type": ["string", "null"]}
_AMOUNT: Mapping[str, Any] = {"type": "string", "pattern": "^-?(0|[1-9][0-9]*)$"}
_MAYBE_AMOUNT: Mapping[str, Any] = {"type": ["string", "null"], "pattern": "^-?(0|[1-9][0-9]*)$"}
_DAY: Mapping[str, Any] = {"type": "string", "format": "date"}
_INSTANT: Mapping[str, Any] = {"type": "string", "format": "date-time"}
_MAYBE_INSTANT: Mapping[str, Any] = {"type": ["string", "null"], "format": "date-time"}


def _object(description: str, /, **properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has all of these."""
    return {
        "description": description,
        "type": "object",
        "properties": dict(properties),
        "required": sorted(properties),
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


_REFILL = {"requestId": _TEXT, "amount": _AMOUNT, "requestedAt": _INSTANT, "expiresAt": _INSTANT}

_DEFINITIONS = {
    "billingMeter": _object(
        "The billing meter right after it happened. Amounts are credits, as decimal strings.",
        id=_TEXT,
        workspaceId=_TEXT,
        externalMeterId=_TEXT,
        customerId=_MAYBE_TEXT,
        totalCredits=_AMOUNT,
        usedCredits=_AMOUNT,
        heldCredits=_AMOUNT,
        availableCredits=_MAYBE_AMOUNT,
    ),
    "creditGrant": _object(
        "A credit grant.",
        id=_TEXT,
        amount=_AMOUNT,
        priority={"type": "integer"},
        category={"enum": ["PAID", "PROMOTIONAL"]},
        expiresAt=_MAYBE_INSTANT,
    ),
    "alert": _object(
        "An alert. Its threshold is in credits; of GRANT_EXPIRES_WITHIN in seconds.",
        id=_TEXT,
        version={"type": "integer"},
        kind={"enum": [kind.name for kind in AlertKind]},
        threshold=_AMOUNT,
        usageName=_MAYBE_TEXT,
        name=_MAYBE_TEXT,
    ),
    "hold": _object("A hold, with its caller's name of it.", id=_TEXT, holdId=_TEXT, expiresAt=_INSTANT),
    "refill": _object("What an automatic refill asks for: so many credits, refilled under this id.", **_REFILL),
    "webhookEndpoint": _object("A webhook endpoint.", id=_TEXT, description=_MAYBE_TEXT),
}

_NUMBER: Mapping[str, Any] = {"type": "integer"}

_GRANT = {"creditGrant": _ref("creditGrant"), "amount": _AMOUNT}

#: What the data of each type has, beside what that of every event of a meter has.
_DATA: Mapping[EventType, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    EventType.BILLING_METER_CREATED: ("A billing meter was made.", {}),
    EventType.BILLING_METER_UPDATED: (
        "Settings of a billing meter changed; `changes` has their names.",
        {"changes": {"type": "array", "items": _TEXT}},
    ),
    EventType.CREDIT_GRANT_CREATED: ("Credits were granted.", _GRANT),
    EventType.CREDIT_GRANT_EXPIRED: ("So many open credits of a grant ended, or came back to an ended one.", _GRANT),
    EventType.CREDIT_GRANT_REVOKED: (
        "So many open credits of a grant were taken back, or came back to a revoked one.",
        _GRANT,
    ),
    EventType.HOLD_EXPIRED: ("A hold of so many credits expired.", {"hold": _ref("hold"), "amount": _AMOUNT}),
    EventType.REFILL_REQUESTED: ("An automatic refill asks to be charged and refilled.", {"refill": _ref("refill")}),
    EventType.REFILL_FULFILLED: (
        "What an automatic refill asked for was refilled; `late`: when the request was no longer open.",
        {"refill": _object("What was asked for.", **_REFILL, late={"type": "boolean"})},
    ),
    EventType.REFILL_FAILED: ("What an automatic refill asked for could not be charged.", {"refill": _ref("refill")}),
    EventType.REFILL_SUSPENDED: (
        "An automatic refill asks no more, after so many failures in a row.",
        {"refill": _object("The automatic refill.", failures=_NUMBER)},
    ),
    EventType.REFILL_CAPPED: (
        "An automatic refill would ask, and its caps do not allow it.",
        {"refill": _object("The caps.", maxRefills=_NUMBER, maxCredits=_AMOUNT, windowSeconds=_NUMBER)},
    ),
    EventType.ALERT_TRIGGERED: (
        "The meter came past an alert's threshold: of DAY_USAGE_ABOVE by a day, of GRANT_EXPIRES_WITHIN by a grant.",
        {"alert": _ref("alert"), "day": _DAY, "creditGrant": _ref("creditGrant")},
    ),
    EventType.ALERT_RECOVERED: (
        "The meter came back from an alert's threshold: of DAY_USAGE_ABOVE by a day.",
        {"alert": _ref("alert"), "day": _DAY},
    ),
}

#: What the data of some types may lack.
_OPTIONAL: Mapping[EventType, frozenset[str]] = {
    EventType.ALERT_TRIGGERED: frozenset(("day", "creditGrant")),
    EventType.ALERT_RECOVERED: frozenset(("day",)),
}

#: Those of webhook endpoints, likewise, which are of no meter.
_DATA_OF_ENDPOINT: Mapping[EventType, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    EventType.WEBHOOK_ENDPOINT_DISABLED: (
        "Another webhook endpoint of yours was disabled, because it failed.",
        {"webhookEndpoint": _ref("webhookEndpoint"), "reason": _TEXT},
    ),
    EventType.WEBHOOK_TEST: ("A test was asked for.", {"webhookEndpoint": _ref("webhookEndpoint")}),
}

_OF_METER: Mapping[str, Mapping[str, Any]] = {
    "billingMeter": _ref("billingMeter"),
    "number": {"description": "1, 2, 3 and so on of its meter.", **_AMOUNT},
    "seq": {"description": "The number of the meter's newest ledger entry then.", **_AMOUNT},
}


def event_schema() -> dict[str, Any]:
    """Return the schema of all bodies. More properties may come to the objects in it, and more types of events."""
    types = {type_.value: _of_type(type_, said, {**_OF_METER, **data}) for type_, (said, data) in _DATA.items()}
    types |= {type_.value: _of_type(type_, *said) for type_, said in _DATA_OF_ENDPOINT.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Events of Tollgate",
        "description": "The body of a webhook, and `Event.payload`. Ignore properties and types that you do not know.",
        "oneOf": [_ref(type_) for type_ in types],
        "$defs": _DEFINITIONS | types,
    }


def _of_type(type_: EventType, description: str, data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return _object(
        description,
        type={"const": type_.value},
        timestamp=_INSTANT,
        data=_object("What it is about.", **data)
        | {"required": sorted(data.keys() - _OPTIONAL.get(type_, frozenset()))},
    )
