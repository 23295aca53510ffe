"""Open files of a chain with care, and turn their failures into the exceptions that fit."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from checkpoint.errors import ImageError
from uffdtrack.errors import PermissionDeniedError, StorageError

_IOV_MAX = 1024  # writev(2)


def _be_allowed() -> str:
    if os.geteuid():
        return "Run as root or as its owner, or change its mode"
    return "This root lacks CAP_DAC_READ_SEARCH, or the file is of another user namespace or host"


def translate(error: OSError, path: Path) -> StorageError | PermissionDeniedError:
    """The exception that fits a write failure."""
    if isinstance(error, PermissionError):
        return PermissionDeniedError(
            f"cannot write {path}: {error.strerror}. Choose a directory of your own, or change its "
            "owner or mode"
        )
    return StorageError(f"cannot write {path}: {error.strerror}")


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn a write failure into the exception that fits."""
    try:
        yield
    except OSError as error:
        raise translate(error, path) from error


def write_all(fd: int, parts: Iterable[bytes | memoryview], offset: int) -> None:
    """Write parts back to back. Raises: OSError: as pwrite(2)."""
    left = deque(memoryview(part) for part in parts if len(part))
    while left:
        n = os.pwritev(fd, list(islice(left, _IOV_MAX)), offset)
        offset += n
        while left and n >= len(left[0]):
            n -= len(left.popleft())
        if n:
            left[0] = left[0][n:]


def translate_read(error: OSError, path: Path) -> ImageError | PermissionDeniedError:
    """The exception that fits a read failure."""
    if isinstance(error, PermissionError):
        return PermissionDeniedError(f"cannot read {path}: {error.strerror}. {_be_allowed()}")
    return ImageError(f"{path} cannot be read: {error.strerror}")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a FIFO of that name would otherwise keep us waiting for ever.

    Raises:
        OSError: as open(2).
        ValueError: it is not a regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError("not a regular file")
    return os.fdopen(fd, "rb")


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def malformed(path: Path) -> Iterator[None]:
    """Turn any error in reading a damaged file into an `ImageError`."""
    try:
        yield
    except struct.error as error:
        raise ImageError(f"{path} is damaged: it is cut off, or no checkpoint") from error
    except KeyError as error:
        raise ImageError(f"{path} is damaged: it lacks {error}") from error
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise ImageError(f"{path} is damaged: {error or type(error).__name__}") from error
    except OSError as error:
        raise translate_read(error, path) from error


def identity(file: BinaryIO) -> tuple[int, ...]:
    """Tells an open file from one that takes its name later: epochs are never written in place."""
    s = os.fstat(file.fileno())
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns
