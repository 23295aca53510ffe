/* What the watchdog shares with all that stop a target. */
#ifndef UT_GUARD_PAGE_H
#define UT_GUARD_PAGE_H
#include "guard.h"

enum { UT_GUARD_SLOTS = 256, UT_GUARD_VERDICTS = 64 };

struct ut_guard_page {
	int64_t max_stop_ns;
	int32_t nverdicts;
	ut_guard_verdict verdicts[UT_GUARD_VERDICTS];
	struct ut_guard_slot slots[UT_GUARD_SLOTS];
};

/* Whose slot it is. Comes with two descriptors: pidfds of who stops, and of the target. */
struct ut_guard_news {
	int slot, stopper;
};

/* Make the page, and a socket to the watchdog, whose end is *theirs. 1; 0: they are there already; -errno. */
int ut_guard_open(int64_t max_stop_ns, int *theirs);
struct ut_guard_page *ut_guard_page(void);
/* rescue.c: whether the target has to be stopped by a signal before its tracer dies, so that it can be put right;
 * `ended`: that one has died already, and what a stop had interrupted has gone on. */
int ut_needs_rescue(const struct ut_guard_slot *slot, int ended);
/* Put a target right whose tracer has died, in a process of its own, since that may have to wait. `stopped`: it was
 * stopped by a signal of ours. */
void ut_start_rescue(const struct ut_guard_slot *slot, int target_pidfd, int stopped);
#endif
