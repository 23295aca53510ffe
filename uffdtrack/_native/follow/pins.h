/* Whether something may write memory of a process by no page table of its own: what it has pinned for io_uring, or a
 * device. */
#ifndef UT_PINS_H
#define UT_PINS_H
#include "maps.h"

/* 1: it has a descriptor by which it may have pinned memory, or we cannot know. A microsecond for each descriptor. */
int ut_may_pin(int pid);
/* 1: it maps what belongs to such a descriptor. */
int ut_maps_pinning(const ut_maps *m);
#endif
