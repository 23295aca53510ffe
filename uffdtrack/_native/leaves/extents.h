/* Pages that are in memory of ours, by their numbers. */
#ifndef UT_EXTENTS_H
#define UT_EXTENTS_H
#include <stddef.h>
#include <stdint.h>

typedef struct {
	uint64_t first, pages; /* numbers of pages */
	uint8_t *at;
} ut_extent;

/* Whether each of n pages is in an extent. */
int ut_have_pages(const ut_extent *of, size_t nof, const uint64_t *pages, size_t n);
/* Copy those of n pages that are not zeros to `to`, back to back; they have 1 in `full`. Returns how many, or -EINVAL:
 * one is in no extent. */
int64_t ut_take_pages(const ut_extent *of, size_t nof, const uint64_t *pages, size_t n, uint8_t *to, uint8_t *full);
/* Copy n pages to where they belong, each from its place in `from`, in bytes; -1: zeros. Each is in an extent. */
void ut_put_pages(const ut_extent *of, size_t nof, const uint64_t *pages, size_t n, const uint8_t *from,
		  const int64_t *places);
/* XOR n differences, back to back, into pages; no bytes: they do not change. Returns how many have their check then, if
 * `checks` is not NULL: if not all, then nothing has changed, and the one of that number has another. -EINVAL: the
 * differences are not `size` bytes, or a page is in no extent; nothing has changed. */
int64_t ut_xor_pages(const ut_extent *of, size_t nof, const uint64_t *pages, const uint64_t *checks, size_t n,
		     const uint8_t *from, size_t size);
#endif
