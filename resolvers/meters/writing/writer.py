"""The one writer of meters: concurrent commands of all requests are decided in groups, one transaction a group.

While one group commits, the next one gathers; there is no timer, so a lone command never waits. A group is decided in
this order: lock its meters, look up what the commands' keys have done already, decide each command in order of arrival,
after booking what is due of its meter, then one update of the meters, one upsert of the usage days, one insert of the
entries. Grants and holds are read and written of meters that have any. Looking up before the lock would
let two processes both find nothing, and one group would die of the ledger's unique key. Every caller gets its own
answer after the commit.

On PostgreSQL a meter may be locked by another gateway, which may have been stopped, or by a human. The first lane skips
such meters, and their commands wait in the second lane, so that they hold up nobody else's. Each bucket of a database
has two lanes of its own. The first ones of a server have one group at a time under way there, so that groups are as
large as they would be in fewer buckets; the second ones, which may wait for a lock, keep nobody back.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

from resolvers.bounds import DEFAULT_BOUNDS
from resolvers.errors import Unavailable
from resolvers.meters.alerts.workspaces import WorkspaceAlerts
from resolvers.meters.writing.group import Group, LockedMeter, look_up, write
from resolvers.meters.writing.lanes import Crossing, Lane, Pending, Result, Submission
from resolvers.observation import current
from resolvers.rules.commands import Command, Decision
from storage.engine.database import Database, DatabaseUnavailable, LockTimeout, Outcome
from storage.engine.failures import outages
from storage.engine.transactions import Writer
from storage.meters import billing_meters
from storage.meters.billing_meters import MeterName
from storage.meters.ledger import LedgerEntryRow

_log = logging.getLogger(__name__)

#: How long the queue is given to be finished when the writer closes.
CLOSE_SECONDS = 2

#: For how long commands are decided before other tasks of the event loop have a turn, in nanoseconds.
HOLD_UP_NS = 20_000_000

#: How many names of meters have their ids remembered.
MAX_NAMES = 100_000

#: How long the second lane waits for the meters of one submission before it tries the others again.
LOCK_SECONDS = 0.1


class MeterObserver(Protocol):
    """What is notified of every group."""

    def decided(
        self,
        commands: Sequence[Command],
        results: Sequence[Result],
        *,
        entries: Sequence[LedgerEntryRow],
        waits_ns: Sequence[int],
        took_ns: int,
    ) -> None:
        """Note that a group is committed: its commands, the result of each, how long each submission waited for it.

        `entries` are all that it wrote, also those that no command asked for.
        """

    def failed(self, commands: Sequence[Command]) -> None:
        """Note that commands were not carried out, because the database was out of reach or the queue full."""


class _Lanes(NamedTuple):
    """Those of one bucket."""

    first: Lane
    second: Lane


class MeterWriter:
    """Decides the commands of one process on one database."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        observer: MeterObserver | None = None,
        *,
        max_pending: int = DEFAULT_BOUNDS.waiting_events,
        on_events: Callable[[], None] | None = None,
    ) -> None:
        """`on_events` is called when a group has committed that has written events."""
        self._database = database
        self._clock = clock
        self._observer = observer
        self._max_pending = max_pending
        self._on_events = on_events
        self._pending = Pending()
        self._lanes: defaultdict[int, _Lanes] = defaultdict(self._new_lanes)
        self._crossings: defaultdict[object, Crossing] = defaultdict(Crossing)
        self._closed = self._given_up = False
        self._ids: dict[MeterName, str] = {}
        self.alerts_of_workspaces = WorkspaceAlerts()
        """Those that meters take on with their next entries."""

    @property
    def pending(self) -> int:
        """How many commands wait for a group."""
        return self._pending.total

    async def submit(self, commands: Sequence[Command]) -> list[Result]:
        """Decide the commands, at least one, in one transaction, in their order; return their results once committed.

        A refused command is a `Refusal` among the results, and leaves the others alone. On a database of several
        buckets there is a transaction for each of those that the commands' meters lie in.

        The commands are one organization's, whose several submissions may have half of the queue: there is room for
        others.

        Raises `Unavailable`: `NOT_WRITTEN` when the queue or the organization's part of it is full, when it is closed,
        or the database is out of reach, or a meter's lock, which is its cause then; `UNKNOWN` when the answer to COMMIT
        was lost and the database did not come back in time, or when some of several transactions were not written.
        """
        submissions = self._submissions(commands)
        pending, count = self._pending, len(commands)
        own = pending.of_org.get(submissions[0].org_id, 0)
        is_greedy = own > 0 and own + count > self._max_pending // 2
        if self._closed or is_greedy or pending.total + count > self._max_pending:
            self._fail(submissions)
        else:
            for submission in submissions:
                self._lanes[submission.bucket].first.add(submission)
        if len(submissions) == 1:
            return await submissions[0].answer
        return await self._together(commands, submissions)

    def _submissions(self, commands: Sequence[Command]) -> list[Submission]:
        """Return the commands by the buckets of their meters."""
        buckets = self._database.buckets
        observation, loop, now = current.get(), asyncio.get_running_loop(), perf_counter_ns()
        if buckets.is_one:
            return [Submission([*commands], observation, loop.create_future(), now, buckets.values[0])]
        by_bucket: dict[int, list[Command]] = {}
        for command in commands:
            by_bucket.setdefault(buckets.of_names(command.meter), []).append(command)
        return [
            Submission(some, observation, loop.create_future(), now, bucket, buckets.places.get(bucket))
            for bucket, some in by_bucket.items()
        ]

    async def _together(self, commands: Sequence[Command], submissions: Sequence[Submission]) -> list[Result]:
        """Return the results of all submissions, in the order of the commands. Raises `Unavailable`."""
        answers = await asyncio.gather(*[each.answer for each in submissions], return_exceptions=True)
        results: dict[int, Iterator[Result]] = {}
        failures: list[Any] = []
        for submission, answer in zip(submissions, answers, strict=True):
            if isinstance(answer, BaseException):
                failures.append(answer)
            else:
                results[submission.bucket] = iter(answer)
        for failure in failures:
            if not isinstance(failure, Unavailable):
                raise failure
        if failures:
            is_known = not results and all(each.outcome is Outcome.NOT_WRITTEN for each in failures)
            raise Unavailable(Outcome.NOT_WRITTEN if is_known else Outcome.UNKNOWN) from failures[0]
        return [next(results[self._database.buckets.of_names(command.meter)]) for command in commands]

    def _new_lanes(self) -> _Lanes:
        return _Lanes(
            Lane(self._answer_first, self._pending, lambda submission: self._crossings[submission.server].passed()),
            Lane(self._answer_second, self._pending, lambda _: nullcontext()),
        )

    @property
    def _all_lanes(self) -> list[Lane]:
        return [lane for lanes in self._lanes.values() for lane in lanes]

    async def close(self) -> None:
        """Refuse what comes from now on, and finish what is queued, except what a lost database or a lock holds up."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while running := {lane.running for lane in self._all_lanes if lane.running is not None}:
                    await asyncio.wait(running)
        self._given_up = True
        for lane in self._all_lanes:
            while submissions := lane.take():
                self._fail(submissions)

    async def _answer_first(self, submissions: list[Submission]) -> None:
        """Answer what can be decided at once; the rest goes to the second lane."""
        self._wait(await self._decide(submissions, skip_locked=True))

    async def _answer_second(self, submissions: list[Submission]) -> None:
        """Answer what is no longer locked; where the first submission still is, wait a while for its meters."""
        locked = await self._decide(submissions, skip_locked=True)
        if submissions[0] in locked:
            meters = {command.meter for command in locked[0].commands}
            alike = [each for each in locked if meters.issuperset(command.meter for command in each.commands)]
            others = [each for each in locked if each not in alike]
            locked = others + await self._decide(alike, skip_locked=False)
        if self._is_overdue(submissions[0]) and submissions[0] in locked:
            # Who holds its meters may have been stopped where PostgreSQL's own timeouts do not end it.
            with suppress(DatabaseUnavailable):
                await self._database.end_stuck_sessions(submissions[0].bucket)
        self._wait(locked)

    def _wait(self, locked: Sequence[Submission]) -> None:
        """Have the second lane wait for the submissions' meters, for as long as a write may wait."""
        for submission in locked:
            if self._given_up or self._is_overdue(submission):
                outages.log(timeout := LockTimeout())
                self._fail([submission], cause=timeout)
            else:
                self._lanes[submission.bucket].second.add(submission)

    def _is_overdue(self, submission: Submission) -> bool:
        """Whether it has waited for as long as a write may."""
        return submission.queued_at <= perf_counter_ns() - int(self._database.wait_seconds * 1_000_000_000)

    async def _decide(self, submissions: Sequence[Submission], *, skip_locked: bool) -> list[Submission]:
        """Give each submission its results, or the reason why there are none; return those that wait for a lock."""
        began = perf_counter_ns()
        try:
            group = await self._carry_out(submissions, skip_locked=skip_locked)
        except LockTimeout:
            return list(submissions)
        except DatabaseUnavailable as error:
            outages.log(error)
            self._fail(submissions, error.outcome)
            return []
        except Exception as error:  # noqa: BLE001  # Whatever it is, the callers must learn of it.
            if len(submissions) == 1:
                _fail(submissions[0], error)
                return []
            # One of them is at fault, by a bug; it must not take the others with it.
            _log.exception("A group of commands failed; each submission is tried alone")
            return [locked for each in submissions for locked in await self._decide([each], skip_locked=skip_locked)]
        self._give(group, began)
        return group.locked

    def _give(self, group: Group, began: int) -> None:
        """Give each submission that was decided its results."""
        ended = perf_counter_ns()
        answered = [(each, list(map(group.as_committed, results))) for each, results in group.decided]
        for submission, results in answered:
            if submission.observation.steps is not None:
                submission.observation.steps += [("queue", submission.queued_at, began), ("group", began, ended)]
            if not submission.answer.done():
                submission.answer.set_result(results)
        if self._on_events is not None and any(of.known.events for of in group.meters.values()):
            self._on_events()
        # Whatever the observer does, all are answered.
        if self._observer is not None and answered:
            self._observer.decided(
                [command for submission, _ in answered for command in submission.commands],
                [result for _, results in answered for result in results],
                entries=group.written,
                waits_ns=[began - submission.queued_at for submission, _ in answered],
                took_ns=ended - began,
            )

    def _fail(
        self,
        submissions: Sequence[Submission],
        outcome: Outcome = Outcome.NOT_WRITTEN,
        cause: Exception | None = None,
    ) -> None:
        for submission in submissions:
            error = Unavailable(submission.outcome if outcome is Outcome.NOT_WRITTEN else outcome)
            error.__cause__ = cause
            _fail(submission, error)
            if self._observer is not None:
                self._observer.failed(submission.commands)

    async def _carry_out(self, submissions: Sequence[Submission], *, skip_locked: bool) -> Group:
        """Decide the submissions in one transaction. Raises `DatabaseUnavailable`; `LockTimeout` for locked meters."""
        tried: list[Group] = []

        async def decide_all(writer: Writer) -> Group:
            _note_tried(tried)
            if not skip_locked:
                await writer.limit_lock_waits(LOCK_SECONDS)
            group = await self._decide_all(writer, submissions, skip_locked=skip_locked)
            tried.append(group)
            return group

        # Every command has a key, so deciding a group again is safe.
        bucket = submissions[0].bucket
        try:
            return await self._database.write(decide_all, bucket=bucket, is_repeatable=True, is_group=True)
        except DatabaseUnavailable:
            _note_tried(tried)
            raise

    async def _decide_all(
        self,
        writer: Writer,
        submissions: Sequence[Submission],
        *,
        skip_locked: bool,
    ) -> Group:
        """Decide the submissions, and write what they come to.

        It starts from the rows, because it may run again after a rollback.
        """
        names = {command.meter for submission in submissions for command in submission.commands}
        ids = await self._ids_of(writer, names)
        rows = await billing_meters.lock(writer, sorted(ids.values()), skip_locked=skip_locked)
        missing = {name for name, id_ in ids.items() if id_ not in rows}
        if missing and not (skip_locked and writer.dialect == "postgresql"):
            # Nobody holds them: what is remembered is gone, as after a backup was restored.
            for name in missing:
                self._ids.pop(name, None)
            ids = await self._ids_of(writer, names)
            rows = await billing_meters.lock(writer, sorted(ids.values()))
            missing.clear()
        now = self._clock()
        group = Group({id_: LockedMeter(row, row, max(now, row.updated_at)) for id_, row in rows.items()})
        deciding: list[Submission] = []
        for submission in submissions:
            is_locked = missing and any(command.meter in missing for command in submission.commands)
            (group.locked if is_locked else deciding).append(submission)
        commands = [(ids.get(each.meter), each) for part in deciding for each in part.commands]
        await look_up(writer, group.meters, commands, self.alerts_of_workspaces)
        began = perf_counter_ns()
        for submission in deciding:
            group.decide(submission, ids)
            # What was due of its meters may have been much.
            if perf_counter_ns() - began > HOLD_UP_NS:
                await asyncio.sleep(0)
                began = perf_counter_ns()
        await write(writer, group)
        return group

    async def _ids_of(self, writer: Writer, names: Collection[MeterName]) -> dict[MeterName, str]:
        """Return the ids of those of the meters that exist."""
        ids = {name: id_ for name in names if (id_ := self._ids.get(name)) is not None}
        if len(ids) < len(names):
            found = await billing_meters.ids_by_names(writer, [name for name in names if name not in ids])
            if len(self._ids) + len(found) > MAX_NAMES:
                self._ids.clear()
            self._ids.update(found)
            ids.update(found)
        return ids


def _note_tried(groups: list[Group]) -> None:
    """Note with each submission what these groups were about to write of it, and let them go."""
    for group in groups:
        for submission, results in group.decided:
            submission.tried += [
                each.entry
                for each in results
                if isinstance(each, Decision) and each.entry is not None and not each.replayed
            ]
    groups.clear()


def _fail(submission: Submission, error: Exception) -> None:
    if not submission.answer.done():
        submission.answer.set_exception(error)
