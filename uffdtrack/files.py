"""The open files of a process, without asking a file system that may not answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from uffdtrack._sys import check, ffi, lib
from uffdtrack.errors import TargetGoneError


def file_mode(directory: int, name: str) -> tuple[int, int]:
    """Type and mode (inode(7)), and size, of the file that `name` in an open directory leads to; or (0, 0).

    The size may be an old one: nothing is fetched from elsewhere (a network, FUSE).
    """
    size = ffi.new("uint64_t *")
    mode = lib.ut_file_mode(directory, name.encode(errors="surrogateescape"), size)
    return (int(mode), int(size[0])) if mode > 0 else (0, 0)


def open_files(task: Path, pid: int) -> Iterator[tuple[int, int, str, str]]:
    """For each descriptor: number, time on CLOCK_BOOTTIME in ns, link, and fdinfo (proc_pid_fdinfo(5)).

    Args:
        task: /proc/PID/task/TID of a living thread.

    Raises:
        TargetGoneError, PermissionDeniedError: as they say.
    """
    text = ffi.new("ut_text *")
    try:
        directory = os.open(task, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            read = lib.ut_descriptors(directory, text)
            if read == -errno.ENOENT:  # the thread is no more: it has ended, or the process has called exec
                raise TargetGoneError(f"process {pid} has ended")
            check(read, "read the open files", pid)
        finally:
            os.close(directory)
        words = bytes(ffi.buffer(text.v, text.n)).decode(errors="surrogateescape").split("\0")
    finally:
        lib.ut_text_free(text)
    return zip(map(int, words[:-1:4]), map(int, words[1::4]), words[2::4], words[3::4], strict=False)
