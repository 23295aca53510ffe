/* Setting the traps of many pages at the lowest cost. */
#include "compat.h"
#include "engine.h"
#include "gate.h"
#include "harvest.h"
#include "mm.h"
#include "radix.h"
#include "rearm.h"
#include "sabotage.h"

#include <errno.h>

#define PART 256 /* pages that are rearmed while no fault is listed */
#define SOON 160 /* pages that are copied before a vCPU would go to sleep again */
#define SHARE 32 /* pages that are worth another thread */
#define FEW 48   /* pages that are sorted by insertion */

/* Costs in ns, as `make bench` measures them (docs/performance.md); only their ratios matter.
 *
 * One UFFDIO_WRITEPROTECT is dear, whatever its length, and it rewrites each entry of its range. One
 * PAGEMAP_SCAN with WP_MATCHING costs about the same, walks the entries between two pages for next to
 * nothing, and sets the traps of those that were written. It needs WP_ASYNC. */
enum {
	CALL_WP = 870,
	ENTRY_WP = 65,
	CALL_SCAN = 1100,
	FOUND_SCAN = 45,
	OPEN_SCAN = 1500, /* a page that is open, whose trap the scan would set: a first write, and a comparison */
	GAP = 375,   /* pages that are walked for the price of another call */
	ROOM = 128,  /* results of one call; the kernel allocates for them */
};
#define ENTRY_SCAN 2.2

/* -ESRCH: its process has ended, and nobody has these pages. */
static int protect(const ut_mm *mm, uint64_t first, uint64_t pages)
{
	int err = ut_protect(mm->uffd, mm->base + first * UT_PAGE, pages * UT_PAGE, UT_TRAP);

	return err == -ESRCH ? 0 : err;
}

static size_t run_length(const uint32_t *v, size_t n)
{
	size_t k = 1;

	while (k < n && v[k] == v[k - 1] + 1)
		k++;
	return k;
}

/* A page that the scan found and that is not to be rearmed was written just now, by a vCPU that runs or
 * through GUP. Its trap is set again, so this cycle is the last that can know of it. */
static void carry(ut_tracker *t, ut_mm *mm, uint64_t index)
{
	UT_LOCK(&t->cycle.lock);
	t->stats.carried++;
	trap_fired(t->s, mm->index, index);
	ut_mark(t->s, index);
}

static int scan_span(ut_tracker *t, ut_mm *mm, const uint32_t *v, size_t n)
{
	struct ut_page_region found[ROOM];
	ut_scan scan = {
		.pagemap = mm->pagemap, .start = mm->base + v[0] * UT_PAGE, .end = mm->base + (v[n - 1] + 1ull) * UT_PAGE,
		.flags = UT_REARM, UT_SCAN_WRITTEN, .found = found, .room = ROOM,
		.first_room = n + 2 < ROOM ? n + 2 : ROOM,
	};
	size_t k = 0;
	long got;

	while ((got = ut_scan_next(&scan)) > 0)
		for (long i = 0; i < got; i++)
			for (uint64_t p = found[i].start; p < found[i].end; p += UT_PAGE) {
				uint64_t index = (p - mm->base) / UT_PAGE;

				while (k < n && v[k] < index)
					k++;
				if (k == n || v[k] != index)
					carry(t, mm, index);
			}
	return got == -ESRCH ? 0 : got;
}

/* Pages whose gaps are short enough to be walked. */
static size_t group_length(const uint32_t *v, size_t n)
{
	size_t k = 1;

	while (k < n && v[k] - v[k - 1] <= GAP)
		k++;
	return k;
}

/* Pages of a span that are to stay open: they have their bit still, as hot ones do. */
static uint64_t open_in(ut_tracker *t, uint64_t first, uint64_t last)
{
	uint64_t n = 0;

	for (uint64_t i = first & ~63ul; i <= last; i += 64)
		n += __builtin_popcountll(atomic_load_explicit(ut_word(t->s, i), memory_order_relaxed));
	return n;
}

static int rearm_group(ut_tracker *t, ut_mm *mm, const uint32_t *v, size_t n)
{
	int async = t->ops->async;
	uint64_t span = v[n - 1] - v[0] + 1, runs = 0, by_run, by_span;

	for (size_t i = 0; i < n; i += run_length(v + i, n - i))
		runs++;
	by_run = runs * CALL_WP + (n - runs) * ENTRY_WP;
	by_span = async ? CALL_SCAN + span * ENTRY_SCAN + n * FOUND_SCAN : CALL_WP + span * ENTRY_WP;
	if (async && t->hot.n)
		by_span += open_in(t, v[0], v[n - 1]) * OPEN_SCAN;
	by_span += by_span / 4; /* only where it is worth it in cold caches too */
	t->stats.rearm_calls += by_span < by_run ? 1 : runs;
	if (by_span < by_run && async)
		return scan_span(t, mm, v, n);
	/* sync, inline: a page of the span that is in no list has its trap, and one that was listed since
	 * then is only asked for again. */
	if (by_span < by_run)
		return protect(mm, v[0], span);
	for (size_t i = 0, k; i < n; i += k) {
		k = run_length(v + i, n - i);
		TRY(protect(mm, v[i], k));
	}
	return 0;
}

static int rearm_sorted(ut_tracker *t, ut_mm *mm, const uint32_t *v, size_t n)
{
	if (n && ut_breaks(UT_BREAK_REFUSE)) {
		ut_mend(UT_BREAK_REFUSE);
		return -ENOMEM;
	}
	t->stats.rearm_pages += n;
	for (size_t i = 0, k; i < n; i += k) {
		k = group_length(v + i, n - i);
		TRY(rearm_group(t, mm, v + i, k));
	}
	return 0;
}

/* -- pages of a log ------------------------------------------------------------------------------ */

UT_RADIX(sort_many, uint32_t)

static uint32_t *sort_few(uint32_t *v, size_t n)
{
	for (size_t i = 1; i < n; i++) {
		uint32_t x = v[i];
		size_t k = i;

		for (; k && v[k - 1] > x; k--)
			v[k] = v[k - 1];
		v[k] = x;
	}
	return v;
}

/* Those of n pages whose trap has fired in an address space go to `mine`; returns how many. */
static size_t take_fired(ut_tracker *t, int mm, const uint32_t *v, size_t n, uint32_t *mine)
{
	size_t k = 0;

	UT_LOCK(&t->cycle.lock);
	for (size_t i = 0; i < n; i++)
		if (t->s->stride == 1 || bit_clear(t->s, UT_TRAPPED + mm, v[i]))
			mine[k++] = v[i];
	return k;
}

/* Their traps may not be set: they are to be rearmed again. */
static void fire_again(ut_tracker *t, int mm, const uint32_t *v, size_t n)
{
	UT_LOCK(&t->cycle.lock);
	for (size_t i = 0; i < n; i++)
		trap_fired(t->s, mm, v[i]);
}

static void unlist(ut_tracker *t, const uint32_t *v, size_t n)
{
	UT_LOCK(&t->cycle.lock);
	for (size_t i = 0; i < n; i++)
		bit_clear(t->s, UT_LISTED, v[i]);
}

static int rearm_part(ut_tracker *t, const uint32_t *v, size_t n, uint32_t *mine)
{
	/* The bit goes first: a write that comes between it and the trap is listed anew. */
	unlist(t, v, n);
	/* A scan has set the trap of what it found. */
	for (int i = 0; i <= t->s->nvcpus && !t->ops->scans; i++) {
		size_t k;

		if (!t->mm[i].used)
			continue;
		k = take_fired(t, i, v, n, mine);
		if (ut_breaks(UT_BREAK_REARM) && k > 8) {
			k--;
			ut_mend(UT_BREAK_REARM);
		}
		int err = rearm_sorted(t, &t->mm[i], mine, k);

		if (err) {
			fire_again(t, i, mine, k);
			return err;
		}
	}
	return 0;
}

typedef struct {
	ut_tracker *t;
	const uint32_t *v;
	uint32_t *other;
	size_t n, part;
} rearm_job;

static int do_part(void *arg, size_t i)
{
	const rearm_job *job = arg;
	size_t first = i * job->part, left = job->n - first;
	int err;

	ut_keep_out(job->t);
	err = rearm_part(job->t, job->v + first, left < job->part ? left : job->part, job->other + first);
	ut_let_in(job->t);
	return err;
}

int ut_rearm_rows(ut_tracker *t, uint32_t *v, uint32_t *other, size_t n)
{
	uint32_t *sorted = n < FEW ? sort_few(v, n) : sort_many(v, other, n, 64 - __builtin_clzll(t->s->npages));
	/* In memory of our own, two threads would interrupt each other for each trap. */
	int helped = t->ops->async && !t->ops->scans && !t->mm[0].used;
	/* If faults are listed, they wait meanwhile, but not for long. */
	rearm_job job = {t, sorted, sorted == v ? other : v, n, t->ops->lists ? PART : helped ? SHARE : n};
	size_t parts = n ? (n + job.part - 1) / job.part : 0;

	if (helped)
		return ut_helped(&t->helper, do_part, &job, parts);
	for (size_t i = 0; i < parts; i++)
		TRY(do_part(&job, i));
	return 0;
}

void ut_rearm_done(ut_tracker *t, size_t n)
{
	if (n <= SOON)
		ut_gate_rouse(t->s);
}

int ut_rearm_pages(ut_tracker *t, const uint64_t *gfn, size_t n)
{
	size_t place = gfn - ut_cycle_ended_log(&t->cycle)->gfn;
	uint32_t *v = t->scratch.rows + place;

	for (size_t i = 0; i < n; i++) {
		const ut_slot *slot = ut_slot_of_gfn(&t->slots, gfn[i]);

		if (!slot)
			return -EINVAL;
		v[i] = gfn[i] - slot->gfn + slot->row;
	}
	return ut_rearm_rows(t, v, t->scratch.rows2 + place, n);
}
