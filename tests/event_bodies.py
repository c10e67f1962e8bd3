"""The bodies of events, held against their JSON Schema, which lets nothing pass that it does not name."""

from typing import Any

import jsonschema_rs

from resolvers.rules.event_schema import event_schema


def _strict(part: Any) -> Any:
    """Return the schema as it is if no object may have a property that it does not name."""
    if isinstance(part, list):
        return [_strict(each) for each in part]
    if not isinstance(part, dict):
        return part
    closed = {"additionalProperties": False} if part.get("type") == "object" else {}
    return {name: _strict(each) for name, each in part.items()} | closed


_STRICT = jsonschema_rs.Draft202012Validator(_strict(event_schema()), validate_formats=True)


def check_body(body: Any) -> None:
    """Assert that the schema describes the body, and all that is in it."""
    _STRICT.validate(body)
