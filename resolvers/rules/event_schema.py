"""The JSON Schema of the bodies of events, by which receivers check and type what they are sent."""

from collections.abc import Mapping
from typing import Any

from storage.meters.events import EventType

_TEXT: Mapping[str, Any] = {"type": "string"}
_MAYBE_TEXT: Mapping[str, Any] = {"type": ["string", "null"]}
_AMOUNT: Mapping[str, Any] = {"type": "string", "pattern": "^-?(0|[1-9][0-9]*)$"}
_MAYBE_AMOUNT: Mapping[str, Any] = {"type": ["string", "null"], "pattern": "^-?(0|[1-9][0-9]*)$"}
_INSTANT: Mapping[str, Any] = {"type": "string", "format": "date-time"}
_MAYBE_INSTANT: Mapping[str, Any] = {"type": ["string", "null"], "format": "date-time"}


def _object(description: str, **properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has all of these."""
    return {
        "description": description,
        "type": "object",
        "properties": dict(properties),
        "required": sorted(properties),
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


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
    "hold": _object("A hold, with its caller's name of it.", id=_TEXT, holdId=_TEXT, expiresAt=_INSTANT),
}

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
}

_OF_METER: Mapping[str, Mapping[str, Any]] = {
    "billingMeter": _ref("billingMeter"),
    "number": {"description": "1, 2, 3 and so on of its meter.", **_AMOUNT},
    "seq": {"description": "The number of the meter's newest ledger entry then.", **_AMOUNT},
}


def event_schema() -> dict[str, Any]:
    """Return the schema of all bodies. More properties may come to the objects in it, and more types of events."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Events of Tollgate",
        "description": "The body of a webhook, and `Event.payload`. Ignore properties and types that you do not know.",
        "oneOf": [_ref(type_.value) for type_ in _DATA],
        "$defs": _DEFINITIONS | {type_.value: _of_type(type_, *_DATA[type_]) for type_ in _DATA},
    }


def _of_type(type_: EventType, description: str, data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return _object(
        description,
        type={"const": type_.value},
        timestamp=_INSTANT,
        data=_object("What it is about.", **_OF_METER, **data),
    )
