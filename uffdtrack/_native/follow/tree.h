/* A tree of processes at one instant: we stop it as a whole. */
#ifndef UT_TREE_H
#define UT_TREE_H
#include "window.h"

typedef struct {
	ut_tracee *tracee;
	ut_space *space;
	const ut_run *pending;
	size_t npending;
	int32_t flags;
	int32_t result; /* 0; -ESRCH: it has ended; UT_NEW_MM: exec; or why its memory is unreadable */
	ut_times times;
} ut_member_window;

typedef struct {
	int32_t *v;
	size_t n, cap;
} ut_pids;

int ut_pids_push(ut_pids *p, int pid);
/* Stop all members, then harvest and copy each, then resume all.
 *
 * `born` has the processes of the tree that are no members: they are stopped too, if we may. This adds other
 * children that it finds. They are under no traps, so it takes nothing (-EAGAIN), unless `without` is set:
 * then it treats them like the former. -EAGAIN also if no member is left. Any other error comes from the stop
 * of member `*failed` or of a child; nothing was taken then. `ours` are not touched. Children of `adopter`
 * belong to the tree. */
int ut_tree_window(ut_member_window *v, size_t n, ut_claims *claims, const ut_pids *ours, int adopter, int without,
		   int64_t timeout_ns, ut_pids *born, size_t *failed, ut_times *times);
int ut_adopt_orphans(void);
void ut_pids_free(ut_pids *p);
void ut_claims_free(ut_claims *c);
/* Make a space that of a member of a tree. */
void ut_space_join(ut_space *s, ut_claims *claims, int member);
#endif
