/* A process of three threads, one of which writes some pages, scattered, so many times a second.
 *
 * usage: steady MIB PAGES RATE */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static void *rest(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	size_t pages = argc == 4 ? strtoull(argv[1], NULL, 10) << 8 : 0;
	long each = pages ? atol(argv[2]) : 0, ns = pages ? 1e9 / atof(argv[3]) : 0;
	uint64_t random = 1;
	struct timespec at;
	pthread_t thread;
	char *memory = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!pages || memory == MAP_FAILED)
		return 2;
	madvise(memory, pages << 12, MADV_NOHUGEPAGE);
	memset(memory, 1, pages << 12);
	for (int i = 0; i < 2; i++)
		if (pthread_create(&thread, NULL, rest, NULL))
			return 1;
	puts("ready");
	fflush(stdout);
	for (clock_gettime(CLOCK_MONOTONIC, &at);;) {
		for (long i = 0; i < each; i++) {
			random = random * 6364136223846793005u + 1442695040888963407u;
			memory[(random >> 20) % pages << 12]++;
		}
		for (at.tv_nsec += ns; at.tv_nsec >= 1000000000; at.tv_nsec -= 1000000000)
			at.tv_sec++;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
	}
}
