#include "cleanup.h"
#include "compat.h"
#include "guard.h"
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

/* A thread that calls exec ends all others and waits until each end has been collected by its tracer; a PTRACE_SEIZE
 * of any of them waits for that exec. So who seizes several threads can wait for an exec that waits for him. A
 * timer's signal takes us out of the wait: its handler collects, and the kernel repeats the call. That exec may itself
 * wait, for another machine's file, or in a frozen cgroup; so past the deadline the handler does not return to it. */
#define NUDGE (SIGRTMAX - 3)
#define NUDGE_NS 5000000
#define ASK_NS 500000000
#define SENT_NS 50000000
#define STARVED 4 /* so many times longer a thread is waited for that gets no processor */

static __thread sigjmp_buf past_deadline;

/* 1: a thread that was killed while it was ours has been collected. Asked without WNOWAIT, waitid(2) takes the stop of
 * one that lives. */
static int collect(int tid)
{
	siginfo_t what = {0};

	if (waitid(P_PID, tid, &what, WEXITED | WNOHANG | WNOWAIT | __WALL))
		return 0;
	if (what.si_code != CLD_EXITED && what.si_code != CLD_KILLED && what.si_code != CLD_DUMPED)
		return 0;
	return waitpid(tid, NULL, WNOHANG | __WALL) == tid;
}

static void collect_killed(ut_tracee *t)
{
	for (size_t i = 0; i < t->n; i++) {
		ut_thread *th = &t->threads[i];

		if (th->state != UT_THREAD_DEAD && th->tid != t->pid && collect(th->tid))
			th->state = UT_THREAD_DEAD;
	}
	for (size_t i = 0; i < t->nheld; i++)
		if (t->held[i].tid != t->pid)
			collect(t->held[i].tid);
}

static void on_nudge(int number, siginfo_t *info, void *context)
{
	ut_tracee *t = info->si_value.sival_ptr;
	int kept = errno;

	if (info->si_code == SI_TIMER && t->seizing) {
		collect_killed(t);
		if (ut_now_ns() > t->seize_end_ns)
			siglongjmp(past_deadline, 1);
	}
	errno = kept;
}

static int make_nudge(ut_tracee *t)
{
	struct sigaction sa = {.sa_sigaction = on_nudge, .sa_flags = SA_RESTART | SA_SIGINFO};
	struct sigevent to = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = NUDGE};
	sigset_t one;

	to.sigev_value.sival_ptr = t;
	to._sigev_un._tid = syscall(SYS_gettid);
	sigemptyset(&one);
	sigaddset(&one, NUDGE);
	if (sigaction(NUDGE, &sa, NULL) || sigprocmask(SIG_UNBLOCK, &one, NULL) ||
	    syscall(SYS_timer_create, CLOCK_MONOTONIC, &to, &t->nudge))
		return -errno;
	return 0;
}

static void set_nudge(const ut_tracee *t, long ns)
{
	struct itimerspec every = {{0, ns}, {0, ns}};

	syscall(SYS_timer_settime, t->nudge, 0, &every, NULL); /* fails for a wrong timer or time only */
}

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
	err = make_nudge(t);
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
	syscall(SYS_timer_delete, t->nudge);
	close(t->pidfd);
	free(t->threads);
	free(t->xstate);
	free(t->waits);
	free(t->rseq);
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

int ut_tracee_getfd(const ut_tracee *t, int tid, int fd)
{
	int thread, own = syscall(SYS_pidfd_getfd, t->pidfd, fd, 0), err = -errno;

	if (own >= 0)
		return own;
	/* The first thread has ended, so its pidfd has no files: PIDFD_THREAD, Linux 6.9. */
	thread = syscall(SYS_pidfd_open, tid, O_EXCL);
	if (thread < 0)
		return err;
	own = syscall(SYS_pidfd_getfd, thread, fd, 0);
	err = -errno;
	close(thread);
	return own >= 0 ? own : err;
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
	int64_t spin_until = ut_now_ns() + 400000, start = t->stopped_ns;
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
		collect_killed(t); /* an exec waits for that, and who called it cannot stop before */
		nanosleep(&nap, NULL);
	}
}

/* An ending thread answers EPERM as a forbidden one does, and a thread in exec is waited for: then the one that was
 * asked for may have ended, and another one live under its id. */
static int seize(ut_tracee *t, int tid)
{
	volatile int err = -EPERM;

	for (volatile int i = 0; i < 3 && err == -EPERM; i++) {
		if (sigsetjmp(past_deadline, 1)) {
			t->seizing = 0;
			/* It may have been ours just then. */
			return trace(PTRACE_INTERRUPT, tid, NULL, NULL) ? -ETIMEDOUT : 0;
		}
		t->seizing = 1;
		err = trace(PTRACE_SEIZE, tid, NULL, (void *)PTRACE_O_TRACESYSGOOD);
		t->seizing = 0;
		if (err && ut_thread_is_dead(t->pid, tid))
			return -ESRCH;
	}
	return err;
}

int ut_seize(ut_tracee *t, int tid)
{
	int err;

	set_nudge(t, NUDGE_NS);
	err = seize(t, tid);
	set_nudge(t, 0);
	return err;
}

/* Seize and interrupt the threads that are not in the table yet; returns how many. */
static int seize_new(ut_tracee *t)
{
	char path[32];
	struct dirent *e;
	int fresh = 0, err = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", t->pid);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? -ESRCH : -errno;
	while (!err && (e = readdir(dir))) {
		int tid = atoi(e->d_name);

		if (tid <= 0 || ut_tracee_index(t, tid) >= 0)
			continue;
		err = seize(t, tid);
		if (err) {
			err = err == -ESRCH ? 0 : err;
			continue;
		}
		err = ut_hold_seized(t, tid);
		if (!err)
			err = ut_add_thread(t, tid);
		if (err)
			break;
		trace(PTRACE_INTERRUPT, tid, NULL, NULL);
		fresh++;
	}
	closedir(dir);
	return err ? err : fresh;
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
	int r;

	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_PENDING)
			return 0; /* an earlier stop still waits for it */
	t->n = 0;
	t->seize_end_ns = ut_now_ns() + ASK_NS;
	ut_guard_stopping(t); /* from here on calls may be broken off */
	set_nudge(t, NUDGE_NS);
	r = seize_new(t);
	set_nudge(t, 0);
	return r;
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

	t->seize_end_ns = deadline;
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
		set_nudge(t, NUDGE_NS);
		r = seize_new(t);
		set_nudge(t, 0);
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
