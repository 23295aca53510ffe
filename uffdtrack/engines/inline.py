"""UFFD_FEATURE_SIGBUS: the thread that is about to write gets a signal, and lists the page itself."""

from uffdtrack._sys import lib
from uffdtrack.engines.row import Engine
from uffdtrack.features import Features
from uffdtrack.traits import Traits

TRAITS = Traits(
    name="inline",
    per_vcpu=True,
    forced_pause="exact",
    sees_kernel_copies=False,
    sees_gup=False,
    sees_outside=True,
    exact=True,
    cost="O(dirty)",
)
NEEDS = ("PAGEFAULT_FLAG_WP", "WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED", "SIGBUS")


def lacks(features: Features) -> str | None:
    """What of this host's keeps the engine from working, or None."""
    missing = [name for name in NEEDS if name not in features.uffd_features]
    return f"userfaultfd {', '.join(missing)} (Linux 6.4)" if missing else None


ENGINE = Engine(TRAITS, lib.UT_INLINE, lacks, attached=False)
