/* Copies of another process's memory; up to UT_SHARES processors share a large one. */
#ifndef UT_COPY_H
#define UT_COPY_H
#include "digests.h"
#include "reader.h"

/* A buffer for copies, mapped with huge pages. */
typedef struct {
	uint8_t *v;
	size_t cap;
} ut_buffer;

/* Make room for `bytes`. If the buffer has to grow, its contents are lost. */
int ut_buffer_reserve(ut_buffer *b, size_t bytes);
/* The same, and where the buffer had to grow no copy of so many bytes waits for the kernel to find memory. */
int ut_buffer_ready(ut_buffer *b, size_t bytes);
/* The same, and it keeps its contents. */
int ut_buffer_grow(ut_buffer *b, size_t bytes);
void ut_buffer_free(ut_buffer *b);

/* Copy ranges, back to back, to `to`; see ut_reader_read. */
int ut_copy(const ut_reader *r, const ut_run *runs, size_t n, uint8_t *to, ut_runs *unreadable);
/* Append to `changed` the pages of these ranges that differ from what was stored. `bounce`: a buffer of
 * UT_BOUNCE bytes. */
enum { UT_BOUNCE = 1 << 20 };
int ut_compare_stored(const ut_reader *r, const ut_digests *d, const ut_runs *pages, uint8_t *bounce, ut_runs *changed);
/* Split runs, whose contents are in `buf`, into runs with content and zero runs. The contents of the former
 * move together in `buf`. */
int ut_split_zero(uint8_t *buf, const ut_runs *runs, ut_runs *data, ut_runs *zero);
/* The same for one range with its contents at `from`, in the order of addresses. Contents go to *to, which moves
 * on behind them; it is `from` or before it, or elsewhere. */
int ut_split_zero_of(uint8_t **to, const uint8_t *from, uint64_t start, uint64_t end, ut_runs *data, ut_runs *zero);
#endif
