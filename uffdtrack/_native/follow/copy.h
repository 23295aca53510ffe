/* Copies of another process's memory, taken by all processors where they are large. */
#ifndef UT_COPY_H
#define UT_COPY_H
#include "digests.h"
#include "reader.h"

/* A buffer for copies, mapped with huge pages. */
typedef struct {
	uint8_t *v;
	size_t cap;
} ut_buffer;

/* Room for `bytes`; what was in it is gone where it has to grow. */
int ut_buffer_reserve(ut_buffer *b, size_t bytes);
void ut_buffer_free(ut_buffer *b);

/* Copy ranges, one behind the other, to `to`; see ut_reader_read. */
int ut_copy(const ut_reader *r, const ut_run *runs, size_t n, uint8_t *to, ut_runs *unreadable);
/* Append to `changed` the pages of these ranges that are not as they were stored. `bounce`: UT_BOUNCE bytes, in which
 * they are looked at. */
enum { UT_BOUNCE = 1 << 20 };
int ut_compare_stored(const ut_reader *r, const ut_digests *d, const ut_runs *pages, uint8_t *bounce, ut_runs *changed);
/* Split runs, whose contents stand in `buf`, into those with content, which move together in `buf`,
 * and zero ones. */
int ut_split_zero(uint8_t *buf, const ut_runs *runs, ut_runs *data, ut_runs *zero);
#endif
