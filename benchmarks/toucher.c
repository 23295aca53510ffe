/* A process of a given size whose pages are written on demand.
 *
 * usage: toucher MIB huge|small|shared. Each line "N SEED" writes N different pages, scattered, and answers. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t pages = argc > 1 ? strtoull(argv[1], NULL, 10) << 8 : 0;
	int huge = argc > 2 && argv[2][0] == 'h';
	unsigned long n, seed, round = 1;
	char *at, line[64];

	int shared = argc > 2 && !strcmp(argv[2], "shared");

	at = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE,
		  (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
	if (!pages || at == MAP_FAILED)
		return 2;
	madvise(at, pages << 12, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (size_t i = 0; i < pages; i++)
		memset(at + (i << 12), 1 + i % 251, 4096);
	printf("%d\n", getpid());
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) && sscanf(line, "%lu %lu", &n, &seed) == 2) {
		/* A step that shares no factor with a power of two visits each page once. */
		size_t step = (seed * 2654435761u | 1) % pages | 1, p = seed % pages;

		for (unsigned long i = 0; i < n; i++) {
			*(volatile uint64_t *)(at + (p << 12)) = ++round;
			p = (p + step) & (pages - 1);
		}
		puts("done");
		fflush(stdout);
	}
	return 0;
}
