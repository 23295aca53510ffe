/* Setting the traps of many pages at the lowest cost. */
#include "compat.h"
#include "tracker.h"

#include <errno.h>

/* Costs in ns, as `make bench` measures them (docs/performance.md); only their ratios matter.
 *
 * One UFFDIO_WRITEPROTECT is dear, whatever its length, and it rewrites each entry of its range. One
 * PAGEMAP_SCAN with WP_MATCHING costs about the same, walks the entries between two pages for next to
 * nothing, and sets the traps of those that were written. It needs WP_ASYNC. */
enum {
	CALL_WP = 870,
	ENTRY_WP = 65,
	CALL_SCAN = 1100,
	FOUND_SCAN = 45,
	GAP = 375,   /* pages that are walked for the price of another call */
	ROOM = 128,  /* results of one call; the kernel allocates for them */
};
#define ENTRY_SCAN 2.2

static int protect(const ut_mm *mm, uint64_t first, uint64_t pages)
{
	struct uffdio_writeprotect w = {{mm->base + first * UT_PAGE, pages * UT_PAGE},
					UFFDIO_WRITEPROTECT_MODE_WP};

	while (ioctl(mm->uffd, UFFDIO_WRITEPROTECT, &w)) {
		if (errno == ESRCH) /* its process has ended */
			return 0;
		if (errno != EAGAIN)
			return -errno;
	}
	return 0;
}

static size_t run_length(const uint32_t *v, size_t n)
{
	size_t k = 1;

	while (k < n && v[k] == v[k - 1] + 1)
		k++;
	return k;
}

/* A page that the scan found and that is not to be rearmed was written just now, by a vCPU that runs or
 * through GUP. Its trap is set again, so this cycle is the last that can know of it. */
static void carry(ut_tracker *t, ut_mm *mm, uint64_t index)
{
	pthread_mutex_lock(&t->lock);
	t->stats.carried++;
	trap_fired(t->s, mm->index, index);
	ut_mark(t->s, index);
	pthread_mutex_unlock(&t->lock);
}

static int scan_span(ut_tracker *t, ut_mm *mm, const uint32_t *v, size_t n)
{
	uint64_t at = mm->base + v[0] * UT_PAGE, end = mm->base + (v[n - 1] + 1ull) * UT_PAGE;
	struct ut_page_region found[ROOM];
	size_t k = 0;

	while (at < end) {
		struct ut_pm_scan_arg a = {
			.size = sizeof(a), .flags = UT_SCAN_WP_MATCHING | UT_SCAN_CHECK_WPASYNC,
			.start = at, .end = end, .vec = (uint64_t)found,
			.vec_len = n - k + 2 < ROOM ? n - k + 2 : ROOM,
			.category_mask = UT_PAGE_IS_WRITTEN, .return_mask = UT_PAGE_IS_WRITTEN,
		};
		long got = ioctl(mm->pagemap, UT_PAGEMAP_SCAN, &a);

		if (got < 0)
			return errno == ESRCH ? 0 : -errno;
		for (long i = 0; i < got; i++)
			for (uint64_t p = found[i].start; p < found[i].end; p += UT_PAGE) {
				uint64_t index = (p - mm->base) / UT_PAGE;

				while (k < n && v[k] < index)
					k++;
				if (k == n || v[k] != index)
					carry(t, mm, index);
			}
		if (a.walk_end <= at)
			return -EIO;
		at = a.walk_end;
	}
	return 0;
}

/* Pages whose gaps are short enough to be walked. */
static size_t group_length(const uint32_t *v, size_t n)
{
	size_t k = 1;

	while (k < n && v[k] - v[k - 1] <= GAP)
		k++;
	return k;
}

static int rearm_group(ut_tracker *t, ut_mm *mm, const uint32_t *v, size_t n)
{
	int async = t->engine == UT_RING || t->engine == UT_SCAN;
	uint64_t span = v[n - 1] - v[0] + 1, runs = 0, by_run, by_span;

	for (size_t i = 0; i < n; i += run_length(v + i, n - i))
		runs++;
	by_run = runs * CALL_WP + (n - runs) * ENTRY_WP;
	by_span = async ? CALL_SCAN + span * ENTRY_SCAN + n * FOUND_SCAN : CALL_WP + span * ENTRY_WP;
	by_span += by_span / 4; /* only where it is worth it in cold caches too */
	t->stats.rearm_calls += by_span < by_run ? 1 : runs;
	if (by_span < by_run && async)
		return scan_span(t, mm, v, n);
	/* sync, inline: a page of the span that is in no list has its trap, and one that was listed since
	 * then is only asked for again. */
	if (by_span < by_run)
		return protect(mm, v[0], span);
	for (size_t i = 0; i < n;) {
		size_t k = run_length(v + i, n - i);
		int err = protect(mm, v[i], k);

		if (err)
			return err;
		i += k;
	}
	return 0;
}

int ut_rearm_sorted(ut_tracker *t, ut_mm *mm, const uint32_t *v, size_t n)
{
	t->stats.rearm_pages += n;
	for (size_t i = 0; i < n;) {
		size_t k = group_length(v + i, n - i);
		int err = rearm_group(t, mm, v + i, k);

		if (err)
			return err;
		i += k;
	}
	return 0;
}
