#ifndef UT_FILES_H
#define UT_FILES_H

#include <stdint.h>

/* The type and mode of what `name` in `directory` leads to, and its size. The file system is not asked: what it
 * said last has to do, since one that does not answer (FUSE, a network) would be waited for. */
int ut_file_mode(int directory, const char *name, uint64_t *size);

#endif
