"""Idempotency keys of creates: the first request under a key is remembered, for ever."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from resolvers.actor import Actor
from storage import idempotency_keys
from storage.database import Writer
from storage.idempotency_keys import IdempotencyKeyRow


def digest(request: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal digits, of a request's values as canonical JSON."""
    return hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).hexdigest()


def same_json(one: object, other: object) -> bool:
    """Whether two JSON values are written alike. In Python 1, 1.0 and True are equal; as JSON they are not."""
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)


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
    request: Mapping[str, Any],
    result_id: str,
    now: datetime,
) -> None:
    """Note what the first request under the key made, where there is a key."""
    if key is None:
        return
    row = IdempotencyKeyRow(actor.org_id, actor.environment, operation, key, digest(request), result_id, now)
    await idempotency_keys.insert_key(writer, row)
