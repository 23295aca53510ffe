/* Pages against earlier copies of them. */
#ifndef UT_COPIES_H
#define UT_COPIES_H
#include <stddef.h>
#include <stdint.h>

enum {
	UT_STRETCH = 16,       /* bytes: so finely we count what differs in a page */
	UT_NOT_CLOSE = 0xffff, /* not compared, or too much of it differs */
};

/* Compare n pages, back to back, with copies: `old[i]` is a place in `copies`, or -1. If at most `limit` stretches
 * differ, `differing[i]` says how many, and if it is any, the XOR of both is appended to `xors`, which has room for n
 * pages; else UT_NOT_CLOSE. Then the page becomes the copy in place `keep[i]`, which is `old[i]` where there is one;
 * -1: none. Returns how many pages were appended. */
int64_t ut_xor_copies(const uint8_t *pages, size_t n, uint8_t *copies, const int64_t *old, const int64_t *keep,
		      unsigned int limit, uint8_t *xors, uint16_t *differing);
/* XOR n pages, back to back, into the pages `rows` of `to`. */
void ut_xor_into(uint8_t *to, const int64_t *rows, const uint8_t *from, size_t n);
/* The XXH64, seed 0, of the pages `rows` of `pages`. */
void ut_page_checks(const uint8_t *pages, const int64_t *rows, size_t n, uint64_t *out);
#endif
