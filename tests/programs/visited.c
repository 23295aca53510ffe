/* Two threads and some pages at a known place. Each line on stdin writes a page and is answered.
 * "fork" on stdin: a child with CLONE_VM traces all threads until the next line (LeakSanitizer's way). */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define AT ((volatile uint64_t *)0x200000000000)
#define PAGES 256 /* more than is compared in place of followed */
#define WORDS 512

static int second, told[2];

static void *stay(void *arg)
{
	second = syscall(SYS_gettid);
	for (;;)
		pause();
	return arg;
}

static int trace_all(void *arg)
{
	int tids[2] = {*(int *)arg, second};
	char c;

	for (int i = 0; i < 2; i++)
		if (ptrace(PTRACE_ATTACH, tids[i], NULL, NULL) || waitpid(tids[i], NULL, __WALL) < 0)
			return 1;
	AT[5 * WORDS]++; /* in the target's own memory: it is ours, too */
	if (write(told[1], "x", 1) != 1 || read(0, &c, 1) != 1)
		return 1;
	for (int i = 0; i < 2; i++)
		ptrace(PTRACE_DETACH, tids[i], NULL, NULL);
	return 0;
}

int main(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	char line[64];
	pthread_t t;
	int self = getpid();

	setvbuf(stdout, NULL, _IOLBF, 0);
	setvbuf(stdin, NULL, _IONBF, 0);
	if (mmap((void *)AT, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
		    (void *)AT ||
	    pipe(told) || pthread_create(&t, NULL, stay, NULL))
		return 1;
	for (int i = 0; i < PAGES; i++)
		AT[i * WORDS] = 1;
	while (!__atomic_load_n(&second, __ATOMIC_ACQUIRE))
		sched_yield();
	printf("ready %d\n", second);
	while (fgets(line, sizeof(line), stdin)) {
		AT[WORDS]++;
		if (!strcmp(line, "abort\n"))
			abort();
		if (!strcmp(line, "fork\n")) {
			int child = clone(trace_all, stack + sizeof(stack), CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_UNTRACED |
					  SIGCHLD, &self);

			if (child < 0 || waitpid(child, NULL, 0) != child)
				return 1;
		}
		printf("%lu\n", (unsigned long)AT[WORDS]);
	}
	return 0;
}
