"""What an engine is to Python: a row. Its counterpart in C is `ut_engine_ops` (_native/guest/engine.h)."""

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
    lacks: what of a host's keeps it from working, or None.
    attached: it works on processes that are attached to.
    waits: the kernel's own faults wait for us, so that its userfaultfd has to take them.
    """

    traits: Traits
    number: int
    lacks: Callable[[Features], str | None]
    attached: bool = True
    waits: bool = False


def lacks_wp_messages(features: Features, extra: str) -> str | None:
    """What keeps an engine from learning of writes before they go on; `extra`: how it learns."""
    needs = ("PAGEFAULT_FLAG_WP", "WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED", extra)
    missing = [name for name in needs if name not in features.uffd_features]
    return f"userfaultfd {', '.join(missing)} (Linux 6.4)" if missing else None


def lacks_wp_async(features: Features) -> str | None:
    """What keeps an engine from having the kernel let writes go on by itself."""
    return None if features.scan else "userfaultfd WP_ASYNC and PAGEMAP_SCAN (Linux 6.7)"
