#include "cleanup.h"
#include "compat.h"
#include "heads.h"
#include "vec.h"

#include <string.h>
#include <unistd.h>

/* How often a mapping is asked whose first page is not there. */
enum { UT_HEAD_TRIES = 3 };

static int add_head(ut_heads *h, const ut_region *r, const ut_reader *reader)
{
	ut_head *to;

	TRY(VEC_ROOM(h->v, h->n, h->cap));
	to = &h->v[h->n];
	if (!ut_reader_peek(reader, r->start, to->page, UT_PAGE) || memcmp(to->page, "\177ELF", 4))
		return 0;
	to->inode = r->inode;
	to->major = r->major;
	to->minor = r->minor;
	h->n++;
	return 0;
}

int ut_heads_take(ut_heads *h, ut_maps *m, const ut_reader *reader)
{
	for (size_t i = 0; i < m->n; i++) {
		ut_region *r = &m->regions[i];
		uint64_t entry;

		if (r->kind != UT_KIND_FILE || r->offset || !(r->prot & 1) || r->head >= UT_HEAD_TRIES)
			continue;
		r->head++;
		/* What the process has written over it is no head of the file's. */
		if (ut_reader_entries(reader, r->start, r->start + UT_PAGE, &entry, 1) != 1 ||
		    !(entry & UT_ENTRY_PRESENT) || !(entry & UT_ENTRY_FILE))
			continue;
		r->head = UT_HEAD_TRIES;
		TRY(add_head(h, r, reader));
	}
	return 0;
}

void ut_heads_free(ut_heads *h)
{
	free(h->v);
	*h = (ut_heads){0};
}
