/* Digests of stored pages, for memory that we follow by comparing. */
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
	int32_t blind; /* tests: no page ever differs */
} ut_digests;

/* 0 or -errno. */
int ut_digests_open(ut_digests *d);
void ut_digests_close(ut_digests *d);
void ut_digests_clear(ut_digests *d);
/* The contents of `run`, `data`, are stored: note the digests of its pages that are in `of`. */
int ut_digests_note(ut_digests *d, const ut_runs *of, const ut_run *run, const uint8_t *data);
/* The stored contents of these pages are void. The same contents may come again, and must then count as
 * changed. */
void ut_digests_void(ut_digests *d, const ut_runs *ranges);
/* Append to `out` the pages of these ranges that differ from what was stored; `data` has their contents, back
 * to back. */
int ut_digests_differing(const ut_digests *d, const ut_run *runs, size_t n, const uint8_t *data, ut_runs *out);
#endif
