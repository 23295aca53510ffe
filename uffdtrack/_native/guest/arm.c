#include "arm.h"
#include "mm.h"

int ut_arm(int uffd, uint64_t base, uint64_t bytes)
{
	TRY(ut_register(uffd, base, bytes, UFFDIO_REGISTER_MODE_WP));
	return ut_protect(uffd, base, bytes, UT_TRAP);
}

void ut_let_go(const ut_mm *mm)
{
	ut_unregister(mm->uffd, mm->base, mm->tracker->s->npages * UT_PAGE);
}
