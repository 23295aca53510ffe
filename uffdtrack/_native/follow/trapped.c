/* Mappings under traps that the kernel takes away by itself, and remembers (WP_ASYNC). */
#include "methods.h"
#include "sabotage.h"

#include <errno.h>

/* A mapping that has come to this place with its traps, which say nothing of what stood here. */
static int was_moved(const ut_space *s, const ut_region *r)
{
	const ut_runs *moved = &s->harvest.news.changes.moved;

	for (size_t i = 0; i < moved->n; i++)
		if (moved->v[i].start < r->end && moved->v[i].end > r->start)
			return 1;
	return 0;
}

static int look_at_region(ut_space *s, const ut_region *r, int fresh)
{
	return (r->kind == UT_KIND_ANON && !s->diff_all ? ut_look_spans : ut_look_pages)(s, r, fresh);
}

/* Arm every page of a mapping that was not registered before.
 *
 * PAGEMAP_SCAN is not enough: it arms only pages without the write-protect bit, and takes the bit for the
 * trap. mremap(2) of a registered mapping drops the registration, of a neighbour it merges with too, and
 * leaves the bits; a write then makes such a page writable with the bit still set. The ioctl looks at no
 * bit. */
static int arm_all(ut_space *s, const ut_region *r)
{
	ut_scan scan = UT_SCAN_OF(s, r->start, r->end, .flags = UT_SCAN_CHECK_WPASYNC, UT_SCAN_POPULATED);
	ut_runs *found = &s->harvest.found;

	TRY(ut_register(s->uffd, r->start, r->end - r->start, UFFDIO_REGISTER_MODE_WP));
	found->n = 0;
	TRY(ut_scan_runs(&scan, found));
	return ut_set_traps(s, found, UT_TRAP);
}

static int arm_first(ut_space *s, ut_region *r)
{
	ut_harvest *h = &s->harvest;
	int64_t t0 = ut_now_ns();
	int err = arm_all(s, r);

	if (!err && (h->flags & UT_RUNNING) && ut_breaks(UT_BREAK_REFUSE))
		err = -EPERM;
	if (!err)
		err = look_at_region(s, r, 1);
	h->arming_ns += ut_now_ns() - t0;
	if (err && (h->flags & UT_RUNNING)) {
		/* It changes right now; the stop will see what it is. What has its trap already, nobody has taken: so it
		 * must not count as under traps. */
		ut_finding_clear(&h->part);
		r->compared = 1;
		err = 0;
	}
	return err ? err : runs_push(&h->part.fresh, r->start, r->end);
}

int ut_follow_trapped(ut_space *s, ut_region *r)
{
	ut_harvest *h = &s->harvest;

	if (!(h->flags & UT_FULL) && !was_moved(s, r) && !ut_count_before(s, r, 1)) {
		int err = look_at_region(s, r, 0);

		/* Not registered (any more): munmap and mmap, mremap, or grown by a mapping of its own. */
		if (err != -EPERM)
			return err;
		ut_finding_clear(&h->part);
	}
	return ut_leave_alone(s, r) ? ut_follow_alone(s, r) : arm_first(s, r);
}

/* A piece that mprotect(2) has cut out of a writable mapping is left unregistered, like the rest of it. If it were
 * registered, it would not merge again when it becomes writable: mremap(2) over all of it would say EFAULT, from Linux
 * 6.17 on after it has moved the pieces before this one. Of those that are readable when we first see them nothing tells
 * that they were cut out, and they are not: most are the loader's relocated data, which nobody moves. */
int ut_follow_read_only_file(ut_space *s, ut_region *r)
{
	if (!r->registered && (!(r->prot & 1) || ut_stood_before(s, r)) && ut_touches_compared(s, r))
		return ut_follow_private_file(s, r);
	r->registered = 1;
	return ut_follow_trapped(s, r);
}
