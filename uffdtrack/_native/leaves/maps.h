/* /proc/PID/maps, parsed without leaving C: it is read while the target stands. */
#ifndef UT_MAPS_H
#define UT_MAPS_H
#include <stddef.h>
#include <stdint.h>

enum {
	UT_KIND_ANON = 0,    /* private, zero where nothing was written */
	UT_KIND_FILE = 1,    /* private, the file's content where nothing was written */
	UT_KIND_SHARED = 2,  /* others can write it without using our page tables */
	UT_KIND_VDSO = 3,
	UT_KIND_HUGE = 6,    /* private, zero, of hugetlb pages */
	UT_KIND_DELETED = 5, /* private, of a file that nobody can open any more, or that lives in memory */
	/* From here on nothing of the mapping is stored. */
	UT_KIND_SKIP = 16,
	UT_KIND_ELSEWHERE = 18, /* shared, and another process of the tree stores it */
	UT_KIND_KERNEL = 16, /* vvar, vsyscall, uprobes: the kernel's own, in every process */
	UT_KIND_VIEW = 17,   /* a file's read-only shared mapping: the file has it */
	/* From here on its contents are nowhere else either: it is left out. */
	UT_KIND_LEFT_OUT = 32,
	UT_KIND_DEVICE = 32, /* a device's memory: reading it may change what the device does */
	UT_KIND_SECRET = 33, /* memfd_secret(2): only the process itself can read it */
	UT_KIND_RING = 34,   /* shared with an object of the kernel: io_uring, aio, perf, a socket, a KVM vCPU */
};

/* What is behind a mapping of a file: backing.c. */
enum {
	UT_BACKING_UNKNOWN = 0, /* its name decides */
	UT_BACKING_PLAIN,
	UT_BACKING_TMPFS,   /* a mount that can be seen; a file below /dev counts as MEMORY */
	UT_BACKING_MEMORY,  /* memfd, System V, anonymous shared */
	UT_BACKING_HUGETLB,
	UT_BACKING_ZERO,    /* /dev/zero, which mapped private is anonymous memory */
	UT_BACKING_DEVICE,
	UT_BACKING_SECRET,
	UT_BACKING_KERNEL,  /* an anonymous inode, a socket */
};

typedef struct {
	uint64_t start, end, offset, inode;
	uint32_t major, minor;
	uint8_t prot; /* 1 read, 2 write, 4 execute */
	uint8_t shared, kind;
	uint8_t in_memory; /* of a file that lives in memory: memfd, /dev/shm, System V, hugetlbfs */
	uint8_t backing, deleted, named_deleted;
	uint8_t head;  /* how often we have asked for its first page: heads.c */
	uint8_t compared; /* this harvest compares it: there are digests of what is stored of it */
	uint8_t registered; /* private, of a file: it may be registered with the userfaultfd */
	uint8_t sure;  /* backing and deleted stay true for as long as it is mapped */
	uint32_t name; /* offset of the name in the text */
} ut_region;

typedef struct {
	char *text;
	size_t len, text_cap;
	ut_region *regions;
	size_t n, cap;
} ut_maps;

int ut_maps_read(ut_maps *m, int pid, int tid);
/* Parse m->text; m->regions is the result, kinds by name alone. -EINVAL: not the text of a maps file. */
int ut_maps_parse(ut_maps *m);
/* Derive the kind of a mapping from its backing. */
void ut_maps_decide(const ut_maps *m, ut_region *r);
/* Whether its name ends like that of a deleted file; whether the kernel gives such names to its own
 * objects. */
int ut_maps_names_deleted(const ut_maps *m, const ut_region *r);
int ut_maps_names_kernel(const ut_maps *m, const ut_region *r);
/* Whether it is a System V segment: their inode numbers are ids, which a memfd may have as its inode number, too,
 * on the same device (newseg, ipc/shm.c). */
int ut_maps_is_segment(const ut_maps *m, const ut_region *r);
/* Whether it has the name of anonymous shared memory. */
int ut_maps_is_anonymous(const ut_maps *m, const ut_region *r);
void ut_maps_free(ut_maps *m);
#endif
