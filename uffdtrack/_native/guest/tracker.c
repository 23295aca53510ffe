#include "arm.h"
#include "compat.h"
#include "engine.h"
#include "gate.h"
#include "harvest.h"
#include "hot.h"
#include "rearm.h"
#include "sabotage.h"

#include <string.h>
#include <sys/mman.h>

#define FEW_TRAPS 4 /* to set more costs more than to wake the vCPUs again */
#define FEW_HOT 128  /* more are compared by another thread, too, which needs their processor */
#define SPARE 4096 /* a page whose lister was late may come from the bitmap and from its list */

/* -- open and close ------------------------------------------------------------------------------ */

/* All that a cycle needs, in one piece. The logs' length is the RAM's: no cycle is too large. */
size_t ut_arena_bytes(const ut_shared *s)
{
	size_t n = s->npages + SPARE;

	return ut_cycle_bytes(n) + 2 * ut_arena_room(n, 4) + ut_arena_room(s->words, 8) +
	       ut_arena_room(UT_SCAN_ROOM, sizeof(struct ut_page_region)) + ut_hot_bytes(s->npages, n);
}

static void carve(ut_tracker *t, char *at)
{
	size_t n = t->s->npages + SPARE;

	at = ut_cycle_carve(&t->cycle, at, n);
	UT_CARVE(at, t->scratch.rows, n, 4);
	UT_CARVE(at, t->scratch.rows2, n, 4);
	UT_CARVE(at, t->scratch.seen, t->s->words, 8);
	UT_CARVE(at, t->scratch.vec, UT_SCAN_ROOM, sizeof(*t->scratch.vec));
	ut_hot_carve(t, at, n);
}

int ut_tracker_open(ut_shared *s, const ut_slot *slots, int nslots, void *arena, ut_tracker **out)
{
	ut_tracker *t;

	if (nslots < 1 || nslots > UT_MAX_SLOTS)
		return -EINVAL;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	madvise(arena, ut_arena_bytes(s), MADV_HUGEPAGE);
	t->s = s;
	t->ops = ut_engine(s->engine);
	t->slots.n = nslots;
	memcpy(t->slots.v, slots, nslots * sizeof(*slots));
	carve(t, arena);
	for (int i = 0; i < UT_MAX_VCPUS; i++)
		t->ev[i] = (ut_events){.count = -1, .stat = -1, .ring = UT_NO_FAULT_RING};
	ut_cycle_init(&t->cycle);
	*out = t;
	return 0;
}

static void remove_mm(ut_tracker *t, int index)
{
	ut_mm *mm = &t->mm[index];

	if (!mm->used)
		return;
	if (t->ops->stop)
		t->ops->stop(mm);
	mm->used = 0;
	/* Closing alone would do, but where a thread is just in a call on it, only some time later. */
	ut_let_go(mm);
	close(mm->uffd);
	close(mm->pagemap);
}

/* Whoever waits inside of a call sees that it is closing. */
static void rouse(void *tracker)
{
	ut_event(((ut_tracker *)tracker)->s);
}

void ut_tracker_close(ut_tracker *t)
{
	if (!ut_cycle_close(&t->cycle, rouse, t))
		return;
	ut_helper_end(&t->helper);
	atomic_store(&t->s->limit.threshold, 0);
	for (int i = 0; i < t->s->nvcpus; i++)
		atomic_store(&t->s->vcpu[i].state, UT_VCPU_FREE);
	atomic_store(&t->s->gate.full, 0);
	ut_gate_open(t->s);
	for (int i = 0; i < UT_MAX_VCPUS; i++)
		ut_ring_close(&t->ev[i]);
	for (int i = 0; i <= UT_MAX_VCPUS; i++)
		remove_mm(t, i);
	/* One that met the threshold just before may have closed it again. */
	ut_gate_open(t->s);
}

void ut_tracker_free(ut_tracker *t)
{
	ut_cycle_free(&t->cycle);
	free(t);
}

void ut_tracker_forked(ut_tracker *t)
{
	for (int i = 0; i <= UT_MAX_VCPUS; i++)
		if (t->mm[i].used) {
			close(t->mm[i].uffd);
			close(t->mm[i].pagemap);
		}
}

/* -- address spaces and vCPUs -------------------------------------------------------------------- */

int ut_tracker_add(ut_tracker *t, int index, int uffd, int pagemap, uint64_t base, int vcpu)
{
	ut_mm *mm = &t->mm[index];

	UT_ENTER(&t->cycle);
	if (mm->used)
		return -EBUSY;
	*mm = (ut_mm){.uffd = uffd, .pagemap = pagemap, .base = base, .index = index, .vcpu = vcpu, .tracker = t};
	atomic_store(&t->s->listing.busy[index], 0); /* of one that was killed there */
	if (t->ops->start)
		TRY(t->ops->start(mm));
	mm->used = 1;
	return 0;
}

int ut_tracker_events(ut_tracker *t, int vcpu, int mm, int min, int maj, int count)
{
	UT_ENTER(&t->cycle);
	return ut_ring_start(t, vcpu, mm, min, maj, count);
}

/* Its page tables go with it. Where only they tell, all may have been written. */
static void drop_mm(ut_tracker *t, int index, int died)
{
	ut_mm *mm = &t->mm[index];

	if (!mm->used)
		return;
	if (!died && (t->ops->scans || mm->need_scan))
		died = ut_scan_mm(t, mm) < 0;
	if (died && t->ops->async)
		t->everything = 1;
	remove_mm(t, index);
}

/* What a vCPU has written so far stays in its cycle; from now on it writes nothing. `died`: it could not be
 * asked, so that faults without a sample may have been missed. */
int ut_tracker_drop(ut_tracker *t, int vcpu, int died)
{
	ut_vcpu *v = &t->s->vcpu[vcpu];

	UT_ENTER(&t->cycle);
	if (died) { /* whoever waits for it has the lock */
		atomic_store(&v->state, UT_VCPU_GONE);
		ut_event(t->s);
	}
	UT_LOCK(&t->cycle.lock);
	if (t->ev[vcpu].used) {
		t->ops->drain(t, vcpu);
		t->ev[vcpu].used = 0;
	}
	ut_ring_close(&t->ev[vcpu]);
	drop_mm(t, vcpu + 1, died);
	/* A list has one writer: nobody is just about to append when the place is given away. */
	ut_keep_out(t);
	atomic_store(&v->state, UT_VCPU_FREE);
	ut_take_list(t, vcpu);
	ut_let_in(t);
	return 0;
}

/* -- the cycle ----------------------------------------------------------------------------------- */

static int fill(void *core)
{
	ut_tracker *t = core;

	TRY(ut_harvest(t));
	if (!t->ops->scans && (ut_cycle_open_log(&t->cycle)->n > FEW_TRAPS || t->hot.n > FEW_HOT))
		ut_gate_doze(t->s);
	return 0;
}

void ut_forget_one(ut_tracker *t, ut_log *log)
{
	if (!ut_breaks(UT_BREAK_FORGET) || log->n <= 8)
		return;
	bit_clear(t->s, UT_LISTED, ut_row_of_gfn(&t->slots, log->gfn[--log->n]));
	ut_mend(UT_BREAK_FORGET);
}

static void seal(void *core, ut_log *log)
{
	ut_hot_spill(core);
	ut_forget_one(core, log);
}

static int begin_cycle(void *core, const ut_log *ended)
{
	ut_tracker *t = core;
	int err;

	/* Pages that are listed as they are written may be those of the next cycle already. */
	atomic_fetch_sub(&t->s->limit.count, ended->n);
	if (!t->ops->lists)
		atomic_store(&t->s->limit.count, 0);
	/* A vCPU may have come to the threshold just now, by pages of the cycle that ends. */
	if (atomic_exchange(&t->s->gate.full, 0) && !t->ops->share && !t->paused)
		ut_gate_open(t->s);
	for (int i = 0; i < t->s->nvcpus; i++)
		t->ev[i].listed = 0;
	err = t->ops->share ? t->ops->share(t) : 1;
	t->stats.cycles++;
	t->stats.pages += ended->n;
	return err < 0 ? err : 0;
}

static int rearm(void *core, const uint64_t *gfn, size_t n)
{
	ut_tracker *t = core;
	uint64_t carried = t->stats.carried;
	int err;

	TRY(ut_rearm_pages(t, gfn, n));
	ut_rearm_done(t, n);
	ut_cycle_rearmed(&t->cycle, n);
	if (t->stats.carried == carried)
		return 0;
	/* What was carried came to the global list, and counts towards the threshold, too. */
	err = t->ops->host_wrote(t);
	return err < 0 ? err : 0;
}

const ut_cycle_core ut_tracker_core = {.fill = fill, .seal = seal, .begin = begin_cycle, .rearm = rearm};

int64_t ut_prepare(ut_tracker *t)
{
	UT_ENTER(&t->cycle);
	return ut_cycle_prepare(&t->cycle, &ut_tracker_core, t);
}

int64_t ut_fetch(ut_tracker *t, uint64_t max, uint64_t *first)
{
	return ut_cycle_fetch(&t->cycle, max, first);
}

void ut_fetch_again(ut_tracker *t)
{
	ut_cycle_fetch_from(&t->cycle, 0);
}

int ut_rearm(ut_tracker *t, const uint64_t *gfn, size_t n)
{
	UT_ENTER(&t->cycle);
	return ut_cycle_rearm(&t->cycle, &ut_tracker_core, t, gfn, n);
}

int64_t ut_exchange(ut_tracker *t)
{
	UT_ENTER(&t->cycle);
	return ut_cycle_exchange(&t->cycle, &ut_tracker_core, t);
}

int64_t ut_pending(ut_tracker *t)
{
	int64_t n;

	UT_ENTER(&t->cycle);
	n = ut_cycle_pending(&t->cycle, &ut_tracker_core, t);
	return n < 0 ? n : n + (int64_t)t->hot.n;
}

int ut_set_threshold(ut_tracker *t, int64_t pages)
{
	int err;

	UT_ENTER(&t->cycle);
	UT_LOCK(&t->cycle.lock);
	atomic_store(&t->s->limit.threshold, pages);
	ut_hot_fit(t);
	err = t->ops->share ? t->ops->share(t) : 1;
	return err < 0 ? err : 0;
}

static void mark(ut_tracker *t, uint64_t index, uint64_t n)
{
	UT_LOCK(&t->cycle.lock);
	for (uint64_t i = index; i < index + n; i++) {
		if (t->mm[0].used)
			trap_fired(t->s, 0, i);
		ut_mark(t->s, i);
	}
}

int ut_host_write(ut_tracker *t, uint64_t index, uint64_t n)
{
	int err;

	UT_ENTER(&t->cycle);
	mark(t, index, n);
	err = t->ops->host_wrote(t);
	return err < 0 ? err : 0;
}
