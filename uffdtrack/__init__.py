"""Dirty-memory tracking on stock Linux kernels."""

from uffdtrack._sys import Runs
from uffdtrack.cycles import Cycles, log_array
from uffdtrack.errors import (
    CycleError,
    EpochSkippedError,
    GuestError,
    HandlerGoneError,
    ImageError,
    InvalidInputError,
    NewMemoryError,
    OutputError,
    PauseTimeoutError,
    PermissionDeniedError,
    RollbackRefusedError,
    StopTimeoutError,
    StorageError,
    TargetError,
    TargetGoneError,
    TargetRefusedError,
    TrackerError,
    UffdtrackError,
    UnsupportedError,
    VcpuGoneError,
)
from uffdtrack.features import UFFD_FEATURES, Features, guard_pages, probe
from uffdtrack.files import file_mode, open_files
from uffdtrack.guard import MAX_STOP, leave_watchdog, start_watchdog, verdict_on, watchdog
from uffdtrack.keeper import Kept
from uffdtrack.lists import UffdTracker
from uffdtrack.maps import Region, parse_maps
from uffdtrack.pages import DirtyLog, DirtyPages, Stats
from uffdtrack.process import ProcessRam, ProcessTracker
from uffdtrack.ram import GuestRam, Memslot, parse_size
from uffdtrack.rights import how_to_be_allowed
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
    "ENGINES",
    "MAX_STOP",
    "PAGE",
    "PROCESS_ENGINES",
    "UFFD_FEATURES",
    "AddressSpace",
    "CycleError",
    "Cycles",
    "DirtyLog",
    "DirtyPages",
    "EpochSkippedError",
    "Features",
    "GuestError",
    "GuestRam",
    "HandlerGoneError",
    "Heads",
    "ImageError",
    "Injector",
    "InvalidInputError",
    "Kept",
    "Memslot",
    "NewMemoryError",
    "OutputError",
    "PauseTimeoutError",
    "Pending",
    "PermissionDeniedError",
    "ProcessRam",
    "ProcessTracker",
    "Region",
    "RollbackRefusedError",
    "Runs",
    "Stats",
    "StopTimeoutError",
    "StorageError",
    "TargetError",
    "TargetGoneError",
    "TargetRefusedError",
    "ThreadState",
    "Tracee",
    "Tracker",
    "TrackerError",
    "Traits",
    "UffdTracker",
    "UffdtrackError",
    "UnsupportedError",
    "Vcpu",
    "VcpuGoneError",
    "Window",
    "choose_engine",
    "choose_for_process",
    "file_mode",
    "frozen_cgroup",
    "guard_pages",
    "how_to_be_allowed",
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
    "shares_memory",
    "start_watchdog",
    "status_field",
    "task_directory",
    "verdict_on",
    "watchdog",
]
