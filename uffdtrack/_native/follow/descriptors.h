#ifndef UT_DESCRIPTORS_H
#define UT_DESCRIPTORS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
	char *v;
	size_t n, cap;
} ut_text;

void ut_text_free(ut_text *t);

/* The type and mode of what `name` in `directory` leads to, and its size. The file system is not asked: what it
 * said last has to do, since one that does not answer (FUSE, a network) would be waited for. */
int ut_file_mode(int directory, const char *name, uint64_t *size);

/* What is open in the process of `task`, an open /proc/PID/task/TID: for each its number, the time on CLOCK_BOOTTIME
 * in ns, what its link says, and its fdinfo, each with a zero byte behind. What is closed meanwhile is left out. */
int ut_descriptors(int task, ut_text *out);

#endif
