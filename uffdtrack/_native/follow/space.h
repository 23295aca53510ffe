/* The memory of one attached process: its traps, its written pages, copies of them. */
#ifndef UT_SPACE_H
#define UT_SPACE_H
#include "backing.h"
#include "copy.h"
#include "digests.h"
#include "early.h"
#include "heads.h"
#include "maps.h"
#include "reader.h"
#include "runs.h"
#include "sole.h"
#include "tracee.h"
#include "watch.h"

enum {
	UT_FULL = 1,    /* every mapping is new: register, arm, take all of it */
	UT_RUNNING = 2, /* the target is not stopped: mappings may change under us */
	UT_ASKED = 8,   /* ut_space_ask() has been called */
	UT_NO_COPY = 4, /* copy nothing: the caller copies what this finds while the target runs */
};
enum { UT_NEW_MM = -1000 }; /* the target has replaced its memory (exec) */

/* An object in memory that one process of a tree stores for all processes that map it, see claims.c. */
typedef struct {
	uint64_t inode, offset, end, address; /* the member maps [offset, end) of it at `address` */
	uint32_t major, minor;
	int32_t member, segment;
	int64_t made_s;  /* of a segment */
	uint64_t made_ns, namespace;
} ut_claim;
typedef struct {
	ut_claim *v;
	size_t n, cap;
	ut_sole *sole; /* of all members. NULL: all shared memory is compared */
} ut_claims;
/* Another member stores [start, end); in its own memory that begins at `address`. */
typedef struct {
	uint64_t start, end, address;
	int32_t member;
} ut_elsewhere;

/* What this harvest leaves for the next one. */
typedef struct {
	ut_runs spans; /* anonymous memory scanned by the fast path, its empty PTEs armed too */
	ut_runs kept;  /* private pages of file mappings */
	ut_runs known; /* pages of compared mappings */
	ut_runs armed; /* sync: registered memory, under traps */
	ut_runs bare;  /* the pages of `armed` without traps, which are compared: exits.h */
} ut_history;

/* What a harvest has found of one mapping, or of all of them in order. */
typedef struct {
	ut_runs want;  /* to copy */
	ut_runs silent; /* no trap tells of them: to copy, if they differ from the digests of what was stored */
	ut_runs gone;  /* have the mapping's own contents again: zero, or the file */
	ut_runs fresh; /* all older contents there are void */
	ut_history now;
	int32_t compared; /* how many mappings we compare, since traps tell too little of them */
} ut_finding;

typedef struct {
	int32_t flags;
	int32_t by_news;   /* look only where the watch says */
	ut_news news;
	ut_finding all;
	ut_finding part;   /* of the current mapping; goes to `all` when that is done */
	ut_runs found;     /* its pages that exist */
	ut_runs compared;  /* shared memory: what was copied of it before the stop may be older than the last comparison */
	uint64_t left_alone; /* bytes of small mappings that are not registered */
	int64_t arming_ns;
	ut_elsewhere *elsewhere;
	size_t nelsewhere, elsewhere_cap;
} ut_harvest;

typedef struct ut_space {
	int32_t uffd;
	int32_t sync;      /* no WP_ASYNC: PAGEMAP_SCAN sets no trap, and cannot tell which pages lack one */
	int32_t diff_all;  /* the kernel misses zapped PMDs: find zapped pages by comparing sets */
	uint64_t max_maps; /* vm.max_map_count; 0: not known */
	ut_reader reader;
	ut_digests digests;
	ut_maps maps, before;
	ut_filesystems filesystems;
	ut_heads heads;
	ut_history history;
	ut_harvest harvest;
	ut_early early;
	ut_buffer buffer;   /* has the last copy */
	ut_runs unreadable; /* its pages that have no content: past a file's end, guard pages */
	uint8_t *bounce;
	struct ut_page_region *found; /* room for results of PAGEMAP_SCAN, for each of UT_SHARES threads */
	int64_t stood_ns;   /* the target, for barriers since the last window, */
	int64_t longest_ns; /* and for the longest of them */
	ut_watch *watch; /* ring, sync: where to look, instead of everywhere. NULL: scan */
	ut_sole *sole;      /* of a process by itself, see ut_claims */
	ut_mapper *mapper;  /* the process's part in that, or NULL */
	int32_t may_share;     /* the user wants shared memory followed, and nothing has been tried yet */
	int32_t shared_wanted; /* the same, and there is some that could be followed */
	/* if it is one process of a tree */
	ut_claims *claims; /* NULL: a process by itself */
	int32_t member;
} ut_space;

/* 1: no process has that memory any more: it has ended, or has called exec. */
int ut_space_is_gone(const ut_space *s);
/* The space owns `uffd` from then on, unless this fails. */
int ut_space_open(int pid, int uffd, int diff_all, ut_space **out);
void ut_space_close(ut_space *s);
/* Start the watch. `limit`: so many touched pages make `full` readable; sync keeps the target to it. */
int ut_space_watch(ut_space *s, int sync, uint64_t limit);
/* Follow shared memory where that is possible; a member of a tree has to have joined it. The space owns `uffd`, which has the events REMAP and REMOVE, from
 * then on, unless this fails. */
int ut_space_share(ut_space *s, int uffd);
/* A harvest: what was written since the last one is found, and armed again, in one step. Results are in s->harvest.all.
 * First a look at the mappings. `t`: the target, which stands, or NULL with UT_RUNNING; with sync the target must stand. */
int ut_space_look(ut_space *s, const ut_tracee *t, int flags);
/* Then what is in them. `pending` is found in any case. */
int ut_space_find(ut_space *s, const ut_run *pending, size_t npending);
/* Both, while the target runs. */
int ut_space_harvest(ut_space *s, int flags);
/* Before a stop: whether pages are shared with a child. One that is made just now may take a copy of its own of what the stop
 * reads; nothing is wrong then. Returns UT_ASKED, or 0: it is not known yet. */
int ut_space_ask(ut_space *s);
/* Copy ranges of the target, back to back, to s->buffer. Pages that cannot be read become zero
 * and go into `unreadable`. */
int ut_space_copy(ut_space *s, const ut_run *runs, size_t n);
/* The same, of a target that has stood since the harvest. */
int ut_space_copy_now(ut_space *s, const ut_run *runs, size_t n);
/* After a window: all that was copied, before the stop and in it, in order of addresses. `want`: its ranges, of
 * which `data` have contents, back to back at the address returned in *contents until the next window. */
int ut_space_give(ut_space *s, ut_runs *want, ut_runs *data, ut_runs *zero, uint8_t **contents);
static inline int64_t ut_longer(int64_t a, int64_t b)
{
	return a > b ? a : b;
}
#endif
