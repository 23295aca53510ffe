"""WP_ASYNC + PAGEMAP_SCAN: the kernel clears a trap by itself, a scan finds the page and arms it again."""

from uffdtrack._sys import lib
from uffdtrack.engines.row import Engine, lacks_wp_async
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


ENGINE = Engine(TRAITS, lib.UT_SCAN, lacks_wp_async)
