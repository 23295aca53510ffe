/* Reading another process's memory, without making it larger.
 *
 * process_vm_readv(2) pins what it reads, and the kernel gives a page that is shared by fork, or merged (KSM), a copy of
 * its own for that: the memory of a prefork server doubles. /proc/PID/mem does not pin, and is 1.5 to 2 times slower. So
 * the former reads what nobody shares. */
#ifndef UT_REMOTE_H
#define UT_REMOTE_H
#include "maps.h"
#include "runs.h"

typedef struct {
	int32_t tid, pagemap, mem;
	int32_t shared; /* somebody may share its pages: each has to be asked */
	int64_t give_up_ns; /* when to leave off, -ETIME; 0: never */
} ut_remote;

/* -ETIME: it is time to leave off; else 0. */
int ut_remote_overdue(const ut_remote *r);
/* Whether somebody may share pages of this memory, by those that a child leaves as they are. */
int ut_remote_shared(const ut_remote *r, const ut_maps *m);
/* The same of a process that is looked at once; 1: nobody does. */
int ut_remote_alone(int pid, int tid);
/* Copy ranges, one behind the other, to `to`. Pages that cannot be read become zero and are listed in `unreadable`. */
int ut_remote_read(const ut_remote *r, const ut_run *runs, size_t n, uint8_t *to, ut_runs *unreadable);
#endif
