/* The fault rings of all threads of a process, taken together. */
#ifndef UT_THREAD_RINGS_H
#define UT_THREAD_RINGS_H
#include "fault_ring.h"
#include "touched.h"

typedef struct {
	int32_t tid;
	ut_fault_ring ring;
} ut_thread_ring;

typedef struct {
	int32_t pid;
	uint64_t limit;   /* pages of which somebody waits to be told; 0: nobody */
	ut_thread_ring *v;
	size_t n, cap;
	uint64_t samples;
	int64_t unseen;    /* faults without a sample up to the last stop */
	int32_t lost;      /* some faults are not in the set of pages */
	int32_t short_of;  /* -errno: there was no room to watch one more thread; 0: all are watched */
	ut_touched *pages; /* where faults are noted */
} ut_thread_rings;

void ut_thread_rings_open(ut_thread_rings *r, int pid, uint64_t limit, ut_touched *pages);
void ut_thread_rings_close(ut_thread_rings *r);
/* Watch all threads that there are now, and none that have ended. 1: others are watched than before. */
int ut_thread_rings_renew(ut_thread_rings *r);
/* Note the faults that there were. */
void ut_thread_rings_drain(ut_thread_rings *r);
/* A descriptor of `ut_thread_ring.ring.fd.min` says that its thread has ended. */
void ut_thread_rings_drop(ut_thread_rings *r, int fd);
/* The process stands, and the rings were drained. 1: there were faults without a sample since the last stop. */
int ut_thread_rings_audit(ut_thread_rings *r);
#endif
