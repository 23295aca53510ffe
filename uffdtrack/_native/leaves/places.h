/* Pages in one piece of memory: each has a place there, the number of a page. */
#ifndef UT_PLACES_H
#define UT_PLACES_H
#include <stddef.h>
#include <stdint.h>

/* The places of `wanted` pages among n sorted ones; -1: it has none. Returns how many have one, or -EINVAL: `wanted` are
 * not sorted, or one is there twice. */
int64_t ut_places_of(const uint64_t *pages, const int64_t *places, size_t n, const uint64_t *wanted, size_t nwanted,
		     int64_t *out);
/* Copy n pages, back to back, each to its place. */
void ut_places_fill(uint8_t *to, const int64_t *places, size_t n, const uint8_t *from);
/* Where all of `later` are among n sorted page numbers, their places are exchanged: `pages` gets those of `later`,
 * which gets those that were there before. Returns how many are; if some are not, nothing is changed. */
size_t ut_places_exchange(const uint64_t *pages, int64_t *places, size_t n, const uint64_t *later,
			  int64_t *later_places, size_t nlater, int64_t *room);
#endif
