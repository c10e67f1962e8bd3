"""The write side of the loaders: concurrent debits of all requests are decided in groups, one transaction a group.

While one group commits, the next one gathers; there is no timer, so a lone event never waits. A group is decided in
this order: lock its meters, look up the event ids already known, decide each event in order of arrival, then one update
of the meters, one upsert of the usage days, one insert of the entries. Looking up before the lock would let two
processes both find nothing, and one group would die of the ledger's unique key. Every caller gets its own answer after
the commit.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from datetime import date, datetime
from time import perf_counter_ns
from typing import Protocol

from resolvers.bounds import DEFAULT_BOUNDS
from resolvers.errors import BillingError, BillingMeterNotFound, LimitRefusal, Refusal, Unavailable
from resolvers.observation import Observation, current
from resolvers.usage import Balance, UsageEvent, UsageOutcome, decide
from storage import billing_meters, ledger, usage
from storage.billing_meters import BillingMeterRow, MeterName
from storage.database import Database, DatabaseUnavailable, Outcome, Writer
from storage.failures import outages
from storage.ledger import LedgerEntryRow
from storage.tables import LedgerEntryKind

_log = logging.getLogger(__name__)

#: The most events that one transaction decides; one submission may be larger, and then has it alone.
MOST_IN_GROUP = 1_000

#: How long the queue is given to be finished when the writer closes.
CLOSE_SECONDS = 2

#: The most names whose ids are remembered.
MOST_NAMES = 100_000

Result = UsageOutcome | Refusal

#: A meter's id and an event's.
_Key = tuple[str, str]


@dataclass(slots=True, eq=False)
class _Submission:
    events: Sequence[UsageEvent]
    answer: asyncio.Future[list[Result]]
    observation: Observation
    queued_at: int


class UsageObserver(Protocol):
    """Who is told of every group."""

    def decided(
        self, events: Sequence[UsageEvent], results: Sequence[Result], *, waits_ns: Sequence[int], took_ns: int
    ) -> None:
        """Hear that a group is committed: its events, the result of each, how long each submission waited for it."""

    def failed(self, events: int) -> None:
        """Hear that as many events were not recorded, because the database was out of reach or the queue full."""


@dataclass(slots=True)
class _Group:
    """A group being decided: its meters as they become, a result an event, and what is to be written.

    `meters` are as the group leaves them; they are known when all of it is decided.
    """

    balances: dict[str, Balance]
    known: dict[_Key, LedgerEntryRow]
    own: dict[_Key, LedgerEntryRow]
    now: datetime
    results: list[Result] = field(default_factory=list)
    written: list[LedgerEntryRow] = field(default_factory=list)
    days: dict[tuple[str, date, str], int] = field(default_factory=dict)
    meters: dict[str, BillingMeterRow] = field(default_factory=dict)

    def decide(self, meter_id: str | None, event: UsageEvent) -> Result:
        """Decide one event after those before it."""
        balance = self.balances.get(meter_id) if meter_id is not None else None
        if balance is None or meter_id is None:
            return BillingMeterNotFound(event.meter.workspace_id, event.meter.external_meter_id)
        key = (meter_id, event.event_id)
        try:
            outcome = decide(balance, event, self.known.get(key), now=self.now)
        except Refusal as refusal:
            # Its traceback knows the group, and would keep all of it in memory.
            return refusal.with_traceback(None)
        entry = outcome.entry
        if outcome.replayed and self.own.pop(key, None) == entry:
            outcome.replayed = False
        elif entry is not None and not outcome.replayed:
            self.known[key] = entry
            self.written.append(entry)
            assert entry.day is not None  # noqa: S101  # A USAGE entry has its day.
            day = (meter_id, entry.day, event.usage_name)
            self.days[day] = self.days.get(day, 0) + entry.amount
        return outcome


class UsageWriter:
    """Decides debits on one database, for all requests of the process."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        observer: UsageObserver | None = None,
        *,
        most_waiting: int = DEFAULT_BOUNDS.waiting_events,
    ) -> None:
        self._database = database
        self._clock = clock
        self._observer = observer
        self._most_waiting = most_waiting
        # By organization, each in the order of arrival; those with nothing to do are left out.
        self._queue: dict[str, deque[_Submission]] = {}
        self._waiting: Counter[str] = Counter()
        self._running: asyncio.Task[None] | None = None
        self._closed = False
        # A meter's names and id never change, so what is remembered of them cannot become wrong.
        self._ids: dict[MeterName, str] = {}

    @property
    def waiting(self) -> int:
        """How many events wait for a group."""
        return self._waiting.total()

    async def record(self, events: Sequence[UsageEvent]) -> list[Result]:
        """Record the events, at least one, in one transaction, in their order, and return their results once committed.

        A refused event is a `Refusal` among the results, and leaves the others alone.

        The events are one organization's, whose several submissions may have half of the queue: there is room for
        others.

        Raises `Unavailable`: `NOT_WRITTEN` when the queue or the organization's part of it is full, when it is closed
        or the database is out of reach; `UNKNOWN` when the answer to COMMIT was lost.
        """
        org_id = events[0].meter.org_id
        before = self._waiting[org_id]
        own = before + len(events)
        is_greedy = before > 0 and own > self._most_waiting // 2
        if self._closed or is_greedy or self.waiting + len(events) > self._most_waiting:
            self._tell_failed(len(events))
            raise Unavailable(Outcome.NOT_WRITTEN)
        submission = _Submission(events, asyncio.get_running_loop().create_future(), current.get(), perf_counter_ns())
        self._queue.setdefault(org_id, deque()).append(submission)
        self._waiting[org_id] = own
        if self._running is None:
            # In a context of its own: groups belong to no request, also not to the one that wakes the writer.
            self._running = asyncio.create_task(self._run(), context=Context())
        return await submission.answer

    async def close(self) -> None:
        """Refuse what comes from now on, and finish what is queued, except what a lost database holds up."""
        self._closed = True
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=CLOSE_SECONDS)
        while self._queue:
            _, submissions = self._queue.popitem()
            for submission in submissions:
                self._tell_failed(len(submission.events))
                _fail(submission, Unavailable(Outcome.NOT_WRITTEN))

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._answer(self._next_group())
        finally:
            self._running = None

    def _next_group(self) -> list[_Submission]:
        """Take submissions off the queue, of each organization one in turn, until no more of the next one's fit."""
        group: list[_Submission] = []
        size = 0
        while self._queue:
            org_id, submissions = next(iter(self._queue.items()))
            count = len(submissions[0].events)
            if group and size + count > MOST_IN_GROUP:
                break
            group.append(submissions.popleft())
            size += count
            self._waiting[org_id] -= count
            # The next turn is another's.
            del self._queue[org_id]
            if submissions:
                self._queue[org_id] = submissions
            else:
                del self._waiting[org_id]
        return group

    async def _answer(self, group: Sequence[_Submission]) -> None:
        """Decide the group and give each submission its answer, or the reason why there is none."""
        events = [event for submission in group for event in submission.events]
        began = perf_counter_ns()
        try:
            recorded = await self._record(events)
        except DatabaseUnavailable as error:
            outages.log(error)
            self._tell_failed(len(events))
            for submission in group:
                _fail(submission, Unavailable(error.outcome))
        except Exception as error:  # noqa: BLE001  # Whatever it is, the callers must be told.
            if len(group) == 1:
                _fail(group[0], error)
                return
            # One of them is at fault, by a bug; it must not take the others with it.
            _log.exception("A group of usage events failed; each submission is tried alone")
            for submission in group:
                await self._answer([submission])
        else:
            self._give(group, events, recorded, began)

    def _give(
        self, group: Sequence[_Submission], events: Sequence[UsageEvent], recorded: Sequence[Result], began: int
    ) -> None:
        """Give each submission its part of what was recorded."""
        ended = perf_counter_ns()
        results = iter(recorded)
        for submission in group:
            if submission.observation.steps is not None:
                submission.observation.steps += [("queue", submission.queued_at, began), ("group", began, ended)]
            answer = [next(results) for _ in submission.events]
            if not submission.answer.done():
                submission.answer.set_result(answer)
        # Whatever comes of telling, all are answered.
        if self._observer is not None:
            waits_ns = [began - submission.queued_at for submission in group]
            self._observer.decided(events, recorded, waits_ns=waits_ns, took_ns=ended - began)

    def _tell_failed(self, events: int) -> None:
        if self._observer is not None:
            self._observer.failed(events)

    async def _record(self, events: Sequence[UsageEvent]) -> list[Result]:
        ids = await self._ids_of({event.meter for event in events})
        # What an attempt wrote whose commit was not answered: found again, it is this group's own and no replay.
        tried: list[LedgerEntryRow] = []

        async def decide_all(writer: Writer) -> _Group:
            own = {(entry.meter_id, entry.key or ""): entry for entry in tried}
            group = await self._decide(writer, [(ids.get(event.meter), event) for event in events], own)
            tried.extend(group.written)
            return group

        # Every event has its id, so deciding a group again is safe.
        group = await self._database.write(decide_all, is_repeatable=True)
        return [_as_of_now(result, group.meters) for result in group.results]

    async def _ids_of(self, names: Collection[MeterName]) -> dict[MeterName, str]:
        """Return the ids of those of the meters that exist."""
        ids = {name: id_ for name in names if (id_ := self._ids.get(name)) is not None}
        if len(ids) < len(names):
            async with self._database.read() as reader:
                found = await billing_meters.ids_by_names(reader, [name for name in names if name not in ids])
            if len(self._ids) + len(found) > MOST_NAMES:
                self._ids.clear()
            self._ids.update(found)
            ids.update(found)
        return ids

    async def _decide(
        self, writer: Writer, events: Sequence[tuple[str | None, UsageEvent]], own: dict[_Key, LedgerEntryRow]
    ) -> _Group:
        """Decide the events, each with its meter's id, and write what they come to.

        It starts from the rows, because it may run again after a rollback.
        """
        keys = [(meter_id, event.event_id) for meter_id, event in events if meter_id is not None]
        meters = await billing_meters.lock(writer, sorted({meter_id for meter_id, _ in keys}))
        known = await ledger.by_keys(writer, LedgerEntryKind.USAGE, keys)
        group = _Group({id_: Balance.of(meter) for id_, meter in meters.items()}, known, own, self._clock())
        group.results = [group.decide(meter_id, event) for meter_id, event in events]
        group.meters = {meter_id: balance.meter_after(group.now) for meter_id, balance in group.balances.items()}
        if group.written:
            changed = sorted({entry.meter_id for entry in group.written})
            await billing_meters.update_meters(writer, [(meters[id_], group.meters[id_]) for id_ in changed])
            await usage.add(writer, group.days)
            await ledger.insert_entries(writer, group.written)
        return group


def _as_of_now(result: Result, meters: dict[str, BillingMeterRow]) -> Result:
    """Return the result with its meter as it is after the group's commit."""
    if isinstance(result, UsageOutcome | LimitRefusal):
        result.billing_meter = meters[result.billing_meter.id]
    return result


def _fail(submission: _Submission, error: BillingError | Exception) -> None:
    if not submission.answer.done():
        submission.answer.set_exception(error)
