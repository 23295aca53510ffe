/* Calls exec again and again, from a thread that is not the first, while others write.
 *
 * Argument: the generation. Each writes its number to the first word of PAGES pages at AT, prints it, and becomes
 * the next one, some milliseconds later or at once. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define AT ((char *)0x200000000000)
#define PAGES 16

static char **args;

static void *spin(void *arg)
{
	volatile char *own = mmap(NULL, 1 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (unsigned i = 0;; i++)
		own[i * 4096 & ((1 << 20) - 1)] = i;
	return arg;
}

static void *next(void *arg)
{
	char number[24];

	snprintf(number, sizeof(number), "%lu", *(uint64_t *)arg + 1);
	execv("/proc/self/exe", (char *[]){args[0], number, NULL});
	perror("exec");
	exit(1);
}

int main(int argc, char **argv)
{
	uint64_t generation = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	pthread_t t;

	args = argv;
	if (mmap(AT, PAGES * 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != AT)
		return 1;
	for (int i = 0; i < PAGES; i++)
		*(uint64_t *)(AT + i * 4096) = generation;
	for (int i = 0; i < 3; i++)
		pthread_create(&t, NULL, spin, NULL);
	dprintf(1, "%lu\n", generation);
	usleep(generation % 8 * 2000);
	pthread_create(&t, NULL, next, &generation);
	for (;;)
		pause();
}
