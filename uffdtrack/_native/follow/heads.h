/* The first page of each mapped ELF file, by which debuggers know the file (its build ID). We take it from
 * the mapping: another file may have the name by now. */
#ifndef UT_HEADS_H
#define UT_HEADS_H
#include "reader.h"

typedef struct {
	uint64_t inode;
	uint32_t major, minor;
	uint8_t page[4096];
} ut_head;

typedef struct {
	ut_head *v; /* stay until the caller takes them, and sets n to 0 */
	size_t n, cap;
} ut_heads;

/* Add those of new mappings. The target stands, so we read only pages in memory: one that has to be fetched
 * may never come. */
int ut_heads_take(ut_heads *h, ut_maps *m, const ut_reader *r);
void ut_heads_free(ut_heads *h);
#endif
