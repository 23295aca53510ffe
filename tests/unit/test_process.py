"""Who has ended is told from what we cannot read."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from uffdtrack import children, procfs, stat_fields
from uffdtrack.errors import PermissionDeniedError, TargetGoneError


def no_such_process() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_who_has_ended() -> None:
    with pytest.raises(TargetGoneError):
        stat_fields(no_such_process())
    assert children(no_such_process()) == []


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EMFILE, OSError), (errno.EIO, OSError), (errno.EACCES, PermissionDeniedError)]
)
def test_who_cannot_be_read_has_not_ended(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(procfs, "read", fail)
    with pytest.raises(kind):
        stat_fields(os.getpid())
    monkeypatch.setattr(os, "listdir", fail)
    with pytest.raises(kind):
        children(os.getpid())


COUNTS = """
import os, threading
def count():
    links = os.stat("/proc/self/task").st_nlink
    assert links - 2 == len(os.listdir("/proc/self/task"))
    return links
before, goes_on = count(), threading.Event()
threads = [threading.Thread(target=goes_on.wait) for _ in range(3)]
for thread in threads:
    thread.start()
after = count()
goes_on.set()
assert after == before + 3
"""


def test_links_count_threads() -> None:
    """A stop takes the links of /proc/PID/task for its threads: the first one more means one that runs.

    In a process by itself: a thread that another test has left may end meanwhile.
    """
    subprocess.run([sys.executable, "-c", COUNTS], check=True)
