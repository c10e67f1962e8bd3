"""The server's protocol: who does not read an answer is left behind, however the answers come about."""

import asyncio
import json
import logging
import os
import re
import resource
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.server import connection, flow
from gateway.server import protocol as server
from gateway.server.serving import CannotListen, Watch, listening, serve
from gateway.settings import Settings
from gateway.telemetry.requests import REASONS
from gateway.telemetry.requests import REFUSED as SERVER_REFUSED
from tests.conftest import Gateway
from tests.scraping import TOKEN, Samples, samples
from tests.servers import Server, free_port, serving
from tests.wire import running_server, sent, served

# It waits for deadlines.
pytestmark = pytest.mark.slow


def answering(body: bytes) -> ASGIApp:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def noting_paths(paths: list[str]) -> ASGIApp:
    """Return an application that notes the paths it is asked for."""
    app = answering(b"done")

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await app(scope, receive, send)

    return noting


def with_refusals(reported: list[str], app: ASGIApp) -> ASGIApp:
    """Return the application with a lifespan in which the reasons of the server's refusals are noted."""

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        scope["state"][SERVER_REFUSED] = lambda reason, **_: reported.append(reason)
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    return noting


def ask_and_read_late(port: int, requests: int) -> int:
    """Ask without reading until the server has had enough, and return how much is there to be read then."""
    count = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * requests)
        time.sleep(2.5)  # The server's deadline for reading is 1 second, and it looks once a second at most.
        with suppress(ConnectionError):
            while data := connection.recv(1_000_000):
                count += len(data)
    return count


async def test_who_does_not_read_an_answer_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    monkeypatch.setenv("TOLLGATE_ANSWER_SECONDS", "1")
    connection._settings.cache_clear()
    try:
        # One that is large, and many that were asked for in advance; both are more than the machine keeps.
        for size, requests in ((60_000_000, 1), (60_000, 1_000)):
            with subtests.test(size=size):
                async with served(answering(b"x" * size)) as port:
                    read = await asyncio.to_thread(ask_and_read_late, port, requests)
                    assert 0 < read < size * requests
                # What was still to be answered is no bug.
                assert logged_by_server(caplog) == []
    finally:
        connection._settings.cache_clear()


def head_of(size: int) -> bytes:
    """Return a request whose head has as many bytes."""
    head = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: %s\r\n\r\n"
    return head % (b"a" * (size - len(head % b"")))


def headers_of(count: int) -> bytes:
    """Return a request of as many headers."""
    return b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + b"x: a\r\n" * (count - 2) + b"\r\n"


@pytest.mark.parametrize(
    ("variable", "limit", "request_of", "beyond", "message"),
    [
        ("TOLLGATE_MAX_HEAD_BYTES", 2_000, head_of, b"431", b"A request's head may have at most 2000 bytes."),
        ("TOLLGATE_MAX_HEADERS", 20, headers_of, b"431", b"A request may have at most 20 headers."),
    ],
)
async def test_as_much_as_the_limit_is_served_and_one_more_is_refused(
    *,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    limit: int,
    request_of: Callable[[int], bytes],
    beyond: bytes,
    message: bytes,
) -> None:
    monkeypatch.setenv(variable, str(limit))
    connection._settings.cache_clear()
    try:
        async with served(answering(b"done")) as port:
            assert (await sent(port, request_of(limit))).endswith(b"done")
            refused = await sent(port, request_of(limit + 1))
            assert refused.startswith(b"HTTP/1.1 " + beyond)
            assert message in refused
    finally:
        connection._settings.cache_clear()


class Written(asyncio.Transport):
    """What is written to a connection, write by write; the last one is empty where it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []

    def write(self, data: Any) -> None:
        self.parts.append(data)

    def close(self) -> None:
        self.parts.append(b"")


def start_of(status: int = 200, **headers: str) -> Message:
    """Return the message that begins an answer."""
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": named}


def body_of(body: bytes = b"", *, more_body: bool = False) -> Message:
    """Return the message of a part of its body."""
    return {"type": "http.response.body", "body": body, "more_body": more_body}


WHOLE = [start_of(content_length="4", content_type="text/plain"), body_of(b"done")]
STREAMED = [start_of(content_length="6"), body_of(b"one", more_body=True), body_of(b"two")]

#: Answers: the method that is answered, whether the connection is kept, and the messages.
ANSWERS: dict[str, tuple[str, bool, list[Message]]] = {
    "whole": ("GET", True, WHOLE),
    "whole and the last": ("GET", False, WHOLE),
    "empty": ("POST", True, [start_of(204, content_length="0"), body_of()]),
    "not modified": ("GET", True, [start_of(304, etag="x"), body_of()]),
    "to HEAD": ("HEAD", True, [start_of(content_length="4"), body_of()]),
    "in parts": ("GET", True, STREAMED),
    "without a length": ("GET", True, [start_of(), body_of(b"one", more_body=True), body_of()]),
    "whole without a length": ("GET", True, [start_of(), body_of(b"one")]),
    "closing": ("GET", True, [start_of(content_length="4", connection="close"), body_of(b"done")]),
    "begun twice": ("GET", True, [start_of(content_length="0"), start_of(content_length="0")]),
    "shorter than it says": ("GET", True, [start_of(content_length="5"), body_of(b"done")]),
    "longer than it says": ("GET", True, [start_of(content_length="3"), body_of(b"done")]),
    "with a line in a header": ("GET", True, [start_of(content_length="4", x="a\r\nb: c"), body_of(b"done")]),
    "with a control in a header": ("GET", True, [start_of(content_length="4", x="a\x00"), body_of(b"done")]),
}


async def written(
    method: str, messages: Iterable[Message], *, keep_alive: bool = True, is_ours: bool = True
) -> tuple[list[bytes], str | None, bool]:
    """Return what an answer writes, what it raises, and whether it ends; `is_ours`: not by uvicorn alone."""
    transport, ended = Written(), list[bool]()
    cycle = RequestResponseCycle(
        scope={"method": method},  # type: ignore[typeddict-item]  # No more of it is looked at.
        transport=transport,
        flow=FlowControl(transport),
        logger=logging.getLogger(__name__),
        access_logger=logging.getLogger(__name__),
        access_log=False,
        default_headers=[(b"date", b"now")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: ended.append(True),
    )
    send: Any = connection.Answer(cycle).send if is_ours else cycle.send
    failure = None
    try:
        for message in messages:
            await send(message)
    except RuntimeError as error:
        failure = str(error)
    return transport.parts, failure, ended == [True]


class TestAnswer:
    """An answer's head and body are one packet, which costs the server and the client less than two."""

    @pytest.mark.parametrize("name", ANSWERS)
    async def test_what_is_written_is_what_uvicorn_writes(self, name: str) -> None:
        method, keep_alive, messages = ANSWERS[name]
        ours = await written(method, messages, keep_alive=keep_alive)
        uvicorns = await written(method, messages, keep_alive=keep_alive, is_ours=False)
        assert (b"".join(ours[0]), *ours[1:]) == (b"".join(uvicorns[0]), *uvicorns[1:])

    async def test_a_whole_answer_is_one_write(self) -> None:
        head = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 4\r\ncontent-type: text/plain\r\n"
        assert await written("GET", WHOLE) == ([head + b"\r\ndone"], None, True)
        last = [head + b"connection: close\r\n\r\ndone", b""]
        assert await written("GET", WHOLE, keep_alive=False) == (last, None, True)

    async def test_a_long_body_is_not_copied(self) -> None:
        body = b"x" * (connection._LONG + 1)
        parts, _, _ = await written("GET", [start_of(content_length=str(len(body))), body_of(body)])
        assert len(parts) == 2
        assert parts[1] is body

    async def test_a_head_without_its_body_is_not_sent(self) -> None:
        """So a request that fails between the two is answered by a status of 500."""
        assert await written("GET", WHOLE[:1]) == ([], None, False)


class TestPipeline:
    """What is refused takes no answer with it of the requests before it."""

    FIRST = b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    SECOND = b"POST /second HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    THIRD = b"POST /third HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"

    @pytest.mark.parametrize("before", [FIRST, FIRST + SECOND], ids=["one", "two"])
    @pytest.mark.parametrize("count", [1, 4], ids=["at once", "in parts"])
    async def test_a_body_that_is_none_leaves_the_requests_before_it_their_answers(
        self, caplog: pytest.LogCaptureFixture, before: bytes, count: int
    ) -> None:
        paths: list[str] = []
        reported: list[str] = []
        answer = noting_paths(paths)

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            # It reads on, and so lets the server read on.
            await receive()
            reading = asyncio.ensure_future(receive())
            await asyncio.sleep(0.5)  # The other parts come meanwhile: `sent` sends them a tenth of a second apart.
            await answer(scope, receive, send)
            reading.cancel()

        parts = [before + self.THIRD, b"zz\r\n", b"more\r\n", b"and more\r\n"]
        async with served(with_refusals(reported, late), lifespan="on") as port:
            read = await sent(port, *(parts if count > 1 else [b"".join(parts)]))
        assert paths == ["/first", "/second"][: before.count(b"POST")]
        assert read.count(b"HTTP/1.1 200 ") == read.count(b"done") == len(paths)
        assert read.count(b"HTTP/1.1 ") == len(paths)
        assert reported == ["MALFORMED"]
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []

    async def test_no_more_than_so_many_requests_wait_and_all_are_answered_in_order(
        self, subtests: pytest.Subtests
    ) -> None:
        get = b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n"
        post = b"POST /%d HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n\r\n\r\n"
        chunked = b"POST /%d HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n"
        count = 300
        last = b"GET /%d HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % count
        raw = b"".join([(get, post, chunked)[number % 3] % number for number in range(count)]) + last
        for size in (len(raw), 1_001, 97):
            with subtests.test(size=size):
                found: list[tuple[str, bytes]] = []
                waiting: list[int] = []
                answer_now = keeping(found)

                async def app(
                    scope: Scope, receive: Receive, send: Send, waiting: Any = waiting, answer_now: Any = answer_now
                ) -> None:
                    connections: Any = running.server_state.connections
                    waiting.append(max(len(each.pipeline) for each in connections))
                    await answer_now(scope, receive, send)

                async with running_server(app) as running:
                    reader, writer = await asyncio.open_connection("127.0.0.1", running.config.port)
                    for start in range(0, len(raw), size):
                        writer.write(raw[start : start + size])
                        await writer.drain()
                        # The next part comes by itself.
                        await asyncio.sleep(0)
                    async with asyncio.timeout(30):
                        answer = await reader.read()
                    writer.close()
                assert answer.count(b"HTTP/1.1 200 ") == count + 1
                bodies = (b"", b"\r\n\r\n", b"\r\n\r\n")
                assert found == [(f"/{number}", bodies[number % 3]) for number in range(count)] + [(f"/{count}", b"")]
                assert max(waiting) <= server.MAX_PIPELINED

    async def test_what_all_connections_hold_has_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "MAX_HELD_BYTES", 100_000)
        paths: list[str] = []
        reported: list[str] = []
        may_answer = asyncio.Event()
        answer = noting_paths(paths)

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await may_answer.wait()
            await answer(scope, receive, send)

        get = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
        count = 60_000 // len(get)
        last = get[:-2] + b"connection: close\r\n\r\n"
        async with served(with_refusals(reported, late), lifespan="on") as port:
            # The first one holds less than may be held, and the two together more.
            first = asyncio.create_task(sent(port, get * count + last))
            await asyncio.sleep(0.2)  # Nothing reports when it was read.
            second = asyncio.create_task(sent(port, get * count + last))
            try:
                async with asyncio.timeout(10):
                    while not reported:  # noqa: ASYNC110  # It is a list, which signals nothing.
                        await asyncio.sleep(0.01)
            finally:
                may_answer.set()
            assert (await second).count(b"HTTP/1.1 200 ") == 1 + server.MAX_PIPELINED
            assert (await first).count(b"HTTP/1.1 200 ") == count + 1
        assert reported == ["TOO_MANY_PIPELINED"]
        assert not server._HOLDING

    async def test_a_connection_that_is_lost_holds_nothing(self) -> None:
        may_answer = asyncio.Event()
        answer = noting_paths([])

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await may_answer.wait()
            await answer(scope, receive, send)

        async with served(late) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 1_000)
            try:
                async with asyncio.timeout(10):
                    while not server._HOLDING:  # noqa: ASYNC110  # It is a set, which signals nothing.
                        await asyncio.sleep(0.01)
                writer.transport.abort()
            finally:
                may_answer.set()
            # It is noticed when an answer cannot be sent.
            async with asyncio.timeout(10):
                while server._HOLDING:  # noqa: ASYNC110  # It is a set, which signals nothing.
                    await asyncio.sleep(0.01)

    async def test_what_comes_after_what_is_held_is_not_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # More than is read at once, and less than the client sends.
        monkeypatch.setattr(server, "MAX_HELD_BYTES", 1_000_000)
        refused: list[str] = []
        paths: list[str] = []
        may_answer = asyncio.Event()
        answer = noting_paths(paths)

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()  # It lets the server read on.
            if len(paths) == 100:  # As many wait by now as may, and more is held.
                await may_answer.wait()
            await answer(scope, receive, send)

        get = b"GET / HTTP/1.1\r\nhost: x\r\nx: %s\r\n\r\n" % (b"y" * 8_000)
        last = get[:-2] + b"connection: close\r\n\r\n"
        async with served(with_refusals(refused, late), lifespan="on") as port:
            answers = asyncio.create_task(sent(port, get * 500 + last))
            await asyncio.sleep(0.5)  # Until all was read that is: nothing reports it.
            may_answer.set()
            assert (await answers).count(b"HTTP/1.1 200 ") == 501
        assert refused == []

    @pytest.mark.parametrize(
        "raw", [b"\0" * 40_000, b"GET / HTTP/1.1\r\nx: %s\r\n\r\n" % (b"y" * 40_000)], ids=["none", "large"]
    )
    async def test_a_head_that_is_refused_at_once_is_passed_over_for_a_moment_alone(self, raw: bytes) -> None:
        async with served(answering(b"")) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            # Far sooner than a client that does not read is left behind.
            async with asyncio.timeout(server.LINGER_SECONDS + 8):
                writer.write(raw)
                assert (await reader.read()).startswith(b"HTTP/1.1 4")
                # The server has ended its side; that it has ended the connection shows in what cannot be sent.
                with suppress(ConnectionError):
                    while True:
                        writer.write(b"x")
                        await writer.drain()
                        await asyncio.sleep(0.1)  # Until the next try; what ends the loop is the server.
            writer.close()


#: What is no host, and what is one.
BAD_HOSTS = (
    *(b"x y/@", b"user@x", b"x/", b"x:y", b"x:1:2", b"x:123456", b":80", b"x?", b"x#", b"\\x", b"x%zz", b"x\xff"),
    *(b"::1", b"[::1", b"[]", b"[x]", b"[::1]x", b"[1:2]", b"http://x", b"x" * 300),
)
GOOD_HOSTS = (
    *(b"", b"x", b"x:", b"X.example.com:8000", b"127.0.0.1:80", b"a_b-c", b"x%20y"),
    *(b"[::1]", b"[::1]:8000", b"[::ffff:127.0.0.1]:1", b"[2001:DB8::1]"),
)


class TestHead:
    async def test_a_url_that_cannot_be_taken_apart_is_refused(
        self, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
    ) -> None:
        write = b"POST /write HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
        for line in (b"GET ftp://x/", b"CONNECT x:443", b"CONNECT /", b"GET \xff", b"GET *", b"GET x"):
            raw = line + b" HTTP/1.1\r\nhost: x\r\n\r\n"
            with subtests.test(line=line):
                paths: list[str] = []
                async with served(noting_paths(paths)) as port:
                    answer = await sent(port, raw)
                    assert answer.startswith(b"HTTP/1.1 400 ")
                    assert paths == []
                    # What it follows is answered.
                    answer = await sent(port, write + raw)
                    assert answer.startswith(b"HTTP/1.1 200 ")
                    assert answer.endswith(b"done")
                    assert answer.count(b"HTTP/1.1 ") == 1
                    assert paths == ["/write"]
        assert logged_by_server(caplog) == []

    async def test_one_that_is_too_large_is_refused_also_behind_another_request(
        self, subtests: pytest.Subtests
    ) -> None:
        first = b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n"
        large = b"GET /large HTTP/1.1\r\nhost: x\r\nx: %s\r\n\r\n" % (b"y" * 40_000)
        # At once, and in two parts of which the second alone is small enough.
        for parts in ((first + large,), (first + large[:30_000], large[30_000:])):
            with subtests.test(parts=len(parts)):
                paths: list[str] = []
                async with served(noting_paths(paths)) as port:
                    await sent(port, *parts)
                assert paths == ["/first"]

    async def test_what_came_of_one_before_the_answer_has_its_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOLLGATE_HEAD_SECONDS", "2")
        monkeypatch.setenv("TOLLGATE_BODY_SECONDS", "2")
        connection._settings.cache_clear()
        first = b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
        body = b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"

        async def check(raw: bytes, reason: str, statuses: list[bytes]) -> None:
            reported: list[str] = []
            app = with_refusals(reported, answering(b"done"))
            # An idle connection is closed earlier.
            async with served(app, lifespan="on", idle_seconds=1) as port:
                answer = await sent(port, raw)
            assert re.findall(rb"HTTP/1\.1 (\d+) ", answer) == statuses
            assert reported == [reason]

        try:
            # At once, as each waits for a deadline.
            await asyncio.gather(
                check(first + b"GET /sec", "HEAD_TOO_SLOW", [b"200", b"408"]),
                check(first * 40 + b"GET /sec", "HEAD_TOO_SLOW", [b"200"] * 40 + [b"408"]),
                check(body, "BODY_TOO_SLOW", [b"200"]),
                check(first * 40 + body, "BODY_TOO_SLOW", [b"200"] * 41),
            )
        finally:
            connection._settings.cache_clear()

    async def test_one_that_does_not_come_to_an_end_leaves_the_request_before_it_its_answer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOLLGATE_HEAD_SECONDS", "1")
        connection._settings.cache_clear()
        answer_now = answering(b"done")

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(2)
            await answer_now(scope, receive, send)

        first = b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"

        async def check(second: bytes) -> None:
            async with served(late) as port:
                answer = await sent(port, first, second)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"done")
            assert answer.count(b"HTTP/1.1 ") == 1

        try:
            # At once, as each waits for its answer.
            await asyncio.gather(
                check(b"GET /sec"),
                check(b"GET /second HTTP/1.1\r\nx: " + b"y" * 40_000),
                check(b"GET /second HTTP/1.1\r\n" + b"x: 1\r\n" * 101 + b"\r\n"),
            )
        finally:
            connection._settings.cache_clear()

    async def test_a_head_against_the_rules_of_http_is_refused(self, subtests: pytest.Subtests) -> None:
        get, post = b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nhost: x\r\n"
        chunk = b"\r\n2\r\n{}\r\n0\r\n\r\n"
        cases: dict[int, list[bytes]] = {
            400: [
                get + b"\r\n",
                get + b"host: x\r\nhost: x\r\n\r\n",
                get + b"host: x\r\nHost: y\r\n\r\n",
                b"GET / HTTP/1.0\r\nhost: x\r\nhost: y\r\n\r\n",
                *[get + b"host: %s\r\n\r\n" % host for host in BAD_HOSTS],
                *[b"GET http://%s/ HTTP/1.1\r\nhost: x\r\n\r\n" % host for host in (b"u@x", b"", b"x:y")],
                *[b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % target for target in (b"/a#b", b"/?a#", b"http://x/a#b")],
                *[
                    post + b"transfer-encoding: " + codings + b"\r\n" + chunk
                    for codings in (
                        b"chunked, gzip",
                        b"chunked, chunked",
                        b"chunked\r\ntransfer-encoding: chunked",
                        b"chunked\r\ntransfer-encoding: gzip",
                        b"gzip",
                        b"identity",
                        b"xchunked",
                        b"chunked;a=b",
                        b'"chunked"',
                        b"\x0bchunked",
                        b"",
                    )
                ],
                b"POST / HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n" + chunk,
                post + b"transfer-encoding : chunked\r\n" + chunk,
                *[
                    post + b"content-length: " + length + b"\r\n\r\n{}"
                    for length in (
                        *(b"+2", b"-2", b"2, 3", b"0x2", b"2 2", b"9" * 30, b""),
                        *(b"2\r\ncontent-length: 3", b"2\r\ntransfer-encoding: chunked"),
                    )
                ],
                *[
                    get + b"host: x\r\n" + line + b"\r\n\r\n"
                    for line in (
                        *(b"a: 1\r\n b: 2", b"a : 1", b": 1", b"a", b"a: 1\rb: 2", b"a: 1\nb: 2", b"a: \0", b"a\0: 1"),
                        *(b"a: \x01", b"a: \x7f", b"a\x80: 1"),
                    )
                ],
                get + b" host: x\r\n\r\n",
                b"GET / HTTP/1.1\nhost: x\n\n",
                b"GET / HTTP/1.1 x\r\nhost: x\r\n\r\n",
                b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n",
            ],
            501: [
                post + b"transfer-encoding: gzip, chunked\r\n" + chunk,
                post + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n" + chunk,
            ],
            505: [
                b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
                b"GET / HTTP/0.9\r\nhost: x\r\n\r\n",
                b"GET / HTTP/9.9\r\n\r\n",
                b"GET /\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
            ],
        }
        paths: list[str] = []
        async with served(noting_paths(paths)) as port:
            for status, raws in cases.items():
                for raw in raws:
                    with subtests.test(raw=raw):
                        answer = await sent(port, raw)
                        assert answer.startswith(b"HTTP/1.1 %d " % status)
                        assert len(re.findall(rb"HTTP/1\.1 \d", answer)) == 1
        assert paths == []

    async def test_a_head_by_the_rules_of_http_is_served(self, subtests: pytest.Subtests) -> None:
        get, close = b"GET /asked HTTP/1.1\r\n", b"connection: close\r\n\r\n"
        chunk = b"2\r\n{}\r\n0\r\n\r\n"
        paths: list[str] = []
        async with served(noting_paths(paths)) as port:
            for raw in (
                *[get + b"host: %s\r\n" % host + close for host in GOOD_HOSTS],
                get + b"HOST:\t x:1 \t\r\n" + close,
                *[
                    b"GET %s HTTP/1.1\r\nhost: x\r\n" % target + close
                    for target in (b"http://x/asked", b"HTTPS://y:1/asked?z", b"http://[::1]:80/asked")
                ],
                b"GET /asked HTTP/1.0\r\n\r\n",
                b"GET /asked HTTP/1.2\r\nhost: x\r\n" + close,
                *[
                    b"POST /asked HTTP/1.1\r\nhost: x\r\ntransfer-encoding: %s\r\n" % coding + close + chunk
                    for coding in (b"chunked", b" Chunked ")
                ],
                b"POST /asked HTTP/1.1\r\nhost: x\r\ncontent-length: \t 2 \t\r\n" + close + b"{}",
            ):
                with subtests.test(raw=raw):
                    paths.clear()
                    assert (await sent(port, raw)).startswith(b"HTTP/1.1 200 ")
                    assert paths == ["/asked"]
            paths.clear()
            # The path of a URL that has none.
            await sent(port, b"GET http://x HTTP/1.1\r\nhost: x\r\n" + close)
            await sent(port, b"OPTIONS * HTTP/1.1\r\nhost: x\r\n" + close)
            assert paths == ["/", "*"]

    async def test_white_space_around_a_value_is_no_part_of_it_and_a_trailer_no_header(self) -> None:
        headers: list[tuple[bytes, bytes]] = []
        answer_now = answering(b"done")

        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive()).get("more_body"):
                pass
            headers.extend(scope["headers"])
            await answer_now(scope, receive, send)

        raw = b"POST / HTTP/1.1\r\nHost: x\t\r\nAccept:\t \t*/* \t\r\nX-Request-Id:a\t\r\nempty:\r\nblank: \t \r\n"
        raw += b"inner: a \t b\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        async with served(noting) as port:
            await sent(port, raw + b"2\r\n{}\r\n0\r\nIdempotency-Key: trailer\r\n\r\n")
        assert headers == [
            (b"host", b"x"),
            (b"accept", b"*/*"),
            (b"x-request-id", b"a"),
            (b"empty", b""),
            (b"blank", b""),
            (b"inner", b"a \t b"),
            (b"transfer-encoding", b"chunked"),
            (b"connection", b"close"),
        ]

    async def test_a_client_of_http_1_0_is_not_sent_a_100(self, subtests: pytest.Subtests) -> None:
        head = b"POST / HTTP/%s\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"
        for version, statuses in ((b"1.0", [b"200"]), (b"1.1", [b"100", b"200"])):
            with subtests.test(version=version):
                found: list[tuple[str, bytes]] = []
                async with served(keeping(found)) as port:
                    answer = await sent(port, head % version, b"{}")
                assert re.findall(rb"HTTP/1\.1 (\d{3}) ", answer) == statuses
                assert found == [("/", b"{}")]

    async def test_what_is_refused_has_an_id(self, subtests: pytest.Subtests) -> None:
        given = b"GET / HTTP/1.1\r\nx-request-id: 0123456789abcdef\r\n"
        for raw, id_ in (
            (b"HELO\r\n\r\n", rb"[0-9a-f]{16}"),
            (given + b"x: 1\r\n" * 101 + b"\r\n", rb"0123456789abcdef"),
            (b"GET / HTTP/1.1\r\nx-request-id: 0123456789abcdef \t\r\n\r\n", rb"0123456789abcdef"),
            (b"GET / HTTP/1.1\r\nx-request-id: no id\r\nx y\r\n\r\n", rb"[0-9a-f]{16}"),
        ):
            with subtests.test(raw=raw[:80]):
                async with served(answering(b"done")) as port:
                    answer = await sent(port, raw)
                assert re.match(rb"HTTP/1\.1 4", answer)
                assert re.search(rb"\r\nx-request-id: %s\r\n" % id_, answer)


class TestBody:
    async def test_what_follows_it_has_a_bound_also_after_the_answer(
        self, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
    ) -> None:
        monkeypatch.setenv("TOLLGATE_MAX_BODY_BYTES", "100000")
        connection._settings.cache_clear()
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        most = 32_768 + 8 * 100_000
        try:
            # A trailer that is answered before it, and a body that is passed over.
            for begin, again, is_closed in (
                (head + b"0\r\nx: ", b"y" * 50_000, True),
                (head, b"c350\r\n%s\r\n" % (b"y" * 50_000), False),
            ):
                with subtests.test(is_closed=is_closed):
                    async with served(answering(b"done")) as port:
                        reader, writer = await asyncio.open_connection("127.0.0.1", port)
                        writer.write(begin)
                        async with asyncio.timeout(30):
                            assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200 ")
                            with suppress(ConnectionError):
                                for _ in range(2 * most // len(again)):
                                    writer.write(again)
                                    await writer.drain()
                                    await asyncio.sleep(0.01)
                            with suppress(TimeoutError, ConnectionError):
                                await asyncio.wait_for(reader.read(), 1)
                        assert (reader.at_eof() or reader.exception() is not None) == is_closed
                        writer.close()
        finally:
            connection._settings.cache_clear()

    @pytest.mark.parametrize("is_answered", [False, True])
    async def test_it_comes_in_so_many_chunks_and_no_more(self, *, is_answered: bool) -> None:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        found: list[tuple[str, bytes]] = []
        app = answering(b"done") if is_answered else keeping(found)
        reported: list[str] = []
        for chunks in (server.MAX_CHUNKS, server.MAX_CHUNKS + 1):
            async with served(with_refusals(reported, app), lifespan="on") as port:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(head)
                if is_answered:
                    assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200 ")
                writer.write(
                    b"1\r\nx\r\n" * chunks + b"0\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
                )
                answer = await reader.read()
                writer.close()
            if chunks == server.MAX_CHUNKS:
                assert answer.count(b"HTTP/1.1 200 ") == (1 if is_answered else 2)
                assert found == ([] if is_answered else [("/", b"x" * chunks), ("/", b"")])
                assert reported == []
            elif is_answered:
                assert (answer, reported) == (b"", ["BODY_TOO_LARGE"])
            else:
                assert answer.startswith(b"HTTP/1.1 413 ")
                message = b"The body must come in at most 4096 chunks."
                assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
                    "errors": [{"message": message.decode(), "extensions": {"code": "LIMIT_EXCEEDED"}}]
                }
                assert len(found) == 2

    async def test_what_follows_the_answer_is_read_at_one_rate_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flow, "IN_VAIN_BYTES_PER_SECOND", 1)
        monkeypatch.setattr(flow.Flow, "paced_until", 0.0)
        taken: list[int] = []
        pass_over = server.Protocol._pass_over

        def counting(protocol: server.Protocol, size: int) -> None:
            taken.append(size)
            pass_over(protocol, size)

        monkeypatch.setattr(server.Protocol, "_pass_over", counting)
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n"
        async with served(answering(b"done")) as port:
            connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            for reader, writer in connections:
                writer.write(head)
                assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200 ")
                writer.write(b"x" * 20_000_000)
            # Others are served meanwhile, and nothing more is read of these.
            for _ in range(20):
                assert (await sent(port, TestIdle.GET.replace(b"host", b"connection: close\r\nhost"))).endswith(b"done")
            assert len(taken) == len(connections)
            for _, writer in connections:
                writer.transport.abort()

    async def test_what_follows_the_answer_is_held_against_its_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOLLGATE_BODY_SECONDS", "1")
        monkeypatch.setattr(flow, "IN_VAIN_BYTES_PER_SECOND", 1)
        monkeypatch.setattr(flow.Flow, "paced_until", 0.0)
        connection._settings.cache_clear()
        reported: list[str] = []
        try:
            app = with_refusals(reported, answering(b"done"))
            async with served(app, lifespan="on") as port, asyncio.timeout(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n")
                await reader.readuntil(b"done")
                with suppress(ConnectionError):
                    while True:
                        writer.write(b"x" * 100_000)
                        await writer.drain()
                writer.close()
            assert reported == ["BODY_TOO_SLOW"]
        finally:
            connection._settings.cache_clear()


class TestIdle:
    """Connections between two requests."""

    GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"

    async def test_one_is_closed_after_the_time_that_is_set(self) -> None:
        async with served(answering(b"done"), idle_seconds=1) as port:
            assert (await sent(port, self.GET)).endswith(b"done")
        # Load balancers keep theirs for 60 seconds.
        assert Settings().keep_alive_seconds == 75

    async def test_a_body_that_was_not_read_is_not_kept(self) -> None:
        async with running_server(answering(b"done")) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.config.port)
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n" + b"y" * 9_000)
            assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200 ")
            [connection] = running.server_state.connections
            assert isinstance(connection, server.Protocol)
            assert connection.cycle.body == b""
            writer.close()

    async def test_the_longest_idle_one_makes_room_for_a_new_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOLLGATE_MAX_CONNECTIONS", "3")
        connection._settings.cache_clear()
        try:
            async with served(answering(b"done"), idle_seconds=60) as port, asyncio.timeout(30):
                idle = []
                for _ in range(3):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(self.GET)
                    await reader.readuntil(b"done")
                    idle.append((reader, writer))
                # The first one asks again, so that the second one has been idle for longest.
                idle[0][1].write(self.GET)
                await idle[0][0].readuntil(b"done")
                assert (await sent(port, self.GET[:-2] + b"connection: close\r\n\r\n")).endswith(b"done")
                assert await idle[1][0].read() == b""
                for number in (0, 2):
                    idle[number][1].write(self.GET)
                    await idle[number][0].readuntil(b"done")
                for _, writer in idle:
                    writer.close()
        finally:
            connection._settings.cache_clear()

    async def test_no_open_file_left_is_reported_once_a_minute(self, caplog: pytest.LogCaptureFixture) -> None:
        watch = Watch()
        await watch()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # So many that all numbers below the last one are in use.
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (files[-1] + 1, hard))
        try:
            for _ in range(3):
                await watch()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in files:
                os.close(each)
        await watch()
        (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert line == (
            f"No more files can be opened (Too many open files; at most {files[-1] + 1}, ulimit -n): "
            "new connections are reset"
        )


def test_an_address_that_was_opened_since_it_was_bound_is_refused() -> None:
    # Two gateways that start at the same moment.
    [ours] = listening("127.0.0.1", port := free_port())
    [theirs] = listening("127.0.0.1", port)
    with ours, theirs:
        theirs.listen()
        with pytest.raises(CannotListen, match=r"^Address already in use$"):
            serve(Settings(port=port), [ours], reload=False, announce=lambda: None)


def test_an_idle_connection_is_kept_for_as_long_as_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, _sockets: kept.append(server.config.timeout_keep_alive))
    for settings in (Settings.read({}), Settings.read({"TOLLGATE_KEEP_ALIVE_SECONDS": "61"})):
        with listening("127.0.0.1", free_port())[0] as ours:
            serve(settings, [ours], reload=False, announce=lambda: None)
    assert kept == [75, 61]


def logged_by_server(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the server has logged; gateways that other tests have opened may log beside it."""
    return [each.getMessage() for each in caplog.records if each.name.startswith(("uvicorn", "gateway.server"))]


class TestUpgrade:
    """An upgrade that is not done is ignored, and what follows its head is parsed as HTTP/1.1."""

    async def test_a_body_is_the_request_s_own_and_the_next_request_is_answered(
        self, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
    ) -> None:
        inner = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
        after = b"GET /after HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        for protocol in (b"foo", b"h2c", b"websocket"):
            head = (
                b"POST /asked HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: %s\r\n" % protocol
            )
            announced = head + b"content-length: %d\r\n\r\n" % len(inner)
            chunked = head + b"transfer-encoding: chunked\r\n\r\n"
            chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
            for parts in (
                (announced + inner + after,),
                (announced, inner, after),
                (announced[:-1], announced[-1:] + inner + after),
                (announced + inner[:9], inner[9:] + after[:9], after[9:]),
                (chunked + chunk + after,),
                (chunked, chunk[:5], chunk[5:] + after),
            ):
                with subtests.test(parts=parts):
                    found: list[tuple[str, bytes]] = []
                    async with served(keeping(found)) as port:
                        answer = await sent(port, *parts)
                    assert answer.count(b"HTTP/1.1 200 ") == answer.count(b"HTTP/1.1 ") == 2
                    assert found == [("/asked", inner), ("/after", b"")]
        assert logged_by_server(caplog) == []

    async def test_one_in_the_last_request_of_a_connection_is_answered_at_once(self, subtests: pytest.Subtests) -> None:
        last = b"connection: upgrade\r\nupgrade: h2c\r\nconnection: close\r\n"
        for head in (
            b"HTTP/1.1\r\n" + last,
            b"HTTP/1.1\r\nconnection: close, upgrade\r\nupgrade: websocket\r\n",
            b"HTTP/1.0\r\nconnection: upgrade\r\nupgrade: websocket\r\n",
        ):
            for body in (b"", b"{}"):
                with subtests.test(head=head, body=body):
                    found: list[tuple[str, bytes]] = []
                    raw = b"POST /asked " + head + b"host: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
                    async with served(keeping(found)) as port, asyncio.timeout(Settings().head_seconds - 2):
                        answer = await sent(port, raw + b"GET /after HTTP/1.1\r\nhost: x\r\n\r\n")
                    assert answer.count(b"HTTP/1.1 200 ") == answer.count(b"HTTP/1.1 ") == 1
                    assert found == [("/asked", body)]

    async def test_without_a_body_too_and_its_header_reaches_the_application(self, subtests: pytest.Subtests) -> None:
        head = b"GET /asked HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        after = b"GET /after HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        headers: list[list[tuple[bytes, bytes]]] = []
        answer_now = answering(b"done")

        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            headers.append(list(scope["headers"]))
            await answer_now(scope, receive, send)

        for parts in ((head * 20 + after,), (head, after)):
            with subtests.test(parts=len(parts)):
                headers.clear()
                async with served(noting) as port:
                    answer = await sent(port, *parts)
                count = len(b"".join(parts).split(b"GET /asked")) - 1
                assert answer.count(b"HTTP/1.1 200 ") == answer.count(b"HTTP/1.1 ") == count + 1
                asked = [(b"host", b"x"), (b"connection", b"upgrade"), (b"upgrade", b"websocket")]
                assert headers == [asked] * count + [[(b"host", b"x"), (b"connection", b"close")]]


def keeping(found: list[tuple[str, bytes]]) -> ASGIApp:
    """Return an application that notes the path and the body of each request."""
    answer = answering(b"done")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, has_more = b"", True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            has_more = message["more_body"]
        found.append((scope["path"], body))
        await answer(scope, receive, send)

    return app


GET = b"GET /graphql?secret HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /v1/customers?secret HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"

#: What is refused, how it is sent, and its line in the log: the path, the status and the outcome.
REFUSED: dict[str, tuple[tuple[bytes, ...], tuple[str | None, int | None, str]]] = {
    "MALFORMED": ((b"HELO secret\r\n\r\n",), (None, 400, "BAD_USER_INPUT")),
    "HEAD_TOO_LARGE": ((GET + b"x: " + b"y" * 33_000 + b"\r\n\r\n",), ("/graphql", 431, "LIMIT_EXCEEDED")),
    "TOO_MANY_HEADERS": ((GET + b"x: 1\r\n" * 100 + b"\r\n",), ("/graphql", 431, "LIMIT_EXCEEDED")),
    "HEAD_TOO_SLOW": ((GET,), ("/graphql", 408, "TIMEOUT")),
    # Without a key it has its 401 before, which the line of the request reports.
    "BODY_TOO_SLOW": ((POST + b"content-length: 9\r\n\r\n", b"{"), ("/v1/customers", None, "TIMEOUT")),
    # All at once, so that the application only hears that it is over.
    "BODY_TOO_LARGE": (
        (POST + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"y" * 45_000,),
        ("/v1/customers", 413, "LIMIT_EXCEEDED"),
    ),
}


class TestReported:
    """What is refused has a line of log and is counted, as what the application answers."""

    async def test_each_refusal_has_one_line_and_is_counted(
        self, on_sqlite: Gateway, tmp_path: Path, subtests: pytest.Subtests
    ) -> None:
        settings = {"HEAD_SECONDS": "1", "BODY_SECONDS": "1", "MAX_BODY_BYTES": "1024", "METRICS_TOKEN": TOKEN}
        url = on_sqlite.services.settings.database_url
        async with serving(url, tmp_path, **{f"TOLLGATE_{name}": value for name, value in settings.items()}) as server:
            for reason, (parts, expected) in REFUSED.items():
                with subtests.test(reason=reason):
                    answer = await sent(server.port, *parts)
                    line = await refusal_in(server, reason)
                    path, status, outcome = expected
                    method = "POST" if reason == "BODY_TOO_LARGE" else None
                    if method is not None and line["status"] is None:
                        # What was sent at once came in parts, and the request had its 401 before the last one.
                        method, status = None, None
                    assert (line["path"], line["status"], line["outcome"]) == (path, status, outcome)
                    assert (line["level"], line["method"]) == ("info", method)
                    assert f"\r\nx-request-id: {line['request_id']}\r\n".encode() in answer
                    assert answer.startswith(b"HTTP/1.1 %d " % (line["status"] or 401))
            assert await counted(server) == dict.fromkeys(REASONS, 0.0) | dict.fromkeys(REFUSED, 1.0)
            # No line is logged twice, nor anything that was sent.
            assert len([line for line in server.log if "refus" in line]) == len(REFUSED)
            assert "Invalid HTTP" not in server.logged
            assert "secret" not in server.logged

    async def test_a_request_whose_body_is_refused_has_its_own_line_and_no_other(
        self, on_sqlite: Gateway, tmp_path: Path
    ) -> None:
        url = on_sqlite.services.settings.database_url
        head = b"POST /graphql HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n" % on_sqlite.key.encode()
        head += b"content-type: application/json\r\ncontent-length: 9\r\n\r\n"
        async with serving(
            url, tmp_path, TOLLGATE_BODY_SECONDS="1", TOLLGATE_METRICS_TOKEN=TOKEN, TOLLGATE_LOG_FORMAT="json"
        ) as server:
            answer = await sent(server.port, head, b"{")
            assert answer.startswith(b"HTTP/1.1 408 ")
            line = await refusal_in(server, "BODY_TOO_SLOW")
            assert f"\r\nx-request-id: {line['request_id']}\r\n".encode() in answer
            assert (line["method"], line["path"], line["status"], line["outcome"]) == (
                "POST",
                "/graphql",
                408,
                "TIMEOUT",
            )
            assert line["key_id"].startswith("key_")
            assert (await counted(server))["BODY_TOO_SLOW"] == 1
            found = await figures(server)
            assert found["tollgate_requests_total", "(none)", "TIMEOUT"] == 1
            assert len([each for each in server.log if '"POST"' in each]) == 1

    async def test_a_flood_without_a_key_leaves_the_log_the_memory_and_others_alone(
        self, on_sqlite: Gateway, tmp_path: Path
    ) -> None:
        url = on_sqlite.services.settings.database_url
        raws = [
            b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n",
            b"POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        ]
        last = b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        async with serving(url, tmp_path, TOLLGATE_METRICS_TOKEN=TOKEN) as server:
            before = server.memory()
            # All of the answers are read.
            answer = await sent(server.port, b"".join(raws) * 1_000 + last)
            assert answer.count(b"HTTP/1.1 404 ") == 1_001
            assert answer.count(b"HTTP/1.1 401 ") == 1_000
            # None of them is read.
            connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
            for connection in connections:
                connection.settimeout(0)
                with suppress(BlockingIOError):
                    connection.sendall(raws[0] * 30_000)
            async with server.client() as client:
                assert (await client.get("/healthz")).json() == {"status": "ok"}
                for connection in connections:
                    connection.close()
                # What the server still has of them goes with their connections.
                answered = (await figures(server))["tollgate_requests_total", "(none)", "BAD_USER_INPUT"]
            assert server.memory() - before < 60_000_000
        lines = [json.loads(line) for line in server.log if '"logger":"tollgate.requests"' in line]
        logged = [line for line in lines if line["status"] in {401, 404} or line["outcome"] == "DISCONNECTED"]
        assert logged[0].get("repeated") is None
        assert logged[1]["repeated"] == 2_000
        # Of each connection the first request, and all others together.
        assert len(logged) <= 2 * 21
        assert answered > 1_001

    async def test_connections_too_many_and_answers_unread_are_reported_too(
        self, on_sqlite: Gateway, tmp_path: Path
    ) -> None:
        url = on_sqlite.services.settings.database_url
        async with serving(
            url,
            tmp_path,
            TOLLGATE_MAX_CONNECTIONS="2",
            TOLLGATE_ANSWER_SECONDS="1",
            TOLLGATE_METRICS_TOKEN=TOKEN,
        ) as server:
            ask = b"GET /schema.graphql HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n\r\n"
            with socket.create_connection(("127.0.0.1", server.port)) as first:
                first.sendall(ask % on_sqlite.key.encode() * 500)
                with socket.create_connection(("127.0.0.1", server.port)):
                    # The third one.
                    assert (await sent(server.port)).startswith(b"HTTP/1.1 503 ")
                    line = await refusal_in(server, "TOO_MANY_CONNECTIONS")
                    assert (line["level"], line["status"], line["outcome"]) == ("warning", 503, "UNAVAILABLE")
                line = await refusal_in(server, "ANSWER_UNREAD")
                assert (line["level"], line["status"], line["outcome"]) == ("info", None, "TIMEOUT")
            # The request has its line beside it, with the same id.
            async with asyncio.timeout(60):
                while not any("/schema.graphql" in each and line["request_id"] in each for each in server.log):  # noqa: ASYNC110  # It is another process.
                    await asyncio.sleep(0.05)
            counts = await counted(server)
            assert (counts["TOO_MANY_CONNECTIONS"], counts["ANSWER_UNREAD"]) == (1, 1)


async def refusal_in(server: Server, reason: str) -> dict[str, Any]:
    """Return the one line of the server's log that reports such a refusal, once it is there."""
    async with asyncio.timeout(60):
        while not (lines := [line for line in server.log if f'"refusal":"{reason}"' in line]):  # noqa: ASYNC110  # It is another process.
            await asyncio.sleep(0.05)
    (line,) = lines
    found: dict[str, Any] = json.loads(line)
    return found


async def figures(server: Server) -> Samples:
    async with server.client() as client:
        return await samples(client)


async def counted(server: Server) -> dict[str, float]:
    """Return how often each reason was counted."""
    found = await figures(server)
    return {key[1]: value for key, value in found.items() if key[0] == "tollgate_refusals_total"}
