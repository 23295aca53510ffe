"""Which tracker is for which kind of guest. Combinations that do not exist are not generated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from kvmglue import KVM_ENGINES, VM_ENGINES
from uffdtrack import ENGINES, PROCESS_ENGINES, Memslot

PAGES = 2048


@dataclass(frozen=True)
class Config:
    """What kind of guest."""

    vcpus: int
    kind: str  # threads, processes, mixed, attached: threads of another process, or kvm: a guest of KVM's
    shared: bool
    huge: bool = False
    slots: tuple[Memslot, ...] = (Memslot(0, PAGES),)

    def __str__(self) -> str:
        memory = "shared" if self.shared else "huge" if self.huge else "private"
        return f"{self.vcpus}-{self.kind}-{memory}-{len(self.slots)}slots"


HOLES = (Memslot(16, 256), Memslot(1024, 1024), Memslot(1 << 20, PAGES - 1280))
CONFIGS = [
    Config(1, "threads", shared=True),
    Config(2, "threads", shared=False),
    Config(4, "threads", shared=False, huge=True),
    Config(3, "threads", shared=True, slots=HOLES),
    Config(1, "processes", shared=True),
    Config(2, "processes", shared=True, slots=HOLES),
    Config(4, "mixed", shared=True),
    Config(3, "attached", shared=False, slots=HOLES),
    Config(2, "kvm", shared=False),
    Config(3, "kvm", shared=True, slots=HOLES),
]
TRAITS = {**ENGINES, **KVM_ENGINES}
"""Of every tracker."""
OWN = tuple(ENGINES)
"""Trackers of guests whose vCPUs are threads and processes of ours."""
PAUSING = tuple(name for name, traits in TRAITS.items() if traits.forced_pause != "none")
OWN_PAUSING = tuple(name for name in PAUSING if name in OWN)


def exists(engine: str, config: Config) -> bool:
    """For KVM's trackers threads are the vCPUs of a VM, whose RAM is the same with huge pages and without."""
    if engine in KVM_ENGINES:
        return config.kind == "threads" and not config.huge
    if config.kind == "kvm":
        return engine in VM_ENGINES
    return config.kind != "attached" or engine in PROCESS_ENGINES


def on(engines: Iterable[str]) -> pytest.MarkDecorator:
    """The test is for these trackers."""
    return pytest.mark.parametrize("engine", list(engines), indirect=True)


def on_guests(configs: Iterable[Config], engines: Iterable[str] = TRAITS) -> pytest.MarkDecorator:
    """The test is for each of these kinds of guests with each of these trackers that it can have."""
    pairs = [
        pytest.param(config, engine, id=f"{config}-{engine}")
        for config in configs
        for engine in engines
        if exists(engine, config)
    ]
    return pytest.mark.parametrize(("config", "engine"), pairs, indirect=["engine"])


def with_limits(limits: Iterable[int | None], engines: Iterable[str] = TRAITS) -> pytest.MarkDecorator:
    """The test is for each of these thresholds (None and 0: without) with each tracker that can have it."""
    pairs = [
        pytest.param(limit, engine, id=f"{limit}-{engine}")
        for limit in limits
        for engine in engines
        if not limit or engine in PAUSING
    ]
    return pytest.mark.parametrize(("limit", "engine"), pairs, indirect=["engine"])
