/* The watch collects the faults and mapping events of an attached process while it runs: they tell a harvest
 * where to look. */
#ifndef UT_WATCH_H
#define UT_WATCH_H
#include "fault_server.h"
#include "runs.h"
#include "thread_rings.h"
#include "tracee.h"

/* sync: a fault that waits for its answer. */
typedef struct {
	uint64_t page;
	int32_t tid;
	int32_t missing; /* there is no page yet */
	int32_t again;   /* how often the kernel has told of it again */
} ut_fault;

/* What the mapping events say. */
typedef struct {
	ut_runs zapped;   /* given back or unmapped */
	ut_runs unmapped; /* parts of these that have no traps any more */
	ut_runs moved;    /* new places of mappings; they keep their traps, so the traps tell nothing */
} ut_changes;

typedef struct {
	int32_t pid, uffd;
	int32_t sync;    /* each write waits until we have noted it; else perf rings tell of writes */
	uint64_t limit;  /* of touched pages; 0: none */
	int32_t limited; /* the limit applies; it does not in a stop, nor while a base is copied */
	int32_t full;    /* eventfd: `limit` pages were touched since the last stop */
	int32_t told;    /* we have written to `full` */
	int32_t broken;  /* there was no memory to note an event: nothing is known */
	ut_fault_server server;
	pthread_mutex_t lock; /* protects all that follows */
	ut_touched touched;
	ut_thread_rings rings;
	ut_changes changes;
	ut_fault *faults;
	size_t nfaults, faults_cap;
	int64_t pass_at; /* when to let system calls through that wait at the limit; 0: never */
	int32_t lost;    /* sync: some touched pages are not in the set */
	int32_t unsettled; /* ring: taken while the target ran, and it has not stood since */
} ut_watch;

/* What the watch tells a harvest; normalised. */
typedef struct {
	ut_runs touched;
	ut_changes changes;
} ut_news;

/* Functions return >= 0 or -errno. The caller keeps `uffd`, which has the events REMOVE, UNMAP and REMAP. */
int ut_watch_open(int pid, int uffd, int sync, uint64_t limit, ut_watch **out);
void ut_watch_close(ut_watch *w);
void ut_news_free(ut_news *news);
/* A stop begins: threads that wait at the limit in user code leave their fault; we let others through before
 * long. */
void ut_watch_stopping(ut_watch *w);
/* The stop has ended, or failed. */
void ut_watch_resumed(ut_watch *w);
/* The target stands: take what was touched, given back, unmapped and moved since the last stop. 1: pages were
 * touched that are in none of these. `limited`: the limit applies from now on. */
int ut_watch_take(ut_watch *w, ut_news *news, int limited);
/* ring, while the target runs: take the touched pages, since the caller looks everywhere after this, and copy the rest,
 * which the next stop gets, too. That stop has to look everywhere as well, unless ut_watch_settle() comes between. */
int ut_watch_take_running(ut_watch *w, ut_news *news);
/* ring: the target stands, the first time since ut_watch_take_running(): find out whether all faults since have been
 * told of. Else there was no ut_watch_take_running(), and it does nothing. */
void ut_watch_settle(ut_watch *w, const ut_tracee *t);
/* ring: how many pages were touched, as far as is known, since the last stop or ut_watch_early(). */
uint64_t ut_watch_count(ut_watch *w);
/* ring. 1: pages were touched that it cannot tell of. */
int ut_watch_misses(ut_watch *w);
/* ring, while the target runs: take the touched pages; the caller looks at them. The rest of the news is for
 * the stop. */
int ut_watch_early(ut_watch *w, ut_runs *touched);
/* There will be no stop for a while, since others trace the target. Their own writes (ptrace(2),
 * /proc/PID/mem) are no faults of its threads: the next stop of ring is told so. Threads that wait at the
 * limit go on. */
void ut_watch_passed_over(ut_watch *w);
/* sync: pages are about to be written, with no fault that would say so. */
int ut_watch_note(ut_watch *w, const ut_runs *pages);
/* `t`, which stands: watch each of its threads. */
void ut_watch_threads(ut_watch *w, const ut_tracee *t);
#endif
