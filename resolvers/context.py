"""What one request has at hand."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

from resolvers.actor import Actor, Scope
from resolvers.bounds import DEFAULT_BOUNDS, Bounds
from resolvers.errors import Refusal
from resolvers.observation import current
from resolvers.reading.loaders import Loaders
from resolvers.reading.long_values import LongValue
from resolvers.reading.moment import Moment
from storage.engine.buckets import Buckets
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.long_values import length_left_out
from storage.engine.transactions import Reader

if TYPE_CHECKING:
    # The commands import this file, for which they are types alone.
    from resolvers.meters.writing.writer import MeterWriter
    from resolvers.rules.commands import Command, Decision
    from resolvers.webhooks.signing import Webhooks

Clock = Callable[[], datetime]


class Admit(Protocol):
    """Admits records beyond what was foreseen of a list whose length nobody knows before it is read."""

    def __call__(self, count: int, *, name_length: int = 0) -> Awaitable[None]:
        """Wait until there is room for so many more, whose longest name has so many characters.

        Raises `LimitExceeded` where the answer would be larger than it may be.
        """


def utc_now() -> datetime:
    """Return the present moment, aware and in UTC."""
    return datetime.now(UTC)


class Failed:
    """Stands for a database that has just failed a query, and fails the rest of it the same way."""

    def __init__(self, error: DatabaseUnavailable) -> None:
        self.buckets = Buckets()
        self._error = error

    @asynccontextmanager
    async def read(self, _bucket: int = 0) -> AsyncIterator[Reader]:
        """Raise the error."""
        raise self._error
        yield Reader("")  # type: ignore[unreachable]  # It is a generator, as what it stands for.


@dataclass
class Context:
    """The request's actor, the database, and the loaders that read it on the actor's behalf."""

    actor: Actor
    database: Database
    meter_writer: "MeterWriter"
    clock: Clock = utc_now
    bounds: Bounds = DEFAULT_BOUNDS
    webhooks: "Webhooks | None" = None
    """What webhooks go by; None: nothing can be asked that is about them."""
    has_one_reader: bool = field(init=False, default=False)
    """Whether one batched field at a time is resolved, so that nothing need be gathered from several."""
    admit: "Admit | None" = field(init=False, default=None)
    _loaders: Loaders | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Leave the moment of what is read open."""
        self.moment = Moment(self.clock)

    @property
    def reading(self) -> Loaders:
        """The loaders, for a query or a field of a returned object. Raises `Forbidden` without `billing:read`."""
        self.actor.require(Scope.BILLING_READ)
        if self._loaders is None:
            self._loaders = Loaders(
                self.database, self.actor, self.bounds, self.moment, gathers=not self.has_one_reader
            )
        return self._loaders

    async def json_of(self, rows: Sequence[Any], name: str) -> list[Any]:
        """Return the JSON value of this name of each row, and read those that pages leave out because they are long.

        The rows are customers, ledger entries, credit grants or holds. Raises `Forbidden` where something is to be read
        and the actor may not.
        """
        values = [getattr(row, name) for row in rows]
        if unread := [place for place, value in enumerate(values) if length_left_out(value)]:
            keys = [LongValue.of(rows[place], name) for place in unread]
            for place, value in zip(unread, await self.reading.long_value.load_many(keys), strict=True):
                values[place] = value
        return values

    async def admit_unforeseen(self, lists: Sequence[Sized], foreseen: int) -> None:
        """Admit what these lists have beyond so many records each, all together. Raises `LimitExceeded`."""
        excess = sum(map(len, lists)) - foreseen * len(lists)
        if excess > 0 and self.admit is not None:
            await self.admit(excess)

    @cached_property
    def request_id(self) -> str:
        """Answered to the caller instead of the cause when there is a bug, and written to the log with it."""
        return current.get().request_id or secrets.token_hex(8)

    def begin_again(self, error: Exception) -> None:
        """Read again as usual, after this error. Where the database is what failed, it is not asked a second time."""
        self.has_one_reader, self._loaders = False, None
        if isinstance(error, DatabaseUnavailable):
            self.database = cast("Database", Failed(error))

    async def change(self, command: "Command") -> "Decision":
        """Carry out a command and return what was decided, once committed. Raises its refusals, and `Unavailable`."""
        (result,) = await self.meter_writer.submit([command])
        self.forget()
        if isinstance(result, Refusal):
            raise result
        self.moment.note(result.billing_meter)
        return result

    def forget(self) -> None:
        """Read again what was read before: something was written."""
        self.moment.forget()
        if self._loaders is not None:
            self._loaders.clear()
