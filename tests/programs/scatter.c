/* scatter PAGES: so much memory. For each line of input, a number, it writes so many words of it, anywhere, and answers. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
	size_t words = argc == 2 ? strtoul(argv[1], NULL, 0) * 512 : 0;
	uint64_t *memory = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t at = 1;
	long n;

	if (!words || memory == MAP_FAILED)
		return 2;
	while (printf("ready\n") && !fflush(stdout) && scanf("%ld", &n) == 1)
		for (long i = 0; i < n; i++) {
			at = at * 6364136223846793005 + 1442695040888963407;
			memory[(at >> 24) % words] = at;
		}
	return 0;
}
