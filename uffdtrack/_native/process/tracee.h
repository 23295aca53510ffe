/* Stop the threads of another process, read and set their registers, make system calls in their name. */
#ifndef UT_TRACEE_H
#define UT_TRACEE_H
#include "aside.h"
#include "clock.h"
#include "proc_stat.h"

#include <stddef.h>
#include <stdint.h>

#define UT_NREGS 27 /* struct user_regs_struct, x86-64 */

enum {
	UT_THREAD_ASKED = 0, /* seized and interrupted, has not stopped yet */
	UT_THREAD_STOPPED = 1,
	UT_THREAD_DEAD = 2,
	UT_THREAD_RUNNING = 3, /* was stopped, runs again */
};

/* struct ptrace_rseq_configuration: what a thread has registered with rseq(2); area 0: nothing. */
typedef struct {
	uint64_t area;
	uint32_t size, signature, flags, pad;
} ut_registration;

typedef struct {
	int32_t tid;
	uint32_t state;
	uint64_t sigmask;
	uint64_t regs[UT_NREGS];
	uint32_t xstate_len;
	uint32_t worker; /* a thread of the kernel's (io_uring), without user registers */
	ut_registration rseq;
	int64_t sent_ns; /* not stopped yet: when we sent it on to its signal, or looked again; or 0 */
	int32_t awake;   /* it was not asleep in the kernel when we looked before the stop */
	int32_t stood;   /* up to the resume, whatever has become of it since */
} ut_thread;

/* What we do with a call that a stop has ended with EINTR, by its number. */
enum {
	UT_CALL_LEAVE = 0, /* the thread gets EINTR: something may have been done */
	UT_CALL_WAIT,      /* repeat it: it waits for something, and goes on waiting */
	UT_CALL_ANEW,      /* repeat it: its work begins from the start, so stops leave it the time to end */
	UT_CALL_FILE,      /* as ANEW on a regular file or directory, else as WAIT */
	UT_CALL_DRIVER,    /* as ANEW on a regular file or directory, else the request decides */
};
enum { UT_CALLS = 1024 }; /* all numbers are below this */
int ut_call_rule(int64_t nr);

/* A call with a time limit, or one that begins anew, that a stop has interrupted and that the thread repeats. */
typedef struct {
	int32_t tid;
	int64_t nr;
	uint64_t rip, eflags;
	int64_t deadline_ns;
	int64_t begun_ns, until_ns; /* when it began anew; stops leave it alone until then */
} ut_wait;

/* A critical section of rseq(2): the address of rseq_cs, its value, and the abort address. */
typedef struct {
	uint64_t word, descriptor, abort;
} ut_section;

/* The head of a thread's struct rseq. */
typedef struct {
	uint64_t area;
	int32_t tid;
	uint8_t head[28];
} ut_rseq;

/* struct ptrace_sud_config: syscall user dispatch of a thread; mode 0: off. */
typedef struct {
	uint64_t mode, selector, offset, len;
} ut_dispatch;
/* A thread in a call that a stop leaves alone. It is traced, and runs. */
typedef struct {
	int32_t tid;
	int32_t trap;   /* a breakpoint event at `pc`, or -1 */
	int32_t signal; /* the trap sends this signal to stop the thread */
	int32_t out;    /* the thread stands at `pc` */
	int64_t nr;     /* the call's number, or one of those below */
	uint64_t pc;    /* where the call returns to, or 0 */
	int64_t until_ns;
	int64_t left_ns; /* when we saw it out of the call */
} ut_escort;

enum {
	UT_ESCORT_SUPERVISED = -1, /* a call that a seccomp supervisor answers */
	UT_ESCORT_FAULT = -2,      /* a page fault that a file system in user space answers */
};
enum { UT_BUSY = -1002 }; /* a thread is in a call that must not be broken off */

/* Calls with a time limit, or that begin anew. */
typedef struct {
	ut_wait *v;
	size_t n, cap;
} ut_waits;

/* Threads in calls that a stop leaves alone: calls.c. */
typedef struct {
	ut_escort *v;
	size_t n, cap;
	int32_t *awake; /* threads that ran at the last look */
	size_t nawake, awake_cap;
	uint64_t anew[UT_CALLS / 64]; /* numbers of calls of this process that a stop has made begin anew */
	int32_t careful;              /* threads have been in calls that a stop leaves alone */
	int32_t busy_tid;             /* after UT_BUSY: the thread, */
	int64_t busy_nr;              /* and its call, as in ut_escort */
} ut_calls;

/* seize.c */
typedef struct {
	int32_t timer;
	int32_t tid; /* our thread that it nudges */
	volatile int32_t going_on; /* a thread is being seized: the timer's handler may look at the table */
	int64_t end_ns;
} ut_seizing;

/* State of the thread that we inject calls into, to restore it: inject.c. */
typedef struct {
	uint64_t syscall_addr;   /* of an instruction, in the target */
	long options;            /* of ptrace(2) */
	unsigned long born;      /* the thread that an injected clone(2) has made */
	int32_t seccomp_trusted; /* a filter that we cannot suspend lets our calls pass */
	int32_t kept_stop;       /* the thread that got a SIGSTOP meanwhile; we send it again at the end */
	uint64_t sigmask;
	ut_section section;
	ut_dispatch dispatch;
} ut_injection;

/* Areas of rseq(2): rseq.c. */
typedef struct {
	ut_rseq *v;
	size_t n;
} ut_rseqs;

/* See guard.h. */
typedef struct {
	struct ut_guard_slot *slot;         /* NULL: no watchdog */
	const struct ut_guard_slot *repair; /* the state that a thread gets back once it stops */
	int64_t stopped_ns;                 /* when the last stop began */
} ut_guarded;

typedef struct {
	int32_t pid;
	int32_t pidfd;
	int32_t exit_status; /* wait status of the thread group leader, -1: alive */
	int32_t first_ended; /* that thread is ours, and has ended while others go on: ut_reap_first() */
	ut_thread *threads;
	size_t n, cap;
	uint8_t *xstate; /* one slot of xstate_stride bytes a thread */
	size_t xstate_cap, xstate_stride;
	ut_waits waits;
	ut_calls calls;
	ut_seizing seizing;
	ut_injection injection;
	ut_rseqs rseq;
	ut_guarded guard;
	ut_aside aside;
	int32_t urgent;  /* between ut_hurry() and ut_no_hurry() */
	int32_t crowded; /* so many of the next stops do not wait to find that out */
} ut_tracee;

/* All functions return >= 0 or -errno. */
int ut_tracee_open(int pid, ut_tracee **out);
void ut_tracee_close(ut_tracee *t);
/* Stop every thread; `threads` then has registers and signal masks. -ETIMEDOUT: a thread did not stop; the
 * others run again. We wait longer for one that is runnable, and merely gets no processor. -ESRCH: the
 * process is gone. */
int ut_tracee_stop(ut_tracee *t, int64_t timeout_ns);
/* The first part of a stop: wait, while all threads run, until none is in a call that a stop would harm.
 * UT_BUSY: one is; it stays traced until the next stop or ut_tracee_settle(). */
int ut_await_calls(ut_tracee *t, int64_t timeout_ns);
/* The same for several processes; none stands while we wait for another one. *at: the one that we waited for,
 * or that failed. */
int ut_await_calls_of(ut_tracee *const *v, size_t n, int64_t timeout_ns, size_t *at);
/* Look without stopping. 1: a thread is in a call that a supervisor or a file system in user space
 * answers. */
int ut_is_in_call(ut_tracee *t);
/* The second part: stop them. */
int ut_tracee_stop_now(ut_tracee *t, int64_t timeout_ns);
/* Before a stop: nothing else may take our processor from the first PTRACE_SEIZE to the resume, but while we wait
 * for the target's threads, which may need this very processor to stop. If an earlier stop had to wait for a
 * thread that got no processor, our other threads step aside until all stand. ut_no_hurry() follows
 * the resume. */
void ut_hurry(ut_tracee *t);
void ut_no_hurry(ut_tracee *t);
/* Ask every thread that we see to stop, and wait for none: several processes then stop side by side. */
int ut_tracee_ask(ut_tracee *t);
int ut_tracee_resume(ut_tracee *t);
/* Let threads go that stop only now; returns how many are left. */
int ut_tracee_settle(ut_tracee *t, int64_t timeout_ns);
/* Duplicate a thread's file descriptor. The thread may have a table of its own, unshare(2). -EINVAL before
 * Linux 6.9. */
int ut_thread_getfd(int tid, int fd);
/* Duplicate the process's, from the table of its first thread if that lives, else of `tid`. */
int ut_tracee_getfd(const ut_tracee *t, int tid, int fd);
int ut_tracee_index(const ut_tracee *t, int tid);
/* A thread that we can inject calls into, or -ESRCH. */
int ut_tracee_pick(const ut_tracee *t);

enum { UT_SECCOMP = -1001 }; /* we cannot suspend a filter, and it may end the target for a call of ours */

int ut_inject_begin(ut_tracee *t, size_t index);
/* Begin in any thread that allows it; returns its index. */
int ut_inject_begin_any(ut_tracee *t);
/* Make one call. If it finds all descriptors in use, make it again with a higher RLIMIT_NOFILE, and restore
 * that. */
int ut_inject(ut_tracee *t, size_t index, int64_t nr, const uint64_t args[6], int64_t *result);
/* Make the thread end itself: inject exit(0) and wait for its end. */
int ut_inject_exit(ut_tracee *t, size_t index);
int ut_inject_end(ut_tracee *t, size_t index);
int ut_tracee_set(ut_tracee *t, size_t index, const uint64_t *regs, const uint8_t *xstate,
		  size_t xstate_len, uint64_t sigmask);
/* Save what the kernel has written to the rseq(2) areas of the stopped threads; put it back after their
 * memory was replaced. */
int ut_rseq_keep(ut_tracee *t);
int ut_rseq_put(ut_tracee *t);

/* Make a userfaultfd of the target's memory, by a system call in its name; returns the fd, and leaves
 * no copy in the target. A process of its own does it, so that the death of the caller leaves
 * no thread of the target inside a call that it did not make. `user_mode_only` needs no privilege of the
 * target's; under WP_ASYNC it loses nothing, since no fault waits for user space. */
int ut_attach_uffd(int pid, int user_mode_only);
/* After -ETIMEDOUT: the thread that the last attach waited for, or 0. After UT_OVERDUE: the process that the
 * watchdog has ended. */
int ut_attach_late(void);
/* 1: the two processes have one memory (CLONE_VM without CLONE_THREAD, vfork). kcmp(2). */
int ut_same_memory(int a, int b);
/* Write a process's memory. This does not use /proc/PID/mem: a write there does not wait for the answer to
 * its fault, and fails. */
int ut_remote_write(int pid, uint64_t at, const void *from, size_t n);
#endif
