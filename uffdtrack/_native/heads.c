#include "compat.h"
#include "heads.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How often a mapping is asked whose first page is not there. */
enum { UT_HEAD_TRIES = 3 };

static int add(ut_heads *h, const ut_region *r, int mem)
{
	ut_head *to;

	if (h->n == h->cap) {
		size_t cap = h->cap ? h->cap * 2 : 16;
		ut_head *v = realloc(h->v, cap * sizeof(*v));

		if (!v)
			return -ENOMEM;
		h->v = v;
		h->cap = cap;
	}
	to = &h->v[h->n];
	if (pread(mem, to->page, UT_PAGE, r->start) != UT_PAGE || memcmp(to->page, "\177ELF", 4))
		return 0;
	to->inode = r->inode;
	to->major = r->major;
	to->minor = r->minor;
	h->n++;
	return 0;
}

int ut_heads_take(ut_heads *h, ut_maps *m, int pagemap, int mem)
{
	for (size_t i = 0; i < m->n; i++) {
		ut_region *r = &m->regions[i];
		uint64_t entry;
		int err;

		if (r->kind != UT_KIND_FILE || r->offset || !(r->prot & 1) || r->head >= UT_HEAD_TRIES)
			continue;
		r->head++;
		/* What the process has written over it is no head of the file's. */
		if (pread(pagemap, &entry, 8, r->start / UT_PAGE * 8) != 8 || !(entry & UT_ENTRY_PRESENT) ||
		    !(entry & UT_ENTRY_FILE))
			continue;
		r->head = UT_HEAD_TRIES;
		err = add(h, r, mem);
		if (err)
			return err;
	}
	return 0;
}

void ut_heads_free(ut_heads *h)
{
	free(h->v);
	*h = (ut_heads){0};
}
