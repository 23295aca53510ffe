/* KVM's dirty bitmap and dirty rings, brought into lists of pages: each page once a cycle. */
#ifndef KG_DIRTY_H
#define KG_DIRTY_H
#include "vm.h"

enum { KG_BITMAP = 1, KG_CLEAR, KG_RING };
/* Faults on purpose, for the tests' negative controls. */
enum {
	KG_BREAK_FORGET = 1, /* one page of a harvest is dropped */
	KG_BREAK_REARM = 2,  /* the traps of a ring's last page are not set again */
	KG_BREAK_ORDER = 4,  /* ring: the vCPUs may be in KVM_RUN at a harvest */
};

typedef struct {
	uint64_t *gfn;
	int32_t *vcpu;
	size_t n;
} kg_log;

typedef struct {
	uint64_t cycles, pages, duplicates, calls, rearm_calls, rearm_pages, fulls;
	uint64_t harvest_ns, rearm_ns, stop_ns; /* of the last cycle, without each other; stop: getting the vCPUs out */
} kg_stats;

typedef struct kg_tracker {
	kg_vm *vm;
	int32_t mode, open, sabotage;
	_Atomic int32_t inside, closing, stuck; /* threads in a call of it; a vCPU's thread may still be */
	kg_log log[2];            /* log[open] is being filled, the other one is handed out */
	_Atomic uint64_t next, rearmed;
	int32_t reset_due;        /* ring: entries were taken and not reset */
	int64_t threshold, stop_ns; /* stop_ns: how long a vCPU may take to leave KVM_RUN */
	uint64_t *bits, *listed, *host, *scratch; /* one bit a row */
	uint64_t hosted;          /* rows in `host` */
	struct kvm_dirty_gfn *ring[KG_MAX_VCPUS];
	uint32_t entries, taken[KG_MAX_VCPUS], reset[KG_MAX_VCPUS];
	pthread_mutex_t lock;
	kg_stats stats;
} kg_tracker;

/* Functions return >= 0 or -errno; -ESHUTDOWN: it is closed, or being closed. */
size_t kg_arena_bytes(const kg_vm *vm);
/* `arena`: zeroed, of that size, and the caller's; it has to outlive the tracker. `ring_entries`: 0: none. */
int kg_tracker_open(kg_vm *vm, int mode, uint32_t ring_entries, int64_t threshold, int64_t stop_ns, void *arena,
		    kg_tracker **out);
/* Threads that are in a call of it come out first. What it had stays for those who call too late, until: */
void kg_tracker_close(kg_tracker *t);
void kg_tracker_free(kg_tracker *t);
/* The end of the cycle; returns its pages. -EBUSY: the last one is not rearmed. -ETIMEDOUT: see kg_wait_parked. */
int64_t kg_prepare(kg_tracker *t);
int64_t kg_fetch(kg_tracker *t, uint64_t max, uint64_t *first);
int kg_rearm(kg_tracker *t, const uint64_t *gfn, size_t n);
int64_t kg_exchange(kg_tracker *t);
int64_t kg_pending(kg_tracker *t);
/* The host has written these rows. */
void kg_mark(kg_tracker *t, uint64_t row, uint64_t n);
/* Of a vCPU's thread: its ring is full. */
int kg_ring_full(kg_vm *vm);
/* 1: the threshold is reached, and every vCPU stands; 0: timeout. */
int kg_wait_full(kg_tracker *t, int64_t timeout_ns, int64_t stop_ns);
#endif
