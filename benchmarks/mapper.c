/* mapper MAPPINGS MIB [PROCESSES]: that many mappings of one page each, and that much memory, all of it in use, in each
 * process. Each line of input is a number of pages of the memory to write, scattered, in each; it is answered. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define MOST 16

struct child {
	FILE *to, *from;
};

/* Returns whether this is the parent. The child's input and output are pipes. */
static int begin(struct child *c)
{
	int down[2], up[2], pid;

	if (pipe(down) || pipe(up) || (pid = fork()) < 0)
		exit(3);
	if (!pid) {
		dup2(down[0], 0);
		dup2(up[1], 1);
	}
	c->to = pid ? fdopen(down[1], "w") : NULL;
	c->from = pid ? fdopen(up[0], "r") : NULL;
	close(down[0]);
	close(up[1]);
	if (!pid) {
		close(down[1]);
		close(up[0]);
	}
	return pid;
}

static void await(const struct child *c)
{
	while (fgetc(c->from) != '\n')
		if (feof(c->from))
			exit(3);
}

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
	int processes = argc > 3 ? atoi(argv[3]) : 1, children = 0;
	struct child child[MOST];
	uint64_t at = 1;
	long n;

	while (children + 1 < processes && children < MOST)
		if (!begin(&child[children++]))
			children = processes = 0;
	char *many = map(mappings * PAGE), *memory = map(pages * PAGE);

	/* Neighbours that differ in protection are not merged. */
	for (size_t i = 0; i < mappings; i++) {
		many[i * PAGE] = 1;
		if (i & 1 && mprotect(many + i * PAGE, PAGE, PROT_READ))
			return 3;
	}
	for (size_t i = 0; i < pages * PAGE; i += 8)
		*(uint64_t *)(memory + i) = i * 0x9e3779b97f4a7c15;
	do {
		for (int i = 0; i < children; i++)
			await(&child[i]);
		puts("ready");
		fflush(stdout);
		if (scanf("%ld", &n) != 1)
			return 0;
		for (int i = 0; i < children; i++) {
			fprintf(child[i].to, "%ld\n", n);
			fflush(child[i].to);
		}
		for (long i = 0; pages && i < n; i++) {
			at = at * 6364136223846793005 + 1442695040888963407;
			memory[(at >> 33) % pages * PAGE + 64]++;
		}
	} while (1);
}
