/* Small anonymous memory is not registered, but compared.
 *
 * The kernel merges no memory that is registered with memory that is not. What is mapped beside registered memory stays
 * a mapping of its own, for good if it is written before it is registered too, since it has an anon_vma of its own then:
 * mremap(2) over both says EFAULT, and a heap that grows would take one mapping more for each harvest, up to
 * vm.max_map_count. Left alone, pieces merge with those that come later, and are registered as one when they are large. */
#include "methods.h"

#include <string.h>

#define SMALL (512ul << 10) /* is compared in 0.1 ms */
#define SMALL_IN_ALL 4      /* times that */

/* 1: a mapping, which is under traps as a whole or not at all, is. sync: the first page is asked for its trap again;
 * where there is no page, that does nothing. */
static int is_under_traps(ut_space *s, const ut_region *r)
{
	return !(s->sync ? ut_protect(s->uffd, r->start, UT_PAGE, UT_TRAP) : ut_is_registered(s, r->start));
}

/* What may become one mapping with this one: what touches it and was not registered before. */
static int may_merge(const ut_space *s, const ut_region *a, const ut_region *b, const ut_region *r)
{
	return a->end == b->start && r->kind == UT_KIND_ANON &&
	       ((s->harvest.flags & UT_FULL) || !ut_count_before(s, r, 0));
}

/* How large that is in all, up to `enough`. */
static uint64_t size_in_all(const ut_space *s, const ut_region *r, uint64_t enough)
{
	const ut_region *first = s->maps.regions, *last = first + s->maps.n - 1;
	uint64_t size = r->end - r->start;

	for (const ut_region *a = r; size <= enough && a > first && may_merge(s, a - 1, a, a - 1); a--)
		size += a[-1].end - a[-1].start;
	for (const ut_region *a = r; size <= enough && a < last && may_merge(s, a, a + 1, a + 1); a++)
		size += a[1].end - a[1].start;
	return size;
}

/* The nearer the process is to its limit of mappings, the larger is what counts as small. Writes that are limited
 * (--max-dirty) have to be counted, so nothing is left alone then. A stack merges with nothing. */
int ut_leave_alone(ut_space *s, const ut_region *r)
{
	uint64_t size = r->end - r->start, small = SMALL;

	if (s->max_maps)
		small <<= min64(8 * s->maps.n / s->max_maps, 8);
	if (r->kind != UT_KIND_ANON || size > small || s->harvest.left_alone + size > SMALL_IN_ALL * small)
		return 0;
	if ((s->watch && s->watch->limit) || !strncmp(s->maps.text + r->name, "[stack]", 7))
		return 0;
	if (size_in_all(s, r, small) > small || is_under_traps(s, r))
		return 0;
	s->harvest.left_alone += size;
	return 1;
}

int ut_follow_alone(ut_space *s, ut_region *r)
{
	TRY(ut_follow_compared(s, r));
	s->harvest.part.compared = 0; /* by choice, not since traps would tell too little */
	return 0;
}
