"""The lines of a file that is imported: plain or compressed by gzip, on a disk, in a pipe or on standard input."""

import errno
import gzip
import io
import os
import select
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

#: The longest line that can hold an event, in bytes: 16 KiB of metadata and the names, escaped.
MAX_LINE_BYTES = 256 * 1024

#: What reading can raise: of the file, and of what it is compressed by.
READ_ERRORS = (OSError, EOFError, zlib.error)

_GZIP = b"\x1f\x8b"

#: How files begin that hold no JSON in UTF-8, with what they are and the command that makes lines of them.
_FOREIGN = (
    (b"\xff\xfe\x00\x00", "is text in UTF-32", "iconv -f UTF-32 -t UTF-8"),
    (b"\x00\x00\xfe\xff", "is text in UTF-32", "iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "is text in UTF-16", "iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "is text in UTF-16", "iconv -f UTF-16 -t UTF-8"),
    (b"{\x00", "is text in UTF-16", "iconv -f UTF-16LE -t UTF-8"),
    (b"\x00{", "is text in UTF-16", "iconv -f UTF-16BE -t UTF-8"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", "zstd -dc"),
    (b"BZh", "is compressed by bzip2", "bzip2 -dc"),
    (b"\xfd7zXZ\x00", "is compressed by xz", "xz -dc"),
    (b"\x04\x22\x4d\x18", "is compressed by lz4", "lz4 -dc"),
    (b"PK\x03\x04", "is a zip archive", "unzip -p"),
    # Within what is read here as gzip already.
    (_GZIP, "is compressed by gzip twice", "gzip -dc"),
)

_HEAD_BYTES = max(len(head) for head, *_ in _FOREIGN)


class NotLines(Exception):
    """The file holds no JSON Lines in UTF-8. The message says what it holds, and how lines are made of it."""


class Lines(AbstractContextManager["Lines"]):
    """The lines of a file, and how far into it they are."""

    def __init__(self, source: "_Source", contents: "_Source", *, size: int | None) -> None:
        self._source = source
        self._contents = io.BufferedReader(contents, MAX_LINE_BYTES)
        #: The file's size in bytes, or None for a stream.
        self.size = size

    def __iter__(self) -> Iterator[bytes]:
        """Return each line without its end; of one too long, its beginning, longer than allowed."""
        # With room for the end, so that a line which comes without one is too long.
        room = MAX_LINE_BYTES + len(b"\r\n")
        while line := self._contents.readline(room):
            yield line[:-2] if line.endswith(b"\r\n") else line.removesuffix(b"\n")
            while len(line) == room and not line.endswith(b"\n"):
                line = self._contents.readline(room)

    @property
    def position(self) -> int:
        """How many bytes of the file are read."""
        return self._source.position

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._contents.close()
        self._source.close()


class _Source(io.RawIOBase):
    """What is read once from its beginning to its end, whatever it is. What was looked at is read again."""

    def __init__(self, raw: io.FileIO | gzip.GzipFile) -> None:
        self._raw = raw
        # Of what is compressed, what can be read comes before the error of what cannot.
        self._read_into = raw.readinto1 if isinstance(raw, gzip.GzipFile) else raw.readinto
        self._head = b""
        self._error: Exception | None = None
        #: How many bytes are read.
        self.position = 0

    def head(self) -> bytes:
        """Return the first bytes, fewer only of what is shorter or cannot be read."""
        while len(self._head) < _HEAD_BYTES and self._error is None:
            more = bytearray(_HEAD_BYTES - len(self._head))
            try:
                count = self._fill(more)
            except READ_ERRORS as error:
                # It comes when it is met: what is before it can be read.
                self._error = error
            else:
                if count == 0:
                    break
                self._head += more[:count]
        return self._head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # Of bytes, which `typing` has no name for before 3.12.
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count], self._head = self._head[:count], self._head[count:]
        elif self._error is not None:
            raise self._error
        else:
            count = self._fill(buffer)
        self.position += count
        return count

    def _fill(self, buffer: Any) -> int:
        while (count := self._read_into(buffer)) is None:
            # Standard input does not block where another program has set it so.
            select.select([self._raw], [], [])
        return count

    def close(self) -> None:
        super().close()
        self._raw.close()


def open_lines(file: str) -> Lines:
    """Open a file, a pipe or a device by its name, or `-` for standard input.

    What is compressed by gzip is recognized by its first bytes.

    Raises `OSError`, and `NotLines` for another format.
    """
    raw = io.FileIO(_standard_input(), closefd=False) if file == "-" else io.FileIO(file)
    source = contents = _Source(raw)
    status = os.fstat(raw.fileno())
    if source.head().startswith(_GZIP):
        contents = _Source(gzip.GzipFile(fileobj=io.BufferedReader(source)))
    for head, what, command in _FOREIGN:
        if contents.head().startswith(head):
            source.close()
            raise NotLines(f"{what}, and lines of JSON in UTF-8 are wanted: {command} {file} | tollgate import - …")
    return Lines(source, contents, size=status.st_size if stat.S_ISREG(status.st_mode) else None)


def _standard_input() -> int:
    if sys.stdin is None:
        raise OSError(errno.EBADF, "It is closed")
    return sys.stdin.fileno()
