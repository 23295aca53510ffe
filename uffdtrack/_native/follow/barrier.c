#include "barrier.h"
#include "clock.h"
#include "cleanup.h"
#include "sabotage.h"
#include "watch.h"

static void note_stop(ut_space *s, int64_t ns)
{
	s->stood_ns += ns;
	s->longest_ns = ut_longer(s->longest_ns, ns);
}

int ut_barrier(ut_tracee *t, ut_space *s, int64_t timeout_ns)
{
	int64_t t0;
	int err;

	if (ut_breaks(UT_BREAK_BARRIER))
		return 0;
	TRY(ut_await_calls(t, timeout_ns));
	ut_hurry(t);
	t0 = ut_now_ns();
	if (s->watch)
		ut_watch_stopping(s->watch);
	err = ut_tracee_stop_now(t, timeout_ns);
	if (s->watch && err >= 0)
		ut_watch_settle(s->watch, t);
	if (s->watch)
		ut_watch_resumed(s->watch);
	if (err >= 0 && ut_tracee_resume(t))
		ut_tracee_settle(t, 100000000);
	note_stop(s, ut_now_ns() - t0);
	ut_no_hurry(t);
	return err;
}
