#include "births.h"
#include "cleanup.h"
#include "fault_ring.h"
#include "proc_stat.h"
#include "vec.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { BYTES = 2 * 4096 }; /* of a ring: its head, and room for a hundred records */

static void close_ring(ut_birth_ring *r)
{
	munmap(r->ring, BYTES);
	close(r->fd);
}

void ut_births_close(ut_births *b)
{
	for (size_t i = 0; i < b->n; i++)
		close_ring(&b->v[i]);
	free(b->v);
	*b = (ut_births){0};
}

static int open_ring(int tid, ut_birth_ring *out)
{
	AUTO_FD fd = ut_software_event(tid, PERF_COUNT_SW_DUMMY, 0, 0, UT_NO_WAKE, 1);
	void *v;

	TRY(fd);
	if (!ut_leaves_room(fd))
		return -EMFILE;
	v = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (v == MAP_FAILED)
		return -errno;
	if (ioctl(fd, PERF_EVENT_IOC_ENABLE, 0)) {
		int err = -errno;

		munmap(v, BYTES);
		return err;
	}
	*out = (ut_birth_ring){tid, ut_keep_fd(&fd), v};
	return 0;
}

/* Any record counts: also one of a thread, which may have forked before it had a ring, or of lost records, or of the
 * thread's own end: its number may be another one's by now. So a ring that has had a record is not kept. */
static int has_records(const ut_birth_ring *r)
{
	return __atomic_load_n(&r->ring->data_head, __ATOMIC_ACQUIRE) != 0;
}

static int by_number(const void *a, const void *b)
{
	return *(const int32_t *)a - *(const int32_t *)b;
}

/* The numbers of the living threads, in order. */
static size_t list_living(const ut_tracee *t, int32_t *tids)
{
	size_t n = 0;
	int in_order = 1;

	for (size_t i = 0; i < t->n; i++) {
		if (t->threads[i].state == UT_THREAD_DEAD)
			continue;
		in_order &= !n || tids[n - 1] < t->threads[i].tid;
		tids[n++] = t->threads[i].tid;
	}
	if (!in_order)
		qsort(tids, n, sizeof(*tids), by_number);
	return n;
}

static int add_ring(ut_births *b, int tid)
{
	int err = VEC_ROOM(b->v, b->n, b->cap);

	if (!err)
		err = open_ring(tid, &b->v[b->n]);
	if (!err)
		b->n++;
	else if (err == -ESRCH) /* it ends, and makes no more */
		err = 0;
	return err;
}

/* The rings are in the order of their threads' numbers, which is a ring's first part. */
static int take(ut_births *b, const ut_tracee *t)
{
	AUTO_FREE int32_t *tids = calloc(t->n + 1, sizeof(*tids));
	size_t n, kept = 0, before;
	int born = 0;

	if (!tids)
		return -ENOMEM;
	n = list_living(t, tids);
	for (size_t i = 0; i < b->n; i++) {
		int records = has_records(&b->v[i]);

		born |= records;
		if (!records && bsearch(&b->v[i].tid, tids, n, sizeof(*tids), by_number))
			b->v[kept++] = b->v[i];
		else
			close_ring(&b->v[i]);
	}
	b->n = before = kept;
	for (size_t i = 0; i < n; i++)
		if (!bsearch(&tids[i], b->v, before, sizeof(*b->v), by_number)) {
			TRY(add_ring(b, tids[i]));
			born = 1;
		}
	if (b->n > before)
		qsort(b->v, b->n, sizeof(*b->v), by_number);
	b->complete = 1;
	return born;
}

int ut_births_take(ut_births *b, const ut_tracee *t)
{
	int born = take(b, t);

	if (born < 0)
		ut_births_close(b);
	return born;
}
