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

static uint64_t word_at(const uint8_t *at)
{
	uint64_t word;

	memcpy(&word, at, sizeof(word));
	return word;
}

/*
 * XXH64 (doc/xxhash_spec.md of the xxHash project): of 4096 bytes no tail is left to consume.
 *
 * Four variables and not an array, which GCC at -O2 leaves in memory: that takes four times as long.
 */
uint64_t ut_page_check(const uint8_t *page, const uint8_t *next)
{
	uint64_t a = P1 + P2, b = P2, c = 0, d = -P1, h;

	for (size_t i = 0; i < UT_PAGE; i += LINE) {
		if (next)
			__builtin_prefetch(next + i);
		for (const uint8_t *at = page + i; at < page + i + LINE; at += 32) {
			a = round64(a, word_at(at));
			b = round64(b, word_at(at + 8));
			c = round64(c, word_at(at + 16));
			d = round64(d, word_at(at + 24));
		}
	}
	h = turn(a, 1) + turn(b, 7) + turn(c, 12) + turn(d, 18);
	h = (h ^ round64(0, a)) * P1 + P4;
	h = (h ^ round64(0, b)) * P1 + P4;
	h = (h ^ round64(0, c)) * P1 + P4;
	h = (h ^ round64(0, d)) * P1 + P4;
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
	uint64_t differing = 0;

	for (int i = 0; i < LINE; i += 8)
		differing |= word_at(page + i) ^ word_at(copy + i);
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
				checks[i] = ut_page_check(pages, NULL);
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

const uint8_t *ut_xor_difference(uint8_t *page, const uint8_t *from, const uint8_t *end)
{
	const uint8_t *bits = from;

	if (end - from < UT_STRETCHES / 8)
		return NULL;
	from += UT_STRETCHES / 8;
	for (int word = 0; word < UT_STRETCHES / 64; word++) {
		uint64_t left;

		memcpy(&left, bits + word * 8, 8);
		if (end - from < __builtin_popcountll(left) * UT_STRETCH)
			return NULL;
		if (!page)
			from += __builtin_popcountll(left) * UT_STRETCH;
		for (; page && left; left &= left - 1, from += UT_STRETCH)
			xor_stretch(page + (word * 64 + __builtin_ctzll(left)) * UT_STRETCH, from);
	}
	return from;
}

int ut_xor_differences(uint8_t *to, const int64_t *rows, size_t n, const uint8_t *from, size_t size)
{
	const uint8_t *end = from + size;

	for (size_t i = 0; i < n && from; i++)
		from = ut_xor_difference(rows[i] >= 0 ? to + rows[i] * UT_PAGE : NULL, from, end);
	return from == end ? 0 : -EINVAL;
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
		out[i] = ut_page_check(pages + rows[i] * UT_PAGE, i + 1 < n ? pages + rows[i + 1] * UT_PAGE : NULL);
}
