/* Dirty lists in memory that a tracker and its vCPU processes share, and their limits. */
#ifndef UT_LISTS_H
#define UT_LISTS_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { UT_RING = 1, UT_SCAN, UT_SYNC, UT_INLINE, UT_ENGINES };
enum { UT_MAX_VCPUS = 64, UT_HOST = -1 };
enum { UT_VCPU_FREE, UT_VCPU_BOUND, UT_VCPU_GONE };

/* A ring of page indexes with one reader and one writer; the global list has several writers. */
typedef struct {
	_Alignas(64) _Atomic uint64_t head;
	_Alignas(64) _Atomic uint64_t tail;
} ut_list;

typedef struct {
	_Alignas(64) _Atomic uint32_t state;
	int32_t pid, tid;
	int32_t forced;            /* 1: a signal stops it; 0: nothing does (a Python thread of the tracker's
				    * process); -1: ptrace does (a thread of an attached process) */
	_Atomic uint32_t parked;   /* it stands at the gate with this word */
	_Atomic uint32_t stood;    /* the last word with which it stood */
	_Atomic uint64_t faults;   /* of the thread, until it came to the gate, or was held */
	_Atomic uint32_t called;   /* a signal of ours is on its way to it */
	_Atomic uint64_t until;    /* ring: the count of its event at which its share is used up */
	_Atomic uint32_t dry;      /* ring: it has used up its share, and there was no other */
	_Atomic uint32_t hold;     /* ring: a ticket: hold it, so that its faults can be counted */
	_Atomic uint32_t held;     /* the same ticket: it is held */
	uint32_t tickets;          /* the last ticket; the tracker's alone, under its lock */
	ut_list list;
} ut_vcpu;

/* The pause gate: gate.h. */
typedef struct {
	_Alignas(64) _Atomic uint32_t word; /* odd: closed; also a futex */
	_Atomic uint32_t event;             /* futex: there is something for the tracker to look at */
	_Atomic uint32_t full;              /* the threshold was reached */
	_Atomic uint32_t asleep;            /* vCPUs that sleep at it; those that were killed there count on */
	_Atomic int32_t cpu;                /* where the tracker's thread closed it; -1: a vCPU did */
	_Atomic uint32_t dozing;            /* in this pause they give up their processors at once: gate.h */
	_Atomic uint32_t halted;            /* every thread of the attached process stands */
} ut_gate;

/* How many pages a cycle has, and may have. */
typedef struct {
	_Alignas(64) _Atomic int64_t count; /* in the open cycle's lists */
	_Atomic int64_t threshold;          /* 0: none */
	_Atomic int64_t budget;             /* ring: faults not granted to a vCPU yet: share.h */
} ut_limit;

/* sync, inline: a page that has its bit is listed and open, one that lacks it is protected. Listing and
 * rearming exclude each other: many threads may list at once, or one rearms. */
typedef struct {
	_Alignas(64) _Atomic uint32_t rearming;
	_Atomic uint32_t busy[UT_MAX_VCPUS + 1]; /* threads between listing a page and opening it, by mm */
} ut_listing;

typedef struct {
	uint64_t bytes, npages;
	uint64_t capacity;          /* of each list; a power of two */
	int32_t engine, nvcpus;
	uint64_t lists_at, bits_at; /* offsets in bytes */
	uint64_t words, stride;     /* 64-bit words of a bitmap; between two words of the same one */
	ut_gate gate;
	ut_limit limit;
	ut_listing listing;
	_Alignas(64) _Atomic uint32_t overflow; /* some page is in the bitmap and in no list */
	ut_list global;
	ut_vcpu vcpu[UT_MAX_VCPUS];
} ut_shared;

/* Functions return >= 0 or -errno. */
/* `mms`: how many address spaces there can be. With one, no other process maps it, and *fd is -1. */
int ut_shared_create(int engine, int nvcpus, int mms, uint64_t npages, uint64_t capacity, int *fd, ut_shared **out);
int ut_shared_map(int fd, ut_shared **out);
void ut_shared_unmap(ut_shared *s);

/* For each 64 pages: a word that has the bits of listed pages, and behind it, for each address space, a word
 * that has the bits of pages whose trap has fired there (0 is the tracker's own, i + 1 that of vCPU process
 * i). One page's bits share a cache line. */
enum { UT_LISTED = 0, UT_TRAPPED = 1 };

static inline _Atomic uint64_t *ut_word(ut_shared *s, uint64_t i)
{
	return (_Atomic uint64_t *)((char *)s + s->bits_at) + i / 64 * s->stride;
}
static inline int bit_test(ut_shared *s, int map, uint64_t i)
{
	return atomic_load_explicit(&ut_word(s, i)[map], memory_order_acquire) >> (i % 64) & 1;
}
/* 1: it was set already. */
static inline int bit_set(ut_shared *s, int map, uint64_t i)
{
	uint64_t bit = 1ull << (i % 64);

	return !!(atomic_fetch_or(&ut_word(s, i)[map], bit) & bit);
}
static inline int bit_clear(ut_shared *s, int map, uint64_t i)
{
	uint64_t bit = 1ull << (i % 64);

	return !!(atomic_fetch_and(&ut_word(s, i)[map], ~bit) & bit);
}

/* The same without a locked instruction, which costs more than all the rest of a harvest. For ring and scan:
 * only the tracker changes their bits, under its lock. */
static inline int bit_set_alone(ut_shared *s, int map, uint64_t i)
{
	uint64_t bit = 1ull << (i % 64), *word = (uint64_t *)&ut_word(s, i)[map], old = *word;

	*word = old | bit;
	return !!(old & bit);
}

/* The trap of a page has fired in an address space. If there is only one, the listed bit says so. */
static inline void trap_fired(ut_shared *s, int mm, uint64_t i)
{
	if (s->stride > 1)
		bit_set(s, UT_TRAPPED + mm, i);
}

/* Append to the list of a vCPU, or to the global one (for UT_HOST, or if the vCPU's is full). */
void ut_append(ut_shared *s, int vcpu, uint64_t index);
/* Take one entry of a list; -1: it is empty. An entry that its writer never finishes counts as an
 * overflow. */
int64_t ut_take(ut_shared *s, int vcpu);
/* List a page that the host wrote. */
void ut_mark(ut_shared *s, uint64_t index);
/* See ut_listing. 0: pages are being rearmed; 1: list, and then call ut_listed(). */
int ut_try_list(ut_shared *s, int mm);
void ut_listed(ut_shared *s, int mm);
/* 0: none. */
int64_t ut_threshold(const ut_shared *s);
#endif
