"""Whether this machine's clock and the database server's agree.

What is decided is ordered by time, also between gateways. One clock that is wrong would move meters' times for ever: a
later decision is never before an earlier one.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

#: How far the two clocks may be apart, in seconds.
MAX_DIFFERENCE_SECONDS = 5

#: How far this machine's clock may have been set since it was compared, in seconds, before it is compared again.
MAX_STEP_SECONDS = 1

#: For how long they are taken to agree, in seconds: the server's clock may be set as well.
AGREED_SECONDS = 10


class ClocksDiffer(Exception):
    """This machine's clock and the database server's are further apart than they may be, or cannot be compared."""

    def __init__(self, seconds: float) -> None:
        side = "ahead of" if seconds > 0 else "behind"
        is_known = abs(seconds) > MAX_DIFFERENCE_SECONDS
        super().__init__(
            f"The gateway's clock is {abs(seconds):.0f} seconds {side} the database's."
            if is_known
            else "The gateway's clock cannot be compared with the database's, which answers too slowly."
        )


class Moment(NamedTuple):
    """This machine's clock, in seconds since 1970 in UTC, and the one that nobody sets."""

    system: float
    steady: float

    @property
    def offset(self) -> float:
        """How far the first is ahead of the second."""
        return self.system - self.steady


class Clocks:
    """The comparison of this machine's clock, `system`, with a server's. `steady` is a clock that nobody sets."""

    def __init__(self, system: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self.system = system
        self._steady = steady
        self._agreed: Moment | None = None

    def now(self) -> Moment:
        """Return this machine's time, to ask the server for its own."""
        return Moment(self.system(), self._steady())

    @property
    def have_agreed(self) -> bool:
        """Whether they agreed when they were compared, a short while ago, and this machine's has not been set since."""
        if self._agreed is None:
            return False
        now = self.now()
        is_set = abs(now.offset - self._agreed.offset) > MAX_STEP_SECONDS
        return not is_set and now.steady - self._agreed.steady <= AGREED_SECONDS

    def compare(self, server: float, *, asked: Moment) -> None:
        """Compare them: the server's clock was read after it was `asked`, and before now.

        An answer that came so late that it shows nothing leaves an agreement as it is. Raises `ClocksDiffer`.
        """
        now = self.now()
        # This machine's clock as it would be now had nobody set it meanwhile: the server read its own between the two.
        answered = asked.system + (now.steady - asked.steady)
        least, greatest = asked.system - server, answered - server
        is_set = abs(now.offset - asked.offset) > MAX_STEP_SECONDS
        if max(abs(least), abs(greatest)) <= MAX_DIFFERENCE_SECONDS and not is_set:
            self._agreed = now
            return
        do_differ = least > MAX_DIFFERENCE_SECONDS or greatest < -MAX_DIFFERENCE_SECONDS
        if do_differ or is_set or not self.have_agreed:
            self._agreed = None
            raise ClocksDiffer(min(0, greatest) + max(0, least))
