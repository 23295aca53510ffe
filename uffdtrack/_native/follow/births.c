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

/* Any record counts: also one of a thread, which may have forked before it had a ring, or of lost records. A ring
 * that was full has records. */
static int has_records(const ut_birth_ring *r)
{
	uint64_t head = __atomic_load_n(&r->ring->data_head, __ATOMIC_ACQUIRE);
	int any = head != r->ring->data_tail;

	__atomic_store_n(&r->ring->data_tail, head, __ATOMIC_RELEASE);
	return any;
}

static int is_of(const ut_tracee *t, size_t i, int tid)
{
	return i < t->n && t->threads[i].tid == tid;
}

static int lives(const ut_tracee *t, size_t hint, int tid)
{
	if (is_of(t, hint, tid))
		return t->threads[hint].state != UT_THREAD_DEAD;
	for (size_t i = 0; i < t->n; i++)
		if (is_of(t, i, tid))
			return t->threads[i].state != UT_THREAD_DEAD;
	return 0;
}

/* The rings are in the order of the table of threads, as far as that has not changed. */
static int has_ring(const ut_births *b, size_t hint, int tid)
{
	if (hint < b->n && b->v[hint].tid == tid)
		return 1;
	for (size_t i = 0; i < b->n; i++)
		if (b->v[i].tid == tid)
			return 1;
	return 0;
}

static void add_ring(ut_births *b, int tid)
{
	int err = VEC_ROOM(b->v, b->n, b->cap);

	if (!err)
		err = open_ring(tid, &b->v[b->n]);
	if (!err)
		b->n++;
	else if (err != -ESRCH || !ut_thread_is_dead(tid, tid))
		b->complete = 0;
}

int ut_births_take(ut_births *b, const ut_tracee *t)
{
	int born = !b->complete;
	size_t kept = 0;

	for (size_t i = 0; i < b->n; i++) {
		born |= has_records(&b->v[i]);
		if (lives(t, i, b->v[i].tid))
			b->v[kept++] = b->v[i];
		else
			close_ring(&b->v[i]);
	}
	b->n = kept;
	b->complete = 1;
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state != UT_THREAD_DEAD && !has_ring(b, i, t->threads[i].tid)) {
			add_ring(b, t->threads[i].tid);
			born = 1;
		}
	return born || !b->complete;
}
