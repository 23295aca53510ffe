/* Shared memory under traps: as long as nobody can write it but through the page tables of the process. */
#ifndef UT_SOLE_H
#define UT_SOLE_H
#include "births.h"
#include "fault_server.h"
#include "relatives.h"
#include "sharers.h"

typedef struct {
	int32_t uffd;    /* of its own, for it alone: who moves some or gives it back waits until we have noted that */
	int32_t alone;   /* no relative by fork has our memory: seen before this stop, and true since */
	int32_t asked;   /* that would be worth knowing */
	int64_t ask_again_ns;
	int32_t over;    /* somebody may write it in a way that leaves no mark, or no marks can be had: no more of it */
	uint32_t major, minor; /* of the kernel's own mount for such objects */
	uint64_t *inodes;      /* of all mappings of such objects at this stop, in order */
	size_t ninodes, inodes_cap;
	ut_births births;
	ut_sharers sharers;
	ut_fault_server server;
	pthread_mutex_t lock; /* protects `moved` */
	int32_t moved;   /* shared memory was moved, mapped twice or given back since the last stop */
} ut_sole;

/* The caller keeps `uffd`, which has the events REMAP and REMOVE. -ENOTSUP: we do not see all processes. */
int ut_sole_open(int uffd, ut_sole **out);
void ut_sole_close(ut_sole *m);
/* What traps tell is void. */
void ut_sole_forget(ut_sole *m);
#endif
