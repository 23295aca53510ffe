"""Mapped files for an image, and warnings about memory that an epoch may miss."""

from __future__ import annotations

import os
from pathlib import Path

from checkpoint.heads import is_file_of
from uffdtrack import Region, task_directory

IN_FLIGHT = "{} is in use: writes into pinned buffers in flight escape every tracker"
MANY_MAPPINGS = 0.8
"""From this share of vm.max_map_count on we warn of a target."""


def named_files(regions: list[Region]) -> list[Region]:
    """One mapping of each file."""
    return list({r.name: r for r in regions if r.inode and r.name.startswith("/")}.values())


def mapped_files(regions: list[Region], pid: int | None = None) -> dict[str, list[int]]:
    """Mapped files that can be found by name: device, inode, size and mtime in ns.

    Args:
        pid: of the process; with it, also files that only the process finds by that name (a container).
    """
    files: dict[str, list[int]] = {}
    for region in named_files(regions):
        for inside in (False, True) if pid else (False,):
            try:
                s = os.stat(f"{task_directory(pid)}/root{region.name}" if inside and pid else region.name)
            except (OSError, ValueError):
                continue
            if is_file_of(region, s):
                files[region.name] = [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns]
                break
    return files


def warnings_for(regions: list[Region]) -> dict[str, str]:
    """Warnings about what a checkpoint of these mappings may miss; each has a key, and is given once."""
    warnings = {}
    if any(r.kind == "ring" and r.name.startswith("/[aio]") for r in regions):
        warnings["aio"] = IN_FLIGHT.format("aio")
    shared = sum(r.size for r in regions if r.shared and r.stored)
    if shared >= 256 << 20:
        warnings["shared"] = (
            f"{shared >> 20} MiB of shared mappings are compared at each epoch, since others can write "
            "them: pauses grow with what of them is in use"
        )
    left_out: dict[str, list[Region]] = {}
    for region in regions:
        if region.left_out:
            left_out.setdefault(region.name, []).append(region)
    for name, parts in left_out.items():
        warnings[f"left out {name}"] = (
            f"{name}, {sum(r.size for r in parts) >> 10} KiB at {parts[0].start:#x}, is left out of the "
            f"image: it is {parts[0].left_out}"
        )
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if len(regions) > MANY_MAPPINGS * most:
        warnings["mappings"] = (
            f"the process has {len(regions)} mappings of at most {most}. New memory beside memory that is "
            "tracked stays a mapping of its own until the next epoch, so it may reach the limit earlier: "
            "raise it with sysctl vm.max_map_count"
        )
    return warnings
