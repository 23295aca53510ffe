/* A set of pages. */
#ifndef UT_TOUCHED_H
#define UT_TOUCHED_H
#include "runs.h"

typedef struct {
	uint64_t *table; /* page numbers + 1, open addressing; 0: free */
	size_t n, cap;
} ut_touched;

/* 0 or -ENOMEM. */
int ut_touched_open(ut_touched *t);
int ut_touched_add(ut_touched *t, uint64_t page);
int ut_touched_has(const ut_touched *t, uint64_t page);
/* Replace `out` by the set's pages as sorted ranges; empties the set. */
int ut_touched_take(ut_touched *t, ut_runs *out);
void ut_touched_close(ut_touched *t);
#endif
