/* Faults and zaps of an attached process, collected while it runs: where a harvest has to look. */
#ifndef UT_WATCH_H
#define UT_WATCH_H
#include "fault_server.h"
#include "runs.h"
#include "thread_rings.h"

/* sync: a fault that waits for its answer. */
typedef struct {
	uint64_t page;
	int32_t tid;
	int32_t missing; /* there is no page yet */
	int32_t again;   /* it was told of so often since */
} ut_fault;

/* What the mappings' events say. */
typedef struct {
	ut_runs zapped;   /* given back or unmapped */
	ut_runs unmapped; /* of these, what is under no trap any more */
	ut_runs moved;    /* new places of mappings, which keep their traps, so that these tell nothing */
} ut_changes;

typedef struct {
	int32_t pid, uffd;
	int32_t sync;    /* each write waits until it was noted here; else perf rings tell of them */
	uint64_t limit;  /* of touched pages; 0: none */
	int32_t limited; /* the limit holds; not so in a stop, nor while a base is copied */
	int32_t full;    /* eventfd: `limit` pages were touched since the last stop */
	int32_t told;    /* by that */
	int32_t broken;  /* no memory to note an event: nothing is known */
	ut_fault_server server;
	pthread_mutex_t lock; /* of all that follows */
	ut_touched touched;
	ut_thread_rings rings;
	ut_changes changes;
	ut_fault *faults;
	size_t nfaults, faults_cap;
	int64_t pass_at; /* system calls that are held are let through from then on; 0: not at all */
	int32_t lost;    /* sync: some touched pages are not in the set */
} ut_watch;

/* What a harvest is told; normalised. */
typedef struct {
	ut_runs touched;
	ut_changes changes;
} ut_news;

/* Functions return >= 0 or -errno. The caller keeps `uffd`, which has the events REMOVE, UNMAP and REMAP. */
int ut_watch_open(int pid, int uffd, int sync, uint64_t limit, ut_watch **out);
void ut_watch_close(ut_watch *w);
void ut_news_free(ut_news *news);
/* A stop begins: threads that are held in user code leave it, others are let through before long. */
void ut_watch_stopping(ut_watch *w);
/* It has ended, or failed. */
void ut_watch_resumed(ut_watch *w);
/* The target stands: what was touched, given back, unmapped and moved since the last stop. 1: pages were touched
 * that are in none of these. `limited`: the limit holds from now on. */
int ut_watch_take(ut_watch *w, ut_news *news, int limited);
/* ring, and the target runs: what is known so far, but for what was touched. It is kept for the next stop too. */
int ut_watch_peek(ut_watch *w, ut_news *news);
/* There will be no stop for a while, since others have the target. What they write by themselves (ptrace(2),
 * /proc/PID/mem) is no fault of one of its threads: the next stop of ring is told so. Who waits at the limit goes on. */
void ut_watch_passed_over(ut_watch *w);
/* Watch every thread that there is now; best while they stand. */
void ut_watch_threads(ut_watch *w);
#endif
