/* Whether a process that we stop has made others since the last stop. The kernel notes it in a perf ring of
 * each thread (PERF_RECORD_FORK), so nobody waits for us. */
#ifndef UT_BIRTHS_H
#define UT_BIRTHS_H
#include "tracee.h"

struct perf_event_mmap_page;

typedef struct {
	int32_t tid, fd;
	struct perf_event_mmap_page *ring;
} ut_birth_ring;

typedef struct {
	ut_birth_ring *v;
	size_t n, cap;
	int32_t complete; /* each thread of the last stop has a ring */
} ut_births;

/* The target stands. 0: no thread of it has made a thread or a process since the last call; 1: one may have.
 * New threads get rings. -errno: not all of them can have one (descriptors, locked memory); none is left open. */
int ut_births_take(ut_births *b, const ut_tracee *t);
void ut_births_close(ut_births *b);
#endif
