"""Attempts on memory of our own: they come to an end, and say what the kernel did."""

from __future__ import annotations

import os

from uffdtrack import children, guard_pages, probe


def test_guard_pages_are_tried_by_a_child(kernel: None) -> None:
    """Where the kernel hangs in the call, the child that tried is gone after."""
    before, born_before = os.listdir("/proc/self/fd"), children(os.getpid())
    assert guard_pages() in (None, False, True)
    assert os.listdir("/proc/self/fd") == before
    # One that has ended is among them until it is reaped.
    assert set(children(os.getpid())) <= set(born_before)
    assert probe().scan
