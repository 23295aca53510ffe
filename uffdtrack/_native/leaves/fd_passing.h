/* Messages with descriptors, over a socket that keeps messages whole (SOCK_SEQPACKET). */
#ifndef UT_FD_PASSING_H
#define UT_FD_PASSING_H
#include <stddef.h>

enum { UT_MOST_FDS = 2 };

/* 0 or -errno. The caller keeps the descriptors. */
int ut_send_fds(int to, const void *message, size_t size, const int *fds, int n, int flags);
/* 1: *n descriptors came with it; 0: no sender is left; -EBADMSG: the message has another size; -errno. */
int ut_receive_fds(int from, void *message, size_t size, int *fds, int *n, int flags);
#endif
