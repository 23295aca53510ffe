/* Mappings of which all pages are compared with the digests of what was stored: those that others may write through page
 * tables of their own, or through a file that no copy stands on (a memfd that is mapped private); those that
 * cannot be registered; hugetlb pages, which keep their trap when they are given back; and small ones (small.c). */
#include "methods.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>

/* Pages of a file in memory that others have written and the target has not touched yet. Only who may open
 * /proc/PID/map_files (CAP_CHECKPOINT_RESTORE) can know of them; without, they are what they are when the
 * target touches them. */
static int find_in_file(const ut_region *r, int fd, long type, ut_runs *found)
{
	off_t at = r->offset, end = r->offset + (r->end - r->start);

	/* hugetlbfs says of holes that they are data, and reading them takes pages from the pool. */
	if (fd < 0 || type == HUGETLBFS_MAGIC)
		return 0;
	while (at < end) {
		off_t data = lseek(fd, at, SEEK_DATA), hole = lseek(fd, data < 0 ? at : data, SEEK_HOLE);
		uint64_t first = data & ~(UT_PAGE - 1), last = (hole + UT_PAGE - 1) & ~(UT_PAGE - 1);

		/* Some files answer the same for ever, or any number: /dev/zero says 0. */
		if (data < at || data >= end || hole <= data)
			break;
		TRY(runs_push(found, r->start + (first - r->offset), r->start + (min64(last, end) - r->offset)));
		at = hole;
	}
	return 0;
}

/* Pages of private memory that were there and are not: zero. Reading one would bring it back, of hugetlb from the pool. */
static int note_zeroed(const ut_space *s, const ut_region *r, const ut_runs *found, ut_runs *gone)
{
	AUTO_RUNS old = {0};

	TRY(runs_clip(&old, &s->history.known, r->start, r->end));
	return runs_minus(gone, &old, found);
}

/* Traps have told which pages were written, now and before the stop (early.c); digests of all of them are kept. */
static int take_written(ut_space *s, const ut_region *r)
{
	const ut_early *e = &s->early;
	ut_finding *part = &s->harvest.part;

	TRY(runs_clip(&part->now.known, &s->history.known, r->start, r->end));
	TRY(runs_clip(&part->now.known, &e->again, r->start, r->end));
	for (size_t i = 0; i < e->n; i++) {
		uint64_t start = e->v[i].start < r->start ? r->start : e->v[i].start, end = min64(e->v[i].end, r->end);

		if (start < end)
			TRY(runs_push(&part->now.known, start, end));
	}
	TRY(runs_append(&part->now.known, &s->harvest.found));
	return runs_append(&part->want, &s->harvest.found);
}

int ut_follow_compared(ut_space *s, ut_region *r)
{
	ut_harvest *h = &s->harvest;
	ut_finding *part = &h->part;
	int known = !(h->flags & UT_FULL) && ut_is_known(s, r);
	ut_scan scan = UT_SCAN_OF(s, r->start, r->end, UT_SCAN_POPULATED);

	AUTO_FD fd = -1;
	long type;

	r->compared = 1;
	if (known && ut_sole_written(s, r, &h->found))
		return take_written(s, r);
	part->compared = 1;
	if (r->kind == UT_KIND_SHARED && s->early.n)
		TRY(runs_push(&h->compared, r->start, r->end));
	h->found.n = 0;
	TRY(ut_scan_runs(&scan, &h->found));
	if (r->in_memory) {
		fd = ut_open_mapped(s->reader.pid, r, &type);
		if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM) /* to be without it is no answer */
			return fd;
		TRY(find_in_file(r, fd, type, &h->found));
	}
	if (!known)
		TRY(runs_push(&part->fresh, r->start, r->end));
	else if (r->kind == UT_KIND_HUGE || r->kind == UT_KIND_ANON)
		TRY(note_zeroed(s, r, &h->found, &part->gone));
	else
		TRY(runs_clip(&h->found, &s->history.known, r->start, r->end));
	runs_normalise(&h->found);
	ut_sole_prove(s, r, fd, runs_bytes(&h->found));
	TRY(runs_append(&part->now.known, &h->found));
	if (!known)
		return runs_append(&part->want, &h->found);
	return runs_append(&part->silent, &h->found);
}
