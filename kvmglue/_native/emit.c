#include "mode.h"

int kg_test_and_set(uint64_t *bits, uint64_t i)
{
	uint64_t bit = 1ull << (i % 64), old = bits[i / 64];

	bits[i / 64] = old | bit;
	return !!(old & bit);
}

uint64_t kg_words_of(uint64_t rows)
{
	return (rows + 63) / 64;
}

void kg_emit(kg_tracker *t, const ut_slot *slot, uint64_t row, int vcpu)
{
	ut_log *log = ut_cycle_open_log(&t->cycle);

	if (kg_test_and_set(t->bits.listed, row)) {
		t->stats.duplicates++;
		return;
	}
	log->gfn[log->n] = row - slot->row + slot->gfn;
	log->vcpu[log->n++] = vcpu;
}
