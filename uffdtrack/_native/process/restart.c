/* System calls that a stop has interrupted. */
#include "compat.h"
#include "tracee_parts.h"
#include "vec.h"

#include <asm/termbits.h>
#include <asm/ioctls.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>

/* ZF and SF together: no arithmetic instruction leaves both set, so a thread that still has both has
 * executed none since they were set. No ABI keeps these flags over a system call. */
#define MARK (0x40ul | 0x80ul)

/* How long a call that begins anew is left alone after a stop has broken it off. If that was not enough it is twice
 * what it had, so that every call ends, after four times its time at most. */
#define PATIENCE_NS 250000000ll
#define MAX_PATIENCE_NS 60000000000ll

static int64_t remote_timespec(int tid, uint64_t addr)
{
	struct timespec ts;

	if (!addr || ut_read_remote(tid, addr, &ts, sizeof(ts)))
		return -1;
	if (ts.tv_sec > 1000000000)
		return -1;
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

/* The type of the file that a descriptor is of, or 0, without asking a file system that may be the target itself.
 * Nor may the descriptor be duplicated for it: closing the duplicate is a flush(2) of that file system's. */
static unsigned type_of(int pid, int tid, int fd)
{
	char path[64];
	struct statx st;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd/%d", pid, tid, fd);
	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE, &st))
		return 0;
	return st.stx_mode & S_IFMT;
}

static int64_t socket_limit(const ut_tracee *t, int tid, int fd, int option)
{
	struct timeval tv = {0};
	socklen_t len = sizeof(tv);
	int64_t limit = -1;
	int own = type_of(t->pid, tid, fd) == S_IFSOCK ? ut_tracee_getfd(t, tid, fd) : -1;

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

/* The same for io_uring_enter, whose limit is in a struct io_uring_getevents_arg. */
static int64_t ring_limit(int tid, const struct user_regs_struct *r)
{
	uint64_t arg[3]; /* sigmask, its size and more, the address of the limit */

	if (!(r->r10 & 1u << 3) || ut_read_remote(tid, r->r8, arg, sizeof(arg))) /* IORING_ENTER_EXT_ARG */
		return -1;
	return r->r10 & 1u << 5 ? -1 : remote_timespec(tid, arg[2]); /* IORING_ENTER_ABS_TIMER */
}

int ut_call_rule(int64_t nr)
{
	switch (nr) {
	/* Done, whatever it returns: close(2) has given the number away, and another thread may have it by now. What
	 * restart_syscall says is not the result of a call that could be made again. */
	case SYS_close:
	case SYS_restart_syscall:
		return UT_CALL_LEAVE;
	/* A driver that has a call which may be made again says ERESTARTSYS. */
	case SYS_ioctl:
		return UT_CALL_DRIVER;
	case SYS_read:
	case SYS_readv:
	case SYS_pread64:
	case SYS_preadv:
	case SYS_preadv2:
	case SYS_write:
	case SYS_writev:
	case SYS_pwrite64:
	case SYS_pwritev:
	case SYS_pwritev2:
		return UT_CALL_FILE;
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_ppoll:
	case SYS_select:
	case SYS_pselect6:
	case SYS_semop:
	case SYS_semtimedop:
	case SYS_rt_sigtimedwait:
	case SYS_io_getevents:
	case SYS_io_pgetevents:
	case SYS_io_uring_enter:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_recvmmsg:
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_sendmmsg:
	case SYS_accept:
	case SYS_accept4:
	case SYS_connect:
	case SYS_flock:
	case SYS_fcntl:
		return UT_CALL_WAIT;
	default:
		return UT_CALL_ANEW;
	}
}

/* The time limit of a call that is repeated, in ns or -1, and what the call returns when that is over. */
static void limit_of(const ut_tracee *t, int tid, const struct user_regs_struct *r, int64_t *limit_ns,
		     int64_t *expired)
{
	*limit_ns = -1;
	*expired = 0;
	switch ((int64_t)r->orig_rax) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
		if ((int32_t)r->r10 >= 0)
			*limit_ns = (int32_t)r->r10 * 1000000ll;
		return;
	case SYS_epoll_pwait2:
		*limit_ns = remote_timespec(tid, r->r10);
		return;
	/* EINTR where the kernel cannot write back the time that was left: a constant, a read-only page. When such a
	 * select ends by its limit its sets have to be emptied, which we do not, so that one starts anew. */
	case SYS_ppoll:
		*limit_ns = remote_timespec(tid, r->rdx);
		return;
	case SYS_select:
	case SYS_pselect6:
		if (!r->rsi && !r->rdx && !r->r10)
			*limit_ns = r->orig_rax == SYS_select ? remote_timeval(tid, r->r8)
							      : remote_timespec(tid, r->r8);
		return;
	case SYS_semtimedop:
		*limit_ns = remote_timespec(tid, r->r10);
		*expired = -EAGAIN;
		return;
	case SYS_rt_sigtimedwait:
		*limit_ns = remote_timespec(tid, r->rdx);
		*expired = -EAGAIN;
		return;
	case SYS_io_getevents:
	case SYS_io_pgetevents:
		*limit_ns = remote_timespec(tid, r->r8);
		return;
	case SYS_io_uring_enter:
		*limit_ns = ring_limit(tid, r);
		*expired = -ETIME;
		return;
	case SYS_read:
	case SYS_readv:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_recvmmsg:
	case SYS_accept:
	case SYS_accept4:
		*limit_ns = socket_limit(t, tid, r->rdi, SO_RCVTIMEO);
		*expired = -EAGAIN;
		return;
	case SYS_write:
	case SYS_writev:
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_sendmmsg:
	case SYS_connect:
		*limit_ns = socket_limit(t, tid, r->rdi, SO_SNDTIMEO);
		*expired = r->orig_rax == SYS_connect ? -EINPROGRESS : -EAGAIN;
		return;
	}
}

/* Requests of drivers that end with EINTR and have done nothing by then. */
static int may_repeat_request(uint64_t request, uint64_t argument)
{
	switch ((uint32_t)request) {
	case 0xae80: /* KVM_RUN: what was under way is completed when it is entered; immediate_exit ends it again */
		return 1;
	case TCSBRK: /* tcdrain(3); with 0 a break was sent, which would be sent again */
	case TCSBRKP:
		return argument && (uint32_t)request == TCSBRK;
	default:
		return 0;
	}
}

/* The limit of such a wait is in memory that the ring has been told of, where we cannot read it: repeated, it would begin
 * anew at each stop. Who waits so takes EINTR, which io_uring_enter(2) may say at any time. */
#define ENTER_EXT_ARG_REG (1u << 6)

/* The rule of a call that has ended with EINTR; where that is the descriptor's, by what it is of. */
static int rule_of(const ut_tracee *t, int tid, int64_t nr, uint64_t fd, uint64_t request, uint64_t argument)
{
	int rule = ut_call_rule(nr);
	unsigned type;

	if (rule != UT_CALL_DRIVER && rule != UT_CALL_FILE)
		return rule;
	if (rule == UT_CALL_DRIVER && may_repeat_request(request, argument))
		return UT_CALL_WAIT;
	type = type_of(t->pid, tid, fd);
	if (type == S_IFREG || type == S_IFDIR)
		return UT_CALL_ANEW;
	return rule == UT_CALL_DRIVER ? UT_CALL_LEAVE : UT_CALL_WAIT;
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

/* A call of int $0x80 has other numbers, and its arguments in other registers. */
static int is_native(int tid)
{
	struct ptrace_syscall_info info = {0};

	if (trace(PTRACE_GET_SYSCALL_INFO, tid, (void *)sizeof(info), &info) < 0) /* Linux 5.3 */
		return 1;
	return info.arch == AUDIT_ARCH_X86_64;
}

/* UT_CALL_LEAVE: what the thread has got stays. */
static int to_repeat(const ut_tracee *t, int tid, const struct user_regs_struct *r,
		     int64_t *limit_ns, int64_t *expired)
{
	int64_t nr = r->orig_rax, result = r->rax;
	int rule = UT_CALL_LEAVE;

	*limit_ns = -1;
	*expired = 0;
	if (nr < 0 || nr >= 0x40000000) /* __X32_SYSCALL_BIT */
		return UT_CALL_LEAVE;
	if (result == -ERESTART_RESTARTBLOCK)
		return ut_seccomp_mode(t->pid, tid) && is_native(tid) && restarted_by_block(tid, r, limit_ns, expired)
			       ? UT_CALL_WAIT
			       : UT_CALL_LEAVE;
	/* kernel/bpf/verifier.c gives up with EAGAIN; libbpf takes that five times. */
	if (result == -EAGAIN && nr == SYS_bpf && (int32_t)r->rdi == 5 && is_native(tid)) /* BPF_PROG_LOAD */
		return UT_CALL_ANEW;
	if (nr == SYS_io_uring_enter && r->r10 & ENTER_EXT_ARG_REG)
		return UT_CALL_LEAVE;
	if (result == -EINTR && is_native(tid))
		rule = rule_of(t, tid, r->orig_rax, r->rdi, r->rsi, r->rdx);
	if (result == -EINTR && rule == UT_CALL_WAIT)
		limit_of(t, tid, r, limit_ns, expired);
	return rule;
}

static ut_wait *wait_of(ut_tracee *t, int tid)
{
	for (size_t i = 0; i < t->waits.n; i++)
		if (t->waits.v[i].tid == tid)
			return &t->waits.v[i];
	if (VEC_PUSH(t->waits.v, t->waits.n, t->waits.cap, (ut_wait){.tid = tid}))
		return NULL;
	return &t->waits.v[t->waits.n - 1];
}

void ut_forget_wait(ut_tracee *t, int tid)
{
	for (size_t i = 0; i < t->waits.n; i++)
		if (t->waits.v[i].tid == tid) {
			t->waits.v[i] = t->waits.v[--t->waits.n];
			return;
		}
}

/* Of an instruction of the thread's own, so that the thread does not go on before it is delivered. Poisoned memory that
 * nobody has touched is told by a signal as well (BUS_MCEERR_AO). */
static int is_synchronous(const siginfo_t *what)
{
	int number = what->si_signo;

	if (number < 1 || number > 64 || !(UT_SYNCHRONOUS >> (number - 1) & 1))
		return 0;
	return what->si_code > 0 && !(number == SIGBUS && what->si_code == BUS_MCEERR_AO);
}

int ut_fault_is_due(const ut_tracee *t, int tid)
{
	struct ptrace_peeksiginfo_args from = {.nr = 1};
	uint64_t due = 0, blocked;
	siginfo_t what;
	int err;

	for (; trace(PTRACE_PEEKSIGINFO, tid, &from, &what) == 1; from.off++)
		if (is_synchronous(&what))
			due |= 1ull << (what.si_signo - 1);
	if (!due)
		return 0;
	/* What the kernel forces upon a thread is never blocked, but not all is forced (TRAP_PERF), and a thread may send
	 * itself the same. PTRACE_GETSIGMASK may say what will be blocked when a call has returned. */
	err = ut_status_mask(t->pid, tid, "SigBlk:", &blocked);
	return err ? err : !!(due & ~blocked);
}

/* A page fault that a file system in user space answers with EINTR, since a stop has interrupted it, is SIGBUS. It is taken
 * away: the instruction is executed again, and gets the signal again if the page is not to be had. */
int ut_signal_to_pass(int tid, int number)
{
	siginfo_t what;

	if (number == SIGBUS && !trace(PTRACE_GETSIGINFO, tid, NULL, &what) && what.si_code == BUS_ADRERR)
		return 0;
	return number;
}

static void note_anew(ut_tracee *t, ut_wait *w, int64_t now)
{
	int64_t had = w->begun_ns ? now - w->begun_ns : 0;
	int64_t patience = 2 * had > PATIENCE_NS ? 2 * had : PATIENCE_NS;

	w->begun_ns = now;
	w->until_ns = now + (patience < MAX_PATIENCE_NS ? patience : MAX_PATIENCE_NS);
	if (w->nr < UT_CALLS)
		t->calls.anew[w->nr / 64] |= 1ull << w->nr % 64;
}

int ut_begins_anew(const ut_tracee *t, int tid, int64_t nr, uint64_t fd)
{
	return nr >= 0 && nr < UT_CALLS && t->calls.anew[nr / 64] >> nr % 64 & 1 &&
	       rule_of(t, tid, nr, fd, 0, 0) == UT_CALL_ANEW;
}

const ut_wait *ut_find_wait(const ut_tracee *t, int tid)
{
	for (size_t i = 0; i < t->waits.n; i++)
		if (t->waits.v[i].tid == tid)
			return &t->waits.v[i];
	return NULL;
}

/* A thread has stopped: take its registers, and undo what the stop did to the call it was in.
 *
 * The kernel restarts most calls by itself: they have an ERESTART code in rax. Those that it never restarts have EINTR:
 * ERESTARTNOHAND there gives them the rule of the others (repeat, EINTR only if a handler runs), in
 * the kernel, so no signal can fall in between. EINTR means that nothing was done (a call that has done a part says how
 * much), so that is right for every call but those of ut_call_rule. Repeating starts a relative time limit anew; with
 * many stops it would never end. So the deadline is kept here while the thread stays in that one
 * call, which MARK tells, and a call that is past it returns as timed out. */
int ut_note_stop(ut_tracee *t, ut_thread *th)
{
	struct user_regs_struct *r = regs_of(th), live;
	int64_t limit = -1, expired = 0, now;
	int marked, err, rule;
	ut_wait *w;

	err = trace(PTRACE_GETREGS, th->tid, NULL, r);
	if (err)
		return err;
	th->worker = !r->rip && !r->rsp;
	th->state = UT_THREAD_STOPPED;
	if (!th->worker)
		ut_note_block(th->tid, r);
	rule = th->worker ? UT_CALL_LEAVE : to_repeat(t, th->tid, r, &limit, &expired);
	if (rule == UT_CALL_LEAVE) {
		ut_forget_wait(t, th->tid);
		return 0;
	}
	r->rax = -ERESTARTNOHAND;
	marked = (r->eflags & MARK) == MARK;
	if (limit < 0 && rule != UT_CALL_ANEW) {
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
		*w = (ut_wait){.tid = th->tid, .nr = r->orig_rax, .rip = r->rip, .eflags = r->eflags};
		w->deadline_ns = limit < 0 ? INT64_MAX : now + limit;
	}
	if (rule == UT_CALL_ANEW)
		note_anew(t, w, now);
	/* The mark is for the live thread only; th->regs, which others read, has the true flags. */
	live = *r;
	live.eflags |= MARK;
	return trace(PTRACE_SETREGS, th->tid, NULL, &live);
}
