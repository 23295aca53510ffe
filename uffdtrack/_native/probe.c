#include "compat.h"
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int make_uffd(int user_mode_only, uint64_t want, uint64_t *features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = want};
	int fd = syscall(SYS_userfaultfd,
			 O_CLOEXEC | O_NONBLOCK | (user_mode_only ? UFFD_USER_MODE_ONLY : 0));

	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api)) {
		int err = -errno;

		close(fd);
		return err;
	}
	if (features)
		*features = api.features;
	return fd;
}

int ut_probe_uffd(int user_mode_only, uint64_t *features)
{
	int fd = make_uffd(user_mode_only, 0, features);

	if (fd < 0)
		return fd;
	close(fd);
	return 1;
}

static long scan(int pagemap, const uint8_t *at, size_t len, uint64_t flags)
{
	struct ut_page_region found[8];
	struct ut_pm_scan_arg a = {
		.size = sizeof(a), .flags = flags, .start = (uint64_t)at, .end = (uint64_t)at + len,
		.vec = (uint64_t)found, .vec_len = 8, .category_mask = UT_PAGE_IS_WRITTEN,
		.return_mask = UT_PAGE_IS_WRITTEN,
	};
	long n = ioctl(pagemap, UT_PAGEMAP_SCAN, &a), pages = 0;

	if (n < 0)
		return -errno;
	for (long i = 0; i < n; i++)
		pages += (found[i].end - found[i].start) / UT_PAGE;
	return pages;
}

/* Arm 4 MiB of own memory, touch it in a way of the caller's, and count what a scan reports. */
static long tried(int user_mode_only, int huge, void (*touch)(uint8_t *))
{
	const uint64_t flags = UT_SCAN_WP_MATCHING | UT_SCAN_CHECK_WPASYNC;
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_WP};
	int pagemap = -1, uffd = make_uffd(user_mode_only, UFFD_FEATURE_WP_ASYNC, NULL);
	uint8_t *map, *at;
	long r;

	if (uffd < 0)
		return uffd;
	map = mmap(NULL, 3 * UT_HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED) {
		r = -errno;
		goto out;
	}
	at = (uint8_t *)(((uint64_t)map + UT_HUGE - 1) & ~(UT_HUGE - 1));
	madvise(at, 2 * UT_HUGE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	memset(at, 1, 2 * UT_HUGE);
	reg.range.start = (uint64_t)at;
	reg.range.len = 2 * UT_HUGE;
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap < 0 || ioctl(uffd, UFFDIO_REGISTER, &reg))
		r = -errno;
	else
		r = scan(pagemap, at, 2 * UT_HUGE, flags);
	if (r >= 0) {
		touch(at);
		r = scan(pagemap, at, 2 * UT_HUGE, flags);
	}
	munmap(map, 3 * UT_HUGE);
	if (pagemap >= 0)
		close(pagemap);
out:
	close(uffd);
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

/* In a child: guard pages over armed pages of a private file mapping. */
static int install_guard(int user_mode_only)
{
	struct uffdio_register reg = {.range = {.len = 8 * UT_PAGE}, .mode = UFFDIO_REGISTER_MODE_WP};
	int uffd = make_uffd(user_mode_only, UFFD_FEATURE_WP_ASYNC, NULL);
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int file = syscall(SYS_memfd_create, "probe", 0);
	uint8_t *at;

	if (uffd < 0 || pagemap < 0 || file < 0 || ftruncate(file, 8 * UT_PAGE))
		return -EIO;
	at = mmap(NULL, 8 * UT_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (at == MAP_FAILED)
		return -EIO;
	memset(at, 1, 8 * UT_PAGE);
	reg.range.start = (uint64_t)at;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg) ||
	    scan(pagemap, at, 8 * UT_PAGE, UT_SCAN_WP_MATCHING | UT_SCAN_CHECK_WPASYNC) < 0)
		return -EIO;
	return madvise(at, 2 * UT_PAGE, 102 /* MADV_GUARD_INSTALL, Linux 6.13 */) ? -errno : 1;
}

/* A kernel that cannot do it repeats the call for ever; it can be killed. */
int ut_probe_guard(int user_mode_only)
{
	struct timespec nap = {0, 1000000};
	int status, done = 0, pid = fork();

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
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	long r;

	if (fd < 0)
		return -errno;
	page[0] = 1;
	r = scan(fd, page, sizeof(page), 0);
	close(fd);
	return r < 0 ? r : 1;
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
	int status, r = 1, pid = fork();

	if (pid < 0)
		return -errno;
	if (!pid) {
		for (;;)
			pause();
	}
	if (ptrace(PTRACE_SEIZE, pid, NULL, seccomp ? (void *)(1l << 21) : NULL))
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
