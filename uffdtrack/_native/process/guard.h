/* A watchdog process. It ends a process that stops a target for longer than a bound, which frees the
 * target. */
#ifndef UT_GUARD_H
#define UT_GUARD_H
#include "tracee.h"

#include <sys/resource.h>

enum {
	UT_OVERDUE = -1010,   /* the watchdog has ended the process that did the work for us */
	UT_UNGUARDED = -1011, /* the watchdog has ended, or does not hear us: no thread was touched */
};

enum {
	UT_GUARD_FREE = 0,     /* every thread of the target runs */
	UT_GUARD_LATE = 1,     /* every thread runs, but some that we have asked to stop have yet to do so */
	UT_GUARD_STOPPING = 2, /* threads may stand, and their interrupted calls may not be mended yet */
	UT_GUARD_STOPPED = 3,
};

/* What the watchdog has to know of one ut_tracee. It shares this memory with all processes that stop a
 * target. */
struct ut_guard_slot {
	int32_t stopper; /* the process that stops the target; 0: the slot is free */
	int32_t tracer;  /* its thread that traces */
	int32_t target;
	int32_t phase;
	int64_t since_ns;
	int32_t injecting;     /* a thread that has registers of ours; `sigmask` and below are its own */
	int32_t attaching;     /* any userfaultfd in the target is ours */
	int32_t group_stopped; /* the target was stopped (SIGSTOP and its kin) before we came */
	int32_t born;          /* a thread that we have made; -1: we are about to make one */
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

/* Start the watchdog of this process and those that it forks from now on; returns its pid; 0: there is one
 * already. */
int ut_guard_start(int64_t max_stop_ns);
/* This process stops nothing. The watchdog ends when no process is left that might. */
void ut_guard_leave(void);
/* The descriptor that leads to the watchdog, or -1. */
int ut_guard_line(void);
/* Leave the watchdog and forget it: this process can start one of its own, or go without. */
void ut_guard_forget(void);
/* 1: the watchdog has ended process `pid`; *out says why. */
int ut_guard_verdict_of(int pid, ut_guard_verdict *out);
/* How long a stop may take; 0: there is no watchdog. */
int64_t ut_guard_max_ns(void);
/* When a stop of `t` has to give up by itself, so that the other half of the time is left to undo its
 * changes. */
int64_t ut_guard_soft_end(const ut_tracee *t);
/* 1: that time has come. */
int ut_tracee_overdue(const ut_tracee *t);

/* A stop calls these, in this order. */
/* 0; UT_UNGUARDED: there was a watchdog, and nothing would end this stop: do not begin it. */
int ut_guard_stopping(ut_tracee *t);
void ut_guard_stopped(ut_tracee *t);
void ut_guard_resumed(ut_tracee *t, size_t late);
void ut_guard_release(ut_tracee *t);
/* Call these around calls in a thread's name; its own registers are in `threads`. */
void ut_guard_injecting(ut_tracee *t, const ut_thread *th);
void ut_guard_injected(ut_tracee *t);
void ut_guard_attaching(ut_tracee *t, int on);
void ut_guard_born(ut_tracee *t, int tid);
void ut_guard_limit(ut_tracee *t, const struct rlimit *kept);
/* The target is in a group stop. */
void ut_guard_group_stop(ut_tracee *t);
/* For the watchdog: give a stopped thread back what it had before we made calls in its name. */
int ut_guard_repair(ut_tracee *t, ut_thread *th);
#endif
