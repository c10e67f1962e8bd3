"""Room for answers in the making: how much memory those of one process take together.

Answers are made in turns, so all that are in the making are there at once. What is large waits until there is room.
"""

import asyncio
from collections import deque

#: How much memory the large answers of one process that are in the making take, in bytes, as estimated.
MAX_WEIGHT = 192 * 1024 * 1024

#: An answer of no more than this does not count.
SMALL_WEIGHT = 4 * 1024 * 1024


class _Making:
    """The answers in the making. Those that wait are let in in the order in which they came."""

    def __init__(self) -> None:
        self.weight = 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def has_room(self, weight: int) -> bool:
        # One alone is always made, however large the settings let it be.
        return self.weight == 0 or self.weight + weight <= MAX_WEIGHT

    def let_in(self) -> None:
        # Who has given up in the meantime needs none.
        while self.waiting and (self.waiting[0][1].done() or self.has_room(self.waiting[0][0])):
            weight, future = self.waiting.popleft()
            if not future.done():
                self.weight += weight
                future.set_result(None)


_making = _Making()


class Room:
    """The room of one request."""

    __slots__ = ("_weight",)

    def __init__(self) -> None:
        self._weight = 0

    @property
    def is_taken(self) -> bool:
        """Whether the answer is large."""
        return self._weight > 0

    async def take(self, weight: int) -> None:
        """Wait until there is room for an answer of this weight."""
        if not _making.waiting and _making.has_room(weight):
            _making.weight += weight
        else:
            future = asyncio.get_running_loop().create_future()
            _making.waiting.append((weight, future))
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    _making.weight -= weight
                _making.let_in()
                raise
        self._weight = weight

    def leave(self) -> None:
        """Give the room back, if any was taken."""
        if self._weight:
            _making.weight -= self._weight
            self._weight = 0
            _making.let_in()
