/* Calls that a stop leaves alone.
 *
 * PTRACE_INTERRUPT wakes a thread that sleeps in a call. For most calls that is nothing; the kernel or restart.c lets it
 * go on. But what a seccomp supervisor answers (SECCOMP_RET_USER_NOTIF) is asked for once more, and so done once more;
 * and what begins anew at each stop never ends if it takes longer than the time between two stops. So a stop waits
 * for the end of such calls while all threads run. A file system in user space is told of an interruption, gives up what it
 * was doing, and says EINTR: also to a close(2), whose flush(2) cannot be made again.
 * So a stop waits for its answers, too. The thread is traced meanwhile, and a breakpoint event where
 * the call returns to sends it a signal that it ignores: a traced thread stops for that, before its next instruction, and
 * should we die then it goes on with the signal ignored. */
#include "cleanup.h"
#include "compat.h"
#include "tracee_parts.h"
#include "vec.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

/* For a call of which is known that others like it begin anew. */
#define FIRST_LOOK_NS 250000000ll
/* For close(2). */
#define ONCE_NS 30000000000ll
#define ON_ITS_WAY_NS 20000000ll
#define CLOSE_NS 5000000000ll

enum { LISTINGS = 4 };

enum waits_for { NOBODY, SUPERVISOR, FILE_SYSTEM, AWAKE };

/* Who is waited for, by the function of the kernel's that a thread sleeps in (proc_pid_wchan(5)). A kernel that does not tell
 * (CONFIG_KALLSYMS) leaves no other way to know of a supervisor: the verdict of a filter is not to be had without
 * CAP_SYS_ADMIN. Of a file system it is then learnt by the first call that has been broken off. */
static enum waits_for waits_for(const ut_tracee *t, int tid)
{
	char text[128];

	if (ut_read_task(t->pid, tid, "wchan", text, sizeof(text)))
		return NOBODY;
	/* The one is inside the other, inlined or not. A supervisor that waits for work is in seccomp_notify_ioctl. */
	if (strstr(text, "seccomp_do_user_notification") || strstr(text, "__seccomp_filter"))
		return SUPERVISOR;
	if (!strcmp(text, "request_wait_answer")) /* fs/fuse/dev.c */
		return FILE_SYSTEM;
	return strcmp(text, "0") ? NOBODY : AWAKE;
}

static int any_anew(const ut_tracee *t)
{
	uint64_t any = 0;

	for (int i = 0; i < UT_CALLS / 64; i++)
		any |= t->calls.anew[i];
	return any != 0;
}

/* 1: the thread is in a call to be left alone; *h says in which, and until when. */
static int look_at_call(ut_tracee *t, int tid, ut_escort *h)
{
	const ut_wait *w = ut_find_wait(t, tid);
	int64_t now = ut_now_ns();
	ut_proc_call c;

	enum waits_for whom = waits_for(t, tid);

	if (whom == AWAKE) {
		VEC_PUSH(t->calls.awake, t->calls.nawake, t->calls.awake_cap, tid); /* it says in which order to stop them, no more */
		whom = NOBODY;
	}

	*h = (ut_escort){.tid = tid, .trap = -1, .nr = UT_ESCORT_SUPERVISED, .until_ns = INT64_MAX};
	if (whom == SUPERVISOR) {
		if (ut_proc_call_read(t->pid, tid, &c) || c.nr < 0)
			return 0;
		h->pc = c.pc;
		return 1;
	}
	if (w && now < w->until_ns && !ut_proc_call_read(t->pid, tid, &c) &&
	    (c.running || (c.nr == w->nr && c.pc == w->rip))) {
		h->nr = w->nr;
		h->pc = w->rip;
		h->until_ns = w->until_ns;
		return 1;
	}
	if ((whom == NOBODY && !any_anew(t)) || ut_proc_call_read(t->pid, tid, &c) || c.running)
		return 0;
	if (whom == NOBODY && !ut_begins_anew(t, tid, c.nr, c.fd))
		return 0;
	h->nr = c.nr < 0 ? UT_ESCORT_FAULT : c.nr;
	h->pc = c.pc;
	h->until_ns = now + (c.nr == SYS_close ? ONCE_NS : FIRST_LOOK_NS);
	return 1;
}

/* 0: it is not in that call any more, or has had its time. */
static int is_still_in(ut_tracee *t, const ut_escort *h)
{
	ut_proc_call c;

	if (h->nr == UT_ESCORT_SUPERVISED)
		return waits_for(t, h->tid) == SUPERVISOR && !ut_proc_call_read(t->pid, h->tid, &c) && c.pc == h->pc;
	if (h->nr == UT_ESCORT_FAULT)
		return ut_now_ns() < h->until_ns && waits_for(t, h->tid) == FILE_SYSTEM &&
		       !ut_proc_call_read(t->pid, h->tid, &c) && c.nr < 0;
	if (ut_now_ns() >= h->until_ns) {
		/* Not known to begin anew any more, until the stop that follows says so again. */
		if (h->nr < UT_CALLS)
			t->calls.anew[h->nr / 64] &= ~(1ull << h->nr % 64);
		return 0;
	}
	return !ut_proc_call_read(t->pid, h->tid, &c) && (c.running || (c.nr == h->nr && c.pc == h->pc));
}

/* A signal that does nothing by default, and for which the thread has set up nothing; 0: there is none. */
static int harmless_signal(const ut_tracee *t, int tid)
{
	static const int choice[] = {SIGURG, SIGWINCH, SIGCHLD};
	uint64_t blocked, caught;

	if (ut_status_mask(t->pid, tid, "SigBlk:", &blocked) || ut_status_mask(t->pid, tid, "SigCgt:", &caught))
		return 0;
	for (size_t i = 0; i < sizeof(choice) / sizeof(*choice); i++)
		if (!((blocked | caught) >> (choice[i] - 1) & 1))
			return choice[i];
	return 0;
}

/* Where it fails (kernel.perf_event_paranoid, no signal to have) the thread is looked at again and again. */
static void set_trap(const ut_tracee *t, ut_escort *h)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_BREAKPOINT,
		.size = sizeof(attr),
		.bp_type = HW_BREAKPOINT_X,
		.bp_addr = h->pc,
		.bp_len = sizeof(long),
		.sample_period = 1,
		.exclude_kernel = 1,
		.exclude_hv = 1,
		.disabled = 1,
	};
	struct f_owner_ex owner = {F_OWNER_TID, h->tid};
	int fd;

	h->signal = h->pc ? harmless_signal(t, h->tid) : 0;
	if (!h->signal)
		return;
	fd = syscall(SYS_perf_event_open, &attr, h->tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
	if (fd < 0)
		return;
	if (fcntl(fd, F_SETOWN_EX, &owner) || fcntl(fd, F_SETSIG, h->signal) || fcntl(fd, F_SETFL, O_ASYNC) ||
	    ioctl(fd, PERF_EVENT_IOC_REFRESH, 1)) {
		close(fd);
		return;
	}
	h->trap = fd;
}

static int is_trap(const ut_escort *h)
{
	siginfo_t what;

	return h->trap >= 0 && !trace(PTRACE_GETSIGINFO, h->tid, NULL, &what) && what.si_signo == h->signal &&
	       what.si_code > 0 && what.si_fd == h->trap;
}

static void forget_escort(ut_tracee *t, ut_escort *h)
{
	if (h->trap >= 0)
		close(h->trap);
	*h = t->calls.v[--t->calls.n];
}

static int add_escort(ut_tracee *t, const ut_escort *found)
{
	ut_escort *h;

	TRY(VEC_PUSH(t->calls.v, t->calls.n, t->calls.cap, *found));
	h = &t->calls.v[t->calls.n - 1];
	set_trap(t, h);
	t->calls.careful = 1;
	return 1;
}

static int escort(ut_tracee *t, const ut_escort *found)
{
	int err;

	ut_seizing_begin(t);
	err = ut_seize(t, found->tid);
	ut_seizing_end(t);
	if (err)
		return err == -ESRCH ? 0 : err;
	return add_escort(t, found);
}

int ut_escort_seized(ut_tracee *t, int tid)
{
	ut_escort found;

	if (!t->calls.careful || !look_at_call(t, tid, &found))
		return 0;
	t->calls.busy_tid = tid;
	t->calls.busy_nr = found.nr;
	TRY(add_escort(t, &found));
	return UT_BUSY;
}

static int is_ours(const ut_tracee *t, int tid)
{
	int at = ut_tracee_index(t, tid);

	for (size_t i = 0; i < t->calls.n; i++)
		if (t->calls.v[i].tid == tid)
			return 1;
	return at >= 0 && t->threads[at].state == UT_THREAD_ASKED;
}

/* Escort the threads that are in such a call and have no escort yet, or only look for them; returns how many. `*listed`: how many
 * threads it has looked at. */
static int escort_listed(ut_tracee *t, int only_look, long *listed)
{
	AUTO_DIR dir = ut_open_tasks(t->pid);
	int fresh = 0, err = 0, tid;

	if (!dir)
		return -errno;
	t->calls.nawake = 0;
	for (*listed = 0; err >= 0 && (tid = ut_next_task(dir)); ++*listed) {
		ut_escort found;

		if (is_ours(t, tid) || !look_at_call(t, tid, &found))
			continue;
		err = only_look ? 1 : escort(t, &found);
		fresh += err > 0;
	}
	return err < 0 ? err : fresh;
}

/* The same. A listing ends early where a thread ends under it. */
static int escort_new(ut_tracee *t, int only_look)
{
	int fresh = 0;

	for (int i = 0; i < LISTINGS; i++) {
		long listed = 0;
		int r = escort_listed(t, only_look, &listed);

		TRY(r);
		fresh += r;
		if (ut_count_tasks(t->pid) <= listed)
			break;
	}
	return fresh;
}

/* Ask a thread to stop that is out of its call. */
static int give_over(ut_tracee *t, ut_escort *h)
{
	int tid = h->tid, out = h->out;

	trace(PTRACE_INTERRUPT, tid, NULL, NULL);
	forget_escort(t, h); /* after: who runs past the trap goes into the next such call */
	if (out)
		trace(PTRACE_CONT, tid, NULL, NULL);
	return ut_add_thread(t, tid);
}

/* 0: in its call. 1: it stands at the call's end. 2: it is out, and runs. -ESRCH: it has ended. */
static int poll_escort(ut_tracee *t, ut_escort *h)
{
	int status, r;

	if (h->out)
		return 1;
	r = waitpid(h->tid, &status, __WALL | WNOHANG);
	if (!r && is_still_in(t, h)) {
		h->left_ns = 0; /* a signal handler may have been between */
		return 0;
	}
	if (!r && h->trap >= 0) {
		/* On its way to the trap: taken out of there, it would be in the next such call before it can be stopped. */
		if (!h->left_ns)
			h->left_ns = ut_now_ns();
		return ut_now_ns() - h->left_ns < ON_ITS_WAY_NS ? 0 : 2;
	}
	if (r <= 0)
		return r ? -ESRCH : 2;
	if (!WIFSTOPPED(status)) {
		note_end(t, h->tid, status);
		return -ESRCH;
	}
	/* A group stop (job control) has ended the call by itself. */
	h->out = status >> 16 == PTRACE_EVENT_STOP || is_trap(h);
	if (!h->out)
		trace(PTRACE_CONT, h->tid, NULL, (void *)(long)WSTOPSIG(status));
	return h->out;
}

/* Returns how many are in their calls. */
static int poll_all(ut_tracee *t)
{
	int in = 0;

	for (size_t i = 0; i < t->calls.n;) {
		ut_escort *h = &t->calls.v[i];
		int r = poll_escort(t, h);

		if (r == 2) {
			TRY(give_over(t, h));
			continue;
		}
		if (r < 0) {
			ut_forget_wait(t, h->tid);
			forget_escort(t, h);
			continue;
		}
		if (!r) {
			t->calls.busy_tid = h->tid;
			t->calls.busy_nr = h->nr;
			in++;
		}
		i++;
	}
	return in;
}

/* No thread stands because another is in its call: the former may have to answer that call. */
static void release_out(ut_tracee *t)
{
	for (size_t i = 0; i < t->calls.n;) {
		ut_escort *h = &t->calls.v[i];

		if (!h->out) {
			i++;
			continue;
		}
		trace(PTRACE_DETACH, h->tid, NULL, NULL);
		ut_forget_wait(t, h->tid);
		forget_escort(t, h);
	}
}

int ut_is_in_call(ut_tracee *t)
{
	return escort_new(t, 1);
}

/* One look at all; returns how many are in their calls, the last of them at *at. */
static int look_at_all(ut_tracee *const *v, size_t n, size_t *at)
{
	int in = 0;

	for (size_t i = 0; i < n; i++) {
		int r = poll_all(v[i]);

		if (!r)
			r = escort_new(v[i], 0);
		if (r == -ESRCH)
			continue; /* the stop says so */
		if (r)
			*at = i;
		if (r < 0)
			return r;
		in += r;
	}
	return in;
}

static int settle_calls(ut_tracee *t)
{
	int in = poll_all(t);

	release_out(t);
	return in;
}

int ut_tracee_settle(ut_tracee *t, int64_t timeout_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;
	struct timespec nap = {0, 1000000};

	ut_ask_again(t);
	for (;;) {
		int pending;

		for (size_t i = 0; i < t->n; i++)
			if (t->threads[i].state == UT_THREAD_ASKED)
				ut_poll_thread(t, &t->threads[i]);
		ut_reap_first(t);
		pending = settle_calls(t); /* first: whom that asks to stop is pending then */
		pending += ut_tracee_resume(t);
		if (!pending || ut_now_ns() >= deadline)
			return pending;
		nanosleep(&nap, NULL);
	}
}

int ut_await_calls_of(ut_tracee *const *v, size_t n, int64_t timeout_ns, size_t *at)
{
	int64_t deadline = ut_now_ns() + timeout_ns;
	const struct timespec nap = {0, 250000};
	int r;

	for (size_t i = 0; i < n; i++) {
		v[i]->seizing.end_ns = deadline;
		ut_keep_asked(v[i]);
	}
	while ((r = look_at_all(v, n, at))) {
		if (r < 0)
			return r;
		for (size_t i = 0; i < n; i++)
			release_out(v[i]);
		if (ut_now_ns() >= deadline)
			return UT_BUSY;
		for (size_t i = 0; i < n; i++) {
			ut_tracee_settle(v[i], 0);
			ut_keep_asked(v[i]);
		}
		nanosleep(&nap, NULL);
	}
	/* Not before: who stands already may be the one that has to answer another's call. */
	for (size_t i = 0; i < n; i++)
		while (v[i]->calls.n) {
			*at = i;
			TRY(give_over(v[i], v[i]->calls.v));
		}
	return 0;
}

int ut_await_calls(ut_tracee *t, int64_t timeout_ns)
{
	size_t at;

	return ut_await_calls_of(&t, 1, timeout_ns, &at);
}

/* Who is in such a call after all this time is taken out of it: else his signals would wait for us for ever. */
void ut_close_calls(ut_tracee *t)
{
	if (t->calls.n)
		ut_tracee_settle(t, CLOSE_NS);
	if (t->calls.n) {
		while (t->calls.n && !give_over(t, t->calls.v))
			;
		ut_tracee_settle(t, CLOSE_NS); /* they stop now, their calls are mended, and they are let go */
	}
	free(t->calls.awake);
	free(t->calls.v);
	t->calls.v = NULL;
}
