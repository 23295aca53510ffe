/* Written pages, copied before the stop while the target runs.
 *
 * Each round looks for pages that were written, sets their traps again, and copies them. What is written after
 * its copy is found by a later round, or by the harvest in the stop, whose copy replaces the earlier one; what
 * the harvest says is void (unmapped, mapped anew, given back) is dropped. So the stop copies only what was
 * written since the last round, and what is given to the caller is the memory at the stop.
 *
 * A call may have pinned a page before its trap was set, and write it later without a fault (a read with O_DIRECT).
 * So between traps and copies all threads stop once: then no such call is under way any more. */
#ifndef UT_EARLY_H
#define UT_EARLY_H
#include "copy.h"
#include "runs.h"

/* A range whose copy is at `at` in the buffer. */
typedef struct {
	uint64_t start, end, at;
} ut_copied;

typedef struct {
	ut_copied *v; /* disjoint; each round's are in order */
	size_t n, cap;
	ut_buffer buffer, merged;
	uint64_t used;    /* bytes of `buffer` */
	int32_t broken;   /* there was no memory to note a page: the next harvest fails */
	ut_runs gone;     /* found zero again */
	ut_runs again;    /* under traps, and not copied: for the stop */
	ut_runs due;      /* the same, in spans, and there when the traps were set: copied in the stop unless given back since */
	ut_runs touched;  /* ring: that the watch has told of */
	ut_runs left;     /* those of `touched` that are for the stop */
	uint64_t faults;  /* of the process, at the end of the last window */
	int64_t harvest_ns; /* what the last harvest has cost */
	uint64_t least;   /* so many written pages, or more, are worth a round; 0: by what a harvest costs */
	int behind;       /* stops come later than they should: a round, which makes the next one later, has to save much */
} ut_early;

void ut_early_clear(ut_early *e);
void ut_early_free(ut_early *e);
#endif
