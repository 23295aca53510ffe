"""What a stop does to each system call of x86-64, and who mends it.

A call that is not here is of the default: it does not sleep interruptibly, or a file system that it asks may
answer EINTR. EINTR means that nothing was done, so the call is repeated; since its work then begins from the
start, the next stops leave it the time to end. That is safe for calls that this table does not know yet.

Sources: signal(7), "Interruption of system calls"; the man page of each call; in the kernel's source
arch/x86/kernel/signal.c, include/linux/errno.h, kernel/seccomp.c, kernel/bpf/verifier.c, fs/fuse/dev.c,
mm/shmem.c.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Calls that a stop does the same to.

    Attributes:
        names: the calls.
        rule: "leave", "wait", "file", "driver": what is done about EINTR; "anew": the default. See
            `ut_call_rule`.
        why: what an interruption does.
        tried: the program of tests/programs and its counter, "" where none can be had here.
    """

    names: str
    rule: str
    why: str
    tried: str = ""


TABLE = [
    # Restarted by the kernel.
    Row("wait4 waitid", "anew", "ERESTARTSYS", "calls children"),
    Row(
        "open openat openat2 creat",
        "anew",
        "of a FIFO ERESTARTSYS; a file system's EINTR",
        "calls waits, files",
    ),
    Row("msgsnd msgrcv", "anew", "ERESTARTNOHAND", "calls waits"),
    Row("pause rt_sigsuspend", "anew", "ERESTARTNOHAND", "notices"),
    Row(
        "fork vfork clone clone3 execve execveat ptrace",
        "anew",
        "ERESTARTNOINTR, before anything",
        "calls children",
    ),
    Row("mq_timedsend mq_timedreceive", "anew", "ERESTARTSYS; the limit is absolute"),
    Row("futex", "anew", "ERESTARTSYS, with a relative limit by restart_syscall", "calls waits"),
    Row("futex_waitv futex_wait", "anew", "ERESTARTSYS; the limit is absolute"),
    Row(
        "nanosleep clock_nanosleep poll",
        "anew",
        "restart_syscall, by us under a filter",
        "notices, calls waits",
    ),
    Row(
        "splice tee vmsplice sendfile copy_file_range",
        "anew",
        "ERESTARTSYS, or how much was done",
        "calls children",
    ),
    Row("getrandom", "anew", "ERESTARTSYS, or how much was done", "calls waits"),
    Row("add_key request_key keyctl", "anew", "ERESTARTSYS, a key's own EINTR"),
    # Never restarted by the kernel, and repeated by us; those that have a limit keep it.
    Row("epoll_wait epoll_pwait epoll_pwait2", "wait", "EINTR", "notices, calls waits"),
    Row("select pselect6 ppoll", "wait", "ERESTARTNOHAND, EINTR if the limit is read-only", "notices"),
    Row("semop semtimedop rt_sigtimedwait", "wait", "EINTR", "notices"),
    Row(
        "io_getevents io_pgetevents io_uring_enter",
        "wait",
        "EINTR; counts that were submitted are returned",
        "calls waits",
    ),
    Row("recvfrom recvmsg recvmmsg accept accept4", "wait", "EINTR with SO_RCVTIMEO", "notices, calls waits"),
    Row(
        "sendto sendmsg sendmmsg connect", "wait", "EINTR with SO_SNDTIMEO; connecting goes on", "calls waits"
    ),
    Row(
        "flock fcntl", "wait", "ERESTARTSYS; a file system's EINTR, after as long as it likes", "calls waits"
    ),
    # By what the descriptor is of.
    Row(
        "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2",
        "file",
        "ERESTARTSYS, or how much was done; EINTR with a socket's limit, of a driver, of a file system",
        "notices, calls waits, files",
    ),
    Row("ioctl", "driver", "a driver's EINTR says that the request must not be made again", "calls waits"),
    # Done, whatever it says.
    Row(
        "close restart_syscall",
        "leave",
        "the descriptor is gone; stops wait for a file system's flush",
        "calls files",
    ),
    # The default, where it matters.
    Row("bpf", "anew", "EAGAIN of BPF_PROG_LOAD: the verification begins anew", "calls load"),
    Row("fallocate", "anew", "EINTR: what was allocated is given back", "calls allocate"),
    Row(
        "stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat statfs fstatfs "
        "getdents64 mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink "
        "symlinkat mknod mknodat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat truncate "
        "ftruncate utimensat getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr "
        "removexattr fsync fdatasync "
        "sync_file_range lseek chdir",
        "anew",
        "a file system's EINTR, where it is in user space or on another machine",
        "calls files",
    ),
    Row(
        "mlock mlock2 mlockall mmap madvise process_madvise", "anew", "EINTR only when killed", "calls waits"
    ),
]


def rules() -> dict[str, str]:
    """The rule of each call that has a row."""
    found: dict[str, str] = {}
    for row in TABLE:
        for name in row.names.split():
            assert name not in found, f"{name} has two rows"
            found[name] = row.rule
    return found
