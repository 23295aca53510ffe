"""tests/programs/own_calls.c: what a thread can have set up about its calls, signals and registers."""

from __future__ import annotations

import time

from tests.conftest import missing
from tests.helpers import Build, Spawn

MEMBERS = {
    "rseq": "inside of a critical section of rseq(2): it is aborted, and never goes on",
    "registration": "registers with rseq(2) itself, and takes that back: twice in a row is an error",
    "dispatch": "syscall user dispatch: our calls do not become SIGSYS, the target's do",
    "filter": "a seccomp filter of one thread that kills for userfaultfd and restart_syscall",
    "filters": "the same filter for all threads",
    "strict": "seccomp's strict mode, which kills for all but read, write and exit",
    "limit": "no file descriptor is free, and the limit is a hard one",
    "soft-limit": "no file descriptor is free, and the limit may be raised",
    "no-vdso": "the vdso is unmapped: the system call instruction is another one",
    "signals": "handlers of SIGTRAP and SIGSEGV, ignored SIGSYS, blocked SIGSEGV",
    "alternate": "an alternate stack of the least size, used all the time",
    "handler": "inside of a signal handler",
    "suspend": "sigsuspend: another mask for the time of the call",
    "step": "the trap flag: the thread steps itself",
    "faults": "signals of its own instructions: a stop is in front of the instruction, or behind its signal",
    "trap": "the same of a seccomp filter that answers with SIGSYS",
    "breakpoint": "a breakpoint of the processor's on the thread",
    "compat": "calls by int 0x80, which restart in another way",
    "code32": "32-bit code in a 64-bit process",
    "registers": "all kinds of registers, the red zone, the direction flag",
    "hidden": "PR_SET_DUMPABLE 0, PR_SET_NO_NEW_PRIVS",
    "tsc": "PR_SET_TSC: the clock of the vdso is a fault",
    "mdwe": "PR_SET_MDWE: no memory becomes executable",
    "vfork": "in vfork(2), where no stop is possible until the child is done",
}


class Target:
    """tests/programs/own_calls.c."""

    def __init__(self, spawn: Spawn, build: Build, member: str, *more: str) -> None:
        self.process = spawn(build("own_calls"), member, *more)
        self.pid = self.process.pid
        assert self.process.stdin and self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout
        line = self.output.readline()
        if line == b"unsupported\n":
            missing(MEMBERS[member])
        assert line == b"ready\n"

    def rounds(self) -> int:
        self.input.write(b"\n")
        self.input.flush()
        line = self.output.readline().decode()
        assert line.strip().isdigit(), f"{line!r}, status {self.process.poll()}"
        return int(line)

    def works_on(self) -> None:
        """It goes through more rounds; none has noticed anything."""
        first = self.rounds()
        deadline = time.monotonic() + 30
        while self.rounds() < first + 3:
            assert time.monotonic() < deadline, "it stands still"
            time.sleep(0.001)
