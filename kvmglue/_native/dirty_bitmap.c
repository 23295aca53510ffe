/* KVM's dirty bitmap: KVM_GET_DIRTY_LOG, and KVM_CLEAR_DIRTY_LOG apart from it. */
#include "mode.h"

#include <string.h>

enum {
	TURNS = 16, /* of so many cycles in which a page is hot, one sets its trap */
	FAR = 32768, /* rows between two, from which on KVM_CLEAR_DIRTY_LOG is called again: it copies the bitmap */
};

static int enable_manual(const kg_vm *vm, int on)
{
	struct kvm_enable_cap c = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2};
	int offered = kg_check(vm->fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);

	if (offered <= 0)
		return on ? -EOPNOTSUPP : 0;
	c.args[0] = on ? offered & (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET) : 0;
	return ioctl(vm->fd, KVM_ENABLE_CAP, &c) ? -errno : 0;
}

static int clear_range(kg_tracker *t, int slot, uint64_t first, uint64_t pages, uint64_t *bits)
{
	struct kvm_clear_dirty_log c = {
		.slot = slot, .num_pages = pages, .first_page = first, .dirty_bitmap = bits,
	};

	t->stats.rearm_calls++;
	return ioctl(t->vm->fd, KVM_CLEAR_DIRTY_LOG, &c) ? -errno : 0;
}

/* With INITIALLY_SET all pages count as dirty, and none has its trap. */
static int clear_all(kg_tracker *t)
{
	int err = 0;

	for (int i = 0; i < t->vm->slots.n && !err; i++) {
		uint64_t pages = t->vm->slots.v[i].npages;

		memset(t->bits.scratch, 0xff, pages / 64 * 8);
		t->bits.scratch[pages / 64] = (1ull << (pages % 64)) - 1;
		err = clear_range(t, i, 0, pages, t->bits.scratch);
		memset(t->bits.scratch, 0, (pages / 64 + 1) * 8);
	}
	return err;
}

static int take_bitmap(kg_tracker *t, int slot)
{
	const ut_slot *s = &t->vm->slots.v[slot];
	struct kvm_dirty_log d = {.slot = slot, .dirty_bitmap = t->bits.read};

	t->stats.calls++;
	if (ioctl(t->vm->fd, KVM_GET_DIRTY_LOG, &d))
		return -errno;
	for (uint64_t w = 0; w < kg_words_of(s->npages); w++)
		for (uint64_t left = t->bits.read[w]; left; left &= left - 1)
			kg_emit(t, s, s->row + w * 64 + __builtin_ctzll(left), -1);
	return 0;
}

static int harvest_bitmap(kg_tracker *t)
{
	for (int i = 0; i < t->vm->slots.n; i++)
		TRY(take_bitmap(t, i));
	return 0;
}

static int prepare_bitmap(kg_tracker *t)
{
	return enable_manual(t->vm, 0);
}

const kg_mode_ops kg_mode_bitmap = {
	.prepare = prepare_bitmap,
	.harvest = harvest_bitmap,
};

/* -- cleared page by page ------------------------------------------------------------------------ */

/* Set the traps of those pages whose bits are set in `scratch`, in the words from `first` to `last` of a slot. */
static int clear_words(kg_tracker *t, int slot, uint64_t first, uint64_t last)
{
	const ut_slot *s = &t->vm->slots.v[slot];
	uint64_t pages = (last - first + 1) * 64, left = s->npages - first * 64;
	int err = clear_range(t, slot, first * 64, pages < left ? pages : left, t->bits.scratch + first);

	memset(t->bits.scratch + first, 0, (last - first + 1) * 8);
	return err;
}

/* Whoever writes a page all the time has a fault for it in one of TURNS cycles. A page that is not written any more is listed
 * for as many. */
static int is_hot(kg_tracker *t, uint64_t row)
{
	uint16_t now = t->stats.cycles, before = t->hot.seen[row];

	t->hot.seen[row] = now;
	return before == (uint16_t)(now - 1) && (row + now) % TURNS;
}

/* Lists made from a bitmap are in order, but for what the host has written. */
static int clear_slot(kg_tracker *t, int slot, const uint64_t *gfn, size_t n)
{
	const ut_slot *s = &t->vm->slots.v[slot];
	uint64_t first = 0, last = 0;
	int open = 0;

	for (size_t k = 0; k < n; k++) {
		uint64_t at = gfn[k] - s->gfn;

		if (at >= s->npages || (t->hot.on && is_hot(t, s->row + at)))
			continue;
		if (open && (at / 64 < first || at > last * 64 + FAR)) {
			TRY(clear_words(t, slot, first, last));
			open = 0;
		}
		kg_test_and_set(t->bits.scratch, at);
		first = open ? first : at / 64;
		last = open && last > at / 64 ? last : at / 64;
		open = 1;
	}
	return open ? clear_words(t, slot, first, last) : 0;
}

static int clear_pages(kg_tracker *t, const uint64_t *gfn, size_t n)
{
	for (int i = 0; i < t->vm->slots.n; i++)
		TRY(clear_slot(t, i, gfn, n));
	return 0;
}

static int prepare_clear(kg_tracker *t)
{
	return enable_manual(t->vm, 1);
}

const kg_mode_ops kg_mode_clear = {
	.prepare = prepare_clear,
	.start = clear_all,
	.harvest = harvest_bitmap,
	.harvest_waits = 1,
	.keeps = 1,
	.rearm = clear_pages,
};
