/* Threads that write memory of their own, each with a log: instants THREADS PAGES SEED.
 *
 * The n-th act of thread w is on page mix(SEED, w, n) % PAGES of its own: every eighth gives it back, the others write n into
 * three of its words. Then count[w], in the page before all, becomes n. One more thread counts in r12, and in count[63]. So any
 * instant can be worked out from the counts (tests/kernel/instants.py). Thread 0 begins to change mappings now and then on
 * SIGUSR1, or ends that; on SIGUSR2 the program begins anew by exec. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t *const count = (void *)0x200000000000;
static uint64_t pages, seed;
static char **command;
static volatile int changing;

static uint64_t mix(uint64_t w, uint64_t n)
{
	uint64_t z = seed + w * 0x9e3779b97f4a7c15 + n * 0xbf58476d1ce4e5b9;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

/* A mapping that comes and goes, and one that becomes two for a moment. */
static void change(void)
{
	char *at = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		_exit(9);
	*at = 1;
	mprotect(at + 4096, 4096, PROT_READ);
	usleep(100);
	munmap(at, 1 << 20);
}

static void *act(void *arg)
{
	uint64_t w = (uintptr_t)arg;

	for (uint64_t n = 1;; n++) {
		volatile uint64_t *page = count + 512 * (1 + w * pages + mix(w, n) % pages);
		struct timespec pause = {0, mix(w, n) % 100000};

		if (n % 8 == 0) {
			if (madvise((void *)page, 4096, MADV_DONTNEED))
				_exit(9);
		} else {
			page[0] = page[256] = page[511] = n;
		}
		count[w] = n;
		if (n % 8 == 0)
			nanosleep(&pause, NULL);
		if (!w && changing && n % 256 == 0)
			change();
	}
}

static void *tick(void *arg)
{
	__asm__ volatile("xor %%r12, %%r12\n"
			 "1: inc %%r12\n"
			 "mov %%r12, %0\n"
			 "jmp 1b\n"
			 : "=m"(count[63])::"r12", "memory");
	return arg;
}

static void on_signal(int number)
{
	if (number == SIGUSR2)
		execv(command[0], command);
	changing = !changing;
}

int main(int argc, char **argv)
{
	uint64_t threads = argc == 4 ? atol(argv[1]) : 0;
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_NODEFER};
	pthread_t thread;
	size_t size;

	if (!threads)
		return 2;
	pages = atol(argv[2]);
	seed = atol(argv[3]);
	command = argv;
	size = (1 + threads * pages) * 4096;
	if (mmap((void *)count, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) !=
	    (void *)count)
		return 9;
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR2, &action, NULL);
	sigprocmask(SIG_UNBLOCK, &action.sa_mask, NULL);
	for (uint64_t w = 0; w < threads; w++)
		if (pthread_create(&thread, NULL, act, (void *)w))
			return 9;
	puts("ready");
	fflush(stdout);
	tick(NULL);
}
