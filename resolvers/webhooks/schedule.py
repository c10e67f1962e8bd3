"""What becomes of a delivery after an attempt: when it is tried again, and when it is given up."""

import random
from datetime import datetime, timedelta

from storage.meters.webhook_deliveries import Attempt, DeliveryRow, DeliveryState

_MINUTE, _HOUR = 60, 3_600

#: How long after the one before each attempt is made, in seconds: some three days in all, as the specification has it.
DELAYS_SECONDS = (
    *(0, 5, 5 * _MINUTE, 30 * _MINUTE),
    *(2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR),
)

#: By how much of it a delay is drawn longer at most, so that what failed together is not tried again together.
JITTER = 0.2

#: The longest that an endpoint may ask to be left alone for, in seconds.
LONGEST_RETRY_AFTER_SECONDS = 24 * _HOUR

#: The statuses that say that the endpoint has too much to do, or that what stands before it does not reach it.
SLOWING = frozenset((429, 502, 503, 504))

#: The status that says that the endpoint is not there and will not be.
GONE = 410


def is_delivered(attempt: Attempt) -> bool:
    """Whether the attempt has delivered the event: by any status of success, and by nothing else."""
    return attempt.status is not None and 200 <= attempt.status < 300  # noqa: PLR2004  # HTTP's own classes.


def after(row: DeliveryRow, attempt: Attempt, *, now: datetime, retry_after_seconds: int | None) -> DeliveryRow:
    """Return the delivery as the attempt leaves it."""
    tried = row.with_attempt(attempt)._replace(claimed_by=None, next_attempt_at=None)
    if is_delivered(attempt):
        return tried._replace(state=DeliveryState.DELIVERED)
    if tried.tries >= len(DELAYS_SECONDS):
        return tried._replace(state=DeliveryState.FAILED)
    seconds = DELAYS_SECONDS[tried.tries] * (1 + random.uniform(0, JITTER))  # noqa: S311  # Nobody gains by guessing it.
    if retry_after_seconds is not None:
        seconds = max(seconds, min(retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS))
    return tried._replace(next_attempt_at=now + timedelta(seconds=seconds))
