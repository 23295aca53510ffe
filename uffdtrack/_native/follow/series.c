#include "series.h"

#include "cleanup.h"
#include "proc_stat.h"
#include "sabotage.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Of a series: what is in it is told only when it has ended. */
#define LONGEST_NS 10000000ll
/* Of what a window has copied while others follow it: each has a buffer of its own. */
#define MUCH (2ul << 20)
enum { MANY_THREADS = 64 };

/* On the host's clock. */
static int64_t time_of_day_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static void forget_threads(ut_taken *taken)
{
	free(taken->threads);
	free(taken->xstate);
	taken->threads = NULL;
	taken->xstate = NULL;
	taken->room = 0;
}

static int keep_threads(const ut_tracee *t, ut_taken *taken)
{
	if (t->n * t->xstate_stride > taken->room) {
		forget_threads(taken);
		taken->threads = malloc(t->n * sizeof(*t->threads));
		taken->xstate = malloc(t->n * t->xstate_stride);
		if (!taken->threads || !taken->xstate)
			return -ENOMEM;
		taken->room = t->n * t->xstate_stride;
	}
	memcpy(taken->threads, t->threads, t->n * sizeof(*t->threads));
	memcpy(taken->xstate, t->xstate, t->n * t->xstate_stride);
	taken->nthreads = t->n;
	return 0;
}

static int take_one(ut_tracee *t, ut_space *s, ut_taken *taken, int is_third, int64_t timeout_ns)
{
	int err;

	taken->times = (ut_times){0};
	err = ut_window(t, s, 0, NULL, 0, timeout_ns, &taken->times);
	if (err)
		return err;
	taken->ran_ns = ut_now_ns();
	taken->time_ns = time_of_day_ns();
	taken->compared = s->harvest.all.compared;
	taken->by_news = s->harvest.by_news;
	TRY(ut_space_result(s, &taken->result));
	TRY(keep_threads(t, taken));
	return is_third && ut_breaks(UT_BREAK_THIRD) ? -EPERM : 0;
}

static int same_mappings(const ut_space *s)
{
	const ut_maps *a = &s->before, *b = &s->maps;

	return a->len == b->len && a->n == b->n && !memcmp(a->text, b->text, a->len) &&
	       !memcmp(a->regions, b->regions, a->n * sizeof(*a->regions));
}

/* Whether another one may follow at once. */
static int is_ordinary(const ut_tracee *t, const ut_space *s, const ut_taken *taken)
{
	return !s->heads.n && !s->harvest.nelsewhere && !s->shared_wanted && t->n <= MANY_THREADS &&
	       runs_bytes(&taken->result.want) <= MUCH;
}

/* The next window uses the space's buffer again, which is in the processor's cache. */
static int keep_contents(ut_taken *taken)
{
	if (ut_breaks(UT_BREAK_SERIES))
		return 0;
	TRY(ut_buffer_reserve(&taken->buffer, taken->result.bytes));
	memcpy(taken->buffer.v, taken->result.contents, taken->result.bytes);
	taken->result.contents = taken->buffer.v;
	return 0;
}

/* Wait until the next one is due; 0: there is something else to do before. */
static int wait_for_next(ut_series *q, int64_t end_ns)
{
	struct pollfd fds[sizeof(q->fds) / sizeof(*q->fds)];
	int64_t now = ut_now_ns(), left = q->due_ns + q->every_ns - now;
	struct timespec until = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};

	if (now >= end_ns || q->due_ns + q->every_ns >= end_ns)
		return 0;
	for (size_t i = 0; i < q->nfds; i++)
		fds[i] = (struct pollfd){.fd = q->fds[i], .events = POLLIN};
	return !ppoll(fds, q->nfds, &until, NULL);
}

static void become_due(ut_space *s, ut_series *q, ut_taken *taken)
{
	int64_t now = ut_now_ns(), behind;

	q->due_ns += q->every_ns;
	behind = now - q->due_ns;
	s->early.behind = behind > q->every_ns;
	taken->late = behind > q->patience_ns ? behind / q->every_ns : 0;
	if (taken->late)
		q->due_ns = now;
}

void ut_series_take(ut_tracee *t, ut_space *s, ut_series *q, size_t most, int64_t timeout_ns)
{
	int64_t end_ns = ut_now_ns() + LONGEST_NS;
	ut_taken *taken = q->v;

	if (most > UT_SERIES)
		most = UT_SERIES;
	taken->late = q->n = 0;
	for (size_t i = 0; i < UT_SERIES; i++)
		if (q->v[i].room > MANY_THREADS * t->xstate_stride)
			forget_threads(&q->v[i]);
	for (;;) {
		q->failed = take_one(t, s, taken, q->n == 2, timeout_ns);
		q->anew = !q->failed && !same_mappings(s);
		q->n += !q->failed;
		if (q->failed || q->anew || q->n == most || !is_ordinary(t, s, taken) || !wait_for_next(q, end_ns) ||
		    ut_dumps_core(s->reader.pid) || keep_contents(taken))
			return;
		taken++;
		become_due(s, q, taken);
	}
}

void ut_series_free(ut_series *q)
{
	for (size_t i = 0; i < UT_SERIES; i++) {
		ut_result_free(&q->v[i].result);
		ut_buffer_free(&q->v[i].buffer);
		forget_threads(&q->v[i]);
	}
}
