/* sync: traps whose writes wait until our thread has noted them, so that all is known of what has been under traps; the
 * rest of a mapping has come. A page that does not exist must not be read: that is a fault too.
 *
 * The target always stands: a trap that is set while a thread ends would be one for the kernel (exits.h), and what is
 * armed while the target runs may be a hole, in which another mapping comes with no event. */
#include "methods.h"

#include <errno.h>
#include <time.h>

/* Arm the pages that were found, but for those where the kernel must be able to write at any time, which it
 * finds without a trap. Nothing tells of a write to those until the next harvest, which compares them; that they were
 * found now says nothing yet. */
static int arm_but_bare(ut_space *s, const ut_region *r, const ut_runs *armed)
{
	AUTO_RUNS bare = {0}, was = {0}, rest = {0}, told = {0};
	ut_harvest *h = &s->harvest;

	TRY(runs_clip(&bare, &h->all.now.bare, r->start, r->end));
	TRY(runs_minus(&rest, &h->found, &bare));
	TRY(ut_set_traps(s, &rest, UT_TRAP));
	TRY(ut_set_traps(s, &bare, UT_NO_TRAP));
	/* What was bare, and under traps but for that: whether it was written, its digest says. */
	for (size_t i = 0; i < armed->n; i++)
		TRY(runs_clip(&was, &s->history.bare, armed->v[i].start, armed->v[i].end));
	TRY(runs_minus(&told, &h->found, &was));
	TRY(runs_minus(&h->part.silent, &h->found, &told));
	return runs_append(&h->part.want, &told);
}

static int find_populated(ut_space *s, const ut_runs *where)
{
	ut_runs *found = &s->harvest.found;

	found->n = 0;
	for (size_t i = 0; i < where->n; i++) {
		ut_scan scan = UT_SCAN_OF(s, where->v[i].start, where->v[i].end, UT_SCAN_POPULATED);

		TRY(ut_scan_runs(&scan, found));
	}
	return 0;
}

/* Where pages may be that were written or given back: what has come, and what our thread was told of. */
static int where_to_look(const ut_space *s, const ut_region *r, const ut_runs *come, ut_runs *look)
{
	const ut_news *news = &s->harvest.news;

	TRY(runs_append(look, come));
	TRY(runs_clip(look, &news->touched, r->start, r->end));
	TRY(runs_clip(look, &news->changes.zapped, r->start, r->end));
	TRY(runs_clip(look, &s->history.bare, r->start, r->end));
	runs_normalise(look);
	return 0;
}

int ut_follow_noted(ut_space *s, ut_region *r)
{
	const ut_runs whole = {&(ut_run){r->start, r->end}, 1, 1};
	AUTO_RUNS armed = {0}, come = {0}, where = {0};
	ut_harvest *h = &s->harvest;
	int64_t t0;

	TRY(runs_clip(&armed, &s->history.armed, r->start, r->end));
	if (armed.n && ut_count_before(s, r, 1))
		armed.n = 0;
	if (!armed.n && ut_leave_alone(s, r))
		return ut_follow_alone(s, r);
	TRY(runs_minus(&come, &whole, &armed));
	if (come.n)
		TRY(ut_register(s->uffd, r->start, r->end - r->start,
				UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING));
	TRY(runs_append(&h->part.fresh, &come));
	TRY(where_to_look(s, r, &come, &where));
	TRY(find_populated(s, &where));
	TRY(runs_minus(&h->part.gone, &where, &h->found));
	t0 = ut_now_ns();
	TRY(arm_but_bare(s, r, &armed));
	h->arming_ns += ut_now_ns() - t0;
	return runs_push(&h->part.now.armed, r->start, r->end);
}

/* What is not registered any more, since a call in the target's name has changed its mappings, has no trap. */
static int untrap_run(const ut_space *s, const ut_run *r)
{
	int err = ut_protect(s->uffd, r->start, r->end - r->start, UT_NO_TRAP);

	for (uint64_t at = r->start; err == -ENOENT && at < r->end; at += UT_PAGE)
		if (ut_protect(s->uffd, at, UT_PAGE, UT_NO_TRAP) == -ENOMEM)
			return -ENOMEM;
	return err == -ENOENT ? 0 : err;
}

int ut_untrap(ut_space *s, const ut_run *runs, size_t n)
{
	AUTO_RUNS where = {0}, missing = {0};

	if (!s->sync)
		return 0;
	for (size_t i = 0; i < n; i++)
		TRY(runs_clip(&where, &s->history.armed, runs[i].start, runs[i].end));
	runs_normalise(&where);
	TRY(find_populated(s, &where));
	TRY(runs_minus(&missing, &where, &s->harvest.found));
	TRY(ut_watch_note(s->watch, &where));
	for (size_t i = 0; i < missing.n; i++)
		for (uint64_t at = missing.v[i].start; at < missing.v[i].end; at += UT_PAGE)
			while (ut_zero_page(s->uffd, at) == -EAGAIN)
				nanosleep(&(struct timespec){0, 20000}, NULL); /* our thread reads the event that it waits for */
	for (size_t i = 0; i < where.n; i++)
		TRY(untrap_run(s, &where.v[i]));
	return 0;
}
