#include "cleanup.h"
#include "compat.h"
#include "guard.h"
#include "sabotage.h"
#include "tracee_parts.h"
#include "vec.h"

#include <cpuid.h>
#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#define ASK_NS 500000000
#define SPIN_NS 10000
#define LATE_NS 100000
#define REAP_NS 400000
#define REAP_EACH_NS 20000 /* for each thread */
#define NAP_NS 20000
#define LONGEST_NAP_NS 1000000
#define ALL 8 /* every so many looks are at all threads */
#define CROWDED 64
#define STARVED 4 /* so many times longer a thread is waited for that gets no processor */

int ut_tracee_open(int pid, ut_tracee **out)
{
	unsigned a, b, c = 0, d;
	ut_tracee *t;
	int err;

	TRY(ut_blocks_open());
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->pid = pid;
	t->exit_status = -1;
	t->pidfd = syscall(SYS_pidfd_open, pid, 0);
	if (t->pidfd < 0) {
		err = -errno;
		free(t);
		return err;
	}
	err = ut_seizing_open(t);
	if (err) {
		close(t->pidfd);
		free(t);
		return err;
	}
	/* CPUID leaf 0xD: ecx is the size of the XSAVE area of all features of this CPU. */
	__cpuid_count(0xd, 0, a, b, c, d);
	t->xstate_stride = (c < 4096 ? 4096 : c + 63) & ~63ul;
	*out = t;
	return 0;
}

void ut_tracee_close(ut_tracee *t)
{
	if (!t)
		return;
	ut_tracee_resume(t);
	ut_close_calls(t);
	ut_reap_first(t);
	ut_guard_release(t);
	ut_seizing_close(t);
	close(t->pidfd);
	free(t->threads);
	free(t->xstate);
	free(t->waits.v);
	free(t->rseq.v);
	free(t);
}

int ut_same_memory(int a, int b)
{
	long r = syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0);

	return r < 0 ? -errno : r == 0;
}

/* Whether all that have not stopped are runnable: they are given no processor, and will stop when they are. */
static int are_starved(const ut_tracee *t)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_ASKED && ut_thread_state(t->pid, t->threads[i].tid) != 'R')
			return 0;
	return 1;
}

/* Its registers are there already. */
static void take_state(ut_tracee *t, size_t i)
{
	ut_thread *th = &t->threads[i];
	struct iovec iov = {t->xstate + i * t->xstate_stride, t->xstate_stride};

	if (th->worker)
		return;
	if (trace(PTRACE_GETSIGMASK, th->tid, (void *)8, &th->sigmask) ||
	    trace(PTRACE_GETREGSET, th->tid, (void *)NT_X86_XSTATE, &iov)) {
		th->state = UT_THREAD_ASKED; /* killed while it stood: we have yet to reap it */
		return;
	}
	th->xstate_len = iov.iov_len;
	th->rseq = ut_rseq_of(th->tid);
}

static int reserve_states(ut_tracee *t)
{
	uint8_t *v;

	if (t->xstate_cap >= t->n)
		return 0;
	v = realloc(t->xstate, t->n * t->xstate_stride);
	if (!v)
		return -ENOMEM;
	t->xstate = v;
	t->xstate_cap = t->n;
	return 0;
}

/* 1: the thread stands, or is dead; its state is taken while others are on their way. */
static int poll_thread(ut_tracee *t, size_t i)
{
	int r = ut_poll_thread(t, &t->threads[i]);

	if (r >= 0 && t->threads[i].state == UT_THREAD_STOPPED) {
		TRY(reserve_states(t));
		take_state(t, i);
	}
	return r;
}

/* Look at those that have not stopped yet, in order, up to the first that still has not, or at all of them. Returns
 * whether there are any. */
static int poll_in_order(ut_tracee *t, int all)
{
	int pending = 0;

	for (size_t i = 0; i < t->n && (all || !pending); i++) {
		if (t->threads[i].state != UT_THREAD_ASKED)
			continue;
		int r = poll_thread(t, i);

		TRY(r);
		pending += !r;
	}
	return pending;
}

/* sched_yield(2) would give the processor away for a tick. Looks that come too often keep others that are queued from
 * using up their slices. */
static void nap(int64_t looked_ns, int64_t waited_ns)
{
	int64_t ns = waited_ns / 16;

	ns = ns > looked_ns ? ns : looked_ns;
	nanosleep(&(struct timespec){0, ns < NAP_NS ? NAP_NS : ns > LONGEST_NAP_NS ? LONGEST_NAP_NS : ns}, NULL);
}

/* Sleep until the last thread has news: when it comes to its turn, those before it have had theirs. 0: there was none. */
static int await_last(const ut_tracee *t, int64_t ns)
{
	for (size_t i = t->n; i--;)
		if (t->threads[i].state == UT_THREAD_ASKED)
			return ut_seizing_await(t, t->threads[i].tid, ns);
	return 0;
}

static int wait_all(ut_tracee *t, int64_t deadline)
{
	int64_t begun = ut_now_ns(), start = t->guard.stopped_ns, reap_at = begun + REAP_NS + t->n * REAP_EACH_NS;
	int64_t last = start + (deadline - start) * STARVED;
	int looked = 0, sleeps = 1;

	for (unsigned n = 0;; n++) {
		int64_t looks = ut_now_ns(), now;
		/* What follows is decided by those that have not stopped, not by those that were not looked at. */
		int all = n % ALL == 0 || looks >= deadline, pending = poll_in_order(t, all);

		if (pending <= 0)
			return pending;
		now = ut_now_ns();
		if (looks >= deadline && (now >= last || now >= ut_guard_soft_end(t) || !are_starved(t)))
			return -ETIMEDOUT;
		if (now < begun + SPIN_NS)
			continue;
		/* They may be queued on this processor. A nap would be 25 us longer than it is to be. */
		if (sleeps && now < begun + LATE_NS) {
			sleeps = await_last(t, begun + LATE_NS - now);
			continue;
		}
		if (all && now > begun + LATE_NS && t->urgent && !looked++ && !t->aside.n && are_starved(t)) {
			t->crowded = CROWDED;
			ut_step_aside(&t->aside);
		}
		if (now > reap_at) {
			ut_reap_killed(t); /* an exec waits for that, and who called it cannot stop before */
			ut_give_up_first(t);
			reap_at = now + REAP_NS + t->n * REAP_EACH_NS;
		}
		/* They may need this processor to stop, and as much of it as we take. */
		nap(now - looks, now - begun);
	}
}

/* Those that run come first: where they stand is a processor for those that have to be woken. */
static void interrupt(const ut_tracee *t, size_t first)
{
	for (int awake = 1; awake >= 0; awake--)
		for (size_t i = first; i < t->n; i++)
			if (t->threads[i].awake == awake)
				trace(PTRACE_INTERRUPT, t->threads[i].tid, NULL, NULL);
}

static int seize_all(ut_tracee *t)
{
	AUTO_DIR dir = ut_open_tasks(t->pid);
	size_t next = 0, awake = 0, before = t->n;
	int err = 0, tid, most = 0;

	if (!dir)
		return -errno;
	for (size_t i = 0; i < t->n; i++)
		most = t->threads[i].tid > most ? t->threads[i].tid : most;
	while (!err && (tid = ut_next_task(dir))) {
		/* The directory has them in the order of the table, mostly. */
		if (next < t->n && t->threads[next].tid == tid) {
			next++;
			continue;
		}
		if (tid <= most && ut_tracee_index(t, tid) >= 0)
			continue;
		most = tid > most ? tid : most;
		err = ut_seize(t, tid);
		if (err) {
			err = err == -ESRCH ? 0 : err;
			continue;
		}
		err = ut_escort_seized(t, tid);
		if (!err)
			err = ut_add_thread(t, tid);
		if (err)
			break;
		/* That list is in this order, too. */
		while (awake < t->calls.nawake && t->calls.awake[awake] < tid)
			awake++;
		t->threads[t->n - 1].awake = awake < t->calls.nawake && t->calls.awake[awake] == tid;
	}
	return err ? err : (int)(t->n - before);
}

/* Seize and interrupt the threads that are not in the table yet; returns how many. Those that it has seized when it fails
 * are interrupted all the same. */
static int seize_new(ut_tracee *t)
{
	size_t before = t->n;
	int r = seize_all(t);

	interrupt(t, before);
	return r;
}

/* 1: somebody runs whom we do not have: only who runs makes threads. A listing ends early where a thread ends under it (next_tid(),
 * fs/proc/base.c), so it is no proof that it has nobody new; the kernel's count is. A first thread that has ended counts. */
static int is_any_left(const ut_tracee *t)
{
	long known = 0, n = ut_count_tasks(t->pid);
	int first = ut_tracee_index(t, t->pid);

	for (size_t i = 0; i < t->n; i++)
		known += t->threads[i].state == UT_THREAD_STOPPED || t->threads[i].state == UT_THREAD_ASKED;
	if (n <= known || (first >= 0 && t->threads[first].state != UT_THREAD_DEAD))
		return n > known;
	if (ut_thread_is_dead(t->pid, t->pid))
		return n > known + 1;
	return first < 0; /* or it has been replaced by exec: nobody of the table is left */
}

void ut_hurry(ut_tracee *t)
{
	t->urgent = sched_getscheduler(0) == SCHED_OTHER;
	if (t->urgent && t->crowded > 0 && t->crowded--)
		ut_step_aside(&t->aside);
	if (t->urgent)
		ut_set_urgent(1);
}

void ut_no_hurry(ut_tracee *t)
{
	if (t->urgent)
		ut_set_urgent(0);
	t->urgent = 0;
}

int ut_tracee_ask(ut_tracee *t)
{
	int r;

	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_ASKED)
			return 0; /* an earlier stop still waits for it */
	t->n = 0;
	t->seizing.end_ns = ut_now_ns() + ASK_NS;
	TRY(ut_guard_stopping(t)); /* from here on calls may be broken off */
	ut_seizing_begin(t);
	r = seize_new(t);
	ut_seizing_end(t);
	return r;
}

int ut_tracee_stop(ut_tracee *t, int64_t timeout_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;
	int r;

	do {
		r = ut_await_calls(t, deadline - ut_now_ns());
		if (!r)
			r = ut_tracee_stop_now(t, timeout_ns);
	} while (r == UT_BUSY && ut_now_ns() < deadline);
	return r;
}

static int stop_all(ut_tracee *t, int64_t deadline)
{
	if (t->n)
		TRY(wait_all(t, deadline));
	for (;;) {
		int fresh = seize_new(t);

		TRY(fresh);
		ut_sabotage("stopping");
		if (fresh)
			TRY(wait_all(t, deadline));
		if ((!fresh && ut_breaks(UT_BREAK_LISTING)) || !is_any_left(t))
			return ut_tracee_pick(t) < 0 ? -ESRCH : 0;
		if (ut_now_ns() >= deadline)
			return -ETIMEDOUT;
	}
}

int ut_tracee_stop_now(ut_tracee *t, int64_t timeout_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;
	int r;

	t->seizing.end_ns = deadline;
	r = ut_guard_stopping(t);
	if (r) {
		ut_tracee_resume(t);
		return r;
	}
	/* A thread that an earlier stop still waits for is ours already. */
	ut_keep_asked(t);
	ut_ask_again(t);
	ut_seizing_begin(t);
	r = stop_all(t, deadline);
	ut_seizing_end(t);
	if (r)
		ut_tracee_resume(t);
	else
		ut_guard_stopped(t);
	ut_step_back(&t->aside);
	return r;
}
