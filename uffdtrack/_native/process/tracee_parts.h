/* What the parts of a tracee have in common. From below: threads.c has the table, seize.c seizes threads,
 * blocks.c knows the calls that the kernel goes on with by restart_syscall(2), restart.c mends interrupted
 * system calls, halt.c follows a thread to its stop and releases it, calls.c waits for calls that must not be
 * interrupted, tracee.c stops all threads; inject.c runs system calls in a thread's name, attach.c uses them to
 * make a userfaultfd. */
#ifndef UT_TRACEE_PARTS_H
#define UT_TRACEE_PARTS_H
#include "compat.h"
#include "tracee.h"

#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/user.h>
#include <unistd.h>

_Static_assert(sizeof(struct user_regs_struct) == UT_NREGS * 8, "user_regs_struct");

/* In-kernel error: repeat the call unless a signal handler ran, then EINTR
 * (include/linux/errno.h; arch_do_signal_or_restart in arch/x86/kernel/signal.c). */
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516

static inline struct user_regs_struct *regs_of(ut_thread *th)
{
	return (struct user_regs_struct *)th->regs;
}

static inline long trace(int request, int tid, void *addr, void *data)
{
	long r = syscall(SYS_ptrace, request, tid, addr, data);

	return r < 0 ? -errno : r;
}

int ut_read_remote(int tid, uint64_t addr, void *to, size_t len);
/* rseq.c: what the thread has registered; area 0: nothing, or the kernel does not say. */
ut_registration ut_rseq_of(int tid);
/* Find the critical section that a stopped thread with that instruction pointer is inside; word 0: it is in
 * none. */
void ut_rseq_find(int tid, uint64_t rip, ut_section *found);
/* Let the thread go on at the section's abort address, as the kernel does unless our call keeps it from
 * that. */
void ut_rseq_abort(int tid, const ut_section *s, struct user_regs_struct *live);
/* rseq.c: syscall user dispatch of a thread. */
void ut_set_dispatch(int tid, const ut_dispatch *d);
/* Give a stopped thread back its registers, signal mask and syscall user dispatch; if it is inside a critical
 * section, it goes on outside. `live`: the registers that it gets. */
int ut_give_back(int tid, struct user_regs_struct *live, uint64_t sigmask, const ut_section *section,
		 const ut_dispatch *dispatch);
/* seccomp.c: a number of /proc/PID/task/TID/status; -ENOENT: no such line, or no such thread. */
long ut_status_number(int pid, int tid, const char *key);
/* The same for one that is a mask of signals; 0 or -errno. */
int ut_status_mask(int pid, int tid, const char *key, uint64_t *mask);
/* 0: the thread is under no filter. */
int ut_seccomp_mode(int pid, int tid);
/* 1: we know all its filters, and they let the calls pass that attaching injects. */
int ut_seccomp_lets_attach(int pid, int tid, uint64_t uffd_flags);
/* A thread has stopped: take its registers, and undo what the stop did to its call. */
int ut_note_stop(ut_tracee *t, ut_thread *th);
/* inject.c: as ut_inject. */
int ut_inject_into(ut_tracee *t, ut_thread *th, int64_t nr, const uint64_t args[6], int64_t *result);
/* Make the thread that we inject calls into create another thread, which makes injected calls only and is not
 * in the table. ut_inject_exit_of() ends it. */
int ut_inject_thread(ut_tracee *t, size_t index, ut_thread *made);
int ut_inject_exit_of(ut_tracee *t, ut_thread *th);
/* Signals of a thread's own instructions, as in a mask. */
#define UT_SYNCHRONOUS                                                                                  \
	(1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1) | 1ull << (SIGILL - 1) | 1ull << (SIGTRAP - 1) |   \
	 1ull << (SIGFPE - 1) | 1ull << (SIGSYS - 1))
/* 1: a signal of the thread's own instruction waits for delivery, and the thread has stopped for another
 * reason. -errno. */
int ut_fault_is_due(const ut_tracee *t, int tid);
/* The signal that we pass to a thread that has stopped for signal `number`; 0: none. */
int ut_signal_to_pass(int tid, int number);
/* Forget the thread's entry in `waits`: it is no longer in that call. */
void ut_forget_wait(ut_tracee *t, int tid);
const ut_wait *ut_find_wait(const ut_tracee *t, int tid);
/* blocks.c: a thread has stopped, with its registers `r`. If the kernel goes on with a call of it that an earlier stop
 * has interrupted, they get that call's number. */
void ut_note_block(int tid, struct user_regs_struct *r);
/* A thread gets the registers `r` of another time. A call of then that the kernel would have gone on with is repeated.
 * Where its number is not known, the kernel goes on with it if the thread is in that one at this stop; else it ends
 * with EINTR. */
void ut_put_block(int tid, struct user_regs_struct *r);
/* Once, before the first stop, and before a process is forked that stops the target. 0 or -ENOMEM. */
int ut_blocks_open(void);
/* 1: calls of that number, on such a descriptor if they take one, begin anew in this process. */
int ut_begins_anew(const ut_tracee *t, int tid, int64_t nr, uint64_t fd);
/* The last look, just before we interrupt a thread. UT_BUSY: it is in such a call by now, and in `calls`. */
int ut_escort_seized(ut_tracee *t, int tid);
void ut_close_calls(ut_tracee *t);
/* seize.c: seize a thread, between a begin and an end. 0; -ESRCH: it has ended; -ETIMEDOUT: it is in an exec
 * that does not come to its end. */
int ut_seize(ut_tracee *t, int tid);
void ut_seizing_begin(const ut_tracee *t);
void ut_seizing_end(const ut_tracee *t);
/* Between a begin and an end: sleep until the thread has news, so that it may have this processor; 0: it has none after so
 * long, or we must not sleep. */
int ut_seizing_await(const ut_tracee *t, int tid, long ns);
/* Reap the threads that were killed while we traced them: an exec waits for that. */
void ut_reap_killed(ut_tracee *t);
/* halt.c. Do not wait for a first thread that has ended while others go on: the kernel reports its end after theirs. */
void ut_give_up_first(ut_tracee *t);
/* Then: its parent hears of its end when we have. */
void ut_reap_first(ut_tracee *t);
int ut_seizing_open(ut_tracee *t);
void ut_seizing_close(const ut_tracee *t);
/* halt.c. 1: the thread has stopped or is dead; 0: not yet; or -errno. */
int ut_poll_thread(ut_tracee *t, ut_thread *th);
/* threads.c */
/* Add a thread that we have seized and asked to stop. */
int ut_add_thread(ut_tracee *t, int tid);
/* Between two stops: keep only the threads that have not stopped yet. */
void ut_keep_asked(ut_tracee *t);
/* Ask those to stop that have not stopped yet, once more. */
void ut_ask_again(const ut_tracee *t);
/* We have reaped a thread. The first thread's status is that of the process. */
static inline void note_end(ut_tracee *t, int tid, int status)
{
	if (tid == t->pid)
		t->exit_status = status;
}
#endif
