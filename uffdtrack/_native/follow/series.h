/* Windows one after the other, in one call: Python reads the records of several at a time. */
#ifndef UT_SERIES_H
#define UT_SERIES_H
#include "result.h"
#include "window.h"

enum { UT_SERIES = 16 };

/* One window, for as long as others follow it. */
typedef struct {
	ut_result result; /* `contents` is in `buffer`; of the last window it is the space's, as ever */
	ut_buffer buffer;
	ut_times times;
	ut_thread *threads;
	uint8_t *xstate; /* one slot of the tracee's xstate_stride bytes a thread */
	size_t nthreads, room;
	int64_t ran_ns, time_ns; /* when the target ran on, CLOCK_MONOTONIC; on the host's clock */
	int64_t late;            /* how many intervals were given up before it */
	int32_t compared, by_news;
} ut_taken;

typedef struct {
	ut_taken v[UT_SERIES];
	size_t n; /* windows that were taken */
	int32_t anew; /* the last one has other mappings than those before it */
	int32_t failed; /* the result of the window that v[n].times is of; 0: none has failed */
	int64_t patience_ns; /* behind by more than that, what was due meanwhile is given up */
	int64_t every_ns, due_ns; /* when the next one is due, or the last one was, CLOCK_MONOTONIC */
	size_t nfds;
	int32_t fds[8];
} ut_series;

/* Take up to `most` windows, the first at once, the others when they are due. It ends early if one of `fds` is readable, if a
 * window has failed, had much to copy, or other mappings than the one before, or if the first was taken some ms ago. */
void ut_series_take(ut_tracee *t, ut_space *s, ut_series *q, size_t most, int64_t timeout_ns);
void ut_series_free(ut_series *q);
#endif
