"""The checks of `doctor`: it tries each thing, and needs no privilege."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvmglue import Kvm, Order, Vm, open_tracker, post, rings_for, wait
from uffdtrack import UFFD_FEATURES, Features, GuestRam, guard_pages, probe
from uffdtrack.errors import PermissionDeniedError, UffdtrackError, UnsupportedError

Status = Literal["pass", "warn", "fail", "skip"]
NEEDED = ("PAGEFAULT_FLAG_WP", "WP_ASYNC")


@dataclass(frozen=True, slots=True)
class Check:
    """`fix` says what to do; "" if there is nothing to do."""

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
    missing = [name for name in UFFD_FEATURES if name not in f.uffd_features]
    found = [
        Check(
            f"userfaultfd {name}",
            "fail" if name in NEEDED else "skip",
            "not offered by the kernel",
            "Linux 6.7 or newer" if name in NEEDED else "",
        )
        for name in missing
    ]
    offered = f"{len(UFFD_FEATURES) - len(missing)} of {len(UFFD_FEATURES)} are offered by the kernel"
    return found or [Check("userfaultfd features", "pass", offered)]


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
        with Kvm() as kvm:
            most = kvm.capabilities
    except PermissionDeniedError as error:
        return [
            Check(
                "/dev/kvm", "warn", str(error), "add the user to the group of /dev/kvm; all else does without"
            )
        ]
    except UnsupportedError as error:
        return [Check("/dev/kvm", "skip", str(error))]
    found = [Check("/dev/kvm", "pass", f"up to {most.vcpus} vCPUs")]
    for engine, name, lacking in (
        ("kvm-bitmap", "KVM dirty log", ""),
        ("kvm-clear", "KVM manual clear", "" if most.manual_clear else "not offered (Linux 5.3)"),
        ("kvm-ring", "KVM dirty ring", "" if most.ring_entries else "not offered (Linux 5.11)"),
    ):
        found.append(Check(name, "skip", lacking) if lacking else _tracker(engine, name))
    return found


def _tracker(engine: str, name: str) -> Check:
    """Have a guest write two pages: the tracker has to list them, and no other."""
    try:
        with (
            GuestRam("1MiB", shared=False) as ram,
            Vm(ram, ring_entries=rings_for(engine, 1), list_rows=2) as vm,
            open_tracker(vm, engine) as tracker,
        ):
            vm.resume()
            post(vm, 0, Order("write", rows=[7, 200]))
            if not wait(vm, 0, timeout=5.0):
                return Check(name, "warn", "a guest that was to write two pages did not")
            pages = sorted(tracker.exchange().gfn.tolist())
    except UffdtrackError as error:
        return Check(name, "warn", str(error), "the other engines do without")
    if pages != [7, 200]:
        return Check(
            name, "warn", f"a guest wrote pages 7 and 200, the log says {pages}", "use another engine"
        )
    return Check(name, "pass", "the two pages that a guest wrote were listed, and no other")


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
