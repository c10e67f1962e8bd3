"""Abuse: what the open internet sends, against a server that really runs.

Each hostile request is answered by a clean error within 3 seconds, or its connection is closed; meanwhile `/healthz`
answers within one. Nothing grows, and nobody's money changes. Of these two times it is the work that is counted: the
seconds of processor that the server takes in between, which no other process of the machine makes more.
"""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from graphql import get_introspection_query

from gateway.http.gate import SECURITY_HEADERS
from gateway.settings import Settings
from tests.conftest import Gateway
from tests.hostile import VIEWER, bombs, broken_json, other_json, requests_with_bad_values
from tests.servers import Server, serving
from tests.steps import disagreements, make_meter, meter_of

ANSWER_SECONDS = 3
HEALTH_SECONDS = 1
MAX_GROWTH_BYTES = 200 * 1024 * 1024

#: The memory of a process after a million hostile requests, each whose documents have fewer characters than that.
MAX_MEMORY_BYTES = 400 * 1000 * 1000
MAX_SHORT_BOMB = 500

#: So that what is slow is refused within the time that is promised for every answer.
IMPATIENT = {"TOLLGATE_HEAD_SECONDS": "1", "TOLLGATE_BODY_SECONDS": "1"}

#: The codes of the errors that a hostile request may be answered by.
CLEAN = {"BAD_USER_INPUT", "FORBIDDEN", "GRAPHQL_PARSE_FAILED", "GRAPHQL_VALIDATION_FAILED", "LIMIT_EXCEEDED"}


@dataclass
class Answer:
    """What came back, and how much work of the server that took.

    The status is None where the connection was closed without one.
    """

    status: int | None
    headers: str
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Attack:
    """A server under attack, the key that the attacker has, and what has come back so far."""

    server: Server
    key: str
    answers: list[Answer] = field(default_factory=list)

    def head(self, length: int | None = None, *, path: str = "/graphql", key: str | None = None) -> bytes:
        """Return the head of a POST with the attacker's key, or with another one."""
        lines = [
            f"POST {path} HTTP/1.1",
            "host: tollgate.test",
            f"authorization: Bearer {self.key if key is None else key}",
            "content-type: application/json",
            *([f"content-length: {length}"] if length is not None else ["transfer-encoding: chunked"]),
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    async def send(self, raw: bytes, *, is_patient: bool = False) -> Answer:
        """Send some bytes on a connection of their own, and return what comes back.

        `is_patient`: what is sent is not whole, and its sender waits for what becomes of that.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            with suppress(ConnectionError):
                writer.write(raw)
                await writer.drain()
            answer = await self.read(reader)
        finally:
            writer.close()
        assert is_patient or answer.status is not None
        return answer

    async def read(self, reader: asyncio.StreamReader) -> Answer:
        """Return the next answer of a connection."""
        clock = Stopwatch(self.server)
        body = b""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            body = await reader.readexactly(length)
            status: int | None = int(head.split(" ", 2)[1])
        except (asyncio.IncompleteReadError, ConnectionError):
            status, head = None, ""
        answer = Answer(status, head, body, clock.seconds())
        self.answers.append(answer)
        return answer

    async def post(self, body: bytes) -> Answer:
        """Send a body to the GraphQL endpoint."""
        return await self.send(self.head(len(body)) + body)

    async def ask(self, query: str, variables: dict[str, Any] | None = None) -> Answer:
        """Send an operation."""
        return await self.post(json.dumps({"query": query, "variables": variables}).encode())


class Stopwatch:
    """Measures how many seconds of processor the server takes, in all its threads."""

    def __init__(self, server: Server) -> None:
        assert server.process is not None
        self._file = Path(f"/proc/{server.process.pid}/stat")
        self._begun = self._work()

    def seconds(self) -> float:
        return self._work() - self._begun

    def _work(self) -> float:
        # Its user and system time, the 14th and 15th field (proc_pid_stat(5)); the second one ends in the last ")".
        fields = self._file.read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch(threading.Thread):
    """Asks the server all the time whether it is well, by new connections from a thread of its own."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._is_over = threading.Event()
        self.times: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._is_over.wait(0.02):
            try:
                with socket.create_connection(("127.0.0.1", self._server.port), timeout=60) as connection:
                    clock = Stopwatch(self._server)
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    answer = b"".join(iter(lambda: connection.recv(4_096), b""))
            except OSError as error:
                self.failures.append(repr(error))
                continue
            self.times.append(clock.seconds())
            if not answer.endswith(b'{"status":"ok"}'):
                self.failures.append(repr(answer))

    def end(self) -> None:
        self._is_over.set()
        self.join()


def memory_bytes(server: Server) -> int:
    """Return the most memory that the server has had so far."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@asynccontextmanager
async def attack(own: Gateway, folder: Path, **settings: str) -> AsyncIterator[Attack]:
    """Run a server on the gateway's database, with money on a meter, and hold it against all that is promised."""
    await make_meter(own, "rich", totalCredits="1000000", allowOverages=True, spendCap="500")
    event = {"workspaceId": "w", "externalMeterId": "rich", "eventId": "e", "amount": "1234"}
    await own.mutate("recordUsage", "... on RecordUsageSuccess { accepted }", **event)
    before = await meter_of(own, "rich")
    async with serving(own.services.settings.database_url, folder, **settings) as server:
        attack = Attack(server, own.key)
        for _ in range(20):
            await attack.ask(get_introspection_query())
        attack.answers.clear()
        memory = memory_bytes(server)
        watch = Watch(server)
        watch.start()
        try:
            yield attack
        finally:
            watch.end()
        slowest = max(answer.seconds for answer in attack.answers)
        print(  # noqa: T201  # pytest shows it where the test fails.
            f"{len(attack.answers)} answers, slowest {slowest:.2f} s; {len(watch.times)} looks, "
            f"slowest {max(watch.times):.2f} s; {(memory_bytes(server) - memory) / 1e6:.0f} MB more"
        )
        assert slowest < ANSWER_SECONDS
        assert watch.failures == []
        assert max(watch.times) < HEALTH_SECONDS
        assert memory_bytes(server) - memory < MAX_GROWTH_BYTES
        # It still serves, and has met no bug.
        assert (await attack.post(VIEWER)).json == {"data": {"viewer": {"orgId": own.org_id}}}
        assert "Traceback" not in server.logged
        assert "Internal" not in server.logged
    assert await meter_of(own, "rich") == before
    assert await disagreements(own.database) == []


def codes_of(answer: Answer) -> list[str]:
    """Return the codes of an answer's errors, which must be such as a client is at fault for."""
    assert answer.status in {200, 400, 413, 415}, answer
    codes = [error["extensions"]["code"] for error in answer.json.get("errors", ())]
    assert set(codes) <= CLEAN, answer.body[:1_000]
    return codes


async def test_bombs_are_refused_and_cost_little(on_sqlite: Gateway, tmp_path: Path) -> None:
    """Deep, wide, doubling, comparing, introspecting, one by one and then many at once."""
    documents = [bomb for bomb in bombs() if len(bomb) < 1_000_000]
    assert len(documents) > 180
    async with attack(on_sqlite, tmp_path) as it:
        refused = sum([bool(codes_of(await it.ask(bomb))) for bomb in documents])
        assert refused > 150
        for answer in await asyncio.gather(*[it.ask(bomb) for bomb in documents[:: len(documents) // 40]]):
            codes_of(answer)


async def test_bodies_that_are_no_graphql_request_are_refused(on_sqlite: Gateway, tmp_path: Path) -> None:
    async with attack(on_sqlite, tmp_path, **IMPATIENT) as it:
        for body in (*broken_json(), *other_json()):
            answer = await it.post(body)
            assert answer.status == 400, body[:100]
            assert codes_of(answer) == ["BAD_USER_INPUT"]
        for body in (b"\0" * 500, b"<xml/>", b"query=x", b"PRI * HTTP/2.0\r\n\r\n"):
            head = it.head(len(body)).replace(b"application/json", b"text/plain")
            assert (await it.send(head + body)).status == 415
        # 10 MB, as they are announced and as they are not; and without end.
        ten = b" " * 10_000_000
        answer = await it.send(it.head(len(ten)) + ten)
        assert (answer.status, codes_of(answer)) == (413, ["LIMIT_EXCEEDED"])
        pieces = b"".join(b"%x\r\n%s\r\n" % (size, b" " * size) for size in (1, 10, 1_000, 100_000) * 100)
        answer = await it.send(it.head() + pieces + b"0\r\n\r\n")
        assert (answer.status, codes_of(answer)) == (413, ["LIMIT_EXCEEDED"])
        await endless(it, it.head() + b"10000\r\n", b" " * 65_536 + b"\r\n10000\r\n", 413)
        await endless(it, it.head(10**15), b" " * 65_536, 413)
        # Without a key, nothing of them is kept.
        await endless(it, it.head(10**15, key="nobody"), b" " * 65_536, 401)
        # Frames larger than what they hold, and what may follow the last of them.
        await asyncio.gather(*[endless(it, it.head(), b"1\r\n \r\n" * 5_000, 413, None) for _ in range(50)])
        await endless(it, it.head() + b"1\r\n \r\n0\r\n", b"x-more: 1\r\n" * 1_000, 431)
        await asyncio.gather(*[endless(it, it.head(10**15), b" " * 65_536, 413, None) for _ in range(50)])


async def test_heads_that_are_too_large_or_malformed_are_refused(on_sqlite: Gateway, tmp_path: Path) -> None:
    async with attack(on_sqlite, tmp_path, **IMPATIENT) as it:
        start = b"POST /graphql HTTP/1.1\r\n"
        for raw in (
            start + b"x: 1\r\n" * 101 + b"\r\n",
            start + b"x: 1\r\n" * 100_000 + b"\r\n",
            start + b"x: " + b"y" * 33_000 + b"\r\n\r\n",
            start + b"x: " + b"y" * 1_000_000 + b"\r\n\r\n",
            start + b"y" * 1_000_000 + b": 1\r\n\r\n",
            b"GET /" + b"y" * 33_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /" + b"y" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
        ):
            answer = await it.send(raw)
            assert (answer.status, answer.json["errors"][0]["extensions"]) == (431, {"code": "LIMIT_EXCEEDED"})
        # What is refused by the server is reported in REST's form too.
        answer = await it.send(b"GET /v1/customers HTTP/1.1\r\n" + b"x: 1\r\n" * 101 + b"\r\n")
        assert answer.json == {"error": {"code": 431, "message": "A request may have at most 100 headers."}}
        for raw in (
            b"\0" * 100,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET\r\n\r\n",
            b"HELO tollgate.test\r\n",
            b"POST /graphql HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
            b"POST /graphql HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            b"POST /graphql HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /graphql HTTP/1.1\r\ntransfer-encoding: gzip, identity\r\n\r\n",
            b"GET / HTTP/1.1\r\nx y: 1\r\n\r\n",
            # URLs that cannot be taken apart.
            b"GET ftp://x/ HTTP/1.1\r\nhost: x\r\n\r\n",
            b"CONNECT x:443 HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nx: \0\r\n\r\n",
            it.head() + b"zzz\r\n",
            it.head() + b"ffffffffffffffffff\r\n",
        ):
            answer = await it.send(raw, is_patient=True)
            assert answer.status in {400, 401, 415, 505}, (raw, answer)
            for name, value in SECURITY_HEADERS:
                assert f"{name.decode()}: {value.decode()}\r\n" in answer.headers
        for path in ("/%", "/%00", "/%ff", "//", "/../../etc/passwd", "/graphql/", "/v1/customers/%00", "*"):
            answer = await it.send(it.head(0, path=path), is_patient=True)
            assert answer.status in {400, 401, 404, 405}, (path, answer)
        for url in (
            "/graphql?query=%00",
            "/graphql?query=%ff",
            "/graphql?variables=%7B",
            f"/graphql?query={'%7B' * 5_000}",
        ):
            raw = it.head(0, path=url).replace(b"POST", b"GET", 1)
            assert codes_of(await it.send(raw)) != []
        for key in ("", "x" * 30_000, "sk_test_", "sk_test_" + "\x80" * 43, "'; DROP TABLE api_keys; --"):
            assert (await it.send(it.head(len(VIEWER), key=key) + VIEWER)).status == 401


async def test_slow_heads_and_bodies_are_ended_200_at_once(on_sqlite: Gateway, tmp_path: Path) -> None:
    async with attack(on_sqlite, tmp_path, **IMPATIENT) as it:
        whole = it.head(1_000)
        slow = [
            *[(b"", [b"POST /gra", b"phql HT", b"TP/1.1\r\n", *[b"x"] * 200], 408)] * 60,
            *[(whole[:-2], [b"x: 1\r\n"] * 200, 408)] * 40,
            *[(whole, [b" "] * 200, 408)] * 60,
            *[(it.head(), [b"1\r\n \r\n"] * 200, 408)] * 20,
            *[(whole, [], 408)] * 10,
            # After a request that was answered, and beside one.
            *[(it.head(len(VIEWER)) + VIEWER, [b"\r\n"] * 200, 200)] * 5,
            *[(it.head(len(VIEWER)) + VIEWER + b"PO", [b"S"] * 200, 200)] * 5,
        ]
        assert len(slow) == 200
        for answer in await asyncio.gather(*[drip(it, begin, then, status) for begin, then, status in slow]):
            if answer.status == 408:
                assert answer.json["errors"][0]["extensions"] == {"code": "TIMEOUT"}


async def test_a_thousand_connections_leave_room_for_others(on_sqlite: Gateway, tmp_path: Path) -> None:
    async with attack(on_sqlite, tmp_path, **IMPATIENT, TOLLGATE_MAX_IN_FLIGHT="100") as it:
        connections = [await asyncio.open_connection("127.0.0.1", it.server.port) for _ in range(1_000)]
        assert (await it.post(VIEWER)).status == 200
        # All of them ask at once, which is more than may be in flight: the rest are refused with the status 503.
        raw = it.head(len(VIEWER)) + VIEWER
        for _, writer in connections:
            writer.write(raw)
        answers = await asyncio.gather(*[it.read(reader) for reader, _ in connections])
        statuses = [answer.status for answer in answers]
        assert set(statuses) <= {200, 503, None}
        assert statuses.count(200) >= 100
        assert all("retry-after: 1\r\n" in answer.headers for answer in answers if answer.status == 503)
        for _, writer in connections:
            writer.close()


async def test_the_client_that_has_not_read_for_longest_is_closed_where_too_much_is_unread(
    on_sqlite: Gateway, tmp_path: Path
) -> None:
    meter_id = await make_meter(on_sqlite)
    names = [chr(0x1F600) * 127 + chr(0x1F600 + number) for number in range(27)]
    fields = " ".join(
        f'u{number}: usage(billingId: "{meter_id}", from: "2025-03-17", to: "2026-03-16", fillZeros: true, names: $n)'
        " { billingUsageName }"
        for number in range(6)
    )
    body = json.dumps({"query": f"query ($n: [String!]) {{ {fields} }}", "variables": {"n": names}}).encode()
    settings = {"TOLLGATE_MAX_UNREAD_BYTES": str(68 * 1024 * 1024)}
    async with serving(on_sqlite.services.settings.database_url, tmp_path, **settings) as server:
        it = Attack(server, on_sqlite.key)
        # Each answer has some 30 MB, of which the system itself keeps a few: there is room for two of them.
        readers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1_000)
            writer.write(it.head(len(body)) + body)
            await reader.readuntil(b"\r\n\r\n")
            readers.append((reader, writer))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await readers[0][0].readexactly(20_000_000)
        for reader, _ in readers[1:]:
            assert (await reader.readexactly(20_000_000)).startswith(b'{"data":{"u0":[')
        for _, writer in readers:
            writer.close()
    assert server.logged.count("ANSWER_UNREAD") == 1


TEXTS = [text for text in bombs() if len(text) < MAX_SHORT_BOMB]
BODIES = [body for body in (*broken_json(), *other_json()) if len(body) < MAX_SHORT_BOMB]


def hostile_request(it: Attack, number: int) -> bytes:
    """Return a request that is like no other: one of ten has a document that is much work, the others what costs less.

    They are bodies that are none, keys, documents and operations that there are not.
    """
    kind = number % 10
    if kind == 0:
        # The comment makes each a new document.
        body = json.dumps({"query": f"{TEXTS[number // 10 % len(TEXTS)]} # {number}"}).encode()
    elif kind < 4:
        body = BODIES[number % len(BODIES)]
    elif kind < 6:
        return it.head(len(VIEWER), key=f"sk_test_{number:043}") + VIEWER
    else:
        is_document = kind < 8
        body = json.dumps(
            {"documentId": str(number)}
            if is_document
            else {"query": "{ viewer { orgId } }", "operationName": f"Name{number}"}
        ).encode()
    return it.head(len(body)) + body


async def test_however_many_hostile_requests_come_the_memory_stays(
    on_sqlite: Gateway, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With `--torture` there are a million, which take half an hour."""
    count = 1_000_000 if request.config.getoption("--torture") else 1_000
    clients = 8
    refused: list[int] = []
    async with serving(on_sqlite.services.settings.database_url, tmp_path, TOLLGATE_LOG_LEVEL="error") as server:
        it = Attack(server, on_sqlite.key)

        async def send_some(first: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for number in range(first, count, clients):
                writer.write(hostile_request(it, number))
                answer = await it.read(reader)
                it.answers.clear()
                if answer.status == 503:
                    assert answer.json["errors"][0]["extensions"] == {"code": "UNAVAILABLE", "outcome": "NOT_WRITTEN"}
                    refused.append(number)
                else:
                    assert answer.status in {200, 400, 401}
                if "connection: close" in answer.headers:
                    writer.close()
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.close()

        await asyncio.gather(*map(send_some, range(clients)))
        # In half an hour on a machine with much else to do some may find the database busy; of a thousand none does.
        assert len(refused) <= count // 10_000
        print(f"{memory_bytes(server) / 1e6:.0f} MB after {count} requests")  # noqa: T201  # pytest shows it on failure.
        assert memory_bytes(server) < MAX_MEMORY_BYTES
        assert "Traceback" not in server.logged


async def test_the_deadlines_hold_that_nobody_has_set(on_sqlite: Gateway, tmp_path: Path) -> None:
    """The other tests shorten them; a refusal comes no earlier."""
    defaults = Settings()
    async with serving(on_sqlite.services.settings.database_url, tmp_path) as server:
        it = Attack(server, on_sqlite.key)

        async def waits(raw: bytes, what: str, seconds: int) -> None:
            begun = time.monotonic()
            answer = await it.send(raw, is_patient=True)
            assert answer.status == 408
            assert answer.json["errors"] == [
                {
                    "message": f"The request's {what} took longer than {seconds} seconds.",
                    "extensions": {"code": "TIMEOUT"},
                }
            ]
            assert time.monotonic() - begun > seconds - 1

        assert (defaults.head_seconds, defaults.body_seconds) == (10, 20)
        await asyncio.gather(
            waits(b"POST /graphql HT", "head", 10),
            waits(it.head()[:-2], "head", 10),
            waits(it.head(1_000) + b"{", "body", 20),
            waits(it.head() + b"1\r\n", "body", 20),
        )


async def test_connections_beyond_the_limit_are_refused_at_once(on_sqlite: Gateway, tmp_path: Path) -> None:
    url = on_sqlite.services.settings.database_url
    async with serving(url, tmp_path, TOLLGATE_MAX_CONNECTIONS="50") as server:
        it = Attack(server, on_sqlite.key)
        connections = [await asyncio.open_connection("127.0.0.1", it.server.port) for _ in range(50)]
        answer = await it.send(b"", is_patient=True)
        assert (answer.status, answer.json["errors"][0]["extensions"]) == (
            503,
            {"code": "UNAVAILABLE", "outcome": "NOT_WRITTEN"},
        )
        for _, writer in connections:
            writer.close()


async def test_every_bad_value_of_every_argument_is_refused_or_harmless(
    own: Gateway, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The arguments are the schema's own, each in turn, as a variable's value and as a literal.

    Without `--fuzz` an argument has a share of the values, and the next one others.
    """
    # PostgreSQL is shown a part: what is refused before storage is refused alike.
    shares = {"sqlite": 1, "postgresql": 4} if pytestconfig.getoption("fuzz") else {"sqlite": 4, "postgresql": 12}
    async with attack(own, tmp_path) as it:
        requests = list(requests_with_bad_values(share=shares[own.database.dialect]))
        assert len(requests) > 7_000 // shares[own.database.dialect]
        waiting = iter(requests)

        async def ask_on() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.server.port)
            for body in waiting:
                writer.write(it.head(len(body)) + body)
                codes_of(await it.read(reader))
            writer.close()

        await asyncio.gather(*[ask_on() for _ in range(10)])


async def endless(it: Attack, begin: bytes, again: bytes, *statuses: int | None) -> None:
    """Send something again and again, and see that it is answered, and then not taken any more.

    None is one of the statuses where the answer may be lost: the connection is closed while more arrives.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", it.server.port)
    answering = asyncio.create_task(it.read(reader))
    with suppress(ConnectionError):
        writer.write(begin)
        while True:
            writer.write(again)
            await writer.drain()
            # The end of the connection is seen when it is read.
            await asyncio.sleep(0)
    writer.close()
    answer = await answering
    assert answer.status in statuses


async def drip(it: Attack, begin: bytes, then: list[bytes], status: int) -> Answer:
    """Send something bit by bit, and return the answer that comes in between, after which the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", it.server.port)
    writer.write(begin)
    answering = asyncio.create_task(it.read(reader))
    for bit in then:
        if reader.at_eof() or (answering.done() and status == 408):
            break
        try:
            writer.write(bit)
            await writer.drain()
        except ConnectionError:
            break
        await asyncio.sleep(0.05)
    answer = await answering
    assert answer.status == status
    with suppress(ConnectionError):
        await reader.read()
    assert reader.at_eof() or reader.exception() is not None
    writer.close()
    return answer
