/* Work on the memory of a process that stands: its processors are idle meanwhile. */
#ifndef UT_PARALLEL_H
#define UT_PARALLEL_H
#include <stddef.h>
#include <stdint.h>

enum { UT_SHARES = 4 }; /* at most */

/* How many threads are worth their price: one, and one more for each `least` of the amount, but not more than
 * there are processors. */
int ut_shares(uint64_t amount, uint64_t least);
/* Call `work` on each of n shares of `size` bytes, side by side. If there can be no thread for a share, the
 * caller does it. Returns the first error, or 0. */
int ut_parallel(int (*work)(void *share), void *shares, size_t size, int n);
#endif
