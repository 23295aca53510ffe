#include "cleanup.h"
#include "mm.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

int ut_uffd_api(int uffd, uint64_t features, uint64_t *supported)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};

	if (ioctl(uffd, UFFDIO_API, &api))
		return -errno;
	if (supported)
		*supported = api.features;
	return 0;
}

int ut_uffd_make(int user_mode_only, uint64_t features, uint64_t *supported)
{
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | (user_mode_only ? UFFD_USER_MODE_ONLY : 0));
	int err;

	if (uffd < 0)
		return -errno;
	err = ut_uffd_api(uffd, features, supported);
	if (!err)
		return uffd;
	close(uffd);
	return err;
}

int ut_register(int uffd, uint64_t start, uint64_t bytes, uint64_t mode)
{
	struct uffdio_register r = {.range = {start, bytes}, .mode = mode};

	return ioctl(uffd, UFFDIO_REGISTER, &r) ? -errno : 0;
}

void ut_wake_faults(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = {start, bytes};

	ioctl(uffd, UFFDIO_WAKE, &range); /* fails where nobody has that memory any more, so that nobody waits */
}

void ut_unregister(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = {start, bytes};

	/* It wakes those that wait for a missing page, and not those that want to write. */
	ioctl(uffd, UFFDIO_UNREGISTER, &range); /* closing the userfaultfd does the same where this fails */
	ut_wake_faults(uffd, start, bytes);
}

int ut_try_protect(int uffd, uint64_t start, uint64_t bytes, int trap)
{
	struct uffdio_writeprotect w = {{start, bytes}, trap ? UFFDIO_WRITEPROTECT_MODE_WP : 0};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &w) ? -errno : 0;
}

int ut_protect(int uffd, uint64_t start, uint64_t bytes, int trap)
{
	int err;

	while ((err = ut_try_protect(uffd, start, bytes, trap)) == -EAGAIN || err == -EINTR)
		sched_yield();
	return err;
}

int ut_zero_page(int uffd, uint64_t at)
{
	struct uffdio_zeropage zero = {.range = {at, UT_PAGE}};

	return ioctl(uffd, UFFDIO_ZEROPAGE, &zero) ? -errno : 0;
}

/* The question must change nothing, so it is one for shared memory that is registered, of which there is none;
 * addresses below mmap_min_addr are turned down without a look. */
int ut_mm_is_gone(int uffd)
{
	struct uffdio_continue none = {
		.range = {UT_TASK_SIZE - 2 * UT_PAGE, UT_PAGE},
		.mode = UFFDIO_CONTINUE_MODE_DONTWAKE,
	};

	return ioctl(uffd, UFFDIO_CONTINUE, &none) && errno == ESRCH;
}

long ut_scan_next(ut_scan *s)
{
	while (s->start < s->end) {
		struct ut_pm_scan_arg a = {
			.size = sizeof(a), .flags = s->flags, .start = s->start, .end = s->end,
			.vec = (uint64_t)s->found, .vec_len = s->first_room ? s->first_room : s->room,
			.category_mask = s->mask, .category_anyof_mask = s->anyof, .return_mask = s->give,
		};
		long n = ioctl(s->pagemap, UT_PAGEMAP_SCAN, &a);

		if (n < 0)
			return -errno;
		if (s->stuck || (!n && a.walk_end <= s->start))
			return -EIO;
		/* What was found comes first: its traps may be set again, so nothing would find it a second time. */
		s->stuck = a.walk_end <= s->start;
		s->start = a.walk_end;
		s->first_room = 0;
		if (n)
			return n;
	}
	return 0;
}

int ut_scan_runs(ut_scan *s, ut_runs *to)
{
	long n;

	while ((n = ut_scan_next(s)) > 0)
		for (long i = 0; i < n; i++)
			TRY(runs_push(to, s->found[i].start, s->found[i].end));
	return n;
}
