/* Chains of threads, each of which makes its successor and ends: chains N WAYS. All count, as long as they run.
 *
 * WAYS, of these letters: s each makes others, too, that end at once; w it works on when it has made its successor; f the first
 * thread ends. Says where the N counters are, 64 bytes each. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile uint64_t *counters;
static pthread_attr_t small;
static int siblings, works_on;

static void *end(void *arg)
{
	return arg;
}

static void *chain(void *arg)
{
	uint64_t word = (uintptr_t)arg, which = word & 0xff, random = word >> 8 | 1;
	pthread_t thread;

	random ^= random << 13;
	random ^= random >> 7;
	random ^= random << 17;
	for (uint64_t i = 0; i < random % 3000; i++)
		__atomic_fetch_add(&counters[which * 8], 1, __ATOMIC_RELAXED);
	for (uint64_t i = 0; siblings && i < (random >> 20) % 4; i++)
		pthread_create(&thread, &small, end, NULL);
	while (pthread_create(&thread, &small, chain, (void *)(uintptr_t)(random << 8 | which)))
		usleep(1000);
	for (int i = 0; works_on && i < 200; i++)
		__atomic_fetch_add(&counters[which * 8], 1, __ATOMIC_RELAXED);
	return NULL;
}

int main(int argc, char **argv)
{
	int n = argc == 3 ? atoi(argv[1]) : 0;
	pthread_t thread;

	if (n < 1 || n > 64)
		return 2;
	siblings = !!strchr(argv[2], 's');
	works_on = !!strchr(argv[2], 'w');
	counters = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (counters == MAP_FAILED)
		return 9;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 32768);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	for (uintptr_t i = 0; i < (uintptr_t)n; i++)
		if (pthread_create(&thread, &small, chain, (void *)((i * 7919 + 13) << 8 | i)))
			return 9;
	printf("%lu\n", (unsigned long)counters);
	fflush(stdout);
	if (strchr(argv[2], 'f'))
		pthread_exit(NULL);
	for (;;)
		pause();
}
