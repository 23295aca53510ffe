"""A window, of what the core has found and copied."""

from __future__ import annotations

from typing import Any

from uffdtrack._sys import ffi, runs_array
from uffdtrack.maps import Region
from uffdtrack.runs import Runs
from uffdtrack.tracee import ThreadState
from uffdtrack.window import Window, stop_times


def view_of(at: Any, size: int) -> memoryview:
    """Memory of the core's."""
    return memoryview(ffi.buffer(at, size)) if size else memoryview(b"")


def window_of(
    result: Any,
    times: Any,
    regions: list[Region],
    threads: list[ThreadState],
    compared: int,
    scanned: bool,
    **more: Any,
) -> tuple[Window, Runs]:
    """The window, and all ranges that it has copied.

    Args:
        result, times: the core's.
        more: other fields of the window.
    """
    every, empty = runs_array(result.want), runs_array(result.zero)
    window = Window(
        regions=regions,
        threads=threads,
        data=runs_array(result.data) if len(empty) else every,
        zero=empty,
        reset=runs_array(result.reset),
        contents=view_of(result.contents, result.bytes),
        unreadable=result.unreadable,
        compared=compared,
        scanned=scanned,
        touched=result.touched,
        **stop_times(times),
        **more,
    )
    return window, every
