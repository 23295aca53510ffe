"""WP_ASYNC + PAGEMAP_SCAN: the kernel clears a trap by itself, a scan finds and rearms what it cleared.

The scanning is C (`_native/space.c`), behind `uffdtrack.AddressSpace`.
"""

from uffdtrack.traits import Traits

TRAITS = Traits(
    name="scan",
    per_vcpu=False,
    forced_pause="none",
    sees_kernel_copies=True,
    sees_gup=True,
    cost="O(size)",
)
