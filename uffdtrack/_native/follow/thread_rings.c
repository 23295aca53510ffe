#include "cleanup.h"
#include "compat.h"
#include "proc_stat.h"
#include "thread_rings.h"
#include "vec.h"

#include <string.h>

enum {
	RECORDS = 8192,     /* of a thread's ring */
	FEW_RECORDS = 1024, /* the same, where there are many threads: the kernel's memory for rings is limited */
	MANY = 32,
	MOST = 1 << 18, /* pages; with more of them, a scan is cheaper */
};

void ut_thread_rings_open(ut_thread_rings *r, int pid, uint64_t limit, ut_touched *pages)
{
	*r = (ut_thread_rings){.pid = pid, .limit = limit, .unseen = INT64_MIN / 2, .pages = pages};
}

void ut_thread_rings_close(ut_thread_rings *r)
{
	for (size_t i = 0; i < r->n; i++)
		ut_fault_ring_close(&r->v[i].ring);
	free(r->v);
	r->v = NULL;
	r->n = r->cap = 0;
}

static void drain_thread(ut_thread_rings *r, ut_fault_ring *ring)
{
	ut_fault_cursor c = ut_fault_ring_begin(ring);
	uint64_t address, before = ring->samples;

	while (ut_fault_ring_next(ring, &c, &address))
		if (r->pages->n >= MOST || ut_touched_add(r->pages, address / UT_PAGE))
			r->lost = 1;
	ut_fault_ring_end(ring, &c);
	r->samples += ring->samples - before;
	/* A new thread gets a ring at the next stop. A new process may be one of vfork(2), which writes in
	 * its parent's memory and whose faults are its own. */
	r->lost |= c.lost;
	r->births |= c.births;
}

void ut_thread_rings_drain(ut_thread_rings *r)
{
	for (size_t i = 0; i < r->n; i++)
		drain_thread(r, &r->v[i].ring);
}

static void forget_ring(ut_thread_rings *r, size_t i)
{
	drain_thread(r, &r->v[i].ring);
	ut_fault_ring_close(&r->v[i].ring);
	r->n--;
	r->short_of = 0;
	memmove(&r->v[i], &r->v[i + 1], (r->n - i) * sizeof(*r->v));
}

void ut_thread_rings_drop(ut_thread_rings *r, int fd)
{
	for (size_t i = 0; i < r->n; i++)
		if (r->v[i].ring.fd.min == fd) {
			forget_ring(r, i);
			return;
		}
}

/* When whoever waits for the limit is told. It is met by several threads at once, so each tells of a part of it. */
static uint32_t wake_bytes(const ut_thread_rings *r, size_t records)
{
	uint32_t half = records * UT_FAULT_RECORD / 2;

	if (!r->limit || r->limit * UT_FAULT_RECORD / 8 >= half)
		return half;
	return r->limit / 8 ? r->limit / 8 * UT_FAULT_RECORD : UT_FAULT_RECORD;
}

static int open_ring(const ut_thread_rings *r, int tid, ut_fault_ring *out)
{
	size_t records = r->n < MANY ? RECORDS : FEW_RECORDS;
	int err;

	*out = UT_NO_FAULT_RING;
	err = ut_fault_events_open(tid, wake_bytes(r, records), 1, &out->fd);
	if (!err)
		err = ut_leaves_room(out->fd.maj) ? ut_fault_ring_map(out, records) : -EMFILE;
	if (err)
		ut_fault_ring_close(out);
	return err;
}

/* 1: the thread has a ring. If that fails, the audit finds faults without a sample. */
static int add_ring(ut_thread_rings *r, int tid)
{
	int err;

	if (r->short_of || VEC_ROOM(r->v, r->n, r->cap))
		return 0;
	r->v[r->n].tid = tid;
	err = open_ring(r, tid, &r->v[r->n].ring);
	if (!err)
		r->n++;
	else if (err != -ESRCH)
		r->short_of = err;
	return !err;
}

int ut_thread_rings_have(const ut_thread_rings *r, int tid, size_t i)
{
	for (size_t k = 0; k < r->n; k++)
		if (r->v[(i + k) % r->n].tid == tid)
			return 1;
	return 0;
}

int ut_thread_rings_renew(ut_thread_rings *r)
{
	size_t before = r->n, hint = 0;
	AUTO_FREE uint8_t *lives = calloc(before + 1, 1);
	AUTO_DIR dir = ut_open_tasks(r->pid);
	int changed = 0, tid;

	if (!dir || !lives)
		return 0;
	while ((tid = ut_next_task(dir))) {
		size_t i = 0;

		/* The list is in the same order each time. */
		while (i < before && r->v[(hint + i) % before].tid != tid)
			i++;
		if (i < before) {
			hint = (hint + i) % before;
			lives[hint++] = 1;
		} else {
			changed |= add_ring(r, tid);
		}
	}
	for (size_t i = before; i-- > 0;)
		if (!lives[i]) {
			forget_ring(r, i);
			changed = 1;
		}
	return changed;
}

int ut_thread_rings_audit(ut_thread_rings *r)
{
	ut_proc_stat stat;
	int err = ut_proc_stat_read(r->pid, 0, &stat);
	int unsampled = err || (int64_t)stat.faults != (int64_t)r->samples + r->unseen;

	/* They stand, so nothing is under way. */
	r->unseen = err ? INT64_MIN / 2 : (int64_t)(stat.faults - r->samples);
	return unsampled;
}
