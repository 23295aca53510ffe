/* A process that lives as long as its child, and does nothing else. A fork made it, so it gives that memory back. */
#include "compat.h"
#include "keep.h"
#include "maps.h"
#include "runs.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST = 2048 };

/* Not libc's: what binds its functions at their first call keeps its tables in memory that is gone by then. */
static long raw(long nr, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long r;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return r;
}

static int has(const ut_region *r, const void *at)
{
	return r->start <= (uintptr_t)at && (uintptr_t)at < r->end;
}

/* Private memory of no file, but this stack and the thread's own block. */
static size_t find_surplus(ut_run *to, size_t most)
{
	ut_maps m = {0};
	size_t n = 0;

	if (ut_maps_read(&m, getpid(), getpid()))
		return 0;
	for (size_t i = 0; i < m.n && n < most; i++) {
		const ut_region *r = &m.regions[i];

		if (r->kind == UT_KIND_ANON && !has(r, &m) && !has(r, __builtin_thread_pointer()))
			to[n++] = (ut_run){r->start, r->end};
	}
	return n;
}

void ut_keep(int child, int to)
{
	ut_run surplus[MOST];
	size_t n = find_surplus(surplus, MOST);
	int status = 0;
	long r;

	for (int i = 1; i < NSIG; i++)
		signal(i, i == SIGPIPE ? SIG_IGN : SIG_DFL);
	for (size_t i = 0; i < n; i++)
		raw(SYS_madvise, surplus[i].start, surplus[i].end - surplus[i].start, MADV_DONTNEED, 0);
	do
		r = raw(SYS_wait4, child, (long)&status, 0, 0);
	while (r == -EINTR);
	if (r == child)
		raw(SYS_write, to, (long)&status, sizeof(status), 0);
	for (;;)
		raw(SYS_exit_group, 0, 0, 0, 0);
}
