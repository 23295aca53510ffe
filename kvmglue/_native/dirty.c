#include "clock.h"
#include "gate.h"
#include "mode.h"
#include "sabotage.h"

#include <string.h>
#include <sys/mman.h>

#define CLOSE_NS 5000000000ll

_Atomic uint32_t ut_broken;

static const kg_mode_ops *mode_ops(int mode)
{
	static const kg_mode_ops *const table[KG_MODES] = {
		[KG_BITMAP] = &kg_mode_bitmap, [KG_CLEAR] = &kg_mode_clear, [KG_RING] = &kg_mode_ring,
	};

	return table[mode];
}

/* -- the cycle ----------------------------------------------------------------------------------- */

static void take_host(kg_tracker *t)
{
	if (!t->bits.hosted)
		return;
	for (uint64_t w = 0; w < kg_words_of(t->vm->rows); w++) {
		for (uint64_t left = t->bits.host[w]; left; left &= left - 1) {
			uint64_t row = w * 64 + __builtin_ctzll(left);

			kg_emit(t, ut_slot_of_row(&t->vm->slots, row), row, -1);
		}
		t->bits.host[w] = 0;
	}
	t->bits.hosted = 0;
}

/* Where the processor logs by itself (PML), it keeps what it has logged while a vCPU is in KVM_RUN. KVM_GET_DIRTY_LOG
 * sees to that in the kernel. */
static int halt(void *core)
{
	kg_tracker *t = core;
	int64_t started = ut_now_ns();
	int halted = t->ops->needs_stop && !ut_breaks(UT_BREAK_ORDER), err = 0;

	t->stats.stop_ns = 0;
	if (halted) {
		kg_gate_halt(t->vm);
		err = kg_wait_parked(t->vm, t->stop_ns);
		if (err)
			kg_gate_go_on(t->vm);
		t->stats.stop_ns = ut_now_ns() - started;
	}
	t->halted_at = ut_now_ns();
	return err ? err : halted;
}

static void release(void *core)
{
	kg_gate_go_on(((kg_tracker *)core)->vm);
}

/* The bitmap's traps are set as it is read, which a look must not do: what is read is kept. */
static int fill(void *core)
{
	kg_tracker *t = core;

	if (t->ops->harvest_waits && !ut_cycle_is_rearmed(&t->cycle))
		return 0;
	TRY(t->ops->harvest(t));
	take_host(t);
	return 0;
}

static void seal(void *core, ut_log *log)
{
	kg_tracker *t = core;

	for (size_t i = 0; i < log->n; i++) {
		uint64_t row = ut_row_of_gfn(&t->vm->slots, log->gfn[i]);

		t->bits.listed[row / 64] &= ~(1ull << (row % 64));
	}
	if (ut_breaks(UT_BREAK_FORGET) && log->n > 8) {
		log->n--;
		ut_mend(UT_BREAK_FORGET);
	}
}

static int begin_cycle(void *core, const ut_log *ended)
{
	kg_tracker *t = core;

	atomic_store(&t->vm->gate.full, 0);
	t->stats.cycles++;
	t->stats.pages += ended->n;
	t->stats.harvest_ns = ut_now_ns() - t->halted_at;
	t->stats.rearm_ns = 0;
	return t->ops->ended ? t->ops->ended(t) : 0;
}

static int rearm(void *core, const uint64_t *gfn, size_t n)
{
	kg_tracker *t = core;
	int64_t started = ut_now_ns();
	int err;

	for (size_t i = 0; i < n; i++)
		if (!ut_slot_of_gfn(&t->vm->slots, gfn[i]))
			return -EINVAL;
	{
		UT_LOCK(&t->cycle.lock);
		t->stats.rearm_pages += n;
		err = t->ops->rearm ? t->ops->rearm(t, gfn, n) : 0;
		t->stats.rearm_ns += ut_now_ns() - started;
	}
	if (!err)
		ut_cycle_rearmed(&t->cycle, n);
	return err;
}

static const ut_cycle_core core = {
	.halt = halt, .release = release, .fill = fill, .seal = seal, .begin = begin_cycle, .rearm = rearm,
};

int64_t kg_prepare(kg_tracker *t)
{
	UT_ENTER(&t->cycle);
	return ut_cycle_prepare(&t->cycle, &core, t);
}

void kg_fetch_again(kg_tracker *t)
{
	ut_cycle_fetch_from(&t->cycle, 0);
}

int64_t kg_fetch(kg_tracker *t, uint64_t max, uint64_t *first)
{
	return ut_cycle_fetch(&t->cycle, max, first);
}

int kg_rearm(kg_tracker *t, const uint64_t *gfn, size_t n)
{
	UT_ENTER(&t->cycle);
	return ut_cycle_rearm(&t->cycle, &core, t, gfn, n);
}

int kg_leave_hot(kg_tracker *t)
{
	UT_ENTER(&t->cycle);
	if (!t->ops->keeps)
		return -EOPNOTSUPP;
	UT_LOCK(&t->cycle.lock);
	t->hot.on = 1;
	return 0;
}

int64_t kg_exchange(kg_tracker *t)
{
	UT_ENTER(&t->cycle);
	return ut_cycle_exchange(&t->cycle, &core, t);
}

int64_t kg_pending(kg_tracker *t)
{
	UT_ENTER(&t->cycle);
	return ut_cycle_pending(&t->cycle, &core, t);
}

static int mark(kg_tracker *t, uint64_t row, uint64_t n)
{
	UT_ENTER(&t->cycle);
	/* The mark comes after the write: a cycle that ends in between leaves the page to the next one. */
	UT_LOCK(&t->cycle.lock);
	for (uint64_t i = row; i < row + n && i < t->vm->rows; i++)
		t->bits.hosted += !kg_test_and_set(t->bits.host, i);
	return 0;
}

void kg_mark(kg_tracker *t, uint64_t row, uint64_t n)
{
	mark(t, row, n); /* what is closed has no use for it */
}

int kg_wait_full(kg_tracker *t, int64_t timeout_ns, int64_t stop_ns)
{
	UT_ENTER(&t->cycle);
	return kg_gate_wait_full(t->vm, &t->cycle.closing, timeout_ns, stop_ns);
}

/* -- what vCPUs' threads tell -------------------------------------------------------------------- */

static void device_wrote(kg_listener *l, uint64_t row, uint64_t n)
{
	if (!ut_breaks(UT_BREAK_DEVICE))
		kg_mark((kg_tracker *)l, row, n);
}

/* No threshold: make room. The pages stay in the open cycle, and are in the ring again if they are written again, so
 * that the reset of the cycle's end comes after the last write to each. */
static int make_log_room(kg_tracker *t)
{
	TRY(fill(t));
	return t->ops->rearm(t, NULL, 0);
}

static int ring_full(kg_listener *l)
{
	kg_tracker *t = (kg_tracker *)l;

	{
		UT_LOCK(&t->cycle.lock);
		t->stats.fulls++;
		if (!t->threshold)
			return make_log_room(t);
		atomic_store(&t->vm->gate.full, 1);
	}
	kg_gate_full(t->vm);
	return 0;
}

/* -- open and close ------------------------------------------------------------------------------ */

/* A slot's bitmap begins at a word of its own, hence the slots. */
static size_t words_of(const kg_vm *vm)
{
	return kg_words_of(vm->rows) + UT_MAX_SLOTS;
}

/* All that a cycle needs, in one piece. */
size_t kg_arena_bytes(const kg_vm *vm)
{
	return ut_cycle_bytes(vm->rows) + 5 * ut_arena_room(words_of(vm), 8) + ut_arena_room(vm->rows, 2);
}

static void carve(kg_tracker *t, char *at)
{
	size_t words = words_of(t->vm);

	at = ut_cycle_carve(&t->cycle, at, t->vm->rows);
	UT_CARVE(at, t->bits.read, words, 8);
	UT_CARVE(at, t->bits.listed, words, 8);
	UT_CARVE(at, t->bits.host, words, 8);
	UT_CARVE(at, t->bits.scratch, words, 8);
	UT_CARVE(at, t->bits.loose, words, 8);
	UT_CARVE(at, t->hot.seen, t->vm->rows, 2);
	memset(t->bits.read, 0, 4 * ut_arena_room(words, 8)); /* each cycle goes over all of them: real from the first on */
}

/* Have KVM log. The vCPUs stand: a ring that fills before the tracker is known would end its vCPU. */
static int start_logging(kg_tracker *t)
{
	if (t->ops->prepare)
		TRY(t->ops->prepare(t));
	TRY(kg_set_slots(t->vm, KVM_MEM_LOG_DIRTY_PAGES));
	if (t->ops->start)
		TRY(t->ops->start(t));
	t->stats.rearm_calls = 0;
	atomic_store(&t->vm->gate.full, 0);
	atomic_store(&t->vm->listener, &t->listener);
	return 0;
}

int kg_tracker_open(kg_vm *vm, int mode, uint32_t ring_entries, int64_t threshold, int64_t stop_ns, void *arena,
		    kg_tracker **out)
{
	kg_tracker *t = calloc(1, sizeof(*t));
	int err;

	if (!t)
		return -ENOMEM;
	t->listener = (kg_listener){ring_full, device_wrote};
	t->vm = vm;
	t->ops = mode_ops(mode);
	t->rings.entries = ring_entries;
	t->threshold = threshold;
	t->stop_ns = stop_ns;
	madvise(arena, kg_arena_bytes(vm), MADV_HUGEPAGE);
	carve(t, arena);
	ut_cycle_init(&t->cycle);
	kg_gate_halt(vm);
	err = kg_wait_parked(vm, CLOSE_NS);
	if (!err)
		err = start_logging(t);
	kg_gate_go_on(vm);
	if (err) {
		kg_tracker_close(t);
		kg_tracker_free(t);
		return err;
	}
	*out = t;
	return 0;
}

static void stop_logging(kg_tracker *t)
{
	kg_gate_halt(t->vm);
	/* A vCPU's thread may be at work for it: none is, once all have stood. */
	t->stuck = kg_wait_parked(t->vm, CLOSE_NS) < 0;
	atomic_store(&t->vm->listener, NULL);
	atomic_store(&t->vm->gate.full, 0);
	kg_set_slots(t->vm, 0);
	if (t->ops->stop && !t->stuck)
		t->ops->stop(t);
	kg_gate_go_on(t->vm);
}

/* Whoever waits inside of a call sees that it is closing. */
static void rouse(void *tracker)
{
	kg_tell(&((kg_tracker *)tracker)->vm->gate.event);
}

void kg_tracker_close(kg_tracker *t)
{
	if (!ut_cycle_close(&t->cycle, rouse, t))
		return;
	if (atomic_load(&t->vm->listener) == &t->listener)
		stop_logging(t);
	if (t->ops->release && !t->stuck)
		t->ops->release(t);
}

void kg_tracker_free(kg_tracker *t)
{
	if (t->stuck)
		return;
	ut_cycle_free(&t->cycle);
	free(t);
}
