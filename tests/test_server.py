"""The server's protocol: who does not read an answer is left behind, however the answers come about."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import server
from gateway.observation import REASONS
from gateway.observation import REFUSED as SERVER_REFUSED
from tests.conftest import Gateway
from tests.servers import Server, free_port, serving
from tests.test_metrics import TOKEN, Samples, samples


def answering(body: bytes) -> ASGIApp:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def telling(paths: list[str]) -> ASGIApp:
    """Return an application that notes the paths it is asked for."""
    app = answering(b"done")

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await app(scope, receive, send)

    return noting


@asynccontextmanager
async def served(app: ASGIApp, *, lifespan: Literal["on", "off"] = "off") -> AsyncIterator[int]:
    """Serve the application by our protocol, and return the port."""
    port = free_port()
    config = uvicorn.Config(
        app,
        port=port,
        http="gateway.server:Protocol",
        ws="none",
        lifespan=lifespan,
        # What it tells is to be seen by the tests.
        log_config=None,
        log_level="warning",
    )
    running = uvicorn.Server(config)
    serving = asyncio.create_task(running.serve())
    while not running.started:  # noqa: ASYNC110  # Nothing tells of it.
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        running.should_exit = True
        await serving


async def sent(port: int, *parts: bytes) -> bytes:
    """Send the parts, a moment apart, and return all that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(30):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.1)
        answer = await reader.read()
    writer.close()
    return answer


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
    server._settings.cache_clear()
    try:
        # One that is large, and many that were asked for in advance; both are more than the machine keeps.
        for size, requests in ((60_000_000, 1), (60_000, 1_000)):
            with subtests.test(size=size):
                async with served(answering(b"x" * size)) as port:
                    read = await asyncio.to_thread(ask_and_read_late, port, requests)
                    assert 0 < read < size * requests
                # What was still to be answered is no bug.
                assert caplog.records == []
    finally:
        server._settings.cache_clear()


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
        told: list[str] = []
        answer = telling(paths)

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                scope["state"][SERVER_REFUSED] = lambda reason, **_: told.append(reason)
                for step in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{step}.complete"})
                return
            # It reads on, and so lets the server read on.
            await receive()
            reading = asyncio.ensure_future(receive())
            await asyncio.sleep(0.5)  # The other parts come meanwhile: `sent` sends them a tenth of a second apart.
            await answer(scope, receive, send)
            reading.cancel()

        parts = [before + self.THIRD, b"zz\r\n", b"more\r\n", b"and more\r\n"]
        async with served(late, lifespan="on") as port:
            read = await sent(port, *(parts if count > 1 else [b"".join(parts)]))
        assert paths == ["/first", "/second"][: before.count(b"POST")]
        assert read.count(b"HTTP/1.1 200 ") == read.count(b"done") == len(paths)
        assert read.count(b"HTTP/1.1 ") == len(paths)
        assert told == ["MALFORMED"]
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []

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
                # The server has ended its side; that it has ended the connection is told by what cannot be sent.
                with suppress(ConnectionError):
                    while True:
                        writer.write(b"x")
                        await writer.drain()
                        await asyncio.sleep(0.1)  # Until the next try; what ends the loop is the server.
            writer.close()


class TestHead:
    async def test_a_url_that_cannot_be_taken_apart_is_refused(
        self, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
    ) -> None:
        write = b"POST /write HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
        for line in (b"GET http://x", b"CONNECT x:443", b"GET \xff"):
            raw = line + b" HTTP/1.1\r\nhost: x\r\n\r\n"
            with subtests.test(line=line):
                paths: list[str] = []
                async with served(telling(paths)) as port:
                    answer = await sent(port, raw)
                    assert answer.startswith(b"HTTP/1.1 400 ")
                    assert paths == []
                    # What it follows is answered.
                    answer = await sent(port, write + raw)
                    assert answer.startswith(b"HTTP/1.1 200 ")
                    assert answer.endswith(b"done")
                    assert answer.count(b"HTTP/1.1 ") == 1
                    assert paths == ["/write"]
        assert {record.levelname for record in caplog.records} == {"WARNING"}

    async def test_one_that_is_too_large_is_refused_also_behind_another_request(
        self, subtests: pytest.Subtests
    ) -> None:
        first = b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n"
        large = b"GET /large HTTP/1.1\r\nhost: x\r\nx: %s\r\n\r\n" % (b"y" * 40_000)
        # At once, and in two parts of which the second alone is small enough.
        for parts in ((first + large,), (first + large[:30_000], large[30_000:])):
            with subtests.test(parts=len(parts)):
                paths: list[str] = []
                async with served(telling(paths)) as port:
                    await sent(port, *parts)
                assert paths == ["/first"]

    async def test_one_that_does_not_come_to_an_end_leaves_the_request_before_it_its_answer(
        self, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
    ) -> None:
        monkeypatch.setenv("TOLLGATE_HEAD_SECONDS", "1")
        server._settings.cache_clear()
        answer_now = answering(b"done")

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(2)
            await answer_now(scope, receive, send)

        first = b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
        try:
            for second in (
                b"GET /sec",
                b"GET /second HTTP/1.1\r\nx: " + b"y" * 40_000,
                b"GET /second HTTP/1.1\r\n" + b"x: 1\r\n" * 101 + b"\r\n",
            ):
                with subtests.test(size=len(second)):
                    async with served(late) as port:
                        answer = await sent(port, first, second)
                    assert answer.startswith(b"HTTP/1.1 200 ")
                    assert answer.endswith(b"done")
                    assert answer.count(b"HTTP/1.1 ") == 1
        finally:
            server._settings.cache_clear()

    async def test_what_is_refused_has_an_id(self, subtests: pytest.Subtests) -> None:
        given = b"GET / HTTP/1.1\r\nx-request-id: 0123456789abcdef\r\n"
        for raw, told in (
            (b"HELO\r\n\r\n", rb"[0-9a-f]{16}"),
            (given + b"x: 1\r\n" * 101 + b"\r\n", rb"0123456789abcdef"),
            (b"GET / HTTP/1.1\r\nx-request-id: no id\r\nx y\r\n\r\n", rb"[0-9a-f]{16}"),
        ):
            with subtests.test(raw=raw[:80]):
                async with served(answering(b"done")) as port:
                    answer = await sent(port, raw)
                assert re.match(rb"HTTP/1\.1 4", answer)
                assert re.search(rb"\r\nx-request-id: %s\r\n" % told, answer)


class TestBody:
    async def test_what_follows_it_has_a_bound_also_after_the_answer(
        self, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
    ) -> None:
        monkeypatch.setenv("TOLLGATE_MAX_BODY_BYTES", "100000")
        server._settings.cache_clear()
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
            server._settings.cache_clear()


class TestUpgrade:
    async def test_a_body_is_not_taken_for_the_next_request(
        self, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
    ) -> None:
        smuggled = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
        for protocol in (b"foo", b"h2c", b"websocket"):
            head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: %s\r\n" % protocol
            announced = b"content-length: %d\r\n\r\n" % len(smuggled)
            chunked = b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(smuggled)
            for parts in (
                (head + announced + smuggled,),
                (head + announced, smuggled),
                (head + chunked + smuggled + b"\r\n0\r\n\r\n",),
                (head + chunked, smuggled),
            ):
                with subtests.test(parts=parts):
                    paths: list[str] = []
                    async with served(telling(paths)) as port:
                        answer = await sent(port, *parts)
                    assert answer.startswith(b"HTTP/1.1 400 ")
                    assert answer.count(b"HTTP/1.1 ") == 1
                    assert answer.endswith(
                        b'{"errors":[{"message":"A request that asks for another protocol must have no body.",'
                        b'"extensions":{"code":"BAD_USER_INPUT"}}]}'
                    )
                    assert paths == []
        assert {record.message for record in caplog.records} == {"Invalid HTTP request received."}

    async def test_without_a_body_it_is_answered_and_the_last_of_its_connection(
        self, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
    ) -> None:
        head = b"GET /asked HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: h2c\r\n\r\n"
        after = b"GET /after HTTP/1.1\r\nhost: x\r\n\r\n"
        for parts in ((head,), (head + after,)):
            with subtests.test(parts=parts):
                paths: list[str] = []
                async with served(telling(paths)) as port:
                    answer = await sent(port, *parts)
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert answer.endswith(b"\r\nconnection: close\r\n\r\ndone")
                assert answer.count(b"HTTP/1.1 ") == 1
                assert paths == ["/asked"]
        assert caplog.records == []


GET = b"GET /graphql?secret HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /v1/customers?secret HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"

#: What is refused, how it is sent, and its line in the log: the path, the status and the outcome.
REFUSED: dict[str, tuple[tuple[bytes, ...], tuple[str | None, int | None, str]]] = {
    "MALFORMED": ((b"HELO secret\r\n\r\n",), (None, 400, "BAD_USER_INPUT")),
    "HEAD_TOO_LARGE": ((GET + b"x: " + b"y" * 33_000 + b"\r\n\r\n",), ("/graphql", 431, "LIMIT_EXCEEDED")),
    "TOO_MANY_HEADERS": ((GET + b"x: 1\r\n" * 100 + b"\r\n",), ("/graphql", 431, "LIMIT_EXCEEDED")),
    "HEAD_TOO_SLOW": ((GET,), ("/graphql", 408, "TIMEOUT")),
    # Without a key it has its 401 before, which the line of the request tells.
    "BODY_TOO_SLOW": ((POST + b"content-length: 9\r\n\r\n", b"{"), ("/v1/customers", None, "TIMEOUT")),
    # All at once, so that the application only hears that it is over.
    "BODY_TOO_LARGE": (
        (POST + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"y" * 45_000,),
        ("/v1/customers", 413, "LIMIT_EXCEEDED"),
    ),
}


class TestTold:
    """What is refused has a line of log and is counted, as what the application answers."""

    async def test_each_refusal_has_one_line_and_is_counted(
        self, on_sqlite: Gateway, tmp_path: Path, subtests: pytest.Subtests
    ) -> None:
        settings = {"HEAD_SECONDS": "1", "BODY_SECONDS": "1", "MAX_BODY_BYTES": "1024", "METRICS_TOKEN": TOKEN}
        url = on_sqlite.services.settings.database_url
        async with serving(url, tmp_path, **{f"TOLLGATE_{name}": value for name, value in settings.items()}) as server:
            for reason, (parts, told) in REFUSED.items():
                with subtests.test(reason=reason):
                    answer = await sent(server.port, *parts)
                    line = await refusal_in(server, reason)
                    path, status, outcome = told
                    method = "POST" if reason == "BODY_TOO_LARGE" else None
                    if method is not None and line["status"] is None:
                        # What was sent at once came in parts, and the request had its 401 before the last one.
                        method, status = None, None
                    assert (line["path"], line["status"], line["outcome"]) == (path, status, outcome)
                    assert (line["level"], line["method"]) == ("info", method)
                    assert f"\r\nx-request-id: {line['request_id']}\r\n".encode() in answer
                    assert answer.startswith(b"HTTP/1.1 %d " % (line["status"] or 401))
            assert await counted(server) == dict.fromkeys(REASONS, 0.0) | dict.fromkeys(REFUSED, 1.0)
            # No line is told twice, nor anything that was sent.
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

    async def test_connections_too_many_and_answers_unread_are_told_too(
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
            ids = [json.loads(each)["request_id"] for each in server.log if "/schema.graphql" in each]
            assert line["request_id"] in ids
            told = await counted(server)
            assert (told["TOO_MANY_CONNECTIONS"], told["ANSWER_UNREAD"]) == (1, 1)


async def refusal_in(server: Server, reason: str) -> dict[str, Any]:
    """Return the one line of the server's log that tells of such a refusal, once it is there."""
    async with asyncio.timeout(60):
        while not (lines := [line for line in server.log if f'"refusal":"{reason}"' in line]):  # noqa: ASYNC110  # It is another process.
            await asyncio.sleep(0.05)
    (line,) = lines
    found: dict[str, Any] = json.loads(line)
    return found


async def figures(server: Server) -> Samples:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        return await samples(client)


async def counted(server: Server) -> dict[str, float]:
    """Return how often each reason was counted."""
    found = await figures(server)
    return {key[1]: value for key, value in found.items() if key[0] == "tollgate_refusals_total"}
