/* Bringing what was written into the open log. Under the lock of the cycle. */
#ifndef UT_HARVEST_H
#define UT_HARVEST_H
#include "tracker.h"

/* 1: the page is new in this cycle. `mm`: where its trap has fired, or NULL: it was listed when it was written. */
int ut_emit(ut_tracker *t, ut_mm *mm, uint64_t index, int vcpu);
/* The list of one vCPU, or of the host. */
void ut_take_list(ut_tracker *t, int vcpu);
/* By the page tables of an address space. */
int ut_scan_mm(ut_tracker *t, ut_mm *mm);
/* All that was written up to now; -EPIPE: a handler has ended, so that nobody knows. */
int ut_harvest(ut_tracker *t);
/* 1: the faults of an address space are not answered any more. */
int ut_any_dead(const ut_tracker *t);

/* sync, inline: have no fault listed, until `ut_let_in`. */
void ut_keep_out(ut_tracker *t);
void ut_let_in(ut_tracker *t);
#endif
