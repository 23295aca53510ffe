/* Whether processes may have relatives by fork that have their memory. */
#ifndef UT_RELATIVES_H
#define UT_RELATIVES_H
#include "maps.h"

/* 1: no process of this host but the `n` of `pids` has memory of a common ancestor with one of them, or maps one of `objects`
 * (by device and inode number); 0: one may. It does not look at what those of `pids` make meanwhile. Takes some microseconds
 * for each process, and the initial PID namespace. `anybody`: who is no relative may map such objects, too. */
int ut_have_no_relatives(const int32_t *pids, size_t n, const ut_region *objects, size_t nobjects, int anybody);
/* 1: we see all processes of this host, and may know of each what memory it has. */
int ut_sees_all_processes(void);
#endif
