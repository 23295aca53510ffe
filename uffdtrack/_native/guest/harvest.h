/* A harvest puts written pages into the open log. All under the lock of the cycle. */
#ifndef UT_HARVEST_H
#define UT_HARVEST_H
#include "tracker.h"

/* Append to the open log. */
void ut_put(ut_tracker *t, uint64_t index, int vcpu);
/* 1: the page is new in this cycle. `mm`: its trap has fired there, or NULL: it was listed when it was
 * written. */
int ut_emit(ut_tracker *t, ut_mm *mm, uint64_t index, int vcpu);
/* Take the list of one vCPU, or of the host. */
void ut_take_list(ut_tracker *t, int vcpu);
/* Find written pages by the page tables of an address space. */
int ut_scan_mm(ut_tracker *t, ut_mm *mm);
/* Find all that was written up to now; -EPIPE: a handler has ended, so that this is not known. */
int ut_harvest(ut_tracker *t);
/* 1: the handler of some address space has ended, and its faults get no answer. */
int ut_any_dead(const ut_tracker *t);

/* sync, inline: keep handlers from listing faults until `ut_let_in`. */
void ut_keep_out(ut_tracker *t);
void ut_let_in(ut_tracker *t);
#endif
