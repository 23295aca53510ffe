/* Shared memory of several processes that are taken together: one of them stores it. */
#include "methods.h"
#include "tree.h"
#include "vec.h"

#include <linux/magic.h>
#include <stdio.h>
#include <sys/stat.h>

void ut_claims_drop(ut_claims *c, int member)
{
	size_t kept = 0;

	if (!c->n) /* nor is it touched while several members are looked at */
		return;
	for (size_t i = 0; i < c->n; i++)
		if (c->v[i].member != member)
			c->v[kept++] = c->v[i];
	c->n = kept;
}

void ut_claims_free(ut_claims *c)
{
	free(c->v);
	ut_sole_free(c->sole);
	*c = (ut_claims){0};
}

/* Whether the pages of the object that this process has never touched are found as well: by /proc/PID/map_files, which
 * takes CAP_CHECKPOINT_RESTORE, and not of hugetlbfs (find_in_file, compared.c). */
static int sees_all(const ut_space *s, const ut_region *r)
{
	long type;

	if (ut_sole_is_due(s, r)) /* it could be opened before; now that would be a visit */
		return 1;
	AUTO_FD fd = ut_open_mapped(s->reader.pid, r, &type);

	return fd >= 0 && type == TMPFS_MAGIC;
}

/* A System V segment has its id as inode number, and each IPC namespace counts ids by itself: so it takes the namespace to tell
 * two of them apart, and when it was made, since the process may have come from another namespace. */
static int identify_segment(const ut_space *s, const ut_region *r, ut_claim *out)
{
	char path[48];
	struct stat namespace;
	struct statx file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/ns/ipc", s->reader.pid, s->reader.tid);
	if (stat(path, &namespace) || ut_stat_mapped(s->reader.pid, r, &file) || !(file.stx_mask & STATX_BTIME))
		return 0;
	out->namespace = namespace.st_ino;
	out->made_s = file.stx_btime.tv_sec;
	out->made_ns = file.stx_btime.tv_nsec;
	return 1;
}

static int is_same(const ut_claim *a, const ut_claim *b)
{
	return a->inode == b->inode && a->major == b->major && a->minor == b->minor && a->segment == b->segment &&
	       a->namespace == b->namespace && a->made_s == b->made_s && a->made_ns == b->made_ns;
}

static int note_elsewhere(ut_space *s, ut_region *r, const ut_claim *c)
{
	ut_harvest *h = &s->harvest;
	ut_elsewhere there = {r->start, r->end, c->address + (r->offset - c->offset), c->member};

	TRY(VEC_PUSH(h->elsewhere, h->nelsewhere, h->elsewhere_cap, there));
	r->kind = UT_KIND_ELSEWHERE;
	/* What this member has stored of it so far is not what is to be found here any more. */
	if (!ut_stood_before(s, r))
		TRY(runs_push(&h->all.fresh, r->start, r->end));
	return 1;
}

int ut_is_elsewhere(ut_space *s, ut_region *r)
{
	ut_claims *c = s->claims;
	ut_claim own = {.inode = r->inode, .offset = r->offset, .end = r->offset + (r->end - r->start), .address = r->start,
			.major = r->major, .minor = r->minor, .member = s->member,
			.segment = ut_maps_is_segment(&s->maps, r)};

	if (r->kind != UT_KIND_SHARED || !r->in_memory)
		return 0;
	if (own.segment && !identify_segment(s, r, &own))
		return 0;
	for (size_t i = 0; i < c->n; i++) {
		const ut_claim *v = &c->v[i];

		if (is_same(v, &own) && v->offset <= own.offset && own.end <= v->end && v->member != s->member)
			return note_elsewhere(s, r, v);
	}
	return sees_all(s, r) ? VEC_PUSH(c->v, c->n, c->cap, own) : 0;
}

void ut_space_join(ut_space *s, ut_claims *claims, int member)
{
	s->claims = claims;
	s->member = member;
}
