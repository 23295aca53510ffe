#include "fd_passing.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int ut_send_fds(int to, const void *message, size_t size, const int *fds, int n, int flags)
{
	char room[CMSG_SPACE(UT_MOST_FDS * sizeof(int))] = {0};
	struct iovec iov = {(void *)message, size};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n) {
		struct cmsghdr *c = (struct cmsghdr *)room;

		msg.msg_control = room;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	}
	return sendmsg(to, &msg, flags | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int ut_receive_fds(int from, void *message, size_t size, int *fds, int *n, int flags)
{
	char room[CMSG_SPACE(UT_MOST_FDS * sizeof(int))];
	struct iovec iov = {message, size};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
	struct cmsghdr *c;
	ssize_t got;

	do
		got = recvmsg(from, &msg, flags | MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got <= 0)
		return got ? -errno : 0;
	c = CMSG_FIRSTHDR(&msg);
	*n = c ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
	if (*n)
		memcpy(fds, CMSG_DATA(c), *n * sizeof(int));
	return got == (ssize_t)size ? 1 : -EBADMSG;
}
