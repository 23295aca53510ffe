/* Memslots: ranges of guest frame numbers. Their pages, back to back, are the rows of the RAM. */
#ifndef UT_SLOTS_H
#define UT_SLOTS_H
#include <stddef.h>
#include <stdint.h>

enum { UT_MAX_SLOTS = 32 };

typedef struct {
	uint64_t gfn, row, npages;
} ut_slot;

typedef struct {
	int32_t n;
	ut_slot v[UT_MAX_SLOTS];
} ut_slots;

/* The row has to be in the RAM. */
static inline const ut_slot *ut_slot_of_row(const ut_slots *s, uint64_t row)
{
	int i = 0;

	while (i + 1 < s->n && row >= s->v[i + 1].row)
		i++;
	return &s->v[i];
}

/* NULL: the frame is in no memslot. */
static inline const ut_slot *ut_slot_of_gfn(const ut_slots *s, uint64_t gfn)
{
	for (int i = 0; i < s->n; i++)
		if (gfn - s->v[i].gfn < s->v[i].npages)
			return &s->v[i];
	return NULL;
}

static inline uint64_t ut_gfn_of_row(const ut_slots *s, uint64_t row)
{
	const ut_slot *slot = ut_slot_of_row(s, row);

	return row - slot->row + slot->gfn;
}

/* The frame has to be in a memslot. */
static inline uint64_t ut_row_of_gfn(const ut_slots *s, uint64_t gfn)
{
	const ut_slot *slot = ut_slot_of_gfn(s, gfn);

	return gfn - slot->gfn + slot->row;
}

#endif
