/* PTRACE_SEIZE of threads, without waiting for who waits for us. */
#include "cleanup.h"
#include "compat.h"
#include "tracee_parts.h"

#include <setjmp.h>
#include <sys/wait.h>

/* A thread that calls exec ends all others and waits until their tracer has reaped each; a PTRACE_SEIZE of
 * any of them waits for that exec. So a tracer that seizes several threads can wait for an exec that waits
 * for the tracer. A timer's signal takes us out of the wait: its handler reaps, and the kernel repeats the
 * call. That exec may itself wait, for another machine's file, or in a frozen cgroup; so past the deadline
 * the handler does not return to it. */
#define NUDGE (SIGRTMAX - 3)
#define NUDGE_NS 5000000
#define AGAIN_NS 100000

static __thread sigjmp_buf past_deadline;

/* 1: we have reaped a thread that was killed while we traced it. Without WNOWAIT, waitid(2) takes the stop of
 * a thread that lives. */
static int reap_thread(int tid)
{
	siginfo_t what = {0};

	if (waitid(P_PID, tid, &what, WEXITED | WNOHANG | WNOWAIT | __WALL))
		return 0;
	if (what.si_code != CLD_EXITED && what.si_code != CLD_KILLED && what.si_code != CLD_DUMPED)
		return 0;
	return waitpid(tid, NULL, WNOHANG | __WALL) == tid;
}

void ut_reap_killed(ut_tracee *t)
{
	for (size_t i = 0; i < t->n; i++) {
		ut_thread *th = &t->threads[i];

		if (th->state != UT_THREAD_DEAD && th->tid != t->pid && reap_thread(th->tid))
			th->state = UT_THREAD_DEAD;
	}
	for (size_t i = 0; i < t->calls.n; i++)
		if (t->calls.v[i].tid != t->pid)
			reap_thread(t->calls.v[i].tid);
}

static void on_nudge(int number, siginfo_t *info, void *context)
{
	ut_tracee *t = info->si_value.sival_ptr;
	int kept = errno;

	if (info->si_code == SI_TIMER && t->seizing.going_on) {
		ut_reap_killed(t);
		if (ut_now_ns() > t->seizing.end_ns)
			siglongjmp(past_deadline, 1);
	}
	errno = kept;
}

int ut_seizing_open(ut_tracee *t)
{
	struct sigaction sa = {.sa_sigaction = on_nudge, .sa_flags = SA_SIGINFO};
	struct sigevent to = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = NUDGE};
	sigset_t one;

	to.sigev_value.sival_ptr = t;
	t->seizing.tid = to._sigev_un._tid = syscall(SYS_gettid);
	sigemptyset(&one);
	sigaddset(&one, NUDGE);
	if (sigaction(NUDGE, &sa, NULL) || sigprocmask(SIG_UNBLOCK, &one, NULL) ||
	    syscall(SYS_timer_create, CLOCK_MONOTONIC, &to, &t->seizing.timer))
		return -errno;
	return 0;
}

void ut_seizing_close(const ut_tracee *t)
{
	syscall(SYS_timer_delete, t->seizing.timer);
}

static void nudge(const ut_tracee *t, long first_ns, long ns)
{
	struct itimerspec every = {{0, ns}, {0, first_ns}};

	syscall(SYS_timer_settime, t->seizing.timer, 0, &every, NULL); /* fails for a wrong timer or time only */
}

void ut_seizing_begin(const ut_tracee *t)
{
	nudge(t, NUDGE_NS, NUDGE_NS);
}

void ut_seizing_end(const ut_tracee *t)
{
	nudge(t, 0, 0);
}

int ut_seizing_await(const ut_tracee *t, int tid, long ns)
{
	siginfo_t what;
	int news;

	if (t->seizing.tid != syscall(SYS_gettid)) /* the nudge would be another thread's */
		return 0;
	nudge(t, ns, AGAIN_NS); /* its handler ends the sleep; the first one may come before that */
	news = !waitid(P_PID, tid, &what, WSTOPPED | WEXITED | WNOWAIT | __WALL);
	nudge(t, NUDGE_NS, NUDGE_NS);
	return news;
}

/* An ending thread answers EPERM as a forbidden one does, and a thread in exec is waited for: then the one that was
 * asked for may have ended, and another one live under its id. */
int ut_seize(ut_tracee *t, int tid)
{
	volatile int err = -EPERM;

	for (volatile int i = 0; i < 3 && err == -EPERM; i++) {
		if (sigsetjmp(past_deadline, 1)) {
			t->seizing.going_on = 0;
			/* It may have been ours just then. */
			return trace(PTRACE_INTERRUPT, tid, NULL, NULL) ? -ETIMEDOUT : 0;
		}
		t->seizing.going_on = 1;
		err = trace(PTRACE_SEIZE, tid, NULL, (void *)PTRACE_O_TRACESYSGOOD);
		t->seizing.going_on = 0;
		if (err && ut_thread_is_dead(t->pid, tid))
			return -ESRCH;
	}
	return err;
}
