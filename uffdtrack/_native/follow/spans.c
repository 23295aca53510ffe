/* Anonymous memory under traps. Where pages are (in *spans*), the fast path of PAGEMAP_SCAN goes over every entry, empty
 * ones included: a zapped page is reported once. It would also build page tables for what was never touched, so the
 * rest of a mapping, which may be a reservation of terabytes, is only looked through for pages that have come. */
#include "methods.h"
#include "parallel.h"
#include "sabotage.h"
#include "vec.h"

#include <stdatomic.h>
#include <stdlib.h>

enum { ENTRIES = 512, LONG = 16 };
#define CHUNK (64ul << 20)  /* of spans: what a thread takes on at a time */
#define WORTH (192ul << 20) /* of spans: worth another thread */
#define GAP (375 * UT_PAGE) /* is walked for the price of another call, see rearm.c */

/* Page table entries say which of a long run are there at all; the others are back to zero. */
static int look_at_entries(const ut_reader *r, uint64_t start, uint64_t end, ut_runs *want, ut_runs *gone)
{
	uint64_t entry[ENTRIES];

	while (start < end) {
		long n = ut_reader_entries(r, start, end, entry, ENTRIES);

		TRY(n);
		for (long i = 0; i < n; i++, start += UT_PAGE) {
			int there = !!(entry[i] & (UT_ENTRY_PRESENT | UT_ENTRY_SWAPPED));

			TRY(runs_push(there ? want : gone, start, start + UT_PAGE));
		}
	}
	return 0;
}

int ut_look_written(const ut_reader *r, ut_scan *scan, ut_runs *want, ut_runs *gone)
{
	long n;

	while ((n = ut_scan_next(scan)) > 0)
		for (long i = 0; i < n; i++) {
			const struct ut_page_region *f = &scan->found[i];

			if (f->end - f->start < LONG * UT_PAGE)
				TRY(runs_push(want, f->start, f->end));
			else
				TRY(look_at_entries(r, f->start, f->end, want, gone));
		}
	return n;
}

static int look_for_written(ut_space *s, uint64_t start, uint64_t end)
{
	ut_scan scan = UT_SCAN_OF(s, start, end, .flags = UT_REARM, UT_SCAN_WRITTEN);

	return ut_look_written(&s->reader, &scan, &s->harvest.part.want, &s->harvest.part.gone);
}

/* A part of the spans, and what was found there. */
struct chunk {
	ut_run run;
	ut_runs want, gone;
};

struct chunks {
	struct chunk *v;
	size_t n, cap;
	atomic_size_t next;
};

struct looker {
	ut_space *s;
	struct chunks *chunks;
	struct ut_page_region *found;
};

static int look_at_chunks(void *arg)
{
	struct looker *l = arg;
	size_t i;

	while ((i = atomic_fetch_add(&l->chunks->next, 1)) < l->chunks->n) {
		struct chunk *c = &l->chunks->v[i];
		ut_scan scan = UT_SCAN_OF(l->s, c->run.start, c->run.end, .flags = UT_REARM, UT_SCAN_WRITTEN);

		scan.found = l->found;
		TRY(ut_look_written(&l->s->reader, &scan, &c->want, &c->gone));
	}
	return 0;
}

static int cut_in_chunks(const ut_runs *spans, struct chunks *chunks)
{
	for (size_t i = 0; i < spans->n; i++)
		for (uint64_t at = spans->v[i].start, end; at < spans->v[i].end; at = end) {
			end = min64((at & ~(CHUNK - 1)) + CHUNK, spans->v[i].end);
			TRY(VEC_PUSH(chunks->v, chunks->n, chunks->cap, (struct chunk){.run = {at, end}}));
		}
	return 0;
}

/* Each entry of the page tables costs the same, so several processors share them. */
static int look_in_parallel(ut_space *s, const ut_runs *spans, int threads)
{
	struct looker lookers[UT_SHARES];
	struct chunks chunks = {0};
	int err = cut_in_chunks(spans, &chunks);

	for (int i = 0; i < threads; i++)
		lookers[i] = (struct looker){s, &chunks, s->found + i * UT_FOUND_ROOM};
	if (!err)
		err = ut_parallel(look_at_chunks, lookers, sizeof(*lookers), threads);
	for (size_t i = 0; i < chunks.n; i++) {
		if (!err)
			err = runs_append(&s->harvest.part.want, &chunks.v[i].want);
		if (!err)
			err = runs_append(&s->harvest.part.gone, &chunks.v[i].gone);
		runs_free(&chunks.v[i].want);
		runs_free(&chunks.v[i].gone);
	}
	free(chunks.v);
	return err;
}

static int look_at_spans(ut_space *s, const ut_runs *spans)
{
	int threads = ut_shares(runs_bytes(spans), WORTH);

	if (threads > 1)
		return look_in_parallel(s, spans, threads);
	for (size_t i = 0; i < spans->n; i++)
		TRY(look_for_written(s, spans->v[i].start, spans->v[i].end));
	return 0;
}

size_t ut_near(const ut_runs *pages, size_t i)
{
	for (i++; i < pages->n && pages->v[i].start - pages->v[i - 1].end <= GAP; i++)
		;
	return i;
}

/* The huge page's place around a range, as far as it is the mapping's. */
static ut_run block_of(const ut_run *run, const ut_region *r)
{
	uint64_t start = run->start & ~(UT_HUGE - 1), end = (run->end + UT_HUGE - 1) & ~(UT_HUGE - 1);

	return (ut_run){start < r->start ? r->start : start, min64(end, r->end)};
}

static int push_blocks(ut_runs *to, const ut_runs *pages, const ut_region *r)
{
	for (size_t i = 0; i < pages->n; i++) {
		ut_run block = block_of(&pages->v[i], r);

		TRY(runs_push(to, block.start, block.end));
	}
	return 0;
}

/* Outside of the spans: pages that have come, which become spans. */
static int look_for_new(ut_space *s, const ut_region *r, uint64_t start, uint64_t end)
{
	ut_scan scan = UT_SCAN_OF(s, start, end, .flags = UT_REARM, UT_SCAN_POPULATED);
	ut_harvest *h = &s->harvest;

	h->found.n = 0;
	TRY(ut_scan_runs(&scan, &h->found));
	TRY(runs_append(&h->part.want, &h->found));
	return push_blocks(&h->part.now.spans, &h->found, r);
}

static int look_everywhere(ut_space *s, const ut_region *r, const ut_runs *spans)
{
	uint64_t at = r->start;

	for (size_t i = 0; i < spans->n; i++) {
		TRY(look_for_new(s, r, at, spans->v[i].start));
		at = spans->v[i].end;
	}
	TRY(look_for_new(s, r, at, r->end));
	return look_at_spans(s, spans);
}

/* Only where there were faults. In `spans` one fault is one page; elsewhere it may have brought a huge one. */
static int look_where_touched(ut_space *s, const ut_region *r, const ut_runs *spans, const ut_runs *zapped)
{
	AUTO_RUNS touched = {0}, inside = {0}, outside = {0}, blocks = {0}, rest = {0};

	TRY(runs_clip(&touched, &s->harvest.news.touched, r->start, r->end));
	TRY(runs_minus(&outside, &touched, spans));
	TRY(runs_minus(&inside, &touched, &outside));
	TRY(runs_append(&blocks, zapped));
	TRY(push_blocks(&blocks, &outside, r));
	runs_normalise(&blocks);
	TRY(runs_minus(&rest, &blocks, spans));
	for (size_t i = 0; i < rest.n; i++)
		TRY(look_for_new(s, r, rest.v[i].start, rest.v[i].end));
	for (size_t i = 0, k; i < inside.n; i = k) {
		k = ut_near(&inside, i);
		TRY(look_for_written(s, inside.v[i].start, inside.v[k - 1].end));
	}
	return rest.n || inside.n ? 0 : ut_is_registered(s, r->start);
}

/* What was given back is zero, but for the pages that have come again. */
static int note_zapped(ut_finding *part, const ut_runs *zapped)
{
	if (!zapped->n)
		return 0;
	runs_normalise(&part->want);
	return runs_minus(&part->gone, zapped, &part->want);
}

/* Under traps again since before the stop, see early.c. */
static int take_due(ut_space *s, const ut_region *r, const ut_runs *zapped)
{
	AUTO_RUNS due = {0};

	if (ut_breaks(UT_BREAK_DUE))
		return 0;
	TRY(runs_clip(&due, &s->early.due, r->start, r->end));
	return runs_minus(&s->harvest.part.want, &due, zapped);
}

int ut_look_spans(ut_space *s, const ut_region *r, int fresh)
{
	AUTO_RUNS before = {0}, zapped = {0}, spans = {0};
	ut_harvest *h = &s->harvest;

	if (!fresh)
		TRY(runs_clip(&before, &s->history.spans, r->start, r->end));
	TRY(runs_clip(&zapped, &h->news.changes.zapped, r->start, r->end));
	TRY(runs_minus(&spans, &before, &zapped));
	if (h->by_news && !fresh)
		TRY(look_where_touched(s, r, &spans, &zapped));
	else
		TRY(look_everywhere(s, r, &spans));
	if (!fresh)
		TRY(take_due(s, r, &zapped));
	TRY(runs_append(&h->part.now.spans, &spans));
	return note_zapped(&h->part, &zapped);
}
