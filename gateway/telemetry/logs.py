"""The log: one line a request and one an event, in JSON or for people, on standard error.

No line holds a key, a value that a caller sent, a statement or the message of an exception, which may hold any of them.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TextIO

import orjson
from rich.console import Console

from gateway.settings import Settings
from gateway.telemetry.requests import INTERNAL_SERVER_ERROR, OK, Request
from resolvers.observation import current
from storage.engine.failures import description

#: These log statements, their parameters, and every plugin that they load.
_TALKATIVE = ("aiosqlite", "alembic", "asyncpg", "sqlalchemy", "opentelemetry", "urllib3")

#: What asks again and again whether the gateway lives. What is well is logged at `debug` alone.
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})

#: What must not be logged wherever it comes from: keys and tokens, and the password of a URL.
_SECRETS = (
    (re.compile(r"\b(sk|cst)_(live|test)_[A-Za-z0-9_-]+"), r"\1_\2_…"),
    (re.compile(r"(://[^\s:/@]*):[^\s@]*@"), r"\1:…@"),
)

#: The event loop logs what it was called with.
_CALLBACK = re.compile(r"(Exception in callback).*", re.DOTALL)

_COLOURS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}

_MILLION = 1_000_000
_SERVER_ERROR = 500


def start(settings: Settings, stream: TextIO | None = None) -> "RequestLog":
    """Send the process's log to the stream, which is standard error, and return what writes the lines of requests."""
    stream = stream or sys.stderr
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not stream.isatty())
    # Rich knows of terminals without colours, and of NO_COLOR.
    console = Console(file=stream)
    is_coloured = console.color_system is not None and not console.no_color
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLines() if as_json else ReadableLines(is_coloured=is_coloured))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # The server says so before it accepts connections; `gateway/server/serving.py` says so when it does.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != "Application startup complete.")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    return RequestLog(stream, level=level, as_json=as_json, is_coloured=is_coloured)


class JSONLines(logging.Formatter):
    """Writes an event as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if request_id := current.get().request_id:
            line["request_id"] = request_id
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = _redacted("".join(_traceback(record.exc_info[1])))
        return orjson.dumps(line, option=orjson.OPT_UTC_Z).decode()


class ReadableLines(logging.Formatter):
    """Writes an event for people."""

    def __init__(self, *, is_coloured: bool) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of the traceback, if there is one."""
        level = _level(record.levelno, is_coloured=self._is_coloured)
        at = _time(record).astimezone().strftime("%H:%M:%S")
        message = _message(record).replace("\n", "\n  ")
        line = f"{at} {level} {message}"
        if record.exc_info and record.exc_info[1] is not None:
            line += "\n" + _redacted("".join(_traceback(record.exc_info[1]))).rstrip()
        return line


class RequestLog:
    """Writes the line of each request: at `info`, unless it failed.

    It does without the `logging` module, which takes ten times as long for a line.
    """

    def __init__(self, stream: TextIO, *, level: int, as_json: bool, is_coloured: bool = False) -> None:
        self._stream = stream
        self._least = level
        self._line = _json_of if as_json else lambda request, level: _text_of(request, level, is_coloured=is_coloured)

    def __call__(self, request: Request) -> None:
        """Write the line of a request, if its level is to be logged and its connection has not had one just now."""
        level = _level_of(request)
        if level < self._least:
            return
        repeats = request.repeats if request.key_id is None and logging.DEBUG < level < logging.ERROR else None
        if repeats is None or not repeats.holds(request, self._write):
            self._write(request)

    def _write(self, request: Request) -> None:
        try:
            # The number is asked for each time: after the stream is closed it may be that of a database's file.
            os.write(self._stream.fileno(), self._line(request, _level_of(request)))
        except (OSError, ValueError):
            # Nobody reads the log any more. The request was answered all the same.
            return


def _level_of(request: Request) -> int:
    if request.outcome == INTERNAL_SERVER_ERROR:
        return logging.ERROR
    if request.outcome == "UNAVAILABLE" or ((request.status or 0) >= _SERVER_ERROR and request.refusal is None):
        return logging.WARNING
    return logging.DEBUG if request.path in PROBES and request.outcome == OK else logging.INFO


_LEVEL_NAMES = {number: name.lower() for name, number in logging.getLevelNamesMapping().items()}


def _json_of(request: Request, level: int) -> bytes:
    line = {
        "time": datetime.now(UTC),
        "level": _LEVEL_NAMES[level],
        "logger": "tollgate.requests",
        "message": "request",
        "request_id": request.request_id,
        "method": request.method or None,
        "path": request.path or None,
        "status": request.status,
        "outcome": request.outcome,
        "duration_ms": round(request.took_ns / _MILLION, 3),
        "operation": request.name(),
        "kind": request.kind,
        "document": request.document,
        "statements": request.statements,
        "cost": request.cost,
        "key_id": request.key_id,
    }
    if request.refusal is not None:
        line["refusal"] = request.refusal
    if request.repeated > 1:
        line["repeated"] = request.repeated
    if request.trace_id is not None:
        line["trace_id"] = request.trace_id
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def _text_of(request: Request, level: int, *, is_coloured: bool) -> bytes:
    at = datetime.now(UTC).astimezone().strftime("%H:%M:%S")
    facts = [
        f"{request.method or '---'} {request.path}".rstrip(),
        f"{request.status or '---'} {request.outcome}",
        f"{request.took_ns / _MILLION:.1f} ms",
    ]
    if request.refusal is not None:
        facts.append(f"refused: {request.refusal}")
    if request.repeated > 1:
        facts.append(f"{request.repeated} requests")
    if request.kind is not None:
        facts.append(f"{request.kind} {request.name() or '(anonymous)'}")
    if request.statements:
        facts.append(f"{request.statements} statement{'s' if request.statements > 1 else ''}")
    if request.cost is not None:
        facts.append(f"cost {request.cost}")
    facts += [each for each in (request.key_id, request.request_id) if each is not None]
    return f"{at} {_level(level, is_coloured=is_coloured)} {'  '.join(facts)}\n".encode()


def _level(level: int, *, is_coloured: bool) -> str:
    name = f"{logging.getLevelName(level):<7}"
    return f"\x1b[{_COLOURS.get(level, '0')}m{name}\x1b[0m" if is_coloured else name


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _message(record: logging.LogRecord) -> str:
    """Return the message, in which each exception is named by its kind alone."""
    args = record.args
    if isinstance(args, tuple):
        args = tuple(description(each) if isinstance(each, BaseException) else each for each in args)
    message = str(record.msg) % args if args else str(record.msg)
    if isinstance(record.msg, BaseException):
        message = description(record.msg)
    if record.name == "asyncio":
        # The lines that follow show the task or handle, and in it the exception's message.
        message = _CALLBACK.sub(r"\1", message.partition("\n")[0])
    return _redacted("\n".join(_without_exceptions(message.rstrip())))


def _without_exceptions(message: str) -> Iterator[str]:
    """Yield the lines of a message; of a traceback in it, as servers log one of a failed start, not what it raised."""
    is_in_traceback = False
    for line in message.split("\n"):
        is_in_traceback = is_in_traceback or line.startswith("Traceback ")
        yield line if not is_in_traceback or line.startswith((" ", "Traceback ")) else line.partition(":")[0]


def _traceback(error: BaseException) -> Iterator[str]:
    """Yield where an exception and its causes were raised, and what they are, without what they say."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _traceback(before)
        yield "\nfrom which came:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{description(error)}\n"


def _redacted(text: str) -> str:
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
