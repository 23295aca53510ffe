/* A watchdog process: whoever stops a target for longer than a bound is ended, which frees the target. */
#ifndef UT_GUARD_H
#define UT_GUARD_H
#include "tracee.h"

#include <sys/resource.h>

enum { UT_OVERDUE = -1010 }; /* the watchdog has ended the process that did the work */

enum {
	UT_GUARD_FREE = 0,     /* every thread of the target runs */
	UT_GUARD_LATE = 1,     /* so it does but for threads that were asked to stop and have not done so */
	UT_GUARD_STOPPING = 2, /* threads may stand whose interrupted calls are not mended yet */
	UT_GUARD_STOPPED = 3,
};

/* What the watchdog has to know of one ut_tracee. In memory that it shares with all that stop. */
struct ut_guard_slot {
	int32_t stopper; /* the process; 0: nobody's slot */
	int32_t tracer;  /* its thread */
	int32_t target;
	int32_t phase;
	int64_t since_ns;
	int32_t injecting;     /* a thread that has registers of ours; below is what it has to get back */
	int32_t attaching;     /* userfaultfds of the target's are ours */
	int32_t group_stopped; /* the target was stopped (SIGSTOP and its kin) before we came */
	int32_t born;          /* a thread that we have made; -1: about to */
	int32_t limited;       /* RLIMIT_NOFILE is raised; `limit` is the target's own */
	struct rlimit limit;
	uint64_t sigmask;
	uint64_t regs[UT_NREGS];
	ut_section section;
	ut_dispatch dispatch;
};

/* A process that the watchdog has ended. */
typedef struct {
	int32_t stopper, target;
	int32_t phase, injecting;
	int64_t stood_ns;
} ut_guard_verdict;

/* Start it, for this process and those that it forks from now on; returns its pid, or 0: there is one. */
int ut_guard_start(int64_t max_stop_ns);
/* This process stops nothing. The watchdog ends when nobody is left who may. */
void ut_guard_leave(void);
/* This process, which has left, is to have a watchdog of its own again, or none. */
void ut_guard_forget(void);
/* 1: it has ended process `pid`; *out says why. */
int ut_guard_verdict_of(int pid, ut_guard_verdict *out);
/* What a stop may take at most, or 0: there is no watchdog. */
int64_t ut_guard_max_ns(void);
/* When who stops `t` has to give up by himself, so that the other half of the time is for the way back. */
int64_t ut_guard_soft_end(const ut_tracee *t);
/* 1: that time has come. */
int ut_tracee_overdue(const ut_tracee *t);

/* For who stops, in this order. */
void ut_guard_stopping(ut_tracee *t);
void ut_guard_stopped(ut_tracee *t);
void ut_guard_resumed(ut_tracee *t, size_t late);
void ut_guard_release(ut_tracee *t);
/* Around calls in a thread's name, whose own registers are in `threads`. */
void ut_guard_injecting(ut_tracee *t, const ut_thread *th);
void ut_guard_injected(ut_tracee *t);
void ut_guard_attaching(ut_tracee *t, int on);
void ut_guard_born(ut_tracee *t, int tid);
void ut_guard_limit(ut_tracee *t, const struct rlimit *kept);
/* The target is in a group stop. */
void ut_guard_group_stop(ut_tracee *t);
/* For the watchdog: a thread that has stopped gets back what it had before calls were made in its name. */
int ut_guard_repair(ut_tracee *t, ut_thread *th);
#endif
