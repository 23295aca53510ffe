#include "compat.h"
#include "engine.h"
#include "harvest.h"
#include "mm.h"

#include <sched.h>

void ut_put(ut_tracker *t, uint64_t index, int vcpu)
{
	ut_log *log = ut_cycle_open_log(&t->cycle);

	log->gfn[log->n] = ut_gfn_of_row(&t->slots, index);
	log->vcpu[log->n++] = vcpu;
}

int ut_emit(ut_tracker *t, ut_mm *mm, uint64_t index, int vcpu)
{
	/* sync and inline have set the page's bit, and listed it once, when it was written. */
	if (mm) {
		if (t->s->stride > 1)
			bit_set_alone(t->s, UT_TRAPPED + mm->index, index);
		if (bit_set_alone(t->s, UT_LISTED, index)) {
			t->stats.duplicates++;
			return 0;
		}
	}
	ut_put(t, index, vcpu);
	return 1;
}

int ut_scan_mm(ut_tracker *t, ut_mm *mm)
{
	ut_scan scan = {
		.pagemap = mm->pagemap, .start = mm->base, .end = mm->base + t->s->npages * UT_PAGE,
		.flags = UT_REARM, UT_SCAN_WRITTEN, .found = t->scratch.vec, .room = UT_SCAN_ROOM,
	};
	long n;

	t->stats.scans++;
	while ((n = ut_scan_next(&scan)) > 0)
		for (long i = 0; i < n; i++)
			for (uint64_t p = scan.found[i].start; p < scan.found[i].end; p += UT_PAGE)
				ut_emit(t, mm, (p - mm->base) / UT_PAGE, mm->vcpu);
	if (n == -ESRCH) {
		/* Its process has died, and what it wrote last only its page tables knew. */
		t->everything = 1;
		return 0;
	}
	if (!n)
		mm->need_scan = 0;
	return n;
}

void ut_take_list(ut_tracker *t, int vcpu)
{
	int64_t index;

	while ((index = ut_take(t->s, vcpu)) >= 0)
		ut_emit(t, NULL, index, vcpu);
}

void ut_keep_out(ut_tracker *t)
{
	struct timespec nap = {0, 20000};

	if (!t->ops->lists)
		return;
	atomic_fetch_add(&t->s->listing.rearming, 1);
	for (int i = 0; i <= t->s->nvcpus; i++)
		for (int k = 0; t->mm[i].used && atomic_load(&t->s->listing.busy[i]); k++)
			if (k < 100)
				sched_yield();
			else
				nanosleep(&nap, NULL); /* until it is found out that its process died */
}

void ut_let_in(ut_tracker *t)
{
	if (t->ops->lists)
		atomic_fetch_sub(&t->s->listing.rearming, 1);
}

/* Pages that are in the bitmap and in no list. */
static void take_bitmap(ut_tracker *t)
{
	const ut_log *log = ut_cycle_open_log(&t->cycle);

	t->stats.overflows++;
	for (size_t i = 0; i < log->n; i++) {
		uint64_t index = ut_row_of_gfn(&t->slots, log->gfn[i]);

		t->scratch.seen[index / 64] |= 1ull << (index % 64);
	}
	for (size_t i = 0; i < t->hot.n; i++)
		t->scratch.seen[t->hot.v[i].row / 64] |= 1ull << (t->hot.v[i].row % 64);
	for (uint64_t w = 0; w < t->s->words; w++) {
		uint64_t left = atomic_load(ut_word(t->s, w * 64)) & ~t->scratch.seen[w];

		for (; left; left &= left - 1)
			ut_put(t, w * 64 + __builtin_ctzll(left), UT_HOST);
		t->scratch.seen[w] = 0;
	}
}

int ut_any_dead(const ut_tracker *t)
{
	for (int i = 0; i <= t->s->nvcpus; i++)
		if (t->mm[i].used && atomic_load(&t->mm[i].dead))
			return 1;
	return 0;
}

static int take_everything(ut_tracker *t)
{
	for (int i = 0; i < t->s->nvcpus; i++) {
		if (t->ev[i].used)
			t->ops->drain(t, i);
		ut_take_list(t, i);
	}
	for (int i = 0; i <= t->s->nvcpus; i++)
		if (t->mm[i].used && (t->ops->scans || t->mm[i].need_scan))
			TRY(ut_scan_mm(t, &t->mm[i]));
	return 0;
}

static void mark_everything(ut_tracker *t)
{
	t->everything = 0;
	t->stats.everything++;
	for (uint64_t i = 0; i < t->s->npages; i++)
		bit_set(t->s, UT_LISTED, i);
}

int ut_harvest(ut_tracker *t)
{
	int overflow;

	if (ut_any_dead(t))
		return -EPIPE;
	TRY(take_everything(t));
	/* Read before the lists are emptied for the last time: what comes after it is in them. */
	overflow = atomic_exchange(&t->s->overflow, 0);
	ut_take_list(t, UT_HOST);
	overflow |= atomic_exchange(&t->s->overflow, 0);
	if (t->everything) {
		mark_everything(t);
		overflow = 1;
	}
	if (!overflow)
		return 0;
	/* Until the last cycle's pages are rearmed, their bits stand too: the end of this cycle will do. */
	if (!ut_cycle_is_rearmed(&t->cycle)) {
		atomic_store(&t->s->overflow, 1);
		return 0;
	}
	/* Nobody has set a page's bit and not appended it yet. */
	ut_keep_out(t);
	for (int i = UT_HOST; i < t->s->nvcpus; i++)
		ut_take_list(t, i);
	take_bitmap(t);
	ut_let_in(t);
	return 0;
}
