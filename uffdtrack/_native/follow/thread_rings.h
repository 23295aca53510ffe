/* The fault rings of all threads of a process. */
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
	uint64_t limit;   /* a session waits for so many touched pages; 0: none does */
	ut_thread_ring *v;
	size_t n, cap;
	uint64_t samples;
	int64_t unseen;    /* faults without a sample up to the last stop */
	int32_t lost;      /* some faults are not in the set of pages */
	int32_t births;    /* nor are those of a thread or a process that was made since the last stop */
	int32_t short_of;  /* -errno: there was no room for one more thread's ring; 0: all threads have one */
	ut_touched *pages; /* the pages of all faults */
} ut_thread_rings;

void ut_thread_rings_open(ut_thread_rings *r, int pid, uint64_t limit, ut_touched *pages);
void ut_thread_rings_close(ut_thread_rings *r);
/* Give every living thread a ring, and drop those of threads that have ended. 1: the set of rings has
 * changed. */
int ut_thread_rings_renew(ut_thread_rings *r);
/* 1: the thread has a ring, the i-th or another one. */
int ut_thread_rings_have(const ut_thread_rings *r, int tid, size_t i);
/* Take all records into `pages`. */
void ut_thread_rings_drain(ut_thread_rings *r);
/* Drop the ring whose descriptor `ring.fd.min` says that its thread has ended. */
void ut_thread_rings_drop(ut_thread_rings *r, int fd);
/* The process stands, and the rings are drained. 1: there were faults without a sample since the last
 * stop. */
int ut_thread_rings_audit(ut_thread_rings *r);
#endif
