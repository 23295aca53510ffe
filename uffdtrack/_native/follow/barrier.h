/* A stop for the sake of calls that are under way. */
#ifndef UT_BARRIER_H
#define UT_BARRIER_H
#include "space.h"
#include "tracee.h"

/* Stop all threads, and let them run at once: no call is under way any more that was before. The next
 * window's pause counts how long they stood. */
int ut_barrier(ut_tracee *t, ut_space *s, int64_t timeout_ns);
#endif
