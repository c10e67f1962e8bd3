"""Idempotency keys of creates: the first request under a key is remembered, for ever."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from resolvers.actor import Actor
from storage import idempotency_keys
from storage.engine.transactions import Writer
from storage.idempotency_keys import IdempotencyKeyRow

#: The whole numbers of 64 bits, signed or not: those that JSON holds exactly here.
_LEAST, _GREATEST = -(2**63), 2**64 - 1


def digest(request: NamedTuple) -> str:
    """Return the SHA-256, in hexadecimal digits, of the request's values as canonical JSON.

    The request is what a caller says of what is to be made, by field. A value that is its field's default is left out,
    so that a field which is added later changes no digest.
    """
    defaults = request._field_defaults
    values = {
        name: value
        for name, value in request._asdict().items()
        if name not in defaults or not same_json(value, defaults[name])
    }
    return hashlib.sha256(_canonical(values)).hexdigest()


def same_json(one: object, other: object) -> bool:
    """Whether two JSON values are equal: numbers by value, 1 as 1.0 and -0.0 as 0, and none as `true` or `false`."""
    return _canonical(one) == _canonical(other)


def _canonical(value: object) -> bytes:
    """Return the one text of all equal JSON values."""
    return orjson.dumps(_with_whole_numbers(value), option=orjson.OPT_SORT_KEYS)


def _with_whole_numbers(value: Any) -> Any:
    """Return the JSON value with an integer for each float that is one, exactly."""
    if isinstance(value, float) and value.is_integer() and _LEAST <= value <= _GREATEST:
        return int(value)
    if isinstance(value, Mapping):
        return {key: _with_whole_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(each) for each in value]
    return value


async def earlier(writer: Writer, actor: Actor, *, operation: str, key: str | None) -> IdempotencyKeyRow | None:
    """Return the first request of the actor's tenant for the operation under the key."""
    if key is None:
        return None
    return await idempotency_keys.find(
        writer, org_id=actor.org_id, environment=actor.environment, operation=operation, key=key
    )


async def remember(
    writer: Writer,
    actor: Actor,
    *,
    operation: str,
    key: str | None,
    request: NamedTuple,
    result_id: str,
    now: datetime,
) -> None:
    """Note what the first request under the key made, where there is a key."""
    if key is None:
        return
    row = IdempotencyKeyRow(actor.org_id, actor.environment, operation, key, digest(request), result_id, now)
    await idempotency_keys.insert_key(writer, row)
