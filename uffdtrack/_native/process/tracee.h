/* Stopping the threads of another process, their registers, and system calls in their name. */
#ifndef UT_TRACEE_H
#define UT_TRACEE_H
#include "clock.h"
#include "proc_stat.h"

#include <stddef.h>
#include <stdint.h>

#define UT_NREGS 27 /* struct user_regs_struct, x86-64 */

enum {
	UT_THREAD_PENDING = 0, /* seized and interrupted, not stopped yet */
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
	uint32_t worker; /* a thread of the kernel's (io_uring): it has no user registers */
	ut_registration rseq;
	int64_t sent_ns; /* pending: it was sent on to the stop for a signal, or looked after, then; 0: not */
} ut_thread;

/* What becomes of a call that a stop has ended with EINTR, by its number. */
enum {
	UT_CALL_LEAVE = 0, /* the thread gets EINTR: something may have been done */
	UT_CALL_WAIT,      /* repeated; it waits for something, and goes on waiting */
	UT_CALL_ANEW,      /* repeated; its work begins from the start, so stops leave it the time to end */
	UT_CALL_FILE,      /* as ANEW on a regular file or directory, else as WAIT */
	UT_CALL_DRIVER,    /* as ANEW on a regular file or directory, else by the request */
};
enum { UT_CALLS = 1024 }; /* numbers below */
int ut_call_rule(int64_t nr);

/* A call with a time limit, or one that begins anew, that a stop has interrupted and that the thread repeats. */
typedef struct {
	int32_t tid;
	int64_t nr;
	uint64_t rip, eflags;
	int64_t deadline_ns;
	int64_t begun_ns, until_ns; /* begun anew; to be left alone until then */
} ut_wait;

/* A critical section of rseq(2): where rseq_cs is, what it says, and the address to go on at. */
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
	int32_t signal; /* by which it stops the thread */
	int32_t out;    /* it stands there */
	int64_t nr;     /* the call, or as below */
	uint64_t pc;    /* where the call returns to, or 0 */
	int64_t until_ns;
	int64_t left_ns; /* it was seen to be out of it */
} ut_held;

enum {
	UT_HELD_SUPERVISED = -1, /* a call that its seccomp supervisor answers */
	UT_HELD_FAULT = -2,      /* a page fault that a file system in user space answers */
};
enum { UT_BUSY = -1002 }; /* a thread is in a call that must not be broken off */

/* Calls with a time limit, or that begin anew. */
typedef struct {
	ut_wait *v;
	size_t n, cap;
} ut_waits;

/* Threads in calls that a stop leaves alone: calls.c. */
typedef struct {
	ut_held *v;
	size_t n, cap;
	uint64_t anew[UT_CALLS / 64]; /* numbers of calls of this process that a stop has made begin anew */
	int32_t careful;              /* there were threads in calls to be left alone */
	int32_t busy_tid;             /* after UT_BUSY: who, */
	int64_t busy_nr;              /* and in which call, as in ut_held */
} ut_calls;

/* seize.c */
typedef struct {
	int32_t timer;
	volatile int32_t going_on; /* a thread is being seized: the timer's handler may look at the table */
	int64_t end_ns;
} ut_seizing;

/* Of the thread that calls are injected into, to be put back: inject.c. */
typedef struct {
	uint64_t syscall_addr;   /* of an instruction, in the target */
	long options;            /* of ptrace(2) */
	unsigned long born;      /* the thread that an injected clone(2) has made */
	int32_t seccomp_trusted; /* a filter that cannot be suspended lets our calls pass */
	int32_t held_stop;       /* a SIGSTOP that came meanwhile, given back at the end: the thread that has got it */
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
	const struct ut_guard_slot *repair; /* what a thread is to get back once it stops */
	int64_t stopped_ns;                 /* when the last stop began */
} ut_guarded;

typedef struct {
	int32_t pid;
	int32_t pidfd;
	int32_t exit_status; /* wait status of the thread group leader, -1: alive */
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
} ut_tracee;

/* All functions return >= 0 or -errno. */
int ut_tracee_open(int pid, ut_tracee **out);
void ut_tracee_close(ut_tracee *t);
/* Stop every thread; registers and signal masks are in `threads` after. -ETIMEDOUT: one did not
 * stop; the others run again. One that is runnable, and merely gets no processor, is waited for longer. -ESRCH: the
 * process is gone. */
int ut_tracee_stop(ut_tracee *t, int64_t timeout_ns);
/* Its two parts. Wait, while all threads run, until none is in a call that a stop would harm: UT_BUSY, one is; it stays
 * traced until the next stop or ut_tracee_settle(). Then stop them. */
int ut_await_calls(ut_tracee *t, int64_t timeout_ns);
/* The same of several, of which none stands while another one is waited for; *at is the one that is, or failed. */
int ut_await_calls_of(ut_tracee *const *v, size_t n, int64_t timeout_ns, size_t *at);
/* A look that holds nobody: 1, a thread is in a call that its supervisor or a file system in user space answers. */
int ut_is_in_call(ut_tracee *t);
int ut_tracee_stop_now(ut_tracee *t, int64_t timeout_ns);
/* Ask every thread that shows to stop, and wait for none: several processes then stop side by side. */
int ut_tracee_ask(ut_tracee *t);
int ut_tracee_resume(ut_tracee *t);
/* Threads that did not stop in time are let go as they do; returns how many are left. */
int ut_tracee_settle(ut_tracee *t, int64_t timeout_ns);
/* A file descriptor of a thread's, duplicated. It may have a table of its own, unshare(2). -EINVAL before Linux 6.9. */
int ut_thread_getfd(int tid, int fd);
/* One of the process's, by its first thread's table where that lives. */
int ut_tracee_getfd(const ut_tracee *t, int tid, int fd);
int ut_tracee_index(const ut_tracee *t, int tid);
/* A thread whose registers a system call can be put into, or -ESRCH. */
int ut_tracee_pick(const ut_tracee *t);

enum { UT_SECCOMP = -1001 }; /* a filter cannot be suspended, and may end the target for a call of ours */

int ut_inject_begin(ut_tracee *t, size_t index);
/* In whichever thread can; returns its index. */
int ut_inject_begin_any(ut_tracee *t);
/* A call that finds all descriptors in use is made again with a higher RLIMIT_NOFILE, which is put back. */
int ut_inject(ut_tracee *t, size_t index, int64_t nr, const uint64_t args[6], int64_t *result);
/* Make the thread end itself: inject exit(0) and wait for its end. */
int ut_inject_exit(ut_tracee *t, size_t index);
int ut_inject_end(ut_tracee *t, size_t index);
int ut_tracee_set(ut_tracee *t, size_t index, const uint64_t *regs, const uint8_t *xstate,
		  size_t xstate_len, uint64_t sigmask);
/* What the kernel has written to the areas of rseq(2) of the threads that are stopped; put back after their memory was
 * replaced. */
int ut_rseq_keep(ut_tracee *t);
int ut_rseq_put(ut_tracee *t);

/* Make a userfaultfd of the target's memory, by a system call in its name; returns the fd, and no
 * copy is left in the target. Done by a process of its own, so that the death of the caller leaves
 * no thread of the target inside a call that it did not make. `user_mode_only` needs no privilege of the
 * target's; under WP_ASYNC it loses nothing, since no fault waits for user space. */
int ut_attach_uffd(int pid, int user_mode_only);
/* -ETIMEDOUT: the thread that the last attach has waited for, or 0. UT_OVERDUE: the process that the watchdog has
 * ended. */
int ut_attach_late(void);
/* 1: the two processes have one memory (CLONE_VM without CLONE_THREAD, vfork). kcmp(2). */
int ut_same_memory(int a, int b);
/* Not by /proc/PID/mem: a write there does not wait for the answer to its fault, and fails. */
int ut_remote_write(int pid, uint64_t at, const void *from, size_t n);
#endif
