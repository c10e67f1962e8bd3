"""The figures that Prometheus reads at `/metrics`.

A request only adds to numbers in memory; the library is asked when somebody reads them. Several processes leave theirs
in files of one folder, each once a second, and whichever of them is asked adds all up.
"""

import asyncio
import logging
import os
import secrets
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from gateway.telemetry.figures import (
    AWAITED,
    BUGS,
    CONNECTIONS,
    CREDIT_AMOUNTS,
    CREDIT_ENTRIES,
    CREDITS,
    EVENTS,
    FIGURES,
    GROUP_SECONDS,
    GROUPS,
    IN_FLIGHT,
    LATENCY,
    MAX_CONNECTIONS,
    OLDEST_WEBHOOK,
    OVERDUE,
    PENDING_WEBHOOKS,
    REFUSALS,
    REQUESTS,
    STATEMENTS,
    WAITING,
    WAITS,
    WEBHOOKS,
    Figure,
    Values,
)
from gateway.telemetry.logs import PROBES
from gateway.telemetry.processes import Collected, left_in, start_time
from gateway.telemetry.requests import INTERNAL_SERVER_ERROR, OK, REASONS, Request, Statements
from resolvers.errors import (
    AmountOutOfRange,
    BillingMeterNotFound,
    HoldNotFound,
    HoldNotOpen,
    IdempotencyConflict,
    InvalidInput,
    LimitRefusal,
    Refusal,
)
from resolvers.meters.holds import CommitHold
from resolvers.meters.record_usage import RecordUsage
from resolvers.rules.commands import Command, Decision
from storage.engine.failures import description
from storage.meters.ledger import LedgerEntryKind, LedgerEntryRow

if TYPE_CHECKING:
    from gateway.services import Services

_log = logging.getLogger(__name__)

#: How often a process leaves its figures for the others.
LEAVE_SECONDS = 1.0

#: How many operations that are no trusted documents have figures of their own; callers name them as they like.
MAX_OPERATIONS = 100

#: What stands for an operation; none of GraphQL's can be called so.
ANONYMOUS, OTHER, NONE = "(anonymous)", "(other)", "(none)"

_BILLION = 1_000_000_000

#: The kinds of entries that are about grants and holds and no usage.
OF_CREDITS = frozenset(
    (
        *(LedgerEntryKind.GRANT, LedgerEntryKind.REVOCATION, LedgerEntryKind.EXPIRY),
        *(LedgerEntryKind.HOLD, LedgerEntryKind.RELEASE, LedgerEntryKind.HOLD_EXPIRY),
    )
)

#: What may become of a usage event, besides a refusal, which is counted by its code.
_RESULTS = ("ACCEPTED", "PARTIAL", "REPLAYED", "CHECKED", "UNAVAILABLE")


class Metrics:
    """Adds up what the process did. `operations` are names that have figures of their own, however many there are."""

    def __init__(self, *, folder: str | None, operations: Collection[str], paths: Collection[str]) -> None:
        self._paths = frozenset(paths)
        self._operations = set(operations)
        self._most_operations = len(self._operations) + MAX_OPERATIONS
        self._values: dict[str, Values] = {figure.name: {} for figure in FIGURES}
        self._read: Callable[[], None] = lambda: None
        #: How many requests for these figures are in flight; they are not counted among the others.
        self._asking = 0
        # Two processes may have one number, after each other.
        self._file = Path(folder, f"{os.getpid()}-{secrets.token_hex(4)}.json") if folder is not None else None
        for figure in (GROUPS, GROUP_SECONDS, WAITS):
            self._values[figure.name][()] = figure.zero()
        # What is there from the beginning has a rate from the first time that it happens.
        self._values[BUGS.name][()] = BUGS.zero()
        for reason in REASONS:
            self._values[REFUSALS.name][reason,] = [0.0]
        for result in (*_RESULTS, *sorted(refusal.code for refusal in _refusals())):
            self._values[EVENTS.name][result,] = [0.0]
        for result in ("ACCEPTED", "REFUSED"):
            self._values[CREDITS.name][result,] = [0.0]
        for figure in (CREDIT_ENTRIES, CREDIT_AMOUNTS):
            self._values[figure.name] = {(kind.name,): [0.0] for kind in OF_CREDITS}

    def answered(self, request: Request) -> None:
        """Count a request that was answered."""
        if request.refusal is not None:
            self._add(REFUSALS, (request.refusal,), 1)
        if request.is_of_server or (request.path in PROBES and request.outcome == OK):
            return
        operation = self._operation_of(request)
        self._add(REQUESTS, (operation, request.outcome or OK), 1)
        if request.outcome == INTERNAL_SERVER_ERROR:
            self._add(BUGS, (), 1)
        self._observe(LATENCY, (operation,), request.took_ns / _BILLION)

    def decided(
        self,
        commands: Sequence[Command],
        results: Sequence[Decision | Refusal],
        *,
        entries: Sequence[LedgerEntryRow],
        waits_ns: Sequence[int],
        took_ns: int,
    ) -> None:
        """Count a group of commands that is committed."""
        self._observe(GROUPS, (), len(commands))
        self._observe(GROUP_SECONDS, (), took_ns / _BILLION)
        for wait_ns in waits_ns:
            self._observe(WAITS, (), wait_ns / _BILLION)
        accepted = refused = 0
        for entry in entries:
            if entry.kind in OF_CREDITS:
                self._add(CREDIT_ENTRIES, (entry.kind.name,), 1)
                self._add(CREDIT_AMOUNTS, (entry.kind.name,), entry.amount)
        for command, result in zip(commands, results, strict=True):
            event = _usage_of(command)
            if event is None:
                continue
            if isinstance(result, Refusal):
                word = result.code
                if isinstance(result, LimitRefusal):
                    refused += event.amount
            elif result.entry is None:
                word = "CHECKED"
            elif result.replayed:
                word = "REPLAYED"
            else:
                word = "PARTIAL" if result.refused else "ACCEPTED"
                accepted += result.accepted
                refused += result.refused
            self._add(EVENTS, (word,), 1)
        self._add(CREDITS, ("ACCEPTED",), accepted)
        self._add(CREDITS, ("REFUSED",), refused)

    def failed(self, commands: Sequence[Command]) -> None:
        """Count the usage events among commands that were not carried out."""
        self._add(EVENTS, ("UNAVAILABLE",), sum(_usage_of(command) is not None for command in commands))

    @asynccontextmanager
    async def watching(
        self, services: "Services", *, statements: Statements, in_flight: Callable[[], int]
    ) -> "AsyncIterator[None]":
        """Read the figures of the moment from these, and leave all figures for the other processes, if any."""

        def read() -> None:
            self._set(STATEMENTS, (), statements.count)
            self._set(IN_FLIGHT, (), in_flight() - self._asking)
            self._set(WAITING, (), services.meter_writer.pending)
            self._set(OVERDUE, (), services.overdue_meters)
            webhooks = services.webhook_figures
            for result, count in webhooks.outcomes.items():
                self._set(WEBHOOKS, (result,), count)
            self._set(PENDING_WEBHOOKS, (), webhooks.pending)
            self._set(OLDEST_WEBHOOK, (), webhooks.oldest_seconds)
            for use, state in services.database.connections.items():
                self._set(CONNECTIONS, (use,), state.in_use)
                self._set(AWAITED, (use,), state.awaited)
                self._set(MAX_CONNECTIONS, (use,), state.max_open)

        self._read = read
        leaving = asyncio.create_task(self._leave_again_and_again()) if self._file is not None else None
        try:
            yield
        finally:
            if leaving is not None:
                leaving.cancel()
                with suppress(asyncio.CancelledError):
                    await leaving
                self._leave()

    async def text(self) -> bytes:
        """Return all figures in the text format of Prometheus."""
        self._asking += 1
        try:
            if self._file is not None:
                # What is reported is reported again, also if this process is killed the next moment.
                self._leave()
            else:
                self._read()
            own = orjson.loads(self._dump())
            return await asyncio.to_thread(self._text, own)
        finally:
            self._asking -= 1

    def _operation_of(self, request: Request) -> str:
        if request.kind is None:
            return f"{request.method} {request.path}" if request.path in self._paths else NONE
        name = request.name()
        if name is None:
            return ANONYMOUS
        if name not in self._operations:
            if len(self._operations) >= self._most_operations:
                return OTHER
            self._operations.add(name)
        return name

    def _add(self, figure: Figure, labels: tuple[str, ...], value: float) -> None:
        values = self._values[figure.name]
        if labels in values:
            values[labels][0] += value
        else:
            values[labels] = [float(value)]  # Prometheus knows no other numbers.

    def _set(self, figure: Figure, labels: tuple[str, ...], value: float) -> None:
        self._values[figure.name][labels] = [float(value)]  # Prometheus knows no other numbers.

    def _observe(self, figure: Figure, labels: tuple[str, ...], value: float) -> None:
        values = self._values[figure.name].get(labels)
        if values is None:
            values = self._values[figure.name][labels] = figure.zero()
        values[bisect_left(figure.bounds, value)] += 1
        values[-1] += value

    async def _leave_again_and_again(self) -> None:
        while True:
            self._leave()
            await asyncio.sleep(LEAVE_SECONDS)

    def _leave(self) -> None:
        """Write the figures to the process's file, which others find whole or not at all."""
        assert self._file is not None  # noqa: S101  # It is called where there is one.
        self._read()
        written = self._file.with_suffix(".new")
        try:
            written.write_bytes(self._dump())
            written.replace(self._file)
        except OSError as error:
            # The folder is gone or full. Serving goes on without.
            _log.warning("The figures for /metrics cannot be written: %s", description(error))

    def _dump(self) -> bytes:
        values = {name: [(labels, each) for labels, each in values.items()] for name, values in self._values.items()}
        pid = os.getpid()
        return orjson.dumps({"pid": pid, "started": start_time(pid), "values": values})

    def _text(self, own: dict[str, Any]) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collected([own, *self._left_by_others()]))
        return generate_latest(registry)

    def _left_by_others(self) -> Iterator[dict[str, Any]]:
        if self._file is None:
            return
        for file in sorted(self._file.parent.glob("*.json")):
            if file != self._file:
                try:
                    yield left_in(file)
                except (OSError, ValueError, LookupError, TypeError, AttributeError):
                    _log.warning("A file in the folder of /metrics was not left by a gateway of this release: %s", file)


def _usage_of(command: Command) -> RecordUsage | None:
    """Return the usage event that a command records; a commit of 0 is a release."""
    if isinstance(command, CommitHold):
        return command.usage if command.usage.amount else None
    return command if isinstance(command, RecordUsage) else None


def _refusals() -> Iterator[type[Refusal]]:
    """Yield the refusals that a usage event may come to."""
    yield from (
        BillingMeterNotFound,
        IdempotencyConflict,
        InvalidInput,
        AmountOutOfRange,
        HoldNotFound,
        HoldNotOpen,
        *LimitRefusal.__subclasses__(),
    )
