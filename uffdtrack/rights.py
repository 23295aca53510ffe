"""Why the kernel forbids us to look into a process, and what to do; it never tells root to "run as root"."""

from __future__ import annotations

import os

from uffdtrack import procfs

_CAP_SYS_PTRACE = 19


def how_to_be_allowed(pid: int) -> str:
    """A sentence for people. ptrace(2), section "Ptrace access mode checking"; Yama.rst."""
    scope = procfs.glance("/proc/sys/kernel/yama/ptrace_scope")
    if scope == "3":
        return "kernel.yama.ptrace_scope is 3: nobody may, until the host is booted with another"
    if os.geteuid():
        return _of_a_user(pid, scope)
    if not _capabilities() >> _CAP_SYS_PTRACE & 1:
        return "This root lacks CAP_SYS_PTRACE: in a container, --cap-add SYS_PTRACE"
    if _namespace("self") != _namespace(str(pid)):
        return "The process is of another user namespace, in which this root has no CAP_SYS_PTRACE"
    return "This root has CAP_SYS_PTRACE: a security module (AppArmor, SELinux, Landlock, seccomp) forbids it"


def _of_a_user(pid: int, scope: str) -> str:
    owner = procfs.field(procfs.glance(f"/proc/{pid}/status"), "Uid").split()
    if "0" in owner:
        return "The process is root's: run as root"
    if owner and set(owner) != {str(os.geteuid())}:
        return "Run as root, or as the user of the process" + _yama(scope)
    if _yama(scope):
        return "Run as root" + _yama(scope)
    return "Run as root: the process has more rights than its user, or may not be dumped (PR_SET_DUMPABLE)"


def _yama(scope: str) -> str:
    if scope in ("", "0"):  # without Yama there is no such file
        return ""
    return f"; kernel.yama.ptrace_scope is {scope}: only root or a parent (uffdtrack run) may"


def _capabilities() -> int:
    return int(procfs.field(procfs.glance("/proc/self/status"), "CapEff") or "0", 16)


def _namespace(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/user")
    except OSError:
        return ""
