/* A process's part in trackers whose vCPUs are its threads; at a signal, these threads stand. */
#ifndef UT_MEMBER_H
#define UT_MEMBER_H
#include "lists.h"

#include <signal.h>

enum { UT_MAX_MEMBERS = 16 };

typedef struct {
	_Atomic int used, busy; /* busy: threads in a handler of ours */
	_Atomic int strays;     /* inline: faults that came after it was closed */
	_Atomic int orphan;     /* the tracker has died */
	uint64_t bytes;         /* of the RAM, if this process's threads list their faults: engine_inline.c */
	ut_shared *shared;
	uint8_t *base;
	int mm, uffd;
	int lifeline;           /* a socket that hangs up when the tracker is gone; -1: it is in this process */
	int pid;
	int perf[UT_MAX_VCPUS];
} ut_member;

extern ut_member ut_members[UT_MAX_MEMBERS];

/* For handlers. 0: the place is free just now. Either way the handler has to leave it. */
static inline int ut_member_enter(ut_member *m)
{
	atomic_fetch_add(&m->busy, 1);
	return atomic_load(&m->used);
}

static inline void ut_member_leave(ut_member *m)
{
	atomic_fetch_sub(&m->busy, 1);
}

int ut_own_tid(void);
/* 0: no tracker is left to rearm, or to open the gate. */
int ut_member_has_tracker(ut_member *m);
/* Stand at the gate while it is closed; 0: no tracker is left to open it. */
int ut_member_park(ut_member *m, int vcpu);

/* Returns the number of the place, or -errno. `bytes`: see ut_member, or 0. */
int ut_member_take(ut_shared *s, uint8_t *base, uint64_t bytes, int mm, int uffd, int lifeline);
void ut_member_close(int member);
void ut_member_perf(int member, int vcpu, int perf);
#endif
