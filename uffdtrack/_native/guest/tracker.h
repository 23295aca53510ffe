/* The tracker's side: address spaces under write-protect, harvest into lists, rearm. */
#ifndef UT_TRACKER_H
#define UT_TRACKER_H
#include "lists.h"

#include <pthread.h>

enum { UT_MAX_SLOTS = 32 };
/* Faults on purpose, for the tests' negative controls. */
enum {
	UT_BREAK_FORGET = 1,   /* one page of a harvest is dropped */
	UT_BREAK_REARM = 2,    /* one page of a rearm is skipped */
	UT_BREAK_AUDIT = 4,    /* ring: no fallback to a scan */
	UT_BREAK_HANDLER = 8,  /* sync: the handler thread ends */
	UT_BREAK_HOLD = 16,    /* ring: a vCPU that is to stand for a moment comes too late */
};

typedef struct {
	uint64_t gfn, index, npages;
} ut_slot;

struct ut_tracker;

/* One address space that has the RAM mapped. */
typedef struct {
	int32_t used, gone;
	int32_t uffd, pagemap;
	uint64_t base;
	int32_t index;     /* of its trapped bitmap */
	int32_t vcpu;      /* whose it is alone, or UT_HOST */
	int32_t need_scan; /* the ring may have missed something */
	/* sync */
	struct ut_tracker *tracker;
	pthread_t thread;
	int32_t running, stop; /* stop: eventfd */
	_Atomic int32_t dead;
	int32_t nwaiting;
	int64_t waiting_since;
	uint64_t waiting[UT_MAX_VCPUS];      /* page + 1 of a write that was left unanswered */
	uint32_t waiting_word[UT_MAX_VCPUS]; /* in the pause of that word, */
	int32_t turns[UT_MAX_VCPUS];         /* so often, */
	int32_t asleep[UT_MAX_VCPUS];        /* and its vCPU was seen asleep in the kernel so often since */
} ut_mm;

/* ring: the perf events of one vCPU. */
typedef struct {
	int32_t used, mm;
	int32_t min, maj, count; /* fds; count -1: no threshold */
	int32_t stat;            /* fd of /proc/PID/task/TID/stat */
	struct perf_event_mmap_page *ring;
	size_t bytes;
	uint64_t samples;        /* taken from the ring, since bind */
	int64_t unseen;          /* faults without a sample, which a scan has made good or came before */
	uint64_t listed;         /* in this cycle */
	uint32_t strayed;        /* the gate's word when the last samples from outside of the RAM were taken */
} ut_events;

typedef struct {
	uint64_t cycles, pages, duplicates, scans, lost, audits, overflows, carried, everything;
	uint64_t rearm_calls, rearm_pages, false_full;
} ut_stats;

typedef struct {
	uint64_t *gfn;
	int32_t *vcpu;
	size_t n;
} ut_log;

typedef struct ut_tracker {
	ut_shared *s;
	_Atomic int32_t inside, closing; /* threads in a call of it */
	int32_t engine, nslots;
	ut_slot slots[UT_MAX_SLOTS];
	ut_mm mm[UT_MAX_VCPUS + 1];
	ut_events ev[UT_MAX_VCPUS];
	ut_log log[2];
	int32_t open;          /* log[open] is being filled, the other one is handed out */
	_Atomic uint64_t next; /* of log[!open], to hand out */
	_Atomic uint64_t rearmed;
	uint32_t *scratch, *scratch2;
	uint64_t *seen;        /* bitmap, for overflows */
	struct ut_page_region *vec;
	int32_t paused;        /* whoever controls the vCPUs takes it that they stand, until it opens the gate */
	int32_t everything;    /* nobody can say what was written: all of it */
	int32_t sabotage;
	uint64_t forgotten;
	pthread_mutex_t lock;  /* collect, cut, grant; closing and opening the gate, but by a vCPU that fills the lists */
	ut_stats stats;
} ut_tracker;

/* Functions return >= 0 or -errno; -ESHUTDOWN: it is closed, or being closed. */
/* A userfaultfd of this process with what the engine needs; *kernel: it takes faults of the kernel too. */
int ut_own_uffd(int engine, int *kernel);
/* Set every trap of [base, base + bytes), which the calling process has mapped. */
int ut_arm(int uffd, uint64_t base, uint64_t bytes);
size_t ut_arena_bytes(const ut_shared *s);
/* `arena`: zeroed, of that size, and the caller's; it has to outlive the tracker. */
int ut_tracker_open(ut_shared *s, const ut_slot *slots, int nslots, void *arena, ut_tracker **out);
/* Threads that are in a call of it come out first. What it had stays for those who call too late, until: */
void ut_tracker_close(ut_tracker *t);
void ut_tracker_free(ut_tracker *t);
/* In a child that this process has forked: let go of what would outlive the tracker there. */
void ut_tracker_forked(ut_tracker *t);
/* Take in an address space, and arm it; the tracker owns the fds from then on. */
int ut_tracker_add(ut_tracker *t, int mm, int uffd, int pagemap, uint64_t base, int vcpu);
void ut_tracker_remove(ut_tracker *t, int mm);
/* ring: the events of a vCPU in address space `mm`. */
int ut_tracker_events(ut_tracker *t, int vcpu, int mm, int min, int maj, int count);
int ut_tracker_drop(ut_tracker *t, int vcpu, int died);
/* The end of the cycle: what was written goes to the log that ut_fetch hands out. Returns its length;
 * -EBUSY: pages of the last one are not rearmed. */
int64_t ut_prepare(ut_tracker *t);
/* Claim up to `max` pages; returns how many, `*first` is the place of the first. */
int64_t ut_fetch(ut_tracker *t, uint64_t max, uint64_t *first);
int ut_rearm(ut_tracker *t, const uint64_t *gfn, size_t n);
int64_t ut_exchange(ut_tracker *t);
/* What is in the open cycle by now. */
int64_t ut_pending(ut_tracker *t);
/* 1: the threshold was reached, and every vCPU that can be stopped stands. 0: timeout. -ETIMEDOUT: one
 * did not stop. -ESRCH: one has ended. The gate is closed after an error too. */
int ut_wait_full(ut_tracker *t, int64_t timeout_ns, int64_t stop_ns);
int ut_pause(ut_tracker *t, int64_t timeout_ns);
/* Until every vCPU that can be stopped stands at this word of the gate. */
int ut_wait_parked(ut_tracker *t, uint32_t word, int64_t timeout_ns);
int ut_resume(ut_tracker *t);
/* After an error, whether the lists are full or not. */
void ut_let_run(ut_tracker *t);
/* Every thread of an attached process stands, or runs again. */
void ut_set_halted(ut_tracker *t, int halted);
int ut_set_threshold(ut_tracker *t, int64_t pages);
int ut_host_write(ut_tracker *t, uint64_t index, uint64_t n);
void ut_tracker_died(ut_tracker *t, int vcpu);

/* ring.c; `wake_bytes`: of records before who polls is woken, which costs more than a record. */
enum { UT_NEVER = 0x7fffffff };
int ut_ring_open(int tid, int threshold, int signal_tid, uint32_t wake_bytes, int out[3]);
/* Of an attached process: 1: about as many pages as the threshold were touched; 0: timeout. */
int ut_ring_wait(ut_tracker *t, int64_t timeout_ns);
int ut_ring_map(ut_events *e, size_t records);
void ut_ring_close(ut_events *e);
void ut_ring_drain(ut_tracker *t, int vcpu);
void ut_ring_start(ut_tracker *t, int vcpu);
/* Share out anew what is left of the threshold. Under the lock. */
int ut_ring_grant(ut_tracker *t);
/* sync.c */
int ut_sync_start(ut_tracker *t, ut_mm *mm);
void ut_sync_stop(ut_mm *mm);
/* Take the traps of an address space away, and let every write go. */
void ut_let_go(const ut_mm *mm);
/* tracker.c, for the above. 0: it is closing. */
int ut_enter(ut_tracker *t);
void ut_leave(ut_tracker *t);
/* 1: the page is new in this cycle */
int ut_emit(ut_tracker *t, ut_mm *mm, uint64_t index, int vcpu);
void ut_take_list(ut_tracker *t, int vcpu);
/* rearm.c */
int ut_rearm_sorted(ut_tracker *t, ut_mm *mm, const uint32_t *index, size_t n);
#endif
