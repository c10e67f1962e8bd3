"""From the `Authorization` header to the actor."""

from starlette.types import Scope

from gateway.http.messages import header
from gateway.telemetry.requests import note_actor
from resolvers.actor import Actor
from resolvers.api_keys import ApiKeys
from resolvers.errors import Unauthenticated


async def authenticate(scope: Scope, api_keys: ApiKeys) -> Actor:
    """Return who holds the request's bearer key. Raises `Unauthenticated`, also for two headers."""
    headers = header(scope, b"authorization")
    scheme, _, key = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    if scheme.lower() != "bearer":
        raise Unauthenticated("Send one header `Authorization: Bearer KEY`.")
    actor = await api_keys.actor_of(key.strip())
    note_actor(actor)
    return actor
