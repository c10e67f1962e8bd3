"""Lanes: what is claimed for one endpoint and on its way, so that no endpoint is in the way of another."""

from collections import deque
from time import monotonic

from resolvers.webhooks.claims import LEASE_SECONDS, Claimed
from resolvers.webhooks.outcomes import Outcome
from resolvers.webhooks.schedule import SLOWING

#: How many requests are in flight to an endpoint at once; to one whose last ones have all failed, one.
IN_FLIGHT = 8
LAST = 10

#: The maximum number of deliveries that are claimed for an endpoint, those in flight among them.
MAX_CLAIMED = 256

#: How much of a claim must be left for it to be used: an attempt, and writing what came of it.
NEEDED_SECONDS = 16

#: How long an endpoint that has too much to do is left alone, at first and at most, unless it says it itself.
PAUSE_SECONDS = 1
MAX_PAUSE_SECONDS = 60


class Lane:
    """What is on its way to an endpoint."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.has_more = False
        """Whether more was due than there was room for."""
        self._queue: deque[tuple[float, Claimed]] = deque()
        self._last: deque[bool] = deque(maxlen=LAST)
        self._capacity = IN_FLIGHT
        self._paused_until = 0.0
        self._pause = PAUSE_SECONDS

    @property
    def limit(self) -> int:
        """How many requests may be in flight."""
        return 1 if len(self._last) == LAST and not any(self._last) else IN_FLIGHT

    @property
    def room(self) -> int:
        """How many more deliveries may be claimed."""
        if monotonic() < self._paused_until:
            return 0
        limit = self.limit
        return (self._capacity if limit > 1 else 1) - self.in_flight - len(self._queue)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way, nor is anything remembered that has to be kept."""
        is_paused = monotonic() < self._paused_until
        return not self.in_flight and not self._queue and not is_paused and self.limit > 1

    def put(self, claimed: Claimed, since: float) -> None:
        """Add what was claimed since this moment."""
        self._queue.append((since, claimed))

    def take(self) -> Claimed | None:
        """Return what is to be sent next, if there may be one more in flight."""
        is_paused = monotonic() < self._paused_until
        if self.in_flight >= self.limit or is_paused or not self._queue or self._is_late(self._queue[0][0]):
            return None
        self.in_flight += 1
        return self._queue.popleft()[1]

    def take_late(self) -> list[Claimed]:
        """Return what can no longer be sent under its claim, and claim less from now on."""
        late = []
        while self._queue and self._is_late(self._queue[0][0]):
            late.append(self._queue.popleft()[1])
        if late:
            self._capacity = max(IN_FLIGHT, self._capacity // 2)
        return late

    def take_all(self) -> list[Claimed]:
        """Return all that is not in flight."""
        queued = [claimed for _, claimed in self._queue]
        self._queue.clear()
        return queued

    @staticmethod
    def _is_late(since: float) -> bool:
        return monotonic() > since + LEASE_SECONDS - NEEDED_SECONDS

    def note(self, outcome: Outcome) -> None:
        """Note what came of one that was in flight."""
        self.in_flight -= 1
        self._last.append(outcome.is_delivered)
        if outcome.is_delivered:
            self._pause = PAUSE_SECONDS
            if self.has_more and not self._queue:
                self._capacity = min(MAX_CLAIMED, 2 * self._capacity)
        elif outcome.attempt.status in SLOWING:
            asked = outcome.retry_after_seconds
            seconds = self._pause if asked is None else min(max(asked, PAUSE_SECONDS), MAX_PAUSE_SECONDS)
            self._paused_until = max(self._paused_until, monotonic() + seconds)
            self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS)
