/* System calls that a stop has interrupted. */
#include "compat.h"
#include "tracee_parts.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>

/* ZF and SF together: no arithmetic instruction leaves both set, so a thread that still has both has
 * executed none since they were set. No ABI keeps these flags over a system call. */
#define MARK (0x40ul | 0x80ul)

int ut_read_remote(int tid, uint64_t addr, void *to, size_t len)
{
	struct iovec local = {to, len}, remote = {(void *)addr, len};

	return process_vm_readv(tid, &local, 1, &remote, 1, 0) == (ssize_t)len ? 0 : -EFAULT;
}

static int64_t remote_timespec(int tid, uint64_t addr)
{
	struct timespec ts;

	if (!addr || ut_read_remote(tid, addr, &ts, sizeof(ts)))
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

	if (!addr || ut_read_remote(tid, addr, &tv, sizeof(tv)) || tv.tv_sec > 1000000000)
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
	if ((int64_t)r->rax == -ERESTART_RESTARTBLOCK && ut_seccomp_mode(t->pid, tid))
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

void ut_forget_wait(ut_tracee *t, int tid)
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
int ut_note_stop(ut_tracee *t, ut_thread *th)
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
		ut_forget_wait(t, th->tid);
		return 0;
	}
	r->rax = -ERESTARTNOHAND;
	marked = (r->eflags & MARK) == MARK;
	if (limit < 0) {
		ut_forget_wait(t, th->tid);
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
			ut_forget_wait(t, th->tid);
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
