/* A program that aborts when a register of its own changes, or a call that does nothing fails. It prints "ready" and
 * then, on each line that it reads, one line of counters. The calls that a freezer of cgroup v1 ends with EINTR by
 * itself are not in it: for those there is notices.c. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t rounds, calls, naps;

/* The processor is for others, too. */
static void rest(void)
{
	const struct timespec nap = {0, 5000000};

	if (nanosleep(&nap, NULL))
		abort();
}

static void *registers(void *arg)
{
	for (;;) {
		uint64_t wrong = 0;

		asm volatile("sub $128, %%rsp\n" /* the compiler's red zone */
			     "push %%rbp\n"
			     "mov $0x1111111111111111, %%rbp\n"
			     "mov $0x2222222222222222, %%rbx\n"
			     "mov $0x3333333333333333, %%r12\n"
			     "mov $0x4444444444444444, %%r8\n"
			     "movq %%r12, %%xmm5\n"
			     "movq %%rbx, -64(%%rsp)\n" /* a red zone of our own */
			     "mov $500000, %%rcx\n"
			     "1: cmp %%r12, %%rbx\n"
			     "je 2f\n"
			     "dec %%rcx\n"
			     "jnz 1b\n"
			     "mov $0x1111111111111111, %%rax\n"
			     "cmp %%rax, %%rbp\n"
			     "jne 2f\n"
			     "cmp -64(%%rsp), %%rbx\n"
			     "jne 2f\n"
			     "movq %%xmm5, %%rax\n"
			     "cmp %%rax, %%r12\n"
			     "jne 2f\n"
			     "mov $0x4444444444444444, %%rax\n"
			     "cmp %%rax, %%r8\n"
			     "je 3f\n"
			     "2: mov $1, %0\n"
			     "3: pop %%rbp\n"
			     "add $128, %%rsp\n"
			     : "+&d"(wrong)
			     :
			     : "rax", "rbx", "rcx", "r8", "r12", "xmm5", "cc", "memory");
		if (wrong)
			abort();
		rounds++;
		rest();
	}
	return arg;
}

static void *calling(void *arg)
{
	const pid_t self = syscall(SYS_gettid);

	for (;; rest())
		for (int i = 0; i < 1000; i++, calls++)
			if (syscall(SYS_gettid) != self)
				abort();
	return arg;
}

static void *napping(void *arg)
{
	for (;; naps++)
		rest();
	return arg;
}

int main(void)
{
	void *(*const all[])(void *) = {registers, calling, napping};
	char line[16];
	pthread_t t;

	setvbuf(stdout, NULL, _IONBF, 0);
	for (int i = 0; i < 3; i++)
		if (pthread_create(&t, NULL, all[i], NULL))
			return 1;
	puts("ready");
	while (fgets(line, sizeof(line), stdin))
		printf("{\"rounds\": %lu, \"calls\": %lu, \"naps\": %lu}\n", rounds, calls, naps);
	return 0;
}
