"""Write-protect messages: each address space's handler thread lists the page and lets the write go on."""

from uffdtrack._sys import lib
from uffdtrack.engines.row import Engine, lacks_wp_messages
from uffdtrack.features import Features
from uffdtrack.traits import Traits

TRAITS = Traits(
    name="sync",
    per_vcpu=True,
    forced_pause="exact",
    sees_kernel_copies=True,
    sees_gup=True,
    sees_outside=True,
    exact=True,
    cost="O(dirty)",
)


def lacks(features: Features) -> str | None:
    """Why the engine does not work on this host, or None."""
    missing = lacks_wp_messages(features, "THREAD_ID")
    if not missing and features.uffd_full:
        return (
            "userfaultfd for the kernel's own faults: it needs CAP_SYS_PTRACE, or "
            "/proc/sys/vm/unprivileged_userfaultfd at 1"
        )
    return missing


ENGINE = Engine(TRAITS, lib.UT_SYNC, lacks, waits=True)
