/* attributes NAME MODE: one mapping with an attribute that is more than its protection (madvise(2), mlock(2), pkeys(7),
 * prctl(2)). MODE says what becomes of it at the first line of input: "clear" takes the attribute away, "set" has not
 * set it before and does, "unmap" removes the mapping, "keep" changes nothing. The second line asks what it holds. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ul
#define SIZE (16 * PAGE)
#define DROPPABLE 0x08       /* MAP_DROPPABLE, Linux 6.11 */
#define SET_VMA 0x53564d41   /* PR_SET_VMA, Linux 5.17 */
#define MLOCK_ON_FAULT 1
#define SYS_MSEAL 462        /* Linux 6.10 */

static const struct {
	const char *name;
	int set, clear; /* of madvise(2); 0: see below */
	int flags;      /* of mmap(2) */
} table[] = {
	{"plain", 0, 0, 0},
	{"wipeonfork", 18, 19, 0},
	{"dontfork", 10, 11, 0},
	{"dontdump", 16, 17, 0},
	{"hugepage", 14, 15, 0},
	{"nohugepage", 15, 14, 0},
	{"mergeable", 12, 13, 0},
	{"random", 1, 0, 0},
	{"sequential", 2, 0, 0},
	{"locked", 0, 0, 0},
	{"onfault", 0, 0, 0},
	{"pkey", 0, 0, 0},
	{"name", 0, 0, 0},
	{"sealed", 0, 0, 0},
	{"growsdown", 0, 0, MAP_GROWSDOWN},
	{"noreserve", 0, 0, MAP_NORESERVE},
	{"droppable", 0, 0, DROPPABLE},
	{"hugetlb", 0, 0, MAP_HUGETLB},
};
static size_t size = SIZE;
static int key;

static long apply(size_t which, char *p, int on)
{
	const char *name = table[which].name;

	if (!strcmp(name, "locked"))
		return on ? mlock(p, size) : munlock(p, size);
	if (!strcmp(name, "onfault"))
		return on ? syscall(SYS_mlock2, p, size, MLOCK_ON_FAULT) : munlock(p, size);
	if (!strcmp(name, "pkey") && on && key < 0)
		return -1; /* a processor without: the kernel would take -1 for "no key of its own" */
	if (!strcmp(name, "pkey"))
		return syscall(SYS_pkey_mprotect, p, size, PROT_READ | PROT_WRITE, on ? key : 0);
	if (!strcmp(name, "name"))
		return prctl(SET_VMA, 0, p, size, on ? "uffdtrack test" : NULL);
	if (!strcmp(name, "sealed"))
		return on ? syscall(SYS_MSEAL, p, size, 0) : 0;
	if (table[which].set)
		return madvise(p, size, on ? table[which].set : table[which].clear);
	return 0;
}

static char *map(size_t which, int with)
{
	int flags = with ? table[which].flags : 0;
	char *p;

	flags |= flags & DROPPABLE ? MAP_ANONYMOUS : MAP_ANONYMOUS | MAP_PRIVATE;
	if (table[which].flags & MAP_HUGETLB)
		size = 2 << 20;
	/* Room on both sides: it is to merge with nobody. */
	p = mmap(NULL, 3 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	p = (char *)(((unsigned long)p + 2 * size - 1) & -size);
	munmap(p, size);
	p = mmap(p, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

static int say(const char *word, const char *p)
{
	printf("%s %p %lu\n", word, (const void *)p, size);
	return fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[16], *p = NULL;
	size_t which = 0;
	int before = argc > 2 && strcmp(argv[2], "set");

	if (argc != 3)
		return 2;
	while (strcmp(table[which].name, argv[1]))
		which++;
	key = syscall(SYS_pkey_alloc, 0, 0);
	p = map(which, before);
	if (!p || (before && apply(which, p, 1)))
		return say("cannot", p);
	memset(p, 7, size);
	say("ready", p);
	while (fgets(line, sizeof(line), stdin) && *line == 'p')
		say(p[0] == 7 ? "old" : p[0] == 9 ? "new" : "none", p);
	if (strcmp(argv[2], "keep"))
		memset(p, 9, size);
	if (!strcmp(argv[2], "unmap")) {
		munmap(p, size);
	} else if (strcmp(argv[2], "keep") && table[which].flags) {
		munmap(p, size);
		if (mmap(p, size, PROT_READ | PROT_WRITE,
			 MAP_ANONYMOUS | MAP_FIXED_NOREPLACE |
				 (before ? MAP_PRIVATE : table[which].flags & DROPPABLE
							? DROPPABLE
							: MAP_PRIVATE | table[which].flags),
			 -1, 0) != p)
			return say("cannot", p);
		memset(p, 9, size);
	} else if (strcmp(argv[2], "keep") && apply(which, p, !before)) {
		return say("cannot", p);
	}
	say("done", p);
	while (fgets(line, sizeof(line), stdin))
		say(strcmp(argv[2], "unmap") ? (p[0] == 7 ? "old" : "new") : "gone", p);
	return 0;
}
