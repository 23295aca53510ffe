#include "hot.h"
#include "compat.h"
#include "engine.h"
#include "harvest.h"
#include "sabotage.h"

#include <string.h>

enum {
	ROOM = 16384, /* hot pages at most: beyond, the copies are more than caches hold */
	COLD = 4,     /* cycles: about what a page that is hot again after all costs, in comparisons */
	AHEAD = 4,
};

static size_t room_for(uint64_t npages)
{
	return npages < ROOM ? npages : ROOM;
}

size_t ut_hot_bytes(uint64_t npages, size_t log)
{
	size_t n = room_for(npages);

	return ut_arena_room(n, sizeof(ut_hot_page)) + ut_arena_room(n, UT_PAGE) + ut_arena_room(npages, 4) +
	       3 * ut_arena_room(log, 4);
}

char *ut_hot_carve(ut_tracker *t, char *at, size_t log)
{
	size_t n = room_for(t->s->npages);

	UT_CARVE(at, t->hot.v, n, sizeof(*t->hot.v));
	UT_CARVE(at, t->hot.copies, n, UT_PAGE);
	UT_CARVE(at, t->hot.dirty_in, t->s->npages, 4);
	UT_CARVE(at, t->hot.chosen, log, 4);
	UT_CARVE(at, t->hot.rows, log, 4);
	UT_CARVE(at, t->hot.rows2, log, 4);
	return at;
}

/* A scan sets the trap of each page that it finds. And a threshold has to leave pages to write. */
static size_t limit(const ut_tracker *t)
{
	int64_t threshold = ut_threshold(t->s), left = threshold / 8 + 1, most = room_for(t->s->npages);

	if (t->ops->scans)
		return 0;
	if (!threshold)
		return most;
	left = threshold - (left > t->s->nvcpus ? left : t->s->nvcpus); /* each vCPU can write one */
	return left < 0 ? 0 : left < most ? left : most;
}

static uint8_t *copy_of(ut_tracker *t, size_t i)
{
	return t->hot.copies + i * UT_PAGE;
}

/* The last one takes its place. */
static void drop(ut_tracker *t, size_t i)
{
	size_t last = --t->hot.n;

	atomic_fetch_sub(&t->s->limit.count, 1);
	if (i == last)
		return;
	t->hot.v[i] = t->hot.v[last];
	memcpy(copy_of(t, i), copy_of(t, last), UT_PAGE);
}

void ut_hot_spill(ut_tracker *t)
{
	/* They were counted, and go with the pages of the cycle. */
	for (size_t i = 0; i < t->hot.n; i++)
		ut_put(t, t->hot.v[i].row, UT_HOST);
	t->hot.n = 0;
}

void ut_hot_fit(ut_tracker *t)
{
	if (t->hot.n > limit(t))
		ut_hot_spill(t);
}

static int differs(ut_tracker *t, size_t i, const uint8_t *ram)
{
	int differs = memcmp(ram + t->hot.v[i].row * (uint64_t)UT_PAGE, copy_of(t, i), UT_PAGE);

	if (differs && ut_breaks(UT_BREAK_COMPARE)) {
		ut_mend(UT_BREAK_COMPARE);
		return 0;
	}
	return differs;
}

typedef struct {
	ut_tracker *t;
	const uint8_t *ram;
	uint8_t *to;
	size_t room, first; /* rows of `to`; the first one for a hot page */
} compare_job;

static void deliver(const compare_job *job, size_t i, size_t place)
{
	if (job->first + place < job->room)
		memcpy(job->to + (job->first + place) * UT_PAGE, copy_of(job->t, i), UT_PAGE);
}

/* Compare pages. Of one that differs, take its copy out of one reading: what the caller gets is what the next comparison
 * is with. Its row is right if all before it differ as well. */
static int compare_share(void *arg, size_t share)
{
	const compare_job *job = arg;
	ut_tracker *t = job->t;
	size_t first = share * UT_HOT_SHARE, end = first + UT_HOT_SHARE < t->hot.n ? first + UT_HOT_SHARE : t->hot.n;

	for (size_t i = first; i < end; i++) {
		if (i + AHEAD < end)
			__builtin_prefetch(job->ram + t->hot.v[i + AHEAD].row * (uint64_t)UT_PAGE);
		if (differs(t, i, job->ram)) {
			t->hot.v[i].idle = 0;
			memcpy(copy_of(t, i), job->ram + t->hot.v[i].row * (uint64_t)UT_PAGE, UT_PAGE);
			deliver(job, i, i);
		} else {
			t->hot.v[i].idle++;
		}
	}
	return 0;
}

/* List those that differ: where a row is empty, the last of them takes it. */
static void list_changed(const compare_job *job)
{
	ut_tracker *t = job->t;
	size_t place = 0, end = t->hot.n;

	for (; place < end; place++) {
		size_t i = place;

		if (t->hot.v[place].idle) {
			while (end > place && t->hot.v[end - 1].idle)
				end--;
			if (end <= place)
				return;
			i = --end;
			deliver(job, i, place);
		}
		/* Counted as hot, and now in the log as well. */
		atomic_fetch_add(&t->s->limit.count, 1);
		t->hot.rows[i] = job->first + place;
		ut_put(t, t->hot.v[i].row, UT_HOST);
	}
}

void ut_hot_compare(ut_tracker *t, const uint8_t *ram, uint8_t *to, size_t room)
{
	const ut_log *log = ut_cycle_open_log(&t->cycle);
	compare_job job = {t, ram, to, room, log->n};

	ut_helped(&t->helper, compare_share, &job, (t->hot.n + UT_HOT_SHARE - 1) / UT_HOT_SHARE);
	list_changed(&job);
	for (size_t i = t->hot.n; log->n > room && i--;)
		if (!t->hot.v[i].idle && t->hot.rows[i] >= room)
			drop(t, i);
}

int64_t ut_hot_promote(ut_tracker *t, uint64_t row)
{
	uint32_t now = atomic_load(&t->cycle.number) + 1, before = t->hot.dirty_in[row];

	t->hot.dirty_in[row] = now;
	if (!before || before != now - 1 || t->hot.n >= limit(t))
		return -1;
	t->hot.v[t->hot.n] = (ut_hot_page){.row = row};
	atomic_fetch_add(&t->s->limit.count, 1);
	return t->hot.n++;
}

size_t ut_hot_cold(ut_tracker *t, uint32_t *rows)
{
	size_t n = 0;

	for (size_t i = 0; i < t->hot.n; i++)
		if (t->hot.v[i].idle >= COLD)
			rows[n++] = t->hot.v[i].row;
	return n;
}

void ut_hot_cool(ut_tracker *t, const uint8_t *ram)
{
	for (size_t i = t->hot.n; i--;) {
		uint64_t row = t->hot.v[i].row;

		if (t->hot.v[i].idle < COLD)
			continue;
		if (differs(t, i, ram))
			ut_mark(t->s, row);
		drop(t, i);
	}
}

void ut_hot_forget_listed(ut_tracker *t)
{
	for (size_t i = t->hot.n; i--;) {
		if (t->hot.v[i].idle >= COLD) { /* its trap may be set, or not */
			bit_clear(t->s, UT_LISTED, t->hot.v[i].row);
			ut_mark(t->s, t->hot.v[i].row);
			drop(t, i);
		} else if (!t->hot.v[i].idle) {
			drop(t, i);
		}
	}
}

void ut_hot_copy(ut_tracker *t, int64_t number, const uint8_t *ram, uint8_t *to)
{
	/* Out of one reading: what the caller gets is what the next comparison is with. */
	memcpy(copy_of(t, number), ram + t->hot.v[number].row * (uint64_t)UT_PAGE, UT_PAGE);
	memcpy(to, copy_of(t, number), UT_PAGE);
}
