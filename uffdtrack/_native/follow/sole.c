/* Anonymous shared memory and System V segments of which only the processes that we stop have mappings, one each. Whoever
 * writes them in another way must have come to them first, and each way leaves a mark that stays when it has gone: a birth
 * (births.h), a visit or a stamp (sharers.h), a move (mapper.h), a mapping or a process that is not there any more. After a mark
 * they are compared whole, and followed again from a comparison on before which nobody was left. */
#include "clock.h"
#include "methods.h"
#include "pins.h"
#include "proc_stat.h"
#include "relatives.h"
#include "sabotage.h"
#include "vec.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

enum {
	SPARSE = 64,      /* traps take page tables: of at most an eighth of what is in use */
	ASK_SHARE = 20,   /* looking for relatives gets a twentieth of the time */
};
#define LEAST (256ul << 10) /* bytes; less is compared as fast */
#define ARM_BYTES (256ul << 20)

/* -- the processes ------------------------------------------------------------------------------- */

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

static int open_sole(ut_sole **out)
{
	ut_sole *m;
	int err;

	if (!ut_sees_all_processes())
		return -ENOTSUP;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	err = ut_sharers_open(&m->sharers);
	if (!err)
		err = find_device(m);
	if (err) {
		ut_sole_free(m);
		return err;
	}
	*out = m;
	return 0;
}

static ut_sole *sole_of(const ut_space *s)
{
	return s->claims ? s->claims->sole : s->sole;
}

int ut_space_share(ut_space *s, int uffd)
{
	ut_sole **place = s->claims ? &s->claims->sole : &s->sole, *m;

	if (!*place)
		TRY(open_sole(place));
	m = *place;
	if (m->over)
		return -ENOTSUP;
	TRY(VEC_ROOM(m->v, m->n, m->cap));
	TRY(ut_mapper_open(s, m->made, uffd, &s->mapper));
	m->v[m->n++] = s->mapper;
	m->made++;
	return 0;
}

void ut_sole_leave(ut_space *s)
{
	ut_sole *m = sole_of(s);
	size_t kept = 0;

	if (!s->mapper)
		return;
	for (size_t i = 0; i < m->n; i++)
		if (m->v[i] != s->mapper)
			m->v[kept++] = m->v[i];
	m->n = kept;
	m->left = 1;
	ut_mapper_close(s->mapper);
	s->mapper = NULL;
}

static void give_up(ut_sole *m)
{
	m->over = 1;
	while (m->n)
		ut_sole_leave(m->v[m->n - 1]->space);
	ut_sharers_close(&m->sharers);
}

void ut_sole_free(ut_sole *m)
{
	if (!m)
		return;
	give_up(m);
	free(m->v);
	free(m->now.v);
	free(m->before.v);
	free(m);
}

void ut_sole_forget(ut_space *s)
{
	const ut_sole *m = sole_of(s);

	for (size_t i = 0; m && i < m->sharers.n; i++)
		m->sharers.v[i].followed = 0;
}

/* -- what they map ------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
	const ut_mapping *x = a, *y = b;

	if (x->inode != y->inode)
		return x->inode < y->inode ? -1 : 1;
	if (x->number != y->number)
		return x->number < y->number ? -1 : 1;
	return x->start < y->start ? -1 : x->start > y->start;
}

static int list_of(ut_sole *m, ut_mapper *p)
{
	const ut_maps *maps = &p->space->maps;

	for (size_t i = 0; p->tracee && i < maps->n; i++) {
		const ut_region *r = &maps->regions[i];
		ut_mapping one = {r->inode, r->start, r->end, r->offset, p, p->number, r->kind, 0, 0};

		if (!r->inode || r->major != m->major || r->minor != m->minor)
			continue;
		one.segment = ut_maps_is_segment(maps, r);
		TRY(VEC_PUSH(m->now.v, m->now.n, m->now.cap, one));
	}
	return 0;
}

static int list_mappings(ut_sole *m)
{
	ut_mappings old = m->before;

	m->before = m->now;
	m->now = old;
	m->now.n = 0;
	for (size_t i = 0; i < m->n; i++)
		TRY(list_of(m, m->v[i]));
	qsort(m->now.v, m->now.n, sizeof(*m->now.v), by_place);
	for (size_t i = 0; i < m->now.n; i++) {
		ut_mapping *at = &m->now.v[i];
		const ut_mapping *then = bsearch(at, m->before.v, m->before.n, sizeof(*at), by_place);

		at->armed = then && then->armed && then->end == at->end && then->offset == at->offset &&
			    then->kind == at->kind && then->segment == at->segment;
	}
	return 0;
}

/* Those of one object: where they begin. */
static ut_mapping *mappings_of(const ut_mappings *all, uint64_t inode, size_t *n)
{
	size_t low = 0, high = all->n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (all->v[middle].inode < inode)
			low = middle + 1;
		else
			high = middle;
	}
	for (*n = 0; low + *n < all->n && all->v[low + *n].inode == inode;)
		++*n;
	return all->v + low;
}

/* They are those of the last stop, and traps have told of each since. */
static int all_stayed(const ut_sole *m, uint64_t inode)
{
	size_t n, before;
	const ut_mapping *now = mappings_of(&m->now, inode, &n);

	mappings_of(&m->before, inode, &before);
	if (!n || n != before)
		return 0;
	for (size_t i = 0; i < n; i++)
		if (!now[i].armed)
			return 0;
	return 1;
}

/* One in each process, of the same part. */
static ut_mapping *alike(const ut_sole *m, const ut_region *r, int segment, size_t *n)
{
	ut_mapping *v = mappings_of(&m->now, r->inode, n);

	for (size_t i = 0; i < *n; i++)
		if (v[i].kind != UT_KIND_SHARED || v[i].segment != segment || v[i].offset != r->offset ||
		    v[i].end - v[i].start != r->end - r->start || (i && v[i].number == v[i - 1].number))
			return NULL;
	return *n ? v : NULL;
}

static ut_object *object_of(ut_sole *m, const ut_region *r, int segment)
{
	if (r->kind != UT_KIND_SHARED || r->major != m->major || r->minor != m->minor)
		return NULL;
	return ut_sharers_find(&m->sharers, r, segment);
}

static void let_guard(ut_sole *m, ut_mapper *p, const ut_run *range)
{
	for (size_t i = 0; i < m->now.n; i++) {
		ut_mapping *at = &m->now.v[i];
		const ut_region named = {.inode = at->inode};
		ut_object *o;

		if (at->mapper != p || at->start >= range->end || range->start >= at->end)
			continue;
		/* What was moved, or was followed once, is still registered. */
		ut_unregister(p->uffd, at->start, at->end - at->start);
		at->armed = 0;
		o = ut_sharers_find(&m->sharers, &named, at->segment);
		if (o) {
			o->barred = 1;
			o->due = 0;
		}
	}
}

static void let_guards(ut_sole *m)
{
	ut_run range;

	for (size_t i = 0; i < m->n; i++)
		for (size_t k = 0; m->v[i]->tracee && k < m->v[i]->tracee->n; k++)
			if (ut_is_guarding(&m->v[i]->tracee->threads[k], &range))
				let_guard(m, m->v[i], &range);
}

/* -- one stop ------------------------------------------------------------------------------------ */

static int have_no_relatives(const ut_sole *m)
{
	AUTO_FREE ut_region *objects = calloc(m->sharers.n + 1, sizeof(*objects));
	AUTO_FREE int32_t *pids = calloc(m->n + 1, sizeof(*pids));
	int segments = 0;

	if (!objects || !pids)
		return 0;
	for (size_t i = 0; i < m->sharers.n; i++) {
		objects[i] = m->sharers.v[i].region;
		segments |= m->sharers.v[i].segment;
	}
	for (size_t i = 0; i < m->n; i++)
		pids[i] = m->v[i]->space->reader.pid;
	return ut_have_no_relatives(pids, m->n, objects, m->sharers.n, segments);
}

void ut_sole_ask(ut_sole *m)
{
	int64_t t0 = ut_now_ns();
	int complete = 1;

	if (!m || m->over)
		return;
	for (size_t i = 0; i < m->n && !m->over; i++) {
		int pid = m->v[i]->space->reader.pid;

		m->over = ut_may_pin(pid) && ut_live_thread(pid) > 0; /* of one that ends nothing is known */
		complete &= m->v[i]->births.complete;
	}
	if (m->over || !m->asked || m->alone || !complete || t0 < m->ask_again_ns)
		return;
	m->asked = 0;
	m->alone = have_no_relatives(m);
	m->ask_again_ns = ut_now_ns() + ASK_SHARE * (ut_now_ns() - t0);
}

void ut_sole_stands(ut_space *s, const ut_tracee *t)
{
	/* A process that has called exec has none of it any more, nor the rings of before. */
	if (s->mapper && !ut_mm_is_gone(s->mapper->uffd))
		s->mapper->tracee = t;
}

/* 1: others may have it by now, or one of the processes has written what its traps do not tell of. */
static int take_marks(ut_sole *m)
{
	int marks = m->left | ut_sharers_clock_set(&m->sharers);

	if (m->left) /* it may live on, or have left children that nobody has heard of */
		m->alone = 0;
	m->left = 0;
	for (size_t i = 0; i < m->n; i++) {
		ut_mapper *p = m->v[i];
		int born = p->tracee ? ut_births_take(&p->births, p->tracee) : 1;

		TRY(born);
		if (p->tracee && ut_maps_pinning(&p->space->maps))
			return -ECANCELED;
		if (born)
			m->alone = 0;
		marks |= born | ut_mapper_take_moved(p);
	}
	return marks;
}

void ut_sole_begin(ut_sole *m)
{
	int marks;

	if (!m || (m->over && !m->n))
		return;
	marks = m->over ? -ECANCELED : take_marks(m);
	if (marks < 0 || list_mappings(m)) {
		give_up(m);
		return;
	}
	ut_sharers_drain(&m->sharers);
	for (size_t i = 0; i < m->sharers.n; i++) {
		ut_object *o = &m->sharers.v[i];
		size_t n;

		mappings_of(&m->now, o->region.inode, &n);
		o->seen = n > 0;
		o->due = o->followed && ((!marks && all_stayed(m, o->region.inode) && ut_object_stayed(o)) ||
					 ut_breaks(UT_BREAK_SHARERS));
		o->followed = o->told = 0;
	}
	let_guards(m);
	m->begun = 1;
}

void ut_sole_end(ut_sole *m)
{
	if (!m)
		return;
	for (size_t i = 0; i < m->n; i++)
		m->v[i]->tracee = NULL;
	if (m->begun)
		ut_sharers_drop(&m->sharers);
	m->begun = 0;
}

/* -- one mapping --------------------------------------------------------------------------------- */

/* As far as costs little to find out. */
static int is_worth_it(const ut_space *s, const ut_region *r)
{
	return r->kind == UT_KIND_SHARED && r->backing == UT_BACKING_MEMORY && r->end - r->start >= LEAST && !s->sync &&
	       !s->diff_all && (ut_maps_is_segment(&s->maps, r) || ut_maps_is_anonymous(&s->maps, r));
}

/* What was written by one of the processes, at the addresses of `r`. */
static int written_by(const ut_mapping *p, const ut_region *r, ut_runs *found)
{
	const ut_space *s = p->mapper->space;
	ut_scan scan = UT_SCAN_OF(s, p->start, p->end, .flags = UT_REARM, UT_SCAN_WRITTEN);
	AUTO_RUNS part = {0};

	TRY(ut_scan_runs(&scan, &part));
	/* Of memory that has gone a scan finds nothing. */
	if (ut_mm_is_gone(p->mapper->uffd))
		return -ESRCH;
	for (size_t i = 0; i < part.n; i++)
		TRY(runs_push(found, part.v[i].start - p->start + r->start, part.v[i].end - p->start + r->start));
	return 0;
}

static ut_object *due_object(const ut_space *s, const ut_region *r, ut_mapping **v, size_t *n)
{
	ut_sole *m = sole_of(s);
	int segment = ut_maps_is_segment(&s->maps, r);
	ut_object *o;

	if (!m || !m->begun || (s->harvest.flags & UT_RUNNING) || !is_worth_it(s, r))
		return NULL;
	o = object_of(m, r, segment);
	*v = alike(m, r, segment, n);
	return o && o->due && *v ? o : NULL;
}

int ut_sole_is_due(const ut_space *s, const ut_region *r)
{
	ut_mapping *v;
	size_t n;

	return due_object(s, r, &v, &n) != NULL;
}

int ut_sole_written(ut_space *s, const ut_region *r, ut_runs *found)
{
	ut_mapping *v;
	size_t n;
	ut_object *o = due_object(s, r, &v, &n);

	if (!o || o->told)
		return 0;
	found->n = 0;
	for (size_t i = 0; i < n; i++)
		if (written_by(&v[i], r, found)) { /* it was mapped anew */
			v[i].armed = 0;
			return 0;
		}
	runs_normalise(found);
	o->region = *r;
	o->followed = o->told = 1;
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

static int arm(const ut_reader *reader, ut_mapping *p)
{
	AUTO_RUNS written = {0};
	int uffd = p->mapper->uffd;

	if (p->armed && !written_by(p, &(ut_region){0}, &written))
		return 0;
	p->armed = 0;
	TRY(ut_register(uffd, p->start, p->end - p->start, UFFDIO_REGISTER_MODE_WP));
	/* Each entry, also where there is no page; huge pages are split. */
	for (uint64_t at = p->start, n; at < p->end; at += n) {
		n = min64(p->end - at, ARM_BYTES);
		TRY(ut_protect(uffd, at, n, UT_TRAP));
		TRY(ut_reader_overdue(reader));
	}
	p->armed = 1;
	return 0;
}

static int arm_all(const ut_space *s, ut_mapping *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		TRY(arm(&s->reader, &v[i]));
	return 0;
}

static int are_our_segments(const ut_object *o, const ut_mapping *v, size_t n, int fd)
{
	for (size_t i = 0; i < n; i++) {
		const ut_region r = {.start = v[i].start, .end = v[i].end};

		if (!ut_object_is_our_segment(o, v[i].mapper->space->reader.pid, &r, fd))
			return 0;
	}
	return 1;
}

void ut_sole_prove(ut_space *s, const ut_region *r, int fd, uint64_t used)
{
	ut_sole *m = sole_of(s);
	int segment = ut_maps_is_segment(&s->maps, r);
	ut_mapping *v;
	ut_object *o;
	size_t n;

	if ((!m && !s->may_share) || (m && m->over) || (r->end - r->start) / SPARSE > used || !is_worth_it(s, r))
		return;
	s->shared_wanted = s->may_share;
	if (!m || fd < 0 || !m->begun || (s->harvest.flags & UT_RUNNING))
		return;
	v = alike(m, r, segment, &n);
	if (!v || n * (r->end - r->start) / SPARSE > used) /* each has its page tables */
		return;
	o = ut_sharers_add(&m->sharers, r, segment);
	if (!o || o->barred)
		return;
	m->asked = 1;
	o->followed = ut_object_is_private(&m->sharers, o, r, n, fd) && m->alone &&
		      (!segment || are_our_segments(o, v, n, fd)) && !arm_all(s, v, n);
}
