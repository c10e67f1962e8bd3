"""The queues of commands: each submission waits in a lane for the transaction that decides it.

Organizations take turns, so that no one of them makes the others wait for all that it has queued.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field

from resolvers.errors import Refusal
from resolvers.observation import Observation
from resolvers.rules.commands import Command, Decision
from storage.engine.database import Outcome
from storage.meters.ledger import LedgerEntryRow

#: How many commands one transaction decides; one submission may be larger, and then has it alone.
MAX_IN_GROUP = 1_000

#: How long a lane waits, at most, for a group of another one, in seconds: a server may have stopped without a word.
CROSSING_SECONDS = 0.5

Result = Decision | Refusal


@dataclass(slots=True, eq=False)
class Submission:
    """Commands that one transaction decides, and the future of their results."""

    commands: Sequence[Command]
    observation: Observation
    answer: asyncio.Future[list[Result]]
    queued_at: int
    #: Where the meters of all its commands lie.
    bucket: int = 0
    #: The server where that bucket lies, if there are several.
    server: object = None
    #: What was written of them by attempts whose COMMIT was not answered: found again, it is no replay.
    tried: list[LedgerEntryRow] = field(default_factory=list)

    @property
    def org_id(self) -> str:
        """The organization whose commands they are."""
        return self.commands[0].meter.org_id

    @property
    def outcome(self) -> Outcome:
        """What is known of them while they wait for a group."""
        return Outcome.UNKNOWN if self.tried else Outcome.NOT_WRITTEN


class Pending:
    """How many commands wait for a group, in all lanes together: of all organizations, and of each that has any."""

    def __init__(self) -> None:
        self.total = 0
        self.of_org: dict[str, int] = {}

    def add(self, org_id: str, count: int) -> None:
        """Count so many more of an organization, or fewer."""
        self.total += count
        left = self.of_org.get(org_id, 0) + count
        if left:
            self.of_org[org_id] = left
        else:
            del self.of_org[org_id]


class Crossing:
    """What the lanes of one server share: one of them at a time has a group under way, and the others' gather more."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Wait until no other lane has a group under way, but not for long; keep the others back meanwhile."""
        has_it = False
        with suppress(TimeoutError):
            async with asyncio.timeout(CROSSING_SECONDS):
                has_it = await self._lock.acquire()
        try:
            yield
        finally:
            if has_it:
                self._lock.release()


class Lane:
    """A queue of submissions, and the task that takes one group after the other from it.

    `crossing` returns what is held while a group of this submission's server is under way.
    """

    def __init__(
        self,
        answer: Callable[[list[Submission]], Awaitable[None]],
        pending: Pending,
        crossing: Callable[[Submission], AbstractAsyncContextManager[None]],
    ) -> None:
        self._answer = answer
        self._crossing = crossing
        # By organization, each in the order of arrival; those with nothing to do are left out.
        self._queue: dict[str, deque[Submission]] = {}
        self._pending = pending
        self.running: asyncio.Task[None] | None = None

    def add(self, submission: Submission) -> None:
        """Queue a submission, and see that it is taken up."""
        self._queue.setdefault(submission.org_id, deque()).append(submission)
        self._pending.add(submission.org_id, len(submission.commands))
        if self.running is None:
            # In a context of its own: groups belong to no request, also not to the one that wakes the lane.
            self.running = asyncio.create_task(self._run(), context=Context())

    async def _run(self) -> None:
        try:
            while self._queue:
                async with self._crossing(next(iter(self._queue.values()))[0]):
                    # More has come meanwhile, or all was given up.
                    if group := self.take():
                        await self._answer(group)
        finally:
            self.running = None

    def take(self) -> list[Submission]:
        """Take submissions off the queue, of each organization one in turn, until no more of the next one's fit."""
        group: list[Submission] = []
        size = 0
        while self._queue:
            org_id, submissions = next(iter(self._queue.items()))
            count = len(submissions[0].commands)
            if group and size + count > MAX_IN_GROUP:
                break
            group.append(submissions.popleft())
            size += count
            self._pending.add(org_id, -count)
            # The next turn is another's.
            del self._queue[org_id]
            if submissions:
                self._queue[org_id] = submissions
        return group
