#include "copies.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "mm.h"

enum {
	LINE = 64, /* bytes of a cache line */
};

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

/* NULL: there is none. */
static const uint8_t *next_copy(const uint8_t *copies, const int64_t *old, size_t n)
{
	return n && old[0] >= 0 ? copies + old[0] * UT_PAGE : NULL;
}

static bool is_same_line(const uint8_t *page, const uint8_t *copy)
{
	uint64_t x[LINE / 8], y[LINE / 8], differing = 0;

	memcpy(x, page, LINE);
	memcpy(y, copy, LINE);
	for (int i = 0; i < LINE / 8; i++)
		differing |= x[i] ^ y[i];
	return !differing;
}

/*
 * Append what differs to `out`, and put it into the copy, until more than `limit` stretches do; returns how many.
 * Copies are scattered, and long out of the caches: `next`, the next one, is fetched meanwhile.
 */
static unsigned int difference(const uint8_t *page, uint8_t *copy, const uint8_t *next, unsigned int limit,
			       uint8_t *out)
{
	uint8_t *to = out + UT_STRETCHES / 8;
	unsigned int count = 0;

	memset(out, 0, UT_STRETCHES / 8);
	for (int at = 0; at < UT_PAGE && count <= limit; at += LINE) {
		if (next)
			__builtin_prefetch(next + at);
		if (is_same_line(page + at, copy + at))
			continue;
		for (int i = at; i < at + LINE; i += UT_STRETCH) {
			uint64_t x[2], y[2];

			memcpy(x, page + i, UT_STRETCH);
			memcpy(y, copy + i, UT_STRETCH);
			if (x[0] == y[0] && x[1] == y[1])
				continue;
			memcpy(copy + i, x, UT_STRETCH);
			x[0] ^= y[0];
			x[1] ^= y[1];
			memcpy(to, x, UT_STRETCH);
			to += UT_STRETCH;
			out[i / UT_STRETCH / 8] |= 1 << i / UT_STRETCH % 8;
			count++;
		}
	}
	return count;
}

int64_t ut_differences(const uint8_t *pages, size_t n, uint8_t *copies, const int64_t *old, const int64_t *keep,
		       unsigned int limit, uint8_t *out, uint16_t *differing, uint64_t *checks)
{
	uint8_t *end = out;

	for (size_t i = 0; i < n; i++, pages += UT_PAGE) {
		differing[i] = UT_NOT_CLOSE;
		if (old[i] >= 0) {
			const uint8_t *next = next_copy(copies, old + i + 1, n - i - 1);
			unsigned int count = difference(pages, copies + old[i] * UT_PAGE, next, limit, end);

			if (count <= limit) {
				differing[i] = count;
				checks[i] = xxh64(pages);
				if (count)
					end += UT_STRETCHES / 8 + count * UT_STRETCH;
				continue;
			}
		}
		if (keep[i] >= 0)
			memcpy(copies + keep[i] * UT_PAGE, pages, UT_PAGE);
	}
	return end - out;
}

static inline void xor_stretch(uint8_t *at, const uint8_t *from)
{
	uint64_t x[2], y[2];

	memcpy(x, from, UT_STRETCH);
	memcpy(y, at, UT_STRETCH);
	y[0] ^= x[0];
	y[1] ^= x[1];
	memcpy(at, y, UT_STRETCH);
}

int ut_xor_differences(uint8_t *to, const int64_t *rows, size_t n, const uint8_t *from, size_t size)
{
	const uint8_t *end = from + size;

	for (size_t i = 0; i < n; i++) {
		const uint8_t *bits = from;

		if (end - from < UT_STRETCHES / 8)
			return -EINVAL;
		from += UT_STRETCHES / 8;
		for (int word = 0; word < UT_STRETCHES / 64; word++) {
			uint64_t left;

			memcpy(&left, bits + word * 8, 8);
			if (end - from < __builtin_popcountll(left) * UT_STRETCH)
				return -EINVAL;
			for (; left; left &= left - 1, from += UT_STRETCH) {
				if (rows[i] >= 0)
					xor_stretch(to + rows[i] * UT_PAGE + (word * 64 + __builtin_ctzll(left)) * UT_STRETCH, from);
			}
		}
	}
	return from == end ? 0 : -EINVAL;
}

int64_t ut_take_pages(const ut_extent *of, size_t nof, const uint64_t *pages, size_t n, uint8_t *to, uint8_t *full)
{
	static const uint8_t zeros[UT_PAGE];
	const ut_extent *end = of + nof;
	int64_t taken = 0;

	for (size_t i = 0; i < n; i++) {
		const uint8_t *page;

		while (of < end && pages[i] - of->first >= of->pages)
			of++;
		if (of == end)
			return -EINVAL;
		page = of->at + (pages[i] - of->first) * UT_PAGE;
		full[i] = !!memcmp(page, zeros, UT_PAGE);
		if (full[i])
			memcpy(to + taken++ * UT_PAGE, page, UT_PAGE);
	}
	return taken;
}

size_t ut_copy_changed(const uint8_t *pages, size_t n, uint8_t *copies, int64_t *rows)
{
	size_t changed = 0;

	for (size_t i = 0; i < n; i++) {
		if (!memcmp(pages + i * UT_PAGE, copies + i * UT_PAGE, UT_PAGE))
			continue;
		memcpy(copies + i * UT_PAGE, pages + i * UT_PAGE, UT_PAGE);
		rows[changed++] = i;
	}
	return changed;
}

void ut_page_checks(const uint8_t *pages, const int64_t *rows, size_t n, uint64_t *out)
{
	for (size_t i = 0; i < n; i++)
		out[i] = xxh64(pages + rows[i] * UT_PAGE);
}
