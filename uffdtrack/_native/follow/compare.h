/* Compare pages of a stopped process with contents in files. */
#ifndef UT_COMPARE_H
#define UT_COMPARE_H
#include <stddef.h>
#include <stdint.h>

#include "runs.h"

/* Where the contents of a page are: an open file and an offset; fd -1: zeros. */
typedef struct {
	int64_t fd, offset;
} ut_place;

enum {
	UT_DIFFERS = 1,
	UT_UNREADABLE = 2, /* has no contents (past its file's end, a guard page): compared as zeros */
};

/* Read the contents of n pages, back to back. -ENODATA: a file is too short. */
int ut_read_places(const ut_place *places, size_t n, uint8_t *out);
/* Compare pages of a process, by its open /proc/PID/mem, with places, on up to UT_SHARES processors; out[i]
 * is of the enum above. `tid`: a thread of it, if no other process shares its pages (ut_is_alone); else 0.
 * `held`: NULL, or it gets what the process has in pages that differ, each at its place among the n. */
int ut_compare(int mem, int tid, const uint64_t *pages, const ut_place *places, size_t n, uint8_t *out, uint8_t *held);
/* The same of copies of pages, back to back. */
int ut_compare_copies(const uint8_t *copies, const ut_place *places, size_t n, uint8_t *out);
/* Write n pages, whose contents are back to back; returns how many it wrote before one that it could not.
 * `tid`: a thread of the process; 0: none is known. */
int ut_write_pages(int mem, int tid, const uint64_t *pages, const uint8_t *contents, size_t n);
/* Find the pages of a range that exist, by an open pagemap; `own` leaves out pages of a file. */
int ut_exist(int pagemap, uint64_t start, uint64_t end, ut_runs *any, ut_runs *own);
#endif
