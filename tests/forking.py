"""The program from which `tests.commands` forks: it imports all that `tollgate` needs once, and runs nothing itself.

Each message on its standard input, a socket, is a command: a JSON array of its arguments, its environment, its
folder, and whether modes of files hold for it, with four descriptors: the command's standard input, output and error,
and a pipe for its number and, when it has ended, its exit status.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import sys

import rich.progress
import uvicorn
from sqlalchemy.dialects.postgresql import asyncpg
from typer.testing import CliRunner

import gateway.server
from gateway.cli.main import app

#: What commands import only when they need it, and find here.
IMPORTED = (asyncpg, gateway.server, rich.progress, uvicorn)

#: Commands whose run imports the rest of it.
REHEARSED = (
    "--help",
    "nonsense",
    "schema export",
    "schema check ../tollgate.db",
    "demo",
    "keys list",
    "verify",
    "copy --to sqlite:///tollgate.db",
    "import missing --org acme --environment live --new-org",
)


def drop_overrides() -> None:
    """Let modes of files hold for root as for others: neither CAP_DAC_OVERRIDE nor CAP_DAC_READ_SEARCH."""
    header, capabilities = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    libc.capget(header, capabilities)
    for kind in range(3):
        capabilities[kind] &= ~0b110
    libc.capset(header, capabilities)


def become(arguments: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> None:
    """Make this process what it would be if it had been started as the command."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.umask(0o022)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.argv = ["tollgate", *arguments]


def main() -> None:
    for line in REHEARSED:
        CliRunner().invoke(app, line.split())
    gc.freeze()  # Or each process looks through all of it once more before it ends.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The processes in between need no wait.
    orders = socket.socket(fileno=os.dup(0))
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, 1_000_000, 4)
        if not message:  # The tests have ended.
            return
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    # This process is in between: it waits for the command, and reports how it ended.
    orders.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, status = descriptors
    pid = os.fork()
    if pid == 0:
        os.close(status)
        arguments, environment, folder, obeys_modes = json.loads(message)
        if obeys_modes:
            drop_overrides()
        become(arguments, environment, folder, streams)
        app()
    for stream in streams:
        os.close(stream)
    os.write(status, b"%d\n" % pid)
    os.write(status, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


if __name__ == "__main__":
    main()
