"""tests/programs/rollee.c, and what its memory is after a rollback."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from checkpoint.view import View
from tests.helpers import Build, Run, Spawn
from uffdtrack import PAGE, Region, parse_maps


class Rollee:
    """tests/programs/rollee.c, asked line by line."""

    def __init__(self, spawn: Spawn, build: Build, **options: Any) -> None:
        self.process = spawn(build("rollee"), **options)
        self.pid = self.process.pid
        assert self.process.stdout and self.process.stdout.readline() == b"ready\n"

    def ask(self, line: str) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def maps(self) -> list[Region]:
        return parse_maps(Path(f"/proc/{self.pid}/maps").read_text())


def take(uffdtrack: Run, pid: int, directory: Path) -> None:
    """One chain of a single epoch."""
    uffdtrack("checkpoint", pid, "-o", directory, "--count", "1")


def covers(regions: list[Region]) -> list[tuple[int, int, str, str]]:
    """Mappings without the cuts between neighbours that are alike."""
    out: list[tuple[int, int, str, str]] = []
    for r in regions:
        name = "" if r.name == "[heap]" else r.name
        if out and out[-1][1:] == (r.start, r.permissions, name) and not name:
            out[-1] = (out[-1][0], r.end, r.permissions, name)
        else:
            out.append((r.start, r.end, r.permissions, name))
    return out


def differing(pid: int, view: View) -> list[str]:
    """Pages of a stopped process that are not those of the view, by /proc/PID/mem alone."""
    wrong = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem, open(f"/proc/{pid}/pagemap", "rb") as pm:
        for region in parse_maps(Path(f"/proc/{pid}/maps").read_text()):
            if not region.stored or region.name == "[vdso]":
                continue
            there = view.pages[view.of_region(region)]
            stored = dict(zip(there.tolist(), view.read(there), strict=True))
            own = region.file_backed
            pm.seek(region.start // PAGE * 8)
            entries = np.frombuffer(pm.read(region.size // PAGE * 8), np.uint64)
            # Present (63) or swapped (62), where reading tells; a present one with bit 61 is the file's. So
            # is one that has gone, and has left the trap of a session (57) in its place.
            used = (entries >> np.uint64(62) != 0) & ~(own & (entries >> np.uint64(61) == 5))
            used &= ~(own & (entries >> np.uint64(62) == 1) & (entries >> np.uint64(57) & np.uint64(1) == 1))
            for page in set((np.flatnonzero(used) + region.start // PAGE).tolist()) | stored.keys():
                mem.seek(page * PAGE)
                expected = stored[page].tobytes() if page in stored else bytes(PAGE)
                if page not in stored and own:
                    wrong.append(f"{page * PAGE:#x} of {region.name} is not the file's")
                elif mem.read(PAGE) != expected:
                    wrong.append(f"{page * PAGE:#x} of {region}")
    return wrong


class Walk(Protocol):
    """A session that takes epochs, and goes back to them."""

    def take(self) -> int: ...
    def back_to(self, epoch: int) -> object: ...


def rewrite(rollee: Rollee, walk: Walk) -> None:
    """What is compared gets contents of the last epoch again, and what was given back is given back again."""
    for value in (1, 2):
        assert rollee.ask(f"s {value}") == str(value)
        walk.take()
    walk.back_to(0)
    assert rollee.ask("s 2") == "2"
    walk.take()
    assert rollee.ask("m") == "messed"
    walk.take()
    walk.back_to(0)
    assert rollee.ask("m") == "messed"
    walk.take()
