"""Find out by trying what this host can do. `doctor`, the tests' skips and attach ask here."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import cache

from uffdtrack._sys import ffi, lib

UFFD_FEATURES = {
    name: getattr(lib, f"UFFD_FEATURE_{name}")
    for name in (
        "PAGEFAULT_FLAG_WP",
        "EVENT_FORK",
        "EVENT_REMAP",
        "EVENT_REMOVE",
        "MISSING_HUGETLBFS",
        "MISSING_SHMEM",
        "EVENT_UNMAP",
        "SIGBUS",
        "THREAD_ID",
        "MINOR_HUGETLBFS",
        "MINOR_SHMEM",
        "EXACT_ADDRESS",
        "WP_HUGETLBFS_SHMEM",
        "WP_UNPOPULATED",
        "WP_ASYNC",
    )
}
"""The kernel's names (linux/userfaultfd.h) and bits."""


@dataclass(frozen=True, slots=True)
class Features:
    """The answers. None is a "yes"; a text, an errno's name, is the reason of a "no".

    Attributes:
        uffd_user, uffd_full: userfaultfd(2) with and without UFFD_USER_MODE_ONLY.
        uffd_features: names of `UFFD_FEATURES` that the kernel offers.
        wp_async: a scan found a written page, and no other page.
        perf_faults: we can sample page faults of our own threads, those in the kernel included.
        zapped_pmd_reported: a scan reports 2 MiB that MADV_DONTNEED has given back.
    """

    uffd_user: str | None
    uffd_full: str | None
    uffd_features: frozenset[str]
    wp_async: str | None
    pagemap_scan: str | None
    zapped_pmd_reported: bool
    pidfd_getfd: str | None
    ptrace: str | None
    suspend_seccomp: str | None
    perf_faults: str | None

    @property
    def scan(self) -> bool:
        """Whether the `scan` engine works here."""
        return self.wp_async is None and self.pagemap_scan is None


def _answer(result: int) -> str | None:
    if result > 0:
        return None
    return errno.errorcode.get(-result, str(-result)) if result else "wrong answer"


@cache
def probe() -> Features:
    """Try everything, once a process."""
    bits = ffi.new("uint64_t *")
    user = lib.ut_probe_uffd(1, bits)
    return Features(
        uffd_user=_answer(user),
        uffd_full=_answer(lib.ut_probe_uffd(0, ffi.new("uint64_t *"))),
        uffd_features=frozenset(name for name, bit in UFFD_FEATURES.items() if bits[0] & bit),
        wp_async=_answer(lib.ut_probe_wp_async(1)),
        pagemap_scan=_answer(lib.ut_probe_pagemap_scan()),
        zapped_pmd_reported=lib.ut_probe_zapped_pmd(1, 0) == 1 and lib.ut_probe_zapped_pmd(1, 1) == 1,
        pidfd_getfd=_answer(lib.ut_probe_pidfd_getfd()),
        ptrace=_answer(lib.ut_probe_ptrace()),
        suspend_seccomp=_answer(lib.ut_probe_suspend_seccomp()),
        perf_faults=_answer(lib.ut_probe_perf_faults()),
    )


def guard_pages() -> bool | None:
    """Whether a program may install guard pages (madvise(2)) over armed pages of a private file mapping.

    On some kernels that call goes on for ever, until the tracking ends or the caller is killed. Not part of
    `probe`: a "no" takes a second.

    Returns:
        None: this kernel has no such guard pages.
    """
    result = lib.ut_probe_guard(1)
    return None if result < 0 else bool(result)
