/* A vCPU of the contract tests: does as it is told, in a native thread (guest_start) or in the caller's
 * (guest_do). A shared library for ctypes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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

struct guest {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct command *work;
	int tid;
};

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

	pthread_mutex_lock(&g->lock);
	g->tid = syscall(SYS_gettid);
	pthread_cond_broadcast(&g->changed);
	for (;;) {
		struct command *c;

		while (!g->work)
			pthread_cond_wait(&g->changed, &g->lock);
		c = g->work;
		pthread_mutex_unlock(&g->lock);
		if (c->kind == END)
			return NULL;
		guest_do(c);
		pthread_mutex_lock(&g->lock);
		g->work = NULL;
		pthread_cond_broadcast(&g->changed);
	}
}

struct guest *guest_start(void)
{
	struct guest *g = calloc(1, sizeof(*g));
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&g->changed, &attr);
	pthread_mutex_init(&g->lock, NULL);
	pthread_create(&g->thread, NULL, run, g);
	pthread_mutex_lock(&g->lock);
	while (!g->tid)
		pthread_cond_wait(&g->changed, &g->lock);
	pthread_mutex_unlock(&g->lock);
	return g;
}

int guest_tid(const struct guest *g)
{
	return g->tid;
}

void guest_post(struct guest *g, struct command *c)
{
	pthread_mutex_lock(&g->lock);
	g->work = c;
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
}

/* 1: done. 0: not in time. */
int guest_wait(struct guest *g, double seconds)
{
	struct timespec until;
	int err = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)seconds;
	until.tv_nsec += (seconds - (time_t)seconds) * 1e9;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	pthread_mutex_lock(&g->lock);
	while (g->work && !err)
		err = pthread_cond_timedwait(&g->changed, &g->lock, &until);
	pthread_mutex_unlock(&g->lock);
	return !err;
}

void guest_end(struct guest *g)
{
	static struct command end = {.kind = END};

	guest_post(g, &end);
	pthread_join(g->thread, NULL);
	free(g);
}
