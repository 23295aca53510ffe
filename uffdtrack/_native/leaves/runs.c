#include "cleanup.h"
#include "runs.h"
#include "vec.h"

int runs_push(ut_runs *r, uint64_t start, uint64_t end)
{
	if (start >= end)
		return 0;
	if (r->n && r->v[r->n - 1].start <= start && start <= r->v[r->n - 1].end) {
		if (end > r->v[r->n - 1].end)
			r->v[r->n - 1].end = end;
		return 0;
	}
	return VEC_PUSH(r->v, r->n, r->cap, (ut_run){start, end});
}

int runs_append(ut_runs *to, const ut_runs *from)
{
	for (size_t i = 0; i < from->n; i++)
		TRY(runs_push(to, from->v[i].start, from->v[i].end));
	return 0;
}

static int by_start(const void *a, const void *b)
{
	const ut_run *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

void runs_normalise(ut_runs *r)
{
	size_t n = 0;
	int sorted = 1;

	for (size_t i = 1; i < r->n && sorted; i++)
		sorted = r->v[i - 1].end < r->v[i].start;
	if (sorted)
		return;
	qsort(r->v, r->n, sizeof(*r->v), by_start);
	for (size_t i = 1; i < r->n; i++) {
		if (r->v[i].start <= r->v[n].end) {
			if (r->v[i].end > r->v[n].end)
				r->v[n].end = r->v[i].end;
		} else {
			r->v[++n] = r->v[i];
		}
	}
	r->n = n + 1;
}

static size_t first_after(const ut_runs *r, uint64_t addr)
{
	return ut_first_after(r->v, r->n, sizeof(*r->v), addr);
}

int runs_have(const ut_runs *r, uint64_t addr)
{
	size_t i = first_after(r, addr);

	return i < r->n && r->v[i].start <= addr;
}

int runs_clip(ut_runs *to, const ut_runs *from, uint64_t start, uint64_t end)
{
	for (size_t i = first_after(from, start); i < from->n && from->v[i].start < end; i++) {
		uint64_t s = from->v[i].start < start ? start : from->v[i].start;
		uint64_t e = from->v[i].end > end ? end : from->v[i].end;

		TRY(runs_push(to, s, e));
	}
	return 0;
}

int runs_minus(ut_runs *to, const ut_runs *a, const ut_runs *b)
{
	size_t j = 0;

	for (size_t i = 0; i < a->n; i++) {
		uint64_t at = a->v[i].start;

		while (j < b->n && b->v[j].end <= at)
			j++;
		for (size_t k = j; k < b->n && b->v[k].start < a->v[i].end; k++) {
			TRY(runs_push(to, at, b->v[k].start));
			if (b->v[k].end > at)
				at = b->v[k].end;
		}
		TRY(runs_push(to, at, a->v[i].end));
	}
	return 0;
}

uint64_t runs_bytes(const ut_runs *r)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < r->n; i++)
		sum += r->v[i].end - r->v[i].start;
	return sum;
}

void runs_free(ut_runs *r)
{
	free(r->v);
	*r = (ut_runs){0};
}
