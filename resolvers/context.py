"""What one request has at hand."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from resolvers.actor import Actor, Scope
from resolvers.loaders import Loaders
from resolvers.usage_writer import UsageWriter
from storage.database import Database

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the present moment, aware and in UTC."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Context:
    """The request's actor, the database, and the loaders that read it on the actor's behalf."""

    actor: Actor
    database: Database
    usage_writer: UsageWriter
    clock: Clock = utc_now
    # Told to the caller instead of the cause when there is a bug, and written to the log with it.
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    loaders: Loaders = field(init=False)

    def __post_init__(self) -> None:
        self.loaders = Loaders(self.database, self.actor)

    @property
    def reading(self) -> Loaders:
        """The loaders, for a query or an edge of a returned object. Raises `Forbidden` without `billing:read`."""
        self.actor.require(Scope.BILLING_READ)
        return self.loaders
