/* The cycle of a dirty tracker: two logs, of which one is filled while the other is handed out and rearmed;
 * and a count of the threads inside a call of the tracker.
 *
 * A core fills its open log and sets traps again (ut_cycle_core); this file decides the order. A cycle ends
 * only when all pages of the one before are rearmed. */
#ifndef UT_CYCLE_H
#define UT_CYCLE_H
#include "cleanup.h"
#include "sabotage.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* Pages, as guest frame numbers, and the vCPU that wrote each first. */
typedef struct {
	uint64_t *gfn;
	int32_t *vcpu;
	size_t n;
} ut_log;

typedef struct {
	ut_log log[2];
	_Atomic uint64_t number;         /* of the ended cycle, from 1 on; 0: none has ended */
	_Atomic int32_t open;            /* log[open] is being filled, the other one is handed out */
	_Atomic uint64_t next;           /* place of the first page of the ended log that was not fetched */
	_Atomic uint64_t rearmed;        /* pages of the ended log */
	_Atomic int32_t inside, closing; /* threads in a call of the tracker */
	pthread_mutex_t lock;            /* protects the open log, and what the core keeps for it */
} ut_cycle;

/* Functions return >= 0 or -errno. */
typedef struct {
	/* Bring the vCPUs to where all their writes can be seen, from before the lock is taken until after
	 * it: 1; 0: there was nothing to do. Both may be NULL. */
	int (*halt)(void *core);
	void (*release)(void *core);
	/* Put all pages written up to now into the open log. Under the lock. */
	int (*fill)(void *core);
	/* The log is about to end. Under the lock. */
	void (*seal)(void *core, ut_log *log);
	/* The next cycle has begun. Under the lock. */
	int (*begin)(void *core, const ut_log *ended);
	/* Set the traps of n pages of the ended log again, and call ut_cycle_rearmed(). Not under the
	 * lock. */
	int (*rearm)(void *core, const uint64_t *gfn, size_t n);
} ut_cycle_core;

/* Where a fetch begins: a place in the ended log, with bits of the cycle's number above it. So a fetch that was kept
 * from running while that cycle and others went by claims nothing. */
enum { UT_PLACE_BITS = 40 };
#define UT_PLACE(next) ((next) & ((1ull << UT_PLACE_BITS) - 1))
#define UT_NOTHING_TO_FETCH UINT64_MAX

static inline void ut_cycle_fetch_from(ut_cycle *c, uint64_t place)
{
	atomic_store(&c->next, atomic_load(&c->number) << UT_PLACE_BITS | place);
}


static inline void ut_cycle_init(ut_cycle *c)
{
	pthread_mutex_init(&c->lock, NULL);
}

static inline void ut_cycle_free(ut_cycle *c)
{
	pthread_mutex_destroy(&c->lock);
}

/* -- memory -------------------------------------------------------------------------------------- */

/* An arena has arrays back to back, each on pages of its own. The kernel allocates a page when it is first
 * used. */
static inline size_t ut_arena_room(size_t n, size_t size)
{
	return (n * size + 4095) & ~4095ul;
}

/* Allocate the beginning here, not in one of the first cycles: clearing a huge page takes half a
 * millisecond. */
#define UT_CARVE(at, what, n, size) ((what) = (void *)(at), *(volatile char *)(at) = 0, (at) += ut_arena_room(n, size))

/* The size of two logs of this many pages, in bytes. */
static inline size_t ut_cycle_bytes(size_t pages)
{
	return 2 * (ut_arena_room(pages, 8) + ut_arena_room(pages, 4));
}

static inline char *ut_cycle_carve(ut_cycle *c, char *at, size_t pages)
{
	for (int i = 0; i < 2; i++) {
		UT_CARVE(at, c->log[i].gfn, pages, 8);
		UT_CARVE(at, c->log[i].vcpu, pages, 4);
	}
	return at;
}

/* -- threads inside ------------------------------------------------------------------------------ */

/* NULL: it is closed, or being closed. */
static inline ut_cycle *ut_cycle_enter(ut_cycle *c)
{
	atomic_fetch_add(&c->inside, 1);
	if (!atomic_load(&c->closing))
		return c;
	atomic_fetch_sub(&c->inside, 1);
	return NULL;
}

static inline void ut_cycle_leave(ut_cycle **c)
{
	if (*c)
		atomic_fetch_sub(&(*c)->inside, 1);
}

/* A function that begins with this is a call of the tracker: its thread is inside until it returns. Late
 * callers get -ESHUTDOWN. */
#define UT_ENTER(c)                                                                                \
	__attribute__((cleanup(ut_cycle_leave))) ut_cycle *ut_entered = ut_cycle_enter(c);         \
                                                                                                   \
	if (!ut_entered)                                                                           \
		return -ESHUTDOWN

static inline pthread_mutex_t *ut_lock(pthread_mutex_t *lock)
{
	pthread_mutex_lock(lock);
	return lock;
}

static inline void ut_unlock(pthread_mutex_t **lock)
{
	pthread_mutex_unlock(*lock);
}

/* Take a lock until the scope ends. */
#define UT_LOCK(lock) __attribute__((cleanup(ut_unlock), unused)) pthread_mutex_t *ut_locked = ut_lock(lock)

/* Wait until no thread is inside a call. 1; 0: it is closed already, or another thread closes it. `rouse`
 * wakes threads that sleep inside; they then see `closing`. The memory stays valid until the core frees
 * it. */
static inline int ut_cycle_close(ut_cycle *c, void (*rouse)(void *core), void *core)
{
	struct timespec nap = {0, 100000};

	if (atomic_exchange(&c->closing, 1))
		return 0;
	while (atomic_load(&c->inside)) {
		rouse(core);
		nanosleep(&nap, NULL);
	}
	return 1;
}

/* -- the two logs -------------------------------------------------------------------------------- */

static inline ut_log *ut_cycle_open_log(ut_cycle *c)
{
	return &c->log[atomic_load_explicit(&c->open, memory_order_relaxed)];
}

static inline ut_log *ut_cycle_ended_log(ut_cycle *c)
{
	return &c->log[!atomic_load_explicit(&c->open, memory_order_relaxed)];
}

static inline int ut_cycle_is_rearmed(ut_cycle *c)
{
	return atomic_load(&c->rearmed) >= ut_cycle_ended_log(c)->n;
}

static inline void ut_cycle_rearmed(ut_cycle *c, size_t n)
{
	atomic_fetch_add(&c->rearmed, n);
}

/* End the cycle. So many of its pages count as fetched. -EBUSY: the last one is not rearmed. Under the
 * lock. */
static inline int64_t ut_cycle_cut(ut_cycle *c, const ut_cycle_core *ops, void *core, size_t fetched)
{
	ut_log *log;
	int err;

	if (!ut_cycle_is_rearmed(c))
		return -EBUSY;
	TRY(ops->fill(core));
	log = ut_cycle_open_log(c);
	ops->seal(core, log);
	/* Fetching takes no lock: it must not combine the place in one log with the length of the other. */
	atomic_store(&c->next, UT_NOTHING_TO_FETCH);
	atomic_store(&c->open, !c->open);
	atomic_fetch_add(&c->number, 1);
	ut_cycle_open_log(c)->n = 0;
	atomic_store(&c->rearmed, 0);
	err = ops->begin(core, log);
	ut_cycle_fetch_from(c, err < 0 ? 0 : fetched < log->n ? fetched : log->n);
	return err < 0 ? err : (int64_t)log->n;
}

static inline int64_t ut_cycle_end(ut_cycle *c, const ut_cycle_core *ops, void *core, size_t fetched)
{
	int halted = ops->halt ? ops->halt(core) : 0;
	int64_t n;

	TRY(halted);
	{
		UT_LOCK(&c->lock);
		n = ut_cycle_cut(c, ops, core, fetched);
	}
	if (halted)
		ops->release(core);
	return n;
}

static inline int64_t ut_cycle_prepare(ut_cycle *c, const ut_cycle_core *ops, void *core)
{
	return ut_cycle_end(c, ops, core, 0);
}

/* Claim up to `max` pages of the ended log; returns how many, *first is the place of the first. */
static inline int64_t ut_cycle_fetch(ut_cycle *c, uint64_t max, uint64_t *first)
{
	uint64_t at = atomic_load(&c->next), part;

	do {
		uint64_t n = ut_cycle_ended_log(c)->n, left = UT_PLACE(at) < n ? n - UT_PLACE(at) : 0;

		part = left < max ? left : max;
		if (ut_breaks(UT_BREAK_CLAIM))
			usleep(200);
	} while (part && !atomic_compare_exchange_weak(&c->next, &at, at + part));
	*first = part ? UT_PLACE(at) : 0;
	return part;
}

/* -EINVAL: the pages are not from the ended log. */
static inline int ut_cycle_rearm(ut_cycle *c, const ut_cycle_core *ops, void *core, const uint64_t *gfn, size_t n)
{
	const ut_log *log = ut_cycle_ended_log(c);
	size_t place = gfn - log->gfn;

	if (place > log->n || n > log->n - place)
		return -EINVAL;
	return ops->rearm(core, gfn, n);
}

/* Prepare, fetch and rearm in one call. After an error pages can be fetched, and rearmed again. */
static inline int64_t ut_cycle_exchange(ut_cycle *c, const ut_cycle_core *ops, void *core)
{
	int64_t n = ut_cycle_end(c, ops, core, SIZE_MAX);
	int err;

	if (n < 0)
		return n;
	err = ops->rearm(core, ut_cycle_ended_log(c)->gfn, n);
	if (!err)
		return n;
	ut_cycle_fetch_from(c, 0);
	return err;
}

/* How many pages the open cycle has by now. */
static inline int64_t ut_cycle_pending(ut_cycle *c, const ut_cycle_core *ops, void *core)
{
	int halted = ops->halt ? ops->halt(core) : 0;
	int64_t n;

	TRY(halted);
	{
		UT_LOCK(&c->lock);
		n = ops->fill(core);
		if (!n)
			n = ut_cycle_open_log(c)->n;
	}
	if (halted)
		ops->release(core);
	return n;
}

#endif
