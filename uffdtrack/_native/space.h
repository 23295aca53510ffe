/* The memory of one process: what is tracked, what was written, copies of it. */
#ifndef UT_SPACE_H
#define UT_SPACE_H
#include "backing.h"
#include "heads.h"
#include "maps.h"
#include "remote.h"
#include "runs.h"
#include "tracee.h"
#include "watch.h"

enum {
	UT_FULL = 1,    /* every mapping is new: register, arm, take all of it */
	UT_RUNNING = 2, /* the target is not stopped: mappings may change under us */
	UT_NO_COPY = 4, /* what is found is copied while the target runs */
};
enum { UT_NEW_MM = -1000 }; /* the target has replaced its memory (exec) */
/* Faults on purpose, for the tests' negative controls. */
enum { UT_SABOTAGE_FORGET = 1, UT_SABOTAGE_LATE_REARM = 2, UT_SABOTAGE_COMPARE = 3 };

/* An object in memory that one process of a tree stores for all that map it, see tree.c. */
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

typedef struct {
	uint64_t page; /* number + 1; 0: free slot */
	uint64_t hash[2];
} ut_digest;

typedef struct {
	int32_t pid, tid, uffd, pagemap, mem;
	int32_t shared;    /* somebody may share its pages: remote.h */
	int32_t diff_all;  /* the kernel misses zapped PMDs: find what is gone by comparing sets */
	int32_t compared;  /* mappings whose contents are compared instead */
	int32_t sabotage, blind;
	uint64_t max_maps; /* vm.max_map_count; 0: not known */
	uint64_t alone;    /* bytes of small mappings that this harvest has not registered */
	ut_maps maps, before;
	ut_filesystems filesystems;
	ut_heads heads;
	ut_runs plan;      /* to copy */
	ut_runs gone;      /* back to what the mapping is without writes: zero, or the file */
	ut_runs fresh;     /* new mappings: nothing older holds there */
	ut_runs spans;     /* anonymous memory scanned by the fast path, its empty PTEs armed too */
	ut_runs kept;      /* private pages of file mappings */
	ut_runs known;     /* pages of compared mappings */
	ut_runs next_spans, next_kept, next_known, want, found;
	ut_runs unreadable; /* planned, but without content: past a file's end, guard pages */
	ut_digest *digests;
	size_t ndigests, digests_cap;
	uint64_t seed[8];
	uint8_t *buf;
	size_t buf_cap;
	struct ut_page_region *vec;
	uint8_t *bounce; /* of each that compares */
	uint64_t rearm_ns;
	int64_t give_up_ns; /* harvest and copy end with -ETIME then; 0: never */
	/* ring, sync: where to look, instead of everywhere */
	ut_watch *watch; /* NULL: scan */
	ut_news news;
	int32_t by_news;             /* this harvest looks only there */
	int32_t sync;                /* no WP_ASYNC: PAGEMAP_SCAN sets no trap, and cannot tell what has none */
	ut_runs armed, next_armed;   /* sync: what is registered and under traps, */
	ut_runs bare, next_bare;     /* but for these pages: exits.h. They are compared */
	/* one process of several that are taken together */
	ut_claims *claims; /* NULL: a process by itself */
	int32_t member;
	ut_elsewhere *elsewhere;
	size_t nelsewhere, elsewhere_cap;
} ut_space;

typedef struct {
	int64_t stop_ns, harvest_ns, rearm_ns, copy_ns, pause_ns;
} ut_times;

/* 1: no process has that memory any more: it has ended, or has called exec. */
int ut_space_is_gone(const ut_space *s);
int ut_space_open(int pid, int uffd, int diff_all, ut_space **out);
void ut_space_close(ut_space *s);
/* Follow the faults of its threads; `limit`: touched pages that make `full` readable, and that sync keeps. */
int ut_space_watch(ut_space *s, int sync, uint64_t limit);
/* Find what was written since the last harvest, and arm it again, in one step. `t`: the target, which stands, or NULL
 * with UT_RUNNING; engine sync takes none that runs. */
int ut_space_harvest(ut_space *s, const ut_tracee *t, int flags, const ut_run *pending, size_t npending);
/* Copy ranges of the target, one behind the other, to `to`. Pages that cannot be read become zero
 * and are listed in `unreadable`. */
int ut_space_copy(ut_space *s, const ut_run *runs, size_t n, uint8_t *to);
/* Make room for `bytes` in s->buf. */
int ut_space_reserve(ut_space *s, size_t bytes);
/* Stop, registers, harvest, copy the plan to s->buf, rearm, resume. */
int ut_window(ut_tracee *t, ut_space *s, int flags, const ut_run *pending, size_t npending,
	      int64_t timeout_ns, ut_times *times);
/* The parts of a window, for several at once (tree.c). Before the stop; with the target stopped; and the priority
 * of the caller from the stop to the resume. `pause_ns` and `stop_ns` are not set. */
void ut_stopping(ut_space *s);
int ut_take_stopped(ut_tracee *t, ut_space *s, int flags, const ut_run *pending, size_t npending, ut_times *times);
void ut_set_urgent(int urgent);
/* Whether all that stood at this place at the last harvest is the same object. */
int ut_stood_before(const ut_space *s, const ut_region *r);
/* 1: a mapping whose contents another member stores. Else it is claimed, where that is sure to be all of it. */
int ut_is_elsewhere(ut_space *s, ut_region *r);
void ut_claims_drop(ut_claims *c, int member);
/* Split runs, whose contents stand in `buf`, into those with content, which move together in `buf`,
 * and zero ones. */
int ut_split_zero(uint8_t *buf, const ut_runs *runs, ut_runs *data, ut_runs *zero);
#endif
