/* Sorted lists of address ranges. */
#ifndef UT_RUNS_H
#define UT_RUNS_H
#include <stddef.h>
#include <stdint.h>

typedef struct {
	uint64_t start, end; /* bytes, page aligned, end exclusive */
} ut_run;

typedef struct {
	ut_run *v;
	size_t n, cap;
} ut_runs;

static inline uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The index of the first of n sorted ranges that ends after `addr`. Each has `size` bytes and begins with a
 * ut_run. */
static inline size_t ut_first_after(const void *ranges, size_t n, size_t size, uint64_t addr)
{
	size_t low = 0, high = n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (((const ut_run *)((const char *)ranges + middle * size))->end <= addr)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Append; a range that touches the last one is merged into it. 0 or -ENOMEM. */
int runs_push(ut_runs *r, uint64_t start, uint64_t end);
/* `runs_push` each range of `from`. */
int runs_append(ut_runs *to, const ut_runs *from);
/* Sort and merge in place. */
void runs_normalise(ut_runs *r);
/* Whether `addr` is in one of the ranges, which are normalised. */
int runs_have(const ut_runs *r, uint64_t addr);
/* Append the parts of `from` that lie in [start, end). `from` is normalised. */
int runs_clip(ut_runs *to, const ut_runs *from, uint64_t start, uint64_t end);
/* Append the ranges of `a` without those of `b`, both normalised. */
int runs_minus(ut_runs *to, const ut_runs *a, const ut_runs *b);
uint64_t runs_bytes(const ut_runs *r);
void runs_free(ut_runs *r);
/* Move `b` to `a`; `b` gets the memory of `a`, and is empty. */
static inline void runs_take(ut_runs *a, ut_runs *b)
{
	ut_runs old = *a;

	*a = *b;
	*b = old;
	b->n = 0;
}
/* A list that is freed when its scope ends. */
#define AUTO_RUNS __attribute__((cleanup(runs_free))) ut_runs
#endif
