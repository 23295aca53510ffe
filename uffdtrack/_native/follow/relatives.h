/* Whether a process may have relatives by fork that have its memory. */
#ifndef UT_RELATIVES_H
#define UT_RELATIVES_H
#include "maps.h"

/* 1: no other process of this host has memory of a common ancestor with `pid`, or maps one of `objects` (by
 * device and inode number); 0: one may. It does not look at what `pid` itself makes
 * meanwhile. Takes some microseconds for each process, and the initial PID namespace. */
int ut_has_no_relatives(int pid, const ut_region *objects, size_t n);
/* 1: we see all processes of this host, and may know of each what memory it has. */
int ut_sees_all_processes(void);
#endif
