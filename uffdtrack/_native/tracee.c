#include "compat.h"
#include "tracee.h"
#include "maps.h"

#include <cpuid.h>
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(struct user_regs_struct) == UT_NREGS * 8, "user_regs_struct");

/* In-kernel error: repeat the call unless a signal handler ran, then EINTR
 * (include/linux/errno.h; arch_do_signal_or_restart in arch/x86/kernel/signal.c). */
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516
/* ZF and SF together: no arithmetic instruction leaves both set, so a thread that still has both has
 * executed none since they were set. No ABI keeps these flags over a system call. */
#define MARK (0x40ul | 0x80ul)
#define TRY(call)                                                                                  \
	do {                                                                                       \
		int try_err = (call);                                                              \
		if (try_err < 0)                                                                   \
			return try_err;                                                            \
	} while (0)

int64_t ut_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static struct user_regs_struct *regs_of(ut_thread *th)
{
	return (struct user_regs_struct *)th->regs;
}

static long trace(int request, int tid, void *addr, void *data)
{
	long r = syscall(SYS_ptrace, request, tid, addr, data);

	return r < 0 ? -errno : r;
}

/* A thread that calls exec ends all others and waits until each end has been collected by its tracer; a PTRACE_SEIZE
 * of any of them waits for that exec. So who seizes several threads can wait for an exec that waits for him. A
 * timer's signal takes us out of the wait: its handler collects, and the kernel repeats the call. */
#define NUDGE (SIGRTMAX - 3)
#define NUDGE_NS 5000000

/* Threads that were killed while they were ours. Asked without WNOWAIT, waitid(2) takes the stop of one that lives. */
static void collect_killed(ut_tracee *t)
{
	for (size_t i = 0; i < t->n; i++) {
		ut_thread *th = &t->threads[i];
		siginfo_t what = {0};

		if (th->state == UT_THREAD_DEAD || th->tid == t->pid ||
		    waitid(P_PID, th->tid, &what, WEXITED | WNOHANG | WNOWAIT | __WALL))
			continue;
		if (what.si_code != CLD_EXITED && what.si_code != CLD_KILLED && what.si_code != CLD_DUMPED)
			continue;
		if (waitpid(th->tid, NULL, WNOHANG | __WALL) == th->tid)
			th->state = UT_THREAD_DEAD;
	}
}

static void on_nudge(int number, siginfo_t *info, void *context)
{
	ut_tracee *t = info->si_value.sival_ptr;
	int kept = errno;

	if (info->si_code == SI_TIMER && t->seizing)
		collect_killed(t);
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
	syscall(SYS_timer_delete, t->nudge);
	close(t->pidfd);
	free(t->threads);
	free(t->xstate);
	free(t->waits);
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

/* 1: no process any more that could be stopped. */
static int is_dead(int pid, int tid)
{
	char path[64], text[512], *p;
	int fd, n;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 1;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return 1;
	text[n] = 0;
	p = strrchr(text, ')');
	return !p || p[2] == 'Z' || p[2] == 'X';
}

int ut_live_thread(int pid)
{
	char path[32];
	struct dirent *e;
	int found = -ESRCH;
	DIR *dir;

	if (!is_dead(pid, pid))
		return pid;
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return -ESRCH;
	while (found < 0 && (e = readdir(dir))) {
		int tid = atoi(e->d_name);

		if (tid > 0 && !is_dead(pid, tid))
			found = tid;
	}
	closedir(dir);
	/* It may have called exec meanwhile, and have the first one's id. */
	return found < 0 && !is_dead(pid, pid) ? pid : found;
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

static int read_remote(int tid, uint64_t addr, void *to, size_t len)
{
	struct iovec local = {to, len}, remote = {(void *)addr, len};

	return process_vm_readv(tid, &local, 1, &remote, 1, 0) == (ssize_t)len ? 0 : -EFAULT;
}

static int64_t remote_timespec(int tid, uint64_t addr)
{
	struct timespec ts;

	if (!addr || read_remote(tid, addr, &ts, sizeof(ts)))
		return -1;
	if (ts.tv_sec > 1000000000)
		return -1;
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static int64_t socket_limit(const ut_tracee *t, int tid, int fd, int option)
{
	struct timeval tv = {0};
	socklen_t len = sizeof(tv);
	int64_t limit = -1;
	int own = ut_tracee_getfd(t, tid, fd);

	if (own < 0)
		return -1;
	if (!getsockopt(own, SOL_SOCKET, option, &tv, &len) && (tv.tv_sec || tv.tv_usec))
		limit = tv.tv_sec * 1000000000ll + tv.tv_usec * 1000ll;
	close(own);
	return limit;
}

static int64_t remote_timeval(int tid, uint64_t addr)
{
	struct timeval tv;

	if (!addr || read_remote(tid, addr, &tv, sizeof(tv)) || tv.tv_sec > 1000000000)
		return -1;
	return tv.tv_sec * 1000000000ll + tv.tv_usec * 1000;
}

/* Calls that a stop ends with EINTR, since the kernel never restarts them (signal(7)), and that may
 * be repeated: nothing was done yet. The time limit of the call in ns or -1, and what the call
 * returns when that is over. */
static int never_restarted(const ut_tracee *t, int tid, const struct user_regs_struct *r,
			   int64_t *limit_ns, int64_t *expired)
{
	*limit_ns = -1;
	*expired = 0;
	switch ((int64_t)r->orig_rax) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
		if ((int32_t)r->r10 >= 0)
			*limit_ns = (int32_t)r->r10 * 1000000ll;
		return 1;
	case 441: /* epoll_pwait2 */
		*limit_ns = remote_timespec(tid, r->r10);
		return 1;
	/* EINTR where the kernel cannot write back the time that was left: a constant, a read-only page. When such a
	 * select ends by its limit its sets have to be emptied, which we do not, so that one starts anew. */
	case SYS_ppoll:
		*limit_ns = remote_timespec(tid, r->rdx);
		return 1;
	case SYS_select:
	case SYS_pselect6:
		if (!r->rsi && !r->rdx && !r->r10)
			*limit_ns = r->orig_rax == SYS_select ? remote_timeval(tid, r->r8)
							      : remote_timespec(tid, r->r8);
		return 1;
	case SYS_semtimedop:
		*limit_ns = remote_timespec(tid, r->r10);
		*expired = -EAGAIN;
		return 1;
	case SYS_rt_sigtimedwait:
		*limit_ns = remote_timespec(tid, r->rdx);
		*expired = -EAGAIN;
		return 1;
	case SYS_io_getevents:
	case SYS_io_pgetevents:
		*limit_ns = remote_timespec(tid, r->r8);
		return 1;
	case SYS_read:
	case SYS_readv:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_recvmmsg:
	case SYS_accept:
	case SYS_accept4:
		*limit_ns = socket_limit(t, tid, r->rdi, SO_RCVTIMEO);
		*expired = -EAGAIN;
		return 1;
	case SYS_write:
	case SYS_writev:
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_sendmmsg:
	case SYS_connect:
		*limit_ns = socket_limit(t, tid, r->rdi, SO_SNDTIMEO);
		*expired = r->orig_rax == SYS_connect ? -EINPROGRESS : -EAGAIN;
		return 1;
	case SYS_semop:
	case SYS_fallocate:
	case 426: /* io_uring_enter */
		return 1;
	default:
		return 0;
	}
}

/* Calls that the kernel restarts through restart_syscall(2), with the time that was left. A seccomp
 * filter may forbid that one, so threads under a filter repeat the call itself. */
static int restarted_by_block(int tid, const struct user_regs_struct *r, int64_t *limit_ns,
			      int64_t *expired)
{
	*limit_ns = -1;
	*expired = 0;
	switch ((int64_t)r->orig_rax) {
	case SYS_nanosleep:
		*limit_ns = remote_timespec(tid, r->rdi);
		return 1;
	case SYS_clock_nanosleep:
		if (!(r->rsi & 1)) /* TIMER_ABSTIME */
			*limit_ns = remote_timespec(tid, r->rdx);
		return 1;
	case SYS_poll:
		if ((int32_t)r->rdx >= 0)
			*limit_ns = (int32_t)r->rdx * 1000000ll;
		return 1;
	case SYS_futex:
		if ((r->rsi & 0x7f) == 0) /* FUTEX_WAIT: relative; the others are absolute */
			*limit_ns = remote_timespec(tid, r->r10);
		*expired = -ETIMEDOUT;
		return 1;
	default:
		return 0;
	}
}

static int to_repeat(const ut_tracee *t, int tid, const struct user_regs_struct *r,
		     int64_t *limit_ns, int64_t *expired)
{
	if ((int64_t)r->orig_rax < 0)
		return 0;
	if ((int64_t)r->rax == -EINTR)
		return never_restarted(t, tid, r, limit_ns, expired);
	if ((int64_t)r->rax == -ERESTART_RESTARTBLOCK && t->seccomp)
		return restarted_by_block(tid, r, limit_ns, expired);
	return 0;
}

static ut_wait *wait_of(ut_tracee *t, int tid)
{
	for (size_t i = 0; i < t->nwaits; i++)
		if (t->waits[i].tid == tid)
			return &t->waits[i];
	if (t->nwaits == t->waits_cap) {
		size_t cap = t->waits_cap ? t->waits_cap * 2 : 16;
		ut_wait *v = realloc(t->waits, cap * sizeof(*v));

		if (!v)
			return NULL;
		t->waits = v;
		t->waits_cap = cap;
	}
	t->waits[t->nwaits] = (ut_wait){.tid = tid};
	return &t->waits[t->nwaits++];
}

static void forget_wait(ut_tracee *t, int tid)
{
	for (size_t i = 0; i < t->nwaits; i++)
		if (t->waits[i].tid == tid) {
			t->waits[i] = t->waits[--t->nwaits];
			return;
		}
}

/* A thread has stopped: take its registers, and undo what the stop did to the call it was in.
 *
 * The kernel restarts most calls by itself. Those that it never restarts have EINTR in rax by now:
 * ERESTARTNOHAND there gives them the rule of the others (repeat, EINTR only if a handler runs), in
 * the kernel, so no signal can fall in between. Repeating starts a relative time limit anew; with
 * many stops it would never end. So the deadline is kept here while the thread stays in that one
 * call, which MARK tells, and a call that is past it returns as timed out. */
static int on_stop(ut_tracee *t, ut_thread *th)
{
	struct user_regs_struct *r = regs_of(th);
	int64_t limit, expired, now;
	int marked, err;
	ut_wait *w;

	err = trace(PTRACE_GETREGS, th->tid, NULL, r);
	if (err)
		return err;
	th->worker = !r->rip && !r->rsp;
	th->state = UT_THREAD_STOPPED;
	if (th->worker || !to_repeat(t, th->tid, r, &limit, &expired)) {
		forget_wait(t, th->tid);
		return 0;
	}
	r->rax = -ERESTARTNOHAND;
	marked = (r->eflags & MARK) == MARK;
	if (limit < 0) {
		forget_wait(t, th->tid);
		return trace(PTRACE_SETREGS, th->tid, NULL, r);
	}
	w = wait_of(t, th->tid);
	if (!w)
		return -ENOMEM;
	now = ut_now_ns();
	if (marked && w->nr == (int64_t)r->orig_rax && w->rip == r->rip) {
		r->eflags = w->eflags;
		if (now >= w->deadline_ns) {
			r->rax = expired;
			forget_wait(t, th->tid);
			return trace(PTRACE_SETREGS, th->tid, NULL, r);
		}
	} else {
		*w = (ut_wait){th->tid, r->orig_rax, r->rip, r->eflags, now + limit};
	}
	/* The mark is for the live thread only; th->regs, which the image gets, has the true flags. */
	struct user_regs_struct live = *r;

	live.eflags |= MARK;
	return trace(PTRACE_SETREGS, th->tid, NULL, &live);
}

int ut_same_memory(int a, int b)
{
	long r = syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0);

	return r < 0 ? -errno : r == 0;
}

static int leader_died(ut_tracee *t, int tid, int status)
{
	if (tid == t->pid)
		t->exit_status = status;
	return 0;
}

static int add_thread(ut_tracee *t, int tid)
{
	if (t->n == t->cap) {
		size_t cap = t->cap ? t->cap * 2 : 16;
		ut_thread *v = realloc(t->threads, cap * sizeof(*v));

		if (!v)
			return -ENOMEM;
		t->threads = v;
		t->cap = cap;
	}
	t->threads[t->n++] = (ut_thread){.tid = tid};
	return 0;
}

/* A thread of ours has gone without a word: it has called exec, and lives on under the id of the first thread,
 * which it has replaced. It is ours still, and so is its stop, if it has been asked for one yet. */
static int took_over(ut_tracee *t)
{
	int at = ut_tracee_index(t, t->pid);

	if (at >= 0)
		t->threads[at].state = UT_THREAD_PENDING;
	else
		TRY(add_thread(t, t->pid));
	trace(PTRACE_INTERRUPT, t->pid, NULL, NULL);
	return 0;
}

/* 1: the thread has stopped or is dead. 0: not yet. */
static int poll_thread(ut_tracee *t, ut_thread *th)
{
	int status, r = waitpid(th->tid, &status, __WALL | WNOHANG);

	if (!r)
		return 0;
	if (r < 0) {
		th->state = UT_THREAD_DEAD;
		return th->tid == t->pid ? 1 : took_over(t);
	}
	if (!WIFSTOPPED(status)) {
		th->state = UT_THREAD_DEAD;
		leader_died(t, th->tid, status);
		return 1;
	}
	if (status >> 16 == PTRACE_EVENT_STOP) {
		int err = on_stop(t, th);

		if (err == -ESRCH)
			return 0; /* killed meanwhile; its end is reported next */
		return err ? err : 1;
	}
	/* A signal on its way: let it through. The trap that we asked for is still to come. */
	trace(PTRACE_CONT, th->tid, NULL, (void *)(long)WSTOPSIG(status));
	return 0;
}

static int wait_all(ut_tracee *t, int64_t deadline)
{
	int64_t spin_until = ut_now_ns() + 400000;
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
		if (now >= deadline)
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
	int err = -EPERM;

	for (int i = 0; i < 3 && err == -EPERM; i++) {
		t->seizing = 1;
		err = trace(PTRACE_SEIZE, tid, NULL, (void *)PTRACE_O_TRACESYSGOOD);
		t->seizing = 0;
		if (err && is_dead(t->pid, tid))
			return -ESRCH;
	}
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
		err = add_thread(t, tid);
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
			th->state = UT_THREAD_DEAD; /* killed while it stood */
			continue;
		}
		th->xstate_len = iov.iov_len;
	}
	return 0;
}

int ut_tracee_stop(ut_tracee *t, int64_t timeout_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;
	size_t kept = 0;
	int r;

	/* A thread that an earlier stop still waits for is ours already. */
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_PENDING)
			t->threads[kept++] = t->threads[i];
	t->n = kept;
	if (kept) {
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
		pending = ut_tracee_resume(t);
		if (!pending || ut_now_ns() >= deadline)
			return pending;
		nanosleep(&nap, NULL);
	}
}

/* Wait until a thread in an injected call stops; *status as waitpid's. */
static int wait_stop(ut_tracee *t, ut_thread *th, int *status)
{
	int r;

	do
		r = waitpid(th->tid, status, __WALL);
	while (r < 0 && errno == EINTR);
	if (r < 0 || !WIFSTOPPED(*status)) {
		th->state = UT_THREAD_DEAD;
		if (r >= 0)
			leader_died(t, th->tid, *status);
		return -ESRCH;
	}
	if (!(*status >> 16) && WSTOPSIG(*status) == SIGSTOP)
		t->held_stop = th->tid; /* cannot be blocked; given back by ut_inject_end */
	return 0;
}

static int find_syscall(ut_tracee *t)
{
	ut_maps maps = {0};
	uint8_t *text = NULL;
	int err, tid;

	if (t->syscall_addr)
		return 0;
	tid = t->threads[ut_tracee_pick(t)].tid;
	err = ut_maps_read(&maps, t->pid, tid);
	if (err)
		return err;
	err = -ENOENT;
	/* The vdso has one; it is the first choice since no file is behind it. */
	for (int vdso = 1; vdso >= 0 && err; vdso--) {
		for (size_t i = 0; i < maps.n && err; i++) {
			const ut_region *r = &maps.regions[i];
			size_t len = r->end - r->start;

			if (!(r->prot & 4) || !(r->prot & 1) || (r->kind == UT_KIND_VDSO) != vdso)
				continue;
			len = len > (1 << 20) ? 1 << 20 : len;
			text = realloc(text, len);
			if (!text || read_remote(tid, r->start, text, len))
				continue;
			for (size_t k = 0; k + 1 < len && err; k++)
				if (text[k] == 0x0f && text[k + 1] == 0x05) {
					t->syscall_addr = r->start + k;
					err = 0;
				}
		}
	}
	free(text);
	ut_maps_free(&maps);
	return err;
}

int ut_inject_begin(ut_tracee *t, size_t index, int suspend_seccomp)
{
	ut_thread *th = &t->threads[index];
	uint64_t all = ~0ull;
	long options = PTRACE_O_TRACESYSGOOD;
	int err;

	if (regs_of(th)->cs != 0x33) /* __USER_CS: the thread runs 32-bit code */
		return -ENOEXEC;
	err = find_syscall(t);
	if (err)
		return err;
	t->held_stop = 0;
	if (suspend_seccomp)
		options |= 1 << 21; /* PTRACE_O_SUSPEND_SECCOMP, Linux 4.3 */
	err = trace(PTRACE_SETOPTIONS, th->tid, NULL, (void *)options);
	if (err)
		return err;
	t->inject_sigmask = th->sigmask;
	return trace(PTRACE_SETSIGMASK, th->tid, (void *)8, &all);
}

static int run_to(ut_tracee *t, ut_thread *th, int request, int want)
{
	int status, err;

	do {
		err = trace(request, th->tid, NULL, NULL);
		if (!err)
			err = wait_stop(t, th, &status);
		if (err)
			return err;
		/* Other stops on the way (a group stop, a SIGSTOP that is held) go on. */
	} while (want == PTRACE_EVENT_STOP ? status >> 16 != want
					   : status >> 8 != (SIGTRAP | 0x80));
	return 0;
}

static int start_call(ut_tracee *t, ut_thread *th, int64_t nr, const uint64_t args[6])
{
	struct user_regs_struct r = *regs_of(th);

	r.rip = t->syscall_addr;
	r.rax = nr;
	r.orig_rax = -1; /* no call to restart */
	r.rdi = args[0];
	r.rsi = args[1];
	r.rdx = args[2];
	r.r10 = args[3];
	r.r8 = args[4];
	r.r9 = args[5];
	return trace(PTRACE_SETREGS, th->tid, NULL, &r);
}

int ut_inject(ut_tracee *t, size_t index, int64_t nr, const uint64_t args[6], int64_t *result)
{
	ut_thread *th = &t->threads[index];
	struct user_regs_struct r;
	int err = start_call(t, th, nr, args);

	for (int i = 0; i < 2 && !err; i++) /* entry, exit */
		err = run_to(t, th, PTRACE_SYSCALL, 0);
	if (!err)
		err = trace(PTRACE_GETREGS, th->tid, NULL, &r);
	if (err)
		return err;
	*result = r.rax;
	return 0;
}

int ut_inject_exit(ut_tracee *t, size_t index)
{
	ut_thread *th = &t->threads[index];
	const uint64_t args[6] = {0};
	int status, err = start_call(t, th, SYS_exit, args);

	if (err)
		return err;
	do {
		err = trace(PTRACE_CONT, th->tid, NULL, NULL);
		if (err)
			return err == -ESRCH ? 0 : err;
	} while (!wait_stop(t, th, &status));
	return 0;
}

/* Back to the stop that the thread was in: only there the kernel looks at rax and orig_rax and
 * restarts the call that the thread was taken out of. */
int ut_inject_end(ut_tracee *t, size_t index)
{
	ut_thread *th = &t->threads[index];
	int err = trace(PTRACE_INTERRUPT, th->tid, NULL, NULL);

	if (!err)
		err = run_to(t, th, PTRACE_CONT, PTRACE_EVENT_STOP);
	if (!err)
		err = trace(PTRACE_SETOPTIONS, th->tid, NULL, (void *)PTRACE_O_TRACESYSGOOD);
	if (!err)
		err = trace(PTRACE_SETREGS, th->tid, NULL, th->regs);
	if (!err)
		err = trace(PTRACE_SETSIGMASK, th->tid, (void *)8, &t->inject_sigmask);
	if (t->held_stop) {
		syscall(SYS_tgkill, t->pid, t->held_stop, SIGSTOP);
		t->held_stop = 0;
	}
	return err;
}

int ut_tracee_set(ut_tracee *t, size_t index, const uint64_t *regs, const uint8_t *xstate,
		  size_t xstate_len, uint64_t sigmask)
{
	ut_thread *th = &t->threads[index];
	struct iovec iov = {(void *)xstate, xstate_len};
	struct user_regs_struct *r = regs_of(th);
	int err;

	memcpy(r, regs, sizeof(*r));
	/* The block that a timed call restarts from is the thread's present one, not the one of then:
	 * the call itself is repeated. */
	if ((int64_t)r->orig_rax >= 0 && (int64_t)r->rax == -ERESTART_RESTARTBLOCK)
		r->rax = -ERESTARTNOHAND;
	th->sigmask = sigmask;
	forget_wait(t, th->tid);
	err = trace(PTRACE_SETREGS, th->tid, NULL, r);
	if (!err)
		err = trace(PTRACE_SETREGSET, th->tid, (void *)NT_X86_XSTATE, &iov);
	if (!err)
		err = trace(PTRACE_SETSIGMASK, th->tid, (void *)8, &sigmask);
	return err;
}

static int make_uffd(int pid, int suspend_seccomp, int user_mode_only)
{
	uint64_t flags = O_CLOEXEC | O_NONBLOCK | (user_mode_only ? UFFD_USER_MODE_ONLY : 0);
	int64_t fd = -1, ignored;
	ut_tracee *t;
	int own = -1, at, err = ut_tracee_open(pid, &t);

	if (err)
		return err;
	err = ut_tracee_stop(t, 5000000000ll);
	if (err)
		goto out;
	at = ut_tracee_pick(t);
	err = ut_inject_begin(t, at, suspend_seccomp);
	if (err)
		goto out;
	err = ut_inject(t, at, SYS_userfaultfd, (uint64_t[6]){flags}, &fd);
	if (!err && fd < 0)
		err = fd;
	if (!err) {
		own = ut_tracee_getfd(t, t->threads[at].tid, fd);
		if (own < 0)
			err = own;
		if (ut_inject(t, at, SYS_close, (uint64_t[6]){fd}, &ignored))
			err = -ESRCH;
	}
	if (t->threads[at].state == UT_THREAD_STOPPED) {
		int end = ut_inject_end(t, at);

		if (!err)
			err = end;
	}
out:
	if (ut_tracee_resume(t))
		ut_tracee_settle(t, 30000000000ll);
	ut_tracee_close(t);
	if (err && own >= 0)
		close(own);
	return err ? err : own;
}

static void send_fd(int sock, int fd)
{
	char room[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {&fd, sizeof(fd)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd >= 0) {
		msg.msg_control = room;
		msg.msg_controllen = sizeof(room);
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	sendmsg(sock, &msg, MSG_NOSIGNAL);
}

static int receive_fd(int sock)
{
	char room[CMSG_SPACE(sizeof(int))];
	int fd = -ESRCH;
	struct iovec iov = {&fd, sizeof(fd)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room,
			     .msg_controllen = sizeof(room)};
	ssize_t n;

	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n != sizeof(fd))
		return -ECHILD;
	if (fd >= 0) {
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

		if (!c)
			return -ECHILD;
		memcpy(&fd, CMSG_DATA(c), sizeof(int));
	}
	return fd;
}

int ut_attach_uffd(int pid, int suspend_seccomp, int user_mode_only)
{
	int pair[2], fd, child;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	child = fork();
	if (child < 0) {
		fd = -errno;
		close(pair[0]);
		close(pair[1]);
		return fd;
	}
	if (!child) {
		sigset_t all;

		sigfillset(&all);
		sigprocmask(SIG_SETMASK, &all, NULL);
		setsid();
		close(pair[0]);
		send_fd(pair[1], make_uffd(pid, suspend_seccomp, user_mode_only));
		_exit(0);
	}
	close(pair[1]);
	fd = receive_fd(pair[0]);
	close(pair[0]);
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	/* Yama's scope 1 lets ancestors trace, not their other children. */
	if (fd == -EPERM)
		fd = make_uffd(pid, suspend_seccomp, user_mode_only);
	return fd;
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
