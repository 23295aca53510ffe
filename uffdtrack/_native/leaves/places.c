#include "places.h"

#include <errno.h>
#include <string.h>

#include "mm.h"

void ut_places_fill(uint8_t *to, const int64_t *places, size_t n, const uint8_t *from)
{
	for (size_t i = 0; i < n; i++)
		memcpy(to + places[i] * UT_PAGE, from + i * UT_PAGE, UT_PAGE);
}

/* The first that is not below `page`, from `low` on. Memory is mostly without gaps, so it is mostly where it would be then. */
static size_t find(const uint64_t *pages, size_t low, size_t n, uint64_t page)
{
	size_t high = n;

	if (low < n && page >= pages[low]) {
		uint64_t at = low + (page - pages[low]);

		if (at < n && pages[at] == page)
			return at;
		if (at < n)
			high = at; /* numbers differ by 1 at least */
	}
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (pages[middle] < page)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

int64_t ut_places_of(const uint64_t *pages, const int64_t *places, size_t n, const uint64_t *wanted, size_t nwanted,
		     int64_t *out)
{
	size_t at = 0;
	int64_t found = 0;

	for (size_t i = 0; i < nwanted; i++) {
		if (i && wanted[i] <= wanted[i - 1])
			return -EINVAL;
		at = find(pages, at, n, wanted[i]);
		out[i] = at < n && pages[at] == wanted[i] ? places[at] : -1;
		found += out[i] >= 0;
	}
	return found;
}

size_t ut_places_exchange(const uint64_t *pages, int64_t *places, size_t n, const uint64_t *later,
			  int64_t *later_places, size_t nlater, int64_t *room)
{
	size_t known = 0, at = 0;

	for (size_t i = 0; i < nlater; i++) {
		at = find(pages, at, n, later[i]);
		room[i] = at;
		known += at < n && pages[at] == later[i];
	}
	for (size_t i = 0; known == nlater && i < nlater; i++) {
		int64_t before = places[room[i]];

		places[room[i]] = later_places[i];
		later_places[i] = before;
	}
	return known;
}
