"""Attempts on memory of our own: they come to an end, and say what the kernel did."""

from __future__ import annotations

import os

from uffdtrack import guard_pages, probe


def test_guard_pages_are_tried_by_a_child(kernel: None) -> None:
    """Where the kernel hangs in the call, the child that tried is gone after."""
    before = os.listdir("/proc/self/fd")
    assert guard_pages() in (None, False, True)
    assert os.listdir("/proc/self/fd") == before
    try:
        children = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        children = (0, 0)
    assert children[0] == 0
    assert probe().scan
