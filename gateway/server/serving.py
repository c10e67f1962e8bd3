"""How `tollgate serve` listens: its sockets, its processes, its open files, and the moment from which it serves."""

import errno
import logging
import os
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from uvicorn.supervisors import ChangeReload, Multiprocess
from uvicorn.supervisors.multiprocess import Process

from gateway.settings import Settings
from storage.engine.connections import GROUPS, SQLITE_READERS

_log = logging.getLogger(__name__)

#: The open files of a process besides its connections and its database's: its streams, the event loop's, libraries'.
_OTHER_FILES = 24

#: How often one line at most says that there are no open files left.
_SECONDS_BETWEEN_LINES = 60

#: What opening one more file fails with: the process has as many as it may have, or the machine.
_NO_FILES_LEFT = frozenset({errno.EMFILE, errno.ENFILE})


class CannotListen(Exception):
    """The address cannot be listened on; the message says why."""


def listening(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of the host, bound and not open yet. Raises `CannotListen`.

    `::` takes connections of IPv4, too, whatever the machine's own default is.
    """
    sockets: list[socket.socket] = []
    refusal: OSError | None = None
    try:
        for family, kind, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                sockets.append(_bound(family, kind, address))
            except OSError as error:
                # A name may have an address of IPv6 on a machine that has none.
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                refusal = error
        if not sockets and refusal is not None:
            raise refusal
    except OSError as error:
        for each in sockets:
            each.close()
        raise CannotListen(error.strerror) from None
    except UnicodeError:
        raise CannotListen("A part of the host's name is empty or too long") from None
    return sockets


def _bound(family: int, kind: int, address: tuple[str | int | bytes, ...]) -> socket.socket:
    bound = socket.socket(family, kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def serve(settings: Settings, sockets: list[socket.socket], *, reload: bool, announce: Callable[[], None]) -> bool:
    """Serve until the process is asked to stop, and return whether it has served; `announce` is called when it does.

    With `reload` it is called again by each new process, so it must be one that can be pickled. Raises `CannotListen`.
    """
    allow_open_files(settings)
    is_alone = settings.workers == 1 or reload
    config = uvicorn.Config(
        "gateway.app:app_from_environment",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        reload=reload,
        loop="uvloop",
        http="gateway.server.protocol:Protocol",
        ws="none",
        lifespan="on",
        server_header=False,
        # What it logs goes the way of the rest; each request has a line of ours.
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=6,
        # On a busy machine a process may take longer to start than the 5 seconds after which it would be killed.
        timeout_worker_healthcheck=60,
        # It is called once a second, from the moment when connections are accepted.
        callback_notify=Watch(announce if is_alone else None),
        timeout_notify=1,
    )
    _open(sockets, config.backlog)
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):
        if reload:
            ChangeReload(config, target=server.run, sockets=sockets).run()
        elif settings.workers > 1:
            _Workers(config, sockets, announce).run()
        else:
            server.run(sockets)
    return server.started or not is_alone or reload


def _open(sockets: list[socket.socket], backlog: int) -> None:
    """Open the sockets. Raises `CannotListen`: another program may have opened an address since it was bound here."""
    try:
        for each in sockets:
            each.listen(backlog)
    except OSError as error:
        raise CannotListen(error.strerror) from None


class _Workers(Multiprocess):
    """Several processes, which are announced when all of them accept connections."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], announce: Callable[[], None]) -> None:
        super().__init__(config, sockets)
        self._announce: Callable[[], None] | None = announce

    def keep_subprocess_alive(self) -> None:
        """Look after the processes, twice a second."""
        for process in self.processes:
            # Only with the process itself does the pipe then end; one that is killed before it has answered would be
            # waited for as long as one that is busy.
            process.child_conn.close()
        super().keep_subprocess_alive()
        if self._announce is not None and not self.should_exit.is_set() and all(map(Process.is_ready, self.processes)):
            self._announce()
            self._announce = None


class Watch:
    """What a serving process does once a second, for the first time when its sockets accept connections."""

    def __init__(self, announce: Callable[[], None] | None = None) -> None:
        self._announce = announce
        self._is_started = False
        self._next_line_at = 0.0

    async def __call__(self) -> None:
        """Log and announce the start, and log when there are no open files left."""
        if not self._is_started:
            self._is_started = True
            _log.info("Application startup complete: connections are accepted")
            if self._announce is not None:
                self._announce()
        try:
            # The event loop resets a connection that it cannot accept, and reports it to nobody.
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno in _NO_FILES_LEFT and time.monotonic() >= self._next_line_at:
                self._next_line_at = time.monotonic() + _SECONDS_BETWEEN_LINES
                _log.warning(
                    "No more files can be opened (%s; at most %s, ulimit -n): new connections are reset",
                    error.strerror,
                    resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                )


def allow_open_files(settings: Settings) -> None:
    """Raise the limit of open files as far as the settings need it, and log a warning where it stays below.

    The serving processes have the limit of the one that starts them.
    """
    needed = settings.max_connections + _files_besides_connections(settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < needed:
        _log.warning(
            "A process may open %s files (ulimit -n), and TOLLGATE_MAX_CONNECTIONS=%s needs %s: "
            "it takes %s connections. Raise the limit, or lower the setting",
            soft,
            settings.max_connections,
            needed,
            max_connections(settings),
        )


def max_connections(settings: Settings) -> int:
    """Return how many connections a process takes: as many as are set, or as its open files allow."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return settings.max_connections
    return max(1, min(settings.max_connections, limit - _files_besides_connections(settings)))


def _files_besides_connections(settings: Settings) -> int:
    # Of SQLite: the file, its WAL and the WAL's index for each reader, the writer and a snapshot.
    is_sqlite = settings.database_url.startswith("sqlite")
    return _OTHER_FILES + (3 * (SQLITE_READERS + 2) if is_sqlite else settings.pool_size + GROUPS + 1)
