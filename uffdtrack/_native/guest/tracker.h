/* The tracker: address spaces under write-protect, harvest into lists, rearm. */
#ifndef UT_TRACKER_H
#define UT_TRACKER_H
#include "cycle.h"
#include "fault_ring.h"
#include "fault_server.h"
#include "helper.h"
#include "lists.h"
#include "slots.h"

struct ut_tracker;
struct ut_engine_ops;

/* sync: the writes of one address space that were left unanswered at the threshold, by vCPU. */
typedef struct {
	int32_t any;
	int64_t since;
	uint64_t page[UT_MAX_VCPUS];  /* the page's number + 1 */
	uint32_t word[UT_MAX_VCPUS];  /* the gate's word of that pause */
	int32_t turns[UT_MAX_VCPUS];  /* how often we have left it unanswered */
	int32_t asleep[UT_MAX_VCPUS]; /* how often we have seen its vCPU asleep in the kernel since */
} ut_waiting;

/* One address space that has the RAM mapped. */
typedef struct {
	struct ut_tracker *tracker;
	int32_t used;
	int32_t uffd, pagemap;
	uint64_t base;
	int32_t index;           /* of its trapped bitmap */
	int32_t vcpu;            /* the one vCPU that it belongs to, or UT_HOST */
	int32_t need_scan;       /* the ring may have missed something */
	_Atomic int32_t dead;    /* sync: its handler has ended, and its faults get no answer */
	ut_fault_server server;  /* sync */
	ut_waiting waiting;      /* sync */
} ut_mm;

/* ring: the perf events of one vCPU. */
typedef struct {
	int32_t used, mm;
	int32_t count;       /* fd of the event that counts its share, or -1: no threshold */
	int32_t stat;        /* fd of /proc/PID/task/TID/stat */
	ut_fault_ring ring;
	int64_t unseen;      /* faults without a sample: a scan has made them good, or they came before */
	uint64_t listed;     /* in this cycle */
	uint32_t strayed;    /* the gate's word when the last samples from outside of the RAM were taken */
} ut_events;

typedef struct {
	uint64_t cycles, pages, duplicates, scans, lost, audits, overflows, carried, everything;
	uint64_t rearm_calls, rearm_pages, false_full;
} ut_stats;

enum { UT_SCAN_ROOM = 4096 };

/* Working memory of a harvest and a rearm; the kernel allocates its pages when they are first used. */
typedef struct {
	uint32_t *rows, *rows2;     /* rearm: as many as pages in a log */
	uint64_t *seen;             /* bitmap, for overflows */
	struct ut_page_region *vec; /* results of one PAGEMAP_SCAN */
} ut_scratch;

/* hot.h. `idle`: cycles in a row in which it was not written. */
typedef struct {
	uint32_t row, idle;
} ut_hot_page;
enum { UT_HOT_SHARE = 32 }; /* pages that are worth another thread */

typedef struct {
	ut_hot_page *v;
	size_t n;
	uint8_t *copies;    /* of each, what was delivered last */
	uint32_t *chosen, *rows, *rows2; /* exchange_into.c: as many as pages in a log */
	uint32_t *dirty_in; /* by row: the last cycle in which its trap had fired, where contents were delivered */
} ut_hot;

typedef struct ut_tracker {
	ut_cycle cycle; /* its lock: harvest, cut, grant, closing and opening the gate. A vCPU that fills the
			 * lists closes it without the lock */
	ut_shared *s;
	const struct ut_engine_ops *ops;
	ut_slots slots;
	ut_mm mm[UT_MAX_VCPUS + 1];
	ut_events ev[UT_MAX_VCPUS];
	ut_scratch scratch;
	ut_hot hot;
	ut_helper *helper;
	int32_t paused;     /* until the gate opens, its user relies on it that the vCPUs stand */
	int32_t everything; /* what was written is not known: list the whole RAM */
	ut_stats stats;
} ut_tracker;

/* UT_BREAK_FORGET. */
void ut_forget_one(ut_tracker *t, ut_log *log);
/* What a cycle does; `core` is the tracker. */
extern const ut_cycle_core ut_tracker_core;

/* Functions return >= 0 or -errno; -ESHUTDOWN: the tracker is closed, or being closed. */
size_t ut_arena_bytes(const ut_shared *s);
/* The caller owns `arena`, which is zeroed and has that size; it has to outlive the tracker. */
int ut_tracker_open(ut_shared *s, const ut_slot *slots, int nslots, void *arena, ut_tracker **out);
/* Wait until no thread is inside a call, then close. The memory stays valid until ut_tracker_free(). */
void ut_tracker_close(ut_tracker *t);
void ut_tracker_free(ut_tracker *t);
/* In a child that this process has forked: release what would outlive the tracker there. */
void ut_tracker_forked(ut_tracker *t);
/* Add an armed address space; the tracker owns the fds from then on. */
int ut_tracker_add(ut_tracker *t, int mm, int uffd, int pagemap, uint64_t base, int vcpu);
/* ring: add the events of a vCPU in address space `mm`. */
int ut_tracker_events(ut_tracker *t, int vcpu, int mm, int min, int maj, int count);
int ut_tracker_drop(ut_tracker *t, int vcpu, int died);
/* End the cycle: its pages go to the log that ut_fetch hands out. Returns the length of that log;
 * -EBUSY: pages of the last cycle are not rearmed. */
int64_t ut_prepare(ut_tracker *t);
/* Claim up to `max` pages; returns how many, `*first` is the place of the first. */
/* After a rearm that has failed all can be fetched again. */
void ut_fetch_again(ut_tracker *t);
int64_t ut_fetch(ut_tracker *t, uint64_t max, uint64_t *first);
int ut_rearm(ut_tracker *t, const uint64_t *gfn, size_t n);
int64_t ut_exchange(ut_tracker *t);
/* The same of up to `room` pages, whose contents go to the rows of `to`; what is beyond is left to be fetched. `ram`:
 * where the RAM is mapped in this process. Pages may stay hot: hot.h. */
int64_t ut_exchange_into(ut_tracker *t, const uint8_t *ram, uint8_t *to, size_t room);
/* How many pages the open cycle has by now. */
int64_t ut_pending(ut_tracker *t);
int ut_set_threshold(ut_tracker *t, int64_t pages);
int ut_host_write(ut_tracker *t, uint64_t index, uint64_t n);
#endif
