"""One process of several: on SQLite, where all are on one machine, one of them delivers."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # There are no such locks on Windows, where a gateway is one process.
    fcntl = None  # type: ignore[assignment]  # `take` asks whether it is there.


class OnlyOne:
    """A lock of a file, which ends with the process that holds it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Return whether this process holds it, having tried to get it. Raises `OSError` where the file cannot be."""
        if self._descriptor is not None or fcntl is None:
            return True
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let another process have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
