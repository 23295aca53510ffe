"""GuestRam, and the choice of an engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.conftest import missing
from uffdtrack import DirtyPages, GuestRam, Memslot, choose_engine, open_tracker, probe
from uffdtrack.engines.cost import Cost
from uffdtrack.errors import InvalidInputError, UnsupportedError


@pytest.mark.parametrize(
    ("text", "size"), [("8MiB", 8 << 20), ("64k", 65536), ("1.5M", 3 << 19), (4096, 4096)]
)
def test_sizes(text: str | int, size: int) -> None:
    with GuestRam(text) as ram:
        assert ram.size == size == len(ram.array)


@pytest.mark.parametrize("text", ["", "8", "-1", "0", "4097", "8XiB", "MiB", 5])
def test_bad_sizes(text: str | int) -> None:
    with pytest.raises(InvalidInputError):
        GuestRam(text)


def test_slots() -> None:
    slots = [Memslot(2, 3), Memslot(100, 4)]
    with GuestRam(slots=slots) as ram:
        assert ram.pages().shape == (7, 4096)
        assert ram.index(np.array([4, 2, 100, 103], np.uint64)).tolist() == [2, 0, 3, 6]
        with pytest.raises(InvalidInputError, match="0x5"):
            ram.index(np.array([2, 5], np.uint64))
        ram.page(101)[:] = 7
        assert ram.array[4 * 4096 : 5 * 4096].tolist() == [7] * 4096
    for bad in ([], [Memslot(0, 0)], [Memslot(5, 2), Memslot(6, 1)], [Memslot(-1, 3)]):
        with pytest.raises(InvalidInputError):
            GuestRam(slots=bad)
    with pytest.raises(InvalidInputError):
        GuestRam("1MiB", slots=slots)
    with pytest.raises(InvalidInputError, match="private"):
        GuestRam("4MiB", huge=True)


def test_attach_sees_the_same_memory_and_leaves_it() -> None:
    with GuestRam("1MiB") as ram:
        other = GuestRam.attach(ram.name)
        other.array[5000] = 9
        assert ram.array[5000] == 9
        other.close()
        with GuestRam.attach(ram.name) as again:
            assert again.array[5000] == 9
        name = ram.name
    for gone in (name, "no-such-ram"):
        with pytest.raises(InvalidInputError, match="no guest RAM"):
            GuestRam.attach(gone)


def test_host_write_stays_inside() -> None:
    with GuestRam("1MiB", shared=False) as ram:
        ram.host_write(4090, b"0123456789")
        assert ram.array[4090:4100].tobytes() == b"0123456789"
        ram.host_write(0, b"")
        for offset in (-1, ram.size - 3, ram.size):
            with pytest.raises(InvalidInputError):
                ram.host_write(offset, b"0123")


def test_runs_of_pages() -> None:
    pages = DirtyPages(np.array([7, 3, 4, 9], np.uint64), np.array([0, 0, 1, -1], np.int32), 1)
    assert pages.runs().tolist() == [[3, 5], [7, 8], [9, 10]]
    assert pages.of_vcpu(0).tolist() == [7, 3]
    assert len(pages) == 4


def test_cost_of_a_cycle() -> None:
    assert Cost(1.0, 0.5, 0.01).cycle(100, 1000) == 160


class TestChoice:
    """`auto` does what is asked for, and says why; an engine that cannot is refused by name."""

    able = dataclasses.replace(
        probe(),
        wp_async=None,
        pagemap_scan=None,
        perf_faults=None,
        uffd_full=None,
        uffd_features=frozenset(
            ("PAGEFAULT_FLAG_WP", "WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED", "THREAD_ID", "SIGBUS")
        ),
    )

    def test_a_forced_pause_with_writers_outside_is_sync(self) -> None:
        traits, why = choose_engine("auto", self.able, pages=1, max_dirty_pages=5)
        assert traits.name == "sync" and "only one" in why and "not scan: it has no forced pause" in why

    def test_a_missing_feature_is_named(self) -> None:
        no_perf = dataclasses.replace(self.able, perf_faults="EACCES")
        traits, why = choose_engine("auto", no_perf, pages=1, per_vcpu=True, outside_writers=False)
        assert traits.name == "sync" and "CAP_PERFMON" in why
        with pytest.raises(UnsupportedError, match="CAP_PERFMON"):
            choose_engine("ring", no_perf, pages=1)
        old = dataclasses.replace(self.able, wp_async="EINVAL", uffd_features=frozenset())
        with pytest.raises(UnsupportedError, match="no engine can"):
            choose_engine("auto", old, pages=1)

    def test_what_cannot_be_is_refused(self) -> None:
        for name, asked in (("scan", {"max_dirty_pages": 3}), ("scan", {"per_vcpu": True}), ("xyz", {})):
            with pytest.raises(InvalidInputError, match=name):
                choose_engine(name, self.able, pages=1, **asked)  # type: ignore[arg-type]

    @pytest.mark.usefixtures("kernel")
    def test_the_cheapest_is_measured(self) -> None:
        """Scanning terabytes is never the cheapest; a list needs no scan."""
        if probe().perf_faults:
            missing("page-fault samples (the ring engine)")
        traits, why = choose_engine("auto", probe(), pages=1 << 28, outside_writers=False)
        assert traits.cost == "O(dirty)" and " ms" in why

    def test_open(self) -> None:
        with GuestRam("1MiB") as ram:
            for vcpus in (0, 65):
                with pytest.raises(InvalidInputError, match="vCPUs"):
                    open_tracker(ram, vcpus=vcpus)
            with pytest.raises(InvalidInputError, match="threshold"):
                open_tracker(ram, "inline", max_dirty_pages=-3)
