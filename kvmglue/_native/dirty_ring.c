/* KVM's dirty rings: a ring of entries for each vCPU, which exits when its own is full. */
#include "mode.h"
#include "sabotage.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

static void unmap_rings(kg_tracker *t)
{
	free(t->rings.batch);
	for (int i = 0; i < t->vm->nvcpus; i++)
		if (t->rings.of[i])
			munmap(t->rings.of[i], t->rings.entries * sizeof(struct kvm_dirty_gfn));
}

static int map_rings(kg_tracker *t)
{
	size_t bytes = t->rings.entries * sizeof(struct kvm_dirty_gfn);

	t->rings.batch = calloc((size_t)t->rings.entries * t->vm->nvcpus, sizeof(*t->rings.batch));
	if (!t->rings.batch)
		return -ENOMEM;
	for (int i = 0; i < t->vm->nvcpus; i++) {
		void *v = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, t->vm->vcpu[i].fd,
			       KVM_DIRTY_LOG_PAGE_OFFSET * KG_PAGE);

		if (v == MAP_FAILED)
			return -errno;
		t->rings.of[i] = v;
	}
	return 0;
}

/* How often this thread has gone to sleep. */
static long sleeps(void)
{
	struct rusage used;

	return getrusage(RUSAGE_THREAD, &used) ? 0 : used.ru_nvcsw;
}

/* A signal that is pending ends KVM_RESET_DIRTY_RINGS, which then has set no trap for the last entries, 64 at most, that
 * it has reset, and does not say so (kvm_dirty_ring_reset, seen in Linux 6.18): so signals wait. SIGSTOP and a freezer
 * do not: they make the thread sleep before it is back here, so `*slept` says whether there may have been one. */
static int reset_kernels(kg_tracker *t, int64_t left, int *slept)
{
	long before_it = sleeps();
	sigset_t all, before;
	int64_t n;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	do {
		n = ioctl(t->vm->fd, KVM_RESET_DIRTY_RINGS, 0);
		err = n < 0 && errno != EINTR ? -errno : 0;
		t->stats.rearm_calls++;
		left -= n > 0 ? n : 0;
	} while (!err && left > 0 && n != 0); /* a call with nothing to do returns 0 */
	*slept = sleeps() != before_it;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return err;
}

/* These rows are listed at each harvest, until their traps are set anew. */
static void note_loose(kg_tracker *t, size_t n)
{
	for (size_t i = 0; i < n; i++)
		t->bits.loose[t->rings.batch[i] / 64] |= 1ull << (t->rings.batch[i] % 64);
	t->rings.loose = 1;
}

static void list_loose(kg_tracker *t)
{
	for (uint64_t w = 0; w < kg_words_of(t->vm->rows); w++) {
		for (uint64_t left = t->bits.loose[w]; left; left &= left - 1) {
			uint64_t row = w * 64 + __builtin_ctzll(left);

			kg_emit(t, ut_slot_of_row(&t->vm->slots, row), row, -1);
		}
	}
}

/* All of them were listed, and nobody writes: KVM sets the traps of all pages when it begins to log. */
static int set_all_traps(kg_tracker *t)
{
	if (!t->rings.loose)
		return 0;
	TRY(kg_set_slots(t->vm, 0));
	TRY(kg_set_slots(t->vm, KVM_MEM_LOG_DIRTY_PAGES));
	memset(t->bits.loose, 0, kg_words_of(t->vm->rows) * sizeof(uint64_t));
	t->rings.loose = 0;
	return 0;
}

static int reset_rings(kg_tracker *t)
{
	int64_t left = 0;
	size_t n = 0;
	int slept;

	if (!t->rings.reset_due)
		return 0;
	for (int i = 0; i < t->vm->nvcpus; i++) {
		uint32_t until = t->rings.taken[i];

		if (ut_breaks(UT_BREAK_REARM) && until - t->rings.reset[i] > 8)
			until--; /* its trap stays open until the next reset */
		left += until - t->rings.reset[i];
		for (; t->rings.reset[i] != until; t->rings.reset[i]++) {
			struct kvm_dirty_gfn *e = &t->rings.of[i][t->rings.reset[i] % t->rings.entries];

			if (e->slot < (uint32_t)t->vm->slots.n && e->offset < t->vm->slots.v[e->slot].npages)
				t->rings.batch[n++] = t->vm->slots.v[e->slot].row + e->offset;
			__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		}
	}
	TRY(reset_kernels(t, left, &slept));
	if (slept)
		note_loose(t, n);
	t->rings.reset_due = 0;
	ut_mend(UT_BREAK_REARM);
	return 0;
}

static int is_dirty(const struct kvm_dirty_gfn *e)
{
	return __atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY;
}

/* What an earlier tracker has left there goes. Where the kernel will write next it does not say; it has begun at
 * entry 0, and the VM keeps the count. */
static int empty_rings(kg_tracker *t)
{
	for (int i = 0; i < t->vm->nvcpus; i++) {
		uint32_t at = t->rings.taken[i];

		while (is_dirty(&t->rings.of[i][at % t->rings.entries]))
			__atomic_store_n(&t->rings.of[i][at++ % t->rings.entries].flags, KVM_DIRTY_GFN_F_RESET,
					 __ATOMIC_RELEASE);
		t->rings.taken[i] = t->rings.reset[i] = at;
	}
	t->rings.reset_due = 1;
	return reset_rings(t);
}

/* Entries are taken, and stay as they are until the reset: Documentation/virt/kvm/api.rst, 8.29. */
static int take_ring(kg_tracker *t, int vcpu)
{
	struct kvm_dirty_gfn *ring = t->rings.of[vcpu];

	for (;; t->rings.taken[vcpu]++) {
		struct kvm_dirty_gfn *e = &ring[t->rings.taken[vcpu] % t->rings.entries];
		const ut_slot *s;

		/* An entry of this round that is taken already is still dirty until it is reset. */
		if (t->rings.taken[vcpu] - t->rings.reset[vcpu] == t->rings.entries ||
		    !is_dirty(e))
			return 0;
		if (e->slot >= (uint32_t)t->vm->slots.n)
			return -EIO;
		s = &t->vm->slots.v[e->slot];
		if (e->offset >= s->npages)
			return -EIO;
		kg_emit(t, s, s->row + e->offset, vcpu);
		t->rings.reset_due = 1;
	}
}

static int harvest_vcpus(kg_tracker *t)
{
	for (int i = 0; i < t->vm->nvcpus; i++)
		TRY(take_ring(t, i));
	if (t->rings.loose)
		list_loose(t);
	return 0;
}

static int start(kg_tracker *t)
{
	memcpy(t->rings.taken, t->vm->ring_at, sizeof(t->rings.taken));
	return empty_rings(t);
}

static void stop(kg_tracker *t)
{
	empty_rings(t);
	memcpy(t->vm->ring_at, t->rings.taken, sizeof(t->rings.taken));
}

static int rearm(kg_tracker *t, const uint64_t *gfn, size_t n)
{
	return reset_rings(t);
}

const kg_mode_ops kg_mode_ring = {
	.needs_stop = 1,
	.prepare = map_rings,
	.start = start,
	.stop = stop,
	.release = unmap_rings,
	.harvest = harvest_vcpus,
	.ended = set_all_traps,
	.rearm = rearm,
};
