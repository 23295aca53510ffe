"""Where a VM's serial port leads to: a file, or a stream such as stdout or a FIFO."""

from __future__ import annotations

import os
import select
import stat
from pathlib import Path

from uffdtrack.errors import InvalidInputError, PermissionDeniedError, StorageError

PATIENCE = 100
"""Milliseconds that a write waits for a slow reader."""
_PART = 4096
"""So much can be written to a pipe that is ready without waiting (pipe(7): PIPE_BUF)."""


class SerialFile:
    """A regular file: each byte goes to its position in the stream, so that a repeat changes nothing.

    So another process can go on in the same file. What is there already stays until it is written over.
    """

    repeatable = True

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, at: int, data: bytes) -> int:
        return os.pwrite(self._fd, data, at)

    def close(self) -> None:
        os.close(self._fd)


class SerialStream:
    """A pipe, a terminal, a socket: in order, from what comes first on.

    Args:
        fd: it is closed with this if `owned`.
    """

    repeatable = False

    def __init__(self, fd: int, owned: bool = False) -> None:
        self._fd = fd
        self._owned = owned
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)

    def write(self, at: int, data: bytes) -> int:
        if self._is_file:
            return os.write(self._fd, data)
        if not can_be_written(self._fd):
            return 0
        try:
            return os.write(self._fd, data[:_PART])
        except BlockingIOError:
            return 0

    def close(self) -> None:
        if self._owned:
            os.close(self._fd)


def open_serial(path: Path) -> SerialFile | SerialStream:
    """Open what the serial port is to be written to; a regular file is made if nothing is there.

    Raises:
        PermissionDeniedError, StorageError, InvalidInputError: it cannot be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except PermissionError as error:
        raise PermissionDeniedError(f"cannot write {path}: {error.strerror}") from error
    except (IsADirectoryError, FileNotFoundError, NotADirectoryError) as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    return SerialFile(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else SerialStream(fd, owned=True)


def can_be_written(fd: int) -> bool:
    """Whether something can be written within a tenth of a second; also if that will fail."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(PATIENCE))
