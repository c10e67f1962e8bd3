"""The load generator: HTTP/1.1 over kept connections, in a process of its own that costs little a request.

Its argument is one `Load` as JSON, and it writes one `Measured` to standard output. Every answer is checked;
the first wrong one ends the run.
"""

import asyncio
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import uvloop

from benchmarks.scenario import METERS_A_CUSTOMER

#: The units of `/proc/PID/stat`.
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

#: However slow the answers are, so many are measured, unless one takes longer than that.
LEAST_ANSWERS = 5
LONGEST_SECONDS = 60


@dataclass(frozen=True)
class Part:
    """One of the requests that a client sends in turn: its body is `head`, its items with commas between, `tail`."""

    path: str
    head: str
    # May have `%(meter)d`, `%(customer)d` and `%(event)s`, which are filled in anew for every item, and the same in all
    # parts.
    item: str
    tail: str
    # A successful answer has status 200, this text once an item, and no `"errors"`.
    expect: str


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send, and for how long."""

    port: int
    key: str
    parts: list[Part]
    items: int
    meters: int
    prefix: str
    clients: int
    warm_up_seconds: float
    seconds: float
    # The processes whose CPU time is measured, with their children.
    server: int
    databases: list[int]

    @classmethod
    def read(cls, text: str) -> "Load":
        """Return the load that was written as JSON."""
        values = orjson.loads(text)
        return cls(**values | {"parts": [Part(**part) for part in values["parts"]]})

    def bodies(self, chance: random.Random, numbers: Iterator[int]) -> list[str]:
        """Return the body of the next request of each part, whose events are named by the next numbers."""
        drawn = []
        for _ in range(self.items):
            meter = int(chance.random() * self.meters)
            event = f"{self.prefix}-{next(numbers)}"
            drawn.append({"meter": meter, "customer": meter // METERS_A_CUSTOMER, "event": event})
        return [part.head + ",".join([part.item % values for values in drawn]) + part.tail for part in self.parts]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it. Times are of what came after the warm-up; CPU times are in seconds."""

    # A request of each part counts as one.
    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    # What the server's processes hold in memory at the end.
    server_bytes: int
    server_cpu: float
    # Of each of the database's servers.
    database_cpus: list[float]
    client_cpu: float

    @property
    def database_cpu(self) -> float:
        """The CPU time of the database."""
        return sum(self.database_cpus)


class WrongAnswer(Exception):
    """The server did not do what was asked of it."""


class Run:
    """What the connections share."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.expects = [part.expect.encode() for part in load.parts]
        self.latencies: list[float] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: Exception | None = None
        self.next_answer = asyncio.Event()
        self.next_requests = self._requests().__next__

    def _requests(self) -> Iterator[list[bytes]]:
        load = self.load
        heads = [
            f"POST {part.path} HTTP/1.1\r\nhost: benchmark\r\nauthorization: Bearer {load.key}\r\n"
            "content-type: application/json\r\ncontent-length: %d\r\n\r\n"
            for part in load.parts
        ]
        chance, numbers = random.Random(load.prefix), itertools.count()  # noqa: S311  # Not a secret.
        while True:
            bodies = load.bodies(chance, numbers)
            yield [(head % len(body) + body).encode() for head, body in zip(heads, bodies, strict=True)]

    async def answers_for(self, seconds: float, *, at_least: int) -> None:
        """Let the connections run that long, and on to an answer, and until there are so many more answers."""
        enough = len(self.latencies) + at_least
        await asyncio.wait([self.over], timeout=seconds)
        while not self.over.done():
            self.next_answer.clear()
            await asyncio.wait_for(self.next_answer.wait(), LONGEST_SECONDS)
            if len(self.latencies) >= enough:
                return

    def check(self, answer: bytes, part: int) -> None:
        """Check one answer to a request of this part."""
        if not (
            answer.startswith(b"HTTP/1.1 200")
            and answer.count(self.expects[part]) == self.load.items
            and b'"errors"' not in answer
        ):
            self.fail(WrongAnswer(answer[:2000].decode(errors="replace")))

    def answered(self, seconds: float) -> None:
        """Keep how long it took until a request of each part was answered."""
        self.latencies.append(seconds)
        self.next_answer.set()

    def fail(self, error: Exception) -> None:
        """End the run."""
        self.error = self.error or error
        self.next_answer.set()
        if not self.over.done():
            self.over.set_result(None)


class Connection(asyncio.Protocol):
    """One client: sends the next request when the last one is answered."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._answer = b""
        self._length = 0
        self._requests: list[bytes] = []
        self._part = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Gather an answer; when it is whole, send the next request."""
        self._answer += data
        if not self._length:
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return
            start = self._answer.lower().find(b"content-length: ") + 16
            self._length = end + 4 + int(self._answer[start : self._answer.find(b"\r\n", start)])
        if len(self._answer) >= self._length:
            self._run.check(self._answer, self._part)
            self._answer = b""
            self._length = 0
            self._part += 1
            if self._part < len(self._requests):
                self._transport.write(self._requests[self._part])
            else:
                self._run.answered(time.perf_counter() - self._sent_at)
                self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that this client is gone."""
        if not self._run.over.done():
            self._run.fail(exc or WrongAnswer("the server closed a connection"))
        if not self.done.done():
            self.done.set_result(None)

    def _send(self) -> None:
        if self._run.over.done():
            self._transport.close()
            return
        self._requests, self._part = self._run.next_requests(), 0
        self._sent_at = time.perf_counter()
        self._transport.write(self._requests[0])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and its children have taken, user and system."""
    # Of the children that have ended, then of itself.
    ended = sum(int(field) for field in _stat(pid)[13:15]) / TICKS_A_SECOND
    return ended + _own_cpu_seconds(pid) + sum(cpu_seconds(child) for child in _children(pid))


def _own_cpu_seconds(pid: int) -> float:
    """Read the process's clock, as clock_getcpuclockid(3) names it: `stat` has but hundredths of a second."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:  # It has just ended, and its parent has its times.
        return 0.0


def resident_bytes(pid: int) -> int:
    """Return the memory that a process and its children have."""
    return sum(int(field) for field in _stat(pid)[21:22]) * PAGE_BYTES + sum(map(resident_bytes, _children(pid)))


def _stat(pid: int) -> list[str]:
    """Return the fields after the name; none where the process has just ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return []


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except FileNotFoundError:
        return []


async def run(load: Load) -> Measured:
    """Send the load and measure. Raises `WrongAnswer`."""
    shared = Run(load)
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(lambda: Connection(shared), "127.0.0.1", load.port))[1]
        for _ in range(load.clients)
    ]

    def usage() -> list[float]:
        databases = map(cpu_seconds, load.databases)
        return [cpu_seconds(load.server), time.process_time(), time.perf_counter(), *databases]

    await shared.answers_for(load.warm_up_seconds, at_least=1)
    shared.latencies = []
    before = usage()
    await shared.answers_for(load.seconds, at_least=LEAST_ANSWERS)
    after = usage()
    latencies = sorted(shared.latencies)
    if not shared.over.done():
        shared.over.set_result(None)
    # What was sent is still answered and checked.
    await asyncio.wait([connection.done for connection in connections], timeout=30)
    if shared.error is not None:
        raise shared.error
    server_cpu, client_cpu, seconds, *database_cpus = (end - start for start, end in zip(before, after, strict=True))
    return Measured(
        requests=len(latencies),
        seconds=seconds,
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p99_ms=latencies[len(latencies) * 99 // 100] * 1000,
        server_bytes=resident_bytes(load.server),
        server_cpu=server_cpu,
        database_cpus=database_cpus,
        client_cpu=client_cpu,
    )


def main() -> None:
    """Run one load."""
    load = Load.read(sys.argv[1])
    try:
        measured = uvloop.run(run(load))
    except (WrongAnswer, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(orjson.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
