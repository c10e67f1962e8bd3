"""The one writer of meters: concurrent commands of all requests are decided in groups, one transaction a group.

While one group commits, the next one gathers; there is no timer, so a lone command never waits. A group is decided in
this order: lock its meters, look up what the commands' keys have done already, decide each command in order of arrival,
then one update of the meters, one upsert of the usage days, one insert of the entries. Looking up before the lock would
let two processes both find nothing, and one group would die of the ledger's unique key. Every caller gets its own
answer after the commit.

On PostgreSQL a meter may be locked by another gateway, which may have been stopped, or by a human. The first lane skips
such meters, and their commands wait in the second lane, so that they hold up nobody else's.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from time import perf_counter_ns
from typing import Protocol

from resolvers.bounds import DEFAULT_BOUNDS
from resolvers.errors import BillingMeterNotFound, LimitRefusal, Refusal, Unavailable
from resolvers.meters.commands import Command, Decision, Known
from resolvers.meters.lanes import Lane, Result, Submission
from resolvers.observation import current
from storage import billing_meters, ledger, usage
from storage.billing_meters import BillingMeterRow, MeterName
from storage.engine.database import Database, DatabaseUnavailable, LockTimeout, Outcome
from storage.engine.failures import outages
from storage.engine.transactions import Writer
from storage.ledger import LedgerEntryKind, LedgerEntryRow, LedgerKey

_log = logging.getLogger(__name__)

#: How long the queue is given to be finished when the writer closes.
CLOSE_SECONDS = 2

#: How many names of meters have their ids remembered.
MAX_NAMES = 100_000

#: How long the second lane waits for the meters of one submission before it tries the others again.
LOCK_SECONDS = 0.1

_USAGE, _VOID = LedgerEntryKind.USAGE, LedgerEntryKind.VOID

#: What an entry's amount adds to its usage day, by the entry's kind: it is multiplied by this.
_ON_DAY = {_USAGE: 1, _VOID: -1}


class MeterObserver(Protocol):
    """What is notified of every group."""

    def decided(
        self, commands: Sequence[Command], results: Sequence[Result], *, waits_ns: Sequence[int], took_ns: int
    ) -> None:
        """Note that a group is committed: its commands, the result of each, how long each submission waited for it."""

    def failed(self, commands: Sequence[Command]) -> None:
        """Note that commands were not carried out, because the database was out of reach or the queue full."""


@dataclass(slots=True)
class _Meter:
    """A meter that the transaction has locked, while its commands are decided.

    `now` is when they are decided: never before the meter's newest entry, whatever other gateways' clocks say.
    """

    before: BillingMeterRow
    meter: BillingMeterRow
    now: datetime
    known: Known = field(default_factory=Known)


class _Group:
    """The submissions of one transaction: the results of those that it decides, and those whose meters are `locked`."""

    def __init__(self, meters: dict[str, _Meter]) -> None:
        self.meters = meters
        self.written: list[LedgerEntryRow] = []
        self.decided: list[tuple[Submission, list[Result]]] = []
        self.locked: list[Submission] = []

    def decide(self, submission: Submission, ids: Mapping[MeterName, str]) -> None:
        """Decide the commands of a submission after those before it."""
        own = {(entry.meter_id, entry.seq): entry for entry in submission.tried}
        results = [self._decide(command, ids.get(command.meter), own) for command in submission.commands]
        self.decided.append((submission, results))

    def _decide(self, command: Command, meter_id: str | None, own: dict[tuple[str, int], LedgerEntryRow]) -> Result:
        if meter_id is None:
            return BillingMeterNotFound(command.meter.workspace_id, command.meter.external_meter_id)
        of = self.meters[meter_id]
        try:
            decision = command.decide(of.meter, of.known, of.now)
        except Refusal as refusal:
            # Its traceback knows the group, and would keep all of it in memory.
            return refusal.with_traceback(None)
        entry = decision.entry
        if entry is None:
            return decision
        if decision.replayed:
            is_own = own.pop((meter_id, entry.seq), None) == entry
            return decision._replace(replayed=False) if is_own else decision
        of.meter = decision.billing_meter
        of.known.add(entry)
        self.written.append(entry)
        return decision

    def as_committed(self, result: Result) -> Result:
        """Return the result with its meter as it is after the group's commit."""
        if isinstance(result, Decision):
            return result._replace(billing_meter=self.meters[result.billing_meter.id].meter)
        if isinstance(result, LimitRefusal):
            result.billing_meter = self.meters[result.billing_meter.id].meter
        return result


class MeterWriter:
    """Decides the commands of one process on one database."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        observer: MeterObserver | None = None,
        *,
        max_pending: int = DEFAULT_BOUNDS.waiting_events,
    ) -> None:
        self._database = database
        self._clock = clock
        self._observer = observer
        self._max_pending = max_pending
        self._first = Lane(self._answer_first)
        self._second = Lane(self._answer_second)
        self._closed = self._given_up = False
        self._ids: dict[MeterName, str] = {}

    @property
    def pending(self) -> int:
        """How many commands wait for a group."""
        return self._first.pending.total() + self._second.pending.total()

    async def submit(self, commands: Sequence[Command]) -> list[Result]:
        """Decide the commands, at least one, in one transaction, in their order; return their results once committed.

        A refused command is a `Refusal` among the results, and leaves the others alone.

        The commands are one organization's, whose several submissions may have half of the queue: there is room for
        others.

        Raises `Unavailable`: `NOT_WRITTEN` when the queue or the organization's part of it is full, when it is closed,
        or the database or a meter's lock is out of reach; `UNKNOWN` when the answer to COMMIT was lost and the database
        did not come back in time.
        """
        submission = Submission(commands, current.get(), asyncio.get_running_loop().create_future(), perf_counter_ns())
        own = self._first.pending[submission.org_id] + self._second.pending[submission.org_id]
        is_greedy = own > 0 and own + len(commands) > self._max_pending // 2
        if self._closed or is_greedy or self.pending + len(commands) > self._max_pending:
            self._fail([submission])
        else:
            self._first.add(submission)
        return await submission.answer

    async def close(self) -> None:
        """Refuse what comes from now on, and finish what is queued, except what a lost database or a lock holds up."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while running := self._first.running or self._second.running:
                    await asyncio.wait({running})
        self._given_up = True
        for lane in (self._first, self._second):
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
        self._wait(locked)

    def _wait(self, locked: Sequence[Submission]) -> None:
        """Have the second lane wait for the submissions' meters, for as long as a write may wait."""
        overdue = perf_counter_ns() - int(self._database.wait_seconds * 1_000_000_000)
        for submission in locked:
            if self._given_up or submission.queued_at <= overdue:
                outages.log(LockTimeout())
                self._fail([submission])
            else:
                self._second.add(submission)

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

    def _give(self, group: _Group, began: int) -> None:
        """Give each submission that was decided its results."""
        ended = perf_counter_ns()
        answered = [(each, list(map(group.as_committed, results))) for each, results in group.decided]
        for submission, results in answered:
            if submission.observation.steps is not None:
                submission.observation.steps += [("queue", submission.queued_at, began), ("group", began, ended)]
            if not submission.answer.done():
                submission.answer.set_result(results)
        # Whatever the observer does, all are answered.
        if self._observer is not None and answered:
            self._observer.decided(
                [command for submission, _ in answered for command in submission.commands],
                [result for _, results in answered for result in results],
                waits_ns=[began - submission.queued_at for submission, _ in answered],
                took_ns=ended - began,
            )

    def _fail(self, submissions: Sequence[Submission], outcome: Outcome = Outcome.NOT_WRITTEN) -> None:
        for submission in submissions:
            _fail(submission, Unavailable(submission.outcome if outcome is Outcome.NOT_WRITTEN else outcome))
            if self._observer is not None:
                self._observer.failed(submission.commands)

    async def _carry_out(self, submissions: Sequence[Submission], *, skip_locked: bool) -> _Group:
        """Decide the submissions in one transaction. Raises `DatabaseUnavailable`; `LockTimeout` for locked meters."""

        async def decide_all(writer: Writer) -> _Group:
            if not skip_locked:
                await writer.limit_lock_waits(LOCK_SECONDS)
            group = await self._decide_all(writer, submissions, skip_locked=skip_locked)
            for submission, results in group.decided:
                submission.tried += [
                    each.entry
                    for each in results
                    if isinstance(each, Decision) and each.entry is not None and not each.replayed
                ]
            return group

        # Every command has a key, so deciding a group again is safe.
        return await self._database.write(decide_all, is_repeatable=True, is_group=True)

    async def _decide_all(
        self,
        writer: Writer,
        submissions: Sequence[Submission],
        *,
        skip_locked: bool,
    ) -> _Group:
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
        group = _Group({id_: _Meter(row, row, max(now, row.updated_at)) for id_, row in rows.items()})
        deciding: list[Submission] = []
        for submission in submissions:
            is_locked = missing and any(command.meter in missing for command in submission.commands)
            (group.locked if is_locked else deciding).append(submission)
        await _look_up(writer, group, [(ids.get(each.meter), each) for part in deciding for each in part.commands])
        for submission in deciding:
            group.decide(submission, ids)
        if group.written:
            meters = [group.meters[id_] for id_ in sorted({entry.meter_id for entry in group.written})]
            await billing_meters.update_meters(writer, [(each.before, each.meter) for each in meters])
            await write_entries(writer, group.written)
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


async def _look_up(writer: Writer, group: _Group, commands: Sequence[tuple[str | None, Command]]) -> None:
    """Read what the ledgers of the locked meters hold already of what the commands name."""
    named = [(meter_id, command.keys) for meter_id, command in commands if meter_id is not None]
    wanted = [LedgerKey(meter_id, kind, key) for meter_id, keys in named for kind, key in keys]
    if not wanted:
        return
    entries = await ledger.by_keys(writer, wanted)
    for (meter_id, kind, key), entry in entries.items():
        group.meters[meter_id].known.entries[kind, key] = entry
    if _VOID in {kind for _, kind, _ in wanted}:
        usages = [(entry.meter_id, entry.seq) for entry in entries.values() if entry.kind is _USAGE]
        for (meter_id, seq), credits_ in (await ledger.voided_credits(writer, usages)).items():
            group.meters[meter_id].known.voided_credits[seq] = credits_


async def write_entries(writer: Writer, entries: Sequence[LedgerEntryRow]) -> None:
    """Write entries to the ledgers of meters that the transaction has locked or made, and what they add to usage days.

    Whatever changes a meter is written here, except by `tollgate copy`.
    """
    days: dict[tuple[str, date, str], int] = {}
    for entry in entries:
        sign = _ON_DAY.get(entry.kind)
        if sign is not None:
            assert entry.day is not None  # noqa: S101  # Such an entry has its day and name.
            assert entry.usage_name is not None  # noqa: S101  # An entry that has a day has a usage name.
            key = (entry.meter_id, entry.day, entry.usage_name)
            days[key] = days.get(key, 0) + sign * entry.amount
    if days:
        await usage.add(writer, days)
    await ledger.insert_entries(writer, entries)


def _fail(submission: Submission, error: Exception) -> None:
    if not submission.answer.done():
        submission.answer.set_exception(error)
