#include "cleanup.h"
#include "compat.h"
#include "radix.h"
#include "touched.h"

#include <errno.h>
#include <string.h>

enum {
	FIRST = 4096,
	MOST_IDLE = 1 << 14, /* entries of a table that is nearly empty: it costs each stop that it is looked through */
	PAGE_BITS = 35,      /* of a page's number: addresses have 47 */
};

UT_RADIX(sort_pages, uint64_t)

static size_t slot(const uint64_t *table, size_t cap, uint64_t key)
{
	size_t at = (key * 0x9e3779b97f4a7c15ull) >> 20 & (cap - 1);

	while (table[at] && table[at] != key)
		at = (at + 1) & (cap - 1);
	return at;
}

static int grow_touched(ut_touched *t)
{
	size_t cap = t->cap ? t->cap * 2 : FIRST;
	uint64_t *v = calloc(cap, sizeof(*v));

	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < t->cap; i++)
		if (t->table[i])
			v[slot(v, cap, t->table[i])] = t->table[i];
	free(t->table);
	t->table = v;
	t->cap = cap;
	return 0;
}

int ut_touched_open(ut_touched *t)
{
	*t = (ut_touched){0};
	return grow_touched(t);
}

int ut_touched_add(ut_touched *t, uint64_t page)
{
	size_t at;

	if (t->n * 2 >= t->cap)
		TRY(grow_touched(t));
	at = slot(t->table, t->cap, page + 1);
	t->n += !t->table[at];
	t->table[at] = page + 1;
	return 0;
}

int ut_touched_has(const ut_touched *t, uint64_t page)
{
	return !!t->table[slot(t->table, t->cap, page + 1)];
}

static void empty(ut_touched *t)
{
	ut_touched small;

	if (t->cap > MOST_IDLE && t->n * 8 < t->cap && !ut_touched_open(&small)) {
		ut_touched_close(t);
		*t = small;
		return;
	}
	memset(t->table, 0, t->cap * sizeof(*t->table));
	t->n = 0;
}

int ut_touched_take(ut_touched *t, ut_runs *out)
{
	AUTO_FREE uint64_t *room = malloc((t->n * 2 + 1) * sizeof(*room));
	uint64_t *sorted;
	size_t n = 0;

	out->n = 0;
	if (!room)
		return -ENOMEM;
	for (size_t i = 0; i < t->cap && n < t->n; i++)
		if (t->table[i])
			room[n++] = t->table[i] - 1;
	empty(t);
	sorted = sort_pages(room, room + n, n, PAGE_BITS);
	for (size_t i = 0; i < n; i++)
		TRY(runs_push(out, sorted[i] * UT_PAGE, (sorted[i] + 1) * UT_PAGE));
	return 0;
}

void ut_touched_close(ut_touched *t)
{
	free(t->table);
	*t = (ut_touched){0};
}
