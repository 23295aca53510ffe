/* Lists of pages, each page once a cycle, from KVM's dirty bitmap or dirty rings. */
#ifndef KG_DIRTY_H
#define KG_DIRTY_H
#include "cycle.h"
#include "vm.h"

enum { KG_BITMAP = 1, KG_CLEAR, KG_RING, KG_MODES };

typedef struct {
	uint64_t cycles, pages, duplicates, calls, rearm_calls, rearm_pages, fulls;
	uint64_t harvest_ns, rearm_ns, stop_ns; /* of the last cycle, disjoint; stop: getting the vCPUs out */
} kg_stats;

/* KVM's dirty ring of each vCPU. */
typedef struct {
	struct kvm_dirty_gfn *of[KG_MAX_VCPUS];
	uint32_t entries;                                   /* of each */
	uint32_t taken[KG_MAX_VCPUS], reset[KG_MAX_VCPUS];  /* since the VM was made */
	int32_t reset_due;                                  /* entries were taken and not reset */
	uint64_t *batch;                                    /* the rows of one reset */
	int32_t loose;                                      /* rows may lack their traps: kg_bits has which */
} kg_rings;

/* One bit a row. */
typedef struct {
	uint64_t *read;    /* one memslot's, as KVM gives it */
	uint64_t *listed;  /* in the open cycle */
	uint64_t *host;    /* written by the host, and not listed yet */
	uint64_t hosted;   /* how many these are */
	uint64_t *scratch; /* zeroed */
	uint64_t *loose;   /* may be without a trap */
} kg_bits;

/* Pages that are dirty cycle after cycle: see kg_leave_hot. */
typedef struct {
	int32_t on;
	uint16_t *seen; /* by row: the cycle in which it was rearmed last, cut short */
} kg_hot;

struct kg_mode_ops;

typedef struct kg_tracker {
	kg_listener listener; /* first: vCPU threads call the tracker through it */
	ut_cycle cycle;
	kg_vm *vm;
	const struct kg_mode_ops *ops;
	_Atomic int32_t stuck;      /* a vCPU's thread may still be inside a call of the listener */
	int64_t threshold, stop_ns; /* stop_ns: how long a vCPU may take to leave KVM_RUN */
	int64_t halted_at;            /* when a harvest began */
	kg_bits bits;
	kg_hot hot;
	kg_rings rings;
	kg_stats stats;
} kg_tracker;

/* Functions return >= 0 or -errno; -ESHUTDOWN: the tracker is closed, or being closed. */
size_t kg_arena_bytes(const kg_vm *vm);
/* The caller owns `arena`, which is zeroed and has that size; it has to outlive the tracker. `ring_entries`:
 * 0: none. */
int kg_tracker_open(kg_vm *vm, int mode, uint32_t ring_entries, int64_t threshold, int64_t stop_ns, void *arena,
		    kg_tracker **out);
/* Wait until no thread is inside a call, then close. The memory stays valid until kg_tracker_free(). */
void kg_tracker_close(kg_tracker *t);
void kg_tracker_free(kg_tracker *t);
/* End the cycle; returns how many pages it has. -EBUSY: the last one is not rearmed. -ETIMEDOUT: see
 * kg_wait_parked. */
int64_t kg_prepare(kg_tracker *t);
int64_t kg_fetch(kg_tracker *t, uint64_t max, uint64_t *first);
/* After a rearm that has failed all can be fetched again. */
void kg_fetch_again(kg_tracker *t);
int kg_rearm(kg_tracker *t, const uint64_t *gfn, size_t n);
/* With KVM_CLEAR_DIRTY_LOG: a page that is dirty in two cycles in a row gets no trap in most of the following ones. It
 * stays in KVM's log, so it is listed in each of them, whether it was written or not; a turn comes at which it gets its trap.
 * -EOPNOTSUPP: not with this log. */
int kg_leave_hot(kg_tracker *t);
int64_t kg_exchange(kg_tracker *t);
int64_t kg_pending(kg_tracker *t);
/* The host has written these rows. */
void kg_mark(kg_tracker *t, uint64_t row, uint64_t n);
/* 1: the threshold is reached, and every vCPU stands; 0: timeout. */
int kg_wait_full(kg_tracker *t, int64_t timeout_ns, int64_t stop_ns);
#endif
