/* Shared memory of several processes that are taken together: one of them stores it. */
#include "methods.h"
#include "tree.h"
#include "vec.h"

#include <linux/magic.h>

void ut_claims_drop(ut_claims *c, int member)
{
	size_t kept = 0;

	for (size_t i = 0; i < c->n; i++)
		if (c->v[i].member != member)
			c->v[kept++] = c->v[i];
	c->n = kept;
}

void ut_claims_free(ut_claims *c)
{
	free(c->v);
	c->v = NULL;
	c->n = c->cap = 0;
}

/* Whether the pages of the object that this process has never touched are found as well: by /proc/PID/map_files, which
 * takes CAP_CHECKPOINT_RESTORE, and not of hugetlbfs (find_in_file, compared.c). */
static int sees_all(const ut_space *s, const ut_region *r)
{
	long type;
	AUTO_FD fd = ut_open_mapped(s->reader.pid, r, &type);

	return fd >= 0 && type == TMPFS_MAGIC;
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
	uint64_t end = r->offset + (r->end - r->start);
	int segment = ut_maps_is_segment(&s->maps, r);

	if (r->kind != UT_KIND_SHARED || !r->in_memory)
		return 0;
	for (size_t i = 0; i < c->n; i++) {
		const ut_claim *v = &c->v[i];

		if (v->inode == r->inode && v->major == r->major && v->minor == r->minor && v->segment == segment &&
		    v->offset <= r->offset && end <= v->end && v->member != s->member)
			return note_elsewhere(s, r, v);
	}
	if (!sees_all(s, r))
		return 0;
	return VEC_PUSH(c->v, c->n, c->cap,
			(ut_claim){r->inode, r->offset, end, r->start, r->major, r->minor, s->member, segment});
}

void ut_space_join(ut_space *s, ut_claims *claims, int member)
{
	s->claims = claims;
	s->member = member;
}
