/* One stop of an attached process. */
#ifndef UT_WINDOW_H
#define UT_WINDOW_H
#include "space.h"

typedef struct {
	int64_t stop_ns, harvest_ns, rearm_ns, copy_ns, pause_ns;
	int64_t longest_ns; /* of several stops, the longest one; 0: there was one */
} ut_times;

/* Stop, read registers, harvest, copy the harvested pages to s->buffer, rearm, resume. */
int ut_window(ut_tracee *t, ut_space *s, int flags, const ut_run *pending, size_t npending,
	      int64_t timeout_ns, ut_times *times);
/* The parts of a window, for several targets at once (tree.c): before the stop; with the target stopped;
 * after the resume. They do not set `pause_ns` and `stop_ns`. The second part is: look at the mappings, then take what was
 * written; between them whoever shares memory has to be known (ut_sole_begin). */
void ut_stopping(ut_space *s);
int ut_look_at_stopped(ut_tracee *t, ut_space *s, int flags, ut_times *times);
int ut_take_stopped(ut_space *s, const ut_run *pending, size_t npending, ut_times *times);
void ut_resumed(ut_space *s);
/* The target stands, between ut_stopping() and ut_resumed(): find and rearm what was written, and copy nothing. Results are
 * in s->harvest.all; the next window has it as pending. May be called again in the same stop. */
int ut_look(ut_tracee *t, ut_space *s, ut_times *times);
#endif
