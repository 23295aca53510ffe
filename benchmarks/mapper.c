/* mapper MAPPINGS MIB: that many mappings of one page each, and that much memory, all of it in use. Each line of input is a
 * number of pages of the memory to write, scattered; it is answered. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096ul

static char *map(size_t bytes)
{
	char *p = mmap(NULL, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		exit(3);
	return p;
}

int main(int argc, char **argv)
{
	size_t mappings = argc > 1 ? strtoul(argv[1], NULL, 0) : 0;
	size_t pages = (argc > 2 ? strtoul(argv[2], NULL, 0) : 0) << 8;
	char *many = map(mappings * PAGE), *memory = map(pages * PAGE);
	uint64_t at = 1;
	long n;

	/* Neighbours that differ in protection are not merged. */
	for (size_t i = 0; i < mappings; i++) {
		many[i * PAGE] = 1;
		if (i & 1 && mprotect(many + i * PAGE, PAGE, PROT_READ))
			return 3;
	}
	for (size_t i = 0; i < pages * PAGE; i += 8)
		*(uint64_t *)(memory + i) = i * 0x9e3779b97f4a7c15;
	do {
		puts("ready");
		fflush(stdout);
		if (scanf("%ld", &n) != 1)
			return 0;
		for (long i = 0; pages && i < n; i++) {
			at = at * 6364136223846793005 + 1442695040888963407;
			memory[(at >> 33) % pages * PAGE + 64]++;
		}
	} while (1);
}
