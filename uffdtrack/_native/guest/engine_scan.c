/* The scan engine: the kernel clears a trap by itself, and PAGEMAP_SCAN finds and rearms what it has cleared. */
#include "compat.h"
#include "engine.h"

const ut_engine_ops ut_engine_scan = {
	.features = UFFD_FEATURE_WP_ASYNC,
	.async = 1,
	.scans = 1,
	.host_wrote = ut_counted_host_wrote,
	.not_full = ut_counted_not_full,
};
