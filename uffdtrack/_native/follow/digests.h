/* Digests of the contents of pages that were stored, for those that are followed by comparing. */
#ifndef UT_DIGESTS_H
#define UT_DIGESTS_H
#include "runs.h"

typedef struct {
	uint64_t page; /* number + 1; 0: free slot */
	uint64_t hash[2]; /* both 0: void */
} ut_digest;

typedef struct {
	ut_digest *v; /* open addressing */
	size_t n, cap;
	uint64_t seed[8];
	int32_t blind; /* tests: all pages are as they were stored */
} ut_digests;

/* 0 or -errno. */
int ut_digests_open(ut_digests *d);
void ut_digests_close(ut_digests *d);
void ut_digests_clear(ut_digests *d);
/* `data` has the contents of `run`, and is stored: note the digests of those of its pages that are in `of`. */
int ut_digests_note(ut_digests *d, const ut_runs *of, const ut_run *run, const uint8_t *data);
/* What is stored of these pages holds no longer. The same contents may come again, and must not pass for what is stored
 * then. */
void ut_digests_void(ut_digests *d, const ut_runs *ranges);
/* Append to `out` the pages of these ranges, whose contents stand one behind the other, that are not as they were
 * stored. */
int ut_digests_differing(const ut_digests *d, const ut_run *runs, size_t n, const uint8_t *data, ut_runs *out);
#endif
