/* Who else can write an object in shared memory that no descriptor refers to (anonymous, System V), apart from
 * relatives by fork. All marks stay when a visitor has gone again. */
#ifndef UT_SHARERS_H
#define UT_SHARERS_H
#include "maps.h"

/* What changes when a System V segment is attached, inherited or detached. */
typedef struct {
	int64_t attached, detached, set; /* seconds */
	uint64_t mappings;
	int64_t last_pid;
} ut_stamps;

typedef struct {
	ut_region region; /* how a process maps it */
	int32_t segment;  /* of System V */
	int32_t watch;    /* of inotify, or -1 */
	int32_t visited;  /* somebody has opened it since it was last found to be ours alone */
	int32_t seen;     /* in this harvest */
	int32_t barred;   /* never again */
	int32_t due;      /* traps may tell of all writes up to this stop */
	int32_t followed; /* since the last stop traps tell of all writes */
	int32_t told;     /* in this stop they have, and are set again */
	int32_t settled;  /* who changes the stamps now gives them other values */
	ut_stamps stamps;
} ut_object;

typedef struct {
	int32_t inotify, clock; /* `clock`: a timer that tells when the clock was set, which would void stamps */
	ut_object *v; /* by inode */
	size_t n, cap;
} ut_sharers;

int ut_sharers_open(ut_sharers *s);
void ut_sharers_close(ut_sharers *s);
/* Ask for visits; they stay noted in the objects. */
void ut_sharers_drain(ut_sharers *s);
/* 1: the clock was set since the last call. */
int ut_sharers_clock_set(const ut_sharers *s);
/* The object behind a mapping, or NULL. All are of one file system. */
ut_object *ut_sharers_find(ut_sharers *s, const ut_region *r, int segment);
/* The same; it is added if it is not there. NULL: there are too many. It may move the others. */
ut_object *ut_sharers_add(ut_sharers *s, const ut_region *r, int segment);
/* Forget those that were not seen. */
void ut_sharers_drop(ut_sharers *s);
/* 1: nobody who is not a relative by fork has had a part in it since ut_object_is_private() said so. */
int ut_object_stayed(ut_object *o);
/* 1: nobody but relatives by fork can write it now, or write it later and leave no mark. `fd`: the object, open
 * for reading; `r`: one of its `n` mappings. Of a segment ut_object_is_our_segment() has to agree, in each process. */
int ut_object_is_private(ut_sharers *s, ut_object *o, const ut_region *r, size_t n, int fd);
/* 1: the id that the maps of process `pid` show is an id of our IPC namespace, and what it maps at `r` is that segment: each
 * namespace counts ids by itself, and a process may have got it in another one. */
int ut_object_is_our_segment(const ut_object *o, int pid, const ut_region *r, int fd);
#endif
