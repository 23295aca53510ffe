#include "dirty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CLOSE_NS 5000000000ll

enum {
	FAR = 32768, /* rows between two, from which on KVM_CLEAR_DIRTY_LOG is called again: it copies the bitmap */
};

static int test_and_set(uint64_t *bits, uint64_t i)
{
	uint64_t bit = 1ull << (i % 64), old = bits[i / 64];

	bits[i / 64] = old | bit;
	return !!(old & bit);
}

static uint64_t words_of(uint64_t rows)
{
	return (rows + 63) / 64;
}

static size_t room(size_t n, size_t size)
{
	return (n * size + 4095) & ~4095ul;
}

/* -- open and close ------------------------------------------------------------------------------ */

/* All that a cycle needs, in one piece; pages of it become real when they are used. A slot's bitmap begins at a word
 * of its own, hence the slots. */
size_t kg_arena_bytes(const kg_vm *vm)
{
	return 2 * (room(vm->rows, 8) + room(vm->rows, 4)) + 4 * room(words_of(vm->rows) + KG_MAX_SLOTS, 8);
}

static void carve(kg_tracker *t, char *at)
{
	size_t rows = t->vm->rows, words = room(words_of(rows) + KG_MAX_SLOTS, 8);

	for (int i = 0; i < 2; i++) {
		t->log[i].gfn = (void *)at;
		at += room(rows, 8);
		t->log[i].vcpu = (void *)at;
		at += room(rows, 4);
	}
	for (int i = 0; i < 4; i++, at += words) {
		*(uint64_t **[]){&t->bits, &t->listed, &t->host, &t->scratch}[i] = (void *)at;
		memset(at, 0, words);
	}
	/* Made real here, not in one of the first cycles. */
	for (int i = 0; i < 2; i++) {
		*(volatile uint64_t *)t->log[i].gfn = 0;
		*(volatile int32_t *)t->log[i].vcpu = 0;
	}
}

static void unmap_rings(kg_tracker *t)
{
	for (int i = 0; i < t->vm->nvcpus; i++)
		if (t->ring[i])
			munmap(t->ring[i], t->entries * sizeof(struct kvm_dirty_gfn));
}

static int map_rings(kg_tracker *t)
{
	size_t bytes = t->entries * sizeof(struct kvm_dirty_gfn);

	for (int i = 0; i < t->vm->nvcpus; i++) {
		void *v = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, t->vm->vcpu[i].fd,
			       KVM_DIRTY_LOG_PAGE_OFFSET * KG_PAGE);

		if (v == MAP_FAILED)
			return -errno;
		t->ring[i] = v;
	}
	return 0;
}

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

	for (int i = 0; i < t->vm->nslots && !err; i++) {
		uint64_t pages = t->vm->slots[i].npages;

		memset(t->scratch, 0xff, pages / 64 * 8);
		t->scratch[pages / 64] = (1ull << (pages % 64)) - 1;
		err = clear_range(t, i, 0, pages, t->scratch);
		memset(t->scratch, 0, (pages / 64 + 1) * 8);
	}
	return err;
}

static int reset_rings(kg_tracker *t);

/* What an earlier tracker has left there goes. Where the kernel will write next it does not say; it has begun at
 * entry 0, and the VM keeps the count. */
static int empty_rings(kg_tracker *t)
{
	for (int i = 0; i < t->vm->nvcpus; i++) {
		uint32_t at = t->taken[i];

		while (__atomic_load_n(&t->ring[i][at % t->entries].flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY)
			__atomic_store_n(&t->ring[i][at++ % t->entries].flags, KVM_DIRTY_GFN_F_RESET,
					 __ATOMIC_RELEASE);
		t->taken[i] = t->reset[i] = at;
	}
	t->reset_due = 1;
	return reset_rings(t);
}

int kg_tracker_open(kg_vm *vm, int mode, uint32_t ring_entries, int64_t threshold, int64_t stop_ns, void *arena,
		    kg_tracker **out)
{
	kg_tracker *t = calloc(1, sizeof(*t));
	int err = 0;

	if (!t)
		return -ENOMEM;
	t->vm = vm;
	t->mode = mode;
	t->entries = ring_entries;
	t->threshold = threshold;
	t->stop_ns = stop_ns;
	madvise(arena, kg_arena_bytes(vm), MADV_HUGEPAGE);
	carve(t, arena);
	pthread_mutex_init(&t->lock, NULL);
	/* A ring that fills before the tracker is known would end its vCPU. */
	kg_gate_hold(vm);
	err = kg_wait_parked(vm, CLOSE_NS);
	if (!err)
		err = mode == KG_RING ? map_rings(t) : enable_manual(vm, mode == KG_CLEAR);
	if (!err)
		err = kg_set_slots(vm, KVM_MEM_LOG_DIRTY_PAGES);
	if (!err && mode == KG_CLEAR)
		err = clear_all(t);
	if (!err && mode == KG_RING) {
		memcpy(t->taken, vm->ring_at, sizeof(t->taken));
		err = empty_rings(t);
	}
	if (!err) {
		t->stats.rearm_calls = 0;
		atomic_store(&vm->full, 0);
		atomic_store(&vm->tracker, t);
	}
	kg_gate_release(vm);
	if (err) {
		kg_tracker_close(t);
		kg_tracker_free(t);
		return err;
	}
	*out = t;
	return 0;
}

static int enter(kg_tracker *t)
{
	atomic_fetch_add(&t->inside, 1);
	if (!atomic_load(&t->closing))
		return 1;
	atomic_fetch_sub(&t->inside, 1);
	return 0;
}

static void leave(kg_tracker *t)
{
	atomic_fetch_sub(&t->inside, 1);
}

static void stop_logging(kg_tracker *t)
{
	kg_gate_hold(t->vm);
	/* A vCPU's thread may be at work for it: none is, once all have stood. */
	t->stuck = kg_wait_parked(t->vm, CLOSE_NS) < 0;
	atomic_store(&t->vm->tracker, NULL);
	atomic_store(&t->vm->full, 0);
	kg_set_slots(t->vm, 0);
	if (t->mode == KG_RING && !t->stuck) {
		empty_rings(t);
		memcpy(t->vm->ring_at, t->taken, sizeof(t->taken));
	}
	kg_gate_release(t->vm);
}

void kg_tracker_close(kg_tracker *t)
{
	if (atomic_exchange(&t->closing, 1))
		return;
	while (atomic_load(&t->inside)) {
		atomic_fetch_add(&t->vm->event, 1); /* whoever waits sees that it is closing */
		kg_wake(&t->vm->event);
		usleep(100);
	}
	if (atomic_load(&t->vm->tracker) == t)
		stop_logging(t);
	if (t->mode == KG_RING && !t->stuck)
		unmap_rings(t);
}

void kg_tracker_free(kg_tracker *t)
{
	if (t->stuck)
		return;
	pthread_mutex_destroy(&t->lock);
	free(t);
}

/* -- harvest ------------------------------------------------------------------------------------- */

static const kg_slot *slot_of_gfn(const kg_vm *vm, uint64_t gfn)
{
	for (int i = 0; i < vm->nslots; i++)
		if (gfn - vm->slots[i].gfn < vm->slots[i].npages)
			return &vm->slots[i];
	return NULL;
}

static const kg_slot *slot_of_row(const kg_vm *vm, uint64_t row)
{
	int i = 0;

	while (i + 1 < vm->nslots && row >= vm->slots[i + 1].row)
		i++;
	return &vm->slots[i];
}

static void emit(kg_tracker *t, const kg_slot *slot, uint64_t row, int vcpu)
{
	kg_log *log = &t->log[t->open];

	if (test_and_set(t->listed, row)) {
		t->stats.duplicates++;
		return;
	}
	log->gfn[log->n] = row - slot->row + slot->gfn;
	log->vcpu[log->n++] = vcpu;
}

static int take_bitmap(kg_tracker *t, int slot)
{
	const kg_slot *s = &t->vm->slots[slot];
	struct kvm_dirty_log d = {.slot = slot, .dirty_bitmap = t->bits};

	t->stats.calls++;
	if (ioctl(t->vm->fd, KVM_GET_DIRTY_LOG, &d))
		return -errno;
	for (uint64_t w = 0; w < words_of(s->npages); w++)
		for (uint64_t left = t->bits[w]; left; left &= left - 1)
			emit(t, s, s->row + w * 64 + __builtin_ctzll(left), -1);
	return 0;
}

/* Entries are taken, and stay as they are until the reset: Documentation/virt/kvm/api.rst, 8.29. */
static int take_ring(kg_tracker *t, int vcpu)
{
	struct kvm_dirty_gfn *ring = t->ring[vcpu];

	for (;; t->taken[vcpu]++) {
		struct kvm_dirty_gfn *e = &ring[t->taken[vcpu] % t->entries];
		const kg_slot *s;

		/* An entry of this round that is taken already is still dirty until it is reset. */
		if (t->taken[vcpu] - t->reset[vcpu] == t->entries ||
		    !(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
			return 0;
		if (e->slot >= (uint32_t)t->vm->nslots)
			return -EIO;
		s = &t->vm->slots[e->slot];
		if (e->offset >= s->npages)
			return -EIO;
		emit(t, s, s->row + e->offset, vcpu);
		t->reset_due = 1;
	}
}

static void take_host(kg_tracker *t)
{
	if (!t->hosted)
		return;
	for (uint64_t w = 0; w < words_of(t->vm->rows); w++) {
		for (uint64_t left = t->host[w]; left; left &= left - 1) {
			uint64_t row = w * 64 + __builtin_ctzll(left);

			emit(t, slot_of_row(t->vm, row), row, -1);
		}
		t->host[w] = 0;
	}
	t->hosted = 0;
}

/* What was written up to now goes to the open cycle. */
static int collect(kg_tracker *t)
{
	int err = 0;

	if (t->mode == KG_RING)
		for (int i = 0; i < t->vm->nvcpus && !err; i++)
			err = take_ring(t, i);
	else
		for (int i = 0; i < t->vm->nslots && !err; i++)
			err = take_bitmap(t, i);
	if (!err)
		take_host(t);
	return err;
}

/* Have the vCPUs out of KVM_RUN: where the processor logs by itself (PML), it keeps what it has logged until then.
 * KVM_GET_DIRTY_LOG sees to that in the kernel. Returns 1 where the gate is held. */
static int hold(kg_tracker *t)
{
	int64_t started = kg_now();
	int err;

	t->stats.stop_ns = 0;
	if (t->mode != KG_RING || (t->sabotage & KG_BREAK_ORDER))
		return 0;
	kg_gate_hold(t->vm);
	err = kg_wait_parked(t->vm, t->stop_ns);
	t->stats.stop_ns = kg_now() - started;
	if (err)
		kg_gate_release(t->vm);
	return err ? err : 1;
}

static int64_t cut(kg_tracker *t)
{
	kg_log *log;
	int err;

	if (atomic_load(&t->rearmed) < t->log[!t->open].n)
		return -EBUSY;
	err = collect(t);
	if (err)
		return err;
	log = &t->log[t->open];
	for (size_t i = 0; i < log->n; i++) {
		const kg_slot *s = slot_of_gfn(t->vm, log->gfn[i]);
		uint64_t row = log->gfn[i] - s->gfn + s->row;

		t->listed[row / 64] &= ~(1ull << (row % 64));
	}
	if ((t->sabotage & KG_BREAK_FORGET) && log->n > 8) {
		log->n--;
		t->sabotage &= ~KG_BREAK_FORGET;
	}
	t->open = !t->open;
	t->log[t->open].n = 0;
	atomic_store(&t->next, 0);
	atomic_store(&t->rearmed, 0);
	atomic_store(&t->vm->full, 0);
	t->stats.cycles++;
	t->stats.pages += log->n;
	return log->n;
}

static int64_t prepare(kg_tracker *t)
{
	int held = hold(t);
	int64_t started = kg_now(), n;

	if (held < 0)
		return held;
	pthread_mutex_lock(&t->lock);
	n = cut(t);
	pthread_mutex_unlock(&t->lock);
	t->stats.harvest_ns = kg_now() - started;
	t->stats.rearm_ns = 0;
	if (held)
		kg_gate_release(t->vm);
	return n;
}

int64_t kg_prepare(kg_tracker *t)
{
	int64_t n;

	if (!enter(t))
		return -ESHUTDOWN;
	n = prepare(t);
	leave(t);
	return n;
}

int64_t kg_fetch(kg_tracker *t, uint64_t max, uint64_t *first)
{
	uint64_t n = t->log[!t->open].n, at = atomic_load(&t->next), part;

	do {
		part = n - at < max ? n - at : max;
	} while (!atomic_compare_exchange_weak(&t->next, &at, at + part));
	*first = at;
	return part;
}

static int64_t pending(kg_tracker *t)
{
	int held = hold(t), err;
	int64_t n;

	if (held < 0)
		return held;
	pthread_mutex_lock(&t->lock);
	/* The bitmap's traps are set as it is read, which a look must not do: what is read is kept here. `clear`
	 * would read the pages of the last cycle again, until they are rearmed. */
	err = t->mode == KG_CLEAR && atomic_load(&t->rearmed) < t->log[!t->open].n ? 0 : collect(t);
	n = err ? err : (int64_t)t->log[t->open].n;
	pthread_mutex_unlock(&t->lock);
	if (held)
		kg_gate_release(t->vm);
	return n;
}

int64_t kg_pending(kg_tracker *t)
{
	int64_t n;

	if (!enter(t))
		return -ESHUTDOWN;
	n = pending(t);
	leave(t);
	return n;
}

/* -- rearm --------------------------------------------------------------------------------------- */

static int reset_rings(kg_tracker *t)
{
	int64_t left = 0, n;

	if (!t->reset_due)
		return 0;
	for (int i = 0; i < t->vm->nvcpus; i++) {
		uint32_t until = t->taken[i];

		if ((t->sabotage & KG_BREAK_REARM) && until - t->reset[i] > 8)
			until--; /* its trap stays open until the next reset */
		left += until - t->reset[i];
		for (; t->reset[i] != until; t->reset[i]++)
			__atomic_store_n(&t->ring[i][t->reset[i] % t->entries].flags, KVM_DIRTY_GFN_F_RESET,
					 __ATOMIC_RELEASE);
	}
	/* A signal may end it early; a call with nothing to do returns 0. */
	do {
		n = ioctl(t->vm->fd, KVM_RESET_DIRTY_RINGS, 0);
		t->stats.rearm_calls++;
		if (n < 0 && errno != EINTR)
			return -errno;
		left -= n > 0 ? n : 0;
	} while (left > 0 && n != 0);
	t->reset_due = 0;
	t->sabotage &= ~KG_BREAK_REARM;
	return 0;
}

/* Set the traps of those pages whose bits are set in `scratch`, in the words from `first` to `last` of a slot. */
static int clear_words(kg_tracker *t, int slot, uint64_t first, uint64_t last)
{
	const kg_slot *s = &t->vm->slots[slot];
	uint64_t pages = (last - first + 1) * 64, left = s->npages - first * 64;
	int err = clear_range(t, slot, first * 64, pages < left ? pages : left, t->scratch + first);

	memset(t->scratch + first, 0, (last - first + 1) * 8);
	return err;
}

static int clear_pages(kg_tracker *t, const uint64_t *gfn, size_t n)
{
	/* Lists made from a bitmap are in order, but for what the host has written. */
	for (int i = 0; i < t->vm->nslots; i++) {
		const kg_slot *s = &t->vm->slots[i];
		uint64_t first = 0, last = 0;
		int open = 0, err;

		for (size_t k = 0; k < n; k++) {
			uint64_t at = gfn[k] - s->gfn;

			if (at >= s->npages)
				continue;
			if (open && (at / 64 < first || at > last * 64 + FAR)) {
				err = clear_words(t, i, first, last);
				if (err)
					return err;
				open = 0;
			}
			test_and_set(t->scratch, at);
			first = open ? first : at / 64;
			last = open && last > at / 64 ? last : at / 64;
			open = 1;
		}
		err = open ? clear_words(t, i, first, last) : 0;
		if (err)
			return err;
	}
	return 0;
}

static int rearm(kg_tracker *t, const uint64_t *gfn, size_t n)
{
	int64_t started = kg_now();
	int err = 0;

	for (size_t i = 0; i < n; i++)
		if (!slot_of_gfn(t->vm, gfn[i]))
			return -EINVAL;
	pthread_mutex_lock(&t->lock);
	t->stats.rearm_pages += n;
	if (t->mode == KG_RING) {
		err = reset_rings(t);
	} else if (t->mode == KG_CLEAR) {
		err = clear_pages(t, gfn, n);
	}
	t->stats.rearm_ns += kg_now() - started;
	pthread_mutex_unlock(&t->lock);
	if (!err)
		atomic_fetch_add(&t->rearmed, n);
	return err;
}

int kg_rearm(kg_tracker *t, const uint64_t *gfn, size_t n)
{
	int err;

	if (!enter(t))
		return -ESHUTDOWN;
	err = rearm(t, gfn, n);
	leave(t);
	return err;
}

static int64_t exchange(kg_tracker *t)
{
	int64_t n = prepare(t);
	int err;

	if (n < 0)
		return n;
	atomic_store(&t->next, n);
	err = rearm(t, t->log[!t->open].gfn, n);
	if (!err)
		return n;
	atomic_store(&t->next, 0); /* they can be fetched, and rearmed again */
	return err;
}

int64_t kg_exchange(kg_tracker *t)
{
	int64_t n;

	if (!enter(t))
		return -ESHUTDOWN;
	n = exchange(t);
	leave(t);
	return n;
}

void kg_mark(kg_tracker *t, uint64_t row, uint64_t n)
{
	if (!enter(t))
		return;
	/* The mark comes after the write: a cycle that ends in between leaves the page to the next one. */
	pthread_mutex_lock(&t->lock);
	for (uint64_t i = row; i < row + n && i < t->vm->rows; i++)
		t->hosted += !test_and_set(t->host, i);
	pthread_mutex_unlock(&t->lock);
	leave(t);
}

/* -- the forced pause ---------------------------------------------------------------------------- */

int kg_ring_full(kg_vm *vm)
{
	kg_tracker *t = atomic_load(&vm->tracker);
	int err;

	if (!t)
		return -EIO;
	pthread_mutex_lock(&t->lock);
	t->stats.fulls++;
	if (t->threshold) {
		atomic_store(&vm->full, 1);
		pthread_mutex_unlock(&t->lock);
		kg_gate_close(vm);
		atomic_fetch_add(&vm->event, 1);
		kg_wake(&vm->event);
		return 0;
	}
	/* No threshold: make room. The pages stay in the open cycle, and are in the ring again if they are written
	 * again, so that the reset of the cycle's end comes after the last write to each. */
	err = collect(t);
	if (!err)
		err = reset_rings(t);
	pthread_mutex_unlock(&t->lock);
	return err;
}

static int wait_full(kg_tracker *t, int64_t timeout_ns, int64_t stop_ns)
{
	int64_t deadline = kg_now() + timeout_ns;

	for (;;) {
		uint32_t event = atomic_load(&t->vm->event);
		int64_t left;

		if (atomic_load(&t->closing))
			return -ESHUTDOWN;
		if (atomic_load(&t->vm->full)) {
			int err;

			kg_gate_close(t->vm);
			err = kg_wait_parked(t->vm, stop_ns);
			return err ? err : 1;
		}
		left = deadline - kg_now();
		if (left <= 0)
			return 0;
		kg_wait_event(t->vm, event, left);
	}
}

int kg_wait_full(kg_tracker *t, int64_t timeout_ns, int64_t stop_ns)
{
	int n;

	if (!enter(t))
		return -ESHUTDOWN;
	n = wait_full(t, timeout_ns, stop_ns);
	leave(t);
	return n;
}
