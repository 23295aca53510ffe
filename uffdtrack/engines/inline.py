"""UFFD_FEATURE_SIGBUS: the thread that is about to write gets a signal, and lists the page itself."""

from uffdtrack._sys import lib
from uffdtrack.engines.row import Engine, lacks_wp_messages
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


def lacks(features: Features) -> str | None:
    """Why the engine does not work on this host, or None."""
    return lacks_wp_messages(features, "SIGBUS")


ENGINE = Engine(TRAITS, lib.UT_INLINE, lacks, attached=False)
