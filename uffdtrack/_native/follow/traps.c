/* Traps of pages of an attached process. */
#include "methods.h"

#define ARM_BYTES (256ul << 20) /* is armed between two looks at the clock */

int ut_is_registered(ut_space *s, uint64_t page)
{
	ut_scan scan = UT_SCAN_OF(s, page, page + UT_PAGE, .flags = UT_SCAN_CHECK_WPASYNC, UT_SCAN_WRITTEN);
	long n = ut_scan_next(&scan);

	return n < 0 ? n : 0;
}

int ut_set_traps(const ut_space *s, const ut_runs *runs, int trap)
{
	for (size_t i = 0; i < runs->n; i++)
		for (uint64_t at = runs->v[i].start, n; at < runs->v[i].end; at += n) {
			n = min64(runs->v[i].end - at, ARM_BYTES);
			TRY(ut_protect(s->uffd, at, n, trap));
			TRY(ut_reader_overdue(&s->reader));
		}
	return 0;
}
