#include "cleanup.h"
#include "compat.h"
#include "digests.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

enum { FIRST = 4096 };

static uint64_t mix(uint64_t a, uint64_t b)
{
	__uint128_t p = (__uint128_t)a * b;

	return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static void page_hash(const ut_digests *d, const uint8_t *page, uint64_t out[2])
{
	const uint64_t *w = (const uint64_t *)page, *k = d->seed;
	uint64_t a = k[0], b = k[1], c = k[2], e = k[3];

	/* Four chains, each over its quarter of the words, with secrets that no target knows. */
	for (int i = 0; i < 512; i += 8) {
		a = mix(a ^ w[i], k[4] ^ w[i + 1]);
		b = mix(b ^ w[i + 2], k[5] ^ w[i + 3]);
		c = mix(c ^ w[i + 4], k[6] ^ w[i + 5]);
		e = mix(e ^ w[i + 6], k[7] ^ w[i + 7]);
	}
	out[0] = mix(a ^ k[7], b ^ k[6]);
	out[1] = mix(c ^ k[5], e ^ k[4]);
}

static ut_digest *slot(ut_digest *v, size_t cap, uint64_t page)
{
	size_t i = (page * 0x9e3779b97f4a7c15ull) >> 20 & (cap - 1);

	while (v[i].page && v[i].page != page + 1)
		i = (i + 1) & (cap - 1);
	return &v[i];
}

static ut_digest *find(const ut_digests *d, uint64_t addr)
{
	ut_digest *at;

	if (!d->cap)
		return NULL;
	at = slot(d->v, d->cap, addr / UT_PAGE);
	return at->page ? at : NULL;
}

static int is_void(const ut_digest *d)
{
	return !d->hash[0] && !d->hash[1];
}

static void make_void(ut_digest *d)
{
	d->hash[0] = d->hash[1] = 0;
}

/* Room for one more; what is void is left behind. */
static int grow_digests(ut_digests *d)
{
	size_t live = 0, cap = d->cap ? d->cap : FIRST;
	ut_digest *v;

	for (size_t i = 0; i < d->cap; i++)
		live += d->v[i].page && !is_void(&d->v[i]);
	if (live * 4 >= cap)
		cap *= 2;
	v = calloc(cap, sizeof(*v));
	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < d->cap; i++)
		if (d->v[i].page && !is_void(&d->v[i]))
			*slot(v, cap, d->v[i].page - 1) = d->v[i];
	free(d->v);
	d->v = v;
	d->cap = cap;
	d->n = live;
	return 0;
}

static int put(ut_digests *d, uint64_t addr, const uint8_t *page)
{
	ut_digest *at;

	if (d->n * 2 >= d->cap)
		TRY(grow_digests(d));
	at = slot(d->v, d->cap, addr / UT_PAGE);
	d->n += !at->page;
	at->page = addr / UT_PAGE + 1;
	page_hash(d, page, at->hash);
	return 0;
}

int ut_digests_open(ut_digests *d)
{
	*d = (ut_digests){0};
	return getrandom(d->seed, sizeof(d->seed), 0) == sizeof(d->seed) ? 0 : -ENOMEM;
}

void ut_digests_close(ut_digests *d)
{
	free(d->v);
	d->v = NULL;
	d->n = d->cap = 0;
}

void ut_digests_clear(ut_digests *d)
{
	d->n = 0;
	if (d->v)
		memset(d->v, 0, d->cap * sizeof(*d->v));
}

int ut_digests_note(ut_digests *d, const ut_runs *of, const ut_run *run, const uint8_t *data)
{
	AUTO_RUNS part = {0};

	TRY(runs_clip(&part, of, run->start, run->end));
	for (size_t i = 0; i < part.n; i++)
		for (uint64_t a = part.v[i].start; a < part.v[i].end; a += UT_PAGE)
			TRY(put(d, a, data + (a - run->start)));
	return 0;
}

void ut_digests_void(ut_digests *d, const ut_runs *ranges)
{
	if (!d->n)
		return;
	if (runs_bytes(ranges) / UT_PAGE >= d->cap) {
		for (size_t i = 0; i < d->cap; i++)
			if (d->v[i].page && runs_have(ranges, (d->v[i].page - 1) * UT_PAGE))
				make_void(&d->v[i]);
		return;
	}
	for (size_t i = 0; i < ranges->n; i++)
		for (uint64_t a = ranges->v[i].start; a < ranges->v[i].end; a += UT_PAGE) {
			ut_digest *at = find(d, a);

			if (at)
				make_void(at);
		}
}

int ut_digests_differing(const ut_digests *d, const ut_run *runs, size_t n, const uint8_t *data, ut_runs *out)
{
	for (size_t i = 0; i < n; i++)
		for (uint64_t a = runs[i].start; a < runs[i].end; a += UT_PAGE, data += UT_PAGE) {
			const ut_digest *at = find(d, a);
			uint64_t hash[2];

			page_hash(d, data, hash);
			if (!at || (!d->blind && (at->hash[0] != hash[0] || at->hash[1] != hash[1])))
				TRY(runs_push(out, a, a + UT_PAGE));
		}
	return 0;
}
