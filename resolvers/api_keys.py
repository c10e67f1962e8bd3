"""API keys: making, revoking and recognizing them, and the tokens of the sessions that are made with them."""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime, timedelta

from resolvers.actor import Actor, Scope
from resolvers.errors import InvalidInput, Unauthenticated, Unavailable
from resolvers.values import NAME_LENGTH, check_org, check_text
from storage import api_keys, ids
from storage.api_keys import ApiKeyRow
from storage.engine.database import Database, Outcome
from storage.engine.transactions import Writer
from storage.tenants import Environment

#: How long a key that was looked up is believed: a revocation holds within this time on every process.
REMEMBERED = timedelta(seconds=5)

#: How many keys that are not remembered are looked up at once: unknown ones, sent again and again, must not take the
#: connections of the requests that are let in.
MAX_LOOK_UPS = 2

#: The most keys that are remembered at once.
MAX_REMEMBERED = 10_000

_PREFIXES = {Environment.LIVE: "sk_live_", Environment.SANDBOX: "sk_test_"}
_SESSION_PREFIXES = {Environment.LIVE: "cst_live_", Environment.SANDBOX: "cst_test_"}
_KEY = re.compile(r"(sk|cst)_(live|test)_[A-Za-z0-9_-]{43}", re.ASCII)


async def create_api_key(
    database: Database,
    *,
    org_id: str,
    environment: Environment,
    scopes: Sequence[Scope] = tuple(Scope),
    workspace_ids: Sequence[str] | None = None,
    expires_at: datetime | None = None,
    name: str | None = None,
    now: datetime,
) -> tuple[ApiKeyRow, str]:
    """Make a key and return its row and the key itself, which is not stored and cannot be shown again.

    Raises `InvalidInput`.
    """
    check_org("org", org_id)
    for workspace_id in workspace_ids or ():
        check_text("workspace", workspace_id, length=NAME_LENGTH)
    if name is not None:
        check_text("name", name, length=NAME_LENGTH)
    if expires_at is not None and expires_at <= now:
        raise InvalidInput("expires", "must lie ahead.")
    key = _new_secret(_PREFIXES[environment])
    row = ApiKeyRow(
        id=ids.new_id(ids.API_KEY),
        org_id=org_id,
        environment=environment,
        name=name,
        scopes=sorted(set(scopes)),
        workspace_ids=sorted(set(workspace_ids)) if workspace_ids is not None else None,
        digest=digest_of(key),
        expires_at=expires_at,
        revoked_at=None,
        created_at=now,
    )

    async def create(writer: Writer) -> None:
        # An attempt whose commit was not answered may have written it.
        if await api_keys.by_id(writer, row.id) is None:
            await api_keys.insert_key(writer, row)

    await database.write(create, is_repeatable=True)
    return row, key


async def revoke_api_key(database: Database, key_id: str, *, now: datetime) -> ApiKeyRow | None:
    """Revoke a key and return it, or None if there is none of this id. It stays revoked since the first time."""
    await database.write(lambda writer: api_keys.revoke(writer, key_id, revoked_at=now), is_repeatable=True)
    async with database.read() as reader:
        return await api_keys.by_id(reader, key_id)


async def organizations(database: Database, *, now: datetime) -> set[tuple[str, Environment]]:
    """Return the organizations that have a key which works now, each with the environment that it is for."""
    async with database.read() as reader:
        keys = await api_keys.all_keys(reader)
    return {
        (key.org_id, Environment(key.environment))
        for key in keys
        if key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
    }


def new_session_token(environment: Environment) -> str:
    """Return a new token of a customer's session."""
    return _new_secret(_SESSION_PREFIXES[environment])


class ApiKeys:
    """Recognizes keys and tokens, and remembers for a few seconds whose they are."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        self._remembered: dict[str, tuple[datetime, ApiKeyRow, Actor]] = {}
        self._look_ups = asyncio.Semaphore(MAX_LOOK_UPS)

    async def actor_of(self, key: str) -> Actor:
        """Return who holds the key, or the token of a session.

        Raises `Unauthenticated` for one that is malformed, unknown, expired or revoked, or whose parent is, and
        `Unavailable` where too many others are looked up.
        """
        if _KEY.fullmatch(key) is None:
            raise _unknown()
        digest = digest_of(key)
        now = self._clock()
        remembered = self._remembered.get(digest)
        # A clock that was set back makes nothing younger.
        if remembered is None or not remembered[0] <= now < remembered[0] + REMEMBERED:
            remembered = await self._look_up(digest, now)
        _, row, actor = remembered
        if row.expires_at is not None and now >= row.expires_at:
            raise _unknown()
        return actor

    async def _look_up(self, digest: str, now: datetime) -> tuple[datetime, ApiKeyRow, Actor]:
        # One that was let in a moment ago waits for no others.
        async with nullcontext() if digest in self._remembered else self._turn(), self._database.read() as reader:
            row = await api_keys.by_digest(reader, digest)
        # An index compares in its own way and time; whether it has found this very key is decided here.
        if row is None or not hmac.compare_digest(row.digest, digest) or row.revoked_at is not None:
            self._remembered.pop(digest, None)
            raise _unknown()
        actor = Actor(
            key_id=row.id,
            org_id=row.org_id,
            environment=row.environment,
            scopes=frozenset(Scope(scope) for scope in row.scopes),
            workspace_ids=tuple(row.workspace_ids) if row.workspace_ids is not None else None,
            customer_id=row.customer_id,
        )
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        # From before the look-up on: what it found is at least as old.
        remembered = self._remembered[digest] = (now, row, actor)
        return remembered

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for one of the few turns of keys that are not known. Raises `Unavailable`."""
        try:
            async with asyncio.timeout(self._database.wait_seconds):
                await self._look_ups.acquire()
        except TimeoutError as error:
            raise Unavailable(Outcome.NOT_WRITTEN) from error
        try:
            yield
        finally:
            self._look_ups.release()


def _new_secret(prefix: str) -> str:
    return prefix + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """Return what is stored of a key or token: its SHA-256, in hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def _unknown() -> Unauthenticated:
    return Unauthenticated("The API key is missing, malformed, unknown, expired or revoked.")
