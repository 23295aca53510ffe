"""WP_ASYNC + perf: the kernel clears a trap by itself and appends the fault to the vCPU's perf ring."""

from uffdtrack._sys import lib
from uffdtrack.engines.row import Engine, lacks_wp_async
from uffdtrack.features import Features
from uffdtrack.traits import Traits

TRAITS = Traits(
    name="ring",
    per_vcpu=True,
    forced_pause="exact",
    sees_kernel_copies=True,
    sees_gup="audited",
    sees_outside=False,
    exact=False,
    cost="O(dirty)",
)


def lacks(features: Features) -> str | None:
    """Why the engine does not work on this host, or None."""
    if features.scan and features.perf_faults:
        return (
            f"page-fault samples of the kernel's own faults ({features.perf_faults}): it needs CAP_PERFMON, "
            "or /proc/sys/kernel/perf_event_paranoid at 1 or lower"
        )
    return lacks_wp_async(features)


ENGINE = Engine(TRAITS, lib.UT_RING, lacks)
