/* A thread that reads the messages of a userfaultfd. A thread that faults, or changes mappings, waits for
 * it. */
#ifndef UT_FAULT_SERVER_H
#define UT_FAULT_SERVER_H
#include "compat.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

enum { UT_FAULT_BATCH = 64, UT_SERVER_FDS = 2 };

typedef struct {
	int32_t uffd;
	int32_t poke; /* eventfd: the thread has something to look at */
	int32_t running;
	_Atomic int32_t stopping;
	pthread_t thread;
	void (*serve)(void *arg);
	void *arg;
} ut_fault_server;

/* `serve` runs in the thread, with all signals blocked, and has to return when ut_fault_server_wait returns
 * -ESHUTDOWN. The caller keeps the userfaultfd. 0; or -errno, with nothing left to release. */
int ut_fault_server_start(ut_fault_server *f, int uffd, void (*serve)(void *arg), void *arg);
/* Wait until the thread has ended. Idempotent. */
void ut_fault_server_stop(ut_fault_server *f);
/* Make the thread's wait return. */
void ut_fault_server_poke(ut_fault_server *f);

/* For the thread: wait for a message, for a poke, or for one of fds[UT_SERVER_FDS] to fds[n - 1]; this
 * function fills in the first ones. Returns as poll(2) does, or -ESHUTDOWN. */
int ut_fault_server_wait(ut_fault_server *f, struct pollfd *fds, size_t n, int timeout_ms);
/* Read up to UT_FAULT_BATCH messages; returns how many; 0: there are none now; or -errno. */
int ut_fault_server_read(const ut_fault_server *f, struct uffd_msg *out);
#endif
