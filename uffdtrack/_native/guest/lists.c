#include "compat.h"
#include "lists.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TAKE_SPINS 1000

static uint64_t up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

int ut_shared_create(int engine, int nvcpus, int mms, uint64_t npages, uint64_t capacity, int *fd, ut_shared **out)
{
	ut_shared s = {.npages = npages, .engine = engine, .nvcpus = nvcpus, .capacity = 64};
	int err;

	while (s.capacity < capacity)
		s.capacity *= 2;
	s.words = up(npages, 64) / 64;
	s.stride = mms == 1 ? 1 : mms + 1;
	s.lists_at = up(sizeof(s), 4096);
	s.bits_at = up(s.lists_at + (nvcpus + 1) * s.capacity * 8, 4096);
	s.bytes = up(s.bits_at + s.words * s.stride * 8, UT_HUGE);
	*fd = -1;
	if (mms == 1) {
		void *v = mmap(NULL, s.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (v == MAP_FAILED)
			return -errno;
		/* The bits are looked up in no order: with small pages, each would miss the TLB. */
		madvise(v, s.bytes, MADV_HUGEPAGE);
		memcpy(v, &s, sizeof(s));
		for (uint64_t at = s.lists_at; at < s.bytes; at += UT_HUGE)
			*(volatile char *)((char *)v + at) = 0; /* not in the first cycles */
		*out = v;
		return 0;
	}
	*fd = memfd_create("uffdtrack", MFD_CLOEXEC);
	if (*fd < 0)
		return -errno;
	if (ftruncate(*fd, s.bytes) || pwrite(*fd, &s, sizeof(s), 0) != sizeof(s)) {
		err = -errno;
		close(*fd);
		return err;
	}
	err = ut_shared_map(*fd, out);
	if (err)
		close(*fd);
	return err;
}

int ut_shared_map(int fd, ut_shared **out)
{
	struct stat st;
	void *v;

	if (fstat(fd, &st))
		return -errno;
	if ((size_t)st.st_size < sizeof(ut_shared))
		return -EINVAL;
	v = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (v == MAP_FAILED)
		return -errno;
	*out = v;
	return 0;
}

void ut_shared_unmap(ut_shared *s)
{
	if (s)
		munmap(s, s->bytes);
}

/* -- lists --------------------------------------------------------------------------------------- */

static _Atomic uint64_t *slots(ut_shared *s, int vcpu)
{
	return (_Atomic uint64_t *)((char *)s + s->lists_at) + (uint64_t)(vcpu + 1) * s->capacity;
}

/* An entry carries its place in the sequence, so that one which its writer has not stored yet, or stored
 * too late, is told from the one that belongs there. */
static uint64_t tagged(uint64_t at, uint64_t index)
{
	return (at + 1) << 32 | index;
}

static void append_global(ut_shared *s, uint64_t index)
{
	uint64_t at = atomic_load(&s->global.head);

	do {
		if (at - atomic_load(&s->global.tail) >= s->capacity) {
			atomic_store(&s->overflow, 1);
			return;
		}
	} while (!atomic_compare_exchange_weak(&s->global.head, &at, at + 1));
	atomic_store_explicit(&slots(s, UT_HOST)[at & (s->capacity - 1)], tagged(at, index),
			      memory_order_release);
}

void ut_append(ut_shared *s, int vcpu, uint64_t index)
{
	ut_list *list;
	uint64_t at;

	if (vcpu < 0) {
		append_global(s, index);
		return;
	}
	list = &s->vcpu[vcpu].list;
	at = atomic_load_explicit(&list->head, memory_order_relaxed);
	if (at - atomic_load_explicit(&list->tail, memory_order_acquire) >= s->capacity) {
		append_global(s, index);
		return;
	}
	atomic_store_explicit(&slots(s, vcpu)[at & (s->capacity - 1)], tagged(at, index),
			      memory_order_relaxed);
	atomic_store_explicit(&list->head, at + 1, memory_order_release);
}

int64_t ut_take(ut_shared *s, int vcpu)
{
	ut_list *list = vcpu < 0 ? &s->global : &s->vcpu[vcpu].list;

	for (;;) {
		uint64_t tail = atomic_load_explicit(&list->tail, memory_order_relaxed), value;
		int spins = 0;

		if (tail == atomic_load_explicit(&list->head, memory_order_acquire))
			return -1;
		do
			value = atomic_load_explicit(&slots(s, vcpu)[tail & (s->capacity - 1)],
						     memory_order_acquire);
		while (value >> 32 != (uint32_t)(tail + 1) && ++spins < TAKE_SPINS);
		atomic_store_explicit(&list->tail, tail + 1, memory_order_release);
		if (value >> 32 == (uint32_t)(tail + 1))
			return (uint32_t)value;
		/* Its writer was stopped or killed half-way. The bitmap has the page. */
		atomic_store(&s->overflow, 1);
	}
}

void ut_mark(ut_shared *s, uint64_t index)
{
	/* The mark comes after the write: a cycle that ends in between leaves the page to the next one. */
	if (!bit_set(s, UT_LISTED, index)) {
		atomic_fetch_add(&s->limit.count, 1);
		append_global(s, index);
	}
}

int ut_try_list(ut_shared *s, int mm)
{
	atomic_fetch_add(&s->listing.busy[mm], 1);
	if (!atomic_load(&s->listing.rearming))
		return 1;
	atomic_fetch_sub(&s->listing.busy[mm], 1);
	return 0;
}

void ut_listed(ut_shared *s, int mm)
{
	atomic_fetch_sub(&s->listing.busy[mm], 1);
}

int64_t ut_threshold(const ut_shared *s)
{
	return atomic_load(&s->limit.threshold);
}
