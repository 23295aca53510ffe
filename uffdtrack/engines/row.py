"""A row describes an engine to Python. Its counterpart in C is `ut_engine_ops` (_native/guest/engine.h)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uffdtrack.features import Features
from uffdtrack.traits import Traits


@dataclass(frozen=True)
class Engine:
    """Attributes:
    traits: what it promises.
    number: the C core's.
    lacks: returns why it does not work on a host, or None.
    attached: it works on attached processes.
    waits: the kernel's own faults wait for us, so that its userfaultfd has to take them.
    """

    traits: Traits
    number: int
    lacks: Callable[[Features], str | None]
    attached: bool = True
    waits: bool = False


def lacks_wp_messages(features: Features, extra: str) -> str | None:
    """Why an engine cannot learn of writes before they go on, or None; `extra`: one more feature to use."""
    needs = ("PAGEFAULT_FLAG_WP", "WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED", extra)
    missing = [name for name in needs if name not in features.uffd_features]
    return f"userfaultfd {', '.join(missing)} (Linux 6.4)" if missing else None


def lacks_wp_async(features: Features) -> str | None:
    """Why the kernel cannot let writes go on by itself, or None."""
    return None if features.scan else "userfaultfd WP_ASYNC and PAGEMAP_SCAN (Linux 6.7)"
