/* Attempts, to find out what the running kernel does. 0, 1 or -errno. */
#ifndef UT_PROBE_H
#define UT_PROBE_H
#include <stdint.h>

/* Features of userfaultfd(2), the bits of UFFDIO_API. */
int ut_probe_uffd(int user_mode_only, uint64_t *features);
/* PAGEMAP_SCAN finds a page that was written under WP_ASYNC, and no other. */
int ut_probe_wp_async(int user_mode_only);
/* The next scan reports 2 MiB of armed memory that were zapped. */
int ut_probe_zapped_pmd(int user_mode_only, int huge);
/* MADV_GUARD_INSTALL over armed pages of a private file mapping comes to an end. If not, this takes a
 * second. */
int ut_probe_guard(int user_mode_only);
int ut_probe_pagemap_scan(void);
int ut_probe_pidfd_getfd(void);
int ut_probe_ptrace(void);
int ut_probe_suspend_seccomp(void);
/* A thread can sample events of its own faults. */
int ut_probe_perf_faults(void);
#endif
