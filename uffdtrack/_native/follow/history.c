/* What the last harvest says of a place. */
#include "methods.h"

int ut_is_same_object(const ut_region *a, const ut_region *b)
{
	return a->kind == b->kind && a->inode == b->inode && a->major == b->major &&
	       a->minor == b->minor && a->offset - a->start == b->offset - b->start;
}

_Static_assert(!offsetof(ut_region, start) && offsetof(ut_region, end) == offsetof(ut_run, end), "begins as a ut_run");

static size_t first_after(const ut_maps *m, uint64_t addr)
{
	return ut_first_after(m->regions, m->n, sizeof(*m->regions), addr);
}

int ut_stood_before(const ut_space *s, const ut_region *r)
{
	int seen = 0;

	for (size_t i = first_after(&s->before, r->start); i < s->before.n; i++) {
		const ut_region *b = &s->before.regions[i];

		if (b->start >= r->end)
			break;
		if (!ut_is_same_object(b, r))
			return 0;
		seen = 1;
	}
	return seen;
}

size_t ut_count_before(const ut_space *s, const ut_region *r, int compared)
{
	size_t n = 0;

	for (size_t i = first_after(&s->before, r->start); i < s->before.n; i++) {
		const ut_region *b = &s->before.regions[i];

		if (b->start >= r->end)
			break;
		n += b->kind == r->kind && b->compared == compared;
	}
	return n;
}

void ut_note_registered(ut_space *s)
{
	for (size_t k = 0; k < s->maps.n; k++) {
		ut_region *r = &s->maps.regions[k];

		if (r->kind != UT_KIND_FILE)
			continue;
		for (size_t i = first_after(&s->before, r->start); i < s->before.n; i++) {
			if (s->before.regions[i].start >= r->end)
				break;
			r->registered |= s->before.regions[i].registered;
		}
	}
}

/* There is none of what was under traps. Of anonymous memory one piece is as good as another: all that can be there is
 * zeros, or a page whose contents are looked at. */
int ut_is_known(const ut_space *s, const ut_region *r)
{
	size_t end = first_after(&s->before, r->end - 1), n = ut_count_before(s, r, 1);

	if (r->kind != UT_KIND_ANON)
		return n && !ut_count_before(s, r, 0) && ut_stood_before(s, r);
	if (end < s->before.n && s->before.regions[end].start < r->end)
		end++;
	return n && n == end - first_after(&s->before, r->start);
}

static int ranges_of(const ut_maps *m, ut_runs *out)
{
	for (size_t i = 0; i < m->n; i++)
		TRY(runs_push(out, m->regions[i].start, m->regions[i].end));
	return 0;
}

int ut_note_unmapped(const ut_space *s, ut_runs *fresh)
{
	AUTO_RUNS now = {0}, then = {0};

	TRY(ranges_of(&s->before, &then));
	TRY(ranges_of(&s->maps, &now));
	return runs_minus(fresh, &then, &now);
}
