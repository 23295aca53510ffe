/* Pauses, as the tracker's user asks for them, or its threshold. */
#ifndef UT_PAUSE_H
#define UT_PAUSE_H
#include "tracker.h"

/* 1: the threshold was reached, and every vCPU that can be stopped stands. 0: timeout. -ETIMEDOUT: one
 * did not stop. -ESRCH: one has ended. The gate is closed after an error too. */
int ut_wait_full(ut_tracker *t, int64_t timeout_ns, int64_t stop_ns);
int ut_pause(ut_tracker *t, int64_t timeout_ns);
/* Until every vCPU that can be stopped stands at this word of the gate. */
int ut_wait_parked(ut_tracker *t, uint32_t word, int64_t timeout_ns);
/* -EBUSY: the lists are full. */
int ut_resume(ut_tracker *t);
/* After an error, whether the lists are full or not. */
void ut_let_run(ut_tracker *t);
/* Every thread of an attached process stands, or runs again. */
void ut_set_halted(ut_tracker *t, int halted);
#endif
