"""The deliverer: it gives new events to the endpoints that want them, and claims and sends what is due.

Any number of gateways deliver from one database. What one of them has claimed when it dies is claimed by another when
the claims end.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic

from gateway.services import Services
from gateway.workers.background import in_background
from gateway.workers.webhooks.alone import OnlyOne
from gateway.workers.webhooks.lanes import IN_FLIGHT, Lane
from gateway.workers.webhooks.outbox import Outbox
from gateway.workers.webhooks.sending import Sender
from resolvers.webhooks import claims
from resolvers.webhooks.claims import EVENTS_AT_ONCE, Claimed, Claims
from resolvers.webhooks.outcomes import Outcome
from storage.engine.database import DatabaseUnavailable
from storage.meters import new_events, webhook_deliveries
from storage.meters.webhook_deliveries import Attempt

_log = logging.getLogger(__name__)

#: How long it waits between two looks, in seconds, and how long where it has found nothing. What this process writes
#: itself it is woken for.
SECONDS = 0.25
IDLE_SECONDS = 0.5

#: How long what is in flight is given to end when the gateway stops. What has not is sent again by another.
CLOSE_SECONDS = 2

#: What the name of the file has after the database's by which one of several processes delivers.
LOCK_SUFFIX = ".webhooks-lock"

#: How many times new events are given before what is due is looked at.
ROUNDS = 8


@asynccontextmanager
async def delivering(services: Services) -> AsyncIterator[None]:
    """Deliver while the body runs."""
    async with Sender(services.webhooks) as sender:
        deliverer = Deliverer(services, sender)
        services.webhooks.waking = deliverer.wake
        async with in_background(deliverer.outbox.write_again_and_again()):
            try:
                async with in_background(deliverer.run()):
                    yield
            finally:
                await deliverer.close()


class Deliverer:
    """Delivers for one process."""

    def __init__(self, services: Services, sender: Sender) -> None:
        self._services = services
        self._sender = sender
        self._woken = asyncio.Event()
        self._lanes: dict[str, Lane] = {}
        # Which endpoints more is due for in a bucket than there was room for.
        self._left: dict[int, set[str]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._scanned_at = -math.inf
        self.outbox = Outbox(services)
        database = services.database
        file = Path(f"{database.url.database}{LOCK_SUFFIX}") if database.dialect == "sqlite" else None
        self._only_one = OnlyOne(file) if file is not None else None

    def wake(self) -> None:
        """Look at once: something was written."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver again and again."""
        while True:
            seconds = IDLE_SECONDS
            try:
                if self._may_deliver() and await self.look():
                    seconds = SECONDS
            except DatabaseUnavailable:
                pass  # It has been reported, and is tried again.
            except Exception:  # noqa: BLE001  # A failure must not end the deliverer.
                _log.exception("The deliverer of webhooks failed; it goes on")
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            self._woken.clear()

    def _may_deliver(self) -> bool:
        """Whether this process is the one that delivers, where there is but one."""
        try:
            return self._only_one is None or self._only_one.take()
        except OSError:
            _log.exception("The file that says which process delivers webhooks cannot be opened; it is tried again")
            return False

    async def look(self) -> bool:
        """Give new events, and claim what is due; return whether anything was found. Raises `DatabaseUnavailable`."""
        is_scan = monotonic() >= self._scanned_at + SECONDS
        if is_scan:
            self._scanned_at = monotonic()
            self._forget_idle()
        found = [await self._look_in(bucket, is_scan=is_scan) for bucket in self._services.database.buckets.values]
        return any(found)

    async def _look_in(self, bucket: int, *, is_scan: bool) -> bool:
        database, now = self._services.database, self._services.clock()
        async with database.read(bucket) as reader:
            has_new = await new_events.are_there(reader)
            # All that is due only now and then; in between, what there is room for again.
            waiting = await webhook_deliveries.waiting(reader) if is_scan else ()
        due = [each.endpoint_id for each in waiting if each.next_attempt_at <= now]
        given = 0
        for _ in range(ROUNDS if has_new else 0):
            since = monotonic()
            work = partial(claims.give_new, now=self._services.clock(), room=self._room)
            made = await database.write(work, bucket=bucket)
            self._begin(bucket, made, since)
            given += made.events
            if made.events < EVENTS_AT_ONCE:
                break
        wanted = due if is_scan else [*self._left.get(bucket, ())]
        rooms = {endpoint_id: room for endpoint_id in wanted if (room := self._room(endpoint_id)) > 0}
        if not rooms:
            return given > 0
        since = monotonic()
        self._left.setdefault(bucket, set()).difference_update(rooms)
        self._begin(bucket, await database.write(partial(claims.claim_due, rooms=rooms, now=now), bucket=bucket), since)
        return True

    def _room(self, endpoint_id: str) -> int:
        lane = self._lanes.get(endpoint_id)
        return IN_FLIGHT if lane is None else lane.room

    def _begin(self, bucket: int, made: Claims, since: float) -> None:
        """Send what was claimed since this moment, as far as it may be in flight."""
        lanes = {each.endpoint.id: self._lane(each.endpoint.id) for each in made.claimed}
        for claimed in made.claimed:
            lanes[claimed.endpoint.id].put(claimed, since)
        self._left.setdefault(bucket, set()).update(made.left)
        for endpoint_id, lane in lanes.items():
            lane.has_more = endpoint_id in made.left
            self._send(endpoint_id, lane)

    def _lane(self, endpoint_id: str) -> Lane:
        return self._lanes.setdefault(endpoint_id, Lane())

    def _send(self, endpoint_id: str, lane: Lane) -> None:
        while (claimed := lane.take()) is not None:
            task = asyncio.create_task(self._attempt(lane, claimed))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        if late := lane.take_late():
            self.outbox.let_go(late)
            self._left.setdefault(late[0].bucket, set()).add(endpoint_id)

    async def _attempt(self, lane: Lane, claimed: Claimed) -> None:
        now = self._services.clock()
        try:
            answer = await self._sender.send(claimed, now=now)
            outcome = Outcome(claimed, answer.attempt, answer.retry_after_seconds)
        except Exception:  # noqa: BLE001  # Whatever it is, the delivery is tried again later, and no other one fails.
            _log.exception("A webhook cannot be sent")
            outcome = Outcome(claimed, Attempt(now, None, 0, "The gateway failed."))
        lane.note(outcome)
        self.outbox.add(outcome)
        self._send(claimed.endpoint.id, lane)
        if lane.has_more and lane.room >= IN_FLIGHT // 2:
            self.wake()

    def _forget_idle(self) -> None:
        for endpoint_id, lane in [*self._lanes.items()]:
            if late := lane.take_late():
                self.outbox.let_go(late)
            self._send(endpoint_id, lane)
            if lane.is_idle:
                del self._lanes[endpoint_id]

    async def settled(self) -> None:
        """Wait until nothing is in flight, and what came of it is written."""
        while self._sending:
            await asyncio.wait(self._sending)
        await self.outbox.flush()

    async def close(self) -> None:
        """Let others have what is not sent, and finish what is in flight, as far as that is quick."""
        self._services.webhooks.waking = _nothing
        queued = [claimed for lane in self._lanes.values() for claimed in lane.take_all()]
        self.outbox.let_go(queued)
        if self._sending:
            _, unfinished = await asyncio.wait(self._sending, timeout=CLOSE_SECONDS)
            await _cancel(unfinished)
        await self.outbox.flush()
        if self._only_one is not None:
            self._only_one.release()


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _nothing() -> None:
    """Wake nobody."""
