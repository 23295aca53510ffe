/* KVM's dirty rings: a ring of entries for each vCPU, which exits when its own is full. */
#include "mode.h"
#include "sabotage.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>

static void unmap_rings(kg_tracker *t)
{
	for (int i = 0; i < t->vm->nvcpus; i++)
		if (t->rings.of[i])
			munmap(t->rings.of[i], t->rings.entries * sizeof(struct kvm_dirty_gfn));
}

static int map_rings(kg_tracker *t)
{
	size_t bytes = t->rings.entries * sizeof(struct kvm_dirty_gfn);

	for (int i = 0; i < t->vm->nvcpus; i++) {
		void *v = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, t->vm->vcpu[i].fd,
			       KVM_DIRTY_LOG_PAGE_OFFSET * KG_PAGE);

		if (v == MAP_FAILED)
			return -errno;
		t->rings.of[i] = v;
	}
	return 0;
}

/* A signal that is pending ends KVM_RESET_DIRTY_RINGS, which then has set no trap for the last entries, 64 at most, that
 * it has reset, and does not say so (kvm_dirty_ring_reset, seen in Linux 6.18): so signals wait. SIGSTOP does not. */
static int reset_kernels(kg_tracker *t, int64_t left)
{
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
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return err;
}

static int reset_rings(kg_tracker *t)
{
	int64_t left = 0;

	if (!t->rings.reset_due)
		return 0;
	for (int i = 0; i < t->vm->nvcpus; i++) {
		uint32_t until = t->rings.taken[i];

		if (ut_breaks(UT_BREAK_REARM) && until - t->rings.reset[i] > 8)
			until--; /* its trap stays open until the next reset */
		left += until - t->rings.reset[i];
		for (; t->rings.reset[i] != until; t->rings.reset[i]++)
			__atomic_store_n(&t->rings.of[i][t->rings.reset[i] % t->rings.entries].flags, KVM_DIRTY_GFN_F_RESET,
					 __ATOMIC_RELEASE);
	}
	TRY(reset_kernels(t, left));
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
	.rearm = rearm,
};
