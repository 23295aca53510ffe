/* System calls in the name of a stopped thread, and its state. */
#include "compat.h"
#include "maps.h"
#include "tracee_parts.h"

#include <elf.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>

/* Wait until a thread in an injected call stops; *status as waitpid's. */
static int wait_stop(ut_tracee *t, ut_thread *th, int *status)
{
	int r;

	do
		r = waitpid(th->tid, status, __WALL);
	while (r < 0 && errno == EINTR);
	if (r < 0 || !WIFSTOPPED(*status)) {
		th->state = UT_THREAD_DEAD;
		if (r >= 0)
			note_end(t, th->tid, *status);
		return -ESRCH;
	}
	if (!(*status >> 16) && WSTOPSIG(*status) == SIGSTOP)
		t->held_stop = th->tid; /* cannot be blocked; given back by ut_inject_end */
	return 0;
}

static int find_syscall(ut_tracee *t)
{
	ut_maps maps = {0};
	uint8_t *text = NULL;
	int err, tid;

	if (t->syscall_addr)
		return 0;
	tid = t->threads[ut_tracee_pick(t)].tid;
	err = ut_maps_read(&maps, t->pid, tid);
	if (err)
		return err;
	err = -ENOENT;
	/* The vdso has one; it is the first choice since no file is behind it. */
	for (int vdso = 1; vdso >= 0 && err; vdso--) {
		for (size_t i = 0; i < maps.n && err; i++) {
			const ut_region *r = &maps.regions[i];
			size_t len = r->end - r->start;

			if (!(r->prot & 4) || !(r->prot & 1) || (r->kind == UT_KIND_VDSO) != vdso)
				continue;
			len = len > (1 << 20) ? 1 << 20 : len;
			text = realloc(text, len);
			if (!text || ut_read_remote(tid, r->start, text, len))
				continue;
			for (size_t k = 0; k + 1 < len && err; k++)
				if (text[k] == 0x0f && text[k + 1] == 0x05) {
					t->syscall_addr = r->start + k;
					err = 0;
				}
		}
	}
	free(text);
	ut_maps_free(&maps);
	return err;
}

int ut_inject_begin(ut_tracee *t, size_t index, int suspend_seccomp)
{
	ut_thread *th = &t->threads[index];
	uint64_t all = ~0ull;
	long options = PTRACE_O_TRACESYSGOOD;
	int err;

	if (regs_of(th)->cs != 0x33) /* __USER_CS: the thread runs 32-bit code */
		return -ENOEXEC;
	err = find_syscall(t);
	if (err)
		return err;
	t->held_stop = 0;
	if (suspend_seccomp)
		options |= 1 << 21; /* PTRACE_O_SUSPEND_SECCOMP, Linux 4.3 */
	err = trace(PTRACE_SETOPTIONS, th->tid, NULL, (void *)options);
	if (err)
		return err;
	t->inject_sigmask = th->sigmask;
	return trace(PTRACE_SETSIGMASK, th->tid, (void *)8, &all);
}

static int run_to(ut_tracee *t, ut_thread *th, int request, int want)
{
	int status, err;

	do {
		err = trace(request, th->tid, NULL, NULL);
		if (!err)
			err = wait_stop(t, th, &status);
		if (err)
			return err;
		/* Other stops on the way (a group stop, a SIGSTOP that is held) go on. */
	} while (want == PTRACE_EVENT_STOP ? status >> 16 != want
					   : status >> 8 != (SIGTRAP | 0x80));
	return 0;
}

static int start_call(ut_tracee *t, ut_thread *th, int64_t nr, const uint64_t args[6])
{
	struct user_regs_struct r = *regs_of(th);

	r.rip = t->syscall_addr;
	r.rax = nr;
	r.orig_rax = -1; /* no call to restart */
	r.rdi = args[0];
	r.rsi = args[1];
	r.rdx = args[2];
	r.r10 = args[3];
	r.r8 = args[4];
	r.r9 = args[5];
	return trace(PTRACE_SETREGS, th->tid, NULL, &r);
}

int ut_inject(ut_tracee *t, size_t index, int64_t nr, const uint64_t args[6], int64_t *result)
{
	ut_thread *th = &t->threads[index];
	struct user_regs_struct r;
	int err = start_call(t, th, nr, args);

	for (int i = 0; i < 2 && !err; i++) /* entry, exit */
		err = run_to(t, th, PTRACE_SYSCALL, 0);
	if (!err)
		err = trace(PTRACE_GETREGS, th->tid, NULL, &r);
	if (err)
		return err;
	*result = r.rax;
	return 0;
}

int ut_inject_exit(ut_tracee *t, size_t index)
{
	ut_thread *th = &t->threads[index];
	const uint64_t args[6] = {0};
	int status, err = start_call(t, th, SYS_exit, args);

	if (err)
		return err;
	do {
		err = trace(PTRACE_CONT, th->tid, NULL, NULL);
		if (err)
			return err == -ESRCH ? 0 : err;
	} while (!wait_stop(t, th, &status));
	return 0;
}

/* Back to the stop that the thread was in: only there the kernel looks at rax and orig_rax and
 * restarts the call that the thread was taken out of. */
int ut_inject_end(ut_tracee *t, size_t index)
{
	ut_thread *th = &t->threads[index];
	int err = trace(PTRACE_INTERRUPT, th->tid, NULL, NULL);

	if (!err)
		err = run_to(t, th, PTRACE_CONT, PTRACE_EVENT_STOP);
	if (!err)
		err = trace(PTRACE_SETOPTIONS, th->tid, NULL, (void *)PTRACE_O_TRACESYSGOOD);
	if (!err)
		err = trace(PTRACE_SETREGS, th->tid, NULL, th->regs);
	if (!err)
		err = trace(PTRACE_SETSIGMASK, th->tid, (void *)8, &t->inject_sigmask);
	if (t->held_stop) {
		syscall(SYS_tgkill, t->pid, t->held_stop, SIGSTOP);
		t->held_stop = 0;
	}
	return err;
}

int ut_tracee_set(ut_tracee *t, size_t index, const uint64_t *regs, const uint8_t *xstate,
		  size_t xstate_len, uint64_t sigmask)
{
	ut_thread *th = &t->threads[index];
	struct iovec iov = {(void *)xstate, xstate_len};
	struct user_regs_struct *r = regs_of(th);
	int err;

	memcpy(r, regs, sizeof(*r));
	/* The block that a timed call restarts from is the thread's present one, not the one of then:
	 * the call itself is repeated. */
	if ((int64_t)r->orig_rax >= 0 && (int64_t)r->rax == -ERESTART_RESTARTBLOCK)
		r->rax = -ERESTARTNOHAND;
	th->sigmask = sigmask;
	ut_forget_wait(t, th->tid);
	err = trace(PTRACE_SETREGS, th->tid, NULL, r);
	if (!err)
		err = trace(PTRACE_SETREGSET, th->tid, (void *)NT_X86_XSTATE, &iov);
	if (!err)
		err = trace(PTRACE_SETSIGMASK, th->tid, (void *)8, &sigmask);
	return err;
}
