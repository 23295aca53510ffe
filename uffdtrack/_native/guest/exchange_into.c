/* An exchange that copies contents, too: so it can leave hot pages writable, and compare. */
#include "engine.h"
#include "harvest.h"
#include "hot.h"
#include "rearm.h"

#include <string.h>

enum { AHEAD = 4 };

typedef struct {
	ut_tracker *t;
	const uint8_t *ram;
	uint8_t *to;
	size_t room;
	size_t trapped;  /* the first so many pages of the log: their traps have fired */
	int compared;    /* hot pages that differed are in the log */
} exchange_into;

/* What becomes of a page of the log whose trap has fired: it is rearmed, or it is hot and has this copy. */
#define HOT (1u << 31)

static int compare_and_choose(exchange_into *x)
{
	ut_tracker *t = x->t;
	const ut_log *log = ut_cycle_open_log(&t->cycle);

	x->trapped = log->n;
	ut_hot_compare(t, x->ram, x->to, x->room);
	x->compared = 1;
	for (size_t i = 0; i < x->trapped && i < x->room; i++) {
		uint64_t row = ut_row_of_gfn(&t->slots, log->gfn[i]);
		int64_t number;

		if (i + AHEAD < x->trapped)
			__builtin_prefetch(&t->hot.dirty_in[ut_row_of_gfn(&t->slots, log->gfn[i + AHEAD])], 1);
		number = ut_hot_promote(t, row);
		t->hot.chosen[i] = number < 0 ? row : HOT | number;
	}
	return 0;
}

static int fill_into(void *core)
{
	exchange_into *x = core;

	TRY(ut_tracker_core.fill(x->t));
	return compare_and_choose(x);
}

static void seal_into(void *core, ut_log *log)
{
	exchange_into *x = core;

	ut_forget_one(x->t, log);
}

static int begin_into(void *core, const ut_log *ended)
{
	exchange_into *x = core;

	return ut_tracker_core.begin(x->t, ended);
}

static const ut_cycle_core into_core = {.fill = fill_into, .seal = seal_into, .begin = begin_into};

static size_t cold(ut_tracker *t, uint32_t *rows)
{
	UT_LOCK(&t->cycle.lock);
	return ut_hot_cold(t, rows);
}

static void cool(exchange_into *x)
{
	UT_LOCK(&x->t->cycle.lock);
	ut_hot_cool(x->t, x->ram);
}

static void forget_listed(ut_tracker *t)
{
	UT_LOCK(&t->cycle.lock);
	ut_hot_forget_listed(t);
}

typedef struct {
	exchange_into *x;
	size_t n;
} copy_job;

static int copy_share(void *arg, size_t share)
{
	const copy_job *job = arg;
	const exchange_into *x = job->x;
	const uint32_t *chosen = x->t->hot.chosen;
	size_t first = share * UT_HOT_SHARE, end = first + UT_HOT_SHARE < job->n ? first + UT_HOT_SHARE : job->n;

	for (size_t i = first; i < end; i++) {
		uint32_t ahead = i + AHEAD < end ? chosen[i + AHEAD] : HOT;

		if (!(ahead & HOT))
			__builtin_prefetch(x->ram + ahead * (uint64_t)UT_PAGE);
		if (chosen[i] & HOT)
			ut_hot_copy(x->t, chosen[i] & ~HOT, x->ram, x->to + i * UT_PAGE);
		else
			memcpy(x->to + i * UT_PAGE, x->ram + chosen[i] * (uint64_t)UT_PAGE, UT_PAGE);
	}
	return 0;
}

/* Traps first, contents after: a write in between is then in the copy, or in the next cycle. */
static int rearm_and_copy(exchange_into *x, size_t n)
{
	ut_tracker *t = x->t;
	size_t k = 0, trapped = x->trapped < n ? x->trapped : n, cooled;

	for (size_t i = 0; i < trapped; i++)
		if (!(t->hot.chosen[i] & HOT))
			t->hot.rows[k++] = t->hot.chosen[i];
	cooled = cold(t, t->hot.rows + k);
	TRY(ut_rearm_rows(t, t->hot.rows, t->hot.rows2, k + cooled));
	ut_rearm_done(t, n);
	TRY(ut_helped(&t->helper, copy_share, &(copy_job){x, trapped}, (trapped + UT_HOT_SHARE - 1) / UT_HOT_SHARE));
	if (cooled)
		cool(x);
	ut_cycle_rearmed(&t->cycle, n);
	return 0;
}

static int64_t end_cycle(exchange_into *x)
{
	UT_LOCK(&x->t->cycle.lock);
	return ut_cycle_cut(&x->t->cycle, &into_core, x, x->room);
}

int64_t ut_exchange_into(ut_tracker *t, const uint8_t *ram, uint8_t *to, size_t room)
{
	exchange_into x = {t, ram, to, room, 0, 0};
	uint64_t carried = t->stats.carried;
	int64_t n;
	int err;

	UT_ENTER(&t->cycle);
	if (t->s->npages > HOT)
		return -EFBIG;
	n = end_cycle(&x);
	if (n < 0 && !x.compared)
		return n;
	n = n > (int64_t)room ? (int64_t)room : n;
	err = n < 0 ? n : rearm_and_copy(&x, n);
	if (err) {
		forget_listed(t);
		ut_cycle_fetch_from(&t->cycle, 0);
		return err;
	}
	if (t->stats.carried != carried)
		err = t->ops->host_wrote(t);
	return err < 0 ? err : n;
}
