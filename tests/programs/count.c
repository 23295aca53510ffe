/* Preloaded: counts what given libraries allocate and free. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void __libc_free(void *);

static struct {
	uintptr_t start, end;
} ranges[8];
static int nranges;
static _Atomic long counted;

void count_range(uintptr_t start, uintptr_t end)
{
	ranges[nranges].start = start;
	ranges[nranges++].end = end;
}

long count_so_far(void)
{
	return atomic_load(&counted);
}

static void count(void *from)
{
	for (int i = 0; i < nranges; i++)
		if ((uintptr_t)from >= ranges[i].start && (uintptr_t)from < ranges[i].end)
			atomic_fetch_add(&counted, 1);
}

void *malloc(size_t n)
{
	count(__builtin_return_address(0));
	return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	count(__builtin_return_address(0));
	return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
	count(__builtin_return_address(0));
	return __libc_realloc(p, n);
}

void free(void *p)
{
	count(__builtin_return_address(0));
	__libc_free(p);
}

void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
	count(__builtin_return_address(0));
	return (void *)syscall(SYS_mmap, at, len, prot, flags, fd, offset);
}

int munmap(void *at, size_t len)
{
	count(__builtin_return_address(0));
	return syscall(SYS_munmap, at, len);
}
