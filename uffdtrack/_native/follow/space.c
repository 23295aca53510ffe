#include "exits.h"
#include "methods.h"
#include "parallel.h"
#include "sabotage.h"

#include <errno.h>

/* -- which mapping is followed how --------------------------------------------------------------- */

enum { NO = 1, YES = 2, EITHER = NO | YES };

static const struct {
	uint8_t kind, writable, sync;
	int (*follow)(ut_space *s, ut_region *r);
} methods[] = {
	{UT_KIND_ANON, EITHER, NO, ut_follow_trapped},
	{UT_KIND_ANON, EITHER, YES, ut_follow_noted},
	{UT_KIND_FILE, NO, NO, ut_follow_read_only_file},
	{UT_KIND_FILE, YES, NO, ut_follow_private_file},
};

static int is_either(uint8_t wanted, int value)
{
	return wanted & (value ? YES : NO);
}

/* What is in no line, or cannot be followed as its line says, is compared. */
static int follow_region(ut_space *s, ut_region *r)
{
	int err = -EINVAL;

	for (size_t i = 0; i < sizeof(methods) / sizeof(*methods); i++)
		if (r->kind == methods[i].kind && is_either(methods[i].writable, r->prot & 2) &&
		    is_either(methods[i].sync, s->sync)) {
			err = methods[i].follow(s, r);
			break;
		}
	if (err != -EPERM && err != -EBUSY && err != -EINVAL)
		return err;
	ut_finding_clear(&s->harvest.part);
	return ut_follow_compared(s, r);
}

/* Of pages of private memory: those that the mapping has, and others that lie between them. */
static int find_there(ut_space *s, const ut_region *r, const ut_runs *pages, ut_runs *there)
{
	int is_file = r->kind == UT_KIND_FILE;

	for (size_t i = 0, k; i < pages->n; i = k) {
		ut_scan scan;
		long n;

		k = ut_near(pages, i);
		scan = UT_SCAN_OF(s, pages->v[i].start, pages->v[k - 1].end, .anyof = UT_POPULATED,
				  .give = UT_POPULATED | UT_PAGE_IS_FILE);
		do {
			TRY(ut_reader_overdue(&s->reader));
			TRY(n = ut_scan_next(&scan));
			for (long j = 0; j < n; j++)
				if (!is_file || ut_is_private_page(scan.found[j].categories))
					TRY(runs_push(there, scan.found[j].start, scan.found[j].end));
		} while (n);
	}
	return 0;
}

/* What is pending is copied again. A page of private memory that is not there any more has the mapping's own contents
 * again: reading those would bring it back. */
static int take_pending(ut_space *s, const ut_region *r, const ut_runs *pending)
{
	int is_private = r->kind == UT_KIND_FILE || r->kind == UT_KIND_ANON || r->kind == UT_KIND_HUGE;
	ut_finding *part = &s->harvest.part;
	AUTO_RUNS due = {0}, there = {0}, missing = {0};

	TRY(runs_clip(&due, pending, r->start, r->end));
	if (!is_private)
		return runs_append(&part->want, &due);
	TRY(find_there(s, r, &due, &there));
	TRY(runs_minus(&missing, &due, &there));
	TRY(runs_append(&part->gone, &missing));
	return runs_minus(&part->want, &due, &missing);
}

static int harvest_region(ut_space *s, ut_region *r, const ut_runs *pending)
{
	ut_finding *part = &s->harvest.part;

	if (r->kind >= UT_KIND_SKIP)
		return 0;
	if (s->claims) {
		int elsewhere = ut_is_elsewhere(s, r);

		if (elsewhere)
			return elsewhere < 0 ? elsewhere : 0;
	}
	ut_finding_clear(part);
	TRY(ut_reader_overdue(&s->reader));
	TRY(follow_region(s, r));
	TRY(take_pending(s, r, pending));
	runs_normalise(&part->want);
	return ut_finding_add(&s->harvest.all, part);
}

/* -- one harvest --------------------------------------------------------------------------------- */

static void start_harvest(ut_space *s, int flags)
{
	ut_harvest *h = &s->harvest;
	ut_maps old = s->before;

	s->before = s->maps;
	s->maps = old;
	ut_finding_clear(&h->all);
	h->flags = flags;
	h->left_alone = 0;
	h->compared.n = 0;
	h->arming_ns = 0;
	h->nelsewhere = 0;
	if (s->claims)
		ut_claims_drop(s->claims, s->member);
	if (flags & UT_FULL) {
		ut_early_clear(&s->early);
		ut_history_clear(&s->history);
		ut_digests_clear(&s->digests);
		ut_sole_forget(s);
	}
}

/* Where to look. While the target runs we look everywhere, after this: what was touched before is found, and what is
 * touched later is for the next harvest. What is known of mappings may be too new then, so it is kept for the stop. */
static int ask_watch(ut_space *s)
{
	ut_harvest *h = &s->harvest;
	ut_changes *changes = &h->news.changes;
	AUTO_RUNS left = {0}, armed = {0};
	int scan = 1;

	h->by_news = 0;
	h->news.touched.n = changes->zapped.n = changes->unmapped.n = changes->moved.n = 0;
	if (!s->watch)
		return 0;
	if (h->flags & UT_RUNNING)
		TRY(ut_watch_take_running(s->watch, &h->news));
	else
		TRY(scan = ut_watch_take(s->watch, &h->news, !(h->flags & UT_NO_COPY)));
	if (!(h->flags & UT_RUNNING)) {
		TRY(runs_append(&h->news.touched, &s->early.left));
		runs_normalise(&h->news.touched);
	}
	h->by_news = !(h->flags & UT_FULL) && (s->sync || (!scan && !s->diff_all));
	TRY(runs_minus(&left, &s->history.armed, &changes->unmapped));
	TRY(runs_minus(&armed, &left, &changes->moved));
	runs_take(&s->history.armed, &armed);
	return 0;
}

static int look_at_mappings(ut_space *s, const ut_tracee *t)
{
	ut_harvest *h = &s->harvest;
	int flags = (h->flags & UT_RUNNING ? 0 : UT_BACKING_SURE) | (h->flags & UT_FULL ? UT_BACKING_ANEW : 0);

	TRY(ut_maps_read(&s->maps, s->reader.pid, s->reader.tid));
	TRY(ut_backing_find(&s->maps, &s->before, &s->filesystems, s->reader.pid, s->reader.tid, flags));
	if (!(h->flags & UT_ASKED))
		ut_reader_ask_shared(&s->reader, &s->maps);
	ut_note_registered(s);
	TRY(ut_note_unmapped(s, &h->all.fresh));
	return s->sync ? ut_exit_pages(t, &s->reader, &h->all.now.bare) : 0;
}

/* Digests are of what is stored, so they are void where this harvest says that this is void. */
static int void_what_is_new(ut_space *s)
{
	ut_harvest *h = &s->harvest;

	h->found.n = 0;
	TRY(runs_append(&h->found, &h->all.fresh));
	TRY(runs_append(&h->found, &h->all.gone));
	/* What traps told of until now may have been stored without a look at its digest. */
	TRY(runs_minus(&h->found, &h->all.now.bare, &s->history.bare));
	runs_normalise(&h->found);
	ut_digests_void(&s->digests, &h->found);
	return 0;
}

/* Of all mappings together: one call of the kernel's reads pages of many, and both processors compare. */
static int compare_silent(ut_space *s)
{
	ut_finding *all = &s->harvest.all;
	int err;

	s->digests.blind = ut_breaks(UT_BREAK_COMPARE);
	err = ut_compare_stored(&s->reader, &s->digests, &all->silent, s->bounce, &all->want);
	s->digests.blind = 0;
	runs_normalise(&all->want);
	return err;
}

static int harvest_regions(ut_space *s, const ut_runs *pending)
{
	ut_harvest *h = &s->harvest;

	for (size_t i = 0; i < s->maps.n; i++)
		TRY(harvest_region(s, &s->maps.regions[i], pending));
	TRY(compare_silent(s));
	TRY(void_what_is_new(s));
	return h->flags & UT_RUNNING ? 0 : ut_heads_take(&s->heads, &s->maps, &s->reader);
}

/* Tests: the news is taken after the look. */
static void take_late(ut_space *s)
{
	AUTO_RUNS touched = {0};

	if (s->watch && ut_breaks(UT_BREAK_LATE_TAKE) && ut_watch_count(s->watch))
		ut_watch_early(s->watch, &touched);
}

/* Asked last: what was seen of another memory meanwhile is of no use, and any error may come from it. */
static int conclude(ut_space *s, int err)
{
	if (ut_space_is_gone(s))
		err = ut_live_thread(s->reader.pid) < 0 ? -ESRCH : UT_NEW_MM;
	ut_history_take(&s->history, &s->harvest.all.now);
	return err;
}

int ut_space_look(ut_space *s, const ut_tracee *t, int flags)
{
	int err;

	if (flags & UT_RUNNING)
		TRY(s->reader.tid = ut_live_thread(s->reader.pid));
	/* Opened anew each time: these files stay with the memory of before an exec. */
	TRY(ut_reader_open(&s->reader));
	start_harvest(s, flags);
	err = ask_watch(s);
	if (!err)
		err = look_at_mappings(s, t);
	return err ? conclude(s, err) : 0;
}

int ut_space_find(ut_space *s, const ut_run *pending, size_t npending)
{
	const ut_runs given = {(ut_run *)pending, npending, npending};
	int flags = s->harvest.flags, err;
	AUTO_RUNS again = {0};

	runs_normalise(&s->early.again);
	err = s->early.broken ? -ENOMEM : runs_append(&again, &given);
	if (!err)
		err = runs_append(&again, &s->early.again);
	runs_normalise(&again);
	if (!err)
		err = harvest_regions(s, &again);
	if (!err && (flags & UT_RUNNING)) /* after a stop ut_space_give() does it */
		err = ut_early_outdate(s);
	if (flags & UT_RUNNING)
		take_late(s);
	err = conclude(s, err);
	if (!err)
		s->early.due.n = 0; /* found, or void */
	return err;
}

int ut_space_harvest(ut_space *s, int flags)
{
	TRY(ut_space_look(s, NULL, flags | UT_RUNNING));
	return ut_space_find(s, NULL, 0);
}

int ut_space_ask(ut_space *s)
{
	if (!s->maps.n)
		return 0;
	ut_reader_ask_shared(&s->reader, &s->maps);
	return UT_ASKED;
}

int ut_space_copy(ut_space *s, const ut_run *runs, size_t n)
{
	ut_reader_ask_shared(&s->reader, &s->maps); /* it may have forked since the harvest */
	return ut_space_copy_now(s, runs, n);
}

int ut_space_copy_now(ut_space *s, const ut_run *runs, size_t n)
{
	const ut_runs all = {(ut_run *)runs, n, n};
	const uint8_t *data;

	TRY(ut_buffer_reserve(&s->buffer, runs_bytes(&all)));
	s->unreadable.n = 0;
	TRY(ut_copy(&s->reader, runs, n, s->buffer.v, &s->unreadable));
	if (!s->history.known.n && !s->history.kept.n && !s->history.bare.n)
		return 0;
	data = s->buffer.v;
	for (size_t i = 0; i < n; i++) {
		TRY(ut_digests_note(&s->digests, &s->history.known, &runs[i], data));
		TRY(ut_digests_note(&s->digests, &s->history.kept, &runs[i], data));
		TRY(ut_digests_note(&s->digests, &s->history.bare, &runs[i], data));
		data += runs[i].end - runs[i].start;
	}
	return 0;
}

int ut_space_is_gone(const ut_space *s)
{
	return ut_mm_is_gone(s->uffd);
}

/* -- open and close ------------------------------------------------------------------------------ */

static uint64_t max_map_count(void)
{
	AUTO_FILE file = fopen("/proc/sys/vm/max_map_count", "re");
	unsigned long n;

	return file && fscanf(file, "%lu", &n) == 1 ? n : 0;
}

int ut_space_open(int pid, int uffd, int diff_all, ut_space **out)
{
	ut_space *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->uffd = -1;
	s->reader = UT_READER_OF(pid);
	s->diff_all = diff_all;
	s->max_maps = max_map_count();
	s->found = malloc(UT_SHARES * UT_FOUND_ROOM * sizeof(*s->found));
	s->bounce = malloc(UT_BOUNCE);
	if (!s->found || !s->bounce || ut_digests_open(&s->digests) || ut_buffer_reserve(&s->buffer, 32ul << 20)) {
		ut_space_close(s);
		return -ENOMEM;
	}
	s->uffd = uffd;
	*out = s;
	return 0;
}

int ut_space_watch(ut_space *s, int sync, uint64_t limit)
{
	s->sync = sync;
	return ut_watch_open(s->reader.pid, s->uffd, sync, limit, &s->watch);
}

static void harvest_free(ut_harvest *h)
{
	ut_news_free(&h->news);
	ut_finding_free(&h->all);
	ut_finding_free(&h->part);
	runs_free(&h->found);
	runs_free(&h->compared);
	free(h->elsewhere);
}

void ut_space_close(ut_space *s)
{
	if (s->watch)
		ut_watch_close(s->watch);
	ut_sole_leave(s);
	ut_sole_free(s->sole);
	ut_close_fd(&s->uffd); /* takes every trap away */
	ut_reader_close(&s->reader);
	ut_maps_free(&s->maps);
	ut_maps_free(&s->before);
	ut_filesystems_free(&s->filesystems);
	ut_heads_free(&s->heads);
	ut_digests_close(&s->digests);
	ut_history_free(&s->history);
	harvest_free(&s->harvest);
	ut_early_free(&s->early);
	ut_buffer_free(&s->buffer);
	runs_free(&s->unreadable);
	free(s->found);
	free(s->bounce);
	free(s);
}
