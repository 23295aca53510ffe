/* /proc files about a thread, or a process as a whole. */
#ifndef UT_PROC_STAT_H
#define UT_PROC_STAT_H
#include <dirent.h>
#include <stddef.h>
#include <stdint.h>

/* Open a file of a thread's, or with `tid` 0 of the process. -ESRCH: there is none, or -errno. */
int ut_open_task(int pid, int tid, const char *name);
/* List the threads of a process. NULL and errno ESRCH: there is no such process. ut_next_task(): the next
 * one; 0: there are no more. */
DIR *ut_open_tasks(int pid);
/* How many threads there are, those too that have ended and are not reaped; -errno. */
long ut_count_tasks(int pid);
int ut_next_task(DIR *dir);

typedef struct {
	char state; /* one letter: proc_pid_stat(5) */
	uint64_t faults; /* minor and major */
} ut_proc_stat;

/* `tid` 0: the process, with the faults of threads that have ended. 0; -ESRCH: there is no such thread; or
 * -errno. */
int ut_proc_stat_read(int pid, int tid, ut_proc_stat *out);
/* The same from an open stat file; -ESRCH: its thread has ended. */
int ut_proc_stat_of(int fd, ut_proc_stat *out);
/* The state of a thread; 0: there is no such thread; '?': we cannot know. */
char ut_thread_state(int pid, int tid);
/* 1: it is no longer a thread that could be stopped. */
int ut_thread_is_dead(int pid, int tid);
/* 1: the kernel is writing its core: its threads have been killed, and end when that is done. */
int ut_dumps_core(int pid);
/* A living thread of the process, or -ESRCH. A first thread that has ended (pthread_exit in main) no longer
 * has memory, files or /proc entries, while the others go on. */
int ut_live_thread(int pid);
/* 1: the thread of that number belongs to the caller's process. */
int ut_is_own_thread(int tid);

/* Read a file of a thread's as text, cut off after `room` and ended by a 0. 0; -ENOENT: it is empty; -ESRCH:
 * there is no such file; or -errno. */
int ut_read_task(int pid, int tid, const char *name, char *to, size_t room);

/* The system call that a thread sleeps in: proc_pid_syscall(5). */
typedef struct {
	int running; /* it does not sleep, so we do not know */
	int64_t nr;  /* -1: it is in a page fault of its own code, and in no call */
	uint64_t fd; /* the first argument */
	uint64_t pc; /* where it returns to */
} ut_proc_call;

/* 0; -EACCES, -EPERM: we may not trace it; -errno. */
int ut_proc_call_read(int pid, int tid, ut_proc_call *out);
/* 1: the thread sleeps in a system call; 0: it does not; or -errno, as above. */
int ut_in_system_call(int pid, int tid);
#endif
