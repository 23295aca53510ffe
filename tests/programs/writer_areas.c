/* The kinds of memory that writer.c writes. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "writer.h"

void *map_area(int kind)
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
