/* Anonymous shared memory and System V segments of which the process has the only mapping. Whoever writes them in
 * another way must have come to them first, and each way leaves a mark that stays when it has gone: a birth (births.h), a
 * visit or a stamp (sharers.h), a move. After a mark they are compared whole, and followed again from a comparison on
 * before which nobody was left. */
#include "clock.h"
#include "methods.h"
#include "pins.h"
#include "sabotage.h"
#include "vec.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/user.h>

enum {
	SPARSE = 64,      /* traps take page tables: of at most an eighth of what is in use */
	ASK_SHARE = 20,   /* looking for relatives gets a twentieth of the time */
};
#define LEAST (256ul << 10) /* bytes; less is compared as fast */
#define ARM_BYTES (256ul << 20)

/* -- moves --------------------------------------------------------------------------------------- */

/* With the lock held: who moves goes on when its message was read, and the next stop must find it noted. */
static void read_moves(ut_sole *m)
{
	struct uffd_msg msg[UT_FAULT_BATCH];

	while (ut_fault_server_read(&m->server, msg) > 0)
		m->moved = 1;
}

static void serve_moves(void *arg)
{
	struct pollfd fds[UT_SERVER_FDS];
	ut_sole *m = arg;

	while (ut_fault_server_wait(&m->server, fds, UT_SERVER_FDS, -1) != -ESHUTDOWN) {
		pthread_mutex_lock(&m->lock);
		read_moves(m);
		pthread_mutex_unlock(&m->lock);
	}
}

static int take_moved(ut_sole *m)
{
	int moved;

	pthread_mutex_lock(&m->lock);
	read_moves(m);
	moved = m->moved;
	m->moved = 0;
	pthread_mutex_unlock(&m->lock);
	return moved;
}

/* -- open and close ------------------------------------------------------------------------------ */

static int find_device(ut_sole *m)
{
	AUTO_FD fd = memfd_create("uffdtrack", MFD_CLOEXEC);
	struct stat s;

	if (fd < 0 || fstat(fd, &s))
		return -errno;
	m->major = major(s.st_dev);
	m->minor = minor(s.st_dev);
	return 0;
}

int ut_sole_open(int uffd, ut_sole **out)
{
	ut_sole *m;
	pthread_mutexattr_t inherit;
	int err;

	if (!ut_sees_all_processes())
		return -ENOTSUP;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->uffd = uffd;
	/* Who stops the target may run at a higher priority than the server. */
	pthread_mutexattr_init(&inherit);
	pthread_mutexattr_setprotocol(&inherit, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&m->lock, &inherit);
	pthread_mutexattr_destroy(&inherit);
	err = ut_sharers_open(&m->sharers);
	if (!err)
		err = find_device(m);
	if (!err)
		err = ut_fault_server_start(&m->server, uffd, serve_moves, m);
	if (err) {
		m->uffd = -1;
		ut_sole_close(m);
		return err;
	}
	*out = m;
	return 0;
}

void ut_sole_close(ut_sole *m)
{
	ut_fault_server_stop(&m->server);
	ut_close_fd(&m->uffd); /* takes every trap away */
	ut_births_close(&m->births);
	ut_sharers_close(&m->sharers);
	free(m->inodes);
	pthread_mutex_destroy(&m->lock);
	free(m);
}

void ut_sole_forget(ut_sole *m)
{
	for (size_t i = 0; i < m->sharers.n; i++)
		m->sharers.v[i].followed = 0;
}

int ut_space_share(ut_space *s, int uffd)
{
	return ut_sole_open(uffd, &s->sole);
}

/* -- MADV_GUARD_INSTALL -------------------------------------------------------------------------- */

enum {
	GUARD_INSTALL = 102,  /* Linux 6.13 */
	COMPAT_MADVISE = 219, /* of a 32-bit call */
};
#ifndef SYS_process_madvise /* Linux 5.10 */
#define SYS_process_madvise 440
#endif

/* It takes the markers of traps for pages, and begins anew for as long as there are any. */
static int is_guarding(const ut_thread *th, ut_run *range)
{
	const struct user_regs_struct *r = (const void *)th->regs;
	int advice = r->rdx;

	if (th->state != UT_THREAD_STOPPED)
		return 0;
	switch (r->orig_rax) {
	case SYS_madvise:
		*range = (ut_run){r->rdi, r->rdi + r->rsi};
		break;
	case COMPAT_MADVISE:
		*range = (ut_run){(uint32_t)r->rbx, (uint64_t)(uint32_t)r->rbx + (uint32_t)r->rcx};
		break;
	case SYS_process_madvise:
		*range = (ut_run){0, UINT64_MAX};
		advice = r->r10;
		break;
	default:
		return 0;
	}
	return advice == GUARD_INSTALL;
}

static ut_object *object_of(ut_space *s, const ut_region *r)
{
	ut_sole *m = s->sole;

	if (r->kind != UT_KIND_SHARED || r->major != m->major || r->minor != m->minor)
		return NULL;
	return ut_sharers_find(&m->sharers, r, ut_maps_is_segment(&s->maps, r));
}

/* What was moved is still registered: so it counts where an object is now. */
static void let_guard(ut_space *s, const ut_run *range)
{
	for (size_t i = 0; i < s->maps.n; i++) {
		const ut_region *r = &s->maps.regions[i];
		ut_object *o = r->start < range->end && range->start < r->end ? object_of(s, r) : NULL;

		if (!o || !o->armed)
			continue;
		ut_unregister(s->sole->uffd, r->start, r->end - r->start);
		o->barred = 1;
		o->due = 0;
	}
}

static void let_guards(ut_space *s, const ut_tracee *t)
{
	ut_run range;

	for (size_t i = 0; i < t->n; i++)
		if (is_guarding(&t->threads[i], &range))
			let_guard(s, &range);
}

/* -- one stop ------------------------------------------------------------------------------------ */

void ut_sole_ask(ut_space *s)
{
	ut_sole *m = s->sole;
	AUTO_FREE ut_region *objects = NULL;
	int64_t t0 = ut_now_ns();

	if (!m)
		return;
	m->over |= ut_may_pin(s->reader.pid);
	if (m->over || !m->asked || m->alone || !m->births.complete || t0 < m->ask_again_ns)
		return;
	m->asked = 0;
	objects = calloc(m->sharers.n + 1, sizeof(*objects));
	if (!objects)
		return;
	for (size_t i = 0; i < m->sharers.n; i++)
		objects[i] = m->sharers.v[i].region;
	m->alone = ut_has_no_relatives(s->reader.pid, objects, m->sharers.n);
	m->ask_again_ns = ut_now_ns() + ASK_SHARE * (ut_now_ns() - t0);
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static int list_inodes(ut_space *s)
{
	ut_sole *m = s->sole;

	m->ninodes = 0;
	for (size_t i = 0; i < s->maps.n; i++) {
		const ut_region *r = &s->maps.regions[i];

		if (r->inode && r->major == m->major && r->minor == m->minor)
			TRY(VEC_PUSH(m->inodes, m->ninodes, m->inodes_cap, r->inode));
	}
	qsort(m->inodes, m->ninodes, sizeof(*m->inodes), by_size);
	return 0;
}

static size_t count_mappings(const ut_sole *m, uint64_t inode)
{
	const uint64_t *at = bsearch(&inode, m->inodes, m->ninodes, sizeof(inode), by_size), *end = at;

	if (!at)
		return 0;
	while (at > m->inodes && at[-1] == inode)
		at--;
	while (end < m->inodes + m->ninodes && *end == inode)
		end++;
	return end - at;
}

void ut_sole_begin(ut_space *s, const ut_tracee *t)
{
	ut_sole *m = s->sole;
	int born, others;

	if (!m || (s->harvest.flags & UT_RUNNING))
		return;
	born = m->over ? -ECANCELED : ut_births_take(&m->births, t);
	if (born < 0 || ut_maps_pinning(&s->maps) || list_inodes(s)) {
		ut_sole_close(m);
		s->sole = NULL;
		return;
	}
	others = born | take_moved(m) | ut_sharers_clock_set(&m->sharers);
	ut_sharers_drain(&m->sharers);
	if (born)
		m->alone = 0;
	for (size_t i = 0; i < m->sharers.n; i++) {
		ut_object *o = &m->sharers.v[i];

		o->seen = count_mappings(m, o->region.inode) > 0;
		o->due = o->followed && (!others || ut_breaks(UT_BREAK_SHARERS));
		o->followed = 0;
		if (ut_breaks(UT_BREAK_SHARERS))
			o->visited = 0;
	}
	let_guards(s, t);
}

void ut_sole_end(ut_space *s)
{
	if (s->sole && !(s->harvest.flags & UT_RUNNING))
		ut_sharers_drop(&s->sole->sharers);
}

/* -- one mapping --------------------------------------------------------------------------------- */

/* As far as costs little to find out. */
static int is_worth_it(const ut_space *s, const ut_region *r)
{
	return r->kind == UT_KIND_SHARED && r->backing == UT_BACKING_MEMORY && r->end - r->start >= LEAST && !s->sync &&
	       !s->claims && !s->diff_all && (ut_maps_is_segment(&s->maps, r) || ut_maps_is_anonymous(&s->maps, r));
}

static int is_eligible(const ut_space *s, const ut_region *r)
{
	const ut_sole *m = s->sole;

	return is_worth_it(s, r) && r->major == m->major && r->minor == m->minor && count_mappings(m, r->inode) == 1;
}

static int is_same_place(const ut_region *a, const ut_region *b)
{
	return a->start == b->start && a->end == b->end && a->offset == b->offset;
}

int ut_sole_written(ut_space *s, const ut_region *r, ut_runs *found)
{
	ut_scan scan = UT_SCAN_OF(s, r->start, r->end, .flags = UT_REARM, UT_SCAN_WRITTEN);
	ut_object *o;

	if (!s->sole || (s->harvest.flags & UT_RUNNING) || !is_eligible(s, r))
		return 0;
	o = object_of(s, r);
	if (!o || !o->due || !is_same_place(&o->region, r) || (!ut_object_stayed(o) && !ut_breaks(UT_BREAK_SHARERS)))
		return 0;
	found->n = 0;
	if (ut_scan_runs(&scan, found)) /* it was mapped anew */
		return 0;
	o->followed = 1;
	return 1;
}

/* They do not touch each other, or are one range: each is an object of its own. */
int ut_sole_places(const ut_space *s, ut_runs *to)
{
	for (size_t i = 0; s->sole && i < s->sole->sharers.n; i++) {
		const ut_object *o = &s->sole->sharers.v[i];

		if (o->followed)
			TRY(runs_push(to, o->region.start, o->region.end));
	}
	runs_normalise(to);
	return 0;
}

static int arm(const ut_space *s, ut_object *o)
{
	const ut_region *r = &o->region;
	int uffd = s->sole->uffd;

	TRY(ut_register(uffd, r->start, r->end - r->start, UFFDIO_REGISTER_MODE_WP));
	o->armed = 1;
	/* Each entry, also where there is no page; huge pages are split. */
	for (uint64_t at = r->start, n; at < r->end; at += n) {
		n = min64(r->end - at, ARM_BYTES);
		TRY(ut_protect(uffd, at, n, UT_TRAP));
		TRY(ut_reader_overdue(&s->reader));
	}
	return 0;
}

void ut_sole_prove(ut_space *s, const ut_region *r, int fd, uint64_t used)
{
	ut_sole *m = s->sole;
	ut_object *o;

	if ((!m && !s->may_share) || (r->end - r->start) / SPARSE > used || !is_worth_it(s, r))
		return;
	s->shared_wanted = s->may_share;
	if (!m || fd < 0 || (s->harvest.flags & UT_RUNNING) || !is_eligible(s, r))
		return;
	o = ut_sharers_add(&m->sharers, r, ut_maps_is_segment(&s->maps, r));
	if (!o || o->barred)
		return;
	m->asked = 1;
	o->followed = ut_object_is_private(&m->sharers, o, r, s->reader.pid, fd) && m->alone && !arm(s, o);
}
