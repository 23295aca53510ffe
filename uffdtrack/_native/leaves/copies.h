/* Pages against earlier copies of them. */
#ifndef UT_COPIES_H
#define UT_COPIES_H
#include <stddef.h>
#include <stdint.h>

enum {
	UT_STRETCH = 16, /* bytes: so finely we look where a page differs */
	UT_STRETCHES = 4096 / UT_STRETCH,
	UT_DIFFERENCE = UT_STRETCHES / 8 + 4096, /* bytes of the longest difference */
	UT_NOT_CLOSE = 0xffff,                   /* not compared, or too much differs */
};

/* Compare n pages, back to back, with copies: `old[i]` is a place in `copies`, or -1. If at most `limit` stretches
 * differ, `differing[i]` says how many, and `checks[i]` is the XXH64 (seed 0) of the page; else UT_NOT_CLOSE. If it is
 * any, a difference is appended to `out`, which has room for n of the longest: a bit for each stretch, the lowest of
 * the first byte first, then the XOR of those that differ. The page becomes the copy in place `keep[i]`, which is
 * `old[i]` where there is one; -1: none. Returns how many bytes were appended. */
int64_t ut_differences(const uint8_t *pages, size_t n, uint8_t *copies, const int64_t *old, const int64_t *keep,
		       unsigned int limit, uint8_t *out, uint16_t *differing, uint64_t *checks);
/* XOR the difference at `from` into a page; NULL: none. Returns where it ends; NULL: that is behind `end`, and a part of
 * it may be in the page. */
const uint8_t *ut_xor_difference(uint8_t *page, const uint8_t *from, const uint8_t *end);
/* XOR n differences, back to back, into the pages `rows` of `to`; -1: none. -EINVAL: they are not `size` bytes. */
int ut_xor_differences(uint8_t *to, const int64_t *rows, size_t n, const uint8_t *from, size_t size);
/* Make n copies what the pages are; `rows`, with room for n, gets those that differed. Returns how many did. */
size_t ut_copy_changed(const uint8_t *pages, size_t n, uint8_t *copies, int64_t *rows);
/* The XXH64, seed 0, of a page; `next`, if it is not NULL, is fetched meanwhile. */
uint64_t ut_page_check(const uint8_t *page, const uint8_t *next);
/* The same of the pages `rows` of `pages`. */
void ut_page_checks(const uint8_t *pages, const int64_t *rows, size_t n, uint64_t *out);
#endif
