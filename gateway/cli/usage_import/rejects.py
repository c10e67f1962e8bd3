"""Where an import writes the lines that it did not accept.

Nothing is removed or written over that the same run has not made: a new file, under a name that nothing has, or a pipe
or device that the caller names.
"""

import os
import stat
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO


class Rejects(AbstractContextManager["Rejects"]):
    """The rejects of one run. A file of its own is removed again if nothing was rejected."""

    def __init__(self, path: Path, file: IO[bytes], *, is_own: bool) -> None:
        self.path = path
        self._file = file
        self._is_own = is_own
        self._is_empty = True

    def write(self, lines: Iterable[bytes]) -> None:
        """Write the lines through. Raises `OSError`."""
        self._is_empty = False
        self._file.writelines(lines)
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # What could not be written was reported when it was to be.
            self._file.close()
        if self._is_own and self._is_empty:
            self.path.unlink(missing_ok=True)


def new_rejects(name: str) -> Rejects:
    """Open a new file in this folder: `NAME.rejects.jsonl`, or the first of `NAME.2.rejects.jsonl` … that is free.

    Raises `OSError`.
    """
    for number in count(1):
        path = Path(f"{name}.rejects.jsonl" if number == 1 else f"{name}.{number}.rejects.jsonl")
        with suppress(FileExistsError):
            return Rejects(path, path.open("xb"), is_own=True)
    raise AssertionError  # The numbers do not end.


def rejects_at(path: Path, *, source: str) -> Rejects:
    """Open a new file of this name, or the pipe or character device that has it, except the one that is read.

    Raises `FileExistsError` for anything else that has the name, and `OSError`.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        # A link that leads nowhere is refused here, too.
        return Rejects(path, path.open("xb"), is_own=True)
    if _is_open_as(status, source):
        raise FileExistsError
    for descriptor in (1, 2):
        with suppress(OSError):  # It is closed.
            if os.path.samestat(status, os.fstat(descriptor)):
                # Opened by its name, a file that output goes to would be written over from its beginning.
                return Rejects(path, os.fdopen(os.dup(descriptor), "wb"), is_own=False)
    if not (stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        raise FileExistsError
    return Rejects(path, path.open("wb"), is_own=False)


def _is_open_as(status: os.stat_result, source: str) -> bool:
    """Whether it is the file or pipe that is read. A terminal may well be both."""
    with suppress(OSError):  # Opening it will say why.
        read = os.fstat(0) if source == "-" else Path(source).stat()
        return os.path.samestat(status, read) and not stat.S_ISCHR(status.st_mode)
    return False
