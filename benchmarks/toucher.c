/* A process of a given size whose pages are written on demand.
 *
 * usage: toucher MIB huge|small|shared [SLEEPING [COMPUTING]]. So many more threads sleep, or compute without
 * writing. Each line "N SEED [RATE]" writes N different pages, scattered, and answers; then it goes on to write
 * these pages until the next line, RATE of them a second (0, the default: none). */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SLICE_NS = 200000, STACK = 64 << 10 };

static char *at;
static size_t pages;
static unsigned long round_ = 1;

static void *sleep_on(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static void *compute_on(void *arg)
{
	for (volatile unsigned long n = 1; n; n++)
		;
	return arg;
}

static void start(void *(*work)(void *), int n)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	while (n-- > 0)
		if (pthread_create(&thread, &attr, work, NULL))
			exit(3);
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* A step that shares no factor with a power of two visits each page once. */
static size_t touch(size_t p, size_t step, unsigned long n)
{
	while (n--) {
		*(volatile uint64_t *)(at + (p << 12)) = ++round_;
		p = (p + step) & (pages - 1);
	}
	return p;
}

static void go_on(size_t first, size_t step, unsigned long n, unsigned long rate)
{
	struct pollfd line = {0, POLLIN, 0};
	int64_t begun = now_ns();
	unsigned long done = 0;
	size_t p = first;

	while (!poll(&line, 1, 0)) {
		unsigned long due = (now_ns() - begun) / 1e9 * rate;
		unsigned long most = due - done < 256 ? due - done : 256;

		for (unsigned long i = 0; i < most; i++, done++)
			p = (done + 1) % n ? touch(p, step, 1) : (touch(p, step, 1), first);
		if (!most)
			nanosleep(&(struct timespec){0, SLICE_NS}, NULL);
	}
}

int main(int argc, char **argv)
{
	int huge = argc > 2 && argv[2][0] == 'h', shared = argc > 2 && !strcmp(argv[2], "shared");
	unsigned long n, seed, rate;
	char line[64];

	pages = argc > 1 ? strtoull(argv[1], NULL, 10) << 8 : 0;
	at = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE,
		  (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
	if (!pages || at == MAP_FAILED)
		return 2;
	madvise(at, pages << 12, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (size_t i = 0; i < pages; i++)
		memset(at + (i << 12), 1 + i % 251, 4096);
	start(sleep_on, argc > 3 ? atoi(argv[3]) : 0);
	start(compute_on, argc > 4 ? atoi(argv[4]) : 0);
	printf("%d\n", getpid());
	fflush(stdout);
	while (rate = 0, fgets(line, sizeof(line), stdin) && sscanf(line, "%lu %lu %lu", &n, &seed, &rate) >= 2) {
		size_t step = (seed * 2654435761u | 1) % pages | 1, p = seed % pages;

		touch(p, step, n);
		puts("done");
		fflush(stdout);
		if (rate && n)
			go_on(p, step, n, rate);
	}
	return 0;
}
