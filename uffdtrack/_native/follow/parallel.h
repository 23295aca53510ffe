/* Work on the memory of a process that stands, whose processors are idle meanwhile. */
#ifndef UT_PARALLEL_H
#define UT_PARALLEL_H
#include <stddef.h>
#include <stdint.h>

enum { UT_SHARES = 4 }; /* at most */

/* How many threads are worth their price: one for each `least` of the amount, and for each processor. */
int ut_shares(uint64_t amount, uint64_t least);
/* Call `work` on each of n shares of that size in bytes, side by side. Where a thread cannot be had the caller does its
 * share. The first error that one has returned, or 0. */
int ut_parallel(int (*work)(void *share), void *shares, size_t size, int n);
#endif
