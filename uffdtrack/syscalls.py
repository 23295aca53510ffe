"""Numbers of system calls, from the headers that the core was compiled with (sys/syscall.h)."""

from __future__ import annotations

from uffdtrack._sys import lib

BRK: int = lib.SYS_brk
CLOSE: int = lib.SYS_close
MADVISE: int = lib.SYS_madvise
MLOCK2: int = lib.SYS_mlock2
MMAP: int = lib.SYS_mmap
MPROTECT: int = lib.SYS_mprotect
MREMAP: int = lib.SYS_mremap
MUNLOCK: int = lib.SYS_munlock
MUNMAP: int = lib.SYS_munmap
OPENAT: int = lib.SYS_openat
PKEY_MPROTECT: int = lib.SYS_pkey_mprotect
PRCTL: int = lib.SYS_prctl
RSEQ: int = lib.SYS_rseq
RT_SIGSUSPEND: int = lib.SYS_rt_sigsuspend
WAIT4: int = lib.SYS_wait4
WAITID: int = lib.SYS_waitid
