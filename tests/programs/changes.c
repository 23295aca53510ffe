/* One thread, with memory that a rollback has to bring back whole or leave alone. Each line of input
 * changes something after its first letter; the answer is what the memory holds, "1" at the start.
 *
 * c  nothing    p  nothing, "cannot"   h  grow the heap by 8192 bytes, and write them
 * f  cut the mapped file short        g  make a filled page a guard page
 * s  map a page and seal it           m  seal a page, with what was unmapped beside it
 * r  map memory over the file, of which only a descriptor for reading is left
 * v  unmap, replace, protect, map, touch: all that can be brought back */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 16
#define GUARD_INSTALL 102 /* MADV_GUARD_INSTALL, Linux 6.13 */
#define SYS_MSEAL 462     /* Linux 6.10 */

static volatile int state = 1;
static char *tables[4], *file, *fresh;
static int descriptor;

/* No stdio for input: its buffer would make a heap. */
static int read_line(char *line, size_t size)
{
	size_t n = 0;

	while (n + 1 < size && read(0, line + n, 1) == 1) {
		if (line[n] == '\n') {
			line[n] = 0;
			return 1;
		}
		n++;
	}
	return 0;
}

static void say(const char *text)
{
	char line[64];
	int n = snprintf(line, sizeof(line), "%s\n", text);

	if (write(1, line, n) != n)
		exit(3);
}

static char *map(size_t pages)
{
	/* With a page on each side that is no one's, so that each is a mapping of its own. */
	char *p = mmap(NULL, (pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	munmap(p, PAGE);
	munmap(p + (pages + 1) * PAGE, PAGE);
	return mmap(p + PAGE, pages * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void fill(char c)
{
	for (int i = 0; i < 4; i++)
		memset(tables[i], c, PAGES * PAGE);
	memset(file, c, PAGES * PAGE);
	state = c;
}

static void answer(void)
{
	char text[16];

	for (int i = 0; i < 4; i++)
		for (size_t k = 0; k < PAGES * PAGE; k += PAGE)
			if (tables[i][k] != state)
				return say("torn");
	for (size_t k = 0; k < PAGES * PAGE; k += PAGE)
		if (file[k] != state)
			return say("torn");
	snprintf(text, sizeof(text), "%d", state);
	say(text);
}

static long change(char what)
{
	int self;
	char *p;

	switch (what) {
	case 'p':
		return -1;
	case 'h':
		p = sbrk(2 * PAGE);
		if (p == (void *)-1)
			return -1;
		memset(p, 9, 2 * PAGE);
		return 0;
	}
	fill(2);
	switch (what) {
	case 'f':
		return ftruncate(descriptor, PAGES / 2 * PAGE);
	case 'g':
		return madvise(tables[0] + PAGE, PAGE, GUARD_INSTALL);
	case 's':
		return syscall(SYS_MSEAL, map(1), PAGE, 0);
	case 'm':
		munmap(tables[0], PAGE);
		mprotect(tables[1], PAGE, PROT_READ);
		return syscall(SYS_MSEAL, tables[1], PAGE, 0);
	case 'r':
		memset(file, 1, PAGES * PAGE);
		p = mmap(file, PAGES * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		memset(p, 2, PAGES * PAGE);
		return 0;
	case 'v':
		self = open("/proc/self/exe", O_RDONLY);
		munmap(tables[0], 3 * PAGE);
		mprotect(tables[1] + PAGE, 3 * PAGE, PROT_NONE);
		p = mmap(tables[2] + PAGE, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, self, 0);
		close(self);
		memset(map(5), 5, 5 * PAGE);
		memset(fresh, 5, 3 * PAGE);
		return p == MAP_FAILED ? -1 : change('h');
	}
	return -1;
}

int main(int argc, char **argv)
{
	char line[16];

	if (argc != 3)
		return 2;
	sbrk(0); /* from now on the C library knows the break, and asks no more */
	descriptor = open(argv[1], O_RDWR | O_CREAT, 0600);
	if (ftruncate(descriptor, PAGES * PAGE))
		return 2;
	file = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
	for (int i = 0; i < 4; i++)
		tables[i] = map(PAGES);
	fresh = map(PAGES);
	fill(1);
	if (*argv[2] == 'r') {
		close(descriptor);
		descriptor = open(argv[1], O_RDONLY);
	}
	say("ready");
	while (read_line(line, sizeof(line))) {
		if (*line != 'c')
			say(change(*line) ? "cannot" : "done");
		else
			answer();
	}
	return 0;
}
