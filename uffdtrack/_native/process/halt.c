/* A thread that was asked to stop comes to its stop, and is let go. */
#include "cleanup.h"
#include "compat.h"
#include "guard.h"
#include "tracee_parts.h"

#include <sys/wait.h>

#define SENT_NS 50000000

/* A thread of ours has gone without a word: it has called exec, and lives on under the id of the first thread,
 * which it has replaced. It is ours still, and so is its stop, if it has been asked for one yet. */
static int took_over(ut_tracee *t)
{
	int at = ut_tracee_index(t, t->pid);

	if (at >= 0)
		t->threads[at].state = UT_THREAD_ASKED;
	else
		TRY(ut_add_thread(t, t->pid));
	trace(PTRACE_INTERRUPT, t->pid, NULL, NULL);
	return 0;
}

/* Who was sent on to the stop for its signal runs away where another thread has had that signal ignored meanwhile, which
 * takes it out of the queue. One that has it still gets there: at a thaw, or when it is given a processor. */
static void look_after(ut_tracee *t, ut_thread *th)
{
	int64_t now = ut_now_ns();
	uint64_t pending, blocked;

	if (!th->sent_ns || now - th->sent_ns < SENT_NS)
		return;
	th->sent_ns = now;
	if (!ut_status_mask(t->pid, th->tid, "SigPnd:", &pending) &&
	    !ut_status_mask(t->pid, th->tid, "SigBlk:", &blocked) && !(pending & ~blocked & UT_SYNCHRONOUS)) {
		th->sent_ns = 0;
		trace(PTRACE_INTERRUPT, th->tid, NULL, NULL);
	}
}

void ut_give_up_first(ut_tracee *t)
{
	int at = ut_tracee_index(t, t->pid);

	if (at < 0 || t->threads[at].state != UT_THREAD_ASKED || !ut_thread_is_dead(t->pid, t->pid) ||
	    ut_live_thread(t->pid) < 0)
		return;
	t->threads[at].state = UT_THREAD_DEAD;
	t->first_ended = 1;
}

void ut_reap_first(ut_tracee *t)
{
	int status;

	if (!t->first_ended || ut_live_thread(t->pid) > 0 || waitpid(t->pid, &status, __WALL | WNOHANG) != t->pid ||
	    WIFSTOPPED(status))
		return;
	t->first_ended = 0;
	note_end(t, t->pid, status);
}

/* 1: the thread has stopped or is dead. 0: not yet. */
int ut_poll_thread(ut_tracee *t, ut_thread *th)
{
	int status, r = waitpid(th->tid, &status, __WALL | WNOHANG);

	if (!r) {
		look_after(t, th);
		return 0;
	}
	if (r < 0) {
		th->state = UT_THREAD_DEAD;
		return th->tid == t->pid ? 1 : took_over(t);
	}
	if (!WIFSTOPPED(status)) {
		th->state = UT_THREAD_DEAD;
		note_end(t, th->tid, status);
		return 1;
	}
	if (status >> 16 == PTRACE_EVENT_STOP) {
		int err, due = ut_fault_is_due(t, th->tid);

		if (WSTOPSIG(status) != SIGTRAP)
			ut_guard_group_stop(t);
		/* What the instruction before has done and its signal belong together: the thread shall stand at the first
		 * instruction of the handler. So it goes on, to the stop for that signal. */
		if (due > 0) {
			th->sent_ns = ut_now_ns();
			trace(PTRACE_CONT, th->tid, NULL, NULL);
			return 0;
		}
		err = ut_note_stop(t, th);
		if (!err)
			err = ut_guard_repair(t, th);
		if (!err)
			err = due; /* it stands, and is let go */
		if (err == -ESRCH)
			return 0; /* killed meanwhile; its end is reported next */
		return err ? err : 1;
	}
	/* A signal on its way: let it through. The trap that we asked for is still to come, or was before it. */
	th->sent_ns = 0;
	trace(PTRACE_INTERRUPT, th->tid, NULL, NULL);
	trace(PTRACE_CONT, th->tid, NULL, (void *)(long)ut_signal_to_pass(th->tid, WSTOPSIG(status)));
	return 0;
}

/* Returns how many threads are still on their way to a stop, or to their end. The table stays for reading. */
int ut_tracee_resume(ut_tracee *t)
{
	size_t pending = 0;

	for (size_t i = 0; i < t->n; i++) {
		ut_thread *th = &t->threads[i];

		if (th->state == UT_THREAD_STOPPED) {
			th->stood = 1;
			/* Killed while it stood: we have yet to reap it. */
			th->state = trace(PTRACE_DETACH, th->tid, NULL, NULL) == -ESRCH
					    ? UT_THREAD_ASKED
					    : UT_THREAD_RUNNING;
		}
		pending += th->state == UT_THREAD_ASKED;
	}
	ut_guard_resumed(t, pending);
	return pending;
}
