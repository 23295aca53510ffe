#include "cleanup.h"
#include "fault_ring.h"
#include "mm.h"
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

int ut_probe_uffd(int user_mode_only, uint64_t *features)
{
	int fd = ut_uffd_make(user_mode_only, 0, features);

	if (fd < 0)
		return fd;
	close(fd);
	return 1;
}

/* Pages that were written; with UT_REARM their traps are set. */
static long count_written(int pagemap, const uint8_t *at, size_t len, uint64_t flags)
{
	struct ut_page_region found[8];
	ut_scan scan = {.pagemap = pagemap, .start = (uint64_t)at, .end = (uint64_t)at + len, .flags = flags,
			.found = found, .room = 8, UT_SCAN_WRITTEN};
	long n, pages = 0;

	while ((n = ut_scan_next(&scan)) > 0)
		for (long i = 0; i < n; i++)
			pages += (found[i].end - found[i].start) / UT_PAGE;
	return n < 0 ? n : pages;
}

static long open_pagemap(void)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static long touch_armed(int uffd, int pagemap, uint8_t *at, void (*touch)(uint8_t *))
{
	TRY(ut_register(uffd, (uint64_t)at, 2 * UT_HUGE, UFFDIO_REGISTER_MODE_WP));
	TRY(count_written(pagemap, at, 2 * UT_HUGE, UT_REARM));
	touch(at);
	return count_written(pagemap, at, 2 * UT_HUGE, UT_REARM);
}

/* Arm 4 MiB of own memory, touch it in a way of the caller's, and count what a scan reports. */
static long tried(int user_mode_only, int huge, void (*touch)(uint8_t *))
{
	AUTO_FD uffd = ut_uffd_make(user_mode_only, UFFD_FEATURE_WP_ASYNC, NULL);
	AUTO_FD pagemap = open_pagemap();
	uint8_t *map, *at;
	long r;

	TRY(uffd);
	TRY(pagemap);
	map = mmap(NULL, 3 * UT_HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		return -errno;
	at = (uint8_t *)(((uint64_t)map + UT_HUGE - 1) & ~(UT_HUGE - 1));
	madvise(at, 2 * UT_HUGE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	memset(at, 1, 2 * UT_HUGE);
	r = touch_armed(uffd, pagemap, at, touch);
	munmap(map, 3 * UT_HUGE);
	return r;
}

static void write_one(uint8_t *at)
{
	((volatile uint8_t *)at)[5 * UT_PAGE] = 2;
}

static void zap_pmd(uint8_t *at)
{
	madvise(at, UT_HUGE, MADV_DONTNEED);
}

int ut_probe_wp_async(int user_mode_only)
{
	long r = tried(user_mode_only, 0, write_one);

	return r < 0 ? r : r == 1;
}

int ut_probe_zapped_pmd(int user_mode_only, int huge)
{
	long r = tried(user_mode_only, huge, zap_pmd);

	return r < 0 ? r : r == 512;
}

/* fork(2); the child ends with us, however we end. */
static int fork_bound(void)
{
	int parent = getpid(), child = fork();

	if (!child && (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent))
		_exit(EIO);
	return child;
}

/* In a child: guard pages over armed pages of a private file mapping. */
static int install_guard(int user_mode_only)
{
	int uffd = ut_uffd_make(user_mode_only, UFFD_FEATURE_WP_ASYNC, NULL), pagemap = open_pagemap();
	int file = syscall(SYS_memfd_create, "probe", 0);
	uint8_t *at;

	if (uffd < 0 || pagemap < 0 || file < 0 || ftruncate(file, 8 * UT_PAGE))
		return -EIO;
	at = mmap(NULL, 8 * UT_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (at == MAP_FAILED)
		return -EIO;
	memset(at, 1, 8 * UT_PAGE);
	if (ut_register(uffd, (uint64_t)at, 8 * UT_PAGE, UFFDIO_REGISTER_MODE_WP) ||
	    count_written(pagemap, at, 8 * UT_PAGE, UT_REARM) < 0)
		return -EIO;
	return madvise(at, 2 * UT_PAGE, UT_MADV_GUARD_INSTALL) ? -errno : 1;
}

/* A kernel that cannot do it repeats the call for ever; it can be killed. */
int ut_probe_guard(int user_mode_only)
{
	struct timespec nap = {0, 1000000};
	int status, done = 0, pid = fork_bound();

	if (pid < 0)
		return -errno;
	if (!pid) {
		int r = install_guard(user_mode_only);

		_exit(r < 0 ? -r : 0);
	}
	for (int i = 0; i < 1000 && !done; i++) {
		done = waitpid(pid, &status, WNOHANG);
		if (!done)
			nanosleep(&nap, NULL);
	}
	if (done == pid)
		return WIFEXITED(status) ? (WEXITSTATUS(status) ? -WEXITSTATUS(status) : 1) : -EIO;
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return 0;
}

int ut_probe_pagemap_scan(void)
{
	static uint8_t page[4096] __attribute__((aligned(4096)));
	AUTO_FD fd = open_pagemap();
	long n;

	TRY(fd);
	page[0] = 1;
	n = count_written(fd, page, sizeof(page), 0);
	return n < 0 ? n : 1;
}

int ut_probe_perf_faults(void)
{
	ut_fault_events events;

	TRY(ut_fault_events_open(0, UT_NO_WAKE, 0, &events));
	ut_fault_events_close(&events);
	return 1;
}

int ut_probe_pidfd_getfd(void)
{
	int copy, err, pidfd = syscall(SYS_pidfd_open, getpid(), 0);

	if (pidfd < 0)
		return -errno;
	copy = syscall(SYS_pidfd_getfd, pidfd, pidfd, 0);
	err = -errno;
	close(pidfd);
	if (copy < 0)
		return err;
	close(copy);
	return 1;
}

/* Seize, interrupt and release a child that pauses; `seccomp` also suspends its (absent) filter. */
static int try_ptrace(int seccomp)
{
	int status, r = 1, pid = fork_bound();

	if (pid < 0)
		return -errno;
	if (!pid) {
		for (;;)
			pause();
	}
	if (ptrace(PTRACE_SEIZE, pid, NULL, seccomp ? (void *)(long)UT_PTRACE_O_SUSPEND_SECCOMP : NULL))
		r = -errno;
	else if (!seccomp && (ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) ||
			      waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status) ||
			      ptrace(PTRACE_DETACH, pid, NULL, NULL)))
		r = -errno;
	kill(pid, SIGKILL);
	while (waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status))
		;
	return r;
}

int ut_probe_ptrace(void)
{
	return try_ptrace(0);
}

int ut_probe_suspend_seccomp(void)
{
	return try_ptrace(1);
}
