/* The caller's priority over others, and over our other threads. These step aside for a thread that is to stop: it has to be given a processor for that. */
#ifndef UT_ASIDE_H
#define UT_ASIDE_H
#include <stddef.h>
#include <stdint.h>

enum { UT_ASIDE = 64 }; /* at most */

typedef struct {
	struct {
		int32_t tid, nice;
	} thread[UT_ASIDE];
	size_t n;
} ut_aside;

/* All ordinary threads of this process but the caller (SCHED_OTHER, without SCHED_RESET_ON_FORK) let others go
 * first (SCHED_IDLE), where we have the right to undo that (CAP_SYS_NICE). The caller must not wait for one of
 * them until ut_step_back(). */
void ut_step_aside(ut_aside *a);
void ut_step_back(ut_aside *a);
/* The caller comes before all that have no real-time priority, where it may ask for that (root). */
void ut_set_urgent(int urgent);
#endif
