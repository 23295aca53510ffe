/* What is behind a mapping that has a file: decided by the file system it is on and by what the file is, since names
 * are whatever somebody has chosen. */
#ifndef UT_BACKING_H
#define UT_BACKING_H
#include "maps.h"

/* The file behind a mapping, by /proc/PID/map_files, which is for CAP_CHECKPOINT_RESTORE only, and the type of its file
 * system (statfs(2)); or -errno. */
int ut_open_mapped(int pid, const ut_region *r, long *type);

typedef struct {
	uint32_t major, minor;
	uint8_t backing; /* what all files of this file system are; UT_BACKING_PLAIN: each has to be asked */
} ut_filesystem;

typedef struct {
	ut_filesystem *v;
	size_t n, cap;
	int read; /* in this harvest */
} ut_filesystems;

enum {
	UT_BACKING_SURE = 1, /* the target stands: what is found holds for as long as it is mapped */
	UT_BACKING_ANEW = 2, /* nothing of earlier mappings holds */
};

/* Find out for all mappings of `m`; `before` (NULL: none) is an earlier list of the same process, of which nothing has
 * to be asked again. */
int ut_backing_find(ut_maps *m, const ut_maps *before, ut_filesystems *known, int pid, int tid,
		    int flags);
void ut_filesystems_free(ut_filesystems *f);
/* The mappings of a process and what is behind them. */
int ut_maps_look(ut_maps *m, int pid, int tid);
#endif
