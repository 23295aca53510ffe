/* /proc/PID/maps, parsed without leaving C: it is read while the target stands. */
#ifndef UT_MAPS_H
#define UT_MAPS_H
#include <stddef.h>
#include <stdint.h>

enum {
	UT_KIND_ANON = 0,    /* private, zero where nothing was written */
	UT_KIND_FILE = 1,    /* private, the file's content where nothing was written */
	UT_KIND_SHARED = 2,  /* others can write it without our page tables */
	UT_KIND_VDSO = 3,
	UT_KIND_SKIP = 4,    /* vvar, devices, a file's read-only shared mapping */
	UT_KIND_HUGE = 6,    /* private, zero, of hugetlb pages */
	UT_KIND_DELETED = 5, /* private, of a file that nobody can open any more */
};

typedef struct {
	uint64_t start, end, offset, inode;
	uint32_t major, minor;
	uint8_t prot; /* 1 read, 2 write, 4 execute */
	uint8_t shared, kind;
	uint8_t in_memory; /* of a file that lives in memory: memfd, /dev/shm, System V, /dev/zero */
	uint32_t name; /* offset of the name in the text */
} ut_region;

typedef struct {
	char *text;
	size_t len, text_cap;
	ut_region *regions;
	size_t n, cap;
} ut_maps;

int ut_maps_read(ut_maps *m, int pid, int tid);
/* Parse m->text; m->regions is the result. -EINVAL: not the text of a maps file. */
int ut_maps_parse(ut_maps *m);
void ut_maps_free(ut_maps *m);
#endif
