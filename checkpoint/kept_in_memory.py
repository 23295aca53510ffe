"""The mark in a directory whose epochs are in the memory of a session, and in no file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from checkpoint.directory import write_beside
from checkpoint.files import translated
from uffdtrack import identify
from uffdtrack.errors import InvalidInputError, UffdtrackError

_NAME = ".kept"


@contextlib.contextmanager
def kept_here(directory: Path, pid: int) -> Iterator[None]:
    """In the block the directory says that its epochs are in the memory of process `pid`.

    Raises:
        StorageError, PermissionDeniedError: we cannot write there.
    """
    mark = directory / _NAME
    with translated(mark):
        text = json.dumps({"pid": pid, "start_time": identify(pid).start_time})
        write_beside(mark, text.encode()).replace(mark)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()


def keeper_of(directory: Path) -> int | None:
    """The process whose memory has the epochs of a directory; None: they are in files."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UffdtrackError):
        stored = json.loads((directory / _NAME).read_text())
        pid = int(stored["pid"])
        if identify(pid).start_time == stored["start_time"]:
            return pid
    return None


def check_in_files(directory: Path) -> None:
    """Raises: InvalidInputError: the epochs of that directory are in no file yet."""
    pid = keeper_of(directory)
    if pid:
        raise InvalidInputError(
            f"the epochs of {directory} are in the memory of its session, process {pid} (--keep), and in no "
            "file: only rollback can use them now"
        )
