#ifndef UT_DESCRIPTORS_H
#define UT_DESCRIPTORS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
	char *v;
	size_t n, cap;
} ut_text;

void ut_text_free(ut_text *t);

/* The type, mode and size of the file that `name` in `directory` leads to. We use what the file system said
 * last and do not ask it: one that does not answer (FUSE, a network) would keep us waiting. */
int ut_file_mode(int directory, const char *name, uint64_t *size);

/* The open files of the process of `task`, an open /proc/PID/task/TID. Each has its number, the time on
 * CLOCK_BOOTTIME in ns, its link, and its fdinfo, each followed by a zero byte. A file that is closed
 * meanwhile is left out. */
int ut_descriptors(int task, ut_text *out);

#endif
