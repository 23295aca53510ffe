/* What the watchdog shares with all processes that stop a target. */
#ifndef UT_GUARD_PAGE_H
#define UT_GUARD_PAGE_H
#include "guard.h"

enum { UT_GUARD_SLOTS = 256, UT_GUARD_VERDICTS = 64, UT_GUARD_LINE = 3 /* the watchdog's descriptor */ };

struct ut_guard_page {
	int64_t max_stop_ns;
	int32_t nverdicts;
	ut_guard_verdict verdicts[UT_GUARD_VERDICTS];
	struct ut_guard_slot slots[UT_GUARD_SLOTS];
};

/* A message: which process takes a slot. It comes with two pidfds: of that process, and of the target. */
struct ut_guard_news {
	int slot, stopper;
};

/* Make the page, and a socket to the watchdog; *theirs is its end. 1; 0: they exist already; -errno. */
int ut_guard_open(int64_t max_stop_ns, int *theirs);
struct ut_guard_page *ut_guard_page(void);
/* rescue.c: whether we have to repair the target when its tracer dies, and so have to stop it by a signal
 * before. `ended`: the tracer has died already, and calls that a stop had interrupted have gone on. */
int ut_needs_rescue(const struct ut_guard_slot *slot, int ended);
/* Repair a target whose tracer has died, in a process of its own, since that may have to wait. `stopped`: we
 * have stopped it by a signal. */
void ut_start_rescue(const struct ut_guard_slot *slot, int target_pidfd, int stopped);
#endif
