/* A userfaultfd of another process's memory. */
#include "compat.h"
#include "tracee_parts.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

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
