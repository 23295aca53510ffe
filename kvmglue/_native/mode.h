/* A row of functions describes one of KVM's dirty logs. One file for each kind. */
#ifndef KG_MODE_H
#define KG_MODE_H
#include "dirty.h"

/* NULL: there is nothing to do. All but `stop` are called under the lock, or before another thread knows the
 * tracker. */
typedef struct kg_mode_ops {
	int32_t needs_stop; /* a harvest needs the vCPUs out of KVM_RUN */
	/* Called before KVM logs, and after. */
	int (*prepare)(kg_tracker *t);
	int (*start)(kg_tracker *t);
	/* Every vCPU stands, and KVM logs no more. */
	void (*stop)(kg_tracker *t);
	void (*release)(kg_tracker *t);
	/* Put what KVM has logged into the open log, with kg_emit(). */
	int (*harvest)(kg_tracker *t);
	/* A cycle has ended; if `needs_stop`, the vCPUs stand since before its harvest. */
	int (*ended)(kg_tracker *t);
	/* 1: a harvest would find pages of the last cycle again, until they are rearmed. */
	int32_t harvest_waits;
	/* 1: a page that is not rearmed is found again. */
	int32_t keeps;
	int (*rearm)(kg_tracker *t, const uint64_t *gfn, size_t n);
} kg_mode_ops;

extern const kg_mode_ops kg_mode_bitmap, kg_mode_clear, kg_mode_ring;

/* 1: it was set already. */
static inline int kg_test_and_set(uint64_t *bits, uint64_t i)
{
	uint64_t bit = 1ull << (i % 64), old = bits[i / 64];

	bits[i / 64] = old | bit;
	return !!(old & bit);
}

static inline uint64_t kg_words_of(uint64_t rows)
{
	return (rows + 63) / 64;
}

/* Inline, since most of a harvest is this. */
static inline void kg_emit(kg_tracker *t, const ut_slot *slot, uint64_t row, int vcpu)
{
	ut_log *log = ut_cycle_open_log(&t->cycle);

	if (kg_test_and_set(t->bits.listed, row)) {
		t->stats.duplicates++;
		return;
	}
	log->gfn[log->n] = row - slot->row + slot->gfn;
	log->vcpu[log->n++] = vcpu;
}
#endif
