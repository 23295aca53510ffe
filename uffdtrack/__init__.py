"""Dirty-memory tracking on stock Linux kernels."""

from uffdtrack.attached_ram import ProcessRam
from uffdtrack.attached_tracker import ProcessTracker
from uffdtrack.compare import (
    DIFFERS,
    UNREADABLE,
    Places,
    compare_copies,
    compare_pages,
    existing,
    read_places,
    shares_no_pages,
    write_pages,
)
from uffdtrack.copies import (
    DIFFERENCE,
    NOT_CLOSE,
    STRETCH,
    differences_to,
    page_checks,
    xor_differences,
)
from uffdtrack.cycles import Core, CycleTracker, check_call
from uffdtrack.errors import (
    CycleError,
    GuestError,
    HandlerGoneError,
    InvalidInputError,
    MaxStopError,
    NewMemoryError,
    OutputError,
    PauseTimeoutError,
    PermissionDeniedError,
    StopTimeoutError,
    StorageError,
    TargetBusyError,
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
from uffdtrack.gate import PAUSE_TIMEOUT, Gate, Pausable
from uffdtrack.guard import (
    MAX_STOP,
    end_watchdog,
    leave_watchdog,
    start_watchdog,
    verdict_on,
    watchdog,
)
from uffdtrack.keeper import Kept
from uffdtrack.maps import Region, parse_maps
from uffdtrack.member import Vcpu, join
from uffdtrack.memslots import Memslot
from uffdtrack.pages import DirtyLog, DirtyPages, Stats
from uffdtrack.process import (
    Identity,
    Process,
    children,
    command_name,
    descriptors,
    identify,
    proc_read,
    shares_memory,
    stat_fields,
    status_field,
    task_directory,
)
from uffdtrack.ram import GuestRam, parse_size
from uffdtrack.regions import read_maps
from uffdtrack.rights import how_to_be_allowed
from uffdtrack.runs import PAGE, Runs
from uffdtrack.space import AddressSpace
from uffdtrack.stopped import Standing, standing, standing_together
from uffdtrack.tracee import Injector, Rseq, ThreadState, Tracee
from uffdtrack.tracker import (
    ENGINES,
    PROCESS_ENGINES,
    Tracker,
    choose_engine,
    choose_for_process,
    open_tracker,
)
from uffdtrack.traits import Traits
from uffdtrack.tree import ProcessTree, TreeMember, TreeWindow, adopt_orphans, stop_together
from uffdtrack.uffd_tracker import UffdTracker
from uffdtrack.whereabouts import frozen_cgroup
from uffdtrack.window import Heads, Pending, StopTimes, Window

__all__ = [
    "DIFFERENCE",
    "DIFFERS",
    "ENGINES",
    "MAX_STOP",
    "NOT_CLOSE",
    "PAGE",
    "PAUSE_TIMEOUT",
    "PROCESS_ENGINES",
    "STRETCH",
    "UFFD_FEATURES",
    "UNREADABLE",
    "AddressSpace",
    "Core",
    "CycleError",
    "CycleTracker",
    "DirtyLog",
    "DirtyPages",
    "Features",
    "Gate",
    "GuestError",
    "GuestRam",
    "HandlerGoneError",
    "Heads",
    "Identity",
    "Injector",
    "InvalidInputError",
    "Kept",
    "MaxStopError",
    "Memslot",
    "NewMemoryError",
    "OutputError",
    "Pausable",
    "PauseTimeoutError",
    "Pending",
    "PermissionDeniedError",
    "Places",
    "Process",
    "ProcessRam",
    "ProcessTracker",
    "ProcessTree",
    "Region",
    "Rseq",
    "Runs",
    "Standing",
    "Stats",
    "StopTimeoutError",
    "StopTimes",
    "StorageError",
    "TargetBusyError",
    "TargetError",
    "TargetGoneError",
    "TargetRefusedError",
    "ThreadState",
    "Tracee",
    "Tracker",
    "TrackerError",
    "Traits",
    "TreeMember",
    "TreeWindow",
    "UffdTracker",
    "UffdtrackError",
    "UnsupportedError",
    "Vcpu",
    "VcpuGoneError",
    "Window",
    "adopt_orphans",
    "check_call",
    "children",
    "choose_engine",
    "choose_for_process",
    "command_name",
    "compare_copies",
    "compare_pages",
    "descriptors",
    "differences_to",
    "end_watchdog",
    "existing",
    "file_mode",
    "frozen_cgroup",
    "guard_pages",
    "how_to_be_allowed",
    "identify",
    "join",
    "leave_watchdog",
    "open_files",
    "open_tracker",
    "page_checks",
    "parse_maps",
    "parse_size",
    "probe",
    "proc_read",
    "read_maps",
    "read_places",
    "shares_memory",
    "shares_no_pages",
    "standing",
    "standing_together",
    "start_watchdog",
    "stat_fields",
    "status_field",
    "stop_together",
    "task_directory",
    "verdict_on",
    "watchdog",
    "write_pages",
    "xor_differences",
]
