/* The first page of each ELF file that is mapped, by which debuggers know the file (its build ID), out of the mapping
 * itself: whatever bears the file's name may be another one. */
#ifndef UT_HEADS_H
#define UT_HEADS_H
#include "reader.h"

typedef struct {
	uint64_t inode;
	uint32_t major, minor;
	uint8_t page[4096];
} ut_head;

typedef struct {
	ut_head *v; /* until the caller takes them, and sets n to 0 */
	size_t n, cap;
} ut_heads;

/* Add those of mappings that are new. The target stands, so only pages that are there are read: one that has to be
 * fetched may never come. */
int ut_heads_take(ut_heads *h, ut_maps *m, const ut_reader *r);
void ut_heads_free(ut_heads *h);
#endif
