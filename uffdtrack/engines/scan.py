"""WP_ASYNC + PAGEMAP_SCAN: the kernel clears a trap by itself, a scan finds and rearms what it cleared."""

from uffdtrack._sys import lib
from uffdtrack.engines.row import Engine
from uffdtrack.features import Features
from uffdtrack.traits import Traits

TRAITS = Traits(
    name="scan",
    per_vcpu=False,
    forced_pause="none",
    sees_kernel_copies=True,
    sees_gup=True,
    sees_outside=True,
    exact=True,
    cost="O(size)",
)


def lacks(features: Features) -> str | None:
    """What of this host's keeps the engine from working, or None."""
    if not features.scan:
        return "userfaultfd WP_ASYNC and PAGEMAP_SCAN (Linux 6.7)"
    return None


ENGINE = Engine(TRAITS, lib.UT_SCAN, lacks)
