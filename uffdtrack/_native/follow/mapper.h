/* A process that may have shared memory under traps, and what it does besides writing it. Each such act leaves a mark until the
 * next stop: it has made others, has moved memory, or has given some back. */
#ifndef UT_MAPPER_H
#define UT_MAPPER_H
#include "births.h"
#include "fault_server.h"
#include "runs.h"

struct ut_space;

typedef struct {
	struct ut_space *space;
	const ut_tracee *tracee; /* NULL, but in a stop, when its mappings have been read */
	int32_t number;          /* no other one ever gets it */
	int32_t uffd; /* of its own, for that memory alone: who moves some or gives it back waits until we have noted that */
	ut_births births;
	ut_fault_server server;
	pthread_mutex_t lock; /* protects `moved` */
	int32_t moved;        /* shared memory was moved, mapped twice or given back since the last stop */
} ut_mapper;

/* It owns `uffd`, which has the events REMAP and REMOVE, from then on, unless this fails. */
int ut_mapper_open(struct ut_space *s, int number, int uffd, ut_mapper **out);
void ut_mapper_close(ut_mapper *p);
/* In a stop. 1: it may have moved some since the last call. */
int ut_mapper_take_moved(ut_mapper *p);
/* 1: the thread is in MADV_GUARD_INSTALL, in `range`. */
int ut_is_guarding(const ut_thread *th, ut_run *range);
#endif
