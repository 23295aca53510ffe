/* A thread in each call with a time limit that the kernel goes on with by restart_syscall(2). On "s" all of them
 * leave those calls, and sleep in another one. Each line is answered by "S R I": whether they have left, the rounds
 * of the slowest in the calls that are tested, and how many of the calls ended by EINTR.
 * Arguments: the limit in ms; "interrupted": EINTR is no fault. */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { COMPAT = 1 << 16 };

static const struct call {
	int nr; /* with COMPAT by int 0x80 */
	int clock;
	int op; /* of futex */
	int result;
} calls[] = {
	{SYS_nanosleep, CLOCK_MONOTONIC, 0, 0},
	{SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, 0},
	{SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, 0},
	{SYS_poll, CLOCK_MONOTONIC, 0, 0},
	{SYS_futex, CLOCK_MONOTONIC, FUTEX_WAIT, -ETIMEDOUT},
	{SYS_futex, CLOCK_MONOTONIC, FUTEX_WAIT_BITSET, -ETIMEDOUT},
	{COMPAT | 162, CLOCK_MONOTONIC, 0, 0},			    /* nanosleep */
	{COMPAT | 267, CLOCK_MONOTONIC, 0, 0},			    /* clock_nanosleep */
	{COMPAT | 407, CLOCK_MONOTONIC, 0, 0},			    /* clock_nanosleep_time64 */
	{COMPAT | 168, CLOCK_MONOTONIC, 0, 0},			    /* poll */
	{COMPAT | 240, CLOCK_MONOTONIC, FUTEX_WAIT, -ETIMEDOUT},	    /* futex */
	{COMPAT | 422, CLOCK_MONOTONIC, FUTEX_WAIT_BITSET, -ETIMEDOUT}, /* futex_time64 */
};
enum { CALLS = sizeof(calls) / sizeof(*calls) };

static struct state {
	uint32_t word;
	int32_t limit32[2];
	int64_t limit64[2];
	volatile uint64_t rounds, interrupted, asleep;
} *states; /* where 32-bit pointers reach */
static volatile int left;
static int may_be_interrupted;
static int64_t limit_ns;

static long native(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long r;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return r;
}

static long compat(int nr, uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e, uint32_t f)
{
	long r;
	register uint64_t bp __asm__("r12") = f;

	__asm__ volatile("pushq %%rbp\n\tmovq %%r12, %%rbp\n\tint $0x80\n\tpopq %%rbp"
			 : "=a"(r)
			 : "0"(nr), "b"(a), "c"(b), "d"(c), "S"((uint64_t)d), "D"((uint64_t)e), "r"(bp)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)r;
}

static long make(const struct call *c, struct state *s)
{
	int nr = c->nr & ~COMPAT, is_compat = c->nr & COMPAT, narrow = is_compat && nr != 407 && nr != 422;
	void *limit = narrow ? (void *)s->limit32 : (void *)s->limit64;
	long a[6] = {0};
	struct timespec now;

	s->limit64[0] = s->limit32[0] = limit_ns / 1000000000;
	s->limit64[1] = s->limit32[1] = limit_ns % 1000000000;
	if (c->op || (is_compat ? nr == 240 || nr == 422 : nr == SYS_futex)) {
		if (c->op == FUTEX_WAIT_BITSET) {
			clock_gettime(CLOCK_MONOTONIC, &now);
			now.tv_nsec += limit_ns % 1000000000;
			s->limit64[0] = now.tv_sec + limit_ns / 1000000000 + now.tv_nsec / 1000000000;
			s->limit64[1] = now.tv_nsec % 1000000000;
		}
		a[0] = (long)&s->word;
		a[1] = c->op;
		a[3] = (long)limit;
		a[5] = FUTEX_BITSET_MATCH_ANY;
	} else if (is_compat ? nr == 168 : nr == SYS_poll) {
		a[2] = limit_ns / 1000000;
	} else if (is_compat ? nr == 162 : nr == SYS_nanosleep) {
		a[0] = (long)limit;
	} else {
		a[0] = c->clock;
		a[2] = (long)limit;
	}
	return is_compat ? compat(nr, a[0], a[1], a[2], a[3], a[4], a[5]) : native(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static void *run(void *at)
{
	const struct call *c = &calls[(intptr_t)at];
	struct state *s = &states[(intptr_t)at];
	struct timespec a, b, nap = {0, 3000000};
	int64_t took;
	long r;

	for (;;) {
		while (left) {
			s->asleep++;
			nanosleep(&nap, NULL);
		}
		clock_gettime(c->clock, &a);
		r = make(c, s);
		clock_gettime(c->clock, &b);
		took = (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec;
		s->rounds++;
		if (r == -EINTR && may_be_interrupted) {
			s->interrupted++;
			continue;
		}
		if (r != c->result || took < limit_ns - 1000000) {
			printf("call %d%s: %ld after %ld us\n", c->nr & ~COMPAT, c->nr & COMPAT ? " by int 0x80" : "", r,
			       (long)took / 1000);
			fflush(stdout);
			_exit(1);
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	char line[16];
	pthread_t t;

	if (argc < 2)
		return 2;
	limit_ns = atoll(argv[1]) * 1000000;
	may_be_interrupted = argc > 2;
	states = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (states == MAP_FAILED || compat(20, 0, 0, 0, 0, 0, 0) != getpid()) {
		printf("unsupported\n");
		return 2;
	}
	for (intptr_t i = 0; i < CALLS; i++)
		pthread_create(&t, NULL, run, (void *)i);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		uint64_t rounds = UINT64_MAX, interrupted = 0;
		int gone = 1;

		if (line[0] == 's') {
			for (int i = 0; i < CALLS; i++)
				states[i].asleep = 0;
			left = 1;
		}
		for (int i = 0; i < CALLS; i++) {
			rounds = states[i].rounds < rounds ? states[i].rounds : rounds;
			interrupted += states[i].interrupted;
			gone = gone && states[i].asleep > 1;
		}
		printf("%d %lu %lu\n", left && gone, (unsigned long)rounds, (unsigned long)interrupted);
		fflush(stdout);
	}
	return 0;
}
