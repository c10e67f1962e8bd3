"""Commands of `tollgate`, without the second that each would take to import what it needs.

Each is a process of its own, with the environment, the folder and the streams that it is given, but it is forked from
one that has imported everything: `tests.forking`. Tests of the program's own start start `TOLLGATE`.
"""

import asyncio
import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

FORKING = Path(__file__).with_name("forking.py")


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, where it succeeded."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def environment(**settings: str) -> dict[str, str]:
    """Return the environment of the tests with these settings of Tollgate alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")} | settings


def run(
    *arguments: str, folder: Path, environment: Mapping[str, str], stdin: bytes = b"", obeys_modes: bool = False
) -> Done:
    """Run `tollgate` to its end, which may also be a bug; modes of files may be said to hold for root as for others."""
    (source, feed), (output, out) = os.pipe(), os.pipe()
    feeding = Thread(target=_feed, args=(feed, stdin))
    # A file, so that whatever it writes there does not wait for what is read of the other.
    with tempfile.TemporaryFile() as err:
        outcome = _fork(arguments, environment, folder, [source, out, err.fileno()], obeys_modes=obeys_modes)
        for descriptor in (source, out):
            os.close(descriptor)
        feeding.start()
        with os.fdopen(output, "rb") as printed, os.fdopen(outcome, "rb") as ended:
            text, code = printed.read().decode(), int(ended.read().split()[1])
        feeding.join()
        err.seek(0)
        return Done(code, text, err.read().decode())


class Running:
    """A command that runs: its number, and its exit status once it has ended."""

    def __init__(self, outcome: asyncio.StreamReader, pid: int) -> None:
        self.pid = pid
        self._ending = asyncio.create_task(outcome.read())

    @property
    def returncode(self) -> int | None:
        """Its exit status; None: it runs."""
        return int(self._ending.result()) if self._ending.done() else None

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            if self.returncode is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until it has ended, and return its exit status."""
        return int(await asyncio.shield(self._ending))


async def start(*arguments: str, folder: Path, environment: Mapping[str, str]) -> tuple[Running, asyncio.StreamReader]:
    """Start `tollgate`, and return it with what it writes to standard error."""
    errors, err = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    outcome = _fork(arguments, environment, folder, [null, null, err])
    for descriptor in (null, err):
        os.close(descriptor)
    ended, written = await _reader(outcome), await _reader(errors)
    return Running(ended, int(await ended.readline())), written


async def _reader(pipe: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb")
    )
    return reader


def _fork(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    streams: list[int],
    *,
    obeys_modes: bool = False,
) -> int:
    """Fork the command with these streams, and return the pipe in which stand its number and its exit status."""
    outcome, status = os.pipe()
    order = json.dumps([arguments, dict(environment), str(folder), obeys_modes])
    socket.send_fds(_orders(), [order.encode()], [*streams, status])
    os.close(status)
    return outcome


def _feed(pipe: int, contents: bytes) -> None:
    # A command need not read all that it is given.
    with suppress(BrokenPipeError), os.fdopen(pipe, "wb", buffering=0) as stream:
        stream.write(contents)


@functools.cache
def _orders() -> socket.socket:
    """Start what forks, and return the socket that it listens to until this process ends."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = tempfile.TemporaryDirectory(prefix="tollgate-forking-")
    with there:
        # No module beside it is taken for one of the same name that the command imports.
        command = [sys.executable, "-P", str(FORKING)]
        process = subprocess.Popen(
            command, cwd=folder.name, env=environment(), stdin=there.fileno(), stdout=subprocess.DEVNULL
        )

    def end() -> None:
        here.close()
        process.wait()
        folder.cleanup()

    atexit.register(end)
    return here
