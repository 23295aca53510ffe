"""What `doctor` checks: each thing by trying it, safe without privilege."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uffdtrack import UFFD_FEATURES, Features, guard_pages, probe

Status = Literal["pass", "warn", "fail", "skip"]
NEEDED = ("PAGEFAULT_FLAG_WP", "WP_ASYNC")
_KVM_GET_API_VERSION, _KVM_CREATE_VM, _KVM_CHECK_EXTENSION = 0xAE00, 0xAE01, 0xAE03
_KVM_SET_USER_MEMORY_REGION, _KVM_GET_DIRTY_LOG = 0x4020AE46, 0x4010AE42
_KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, _KVM_CAP_DIRTY_LOG_RING = 168, 192
_KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 223


@dataclass(frozen=True, slots=True)
class Check:
    """`fix` says what to do, "" where nothing is to be done."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def checks() -> list[Check]:
    """Run every check."""
    f = probe()
    return [
        _architecture(),
        *_userfaultfd(f),
        *_uffd_features(f),
        *_tracking(f),
        *_attaching(f),
        _perf(f),
        *_kvm(),
        *_huge_pages(),
    ]


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _architecture() -> Check:
    machine = platform.machine()
    if machine == "x86_64" and platform.system() == "Linux":
        return Check("architecture", "pass", f"{machine}, Linux {platform.release()}")
    return Check("architecture", "fail", machine, "use an x86-64 Linux host")


def _tried(name: str, answer: str | None, good: str, status: Status, fix: str) -> Check:
    if answer is None:
        return Check(name, "pass", good)
    return Check(name, status, f"does not work: {answer}", fix)


def _userfaultfd(f: Features) -> list[Check]:
    return [
        _tried(
            "userfaultfd", f.uffd_user, "for user faults", "fail",
            "a kernel with CONFIG_USERFAULTFD; in a container, a seccomp profile that allows "
            "userfaultfd(2)",
        ),
        _tried(
            "userfaultfd, kernel faults", f.uffd_full, "allowed: the sync engine works", "warn",
            "run as root, or sysctl vm.unprivileged_userfaultfd=1; checkpoints do without",
        ),
    ]  # fmt: skip


def _uffd_features(f: Features) -> list[Check]:
    found = []
    for name in UFFD_FEATURES:
        if name in f.uffd_features:
            found.append(Check(f"userfaultfd {name}", "pass", "offered by the kernel"))
        else:
            needed = name in NEEDED
            found.append(
                Check(
                    f"userfaultfd {name}",
                    "fail" if needed else "skip",
                    "not offered by the kernel",
                    "Linux 6.7 or newer" if needed else "",
                )
            )
    return found


def _tracking(f: Features) -> list[Check]:
    found = [
        _tried(
            "PAGEMAP_SCAN", f.pagemap_scan, "works on our own memory", "fail", "Linux 6.7 or newer"
        ),
        _tried(
            "tracking", f.wp_async, "a page written under WP_ASYNC was found again, and no other",
            "fail", "Linux 6.7 or newer",
        ),
    ]  # fmt: skip
    if not f.scan:
        return [*found, Check("zapped memory", "skip", "needs tracking")]
    found.append(_guard_pages())
    if f.zapped_pmd_reported:
        return [*found, Check("zapped memory", "pass", "2 MiB given back are reported by a scan")]
    return [
        *found,
        Check(
            "zapped memory",
            "warn",
            "2 MiB given back by MADV_DONTNEED are missed by PAGEMAP_SCAN here; they are found by "
            "comparing what is mapped, at three times the cost of a scan",
            "a newer kernel",
        ),
    ]


def _guard_pages() -> Check:
    works = guard_pages()
    if works is None:
        return Check("guard pages", "skip", "no MADV_GUARD_INSTALL over files here (Linux 6.15)")
    if works:
        return Check("guard pages", "pass", "can be installed over tracked pages of a private file mapping")
    return Check(
        "guard pages",
        "warn",
        "a tracked program that calls MADV_GUARD_INSTALL over pages of a read-only private file mapping "
        "hangs in that call until the session ends: a bug of this kernel",
        "no checkpoints of programs that do so, or a newer kernel",
    )


def _attaching(f: Features) -> list[Check]:
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    root = os.geteuid() == 0
    found = [
        _tried("pidfd_getfd", f.pidfd_getfd, "works", "fail", "Linux 5.6 or newer"),
        _tried("ptrace", f.ptrace, "a child was stopped and released", "fail",
               "in a container, --cap-add SYS_PTRACE"),
        _tried(
            "seccomp", f.suspend_seccomp, "filters of a target can be suspended", "warn",
            "root is needed to attach to processes with a seccomp filter",
        ),
    ]  # fmt: skip
    if scope is None or scope == "0":
        found.append(Check("ptrace_scope", "pass", scope or "no Yama in this kernel"))
    elif scope == "3":
        found.append(
            Check("ptrace_scope", "fail", "3: nobody may attach", "boot with another kernel.yama."
                  "ptrace_scope")
        )  # fmt: skip
    elif root:
        found.append(Check("ptrace_scope", "pass", f"{scope}, and this is root"))
    else:
        found.append(
            Check("ptrace_scope", "warn", f"{scope}: without root only children can be attached to",
                  "uffdtrack run, or as root, or sysctl kernel.yama.ptrace_scope=0")
        )  # fmt: skip
    return found


def _perf(f: Features) -> Check:
    if f.perf_faults is None:
        return Check("perf page-fault samples", "pass", "the kernel's own faults too: the ring engine works")
    return Check(
        "perf page-fault samples",
        "warn",
        f"{f.perf_faults}: no ring engine (perf_event_paranoid is "
        f"{(_read('/proc/sys/kernel/perf_event_paranoid') or 'absent').strip()})",
        "sysctl kernel.perf_event_paranoid=1, or CAP_PERFMON; the other engines do without",
    )


def _kvm() -> list[Check]:
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return [Check("/dev/kvm", "skip", "not there: no virtualisation, or no module")]
    except OSError as error:
        return [
            Check("/dev/kvm", "warn", error.strerror or "cannot be opened",
                  "add the user to the group of /dev/kvm; process checkpoints do without")
        ]  # fmt: skip
    try:
        version = fcntl.ioctl(kvm, _KVM_GET_API_VERSION, 0)
        found = [Check("/dev/kvm", "pass", f"API version {version}")]
        found.append(_caught("KVM dirty log", lambda: _dirty_log(kvm)))
        manual = fcntl.ioctl(kvm, _KVM_CHECK_EXTENSION, _KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
        found.append(
            Check("KVM manual clear", "pass" if manual else "skip",
                  "offered" if manual else "not offered (Linux 5.3)")
        )  # fmt: skip
        ring = fcntl.ioctl(kvm, _KVM_CHECK_EXTENSION, _KVM_CAP_DIRTY_LOG_RING) or fcntl.ioctl(
            kvm, _KVM_CHECK_EXTENSION, _KVM_CAP_DIRTY_LOG_RING_ACQ_REL
        )
        detail = f"up to {ring // 16} entries a vCPU" if ring else "not offered (Linux 5.11)"
        found.append(Check("KVM dirty ring", "pass" if ring else "skip", detail))
        return found
    finally:
        os.close(kvm)


def _caught(name: str, work: Callable[[], str]) -> Check:
    try:
        return Check(name, "pass", work())
    except OSError as error:
        return Check(name, "warn", f"does not work: {error.strerror}")


def _dirty_log(kvm: int) -> str:
    """A VM with one logged slot of memory, whose log is read."""
    vm = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
    try:
        with mmap.mmap(-1, 16 * 4096) as memory:
            hold = (ctypes.c_char * len(memory)).from_buffer(memory)
            bitmap = ctypes.create_string_buffer(64)
            try:
                slot = struct.pack("<IIQQQ", 0, 1, 0, len(memory), ctypes.addressof(hold))
                fcntl.ioctl(vm, _KVM_SET_USER_MEMORY_REGION, slot)
                fcntl.ioctl(vm, _KVM_GET_DIRTY_LOG, struct.pack("<IIQ", 0, 0, ctypes.addressof(bitmap)))
            finally:
                del hold
        return "a logged slot was made and its log read"
    finally:
        os.close(vm)


def _huge_pages() -> list[Check]:
    thp = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    if thp is None:
        return [Check("huge pages", "skip", "no transparent huge pages in this kernel")]
    mode = thp[thp.index("[") + 1 : thp.index("]")] if "[" in thp else thp
    detail = f"transparent huge pages: {mode}"
    if mode == "never":
        return [Check("huge pages", "warn", detail,
                      "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled makes scans of huge "
                      "memory cheaper")]  # fmt: skip
    return [Check("huge pages", "pass", detail)]
