"""The figures that Prometheus reads at `/metrics`.

A request only adds to numbers in memory; the library is asked when somebody reads them. Several processes leave theirs
in files of one folder, each once a second, and whichever of them is asked adds all up.
"""

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from gateway.http.messages import HTTPProblem
from gateway.telemetry.logs import PROBES
from gateway.telemetry.requests import INTERNAL_SERVER_ERROR, OK, REASONS, Request, Statements
from resolvers.errors import (
    AmountOutOfRange,
    BillingMeterNotFound,
    IdempotencyConflict,
    InvalidInput,
    LimitRefusal,
    Refusal,
)
from resolvers.meters.commands import Command, Decision
from resolvers.meters.record_usage import RecordUsage
from storage.engine.failures import description

if TYPE_CHECKING:
    from gateway.services import Services

_log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

#: How often a process leaves its figures for the others.
LEAVE_SECONDS = 1.0

#: How many operations that are no trusted documents have figures of their own; callers name them as they like.
MOST_OPERATIONS = 100

#: What stands for an operation; none of GraphQL's can be called so.
ANONYMOUS, OTHER, NONE = "(anonymous)", "(other)", "(none)"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_EVENTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_000.0)

_BILLION = 1_000_000_000


class Figure(NamedTuple):
    """A figure: its name and what it tells, and of what it is told apart by.

    A `counter` only grows; a `gauge` is of the moment. A `histogram` tells how often a quantity was at most each of the
    bounds; its last two values are the rest and the sum.
    """

    kind: str
    name: str
    what: str
    labels: Sequence[str] = ()
    bounds: Sequence[float] = ()

    def zero(self) -> list[float]:
        """Return its values before anything happened."""
        return [0.0] * (len(self.bounds) + 2 if self.kind == "histogram" else 1)

    def family(self, values: "Values") -> Metric:
        """Return it as the library writes it."""
        told = sorted(values.items())
        if self.kind == "histogram":
            histogram = HistogramMetricFamily(self.name, self.what, labels=self.labels)
            for labels, (*counts, total) in told:
                bounds = (*map(str, self.bounds), "+Inf")
                histogram.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
            return histogram
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = kind(self.name, self.what, labels=self.labels)
        for labels, (value,) in told:
            family.add_metric(labels, value)
        return family


#: What a figure is, by the values of its labels.
Values = dict[tuple[str, ...], list[float]]

REQUESTS = Figure("counter", "tollgate_requests", "Requests that were answered.", labels=("operation", "outcome"))
BUGS = Figure("counter", "tollgate_bugs", "Requests whose outcome is INTERNAL_SERVER_ERROR.")
LATENCY = Figure(
    "histogram", "tollgate_request_duration_seconds", "How long requests took.", ("operation",), bounds=_SECONDS
)
REFUSALS = Figure("counter", "tollgate_refusals", "What the server refused by itself, by its reason.", ("reason",))
IN_FLIGHT = Figure("gauge", "tollgate_requests_in_flight", "Requests that are being answered, /metrics aside.")
STATEMENTS = Figure("counter", "tollgate_sql_statements", "SQL statements, those of transactions aside.")
CONNECTIONS = Figure("gauge", "tollgate_database_connections_in_use", "Database connections in use.", ("use",))
AWAITED = Figure("gauge", "tollgate_database_connections_awaited", "Uses that wait for a connection.", ("use",))
MOST_CONNECTIONS = Figure("gauge", "tollgate_database_connections_max", "Connections that may be open.", ("use",))
GROUPS = Figure("histogram", "tollgate_usage_group_events", "Usage events a transaction.", bounds=_EVENTS)
GROUP_SECONDS = Figure(
    "histogram", "tollgate_usage_group_duration_seconds", "How long such a transaction took.", bounds=_SECONDS
)
WAITS = Figure("histogram", "tollgate_usage_wait_seconds", "How long requests waited for it to begin.", bounds=_SECONDS)
WAITING = Figure("gauge", "tollgate_usage_waiting_events", "Usage events that wait for their transaction to begin.")
EVENTS = Figure("counter", "tollgate_usage_events", "Usage events, by what became of them.", ("result",))
CREDITS = Figure("counter", "tollgate_usage_credits", "Credits that usage events asked for.", ("result",))

FIGURES = (
    REQUESTS,
    BUGS,
    LATENCY,
    REFUSALS,
    IN_FLIGHT,
    STATEMENTS,
    CONNECTIONS,
    AWAITED,
    MOST_CONNECTIONS,
    GROUPS,
    GROUP_SECONDS,
    WAITS,
    WAITING,
    EVENTS,
    CREDITS,
)

#: What may become of a usage event, besides a refusal, which is told by its code.
_RESULTS = ("ACCEPTED", "PARTIAL", "REPLAYED", "CHECKED", "UNAVAILABLE")


class Metrics:
    """Adds up what the process did. `operations` are names that are told apart however many others there are."""

    def __init__(self, *, token: str, folder: str | None, operations: Collection[str], paths: Collection[str]) -> None:
        self._token = _digest(token)
        self._paths = frozenset(paths)
        self._operations = set(operations)
        self._most_operations = len(self._operations) + MOST_OPERATIONS
        self._values: dict[str, Values] = {figure.name: {} for figure in FIGURES}
        self._read: Callable[[], None] = lambda: None
        #: How many wait for these figures. They are in flight for a moment, which would be told of the second after it.
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

    def told(self, request: Request) -> None:
        """Hear of a request that was answered."""
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
        waits_ns: Sequence[int],
        took_ns: int,
    ) -> None:
        """Count a group of commands that is committed."""
        self._observe(GROUPS, (), len(commands))
        self._observe(GROUP_SECONDS, (), took_ns / _BILLION)
        for wait_ns in waits_ns:
            self._observe(WAITS, (), wait_ns / _BILLION)
        accepted = refused = 0
        for command, result in zip(commands, results, strict=True):
            if not isinstance(command, RecordUsage):
                continue
            if isinstance(result, Refusal):
                word = result.code
                if isinstance(result, LimitRefusal):
                    refused += command.amount
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
        self._add(EVENTS, ("UNAVAILABLE",), sum(isinstance(command, RecordUsage) for command in commands))

    @asynccontextmanager
    async def watching(
        self, services: "Services", *, statements: Statements, in_flight: Callable[[], int]
    ) -> "AsyncIterator[None]":
        """Read the figures of the moment from these, and leave all figures for the other processes, if any."""

        def read() -> None:
            self._set(STATEMENTS, (), statements.count)
            self._set(IN_FLIGHT, (), in_flight() - self._asking)
            self._set(WAITING, (), services.meter_writer.pending)
            for use, state in services.database.connections.items():
                self._set(CONNECTIONS, (use,), state.in_use)
                self._set(AWAITED, (use,), state.awaited)
                self._set(MOST_CONNECTIONS, (use,), state.most)

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

    async def answer(self, request: HTTPRequest) -> Response:
        """Answer the figures, to whoever holds the token."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(token.strip()), self._token):
            raise HTTPProblem(
                401,
                "Send the header `Authorization: Bearer TOKEN`, with the token of the metrics.",
                code="UNAUTHENTICATED",
                headers={"www-authenticate": "Bearer"},
            )
        self._asking += 1
        try:
            if self._file is not None:
                # What is told is told again, also if this process is killed the next moment.
                self._leave()
            else:
                self._read()
            own = orjson.loads(self._dump())
            told = await asyncio.to_thread(self._text, own)
        finally:
            self._asking -= 1
        return Response(told, headers={"content-type": CONTENT_TYPE})

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
        return orjson.dumps({"pid": pid, "started": _started(pid), "values": values})

    def _text(self, own: dict[str, Any]) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected([own, *self._left_by_others()]))
        return generate_latest(registry)

    def _left_by_others(self) -> Iterator[dict[str, Any]]:
        if self._file is None:
            return
        for file in sorted(self._file.parent.glob("*.json")):
            if file != self._file:
                try:
                    yield _left_in(file)
                except (OSError, ValueError, LookupError, TypeError, AttributeError):
                    _log.warning("A file in the folder of /metrics was not left by a gateway of this release: %s", file)


class _Collected(Collector):
    """What some processes left, added up. Of those that have ended, only what they counted."""

    def __init__(self, left: Sequence[dict[str, Any]]) -> None:
        self._left = left

    def collect(self) -> Iterator[Metric]:
        living = [_is_alive(each["pid"], each["started"]) for each in self._left]
        for figure in FIGURES:
            total: Values = {}
            for each, is_alive in zip(self._left, living, strict=True):
                if figure.kind != "gauge" or is_alive:
                    for labels, values in each["values"].get(figure.name, ()):
                        so_far = total.get(tuple(labels), figure.zero())
                        total[tuple(labels)] = [one + other for one, other in zip(so_far, values, strict=True)]
            yield figure.family(total)
        yield Figure("gauge", "tollgate_info", "The release that runs.", ("version",)).family(
            {(version("tollgate"),): [1.0]}
        )
        yield from _of_processes([each["pid"] for each, is_alive in zip(self._left, living, strict=True) if is_alive])


def _of_processes(pids: Sequence[int]) -> Iterator[Metric]:
    """Yield the memory, processor time and open files of each process, as the library does of one."""
    metrics: dict[str, Metric] = {}
    for pid in sorted(set(pids)):
        for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            told = metrics.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                told.add_sample(sample.name, {**sample.labels, "pid": str(pid)}, sample.value)
    yield from metrics.values()


def _left_in(file: Path) -> dict[str, Any]:
    """Return what a process left there. Raises what reading anything else comes to."""
    left: dict[str, Any] = orjson.loads(file.read_bytes())
    figures_fit = all(
        len(labels) == len(figure.labels) and len(values) == len(figure.zero())
        for figure in FIGURES
        for labels, values in left["values"].get(figure.name, ())
    )
    if not (figures_fit and isinstance(left["pid"], int) and isinstance(left["started"], str)):
        raise ValueError(file)
    return left


def _started(pid: int) -> str:
    """Return when the process began, as Linux counts it; a number that is free again may go to another process.

    One that has ended, and whose parent has not yet seen it, has begun no more.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return rest[18] if state not in {"Z", "X"} else ""


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is there, and may not be asked.
    return _started(pid) == started


def _refusals() -> Iterator[type[Refusal]]:
    """Yield the refusals that a usage event may come to."""
    yield from (
        BillingMeterNotFound,
        IdempotencyConflict,
        InvalidInput,
        AmountOutOfRange,
        *LimitRefusal.__subclasses__(),
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
