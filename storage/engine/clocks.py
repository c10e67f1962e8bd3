"""Whether this machine's clock and the database server's agree.

What is decided is ordered by time, also between gateways. One clock that is wrong would move meters' times for ever: a
later decision is never before an earlier one.
"""

import time
from collections.abc import Callable

#: How far the two clocks may be apart, in seconds.
MAX_DIFFERENCE_SECONDS = 5

#: How far this machine's clock may have been set since it was compared, in seconds, before it is compared again.
MAX_STEP_SECONDS = 1


class ClocksDiffer(Exception):
    """This machine's clock and the database server's are further apart than they may be."""


class Clocks:
    """The comparison of this machine's clock, `system`, with a server's. `steady` is a clock that nobody sets.

    Both are in seconds; `system` counts from 1970, in UTC.
    """

    def __init__(self, system: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self.system = system
        self._steady = steady
        self._agreed_by: float | None = None
        self.difference = 0.0
        """How many seconds this machine's clock was ahead of the server's, at least, when they were compared last."""

    @property
    def have_agreed(self) -> bool:
        """Whether they agreed when they were compared last, and this machine's has not been set since."""
        return self._agreed_by is not None and abs(self._offset() - self._agreed_by) <= MAX_STEP_SECONDS

    def compare(self, server: float, *, asked_at: float) -> None:
        """Compare them: the server's was read after `asked_at`, and before now."""
        self.difference = min(0, self.system() - server) + max(0, asked_at - server)
        self._agreed_by = self._offset() if abs(self.difference) <= MAX_DIFFERENCE_SECONDS else None

    def _offset(self) -> float:
        return self.system() - self._steady()
