#include "extents.h"

#include <errno.h>
#include <string.h>

#include "copies.h"
#include "mm.h"

/* NULL: it is in none. */
static uint8_t *page_at(const ut_extent *of, size_t nof, uint64_t page)
{
	for (; nof; nof--, of++)
		if (page - of->first < of->pages)
			return of->at + (page - of->first) * UT_PAGE;
	return NULL;
}

int ut_have_pages(const ut_extent *of, size_t nof, const uint64_t *pages, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!page_at(of, nof, pages[i]))
			return 0;
	return 1;
}

int64_t ut_take_pages(const ut_extent *of, size_t nof, const uint64_t *pages, size_t n, uint8_t *to, uint8_t *full)
{
	static const uint8_t zeros[UT_PAGE];
	int64_t taken = 0;

	for (size_t i = 0; i < n; i++) {
		const uint8_t *page = page_at(of, nof, pages[i]);

		if (!page)
			return -EINVAL;
		full[i] = !!memcmp(page, zeros, UT_PAGE);
		if (full[i])
			memcpy(to + taken++ * UT_PAGE, page, UT_PAGE);
	}
	return taken;
}

void ut_put_pages(const ut_extent *of, size_t nof, const uint64_t *pages, size_t n, const uint8_t *from,
		  const int64_t *places)
{
	for (size_t i = 0; i < n; i++) {
		uint8_t *page = page_at(of, nof, pages[i]);

		if (places[i] >= 0)
			memcpy(page, from + places[i], UT_PAGE);
		else
			memset(page, 0, UT_PAGE);
	}
}

int64_t ut_xor_pages(const ut_extent *of, size_t nof, const uint64_t *pages, const uint64_t *checks, size_t n,
		     const uint8_t *from, size_t size)
{
	const uint8_t *at = from, *end = from + size, *next;

	if (!ut_have_pages(of, nof, pages, n))
		return -EINVAL;
	for (size_t i = 0; i < n && size && at; i++)
		at = ut_xor_difference(NULL, at, end);
	if (at != end)
		return -EINVAL;
	at = from;
	next = n ? page_at(of, nof, pages[0]) : NULL;
	for (size_t i = 0; i < n; i++) {
		const uint8_t *page = next;

		next = i + 1 < n ? page_at(of, nof, pages[i + 1]) : NULL;
		if (size)
			at = ut_xor_difference((uint8_t *)page, at, end);
		if (!checks || ut_page_check(page, next) == checks[i])
			continue;
		ut_xor_pages(of, nof, pages, NULL, i + 1, from, size ? at - from : 0);
		return i;
	}
	return n;
}
