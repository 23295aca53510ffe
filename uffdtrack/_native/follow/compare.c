/* Pages of a stopped process against what files hold for them.
 *
 * Both sides are read into small buffers that stay in the processor's cache. The files are not mapped: one that is cut
 * short meanwhile is then an error, not a SIGBUS while the target stands. */
#include "cleanup.h"
#include "compare.h"
#include "mm.h"
#include "parallel.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#define BATCH 16 /* pages: both sides fit into a processor's own cache */
#define RESULTS 4096
#define WRITTEN 64
#define LEAST 1024 /* pages; below that a thread costs more than it saves */

struct share {
	int mem, tid;
	const uint64_t *pages;
	const uint8_t *copies; /* NULL: the process has the contents */
	const ut_place *places;
	size_t n;
	uint8_t *out, *held;
};

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
		TRY(read_all(p[i].fd, out + i * UT_PAGE, (k - i) * UT_PAGE, p[i].offset));
	}
	return 0;
}

/* Behind the last of the pages, from the i-th on, that follow one another. */
static size_t run_end(const uint64_t *pages, size_t i, size_t n)
{
	do
		i++;
	while (i < n && pages[i] == pages[i - 1] + 1);
	return i;
}

/* What the process has, page by page where a run cannot be read at once; `out` says which cannot. */
static void read_pages(int mem, const uint64_t *pages, size_t n, uint8_t *to, uint8_t *out)
{
	for (size_t i = 0, k; i < n; i = k) {
		ssize_t got;

		k = run_end(pages, i, n);
		got = pread(mem, to + i * UT_PAGE, (k - i) * UT_PAGE, (off_t)(pages[i] * UT_PAGE));
		got = got < 0 ? 0 : got / (ssize_t)UT_PAGE;
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

/* The contents of n pages from the i-th on: where they are, or in `room`. */
static const uint8_t *contents_of(const struct share *s, size_t i, size_t n, uint8_t *room)
{
	memset(s->out + i, 0, n);
	if (s->copies)
		return s->copies + i * UT_PAGE;
	if (!s->tid || !read_at_once(s->tid, s->pages + i, n, room))
		read_pages(s->mem, s->pages + i, n, room, s->out + i);
	return room;
}

static int compare_share(void *arg)
{
	AUTO_FREE uint8_t *room = malloc(2 * BATCH * UT_PAGE);
	uint8_t *then = room + BATCH * UT_PAGE;
	struct share *s = arg;

	if (!room)
		return -ENOMEM;
	for (size_t i = 0; i < s->n; i += BATCH) {
		size_t n = s->n - i < BATCH ? s->n - i : BATCH;
		const uint8_t *now;

		TRY(ut_read_places(s->places + i, n, then));
		now = contents_of(s, i, n, room);
		for (size_t k = 0; k < n; k++)
			if (memcmp(now + k * UT_PAGE, then + k * UT_PAGE, UT_PAGE)) {
				s->out[i + k] |= UT_DIFFERS;
				if (s->held)
					memcpy(s->held + (i + k) * UT_PAGE, now + k * UT_PAGE, UT_PAGE);
			}
	}
	return 0;
}

static int compare(const struct share *all)
{
	struct share shares[UT_SHARES];
	int k = ut_shares(all->n, LEAST);

	for (int i = 0; i < k; i++) {
		size_t from = all->n * i / k, to = all->n * (i + 1) / k;

		shares[i] = (struct share){all->mem, all->tid, all->pages ? all->pages + from : NULL,
					  all->copies ? all->copies + from * UT_PAGE : NULL, all->places + from,
					  to - from, all->out + from, all->held ? all->held + from * UT_PAGE : NULL};
	}
	return ut_parallel(compare_share, shares, sizeof(*shares), k);
}

int ut_compare(int mem, int tid, const uint64_t *pages, const ut_place *places, size_t n, uint8_t *out, uint8_t *held)
{
	return compare(&(struct share){mem, tid, pages, NULL, places, n, out, held});
}

int ut_compare_copies(const uint8_t *copies, const ut_place *places, size_t n, uint8_t *out)
{
	return compare(&(struct share){.copies = copies, .places = places, .n = n, .out = out});
}

/* By calls that copy once, up to the first page that may not be written; returns how many they wrote. */
static size_t write_at_once(int tid, const uint64_t *pages, const uint8_t *contents, size_t n)
{
	struct iovec v[WRITTEN];

	for (size_t i = 0, k; i < n; i += k) {
		struct iovec local = {(void *)(contents + i * UT_PAGE), 0};

		for (k = 0; k < WRITTEN && i + k < n; k++)
			v[k] = (struct iovec){(void *)(pages[i + k] * UT_PAGE), UT_PAGE};
		local.iov_len = k * UT_PAGE;
		ssize_t got = process_vm_writev(tid, &local, 1, v, k, 0);
		if (got != (ssize_t)local.iov_len)
			return i + (got < 0 ? 0 : got / UT_PAGE);
	}
	return n;
}

int ut_write_pages(int mem, int tid, const uint64_t *pages, const uint8_t *contents, size_t n)
{
	size_t done = tid ? write_at_once(tid, pages, contents, n) : 0;

	for (size_t i = done, k; i < n; i = k) {
		ssize_t got;

		k = run_end(pages, i, n);
		got = pwrite(mem, contents + i * UT_PAGE, (k - i) * UT_PAGE, (off_t)(pages[i] * UT_PAGE));
		if (got != (ssize_t)((k - i) * UT_PAGE))
			return i + (got < 0 ? 0 : got / UT_PAGE);
	}
	return n;
}

int ut_exist(int pagemap, uint64_t start, uint64_t end, ut_runs *any, ut_runs *own)
{
	AUTO_FREE struct ut_page_region *found = malloc(RESULTS * sizeof(*found));
	ut_scan scan = {.pagemap = pagemap, .start = start, .end = end, .found = found, .room = RESULTS,
			.anyof = UT_POPULATED, .give = UT_POPULATED | UT_PAGE_IS_FILE};
	long n;

	if (!found)
		return -ENOMEM;
	while ((n = ut_scan_next(&scan)) > 0)
		for (long i = 0; i < n; i++) {
			TRY(runs_push(any, found[i].start, found[i].end));
			if (ut_is_private_page(found[i].categories))
				TRY(runs_push(own, found[i].start, found[i].end));
		}
	return n;
}
