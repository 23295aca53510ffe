/* Writes memory in every way that the oracle knows, and logs each write in memory of its own, so that an
 * image holds the log of its own instant.
 *
 * For each page the log has `from` and `to`: `to` is set before the page changes, `from` after. At any
 * instant each of the page's three words is one of the two; where both agree, all words do.
 *
 * usage: writer THREADS SEED. Prints the address of `control` and then runs until it is killed. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGES 128
#define AREAS 10
#define THREADS 4
#define PAGE 4096ul

enum { ANON, HUGE, MEMFD, FILE_PRIVATE, SHARED_ANON, TOGGLED, REMAPPED, MOVED, HEAP, GROWN };

struct area {
	uint64_t addr, kind, busy, pages;
	uint64_t from[PAGES], to[PAGES];
};

struct {
	uint64_t magic, threads, counter, errors;
	struct area areas[THREADS][AREAS];
} control __attribute__((aligned(4096)));

static int copy_file; /* where values stand that read(2) brings in */

static uint64_t next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

#define barrier() __asm__ volatile("" ::: "memory")

static volatile uint64_t *word(struct area *a, int page, int i)
{
	static const int at[3] = {0, 2048, 4088};

	return (volatile uint64_t *)(a->addr + page * PAGE + at[i]);
}

static void put(struct area *a, int page, uint64_t value)
{
	a->to[page] = value;
	barrier();
	for (int i = 0; i < 3; i++)
		*word(a, page, i) = value;
	barrier();
	a->from[page] = value;
}

/* The kernel writes: a whole page by pread(2). */
static void put_by_kernel(struct area *a, int page, int thread, uint64_t value)
{
	uint64_t buf[512] = {0};

	buf[0] = buf[256] = buf[511] = value;
	if (pwrite(copy_file, buf, PAGE, thread * PAGE) != PAGE)
		abort();
	a->to[page] = value;
	barrier();
	if (pread(copy_file, (void *)(a->addr + page * PAGE), PAGE, thread * PAGE) != PAGE)
		abort();
	barrier();
	a->from[page] = value;
}

/* Pages [first, first+n) become zero, by madvise or by a new mapping. */
static void zero(struct area *a, int first, int n, int how)
{
	void *at = (void *)(a->addr + first * PAGE);

	for (int i = first; i < first + n; i++)
		a->to[i] = 0;
	barrier();
	if (how == MADV_DONTNEED || how == MADV_REMOVE) {
		if (madvise(at, n * PAGE, how))
			abort();
	} else if (mmap(at, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			0) != at) {
		abort();
	}
	barrier();
	for (int i = first; i < first + n; i++)
		a->from[i] = 0;
}

static void step(struct area *a, int thread, uint64_t *seed)
{
	uint64_t r = next(seed), value = next(seed) | 1;
	int page = (r >> 8) % a->pages, n = 1 + (r >> 20) % 8;

	if (page + n > (int)a->pages)
		n = a->pages - page;
	switch (a->kind) {
	case ANON:
	case HUGE:
		if (r % 64 == 0) {
			zero(a, page, n, MADV_DONTNEED);
			return;
		}
		break;
	case MEMFD:
		if (r % 64 == 0) {
			zero(a, page, n, MADV_REMOVE);
			return;
		}
		break;
	case FILE_PRIVATE: /* the file holds zeros */
		if (r % 64 == 0) {
			zero(a, page, n, MADV_DONTNEED);
			return;
		}
		break;
	case TOGGLED:
		mprotect((void *)(a->addr + page * PAGE), PAGE, PROT_READ | PROT_WRITE);
		put(a, page, value);
		mprotect((void *)(a->addr + page * PAGE), PAGE, r & 64 ? PROT_READ : PROT_NONE);
		return;
	case REMAPPED:
		if (r % 16 == 0) {
			zero(a, page, n, -1);
			return;
		}
		break;
	case MOVED:
		if (r % 32 == 0) {
			a->busy = 1;
			barrier();
			void *to = mremap((void *)a->addr, a->pages * PAGE, a->pages * PAGE,
					  MREMAP_MAYMOVE | MREMAP_FIXED,
					  mmap(NULL, a->pages * PAGE, PROT_NONE,
					       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
			if (to == MAP_FAILED)
				abort();
			a->addr = (uint64_t)to;
			barrier();
			a->busy = 0;
			return;
		}
		break;
	case HEAP: /* shrinks and grows by brk(2); only one thread has it */
		if (r % 64 == 0) {
			for (int i = PAGES / 2; i < PAGES; i++)
				a->to[i] = 0;
			barrier();
			a->pages = PAGES / 2;
			barrier();
			if (sbrk(-(PAGES / 2) * PAGE) == (void *)-1 ||
			    sbrk(PAGES / 2 * PAGE) == (void *)-1)
				abort();
			for (int i = PAGES / 2; i < PAGES; i++)
				a->from[i] = 0;
			barrier();
			a->pages = PAGES;
			return;
		}
		break;
	case GROWN:
		if (r % 64 == 0) {
			/* Cut off the end and grow again, by mremap in place or elsewhere. */
			a->busy = 1;
			barrier();
			for (int i = PAGES / 2; i < PAGES; i++)
				a->from[i] = a->to[i] = 0;
			void *at = mremap((void *)a->addr, PAGES * PAGE, PAGES / 2 * PAGE, 0);
			at = mremap(at, PAGES / 2 * PAGE, PAGES * PAGE, MREMAP_MAYMOVE);
			if (at == MAP_FAILED)
				abort();
			a->addr = (uint64_t)at;
			barrier();
			a->busy = 0;
			return;
		}
		break;
	}
	if (r & 128)
		put(a, page, value);
	else
		put_by_kernel(a, page, thread, value);
}

static void *map_area(int kind)
{
	size_t size = PAGES * PAGE;
	int fd;

	switch (kind) {
	case HUGE: {
		char *at = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		at = (char *)(((uint64_t)at + (2 << 20) - 1) & ~((2ul << 20) - 1));
		madvise(at, 2 << 20, MADV_HUGEPAGE);
		return at;
	}
	case MEMFD:
		fd = memfd_create("oracle", 0);
		if (ftruncate(fd, size))
			abort();
		return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	case FILE_PRIVATE: {
		char name[] = "/tmp/uffdtrack-oracle-XXXXXX";

		fd = mkstemp(name);
		if (ftruncate(fd, size))
			abort();
		void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

		unlink(name);
		return at;
	}
	case SHARED_ANON:
		return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	case HEAP: {
		uint64_t at = (uint64_t)sbrk(0);

		sbrk(PAGE - at % PAGE);
		return sbrk(size);
	}
	default:
		return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	}
}

static void *writer(void *arg)
{
	int thread = (int)(intptr_t)arg;
	uint64_t seed = control.magic + thread * 7919;

	for (;;)
		step(&control.areas[thread][next(&seed) % AREAS], thread, &seed);
	return NULL;
}

/* A register and a word of memory that never differ by more than one. */
static void *counter(void *arg)
{
	__asm__ volatile("xor %%r12, %%r12\n"
			 "1: inc %%r12\n"
			 "mov %%r12, %0\n"
			 "movq %%r12, %%xmm9\n"
			 "jmp 1b\n"
			 : "=m"(control.counter)::"r12", "xmm9", "memory");
	return arg;
}

static void *short_lived(void *arg)
{
	volatile char stack[64 << 10];

	for (size_t i = 0; i < sizeof(stack); i += 4096)
		stack[i] = 1;
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t t;
	int threads = argc > 1 ? atoi(argv[1]) : 2;

	if (threads > THREADS)
		return 2;
	setvbuf(stdout, NULL, _IONBF, 0);
	/* malloc keeps room of its own below the heap area and never moves the break again. */
	mallopt(M_TRIM_THRESHOLD, 1 << 30);
	mallopt(M_MMAP_THRESHOLD, 16 << 20);
	void *volatile room = malloc(8 << 20);

	free(room);
	copy_file = memfd_create("copy", 0);
	if (ftruncate(copy_file, THREADS * PAGE))
		return 2;
	for (int i = 0; i < threads; i++)
		for (int k = 0; k < AREAS; k++) {
			struct area *a = &control.areas[i][k];

			a->kind = k == HEAP && i ? ANON : k; /* one heap a process */
			a->pages = PAGES;
			a->addr = (uint64_t)map_area(a->kind);
		}
	control.magic = strtoull(argc > 2 ? argv[2] : "1", NULL, 10) * 2654435761u + 1;
	control.threads = threads;
	if (argc > 3)
		pthread_create(&t, NULL, counter, NULL);
	for (int i = 0; i < threads; i++)
		pthread_create(&t, NULL, writer, (void *)(intptr_t)i);
	printf("%p %d\n", (void *)&control, getpid());
	for (int i = 0;; i++) { /* threads and children that come and go */
		pthread_create(&t, NULL, short_lived, NULL);
		pthread_join(t, NULL);
		if (i % 64 == 0) {
			pid_t child = fork();

			if (!child) {
				for (int k = 0; k < AREAS; k++)
					if (control.areas[0][k].kind == ANON)
						*word(&control.areas[0][k], 3, 0) = 99;
				_exit(0);
			}
			waitpid(child, NULL, 0);
		}
		usleep(500);
	}
}
