/* Writes memory in every way that the oracle knows, and logs each write in memory of its own, so that an
 * image holds the log of its own instant.
 *
 * For each page the log has `from` and `to`: `to` is set before the page changes, `from` after. At any
 * instant each of the page's three words is one of the two; where both agree, all words do.
 *
 * usage: writer THREADS SEED [counter|none [small|again|calm]]. Prints the address of `control` and then runs until it is
 * killed. With `small` most areas are anonymous mappings of 64 to 512 KiB, each far from all others, and some are mapped
 * piece by piece, beside memory that comes and goes and makes one large mapping of them. With `again` it keeps nothing
 * outside of its memory, so that it may be rolled back. With `calm` no threads and children come and go. */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "writer.h"

struct area {
	uint64_t addr, kind, busy, pages;
	uint64_t from[PAGES], to[PAGES];
};

struct {
	uint64_t magic, threads, counter, errors;
	struct area areas[THREADS][AREAS];
} control __attribute__((aligned(4096)));

#define PIECE 8
#define FILLER 160
static int small;
static struct {
	int slot, filler;
} beside[THREADS][AREAS];

static int copy_file; /* where values stand that read(2) brings in; -1: in memory, for process_vm_readv(2) */

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

/* A page that was given back lazily may be what it was or zero until it is written. */
static void settle(struct area *a, int page)
{
	if (a->from[page] == a->to[page])
		return;
	a->busy = 1;
	barrier();
	for (int i = 0; i < 3; i++)
		*word(a, page, i) = 1;
	a->from[page] = a->to[page] = 1;
	barrier();
	a->busy = 0;
	barrier();
}

static void put(struct area *a, int page, uint64_t value)
{
	settle(a, page);
	a->to[page] = value;
	barrier();
	for (int i = 0; i < 3; i++)
		*word(a, page, i) = value;
	barrier();
	a->from[page] = value;
}

static void copy_within(void *from, void *to)
{
	struct iovec source = {from, PAGE}, target = {to, PAGE};

	if (process_vm_readv(getpid(), &target, 1, &source, 1, 0) != PAGE)
		abort();
}

/* The kernel writes: a whole page by pread(2). */
static void put_by_kernel(struct area *a, int page, int thread, uint64_t value)
{
	uint64_t buf[512] = {0};

	settle(a, page);
	buf[0] = buf[256] = buf[511] = value;
	if (copy_file >= 0 && pwrite(copy_file, buf, PAGE, thread * PAGE) != PAGE)
		abort();
	a->to[page] = value;
	barrier();
	if (copy_file < 0)
		copy_within(buf, (void *)(a->addr + page * PAGE));
	else if (pread(copy_file, (void *)(a->addr + page * PAGE), PAGE, thread * PAGE) != PAGE)
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

/* Addresses that nothing else has, in turn. */
static void *next_slot(int thread, int k)
{
	int slot = beside[thread][k].slot++ % 4;

	return (void *)(0x100000000000ul + ((uint64_t)((thread * AREAS + k) * 4 + slot) << 24));
}

static void *map_at(void *at, size_t pages, int fixed)
{
	void *got = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);

	if (got == MAP_FAILED || (at && got != at))
		abort();
	return got;
}

static void grow_piece(struct area *a)
{
	if (a->pages + PIECE > PAGES)
		return;
	for (int i = 0; i < PIECE; i++)
		a->from[a->pages + i] = a->to[a->pages + i] = 0;
	map_at((void *)(a->addr + a->pages * PAGE), PIECE, MAP_FIXED_NOREPLACE);
	barrier();
	a->pages += PIECE;
}

static void cut_piece(struct area *a, int head)
{
	if (a->pages <= 2 * PIECE)
		return;
	a->busy = 1;
	barrier();
	a->pages -= PIECE;
	munmap((void *)(a->addr + (head ? 0 : a->pages * PAGE)), PIECE * PAGE);
	if (head) {
		a->addr += PIECE * PAGE;
		memmove(a->from, a->from + PIECE, a->pages * 8);
		memmove(a->to, a->to + PIECE, a->pages * 8);
	}
	barrier();
	a->busy = 0;
}

static void toggle_filler(struct area *a, int *filler)
{
	char *at = (char *)(a->addr + a->pages * PAGE);

	if (*filler) {
		munmap(at, FILLER * PAGE);
	} else {
		map_at(at, FILLER, MAP_FIXED_NOREPLACE);
		at[0] = at[FILLER * PAGE - 1] = 1;
	}
	*filler = !*filler;
}

/* Elsewhere as it is, or here anew. Of several mappings the kernel may have moved some before it fails, which it does at
 * one that is registered beside one that is not. */
static void replace(struct area *a, void *to)
{
	void *at = MAP_FAILED;

	a->busy = 1;
	barrier();
	if (to)
		at = mremap((void *)a->addr, a->pages * PAGE, a->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (at != MAP_FAILED) {
		a->addr = (uint64_t)at;
	} else {
		munmap(to, to ? a->pages * PAGE : 0);
		munmap((void *)a->addr, a->pages * PAGE);
		map_at((void *)a->addr, a->pages, MAP_FIXED_NOREPLACE);
		memset(a->from, 0, sizeof(a->from));
		memset(a->to, 0, sizeof(a->to));
	}
	barrier();
	a->busy = 0;
}

static void free_lazily(struct area *a, int first, int n)
{
	void *at = (void *)(a->addr + first * PAGE);

	for (int i = first; i < first + n; i++)
		a->to[i] = 0;
	barrier();
	madvise(at, n * PAGE, MADV_FREE);
	madvise(at, n * PAGE, MADV_PAGEOUT);
}

static void change_pieces(struct area *a, int thread, uint64_t r, int page, int n)
{
	void *at = (void *)(a->addr + page * PAGE);
	int k = a - control.areas[thread], *filler = &beside[thread][k].filler;

	switch ((r >> 32) % 14) {
	case 0:
	case 1:
	case 2:
		if (!*filler)
			grow_piece(a);
		return;
	case 3:
	case 4:
		if (!*filler)
			cut_piece(a, r >> 40 & 1);
		return;
	case 5:
	case 6:
		toggle_filler(a, filler);
		return;
	case 7:
	case 8:
		if (*filler)
			toggle_filler(a, filler);
		replace(a, r >> 40 & 1 ? next_slot(thread, k) : NULL);
		return;
	case 9:
		madvise(at, n * PAGE, MADV_DONTDUMP);
		return;
	case 10:
		madvise((void *)a->addr, a->pages * PAGE, MADV_DODUMP);
		return;
	case 11:
		mprotect(at, n * PAGE, PROT_READ);
		mprotect(at, n * PAGE, PROT_READ | PROT_WRITE);
		return;
	case 12:
		free_lazily(a, page, n);
		return;
	}
	zero(a, page, n, r >> 40 & 1 ? MADV_DONTNEED : -1);
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
		if (r % 64 == 0 && copy_file >= 0) {
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
	case PIECES:
		if (r % 64 == 0) {
			change_pieces(a, thread, r, page, n);
			return;
		}
		break;
	case MOVED:
		if (r % 32 == 0) {
			a->busy = 1;
			barrier();
			void *at = small ? next_slot(thread, a - control.areas[thread])
					 : mmap(NULL, a->pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			void *to = mremap((void *)a->addr, a->pages * PAGE, a->pages * PAGE,
					  MREMAP_MAYMOVE | MREMAP_FIXED, at);
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

static void map_small(struct area *a, int thread, int k)
{
	static const int kinds[AREAS] = {ANON, PIECES, PIECES, REMAPPED, PIECES, TOGGLED, REMAPPED, MOVED, PIECES, HEAP};

	a->kind = kinds[k] == HEAP && thread ? ANON : kinds[k];
	if (a->kind == HEAP)
		return;
	a->pages = (PAGES / 8) << (k + thread) % 4;
	a->addr = (uint64_t)map_at(next_slot(thread, k), a->pages, MAP_FIXED_NOREPLACE);
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
	small = argc > 4 && *argv[4] == 's';
	setvbuf(stdout, NULL, _IONBF, 0);
	/* malloc keeps room of its own below the heap area and never moves the break again. */
	mallopt(M_TRIM_THRESHOLD, 1 << 30);
	mallopt(M_MMAP_THRESHOLD, 16 << 20);
	void *volatile room = malloc(8 << 20);

	free(room);
	copy_file = argc > 4 && *argv[4] == 'a' ? -1 : memfd_create("copy", 0);
	if (copy_file >= 0 && ftruncate(copy_file, THREADS * PAGE))
		return 2;
	for (int i = 0; i < threads; i++)
		for (int k = 0; k < AREAS; k++) {
			struct area *a = &control.areas[i][k];

			a->kind = k == HEAP && i ? ANON : k; /* one heap a process */
			a->pages = PAGES;
			if (small)
				map_small(a, i, k);
			if (!a->addr)
				a->addr = (uint64_t)map_area(a->kind);
		}
	/* A rollback leaves pages of a deleted file as they are that were not in use, so all of them are, always. */
	for (int i = 0; i < threads * AREAS && copy_file < 0; i++)
		for (int page = 0; page < PAGES; page++)
			(void)*word(&control.areas[i / AREAS][i % AREAS], page, 0);
	control.magic = strtoull(argc > 2 ? argv[2] : "1", NULL, 10) * 2654435761u + 1;
	control.threads = threads;
	if (argc > 3 && *argv[3] == 'c')
		pthread_create(&t, NULL, counter, NULL);
	for (int i = 0; i < threads; i++)
		pthread_create(&t, NULL, writer, (void *)(intptr_t)i);
	printf("%p %d\n", (void *)&control, getpid());
	while (argc > 4 && *argv[4] == 'c')
		pause();
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
		usleep(copy_file < 0 ? 10000 : 500);
	}
}
