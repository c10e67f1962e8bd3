"""What came of attempts, written in groups; and what is deleted because it is old."""

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import NamedTuple

from gateway.services import Services
from resolvers.webhooks import claims
from resolvers.webhooks.claims import LEASE_SECONDS, Claimed
from resolvers.webhooks.outcomes import Outcome, note_health, write_outcomes
from storage.engine.database import DatabaseUnavailable
from storage.meters import events, webhook_deliveries
from storage.meters.webhook_deliveries import DeliveryState

_log = logging.getLogger(__name__)

#: How long outcomes are gathered before they are written. Nobody waits for them.
GATHER_SECONDS = 0.02

#: How long it waits before it tries again where the database is out of reach.
RETRY_SECONDS = 0.5

#: How many outcomes are written at once.
OUTCOMES_AT_ONCE = 500

#: How often the old are deleted and what waits is counted, and how many of the old are deleted at once.
KEEPING_SECONDS = 10.0
DELETED_AT_ONCE = 500

#: What deletes the old, and how long they are kept: deliveries, and events.
_OLD = (
    (webhook_deliveries.delete_some_before, timedelta(days=30)),
    (events.delete_some_before, timedelta(days=90)),
)


class _Late(NamedTuple):
    """An outcome, and until when writing it is of use."""

    outcome: Outcome
    until: float


class Outbox:
    """Writes what the deliverer has to say of deliveries."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._outcomes: list[_Late] = []
        self._let_go: list[Claimed] = []
        self._has_some = asyncio.Event()
        self._kept_at = -math.inf

    def add(self, outcome: Outcome) -> None:
        """Have an outcome written."""
        self._outcomes.append(_Late(outcome, monotonic() + LEASE_SECONDS))
        self._has_some.set()

    def let_go(self, claimed: Iterable[Claimed]) -> None:
        """Have deliveries made due again that are claimed and were not sent."""
        self._let_go += claimed
        self._has_some.set()

    async def write_again_and_again(self) -> None:
        """Write what there is, as it comes."""
        while True:
            try:
                async with asyncio.timeout(KEEPING_SECONDS):
                    await self._has_some.wait()
                await asyncio.sleep(GATHER_SECONDS)
            except TimeoutError:
                pass  # Nothing came.
            await self.flush()
            if self._outcomes or self._let_go:
                await asyncio.sleep(RETRY_SECONDS)
            await self._keep_house()

    async def flush(self) -> None:
        """Write what there is; what the database does not take now stays, for as long as it is of use."""
        self._has_some.clear()
        try:
            while self._outcomes:
                group, self._outcomes = self._outcomes[:OUTCOMES_AT_ONCE], self._outcomes[OUTCOMES_AT_ONCE:]
                await self._write(group)
            released, self._let_go = self._let_go, []
            for some in _by_bucket(released):
                await self._release(some)
        except DatabaseUnavailable:
            self._has_some.set()
        except Exception:  # noqa: BLE001  # A failure must not end the writing of the others.
            _log.exception("What came of webhooks cannot be written; they are sent again")

    async def _write(self, group: Sequence[_Late]) -> None:
        by_bucket: defaultdict[int, list[_Late]] = defaultdict(list)
        for each in group:
            by_bucket[each.outcome.claimed.bucket].append(each)
        failure: DatabaseUnavailable | None = None
        for some in by_bucket.values():
            outcomes = [each.outcome for each in some]
            try:
                await self._write_of_bucket(outcomes)
            except DatabaseUnavailable as error:
                self._outcomes += [each for each in some if monotonic() < each.until]
                failure = error
        if failure is not None:
            raise failure

    async def _write_of_bucket(self, outcomes: Sequence[Outcome]) -> None:
        database, now, figures = self._services.database, self._services.clock(), self._services.webhook_figures
        for row in await write_outcomes(database, outcomes, now=now):
            figures.outcomes["RETRIED" if row.state is DeliveryState.PENDING else row.state.name] += 1
        for endpoint in await note_health(database, outcomes, now=now):
            _log.warning("Webhook endpoint %s is disabled: %s", endpoint.id, endpoint.disabled_reason)
            self._services.webhooks.wake()

    async def _release(self, some: Sequence[Claimed]) -> None:
        work = partial(claims.let_go, claimed=some, now=self._services.clock())
        await self._services.database.write(work, bucket=some[0].bucket, is_repeatable=True)

    async def _keep_house(self) -> None:
        """Count what waits, and delete some of what is old, now and then."""
        if monotonic() < self._kept_at + KEEPING_SECONDS:
            return
        self._kept_at = monotonic()
        database, now, figures = self._services.database, self._services.clock(), self._services.webhook_figures
        try:
            pending, oldest = 0, now
            for bucket in database.buckets.values:
                async with database.read(bucket) as reader:
                    count, opened_at = await webhook_deliveries.pending(reader)
                pending, oldest = pending + count, min(oldest, opened_at or oldest)
                for delete, kept in _OLD:
                    work = partial(delete, moment=now - kept, limit=DELETED_AT_ONCE)
                    while await database.write(work, bucket=bucket) == DELETED_AT_ONCE:
                        pass
            figures.pending, figures.oldest_seconds = pending, (now - oldest).total_seconds()
        except DatabaseUnavailable:
            return  # It has been reported, and is tried again.
        except Exception:  # noqa: BLE001  # A failure must not end the writing of outcomes.
            _log.exception("Old webhook deliveries and events cannot be deleted; it is tried again")


def _by_bucket(claimed: Iterable[Claimed]) -> list[list[Claimed]]:
    found: defaultdict[int, list[Claimed]] = defaultdict(list)
    for each in claimed:
        found[each.bucket].append(each)
    return [*found.values()]
