"""Dirty-memory tracking on stock Linux kernels."""

from uffdtrack._sys import Runs
from uffdtrack.features import UFFD_FEATURES, Features, probe
from uffdtrack.maps import Region, parse_maps
from uffdtrack.space import PAGE, AddressSpace, Pending, Window, merge_runs, populated
from uffdtrack.tracee import (
    Injector,
    ThreadState,
    Tracee,
    has_seccomp,
    open_pidfd,
    shares_memory,
    status_field,
    task_directory,
)
from uffdtrack.tracker import ENGINES, choose_engine
from uffdtrack.traits import Traits

__all__ = [
    "ENGINES",
    "PAGE",
    "UFFD_FEATURES",
    "AddressSpace",
    "Features",
    "Injector",
    "Pending",
    "Region",
    "Runs",
    "ThreadState",
    "Tracee",
    "Traits",
    "Window",
    "choose_engine",
    "has_seccomp",
    "merge_runs",
    "open_pidfd",
    "parse_maps",
    "populated",
    "probe",
    "shares_memory",
    "status_field",
    "task_directory",
]
