/* The memory of one attached process: what is tracked, what was written, copies of it. */
#ifndef UT_SPACE_H
#define UT_SPACE_H
#include "backing.h"
#include "copy.h"
#include "digests.h"
#include "heads.h"
#include "maps.h"
#include "reader.h"
#include "runs.h"
#include "tracee.h"
#include "watch.h"

enum {
	UT_FULL = 1,    /* every mapping is new: register, arm, take all of it */
	UT_RUNNING = 2, /* the target is not stopped: mappings may change under us */
	UT_NO_COPY = 4, /* what is found is copied while the target runs */
};
enum { UT_NEW_MM = -1000 }; /* the target has replaced its memory (exec) */

/* An object in memory that one process of a tree stores for all that map it, see claims.c. */
typedef struct {
	uint64_t inode, offset, end, address; /* [offset, end) of it is mapped at `address` of the member */
	uint32_t major, minor;
	int32_t member;
} ut_claim;
typedef struct {
	ut_claim *v;
	size_t n, cap;
} ut_claims;
/* [start, end) is stored by another member, from `address` of its own on. */
typedef struct {
	uint64_t start, end, address;
	int32_t member;
} ut_elsewhere;

/* What the next harvest has to know of this one. */
typedef struct {
	ut_runs spans; /* anonymous memory scanned by the fast path, its empty PTEs armed too */
	ut_runs kept;  /* private pages of file mappings */
	ut_runs known; /* pages of compared mappings */
	ut_runs armed; /* sync: what is registered and under traps, */
	ut_runs bare;  /* but for these pages: exits.h. They are compared */
} ut_history;

/* What was found: of one mapping, or, one behind the other, of all. */
typedef struct {
	ut_runs want;  /* to copy */
	ut_runs gone;  /* back to what the mapping is without writes: zero, or the file */
	ut_runs fresh; /* nothing older holds there */
	ut_history now;
	int32_t compared; /* mappings whose contents are compared, since traps tell too little of them */
} ut_finding;

typedef struct {
	int32_t flags;
	int32_t by_news;   /* it looks only where the watch says */
	ut_news news;
	ut_finding all;
	ut_finding part;   /* of the mapping at hand; goes to `all` when that is done */
	ut_runs found;     /* pages of it that exist */
	uint64_t left_alone; /* bytes of small mappings that are not registered */
	int64_t arming_ns;
	ut_elsewhere *elsewhere;
	size_t nelsewhere, elsewhere_cap;
} ut_harvest;

typedef struct {
	int32_t uffd;
	int32_t sync;      /* no WP_ASYNC: PAGEMAP_SCAN sets no trap, and cannot tell what has none */
	int32_t diff_all;  /* the kernel misses zapped PMDs: find what is gone by comparing sets */
	uint64_t max_maps; /* vm.max_map_count; 0: not known */
	ut_reader reader;
	ut_digests digests;
	ut_maps maps, before;
	ut_filesystems filesystems;
	ut_heads heads;
	ut_history history;
	ut_harvest harvest;
	ut_buffer buffer;   /* of the last copy, */
	ut_runs unreadable; /* of which these pages are without content: past a file's end, guard pages */
	uint8_t *bounce;
	struct ut_page_region *found; /* room for results of PAGEMAP_SCAN */
	ut_watch *watch; /* ring, sync: where to look, instead of everywhere. NULL: scan */
	/* one process of several that are taken together */
	ut_claims *claims; /* NULL: a process by itself */
	int32_t member;
} ut_space;

/* 1: no process has that memory any more: it has ended, or has called exec. */
int ut_space_is_gone(const ut_space *s);
/* `uffd` is the space's from then on, unless this fails. */
int ut_space_open(int pid, int uffd, int diff_all, ut_space **out);
void ut_space_close(ut_space *s);
/* Follow the faults of its threads; `limit`: touched pages that make `full` readable, and that sync keeps. */
int ut_space_watch(ut_space *s, int sync, uint64_t limit);
/* Find what was written since the last harvest, and arm it again, in one step. `t`: the target, which stands, or NULL
 * with UT_RUNNING; engine sync takes none that runs. Results are in s->harvest.all. */
int ut_space_harvest(ut_space *s, const ut_tracee *t, int flags, const ut_run *pending, size_t npending);
/* Copy ranges of the target, one behind the other, to s->buffer. Pages that cannot be read become zero
 * and are listed in `unreadable`. */
int ut_space_copy(ut_space *s, const ut_run *runs, size_t n);
#endif
