"""One interface to every tracking mechanism, and the choice among those on userfaultfd."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from uffdtrack.arguments import whole
from uffdtrack.attached_ram import ProcessRam
from uffdtrack.attached_tracker import ProcessTracker
from uffdtrack.cycles import Contents
from uffdtrack.engines.cost import cheapest
from uffdtrack.engines.table import TABLE
from uffdtrack.errors import InvalidInputError, UnsupportedError
from uffdtrack.features import Features, probe
from uffdtrack.gate import PAUSE_TIMEOUT, Gate
from uffdtrack.pages import DirtyPages
from uffdtrack.ram import GuestRam
from uffdtrack.runs import PAGE
from uffdtrack.traits import Traits
from uffdtrack.uffd_tracker import UffdTracker

ENGINES = {name: engine.traits for name, engine in TABLE.items()}
"""What each engine promises, by name."""
PROCESS_ENGINES = tuple(name for name, engine in TABLE.items() if engine.attached)
"""The engines for attached processes; `inline` runs in the writer's own program."""


class Tracker(Protocol):
    """The interface of every mechanism, KVM's too.

    A cycle ends with `prepare()`: `fetch()` hands out the pages written in it, `rearm()` sets the traps of
    those pages again. `exchange()` does all three. Read a page's content after its rearm: a write before the
    rearm is then in the copy, a later one in the next cycle.

    vCPUs stand at `gate` from a `pause()`, or a `wait_full()` that has returned True, until `resume()`. One
    thread controls them.
    """

    @property
    def traits(self) -> Traits: ...
    @property
    def gate(self) -> Gate: ...
    @property
    def max_dirty_pages(self) -> int | None: ...

    def activate(self) -> None: ...
    def prepare(self) -> int: ...
    def fetch(self, max_pages: int | None = None) -> DirtyPages: ...
    def rearm(self, pages: DirtyPages) -> None: ...
    def exchange(self, into: Contents | None = None) -> DirtyPages: ...
    def pending(self) -> int: ...
    def bind(self, vcpu: int, tid: int) -> None: ...
    def pause(self, timeout: float = PAUSE_TIMEOUT) -> None: ...
    def resume(self) -> None: ...
    def paused(self) -> AbstractContextManager[None]: ...
    def wait_full(self, timeout: float | None = None) -> bool: ...
    def deactivate(self) -> None: ...
    def close(self) -> None: ...


def choose_engine(
    name: str,
    features: Features,
    *,
    pages: int,
    max_dirty_pages: int | None = None,
    per_vcpu: bool = False,
    outside_writers: bool = True,
    attached: bool = False,
) -> tuple[Traits, str]:
    """The traits of an engine, and why it is this one.

    Args:
        name: an engine, or "auto": the cheapest of those that work here and meet the request.
        pages: of the RAM.
        max_dirty_pages: the caller needs a forced pause.
        per_vcpu: the caller needs lists that say which vCPU wrote.
        outside_writers: threads that are no vCPU write too, and not by `GuestRam.host_write()`.
        attached: the RAM belongs to an attached process.

    Raises:
        InvalidInputError: no such engine, or it cannot meet the request.
        UnsupportedError: it does not work on this host.
    """
    if name != "auto" and name not in ENGINES:
        raise InvalidInputError(f"no engine {name!r}; there are auto, {', '.join(ENGINES)}")
    out: dict[str, str] = {}
    for engine in ENGINES if name == "auto" else [name]:
        traits, lacking = ENGINES[engine], TABLE[engine].lacks(features)
        if attached and engine not in PROCESS_ENGINES:
            out[engine] = "it runs in the writer's own program, so not in a process that was attached to"
        elif max_dirty_pages and traits.forced_pause == "none":
            out[engine] = "it has no forced pause (max_dirty_pages)"
        elif per_vcpu and not traits.per_vcpu:
            out[engine] = "it has no per-vCPU lists"
        elif name == "auto" and outside_writers and not traits.sees_outside:
            out[engine] = "it does not see writers outside of the vCPUs (outside_writers)"
        elif name == "auto" and not (traits.sees_kernel_copies and traits.sees_gup):
            out[engine] = "it does not see the kernel's writes"
        elif lacking:
            if name != "auto":
                raise UnsupportedError(f"engine {engine} needs {lacking}; see uffdtrack doctor")
            out[engine] = f"this host lacks {lacking}"
    if name != "auto":
        if name in out:
            raise InvalidInputError(f"engine {name}: {out[name]}")
        return ENGINES[name], "it was asked for"
    able = [engine for engine in ENGINES if engine not in out]
    refused = "; ".join(f"not {engine}: {why}" for engine, why in out.items())
    if not able:
        raise UnsupportedError(f"no engine can do what is asked for here: {refused}")
    if len(able) == 1:
        return ENGINES[able[0]], f"{able[0]} is the only one that can; {refused}"
    engine, figures = cheapest(able, pages, max_dirty_pages)
    return ENGINES[engine], "; ".join(filter(None, [f"{engine} is the cheapest ({figures})", refused]))


def choose_for_process(name: str, features: Features, max_dirty: int | None = None) -> Traits:
    """The traits of the engine for an attached process.

    "auto" is `scan`, which sees every writer; with a limit it is `ring`.

    Raises:
        InvalidInputError: no such engine, not for attached processes, or it cannot meet the request.
        UnsupportedError: it does not work on this host.
    """
    if name == "auto":
        name = "ring" if max_dirty else "scan"
    if name not in PROCESS_ENGINES:
        raise InvalidInputError(
            f"no engine {name!r} for attached processes; there are auto, {', '.join(PROCESS_ENGINES)}"
        )
    if max_dirty and name == "scan":
        raise InvalidInputError(
            "engine scan learns of writes only when it looks, so it has no limit to keep (--max-dirty): "
            "use --engine ring or sync"
        )
    lacking = TABLE[name].lacks(features)
    events = {"EVENT_REMOVE", "EVENT_UNMAP", "EVENT_REMAP"} - features.uffd_features
    if name != "scan" and not lacking and events:
        lacking = f"userfaultfd {', '.join(sorted(events))}"
    if lacking:
        raise UnsupportedError(f"engine {name} needs {lacking}; see uffdtrack doctor")
    return ENGINES[name]


def open_tracker(
    ram: GuestRam | ProcessRam,
    engine: str = "auto",
    *,
    vcpus: int = 1,
    max_dirty_pages: int | None = None,
    per_vcpu: bool = False,
    outside_writers: bool = True,
) -> UffdTracker:
    """A tracker of the RAM, not active yet; as a context manager it is active in the block.

    Args:
        ram: ours, or a range of another process's memory.
        engine: ring, scan, sync, inline, or auto (docs/engines.md).
        vcpus: how many vCPUs there can be.
        max_dirty_pages: the threshold of the forced pause, for the whole guest and a cycle.
        per_vcpu: "auto" picks an engine that says which vCPU wrote.
        outside_writers: False lets "auto" pick an engine that sees vCPUs and `host_write()` only.

    Raises:
        InvalidInputError: the engine cannot meet the request.
        UnsupportedError: it does not work on this host.
    """
    if not isinstance(ram, (GuestRam, ProcessRam)):
        raise InvalidInputError(f"ram is a GuestRam or a ProcessRam, not {type(ram).__name__}")
    if not ram.size:
        raise InvalidInputError("the RAM is closed")
    if not isinstance(engine, str):
        raise InvalidInputError(f"engine is a name, not {engine!r}")
    whole("vcpus", vcpus)
    if max_dirty_pages is not None:
        whole("max_dirty_pages", max_dirty_pages, -(1 << 63))
    traits, reason = choose_engine(
        engine,
        probe(),
        pages=ram.size // PAGE,
        max_dirty_pages=max_dirty_pages,
        per_vcpu=per_vcpu,
        outside_writers=outside_writers,
        attached=isinstance(ram, ProcessRam),
    )
    if isinstance(ram, ProcessRam):
        if traits.forced_pause != "none" and traits.name == "ring":
            traits = replace(traits, forced_pause="bounded")
        return ProcessTracker(ram, traits, vcpus, max_dirty_pages, reason)
    return UffdTracker(ram, traits, vcpus, max_dirty_pages, reason)
