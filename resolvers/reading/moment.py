"""The moment as of which what a request reads is shown."""

from collections.abc import Callable
from datetime import datetime

from storage.meters.billing_meters import BillingMeterRow


class Moment:
    """The moment as of which what is read is shown: the same for all of a request, until it writes something.

    A meter's newest entry may be later, decided by a gateway whose clock is ahead: then that is the meter's moment.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._now: datetime | None = None
        self._newest: dict[str, datetime] = {}

    def __call__(self) -> datetime:
        """Return it."""
        if self._now is None:
            self._now = self._clock()
        return self._now

    def note(self, meter: BillingMeterRow) -> None:
        """Note when the newest entry was of a meter that is read."""
        self._newest[meter.id] = meter.updated_at

    def of(self, meter_id: str) -> datetime:
        """Return the moment of a meter that was read."""
        return max(self(), self._newest[meter_id]) if meter_id in self._newest else self()

    def forget(self) -> None:
        """Let it be later from now on."""
        self._now = None
