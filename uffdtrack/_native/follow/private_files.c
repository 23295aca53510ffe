/* Private mappings of files. What is not the file's any more is kept: a page of it that is not there at the next harvest
 * is the file's again. */
#include "methods.h"

/* What there is now: its categories say whether it is the file's, and whether it was written. */
struct look {
	ut_space *s;
	const ut_region *r;
	int fresh;   /* all of it is wanted, written or not */
	int written; /* some page was, so that it has to be armed */
};

static int note_page(struct look *l, const struct ut_page_region *f)
{
	int of_file = l->r->kind != UT_KIND_ANON, swapped = !!(f->categories & UT_PAGE_IS_SWAPPED);
	int written = !!(f->categories & UT_PAGE_IS_WRITTEN);
	ut_harvest *h = &l->s->harvest;

	l->written |= written;
	if (of_file && !ut_is_private_page(f->categories))
		return 0;
	TRY(runs_push(&h->found, f->start, f->end));
	/* A marker left by a zapped page becomes a page again when it is read, so it is taken once. */
	if (l->fresh || written || (of_file && swapped))
		return runs_push(&h->part.want, f->start, f->end);
	return 0;
}

static int look_at_pages(struct look *l, ut_scan scan)
{
	long n;

	scan.anyof = UT_POPULATED;
	scan.give = UT_POPULATED | UT_PAGE_IS_WRITTEN | UT_PAGE_IS_FILE;
	while ((n = ut_scan_next(&scan)) > 0)
		for (long i = 0; i < n; i++)
			TRY(note_page(l, &scan.found[i]));
	return n;
}

/* 1: nothing of a file mapping was written or given back, its pages are those that were `kept`. To know whether a page
 * is the file's costs the kernel a look at the page itself, so that is asked only of the few that are not. */
static int is_unchanged(ut_space *s, const ut_region *r, const ut_runs *kept)
{
	ut_scan written = UT_SCAN_OF(s, r->start, r->end, .flags = UT_SCAN_CHECK_WPASYNC, .anyof = UT_POPULATED,
				     UT_SCAN_WRITTEN);
	uint64_t own = 0;
	long n = ut_scan_next(&written);

	if (n)
		return n < 0 ? n : 0;
	for (size_t i = 0; i < kept->n; i++) {
		ut_scan there = UT_SCAN_OF(s, kept->v[i].start, kept->v[i].end, .anyof = UT_POPULATED,
					   .give = UT_POPULATED | UT_PAGE_IS_FILE);

		while ((n = ut_scan_next(&there)) > 0)
			for (long k = 0; k < n; k++)
				if (!(there.found[k].categories & (UT_PAGE_IS_FILE | UT_PAGE_IS_SWAPPED)))
					own += there.found[k].end - there.found[k].start;
		TRY(n);
	}
	return own == runs_bytes(kept);
}

static int look_and_arm(ut_space *s, const ut_region *r, int fresh)
{
	struct look l = {s, r, fresh, 0};

	TRY(look_at_pages(&l, UT_SCAN_OF(s, r->start, r->end, .flags = UT_SCAN_CHECK_WPASYNC)));
	/* Only what was written is armed; looking again finds what was written in between. */
	if (l.written)
		TRY(look_at_pages(&l, UT_SCAN_OF(s, r->start, r->end, .flags = UT_REARM, .mask = UT_PAGE_IS_WRITTEN)));
	runs_normalise(&s->harvest.found);
	return 0;
}

int ut_look_pages(ut_space *s, const ut_region *r, int fresh)
{
	ut_harvest *h = &s->harvest;
	AUTO_RUNS old = {0};
	int same = 0;

	h->found.n = 0;
	if (!fresh)
		TRY(runs_clip(&old, &s->history.kept, r->start, r->end));
	if (!fresh && r->kind != UT_KIND_ANON)
		TRY(same = is_unchanged(s, r, &old));
	if (same)
		return runs_append(&h->part.now.kept, &old);
	TRY(look_and_arm(s, r, fresh));
	TRY(runs_minus(&h->part.gone, &old, &h->found));
	return runs_append(&h->part.now.kept, &h->found);
}

static int is_compared(const ut_region *r)
{
	return (r->prot & 2) && !r->registered;
}

int ut_touches_compared(const ut_space *s, const ut_region *r)
{
	const ut_region *first = s->maps.regions, *last = first + s->maps.n - 1;

	for (const ut_region *a = r; a > first && a[-1].end == a->start && ut_is_same_object(a - 1, a); a--)
		if (is_compared(a - 1))
			return 1;
	for (const ut_region *a = r; a < last && a->end == a[1].start && ut_is_same_object(a, a + 1); a++)
		if (is_compared(a + 1))
			return 1;
	return 0;
}

/* Traps would be wrong for those that are writable:
 *
 * - A page that is given back keeps its trap, in a marker. A write takes two faults then: the first makes a page
 *   out of the file's, armed by the marker, the second is the trap. A thread that stands between the two leaves a
 *   page that looks as if nothing had happened to it.
 * - MADV_GUARD_INSTALL repeats until it finds no page, and takes the markers that it leaves for pages.
 *
 * One that was registered before it became writable is so no longer if its neighbours are not: they merge again. */
int ut_follow_private_file(ut_space *s, ut_region *r)
{
	ut_scan scan = UT_SCAN_OF(s, r->start, r->end, .anyof = UT_POPULATED, .give = UT_POPULATED | UT_PAGE_IS_FILE);
	ut_harvest *h = &s->harvest;
	AUTO_RUNS old = {0};
	long n;

	if (r->registered && !(h->flags & UT_RUNNING) && ut_touches_compared(s, r)) {
		ut_unregister(s->uffd, r->start, r->end - r->start);
		r->registered = 0;
	}
	h->found.n = 0;
	while ((n = ut_scan_next(&scan)) > 0)
		for (long i = 0; i < n; i++)
			if (ut_is_private_page(scan.found[i].categories))
				TRY(runs_push(&h->found, scan.found[i].start, scan.found[i].end));
	TRY(n);
	runs_normalise(&h->found);
	TRY(runs_append(&h->part.now.kept, &h->found));
	if ((h->flags & UT_FULL) || !ut_stood_before(s, r)) {
		TRY(runs_append(&h->part.want, &h->found));
		return runs_push(&h->part.fresh, r->start, r->end);
	}
	TRY(runs_clip(&old, &s->history.kept, r->start, r->end));
	TRY(runs_minus(&h->part.gone, &old, &h->found));
	return runs_append(&h->part.silent, &h->found);
}
