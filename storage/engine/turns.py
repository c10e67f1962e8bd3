"""Turns: what works long in the event loop stops now and then, and short requests are answered meanwhile.

Those who work long take turns: in one round of the event loop at most one of them works, however many there are.
"""

import asyncio
from asyncio import AbstractEventLoop
from time import perf_counter
from weakref import WeakKeyDictionary

#: How long one request works before it passes the turn on, in seconds, give or take what it cannot divide.
TURN_SECONDS = 0.000_5

#: Work on more records than this takes long.
MAX_AT_ONCE = 20

#: How many of the fields that graphql-core itself resolves for one request start in one round of the event loop.
STARTS_A_ROUND = 500

_LOCKS: WeakKeyDictionary[AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


class Turn:
    """A stretch of work, which begins when it is made."""

    def __init__(self) -> None:
        self._end = perf_counter() + TURN_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether it is another's turn."""
        return perf_counter() > self._end

    async def next(self) -> None:
        """Wait for the next turn."""
        await next_turn()
        self._end = perf_counter() + TURN_SECONDS


async def turn_for(records: int) -> Turn:
    """Return a turn for work on so many records; on many, once it is one's turn, as others may have read as much."""
    if records > MAX_AT_ONCE:
        await next_turn()
    return Turn()


async def next_turn() -> None:
    """Wait until it is one's turn among those who work long, and let all others go first."""
    async with _LOCKS.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        await asyncio.sleep(0)


class Starts:
    """Lets a few of many start in each round of the event loop, in the order in which they come."""

    def __init__(self) -> None:
        self._count = 0
        self._released = 0
        self._waiting: dict[int, asyncio.Event] = {}

    async def next(self) -> None:
        """Wait until it is one's turn to start."""
        group = self._count // STARTS_A_ROUND
        self._count += 1
        if group > self._released:
            if not self._waiting:
                asyncio.get_running_loop().call_soon(self._release)
            await self._waiting.setdefault(group, asyncio.Event()).wait()

    def _release(self) -> None:
        self._released += 1
        event = self._waiting.pop(self._released, None)
        if event is not None:
            event.set()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._release)
