/* Pages of a stopped process against what files hold for them. */
#ifndef UT_COMPARE_H
#define UT_COMPARE_H
#include <stddef.h>
#include <stdint.h>

#include "runs.h"

/* Where the contents of a page are: an open file and a place in it; fd -1 are zeros. */
typedef struct {
	int64_t fd, offset;
} ut_place;

enum {
	UT_DIFFERS = 1,
	UT_UNREADABLE = 2, /* has no contents (behind its file's end, a guard page): compared as zeros */
};

/* Read the contents of n pages, one behind the other. -ENODATA: a file is too short. */
int ut_read_places(const ut_place *places, size_t n, uint8_t *out);
/* Compare pages of a process, by its open /proc/PID/mem, with places; out[i] is of the enum above. By as many threads
 * as there are processors. `tid`: a thread of it, where nobody shares its pages (remote.h); else 0. */
int ut_compare(int mem, int tid, const uint64_t *pages, const ut_place *places, size_t n, uint8_t *out);
/* Write n pages, whose contents stand one behind the other; returns how many were before one could not be written. */
int ut_write_pages(int mem, const uint64_t *pages, const uint8_t *contents, size_t n);
/* The pages of a range that exist, by an open pagemap; `own` has not those that are pages of a file. */
int ut_exist(int pagemap, uint64_t start, uint64_t end, ut_runs *any, ut_runs *own);
#endif
