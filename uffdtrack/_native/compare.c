/* Pages of a stopped process against what files hold for them.
 *
 * Both sides are read into small buffers that stay in the processor's cache. The files are not mapped: one that is cut
 * short meanwhile is then an error, not a SIGBUS while the target stands. */
#include "compat.h"
#include "compare.h"
#include "space.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define BATCH 16 /* pages: both sides fit into a processor's own cache */
#define RESULTS 4096
#define SHARES 4
#define SHARE_PAGES 1024ul /* below that a thread costs more than it saves */

typedef struct {
	int mem, tid, err;
	const uint64_t *pages;
	const ut_place *places;
	size_t n;
	uint8_t *out;
} share;

static int read_all(int fd, uint8_t *to, size_t len, off_t at)
{
	while (len) {
		ssize_t n = pread(fd, to, len, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENODATA;
		to += n;
		at += n;
		len -= n;
	}
	return 0;
}

int ut_read_places(const ut_place *p, size_t n, uint8_t *out)
{
	for (size_t i = 0, k; i < n; i = k) {
		k = i + 1;
		if (p[i].fd < 0) {
			memset(out + i * UT_PAGE, 0, UT_PAGE);
			continue;
		}
		while (k < n && p[k].fd == p[i].fd && p[k].offset == p[k - 1].offset + (int64_t)UT_PAGE)
			k++;
		int err = read_all(p[i].fd, out + i * UT_PAGE, (k - i) * UT_PAGE, p[i].offset);

		if (err)
			return err;
	}
	return 0;
}

/* What the process has, page by page where a run cannot be read at once; `out` says which cannot. */
static void read_pages(int mem, const uint64_t *pages, size_t n, uint8_t *to, uint8_t *out)
{
	for (size_t i = 0, k; i < n; i = k) {
		ssize_t got;

		k = i + 1;
		while (k < n && pages[k] == pages[k - 1] + 1)
			k++;
		got = pread(mem, to + i * UT_PAGE, (k - i) * UT_PAGE, (off_t)(pages[i] * UT_PAGE));
		got = got < 0 ? 0 : got / (ssize_t)UT_PAGE;
		memset(out + i, 0, got);
		if (i + got == k)
			continue;
		/* No contents: it counts as zeros, as it is stored. */
		memset(to + (i + got) * UT_PAGE, 0, UT_PAGE);
		out[i + got] = UT_UNREADABLE;
		k = i + got + 1;
	}
}

/* The same by one call, which copies once where /proc/PID/mem copies twice; 0: not all of them can be read so. */
static int read_at_once(int tid, const uint64_t *pages, size_t n, uint8_t *to)
{
	struct iovec local = {to, n * UT_PAGE}, v[BATCH];
	size_t k = 0;

	for (size_t i = 0; i < n; i++)
		if (i && pages[i] == pages[i - 1] + 1)
			v[k - 1].iov_len += UT_PAGE;
		else
			v[k++] = (struct iovec){(void *)(pages[i] * UT_PAGE), UT_PAGE};
	return process_vm_readv(tid, &local, 1, v, k, 0) == (ssize_t)(n * UT_PAGE);
}

static void *compare_share(void *arg)
{
	share *s = arg;
	uint8_t *now = malloc(2 * BATCH * UT_PAGE), *then = now + BATCH * UT_PAGE;

	s->err = now ? 0 : -ENOMEM;
	for (size_t i = 0; i < s->n && !s->err; i += BATCH) {
		size_t n = s->n - i < BATCH ? s->n - i : BATCH;

		s->err = ut_read_places(s->places + i, n, then);
		if (s->err)
			break;
		if (s->tid && read_at_once(s->tid, s->pages + i, n, now))
			memset(s->out + i, 0, n);
		else
			read_pages(s->mem, s->pages + i, n, now, s->out + i);
		for (size_t k = 0; k < n; k++)
			if (memcmp(now + k * UT_PAGE, then + k * UT_PAGE, UT_PAGE))
				s->out[i + k] |= UT_DIFFERS;
	}
	free(now);
	return NULL;
}

int ut_compare(int mem, int tid, const uint64_t *pages, const ut_place *places, size_t n, uint8_t *out)
{
	share shares[SHARES];
	pthread_t threads[SHARES];
	cpu_set_t cpus;
	size_t k = sched_getaffinity(0, sizeof(cpus), &cpus) ? 1 : CPU_COUNT(&cpus);
	size_t started = 1;
	int err = 0;

	k = k > SHARES ? SHARES : k;
	k = k > n / SHARE_PAGES ? n / SHARE_PAGES : k;
	k = k ? k : 1;
	for (size_t i = 0; i < k; i++) {
		size_t from = n * i / k, to = n * (i + 1) / k;

		shares[i] = (share){mem, tid, 0, pages + from, places + from, to - from, out + from};
	}
	for (; started < k; started++)
		if (pthread_create(&threads[started], NULL, compare_share, &shares[started]))
			break;
	compare_share(&shares[0]);
	for (size_t i = started; i < k; i++)
		compare_share(&shares[i]);
	for (size_t i = 1; i < started; i++)
		pthread_join(threads[i], NULL);
	for (size_t i = 0; i < k; i++)
		err = err ? err : shares[i].err;
	return err;
}

int ut_write_pages(int mem, const uint64_t *pages, const uint8_t *contents, size_t n)
{
	for (size_t i = 0, k; i < n; i = k) {
		ssize_t got;

		k = i + 1;
		while (k < n && pages[k] == pages[k - 1] + 1)
			k++;
		got = pwrite(mem, contents + i * UT_PAGE, (k - i) * UT_PAGE, (off_t)(pages[i] * UT_PAGE));
		if (got != (ssize_t)((k - i) * UT_PAGE))
			return i + (got < 0 ? 0 : got / UT_PAGE);
	}
	return n;
}

int ut_exist(int pagemap, uint64_t start, uint64_t end, ut_runs *any, ut_runs *own)
{
	const uint64_t there = UT_PAGE_IS_PRESENT | UT_PAGE_IS_SWAPPED;
	struct ut_page_region *found = malloc(RESULTS * sizeof(*found));
	int err = found ? 0 : -ENOMEM;

	while (!err && start < end) {
		struct ut_pm_scan_arg a = {
			.size = sizeof(a), .start = start, .end = end, .vec = (uint64_t)found, .vec_len = RESULTS,
			.category_anyof_mask = there, .return_mask = there | UT_PAGE_IS_FILE,
		};
		long n = ioctl(pagemap, UT_PAGEMAP_SCAN, &a);

		err = n < 0 ? -errno : a.walk_end <= start ? -EIO : 0;
		for (long i = 0; i < n && !err; i++) {
			err = runs_push(any, found[i].start, found[i].end);
			/* A swapped entry of a file mapping may be a mere marker; reading it tells. */
			if (!err && (!(found[i].categories & UT_PAGE_IS_FILE) ||
				     found[i].categories & UT_PAGE_IS_SWAPPED))
				err = runs_push(own, found[i].start, found[i].end);
		}
		start = a.walk_end;
	}
	free(found);
	return err;
}
