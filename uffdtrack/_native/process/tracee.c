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
#define SENT_NS 50000000
#define STARVED 4 /* so many times longer a thread is waited for that gets no processor */

int ut_tracee_open(int pid, ut_tracee **out)
{
	unsigned a, b, c = 0, d;
	ut_tracee *t = calloc(1, sizeof(*t));
	int err;

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
	ut_guard_release(t);
	ut_seizing_close(t);
	close(t->pidfd);
	free(t->threads);
	free(t->xstate);
	free(t->waits.v);
	free(t->rseq.v);
	free(t);
}

int ut_tracee_index(const ut_tracee *t, int tid)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].tid == tid)
			return i;
	return -ESRCH;
}

int ut_tracee_pick(const ut_tracee *t)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_STOPPED && !t->threads[i].worker)
			return i;
	return -ESRCH;
}

int ut_thread_getfd(int tid, int fd)
{
	AUTO_FD thread = syscall(SYS_pidfd_open, tid, UT_PIDFD_THREAD);
	int own = thread < 0 ? -1 : syscall(SYS_pidfd_getfd, thread, fd, 0);

	return own < 0 ? -errno : own;
}

int ut_tracee_getfd(const ut_tracee *t, int tid, int fd)
{
	int own = syscall(SYS_pidfd_getfd, t->pidfd, fd, 0);

	/* Where the first thread has ended its pidfd has no files. */
	return own < 0 ? ut_thread_getfd(tid, fd) : own;
}

int ut_same_memory(int a, int b)
{
	long r = syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0);

	return r < 0 ? -errno : r == 0;
}

int ut_add_thread(ut_tracee *t, int tid)
{
	return VEC_PUSH(t->threads, t->n, t->cap, (ut_thread){.tid = tid});
}

/* A thread of ours has gone without a word: it has called exec, and lives on under the id of the first thread,
 * which it has replaced. It is ours still, and so is its stop, if it has been asked for one yet. */
static int took_over(ut_tracee *t)
{
	int at = ut_tracee_index(t, t->pid);

	if (at >= 0)
		t->threads[at].state = UT_THREAD_PENDING;
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

/* 1: the thread has stopped or is dead. 0: not yet. */
static int poll_thread(ut_tracee *t, ut_thread *th)
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

/* Whether all that have not stopped are runnable: they are given no processor, and will stop when they are. */
static int are_starved(const ut_tracee *t)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_PENDING && ut_thread_state(t->pid, t->threads[i].tid) != 'R')
			return 0;
	return 1;
}

static int wait_all(ut_tracee *t, int64_t deadline)
{
	int64_t spin_until = ut_now_ns() + 400000, start = t->guard.stopped_ns;
	int64_t last = start + (deadline - start) * STARVED;
	struct timespec nap = {0, 50000};

	for (;;) {
		size_t pending = 0;
		int64_t now;

		for (size_t i = 0; i < t->n; i++) {
			if (t->threads[i].state != UT_THREAD_PENDING)
				continue;
			int r = poll_thread(t, &t->threads[i]);

			if (r < 0)
				return r;
			pending += !r;
		}
		if (!pending)
			return 0;
		now = ut_now_ns();
		if (now >= deadline && (now >= last || now >= ut_guard_soft_end(t) || !are_starved(t)))
			return -ETIMEDOUT;
		if (now < spin_until) {
			sched_yield();
			continue;
		}
		ut_collect_killed(t); /* an exec waits for that, and who called it cannot stop before */
		nanosleep(&nap, NULL);
	}
}

static int take_states(ut_tracee *t)
{
	if (t->xstate_cap < t->n) {
		uint8_t *v = realloc(t->xstate, t->n * t->xstate_stride);

		if (!v)
			return -ENOMEM;
		t->xstate = v;
		t->xstate_cap = t->n;
	}
	for (size_t i = 0; i < t->n; i++) {
		ut_thread *th = &t->threads[i];
		struct iovec iov = {t->xstate + i * t->xstate_stride, t->xstate_stride};

		if (th->state != UT_THREAD_STOPPED || th->worker)
			continue;
		if (trace(PTRACE_GETSIGMASK, th->tid, (void *)8, &th->sigmask) ||
		    trace(PTRACE_GETREGSET, th->tid, (void *)NT_X86_XSTATE, &iov)) {
			th->state = UT_THREAD_PENDING; /* killed while it stood: its end is still to be collected */
			continue;
		}
		th->xstate_len = iov.iov_len;
		th->rseq = ut_rseq_of(th->tid);
	}
	return 0;
}

int ut_tracee_ask(ut_tracee *t)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_PENDING)
			return 0; /* an earlier stop still waits for it */
	t->n = 0;
	t->seizing.end_ns = ut_now_ns() + ASK_NS;
	ut_guard_stopping(t); /* from here on calls may be broken off */
	return ut_seize_new(t);
}

void ut_keep_pending(ut_tracee *t)
{
	size_t kept = 0;

	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_PENDING)
			t->threads[kept++] = t->threads[i];
	t->n = kept;
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

int ut_tracee_stop_now(ut_tracee *t, int64_t timeout_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;
	int r;

	t->seizing.end_ns = deadline;
	ut_guard_stopping(t);
	/* A thread that an earlier stop still waits for is ours already. */
	ut_keep_pending(t);
	if (t->n) {
		r = wait_all(t, deadline);
		if (r) {
			ut_tracee_resume(t);
			return r;
		}
	}
	do {
		r = ut_seize_new(t);
		ut_sabotage("stopping");
		if (r > 0) {
			int err = wait_all(t, deadline);

			if (err)
				r = err;
		}
	} while (r > 0);
	if (!r)
		r = take_states(t);
	if (!r && ut_tracee_pick(t) < 0)
		r = -ESRCH;
	if (r)
		ut_tracee_resume(t);
	else
		ut_guard_stopped(t);
	return r;
}

/* Returns how many threads are still on their way to a stop, or to their end. The table stays for reading. */
int ut_tracee_resume(ut_tracee *t)
{
	size_t pending = 0;

	for (size_t i = 0; i < t->n; i++) {
		ut_thread *th = &t->threads[i];

		if (th->state == UT_THREAD_STOPPED)
			/* Killed while it stood: its end is still to be collected. */
			th->state = trace(PTRACE_DETACH, th->tid, NULL, NULL) == -ESRCH
					    ? UT_THREAD_PENDING
					    : UT_THREAD_RUNNING;
		pending += th->state == UT_THREAD_PENDING;
	}
	ut_guard_resumed(t, pending);
	return pending;
}

int ut_tracee_settle(ut_tracee *t, int64_t timeout_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;
	struct timespec nap = {0, 1000000};

	for (;;) {
		int pending;

		for (size_t i = 0; i < t->n; i++)
			if (t->threads[i].state == UT_THREAD_PENDING)
				poll_thread(t, &t->threads[i]);
		pending = ut_settle_calls(t); /* first: whom that asks to stop is pending then */
		pending += ut_tracee_resume(t);
		if (!pending || ut_now_ns() >= deadline)
			return pending;
		nanosleep(&nap, NULL);
	}
}

int ut_remote_write(int pid, uint64_t at, const void *from, size_t n)
{
	while (n) {
		struct iovec local = {(void *)from, n}, remote = {(void *)at, n};
		ssize_t done = process_vm_writev(pid, &local, 1, &remote, 1, 0);

		if (done < 0)
			return -errno;
		from = (const char *)from + done;
		at += done;
		n -= done;
	}
	return 0;
}
