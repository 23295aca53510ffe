/* What is behind a mapping that has a file. Its file system and the type of the file decide; a file can have
 * any name. */
#ifndef UT_BACKING_H
#define UT_BACKING_H
#include "maps.h"

/* Open the file behind a mapping, by /proc/PID/map_files, which requires CAP_CHECKPOINT_RESTORE; *type: that
 * of its file system (statfs(2)). Or -errno. */
int ut_open_mapped(int pid, const ut_region *r, long *type);
/* statx(2) of it, in the same way, with STATX_BTIME. It opens nothing. 0 or -errno. */
struct statx;
int ut_stat_mapped(int pid, const ut_region *r, struct statx *out);

typedef struct {
	uint32_t major, minor;
	uint8_t backing; /* of all files of this file system; UT_BACKING_PLAIN: ask about each */
} ut_filesystem;

typedef struct {
	ut_filesystem *v;
	size_t n, cap;
	int read; /* we have read them in this harvest */
} ut_filesystems;

enum {
	UT_BACKING_SURE = 1, /* the target stands: what we find is true for as long as it is mapped */
	UT_BACKING_ANEW = 2, /* use nothing of earlier mappings */
};

/* Find out for all mappings of `m`. `before` (NULL: none) is an earlier list of the same process: we do not
 * ask about its mappings again. */
int ut_backing_find(ut_maps *m, const ut_maps *before, ut_filesystems *known, int pid, int tid,
		    int flags);
void ut_filesystems_free(ut_filesystems *f);
/* Read the mappings of a process and find what is behind them. */
int ut_maps_look(ut_maps *m, int pid, int tid);
#endif
