/* A userfaultfd of another process's memory. */
#include "cleanup.h"
#include "compat.h"
#include "fd_passing.h"
#include "guard.h"
#include "sabotage.h"
#include "tracee_parts.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#define STOP_NS 1000000000ll
#define ANSWER_MS 60000 /* the child has limits of its own; this is for what they do not cover, without a watchdog */
#define MEND_NS 30000000000ll

/* Returns the index of a thread that calls can be injected into. */
static int begin_attach(ut_tracee *t, uint64_t flags)
{
	int at = ut_inject_begin_any(t);

	for (size_t i = 0; i < t->n && at == UT_SECCOMP; i++) {
		if (t->threads[i].state != UT_THREAD_STOPPED || t->threads[i].worker ||
		    !ut_seccomp_lets_attach(t->pid, t->threads[i].tid, flags))
			continue;
		t->injection.seccomp_trusted = 1;
		at = ut_inject_begin(t, i);
		return at ? at : (int)i;
	}
	return at;
}

/* All descriptors are in use, and the limit is a hard one: a thread that has no file open makes the userfaultfd and
 * ends. close_range(2) gives it a table of its own that is empty from the start, so nothing of the target's is
 * copied or closed. */
static int call_elsewhere(ut_tracee *t, int at, uint64_t flags)
{
	int64_t closed, fd;
	ut_thread made;
	int err = ut_inject_thread(t, at, &made);

	if (!err)
		err = ut_inject_into(t, &made, SYS_close_range, (uint64_t[6]){0, ~0u, CLOSE_RANGE_UNSHARE}, &closed);
	if (!err && !closed)
		err = ut_inject_into(t, &made, SYS_userfaultfd, (uint64_t[6]){flags}, &fd);
	if (!err)
		err = closed ? closed : fd < 0 ? fd : ut_thread_getfd(made.tid, fd);
	if (made.state == UT_THREAD_STOPPED && ut_inject_exit_of(t, &made)) {
		if (err >= 0)
			close(err);
		return -ESRCH;
	}
	return err;
}

/* Returns a copy of ours; the target's own is closed. */
static int call_userfaultfd(ut_tracee *t, int at, uint64_t flags)
{
	int64_t fd, ignored;
	int own, err = ut_inject(t, at, SYS_userfaultfd, (uint64_t[6]){flags}, &fd);

	if (err)
		return err;
	if (fd == -EMFILE && !t->injection.seccomp_trusted) {
		own = call_elsewhere(t, at, flags);
		return own < 0 && own != -ESRCH ? -EMFILE : own;
	}
	if (fd < 0)
		return fd;
	/* It may have a table of its own, unshare(2). */
	own = ut_thread_getfd(t->threads[at].tid, fd);
	if (own < 0)
		own = ut_tracee_getfd(t, t->threads[at].tid, fd);
	if (!ut_inject(t, at, SYS_close, (uint64_t[6]){fd}, &ignored))
		return own;
	if (own >= 0)
		close(own);
	return -ESRCH;
}

static int last_late;

int ut_attach_late(void)
{
	return last_late;
}

struct answer {
	int fd, late;
};

/* Stop the target and have it make a userfaultfd; returns a copy of ours. */
static int make_stopped(ut_tracee *t, uint64_t flags)
{
	int own, at, end;

	TRY(ut_tracee_stop(t, STOP_NS));
	ut_sabotage("attach");
	at = begin_attach(t, flags);
	TRY(at);
	ut_guard_attaching(t, 1);
	own = call_userfaultfd(t, at, flags);
	ut_guard_attaching(t, 0);
	end = t->threads[at].state == UT_THREAD_STOPPED ? ut_inject_end(t, at) : 0;
	if (own < 0 || !end)
		return own;
	close(own);
	return end;
}

/* `*left` is released, but for threads that have not stopped. */
static struct answer make_uffd(int pid, int user_mode_only, ut_tracee **left)
{
	uint64_t flags = O_CLOEXEC | O_NONBLOCK | (user_mode_only ? UFFD_USER_MODE_ONLY : 0);
	struct answer answer = {0, 0};
	ut_tracee *t = NULL;

	answer.fd = ut_tracee_open(pid, &t);
	*left = t;
	if (answer.fd < 0)
		return answer;
	answer.fd = make_stopped(t, flags);
	if (ut_tracee_resume(t))
		for (size_t i = 0; i < t->n && !answer.late; i++)
			answer.late = t->threads[i].state == UT_THREAD_ASKED ? t->threads[i].tid : 0;
	return answer;
}

/* Threads that stop after all are let go, and what the stop did to their calls is mended. */
static void finish(ut_tracee *t, int64_t timeout_ns)
{
	if (!t)
		return;
	ut_tracee_settle(t, timeout_ns);
	ut_tracee_close(t);
}

static struct answer receive_answer(int sock)
{
	const struct answer died = {-ECHILD, 0}, late = {-ETIMEDOUT, 0};
	struct pollfd ready = {.fd = sock, .events = POLLIN};
	struct answer answer;
	int r, fd, n;

	do
		r = poll(&ready, 1, ANSWER_MS);
	while (r < 0 && errno == EINTR);
	if (!r)
		return late;
	if (ut_receive_fds(sock, &answer, sizeof(answer), &fd, &n, 0) != 1 || n != (answer.fd >= 0))
		return died;
	if (n)
		answer.fd = fd;
	return answer;
}

/* It stays for as long as a thread has not stopped that was asked to; then it is not waited for. */
static void reap_child(int child)
{
	struct timespec nap = {0, 1000000};
	int r;

	for (int i = 0; i < 1000; i++) {
		r = waitpid(child, NULL, WNOHANG);
		if (r == child || (r < 0 && errno != EINTR))
			return;
		nanosleep(&nap, NULL);
	}
}

/* This child may outlive us: no userfaultfd of ours, whose traps nobody would serve, may live on in it. */
static void close_all_but(int fd, int other)
{
	int low = fd < other ? fd : other, high = fd < other ? other : fd;

	if (low > 0)
		syscall(SYS_close_range, 0, low - 1, 0);
	if (high > low + 1)
		syscall(SYS_close_range, low + 1, high - 1, 0);
	syscall(SYS_close_range, high + 1, ~0u, 0);
}

int ut_attach_uffd(int pid, int user_mode_only)
{
	struct answer answer;
	ut_guard_verdict verdict;
	ut_tracee *left;
	int pair[2], child, err;

	TRY(ut_blocks_open());
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	child = fork();
	if (child < 0) {
		err = -errno;
		close(pair[0]);
		close(pair[1]);
		return err;
	}
	if (!child) {
		sigset_t all;

		sigfillset(&all);
		sigprocmask(SIG_SETMASK, &all, NULL);
		setsid();
		close_all_but(pair[1], ut_guard_line());
		answer = make_uffd(pid, user_mode_only, &left);
		ut_send_fds(pair[1], &answer, sizeof(answer), &answer.fd, answer.fd >= 0, 0); /* fails where nobody waits */
		close(pair[1]);
		finish(left, MEND_NS);
		_exit(0);
	}
	close(pair[1]);
	answer = receive_answer(pair[0]);
	close(pair[0]);
	reap_child(child);
	if (answer.fd == -ECHILD && ut_guard_verdict_of(child, &verdict))
		answer = (struct answer){UT_OVERDUE, child};
	/* Yama's scope 1 lets ancestors trace, not their other children. */
	if (answer.fd == -EPERM) {
		answer = make_uffd(pid, user_mode_only, &left);
		finish(left, STOP_NS);
	}
	last_late = answer.late;
	return answer.fd;
}
