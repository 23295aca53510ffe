/* Copies that are made before the stop.
 *
 * A round passes over what is not registered (any more): such mappings are taken as new in the stop. It looks in the spans of
 * the last harvest alone, and leaves mappings, digests and history to the stop. */
#include "barrier.h"
#include "methods.h"
#include "proc_stat.h"
#include "sabotage.h"
#include "vec.h"

#include <stdlib.h>
#include <time.h>

enum {
	ROUNDS = 2, /* each stops the target for a moment */
	LEAST_TOUCHED = 128, /* pages: to copy them takes as long as a round stops the target */
	LEAST_BEHIND = 4096, /* the same where stops cannot come fast enough */
	LEAST_FAULTS = 512,  /* the same over all spans: at least, and if their copies take longer than a harvest */
	COPY_NS = 1000,      /* of a page, about */
};
#define MOST (1ul << 30) /* bytes; the rest is for the stop */
#define IDLE (64ul << 20) /* a buffer of that size is kept whatever it is needed for */

static int push_copied(ut_early *e, uint64_t start, uint64_t end, uint64_t at)
{
	return start < end ? VEC_PUSH(e->v, e->n, e->cap, (ut_copied){start, end, at}) : 0;
}

static int cut_one(ut_early *to, const ut_copied *c, const ut_runs *cut)
{
	uint64_t at = c->start;

	for (size_t i = ut_first_after(cut->v, cut->n, sizeof(*cut->v), at); i < cut->n && cut->v[i].start < c->end; i++) {
		TRY(push_copied(to, at, cut->v[i].start, c->at + (at - c->start)));
		at = cut->v[i].end;
	}
	return push_copied(to, at, c->end, c->at + (at - c->start));
}

/* Forget the copies in these ranges. */
static int cut_copies(ut_early *e, const ut_runs *cut)
{
	ut_early kept = {0};
	int err = 0;

	if (!cut->n || !e->n)
		return 0;
	for (size_t i = 0; i < e->n && !err; i++)
		err = cut_one(&kept, &e->v[i], cut);
	if (err) {
		free(kept.v);
		return err;
	}
	free(e->v);
	e->v = kept.v;
	e->n = kept.n;
	e->cap = kept.cap;
	return 0;
}

static void drop_idle(ut_buffer *b, uint64_t used)
{
	if (b->cap > IDLE && used < b->cap / 4)
		ut_buffer_free(b);
}

void ut_early_clear(ut_early *e)
{
	drop_idle(&e->buffer, e->used);
	e->n = e->used = e->broken = 0;
	e->gone.n = e->again.n = e->due.n = e->touched.n = e->left.n = 0;
}

void ut_early_free(ut_early *e)
{
	free(e->v);
	ut_buffer_free(&e->buffer);
	ut_buffer_free(&e->merged);
	runs_free(&e->gone);
	runs_free(&e->again);
	runs_free(&e->due);
	runs_free(&e->touched);
	runs_free(&e->left);
}

/* -- before the stop ------------------------------------------------------------------------------ */

static uint64_t faults_of(const ut_space *s)
{
	ut_proc_stat stat;

	return ut_proc_stat_read(s->reader.pid, 0, &stat) ? 0 : stat.faults;
}

/* How many pages were written, about: each first write is a fault. */
static uint64_t count_written(const ut_space *s, uint64_t faults)
{
	if (s->watch)
		return ut_watch_count(s->watch);
	return faults > s->early.faults ? faults - s->early.faults : 0;
}

static uint64_t worth_a_scan(const ut_space *s)
{
	uint64_t harvest = s->early.harvest_ns / COPY_NS;

	return harvest > LEAST_FAULTS ? harvest : LEAST_FAULTS;
}

static uint64_t worth_a_round(const ut_space *s)
{
	uint64_t least = s->watch ? LEAST_TOUCHED : worth_a_scan(s);

	if (s->early.least)
		return s->early.least;
	return s->early.behind && least < LEAST_BEHIND ? LEAST_BEHIND : least;
}

/* Its traps may be set and its pages not found: the stop copies them all. */
static int look_early(ut_space *s, uint64_t start, uint64_t end, ut_runs *want)
{
	ut_scan scan = UT_SCAN_OF(s, start, end, .flags = UT_SCAN_WP_MATCHING, UT_SCAN_WRITTEN);

	return ut_look_written(&s->reader, &scan, want, &s->early.gone) ? runs_push(&s->early.again, start, end) : 0;
}

/* Of shared memory that is followed. A page that is not in the page tables may have contents all the same. */
static int look_at_shared(ut_space *s, uint64_t start, uint64_t end, ut_runs *want)
{
	ut_scan scan = UT_SCAN_OF(s, start, end, .flags = UT_SCAN_WP_MATCHING, UT_SCAN_WRITTEN);
	AUTO_RUNS found = {0};
	int err = ut_scan_runs(&scan, &found);

	if (err) {
		found.n = 0;
		TRY(runs_push(&found, start, end));
	}
	/* If it is compared after all, with what was stored before these copies. */
	ut_digests_void(&s->digests, &found);
	return runs_append(err ? &s->early.again : want, &found);
}

/* `touched`: NULL: look at all of it. */
static int look_at_all_shared(ut_space *s, const ut_runs *touched, ut_runs *want)
{
	AUTO_RUNS places = {0};

	TRY(ut_sole_places(s, &places));
	for (size_t n = 0; n < places.n; n++) {
		const ut_run *place = &places.v[n];
		AUTO_RUNS here = {0};

		if (touched)
			TRY(runs_clip(&here, touched, place->start, place->end));
		else
			TRY(runs_push(&here, place->start, place->end));
		for (size_t i = 0, k; i < here.n; i = k) {
			k = ut_near(&here, i);
			TRY(look_at_shared(s, here.v[i].start, here.v[k - 1].end, want));
		}
	}
	return 0;
}

static int look_at_touched(ut_space *s, ut_runs *want, ut_runs *touched)
{
	AUTO_RUNS outside = {0}, inside = {0};
	ut_early *e = &s->early;
	int err = ut_watch_early(s->watch, touched);

	if (!err)
		err = runs_append(&e->touched, touched);
	if (!err)
		err = runs_minus(&outside, touched, &s->history.spans);
	if (!err)
		err = runs_minus(&inside, touched, &outside);
	if (!err)
		err = runs_append(&e->left, &outside);
	/* What is between two spans is another mapping's: one that others look after, or without pages of its own. */
	for (size_t n = 0; n < s->history.spans.n && !err; n++) {
		AUTO_RUNS here = {0};

		err = runs_clip(&here, &inside, s->history.spans.v[n].start, s->history.spans.v[n].end);
		for (size_t i = 0, k; i < here.n && !err; i = k) {
			k = ut_near(&here, i);
			err = look_early(s, here.v[i].start, here.v[k - 1].end, want);
		}
	}
	return err;
}

static int look_at_all_spans(ut_space *s, ut_runs *want)
{
	const ut_runs *spans = &s->history.spans;

	for (size_t i = 0; i < spans->n; i++)
		TRY(look_early(s, spans->v[i].start, spans->v[i].end, want));
	return 0;
}

/* What cannot be copied now is copied in the stop, or turns out to be gone there. */
static int copy_early(ut_space *s, ut_runs *want)
{
	ut_early *e = &s->early;
	uint64_t bytes = runs_bytes(want);
	AUTO_RUNS unreadable = {0};

	TRY(cut_copies(e, want));
	if (e->used + bytes > MOST || ut_buffer_grow(&e->buffer, e->used + bytes))
		return runs_append(&e->again, want);
	ut_reader_ask_shared(&s->reader, &s->maps);
	if (ut_copy(&s->reader, want->v, want->n, e->buffer.v + e->used, &unreadable))
		return runs_append(&e->again, want);
	for (size_t i = 0; i < want->n; i++) {
		TRY(push_copied(e, want->v[i].start, want->v[i].end, e->used));
		e->used += want->v[i].end - want->v[i].start;
	}
	runs_normalise(&unreadable);
	TRY(runs_append(&e->again, &unreadable));
	return cut_copies(e, &unreadable);
}

int ut_early_withdraw(ut_early *e)
{
	for (size_t i = 0; i < e->n; i++)
		TRY(runs_push(&e->again, e->v[i].start, e->v[i].end));
	e->n = e->used = 0;
	runs_normalise(&e->again);
	return 0;
}

static void normalise(ut_early *e)
{
	runs_normalise(&e->again);
	runs_normalise(&e->due);
	runs_normalise(&e->gone);
	runs_normalise(&e->touched);
	runs_normalise(&e->left);
}

/* After stops that failed there may be more dead copies in the buffer than living ones. */
static int tidy(ut_early *e)
{
	uint64_t living = 0;

	for (size_t i = 0; i < e->n; i++)
		living += e->v[i].end - e->v[i].start;
	if (e->used > 2 * living)
		TRY(ut_early_withdraw(e));
	normalise(e);
	return 0;
}

/* 0: the stop says so. */
static int is_there(ut_space *s)
{
	int tid = ut_live_thread(s->reader.pid);

	if (tid < 0 || ut_mm_is_gone(s->uffd))
		return 0;
	s->reader.tid = tid;
	return 1;
}

static int take_rounds(ut_space *s, ut_tracee *t, int64_t timeout_ns)
{
	uint64_t before = 0;
	ut_early *e = &s->early;

	for (int i = 0; i < ROUNDS; i++) {
		uint64_t faults = s->watch ? 0 : faults_of(s), written;
		AUTO_RUNS want = {0}, touched = {0};

		written = count_written(s, faults);
		if (written < worth_a_round(s) || (i && written > before / 2))
			return 0;
		before = written;
		if (!is_there(s))
			return 0;
		e->faults = faults;
		if (s->watch) {
			TRY(look_at_touched(s, &want, &touched));
			TRY(look_at_all_shared(s, &touched, &want));
		}
		/* Where touched pages are missing, the stop would find the others. */
		if (!s->watch || (written >= worth_a_scan(s) && ut_watch_misses(s->watch))) {
			TRY(look_at_all_spans(s, &want));
			TRY(look_at_all_shared(s, NULL, &want));
		}
		runs_normalise(&want);
		if (!want.n)
			return 0;
		if (ut_barrier(t, s, timeout_ns) < 0)
			return runs_append(&e->again, &want); /* the stop says why */
		TRY(copy_early(s, &want));
	}
	return 0;
}

/* The rest is too little for a round. Its traps are set again now; it is copied in the stop, when no call is under way that
 * has pinned it. So the stop looks only for what is touched from here on. What is given back is told by an event, so
 * nobody has to ask there whether it still exists: engines without a watch do all this in the stop. Each trap interrupts
 * the processor that a thread of the target's runs on, which takes longer than the same in the stop. */
static int arm_rest(ut_space *s)
{
	uint64_t n = s->watch && !s->early.behind ? ut_watch_count(s->watch) : 0;
	AUTO_RUNS touched = {0};

	return n && n < LEAST_TOUCHED && is_there(s) ? look_at_touched(s, &s->early.due, &touched) : 0;
}

/* Where a limit counts touched pages, those of a round would count twice. */
static int may_look_early(const ut_space *s)
{
	return !s->sync && !s->diff_all && s->reader.pagemap >= 0 && s->history.spans.n && !(s->watch && s->watch->limit);
}

int ut_look_early(ut_space *s, ut_tracee *t, int64_t timeout_ns, ut_runs *want)
{
	AUTO_RUNS touched = {0};
	int err = 0;

	if (!may_look_early(s) || ut_mm_is_gone(s->uffd))
		return 0;
	TRY(s->reader.tid = ut_live_thread(s->reader.pid));
	if (s->watch && ut_watch_count(s->watch))
		err = look_at_touched(s, want, &touched);
	if (!err && (!s->watch || ut_watch_misses(s->watch)))
		err = look_at_all_spans(s, want);
	s->early.broken |= err < 0;
	TRY(err);
	runs_normalise(want);
	normalise(&s->early);
	return ut_barrier(t, s, timeout_ns);
}

void ut_space_early(ut_space *s, ut_tracee *t, int64_t timeout_ns)
{
	if (!may_look_early(s))
		return;
	s->early.broken |= tidy(&s->early) || take_rounds(s, t, timeout_ns) || arm_rest(s);
	normalise(&s->early);
	if ((s->early.n || s->early.due.n) && ut_breaks(UT_BREAK_EARLY | UT_BREAK_DELAY))
		nanosleep(&(struct timespec){0, 2000000}, NULL);
}

/* -- after it ------------------------------------------------------------------------------------- */

static int by_address(const void *a, const void *b)
{
	const ut_copied *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* In order of addresses, in a buffer of its own. */
static int merge_copies(ut_space *s, const ut_runs *late, ut_runs *want, ut_runs *data, ut_runs *zero)
{
	ut_early *e = &s->early;
	const uint8_t *from = s->buffer.v;
	uint8_t *to;
	size_t k = 0;

	TRY(ut_buffer_reserve(&e->merged, e->used + runs_bytes(late)));
	to = e->merged.v;
	qsort(e->v, e->n, sizeof(*e->v), by_address);
	for (size_t i = 0; i < e->n || k < late->n;) {
		int is_early = i < e->n && (k == late->n || e->v[i].start < late->v[k].start);
		ut_run run = is_early ? (ut_run){e->v[i].start, e->v[i].end} : late->v[k];

		TRY(runs_push(want, run.start, run.end));
		TRY(ut_split_zero_of(&to, is_early ? e->buffer.v + e->v[i].at : from, run.start, run.end, data, zero));
		if (!is_early)
			from += run.end - run.start;
		*(is_early ? &i : &k) += 1;
	}
	return 0;
}

int ut_early_outdate(ut_space *s)
{
	const ut_finding *found = &s->harvest.all;
	AUTO_RUNS cut = {0};

	if (!s->early.n)
		return 0;
	TRY(runs_append(&cut, &found->want));
	TRY(runs_append(&cut, &found->gone));
	TRY(runs_append(&cut, &found->fresh));
	TRY(runs_append(&cut, &s->harvest.compared));
	runs_normalise(&cut);
	return cut_copies(&s->early, &cut);
}

int ut_space_give(ut_space *s, ut_runs *want, ut_runs *data, ut_runs *zero, uint8_t **contents)
{
	const ut_runs *late = &s->harvest.all.want;
	ut_early *e = &s->early;

	want->n = data->n = zero->n = 0;
	TRY(ut_early_outdate(s));
	if (e->n) {
		TRY(merge_copies(s, late, want, data, zero));
		*contents = e->merged.v;
	} else {
		drop_idle(&e->merged, 0);
		TRY(runs_append(want, late));
		TRY(ut_split_zero(s->buffer.v, want, data, zero));
		*contents = s->buffer.v;
	}
	e->faults = s->watch ? 0 : faults_of(s);
	ut_early_clear(e);
	return 0;
}
