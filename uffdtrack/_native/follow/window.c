#include "guard.h"
#include "methods.h"
#include "sabotage.h"
#include "window.h"

#include <string.h>

/* Tests: a page of the plan is forgotten. */
static void forget_page(ut_space *s)
{
	ut_early *e = &s->early;
	ut_runs *plan = &s->harvest.all.want;
	size_t i = plan->n / 2;

	if (e->n)
		e->v[e->n / 2] = e->v[--e->n];
	if (!plan->n)
		return;
	plan->v[i].start += UT_PAGE;
	if (plan->v[i].start == plan->v[i].end) {
		memmove(&plan->v[i], &plan->v[i + 1], (plan->n - i - 1) * sizeof(*plan->v));
		plan->n--;
	}
}

/* Tests: a page that was copied early keeps that copy, written or not. */
static int keep_early(ut_space *s)
{
	ut_runs *plan = &s->harvest.all.want;
	AUTO_RUNS early = {0}, left = {0};

	for (size_t i = 0; i < s->early.n; i++)
		TRY(runs_push(&early, s->early.v[i].start, s->early.v[i].end));
	runs_normalise(&early);
	TRY(runs_minus(&left, plan, &early));
	runs_take(plan, &left);
	return 0;
}

/* Tests: what was written since the last copy is under traps again before the stop, as if it had been taken. */
static void rearm_early(ut_space *s)
{
	const ut_runs *plan = &s->harvest.all.want;
	const ut_run *run = plan->n ? &plan->v[plan->n / 2] : NULL;

	if (run) {
		ut_scan scan = UT_SCAN_OF(s, run->start, run->end, .flags = UT_SCAN_WP_MATCHING, UT_SCAN_WRITTEN);

		while (ut_scan_next(&scan) > 0)
			;
	}
}

int ut_look_at_stopped(ut_tracee *t, ut_space *s, int flags, ut_times *times)
{
	int64_t t0 = ut_now_ns();
	int err;

	s->reader.tid = t->threads[ut_tracee_pick(t)].tid;
	s->reader.give_up_ns = ut_guard_soft_end(t);
	ut_sabotage("window");
	err = ut_space_look(s, t, flags);
	if (err)
		s->reader.give_up_ns = 0;
	else if (s->watch)
		ut_watch_threads(s->watch, t);
	times->harvest_ns = ut_now_ns() - t0;
	return err;
}

int ut_take_stopped(ut_space *s, const ut_run *pending, size_t npending, ut_times *times)
{
	ut_harvest *h = &s->harvest;
	int64_t t0 = ut_now_ns(), t1;
	int err = ut_space_find(s, pending, npending);

	ut_sabotage("harvested");
	if (ut_breaks(UT_BREAK_FORGET))
		forget_page(s);
	if (!err && ut_breaks(UT_BREAK_EARLY))
		err = keep_early(s);
	t1 = ut_now_ns();
	if (!err && (h->flags & UT_NO_COPY)) {
		int tid = ut_live_thread(s->reader.pid); /* the one that was taken may end meanwhile */

		s->reader.tid = tid < 0 ? s->reader.tid : tid;
	} else if (!err) {
		err = ut_space_copy_now(s, h->all.want.v, h->all.want.n);
	}
	s->reader.give_up_ns = 0;
	times->rearm_ns = h->arming_ns;
	times->harvest_ns += t1 - t0 - h->arming_ns;
	times->copy_ns = ut_now_ns() - t1;
	s->early.harvest_ns = times->harvest_ns;
	return err;
}

void ut_stopping(ut_space *s)
{
	if (ut_breaks(UT_BREAK_LATE_REARM))
		rearm_early(s);
	if (s->watch)
		ut_watch_stopping(s->watch);
}

void ut_resumed(ut_space *s)
{
	if (s->watch)
		ut_watch_resumed(s->watch);
}

/* Of a process by itself. Of a tree, ut_tree_window() knows of all members; one by one, they compare shared memory. */
static int take(ut_tracee *t, ut_space *s, int flags, const ut_run *pending, size_t npending, ut_times *times)
{
	int err;

	TRY(ut_look_at_stopped(t, s, flags, times));
	if (s->sole)
		ut_sole_stands(s, t);
	ut_sole_begin(s->sole);
	err = ut_take_stopped(s, pending, npending, times);
	ut_sole_end(s->sole);
	return err;
}

int ut_look(ut_tracee *t, ut_space *s, ut_times *times)
{
	/* What was copied early is neither pending nor found again. */
	TRY(ut_early_withdraw(&s->early));
	return take(t, s, UT_NO_COPY, NULL, 0, times);
}

int ut_window(ut_tracee *t, ut_space *s, int flags, const ut_run *pending, size_t npending,
	      int64_t timeout_ns, ut_times *times)
{
	int64_t t0, stood, longest;
	int err;

	ut_sole_ask(s->sole);
	if (!(flags & (UT_FULL | UT_NO_COPY)))
		ut_space_early(s, t, timeout_ns);
	flags |= flags & UT_FULL ? 0 : ut_space_ask(s);
	TRY(ut_await_calls(t, timeout_ns)); /* no part of the pause: all threads run */
	ut_hurry(t);
	t0 = ut_now_ns();
	ut_stopping(s);
	err = ut_tracee_stop_now(t, timeout_ns);
	if (err < 0) {
		ut_resumed(s);
		ut_no_hurry(t);
		return err;
	}
	stood = s->stood_ns;
	longest = s->longest_ns;
	s->stood_ns = s->longest_ns = 0;
	times->stop_ns = ut_now_ns() - t0 + stood;
	err = take(t, s, flags, pending, npending, times);
	ut_resumed(s);
	int late = ut_tracee_resume(t);

	times->pause_ns = ut_now_ns() - t0 + stood;
	if (stood)
		times->longest_ns = ut_longer(longest, times->pause_ns - stood);
	ut_no_hurry(t);
	if (late) /* killed while they stood */
		ut_tracee_settle(t, 100000000);
	return err;
}
