/* A row describes an engine: what it needs and what it does. One file for each. */
#ifndef UT_ENGINE_H
#define UT_ENGINE_H
#include "tracker.h"

/* NULL: it has nothing to do there. */
typedef struct ut_engine_ops {
	uint64_t features;  /* of its userfaultfd, beside WP_UNPOPULATED and WP_HUGETLBFS_SHMEM */
	int32_t async;      /* the kernel lets a write go on by itself, and PAGEMAP_SCAN reports the page */
	int32_t scans;      /* every harvest scans the whole RAM, and sets the traps of pages that it finds */
	int32_t lists;      /* a page is listed before its first write goes on: ut_listing */

	/* Install the signal handlers that a vCPU's own process needs. */
	int (*handlers)(void);
	/* Start and stop following an armed address space. */
	int (*start)(ut_mm *mm);
	void (*stop)(ut_mm *mm);
	/* Take the kernel's records of one vCPU's faults; harvest.h. Under the lock. */
	void (*drain)(ut_tracker *t, int vcpu);
	/* Make the threshold hold from now on: a cycle has ended, the threshold was set. 1: the vCPUs may
	 * run; 0: it is reached, or a vCPU does not stand, and the gate is closed. Under the lock. */
	int (*share)(ut_tracker *t);
	/* The host has written: check the threshold. Not under the lock. */
	int (*host_wrote)(ut_tracker *t);
	/* A vCPU has said that the lists are full: 0: they are; 1: they are not, and the vCPUs may run. Under
	 * the lock. */
	int (*not_full)(ut_tracker *t);
} ut_engine_ops;

extern const ut_engine_ops ut_engine_ring, ut_engine_scan, ut_engine_sync, ut_engine_inline;

/* engines.c: the table of them. */
const ut_engine_ops *ut_engine(int engine);
/* The features that its userfaultfd has to have. */
uint64_t ut_engine_features(int engine);
/* A userfaultfd of this process with the features that the engine needs; it takes the kernel's own faults if
 * allowed. */
int ut_own_uffd(int engine);
/* See member.h. */
int ut_member_open(ut_shared *s, uint8_t *base, int mm, int uffd, int lifeline);

/* counted.c: `host_wrote` and `not_full` of engines that count each page as it is listed. */
int ut_counted_host_wrote(ut_tracker *t);
int ut_counted_not_full(ut_tracker *t);

/* engine_ring.c; `wake_bytes`: bytes of records before a poller is woken, which costs more than a record. */
enum { UT_NEVER = UT_NO_WAKE };
int ut_ring_open(int tid, int threshold, int signal_tid, uint32_t wake_bytes, int out[3]);
int ut_ring_start(ut_tracker *t, int vcpu, int mm, int min, int maj, int count);
void ut_ring_close(ut_events *e);
/* For an attached process. 1: it has touched about as many pages as the threshold; 0: timeout. */
int ut_ring_wait(ut_tracker *t, int64_t timeout_ns);
#endif
