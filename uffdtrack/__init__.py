"""Dirty-memory tracking on stock Linux kernels."""

from uffdtrack._sys import Runs
from uffdtrack.compare import (
    DIFFERS,
    UNREADABLE,
    Places,
    compare_pages,
    existing,
    read_places,
    rseq_address,
    write_pages,
)
from uffdtrack.cycles import Cycles, log_array
from uffdtrack.features import UFFD_FEATURES, Features, guard_pages, probe
from uffdtrack.files import file_mode, open_files
from uffdtrack.guard import MAX_STOP, leave_watchdog, start_watchdog, verdict_on, watchdog
from uffdtrack.keeper import Kept
from uffdtrack.lists import UffdTracker
from uffdtrack.maps import Region, parse_maps
from uffdtrack.pages import DirtyLog, DirtyPages, Stats
from uffdtrack.process import ProcessRam, ProcessTracker
from uffdtrack.ram import GuestRam, Memslot, parse_size
from uffdtrack.space import PAGE, AddressSpace, Heads, Pending, Window, merge_runs, populated, read_maps
from uffdtrack.tracee import (
    Injector,
    ThreadState,
    Tracee,
    open_pidfd,
    shares_memory,
    status_field,
    task_directory,
)
from uffdtrack.tracker import (
    ENGINES,
    PROCESS_ENGINES,
    Tracker,
    choose_engine,
    choose_for_process,
    open_tracker,
)
from uffdtrack.traits import Traits
from uffdtrack.vcpu import Vcpu, join
from uffdtrack.whereabouts import frozen_cgroup

__all__ = [
    "DIFFERS",
    "ENGINES",
    "MAX_STOP",
    "PAGE",
    "PROCESS_ENGINES",
    "UFFD_FEATURES",
    "UNREADABLE",
    "AddressSpace",
    "Cycles",
    "DirtyLog",
    "DirtyPages",
    "Features",
    "GuestRam",
    "Heads",
    "Injector",
    "Kept",
    "Memslot",
    "Pending",
    "Places",
    "ProcessRam",
    "ProcessTracker",
    "Region",
    "Runs",
    "Stats",
    "ThreadState",
    "Tracee",
    "Tracker",
    "Traits",
    "UffdTracker",
    "Vcpu",
    "Window",
    "choose_engine",
    "choose_for_process",
    "compare_pages",
    "existing",
    "file_mode",
    "frozen_cgroup",
    "guard_pages",
    "join",
    "leave_watchdog",
    "log_array",
    "merge_runs",
    "open_files",
    "open_pidfd",
    "open_tracker",
    "parse_maps",
    "parse_size",
    "populated",
    "probe",
    "read_maps",
    "read_places",
    "rseq_address",
    "shares_memory",
    "start_watchdog",
    "status_field",
    "task_directory",
    "verdict_on",
    "watchdog",
    "write_pages",
]
