#include "copies.h"

#include <string.h>

#include "mm.h"

static const uint64_t P1 = 0x9e3779b185ebca87, P2 = 0xc2b2ae3d27d4eb4f, P3 = 0x165667b19e3779f9,
		      P4 = 0x85ebca77c2b2ae63;

static uint64_t turn(uint64_t x, int by)
{
	return x << by | x >> (64 - by);
}

static uint64_t round64(uint64_t state, uint64_t word)
{
	return turn(state + word * P2, 31) * P1;
}

/* XXH64 of 4096 bytes, seed 0 (doc/xxhash_spec.md of the xxHash project): no tail is left to consume. */
static uint64_t xxh64(const uint8_t *page)
{
	uint64_t state[4] = {P1 + P2, P2, 0, -P1}, words[4], h;

	for (size_t i = 0; i < UT_PAGE; i += sizeof(words)) {
		memcpy(words, page + i, sizeof(words));
		for (int k = 0; k < 4; k++)
			state[k] = round64(state[k], words[k]);
	}
	h = turn(state[0], 1) + turn(state[1], 7) + turn(state[2], 12) + turn(state[3], 18);
	for (int k = 0; k < 4; k++)
		h = (h ^ round64(0, state[k])) * P1 + P4;
	h += UT_PAGE;
	h = (h ^ h >> 33) * P2;
	h = (h ^ h >> 29) * P3;
	return h ^ h >> 32;
}

/* out = a ^ b; returns how many stretches of it are not 0. */
static unsigned int xor_page(const uint8_t *a, const uint8_t *b, uint8_t *out)
{
	unsigned int differing = 0;

	for (size_t i = 0; i < UT_PAGE; i += UT_STRETCH) {
		uint64_t x[2], y[2];

		memcpy(x, a + i, UT_STRETCH);
		memcpy(y, b + i, UT_STRETCH);
		x[0] ^= y[0];
		x[1] ^= y[1];
		memcpy(out + i, x, UT_STRETCH);
		differing += (x[0] | x[1]) != 0;
	}
	return differing;
}

int64_t ut_xor_copies(const uint8_t *pages, size_t n, uint8_t *copies, const int64_t *old, const int64_t *keep,
		      unsigned int limit, uint8_t *xors, uint16_t *differing)
{
	int64_t appended = 0;

	for (size_t i = 0; i < n; i++, pages += UT_PAGE) {
		differing[i] = UT_NOT_CLOSE;
		if (old[i] >= 0) {
			unsigned int d = xor_page(pages, copies + old[i] * UT_PAGE, xors + appended * UT_PAGE);

			if (!d) {
				differing[i] = 0;
				continue; /* the copy is the page */
			}
			if (d <= limit) {
				differing[i] = d;
				appended++;
			}
		}
		if (keep[i] >= 0)
			memcpy(copies + keep[i] * UT_PAGE, pages, UT_PAGE);
	}
	return appended;
}

void ut_xor_into(uint8_t *to, const int64_t *rows, const uint8_t *from, size_t n)
{
	for (size_t i = 0; i < n; i++, from += UT_PAGE)
		xor_page(to + rows[i] * UT_PAGE, from, to + rows[i] * UT_PAGE);
}

void ut_page_checks(const uint8_t *pages, const int64_t *rows, size_t n, uint64_t *out)
{
	for (size_t i = 0; i < n; i++)
		out[i] = xxh64(pages + rows[i] * UT_PAGE);
}
