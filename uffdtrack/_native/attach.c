/* A userfaultfd of another process's memory. */
#include "compat.h"
#include "tracee_parts.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* Returns the index of a thread that calls can be injected into. */
static int begin(ut_tracee *t, uint64_t flags)
{
	int at = ut_inject_begin_any(t);

	for (size_t i = 0; i < t->n && at == UT_SECCOMP; i++) {
		if (t->threads[i].state != UT_THREAD_STOPPED || t->threads[i].worker ||
		    !ut_seccomp_lets_attach(t->pid, t->threads[i].tid, flags))
			continue;
		t->seccomp_trusted = 1;
		at = ut_inject_begin(t, i);
		return at ? at : (int)i;
	}
	return at;
}

static int fetch_of_thread(int tid, int fd)
{
	int thread = syscall(SYS_pidfd_open, tid, O_EXCL); /* PIDFD_THREAD, Linux 6.9 */
	int own, err;

	if (thread < 0)
		return -errno;
	own = syscall(SYS_pidfd_getfd, thread, fd, 0);
	err = -errno;
	close(thread);
	return own < 0 ? err : own;
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
		err = closed ? closed : fd < 0 ? fd : fetch_of_thread(made.tid, fd);
	if (made.state == UT_THREAD_STOPPED && ut_inject_exit_of(t, &made)) {
		if (err >= 0)
			close(err);
		return -ESRCH;
	}
	return err;
}

/* Returns a copy of ours; the target's own is closed. */
static int call(ut_tracee *t, int at, uint64_t flags)
{
	int64_t fd, ignored;
	int own, err = ut_inject(t, at, SYS_userfaultfd, (uint64_t[6]){flags}, &fd);

	if (err)
		return err;
	if (fd == -EMFILE && !t->seccomp_trusted) {
		own = call_elsewhere(t, at, flags);
		return own < 0 && own != -ESRCH ? -EMFILE : own;
	}
	if (fd < 0)
		return fd;
	/* It may have a table of its own, unshare(2). */
	own = fetch_of_thread(t->threads[at].tid, fd);
	if (own < 0)
		own = ut_tracee_getfd(t, t->threads[at].tid, fd);
	if (!ut_inject(t, at, SYS_close, (uint64_t[6]){fd}, &ignored))
		return own;
	if (own >= 0)
		close(own);
	return -ESRCH;
}

static int make_uffd(int pid, int user_mode_only)
{
	uint64_t flags = O_CLOEXEC | O_NONBLOCK | (user_mode_only ? UFFD_USER_MODE_ONLY : 0);
	ut_tracee *t;
	int own = -1, at, err = ut_tracee_open(pid, &t);

	if (err)
		return err;
	err = ut_tracee_stop(t, 5000000000ll);
	if (err)
		goto out;
	err = at = begin(t, flags);
	if (err < 0)
		goto out;
	own = call(t, at, flags);
	err = own < 0 ? own : 0;
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

int ut_attach_uffd(int pid, int user_mode_only)
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
		send_fd(pair[1], make_uffd(pid, user_mode_only));
		_exit(0);
	}
	close(pair[1]);
	fd = receive_fd(pair[0]);
	close(pair[0]);
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	/* Yama's scope 1 lets ancestors trace, not their other children. */
	if (fd == -EPERM)
		fd = make_uffd(pid, user_mode_only);
	return fd;
}
