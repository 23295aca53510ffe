#ifndef UT_REARM_H
#define UT_REARM_H
#include "tracker.h"

/* Set the traps of n pages of the ended log again, in every address space, at the lowest cost. */
int ut_rearm_pages(ut_tracker *t, const uint64_t *gfn, size_t n);
/* The same for pages by their rows, in memory that is written over, as `other` is: room for n in both. */
int ut_rearm_rows(ut_tracker *t, uint32_t *v, uint32_t *other, size_t n);
/* So many were rearmed, the last ones of their cycle as a rule: the vCPUs come back while contents are copied. */
void ut_rearm_done(ut_tracker *t, size_t n);
#endif
