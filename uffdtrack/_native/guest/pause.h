/* Pauses that the tracker's user asks for, or its threshold causes. */
#ifndef UT_PAUSE_H
#define UT_PAUSE_H
#include "tracker.h"

/* 1: the threshold was reached, and every vCPU that can be stopped stands. 0: timeout. -ETIMEDOUT: a vCPU
 * did not stop. -ESRCH: a vCPU has ended. The gate is closed after an error too. */
int ut_wait_full(ut_tracker *t, int64_t timeout_ns, int64_t stop_ns);
int ut_pause(ut_tracker *t, int64_t timeout_ns);
/* Wait until every vCPU that can be stopped stands at this word of the gate. */
int ut_wait_parked(ut_tracker *t, uint32_t word, int64_t timeout_ns);
/* -EBUSY: the lists are full. */
int ut_resume(ut_tracker *t);
/* Open the gate after an error, whether the lists are full or not. */
void ut_let_run(ut_tracker *t);
/* Note that every thread of the attached process stands, or runs again. */
void ut_set_halted(ut_tracker *t, int halted);
#endif
