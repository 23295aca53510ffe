"""Seccomp filters of the target: our calls are made under none, under one that is known, or refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.helpers import Build, Spawn
from tests.kernel.own_calls import Target
from uffdtrack.errors import PermissionDeniedError

UNPRIVILEGED = ("setpriv", "--bounding-set=-all,+sys_ptrace,+dac_override", "--inh-caps=-all")
ATTACH = """
import sys
from uffdtrack import AddressSpace
AddressSpace.attach(int(sys.argv[1])).close()
"""
# A filter that allows all; then a program under it, and who attaches to that.
UNDER_ONE_FILTER = """
import ctypes, struct, subprocess, sys
from uffdtrack import AddressSpace
libc = ctypes.CDLL(None)
rule = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7fff0000))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(rule)))
assert not libc.prctl(38, 1, 0, 0, 0) and not libc.prctl(22, 2, program)
target = subprocess.Popen([sys.argv[1], "registers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
try:
    assert target.stdout.readline() == b"ready\\n"
    AddressSpace.attach(target.pid).close()
    assert target.poll() is None
finally:
    target.kill()
"""


def unprivileged(tool: Callable[[str], str], script: str, *argv: object) -> subprocess.CompletedProcess[str]:
    """Run Python as a user who may trace others, and may not suspend their filters."""
    tool("setpriv")
    command = [*UNPRIVILEGED, sys.executable, "-c", script, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("files", [(), ("files",)])
def test_thread_without_a_filter_is_taken(
    root: None, spawn: Spawn, build: Build, tool: Callable[[str], str], files: tuple[str, ...]
) -> None:
    """Even where its descriptors are not the first thread's."""
    target = Target(spawn, build, "filter", *files)
    done = unprivileged(tool, ATTACH, target.pid)
    assert not done.returncode, done.stderr
    target.works_on()


def test_filter_that_is_not_known_is_refused(
    root: None, spawn: Spawn, build: Build, tool: Callable[[str], str]
) -> None:
    """It kills for userfaultfd(2), which we cannot know, nor prevent."""
    target = Target(spawn, build, "filters")
    done = unprivileged(tool, ATTACH, target.pid)
    assert PermissionDeniedError.__name__ in done.stderr and "seccomp" in done.stderr
    target.works_on()


def test_filter_that_is_our_own_is_known(root: None, build: Build, tool: Callable[[str], str]) -> None:
    """As in a container: who attaches is under the same filters, and tries them first."""
    done = unprivileged(tool, UNDER_ONE_FILTER, build("own_calls"))
    assert not done.returncode, done.stderr
