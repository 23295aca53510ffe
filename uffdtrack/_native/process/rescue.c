/* Putting a target right whose tracer was ended in the middle of something. */
#include "cleanup.h"
#include "compat.h"
#include "guard_page.h"
#include "tracee_parts.h"

#include <poll.h>
#include <string.h>

#define KEPT_SIGNALS (1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1)) /* cannot be blocked */

int ut_needs_rescue(const struct ut_guard_slot *slot, int ended)
{
	if (ended)
		return slot->injecting;
	return slot->injecting || slot->phase == UT_GUARD_STOPPING || slot->phase == UT_GUARD_LATE;
}

/* Userfaultfds that were made in the target's name, of which it is not to keep any. */
static void close_uffds(ut_tracee *t, int at)
{
	char path[64], name[64];
	struct dirent *e;
	int64_t ignored;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd", t->pid, t->threads[at].tid);
	AUTO_DIR dir = opendir(path);

	if (!dir || ut_inject_begin(t, at))
		return;
	while ((e = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), e->d_name, name, sizeof(name) - 1);

		name[n < 0 ? 0 : n] = 0;
		if (!strcmp(name, "anon_inode:[userfaultfd]"))
			ut_inject(t, at, SYS_close, (uint64_t[6]){strtoull(e->d_name, NULL, 10)}, &ignored);
	}
	ut_inject_end(t, at);
}

/* A thread that we have made in the target, and that nobody but us knows of, ends. */
static void end_born(ut_tracee *t, const struct ut_guard_slot *slot)
{
	for (size_t i = 0; slot->born && i < t->n; i++) {
		ut_thread *th = &t->threads[i];
		int is_it = slot->born == th->tid;

		if (th->state != UT_THREAD_STOPPED || th->worker || th->tid == slot->injecting)
			continue;
		/* Made just before its number was noted: it has not run, and blocks all as we do. */
		if (slot->born < 0)
			is_it = regs_of(th)->orig_rax == SYS_clone && !regs_of(th)->rax && !~(th->sigmask | KEPT_SIGNALS);
		if (is_it && !ut_inject_begin(t, i))
			ut_inject_exit(t, i);
	}
}

/* The target has no tracer any more, and, but where that one was killed by somebody else, SIGSTOP pending. Once they
 * are seized its threads cannot reach user mode, so this waits for as long as they take to stop. */
static void rescue(const struct ut_guard_slot *slot, int target_pidfd, int stopped)
{
	ut_tracee *t;
	int at, err, tries = 0;

	if (ut_tracee_open(slot->target, &t))
		return;
	t->guard.repair = slot;
	do /* the dead tracer may not have let go of all yet */
		err = ut_tracee_stop_now(t, 1000000000); /* what a stop breaks off, SIGSTOP has */
	while ((err == -EPERM || err == -EACCES) && ++tries < 100 && !poll(NULL, 0, 10));
	if (slot->limited)
		prlimit(slot->target, RLIMIT_NOFILE, &slot->limit, NULL);
	if (!err)
		end_born(t, slot);
	at = slot->injecting ? ut_tracee_index(t, slot->injecting) : ut_tracee_pick(t);
	if (!err && slot->attaching && at >= 0)
		close_uffds(t, at);
	err = ut_tracee_resume(t);
	if (stopped && !slot->group_stopped)
		syscall(SYS_pidfd_send_signal, target_pidfd, SIGCONT, NULL, 0);
	while (err > 0)
		err = ut_tracee_settle(t, 1000000000);
	ut_tracee_close(t);
}

void ut_start_rescue(const struct ut_guard_slot *slot, int target_pidfd, int stopped)
{
	int child = fork();

	if (child < 0 && stopped && !slot->group_stopped) /* broken, maybe, but not standing for ever */
		syscall(SYS_pidfd_send_signal, target_pidfd, SIGCONT, NULL, 0);
	if (child)
		return;
	signal(SIGCHLD, SIG_DFL);
	close(UT_GUARD_LINE); /* who stops is to see it when the watchdog has ended */
	ut_guard_forget(); /* no watchdog here: this stop has its own limits, and must not be cut short */
	rescue(slot, target_pidfd, stopped);
	_exit(0);
}
