/* Hot pages: dirty cycle after cycle, so left writable and taken for dirty. A copy of what was delivered last tells
 * whether they are.
 *
 * To rearm a page and to let its next first write through costs some times what a comparison does. A hot page keeps its
 * bits (lists.h): it counts as listed in the open cycle from its beginning, so that nobody lists it again. It is
 * in no log until a comparison finds it written, or until a cycle ends that compares nothing. */
#ifndef UT_HOT_H
#define UT_HOT_H
#include "tracker.h"

/* The arrays that a tracker has for them, in its arena; `log`: as many pages as a log has. */
size_t ut_hot_bytes(uint64_t npages, size_t log);
char *ut_hot_carve(ut_tracker *t, char *at, size_t log);

/* All under the lock. */

/* Put the hot pages into the open log; they are hot no more. For a cycle that compares nothing. */
void ut_hot_spill(ut_tracker *t);
/* The threshold has changed: if it leaves room for fewer, none is hot any more. */
void ut_hot_fit(ut_tracker *t);
/* Compare all with the RAM at `ram`. Those that differ go to the open log, and their contents to the row of `to` that
 * has their place there, while that is below `room`; those without a row are hot no more. */
void ut_hot_compare(ut_tracker *t, const uint8_t *ram, uint8_t *to, size_t room);
/* A page of the open log has now been dirty in this cycle. The number of its copy if it was in the last one too,
 * and is hot from now on; else -1. Its content has to be copied by ut_hot_copy(). */
int64_t ut_hot_promote(ut_tracker *t, uint64_t row);
/* Those that have not differed for some cycles: put their rows into `rows` (room for all). */
size_t ut_hot_cold(ut_tracker *t, uint32_t *rows);
/* They are rearmed, and hot no more. One that was written before its trap was set is listed. */
void ut_hot_cool(ut_tracker *t, const uint8_t *ram);
/* After a rearm that has failed: those of the log of this cycle, and those that were to be rearmed, are hot no more;
 * the latter are listed. */
void ut_hot_forget_listed(ut_tracker *t);

/* Not under the lock. Copy a page, by the number of its copy, both there and to `to`. */
void ut_hot_copy(ut_tracker *t, int64_t number, const uint8_t *ram, uint8_t *to);
#endif
