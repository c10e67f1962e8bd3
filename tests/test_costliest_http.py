"""The costliest bytes that a connection may send, found by search: what is parsed costs as much as it is long."""

import asyncio
import sys
from types import FrameType
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings, target
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.server.protocol import MAX_HELD_BYTES, Protocol

#: The maximum number of calls of functions that a kilobyte may cost, and a connection's bytes beside them.
MAX_CALLS_PER_KILOBYTE = 1_500
MAX_CALLS_BESIDE = 3_000

#: The maximum number of bytes that are answered to one connection.
MAX_ANSWERED = 16 * 1024


class Transport(asyncio.Transport):
    """The other end of a connection: it keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self._is_closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    abort = close

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def never(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Be an application that answers nobody, so that what follows the first request waits."""
    await asyncio.get_running_loop().create_future()


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Draw what a connection sends, in one or more parts: requests with a target, headers, a body, trailers."""
    size = st.sampled_from([0, 1, 2, 7, 100, 1_000, 4_000, 20_000])

    def header(number: int) -> bytes:
        name = b"x" * draw(st.sampled_from([1, 1, 8, 200])) + b"%d" % number
        return name + b":" + draw(st.sampled_from([b"", b" ", b"\t" * 50])) + b"v" * draw(size) + b"\r\n"

    request = (
        draw(st.sampled_from([b"GET", b"POST", b"M-SEARCH", b"{}"])) + b" /" + b"%41" * draw(size) + b" HTTP/1.1\r\n"
    )
    request += b"host: x\r\n" + b"".join(map(header, range(draw(st.sampled_from([0, 1, 10, 99, 100, 101, 500])))))
    body = draw(st.sampled_from(["none", "length", "chunks"]))
    if body == "length":
        length = draw(size)
        request += b"content-length: %d\r\n\r\n" % length + b"b" * length
    elif body == "chunks":
        chunk = draw(st.sampled_from([b"1\r\nb\r\n", b"000000001;e=1\r\nb\r\n", b"40\r\n" + b"b" * 64 + b"\r\n"]))
        trailers = b"".join(map(header, range(draw(st.sampled_from([0, 1, 100, 1_000])))))
        request += b"transfer-encoding: chunked\r\n\r\n" + chunk * draw(size) + b"0\r\n" + trailers + b"\r\n"
    else:
        request += b"\r\n"
    stream = request * draw(st.sampled_from([1, 1, 2, 16, 17, 200]))
    stream = stream[: draw(st.sampled_from([len(stream), 100_000]))][:1_000_000]
    part = draw(st.sampled_from([len(stream), 65_536, 1_000]))
    return [stream[place : place + part] for place in range(0, len(stream), max(1, part))]


async def sent(parts: list[bytes]) -> tuple[int, Transport]:
    """Send them to a connection, and return how many calls that took and what was answered."""
    config = uvicorn.Config(never, http=Protocol, lifespan="off", log_config=None)
    config.load()
    protocol = Protocol(config, ServerState(), {})
    transport = Transport()
    calls = 0

    def count(_frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    protocol.connection_made(transport)
    for part in parts:
        sys.setprofile(count)
        try:
            protocol.data_received(part)
        finally:
            sys.setprofile(None)
        if transport.is_closing():
            break
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    held = len(protocol._held) - protocol._held_from
    protocol.connection_lost(None)
    assert held <= MAX_HELD_BYTES
    return calls, transport


@pytest.mark.slow
def test_what_a_connection_sends_costs_as_much_as_it_is_long(pytestconfig: pytest.Config) -> None:
    max_examples = 600 if pytestconfig.getoption("fuzz") else 60

    @settings(max_examples=max_examples, deadline=None, database=None, derandomize=True)
    @given(parts=streams())
    def check(parts: list[bytes]) -> None:
        calls, transport = asyncio.run(sent(parts))
        kilobytes = sum(map(len, parts)) / 1_000
        target((calls - MAX_CALLS_BESIDE) / (kilobytes + 1))
        assert calls < MAX_CALLS_BESIDE + MAX_CALLS_PER_KILOBYTE * kilobytes
        assert len(transport.written) < MAX_ANSWERED

    check()
