/* What benchmarks/lists.py measures in C: writes, calls of the core, and the trackers that others use. A shared
 * library for ctypes. All times in ns. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WP_ASYNC (1 << 15)
#define WP_UNPOPULATED (1 << 13)

int64_t bench_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

int64_t bench_write(uint8_t *base, const uint64_t *pages, uint64_t n)
{
	int64_t started = bench_now();

	for (uint64_t i = 0; i < n; i++)
		((volatile uint8_t *)base)[pages[i] * 4096]++;
	return bench_now() - started;
}

/* One call of the core, such as ut_prepare, ut_exchange. */
int64_t bench_call(int64_t (*f)(void *), void *arg)
{
	int64_t started = bench_now();

	f(arg);
	return bench_now() - started;
}

int64_t bench_rearm(int (*f)(void *, const uint64_t *, size_t), void *arg, const uint64_t *gfn, uint64_t n)
{
	int64_t started = bench_now();

	f(arg, gfn, n);
	return bench_now() - started;
}

/* -- userfaultfd as others use it ---------------------------------------------------------------- */

int bench_uffd(uint8_t *base, uint64_t bytes, int async)
{
	struct uffdio_api api = {.api = UFFD_API, .features = WP_UNPOPULATED | (async ? WP_ASYNC : 0)};
	struct uffdio_register r = {{(uint64_t)base, bytes}, UFFDIO_REGISTER_MODE_WP, 0};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &r))
		return -errno;
	return fd;
}

int64_t bench_protect(int uffd, uint8_t *base, const uint64_t *pages, uint64_t n)
{
	int64_t started = bench_now();

	for (uint64_t i = 0; i < n; i++) {
		struct uffdio_writeprotect w = {{(uint64_t)base + pages[i] * 4096, 4096},
						UFFDIO_WRITEPROTECT_MODE_WP};

		ioctl(uffd, UFFDIO_WRITEPROTECT, &w);
	}
	return bench_now() - started;
}

int64_t bench_protect_all(int uffd, uint8_t *base, uint64_t bytes)
{
	struct uffdio_writeprotect w = {{(uint64_t)base, bytes}, UFFDIO_WRITEPROTECT_MODE_WP};
	int64_t started = bench_now();

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &w) ? -errno : bench_now() - started;
}

static uint64_t polled_pages;

static void *poller(void *arg)
{
	int fd = (int)(intptr_t)arg;

	for (;;) {
		struct pollfd p = {fd, POLLIN, 0};
		struct uffd_msg msg;

		poll(&p, 1, -1);
		if (read(fd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		struct uffdio_writeprotect w = {{msg.arg.pagefault.address & ~4095ull, 4096}, 0};

		polled_pages++;
		ioctl(fd, UFFDIO_WRITEPROTECT, &w);
	}
	return NULL;
}

int bench_poll(int uffd)
{
	pthread_t thread;

	return -pthread_create(&thread, NULL, poller, (void *)(intptr_t)uffd);
}

/* -- mprotect and SIGSEGV ------------------------------------------------------------------------ */

static void on_segv(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	mprotect((void *)((uintptr_t)info->si_addr & ~4095ul), 4096, PROT_READ | PROT_WRITE);
}

int bench_segv(uint8_t *base, uint64_t bytes)
{
	struct sigaction a = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};

	return sigaction(SIGSEGV, &a, NULL) || mprotect(base, bytes, PROT_READ) ? -errno : 0;
}

/* -- vCPUs of a guest that is stopped ------------------------------------------------------------ */

struct writer {
	pthread_t thread;
	uint8_t *base;
	uint64_t pages, seed;
	_Atomic int tid, go, stop;
	_Atomic int64_t last; /* when its last write was done */
};

static void *write_on(void *arg)
{
	struct writer *w = arg;
	uint64_t x = w->seed * 0x9e3779b97f4a7c15ull + 1;

	atomic_store(&w->tid, syscall(SYS_gettid));
	while (!atomic_load(&w->go))
		usleep(100);
	while (!atomic_load(&w->stop)) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		((volatile uint8_t *)w->base)[x % w->pages * 4096]++;
		atomic_store_explicit(&w->last, bench_now(), memory_order_relaxed);
	}
	return NULL;
}

struct writer *bench_writer(uint8_t *base, uint64_t pages, uint64_t seed)
{
	struct writer *w = calloc(1, sizeof(*w));

	w->base = base;
	w->pages = pages;
	w->seed = seed;
	pthread_create(&w->thread, NULL, write_on, w);
	while (!atomic_load(&w->tid))
		usleep(100);
	return w;
}

int bench_writer_tid(struct writer *w)
{
	return w->tid;
}

void bench_writer_go(struct writer *w)
{
	atomic_store(&w->go, 1);
}

int64_t bench_writer_last(struct writer *w)
{
	return w->last;
}

void bench_writer_end(struct writer *w)
{
	atomic_store(&w->stop, 1);
	atomic_store(&w->go, 1);
	pthread_join(w->thread, NULL);
	free(w);
}

/* -- vCPUs that write given pages ---------------------------------------------------------------- */

struct lister {
	pthread_t thread;
	uint8_t *base;
	const uint64_t *pages;
	uint64_t n;
	_Atomic int tid, go, done; /* go: the round, negative: the end */
	int64_t ns;
};

static void *write_listed(void *arg)
{
	struct lister *l = arg;
	int round = 0;

	atomic_store(&l->tid, syscall(SYS_gettid));
	for (;;) {
		while (atomic_load(&l->go) == round)
			usleep(50);
		round = atomic_load(&l->go);
		if (round < 0)
			return NULL;
		l->ns = bench_write(l->base, l->pages, l->n);
		atomic_store(&l->done, round);
	}
}

struct lister *bench_lister(uint8_t *base)
{
	struct lister *l = calloc(1, sizeof(*l));

	l->base = base;
	pthread_create(&l->thread, NULL, write_listed, l);
	while (!atomic_load(&l->tid))
		usleep(100);
	return l;
}

int bench_lister_tid(struct lister *l)
{
	return l->tid;
}

void bench_lister_go(struct lister *l, const uint64_t *pages, uint64_t n)
{
	l->pages = pages;
	l->n = n;
	atomic_fetch_add(&l->go, 1);
}

/* What the round took, in ns. */
int64_t bench_lister_wait(struct lister *l)
{
	while (atomic_load(&l->done) != atomic_load(&l->go))
		usleep(50);
	return l->ns;
}

void bench_lister_end(struct lister *l)
{
	atomic_store(&l->go, -1);
	pthread_join(l->thread, NULL);
	free(l);
}
