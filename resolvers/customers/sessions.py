"""Customers' sessions: what a backend gives a browser, which must never hold a secret key."""

from datetime import datetime, timedelta
from typing import NamedTuple

from resolvers.actor import Scope
from resolvers.api_keys import digest_of, new_session_token
from resolvers.context import Context
from resolvers.errors import CustomerNotFound, InvalidInput, Unauthenticated
from storage import api_keys, customers, ids
from storage.api_keys import ApiKeyRow
from storage.customers import CustomerRow
from storage.engine.transactions import Writer

#: How long a session may be asked to live, and how long it does when nothing is said, in seconds.
SHORTEST_SECONDS = 60
LONGEST_SECONDS = 86_400
DEFAULT_SECONDS = 3_600

#: The most expired sessions that are deleted when one is made: more than are made, so that they do not pile up.
MAX_DELETED = 20


class CustomerSession(NamedTuple):
    """A new session. Its token is not stored and cannot be shown again."""

    customer: CustomerRow
    token: str
    expires_at: datetime


async def create_customer_session(
    context: Context, *, customer_id: str, expires_in_seconds: int = DEFAULT_SECONDS
) -> CustomerSession:
    """Make a session that may read one customer and what is billed to it, in the workspaces of the actor's key.

    It ends after the time that is asked for, and with the key at the latest.

    Raises `InvalidInput`, `Forbidden` and `CustomerNotFound`, in this order, and `Unauthenticated` when the key has
    ended since it was looked up.
    """
    if not SHORTEST_SECONDS <= expires_in_seconds <= LONGEST_SECONDS:
        raise InvalidInput("expiresInSeconds", f"must be {SHORTEST_SECONDS} to {LONGEST_SECONDS}.")
    actor = context.actor
    actor.require(Scope.BILLING_WRITE)
    # The token reads, so that its key has to be allowed to.
    actor.require(Scope.BILLING_READ)
    if not ids.is_id(customer_id, ids.CUSTOMER):
        raise CustomerNotFound
    now = context.clock()
    token = new_session_token(actor.environment)
    session_id = ids.new_id(ids.API_KEY)

    async def create(writer: Writer) -> CustomerSession:
        found = await customers.by_ids(
            writer,
            [customer_id],
            org_id=actor.org_id,
            environment=actor.environment,
            workspace_ids=actor.workspace_ids,
        )
        if customer_id not in found:
            raise CustomerNotFound
        parent = await api_keys.by_id(writer, actor.key_id)
        if parent is None or parent.revoked_at is not None:
            raise Unauthenticated("The API key has been revoked.")
        expires_at = now + timedelta(seconds=expires_in_seconds)
        if parent.expires_at is not None:
            expires_at = min(expires_at, parent.expires_at)
        await api_keys.delete_expired_sessions(writer, now=now, limit=MAX_DELETED)
        row = ApiKeyRow(
            id=session_id,
            org_id=actor.org_id,
            environment=actor.environment,
            name=None,
            scopes=[Scope.BILLING_READ],
            workspace_ids=parent.workspace_ids,
            digest=digest_of(token),
            expires_at=expires_at,
            revoked_at=None,
            created_at=now,
            customer_id=customer_id,
            parent_id=parent.id,
        )
        await api_keys.insert_key(writer, row)
        return CustomerSession(found[customer_id], token, expires_at)

    # Without a key to repeat it under: of a session whose token nobody got, nobody needs to know.
    return await context.database.write(create)
