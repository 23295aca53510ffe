#include "compat.h"
#include "engine.h"
#include "member.h"
#include "mm.h"

const ut_engine_ops *ut_engine(int engine)
{
	static const ut_engine_ops *const table[UT_ENGINES] = {
		[UT_RING] = &ut_engine_ring, [UT_SCAN] = &ut_engine_scan,
		[UT_SYNC] = &ut_engine_sync, [UT_INLINE] = &ut_engine_inline,
	};

	return table[engine];
}

uint64_t ut_engine_features(int engine)
{
	return UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | ut_engine(engine)->features;
}

int ut_own_uffd(int engine)
{
	uint64_t features = ut_engine_features(engine);
	int fd = ut_uffd_make(0, features, NULL);

	return fd == -EPERM ? ut_uffd_make(1, features, NULL) : fd;
}

int ut_member_open(ut_shared *s, uint8_t *base, int mm, int uffd, int lifeline)
{
	const ut_engine_ops *ops = ut_engine(s->engine);

	if (ops->handlers)
		TRY(ops->handlers());
	return ut_member_take(s, base, ops->handlers ? s->npages * UT_PAGE : 0, mm, uffd, lifeline);
}
