/* A vCPU of the contract tests: does as it is told, in a native thread (guest_start) or in the caller's
 * (guest_do). A shared library for ctypes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE, READ_FILE, DIRECT, PVM, LOAD, STORM, END };

struct command {
	int kind, fd;
	uint8_t *base;
	const uint64_t *pages;
	uint64_t n;
	uint8_t value;
	_Atomic uint64_t done; /* pages written so far */
	_Atomic int stop;      /* STORM goes on until then */
	long result;
};

/* No locks: the thread may be stopped anywhere, and nobody must wait for one that it holds then. */
struct guest {
	pthread_t thread;
	_Atomic(struct command *) work;
	_Atomic uint32_t changed; /* futex */
	_Atomic int tid;
};

static void wake(struct guest *g)
{
	atomic_fetch_add(&g->changed, 1);
	syscall(SYS_futex, &g->changed, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void sleep_on(struct guest *g, uint32_t seen, const struct timespec *limit)
{
	syscall(SYS_futex, &g->changed, FUTEX_WAIT, seen, limit, NULL, 0);
}

static long one(struct command *c, uint64_t page)
{
	volatile uint8_t *at = c->base + page * 4096;
	struct iovec local, remote;
	uint8_t value[512];

	switch (c->kind) {
	case WRITE:
	case STORM:
		at[page % 4096] = c->value;
		return 0;
	case LOAD:
		(void)at[0];
		return 0;
	case READ_FILE: /* the kernel writes: copy_to_user */
		return pread(c->fd, (void *)at, 512, 0) == 512 ? 0 : -errno;
	case DIRECT: /* GUP: the file is open with O_DIRECT */
		return pread(c->fd, (void *)at, 4096, 0) == 4096 ? 0 : -errno;
	case PVM: /* GUP of our own memory */
		memset(value, c->value, sizeof(value));
		local = (struct iovec){value, sizeof(value)};
		remote = (struct iovec){(void *)at, sizeof(value)};
		return process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == sizeof(value) ? 0 : -errno;
	}
	return -EINVAL;
}

void guest_do(struct command *c)
{
	c->result = 0;
	do {
		for (uint64_t i = 0; i < c->n && !c->result; i++) {
			c->result = one(c, c->pages[i]);
			atomic_fetch_add(&c->done, 1);
		}
		c->value++;
	} while (c->kind == STORM && !atomic_load(&c->stop));
}

static void *run(void *arg)
{
	struct guest *g = arg;

	atomic_store(&g->tid, syscall(SYS_gettid));
	wake(g);
	for (;;) {
		uint32_t seen = atomic_load(&g->changed);
		struct command *c = atomic_load(&g->work);

		if (!c) {
			sleep_on(g, seen, NULL);
			continue;
		}
		if (c->kind == END)
			return NULL;
		guest_do(c);
		atomic_store(&g->work, NULL);
		wake(g);
	}
}

struct guest *guest_start(void)
{
	struct guest *g = calloc(1, sizeof(*g));

	pthread_create(&g->thread, NULL, run, g);
	while (!atomic_load(&g->tid)) {
		uint32_t seen = atomic_load(&g->changed);

		if (!atomic_load(&g->tid))
			sleep_on(g, seen, NULL);
	}
	return g;
}

int guest_tid(const struct guest *g)
{
	return g->tid;
}

void guest_post(struct guest *g, struct command *c)
{
	atomic_store(&g->work, c);
	wake(g);
}

/* 1: done. 0: not in time. */
int guest_wait(struct guest *g, double seconds)
{
	struct timespec now, limit;
	double left, until;

	clock_gettime(CLOCK_MONOTONIC, &now);
	until = now.tv_sec + now.tv_nsec / 1e9 + seconds;
	for (;;) {
		uint32_t seen = atomic_load(&g->changed);

		if (!atomic_load(&g->work))
			return 1;
		clock_gettime(CLOCK_MONOTONIC, &now);
		left = until - (now.tv_sec + now.tv_nsec / 1e9);
		if (left <= 0)
			return 0;
		limit.tv_sec = (time_t)left;
		limit.tv_nsec = (left - (time_t)left) * 1e9;
		sleep_on(g, seen, &limit);
	}
}

void guest_end(struct guest *g)
{
	static struct command end = {.kind = END};

	guest_post(g, &end);
	pthread_join(g->thread, NULL);
	free(g);
}
