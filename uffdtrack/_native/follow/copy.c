#include "cleanup.h"
#include "compat.h"
#include "copy.h"
#include "parallel.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define LEAST (1ul << 20) /* bytes; below that a thread costs more than it saves */
#define PART (UT_BOUNCE / UT_SHARES) /* is compared while it is in the processor's cache */

/* What one thread reads, to be copied to `to`, or to be compared. */
struct share {
	const ut_reader *reader;
	const ut_digests *digests;
	ut_runs runs, unreadable, changed;
	uint8_t *to;
};

static int copy_share(void *arg)
{
	struct share *s = arg;

	return ut_reader_read(s->reader, s->runs.v, s->runs.n, s->to, &s->unreadable);
}

static int compare_share(void *arg)
{
	struct share *s = arg;
	ut_run part[PART / UT_PAGE];
	size_t i = 0;
	uint64_t at = s->runs.n ? s->runs.v[0].start : 0;

	while (i < s->runs.n) {
		size_t n = 0, len = 0;

		TRY(ut_reader_overdue(s->reader));
		for (; i < s->runs.n && len < PART; n++) {
			uint64_t size = min64(s->runs.v[i].end - at, PART - len);

			part[n] = (ut_run){at, at + size};
			len += size;
			at += size;
			if (at == s->runs.v[i].end && ++i < s->runs.n)
				at = s->runs.v[i].start;
		}
		TRY(ut_reader_read(s->reader, part, n, s->to, &s->unreadable));
		TRY(ut_digests_differing(s->digests, part, n, s->to, &s->changed));
	}
	return 0;
}

/* Cut ranges into shares of about the same size. With `to`, each has its place in there. */
static int deal(const ut_runs *runs, struct share *shares, int n, uint8_t *to)
{
	uint64_t each = (runs_bytes(runs) / n + UT_PAGE - 1) & ~(UT_PAGE - 1), room = each;
	int k = 0;

	for (size_t i = 0; i < runs->n; i++)
		for (uint64_t at = runs->v[i].start; at < runs->v[i].end;) {
			uint64_t part;

			if (!room && k + 1 < n) {
				k++;
				shares[k].to = to ? shares[k - 1].to + each : shares[k].to;
				room = each;
			}
			part = room ? min64(room, runs->v[i].end - at) : runs->v[i].end - at;
			TRY(runs_push(&shares[k].runs, at, at + part));
			at += part;
			room -= min64(room, part);
		}
	return 0;
}

static void free_shares(struct share *shares, int n)
{
	for (int i = 0; i < n; i++) {
		runs_free(&shares[i].runs);
		runs_free(&shares[i].unreadable);
		runs_free(&shares[i].changed);
	}
}

static int merge(const struct share *shares, int n, ut_runs *unreadable, ut_runs *changed)
{
	for (int i = 0; i < n; i++) {
		if (unreadable)
			TRY(runs_append(unreadable, &shares[i].unreadable));
		if (changed)
			TRY(runs_append(changed, &shares[i].changed));
	}
	return 0;
}

/* Deal ranges out, have the work done, and put together what it found. */
static int work_on(const ut_runs *runs, int (*work)(void *), struct share *shares, int n, uint8_t *to,
		   ut_runs *unreadable, ut_runs *changed)
{
	int err = deal(runs, shares, n, to);

	if (!err)
		err = ut_parallel(work, shares, sizeof(*shares), n);
	if (!err)
		err = merge(shares, n, unreadable, changed);
	free_shares(shares, n);
	return err;
}

int ut_copy(const ut_reader *r, const ut_run *runs, size_t n, uint8_t *to, ut_runs *unreadable)
{
	const ut_runs all = {(ut_run *)runs, n, n};
	int k = ut_shares(runs_bytes(&all), LEAST);
	struct share shares[UT_SHARES];

	for (int i = 0; i < k; i++)
		shares[i] = (struct share){.reader = r, .to = to};
	return work_on(&all, copy_share, shares, k, to, unreadable, NULL);
}

int ut_compare_stored(const ut_reader *r, const ut_digests *d, const ut_runs *pages, uint8_t *bounce, ut_runs *changed)
{
	int k = ut_shares(runs_bytes(pages), LEAST);
	struct share shares[UT_SHARES];

	for (int i = 0; i < k; i++)
		shares[i] = (struct share){.reader = r, .digests = d, .to = bounce + i * PART};
	return work_on(pages, compare_share, shares, k, NULL, NULL, changed);
}

int ut_buffer_reserve(ut_buffer *b, size_t bytes)
{
	if (bytes <= b->cap)
		return 0;
	ut_buffer_free(b);
	return ut_buffer_grow(b, bytes);
}

int ut_buffer_grow(ut_buffer *b, size_t bytes)
{
	void *v;

	if (bytes <= b->cap)
		return 0;
	bytes = (bytes + bytes / 2 + UT_HUGE - 1) & ~(UT_HUGE - 1);
	if (b->v) {
		v = mremap(b->v, b->cap, bytes, MREMAP_MAYMOVE);
		if (v == MAP_FAILED)
			return -errno;
		*b = (ut_buffer){v, bytes};
		return 0;
	}
	v = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (v == MAP_FAILED)
		return -errno;
	madvise(v, bytes, MADV_HUGEPAGE);
	*b = (ut_buffer){v, bytes};
	return 0;
}

int ut_buffer_ready(ut_buffer *b, size_t bytes)
{
	size_t had = b->cap;

	TRY(ut_buffer_reserve(b, bytes));
	if (b->cap > had && bytes)
		madvise(b->v, bytes, MADV_POPULATE_WRITE); /* it may also find none, or be unknown: then the copy does */
	return 0;
}

void ut_buffer_free(ut_buffer *b)
{
	if (b->v)
		munmap(b->v, b->cap);
	*b = (ut_buffer){0};
}

static int is_zero(const uint64_t *w)
{
	uint64_t any = 0;

	for (int k = 0; k < 512 && !any; k += 8)
		any = w[k] | w[k + 1] | w[k + 2] | w[k + 3] | w[k + 4] | w[k + 5] | w[k + 6] | w[k + 7];
	return !any;
}

int ut_split_zero_of(uint8_t **to, const uint8_t *from, uint64_t start, uint64_t end, ut_runs *data, ut_runs *zero)
{
	for (; start < end; start += UT_PAGE, from += UT_PAGE) {
		int zeros = is_zero((const uint64_t *)from);

		TRY(runs_push(zeros ? zero : data, start, start + UT_PAGE));
		if (zeros)
			continue;
		if (*to != from)
			memmove(*to, from, UT_PAGE);
		*to += UT_PAGE;
	}
	return 0;
}

int ut_split_zero(uint8_t *buf, const ut_runs *runs, ut_runs *data, ut_runs *zero)
{
	const uint8_t *from = buf;
	uint8_t *to = buf;

	data->n = zero->n = 0;
	for (size_t i = 0; i < runs->n; i++) {
		TRY(ut_split_zero_of(&to, from, runs->v[i].start, runs->v[i].end, data, zero));
		from += runs->v[i].end - runs->v[i].start;
	}
	return 0;
}
