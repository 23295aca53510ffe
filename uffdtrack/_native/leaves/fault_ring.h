/* A perf ring in which the kernel notes the faults of one thread.
 *
 * The kernel would record PERF_COUNT_SW_PAGE_FAULTS before it opens the page: a harvest in between would take
 * the record and rearm, and the write that follows would be in no list. It records MIN or MAJ after that
 * (mm_account_fault in mm/memory.c), one of them for each fault. Writes through GUP have no record, but count
 * as faults of the thread. */
#ifndef UT_FAULT_RING_H
#define UT_FAULT_RING_H
#include <linux/perf_event.h>
#include <stddef.h>
#include <stdint.h>

enum {
	UT_FAULT_RECORD = 16,      /* bytes: header and address */
	UT_NO_WAKE = 0x7fffffff,   /* `wake_bytes` of a ring without a poller: a wake-up costs much */
};

/* The two events of a thread, as descriptors. */
typedef struct {
	int32_t min, maj;
} ut_fault_events;

typedef struct {
	ut_fault_events fd;
	struct perf_event_mmap_page *ring; /* NULL: not mapped */
	size_t bytes;
	uint64_t samples; /* how many we have taken out of it so far */
} ut_fault_ring;

#define UT_NO_FAULT_RING ((ut_fault_ring){.fd = {-1, -1}})

/* Open a software event of a thread; it is off. -ESRCH: the thread has ended. -EMFILE, -EPERM (locked
 * memory): no room. */
int ut_software_event(int tid, int config, uint64_t period, uint64_t sample, uint32_t wake_bytes, int births);
/* 1: beyond descriptor `fd` so many are left that all else can be opened. */
int ut_leaves_room(int fd);
/* `births`: record threads and processes that it makes as well (PERF_RECORD_FORK). */
int ut_fault_events_open(int tid, uint32_t wake_bytes, int births, ut_fault_events *out);
void ut_fault_events_close(ut_fault_events *e);
/* Map a ring of at least `records` records for the events r->fd, and start them. `r` owns them from then on,
 * after an error too. */
int ut_fault_ring_map(ut_fault_ring *r, size_t records);
void ut_fault_ring_close(ut_fault_ring *r);
/* How many records are in the ring. */
static inline uint64_t ut_fault_ring_waiting(const ut_fault_ring *r)
{
	return (__atomic_load_n(&r->ring->data_head, __ATOMIC_ACQUIRE) - r->ring->data_tail) / UT_FAULT_RECORD;
}

/* To take records out: begin, next until it returns 0, end. */
typedef struct {
	uint64_t head, tail, mask;
	const char *data;
	int lost;   /* some may have been dropped */
	int births;
} ut_fault_cursor;

static inline ut_fault_cursor ut_fault_ring_begin(const ut_fault_ring *r)
{
	ut_fault_cursor c = {
		.head = __atomic_load_n(&r->ring->data_head, __ATOMIC_ACQUIRE), .tail = r->ring->data_tail,
		.mask = r->bytes - 4096 - 1, .data = (const char *)r->ring + 4096,
	};

	/* The kernel drops records that do not fit, and says so only with the next record that does: a ring
	 * that is full now may have dropped some. */
	c.lost = c.head - c.tail + 2 * UT_FAULT_RECORD > c.mask + 1;
	return c;
}

/* The address `records` records further on, if that record is a sample; to prefetch. */
static inline uint64_t ut_fault_ahead(const ut_fault_cursor *c, unsigned records)
{
	return *(const uint64_t *)(c->data + ((c->tail + records * UT_FAULT_RECORD + 8) & c->mask));
}

/* 1: a fault at *address. 0: there are no more. */
static inline int ut_fault_ring_next(ut_fault_ring *r, ut_fault_cursor *c, uint64_t *address)
{
	while (c->tail < c->head) {
		const struct perf_event_header *h = (const void *)(c->data + (c->tail & c->mask));
		uint64_t at = c->tail;

		c->tail += h->size;
		if (h->type == PERF_RECORD_SAMPLE) {
			r->samples++;
			*address = *(const uint64_t *)(c->data + ((at + 8) & c->mask));
			return 1;
		}
		c->lost |= h->type == PERF_RECORD_LOST;
		c->births |= h->type == PERF_RECORD_FORK;
	}
	return 0;
}

static inline void ut_fault_ring_end(const ut_fault_ring *r, const ut_fault_cursor *c)
{
	__atomic_store_n(&r->ring->data_tail, c->tail, __ATOMIC_RELEASE);
}
#endif
