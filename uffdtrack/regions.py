"""The mappings of a process, each with what the core finds behind it."""

from __future__ import annotations

from typing import Any

from uffdtrack._sys import check, ffi, lib
from uffdtrack.maps import Region, parse_maps

_KINDS = {
    int(lib.UT_KIND_ANON): "anonymous",
    int(lib.UT_KIND_HUGE): "huge",
    int(lib.UT_KIND_FILE): "file",
    int(lib.UT_KIND_DELETED): "deleted",
    int(lib.UT_KIND_SHARED): "shared",
    int(lib.UT_KIND_ELSEWHERE): "shared",
    int(lib.UT_KIND_VDSO): "vdso",
    int(lib.UT_KIND_KERNEL): "kernel",
    int(lib.UT_KIND_VIEW): "view",
    int(lib.UT_KIND_DEVICE): "device",
    int(lib.UT_KIND_SECRET): "secret",
    int(lib.UT_KIND_RING): "ring",
}
_OF_MEMORY = {"deleted": "private-memory", "shared": "shared-memory"}


def region_kind(region: Any) -> str:
    """The name of the kind that the core gives a mapping."""
    kind = _KINDS[region.kind]
    return _OF_MEMORY.get(kind, kind) if region.in_memory else kind


def regions_of(maps: Any) -> list[Region]:
    """The mappings that the core has read, with what it found behind them."""
    kinds = [region_kind(region) for region in maps.regions[0 : maps.n]]
    text = bytes(ffi.buffer(maps.text, maps.len))
    return parse_maps(text.decode(errors="surrogateescape"), kinds)


def read_maps(pid: int) -> list[Region]:
    """The mappings of a process, each with what is behind it. Raises: as `read_maps_text`."""
    return read_maps_text(pid)[1]


def read_maps_text(pid: int) -> tuple[bytes, list[Region]]:
    """The text of /proc/PID/maps, and the mappings that it has, each with what is behind it.

    Raises:
        TargetGoneError, PermissionDeniedError: as they say.
    """
    maps = ffi.new("ut_maps *")
    try:
        tid = check(lib.ut_live_thread(pid), "find", pid)
        check(lib.ut_maps_look(maps, pid, tid), "read the mappings of", pid)
        return bytes(ffi.buffer(maps.text, maps.len)), regions_of(maps)
    finally:
        lib.ut_maps_free(maps)
