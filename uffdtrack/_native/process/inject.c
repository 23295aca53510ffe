/* System calls in the name of a stopped thread, and its state. */
#include "cleanup.h"
#include "compat.h"
#include "guard.h"
#include "maps.h"
#include "sabotage.h"
#include "tracee_parts.h"

#include <elf.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

/* A call that takes longer is interrupted: a file's open may wait for another machine, or for a person. */
#define CALL_NS 2000000000ll
#define TEXT (1ul << 20) /* of each mapping, that is looked through for a syscall instruction */

/* Wait until a thread in an injected call stops; *status as waitpid's. A call that cannot be interrupted is waited
 * for: its thread would go on with registers that are not its own. */
static int wait_stop(ut_tracee *t, ut_thread *th, int *status)
{
	const struct timespec nap = {0, 50000};
	int64_t start = ut_now_ns();
	int r, interrupted = 0;

	while (!(r = waitpid(th->tid, status, __WALL | WNOHANG)) || (r < 0 && errno == EINTR)) {
		int64_t waited = ut_now_ns() - start;

		if (waited > CALL_NS && !interrupted)
			interrupted = !trace(PTRACE_INTERRUPT, th->tid, NULL, NULL);
		if (waited < 1000000)
			sched_yield();
		else
			nanosleep(&nap, NULL);
	}
	if (r < 0 || !WIFSTOPPED(*status)) {
		th->state = UT_THREAD_DEAD;
		if (r >= 0)
			note_end(t, th->tid, *status);
		return -ESRCH;
	}
	if (!(*status >> 16) && WSTOPSIG(*status) == SIGSTOP) {
		t->injection.kept_stop = th->tid; /* cannot be blocked; given back by ut_inject_end */
		ut_guard_group_stop(t);
	}
	return 0;
}

static int find_syscall(ut_tracee *t)
{
	AUTO_FREE uint8_t *text = NULL;
	const uint8_t call[2] = {0x0f, 0x05};
	ut_maps maps = {0};
	uint8_t found[2];
	int err, tid = ut_tracee_pick(t);

	if (tid < 0)
		return tid;
	tid = t->threads[tid].tid;
	/* Without a vdso it is in a mapping that a rollback may take away. */
	if (t->injection.syscall_addr && !ut_read_remote(tid, t->injection.syscall_addr, found, 2) && !memcmp(found, call, 2))
		return 0;
	text = malloc(TEXT);
	if (!text)
		return -ENOMEM;
	err = ut_maps_read(&maps, t->pid, tid);
	if (!err)
		err = -ENOENT;
	/* The vdso has one; it is the first choice since no file is behind it. */
	for (int vdso = 1; vdso >= 0 && err == -ENOENT; vdso--) {
		for (size_t i = 0; i < maps.n && err == -ENOENT; i++) {
			const ut_region *r = &maps.regions[i];
			size_t len = r->end - r->start;

			if (!(r->prot & 4) || !(r->prot & 1) || (r->kind == UT_KIND_VDSO) != vdso)
				continue;
			len = len > TEXT ? TEXT : len;
			if (ut_read_remote(tid, r->start, text, len))
				continue;
			for (size_t k = 0; k + 1 < len && err; k++)
				if (!memcmp(text + k, call, 2)) {
					t->injection.syscall_addr = r->start + k;
					err = 0;
				}
		}
	}
	ut_maps_free(&maps);
	return err;
}

/* Take what the thread has set up about its own calls out of the way of ours. */
static int clear_way(ut_tracee *t, ut_thread *th)
{
	const ut_dispatch off = {0};
	int err;

	t->injection.options = PTRACE_O_TRACESYSGOOD | UT_PTRACE_O_SUSPEND_SECCOMP;
	err = trace(PTRACE_SETOPTIONS, th->tid, NULL, (void *)t->injection.options);

	/* Not allowed without CAP_SYS_ADMIN, nor to who is under a filter himself. Then a filter that ends the target
	 * cannot be told from one that allows all, and its verdict cannot be taken back. */
	if (err && err != -ESRCH) {
		if (ut_seccomp_mode(t->pid, th->tid) && !t->injection.seccomp_trusted)
			return UT_SECCOMP;
		t->injection.options = PTRACE_O_TRACESYSGOOD;
		err = trace(PTRACE_SETOPTIONS, th->tid, NULL, (void *)t->injection.options);
	}
	if (err)
		return err;
	/* Else a call may become SIGSYS, which is forced: while we have it blocked, that takes the handler away, too.
	 * A kernel without these requests has no way to turn it off from outside. */
	if (trace(UT_PTRACE_GET_DISPATCH, th->tid, (void *)sizeof(t->injection.dispatch), &t->injection.dispatch))
		t->injection.dispatch = off;
	ut_guard_injecting(t, th);
	if (t->injection.dispatch.mode)
		ut_set_dispatch(th->tid, &off);
	return 0;
}

int ut_inject_begin(ut_tracee *t, size_t index)
{
	ut_thread *th = &t->threads[index];
	uint64_t all = ~0ull;
	int err = find_syscall(t);

	if (err)
		return err;
	t->injection.kept_stop = 0;
	ut_rseq_find(th->tid, regs_of(th)->rip, &t->injection.section);
	err = clear_way(t, th);
	if (err)
		return err;
	t->injection.sigmask = th->sigmask;
	return trace(PTRACE_SETSIGMASK, th->tid, (void *)8, &all);
}

int ut_inject_begin_any(ut_tracee *t)
{
	int err = -ESRCH;

	for (size_t i = 0; i < t->n; i++) {
		if (t->threads[i].state != UT_THREAD_STOPPED || t->threads[i].worker)
			continue;
		err = ut_inject_begin(t, i);
		if (err != UT_SECCOMP) /* filters may be one thread's only */
			return err ? err : (int)i;
	}
	return err;
}

static int run_to(ut_tracee *t, ut_thread *th, int request, int want)
{
	int status, err;

	for (;;) {
		err = trace(request, th->tid, NULL, NULL);
		if (!err)
			err = wait_stop(t, th, &status);
		if (err)
			return err;
		if (status >> 8 == (SIGTRAP | PTRACE_EVENT_CLONE << 8))
			trace(PTRACE_GETEVENTMSG, th->tid, NULL, &t->injection.born);
		if (want == PTRACE_EVENT_STOP ? status >> 16 == want : status >> 8 == (SIGTRAP | 0x80))
			return 0;
		/* A group stop, or a SIGSTOP that we keep for later, goes on. Any other signal is blocked, so
		 * it was forced by the call: it is not delivered, and the call was not made. */
		if (want != PTRACE_EVENT_STOP && !(status >> 16) && WSTOPSIG(status) != SIGSTOP)
			return -EFAULT;
	}
}

static int start_call(ut_tracee *t, ut_thread *th, int64_t nr, const uint64_t args[6])
{
	struct user_regs_struct r = *regs_of(th);
	int err = find_syscall(t);

	if (err)
		return err;
	r.rip = t->injection.syscall_addr;
	r.cs = 0x33;           /* __USER_CS: a thread of a 64-bit process may be in 32-bit code */
	r.eflags &= ~0x100ull; /* TF: no single step over our call */
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

int ut_inject_into(ut_tracee *t, ut_thread *th, int64_t nr, const uint64_t args[6], int64_t *result)
{
	struct user_regs_struct r;
	int err = start_call(t, th, nr, args);

	for (int i = 0; i < 2 && !err; i++) { /* entry, exit */
		err = run_to(t, th, PTRACE_SYSCALL, 0);
		ut_sabotage(i ? "injected" : "inject");
	}
	TRY(err);
	TRY(trace(PTRACE_GETREGS, th->tid, NULL, &r));
	*result = r.rax;
	return 0;
}

/* More descriptors than the target's table holds: one of them is free then. 0: the limit is raised. */
static int raise_limit(ut_tracee *t, int tid, struct rlimit *kept)
{
	long table = ut_status_number(t->pid, tid, "FDSize:");
	rlim_t room = table + 1;
	struct rlimit more;
	int err;

	if (table < 0)
		return table;
	if (prlimit(t->pid, RLIMIT_NOFILE, NULL, kept))
		return -errno;
	more.rlim_cur = kept->rlim_cur > room ? kept->rlim_cur : room;
	more.rlim_max = kept->rlim_max > more.rlim_cur ? kept->rlim_max : more.rlim_cur;
	ut_guard_limit(t, kept);
	if (!prlimit(t->pid, RLIMIT_NOFILE, &more, NULL))
		return 0;
	err = -errno;
	ut_guard_limit(t, NULL);
	return err;
}

int ut_inject(ut_tracee *t, size_t index, int64_t nr, const uint64_t args[6], int64_t *result)
{
	ut_thread *th = &t->threads[index];
	struct rlimit kept;
	int err = ut_inject_into(t, th, nr, args, result);

	if (err || *result != -EMFILE || raise_limit(t, th->tid, &kept))
		return err;
	ut_sabotage("limited");
	err = ut_inject_into(t, th, nr, args, result);
	prlimit(t->pid, RLIMIT_NOFILE, &kept, NULL); /* lowering is allowed to whom raising was */
	ut_guard_limit(t, NULL);
	return err;
}

int ut_inject_thread(ut_tracee *t, size_t index, ut_thread *made)
{
	/* The stack is one that nobody runs on: the thread is stopped before its first instruction, and makes calls of
	 * ours only. Nothing is told of its end. */
	const uint64_t how = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	ut_thread *th = &t->threads[index];
	int64_t id;
	int status, err;

	*made = (ut_thread){.state = UT_THREAD_DEAD};
	t->injection.born = 0;
	err = trace(PTRACE_SETOPTIONS, th->tid, NULL, (void *)(t->injection.options | PTRACE_O_TRACECLONE));
	ut_guard_born(t, -1);
	if (!err)
		err = ut_inject_into(t, th, SYS_clone, (uint64_t[6]){how}, &id);
	if (!err && id < 0)
		err = id;
	ut_guard_born(t, err ? 0 : (int)t->injection.born);
	if (err)
		return err;
	made->tid = t->injection.born;
	err = wait_stop(t, made, &status);
	if (!err)
		err = trace(PTRACE_GETREGS, made->tid, NULL, regs_of(made));
	if (!err)
		made->state = UT_THREAD_STOPPED;
	ut_sabotage("born");
	return err;
}

int ut_inject_exit_of(ut_tracee *t, ut_thread *th)
{
	const uint64_t args[6] = {0};
	int status, err = start_call(t, th, SYS_exit, args);

	if (err)
		return err;
	do {
		err = trace(PTRACE_CONT, th->tid, NULL, NULL);
		if (err)
			return err == -ESRCH ? 0 : err;
	} while (!wait_stop(t, th, &status));
	ut_guard_born(t, 0);
	return 0;
}

int ut_inject_exit(ut_tracee *t, size_t index)
{
	int err = ut_inject_exit_of(t, &t->threads[index]);

	if (!err)
		ut_guard_injected(t);
	return err;
}

static int put_back(ut_tracee *t, ut_thread *th)
{
	struct user_regs_struct live = *regs_of(th);

	TRY(trace(PTRACE_INTERRUPT, th->tid, NULL, NULL));
	TRY(run_to(t, th, PTRACE_CONT, PTRACE_EVENT_STOP));
	TRY(trace(PTRACE_SETOPTIONS, th->tid, NULL, (void *)PTRACE_O_TRACESYSGOOD));
	return ut_give_back(th->tid, &live, t->injection.sigmask, &t->injection.section, &t->injection.dispatch);
}

/* Back to the stop that the thread was in: only there the kernel looks at rax and orig_rax and
 * restarts the call that the thread was taken out of. */
int ut_inject_end(ut_tracee *t, size_t index)
{
	ut_thread *th = &t->threads[index];
	int err = put_back(t, th);

	if (!err || th->state == UT_THREAD_DEAD)
		ut_guard_injected(t); /* else the watchdog does it, when we have ended */
	if (t->injection.kept_stop) {
		syscall(SYS_tgkill, t->pid, t->injection.kept_stop, SIGSTOP);
		t->injection.kept_stop = 0;
	}
	return err;
}

int ut_tracee_set(ut_tracee *t, size_t index, const uint64_t *regs, const uint8_t *xstate,
		  size_t xstate_len, uint64_t sigmask)
{
	ut_thread *th = &t->threads[index];
	struct iovec iov = {(void *)xstate, xstate_len};
	struct user_regs_struct *r = regs_of(th), live;
	ut_section section;

	memcpy(r, regs, sizeof(*r));
	ut_put_block(th->tid, r);
	th->sigmask = sigmask;
	ut_forget_wait(t, th->tid);
	/* Memory is that of then already, rseq_cs with it. */
	live = *r;
	ut_rseq_find(th->tid, r->rip, &section);
	TRY(ut_give_back(th->tid, &live, sigmask, &section, &(ut_dispatch){0}));
	return trace(PTRACE_SETREGSET, th->tid, (void *)NT_X86_XSTATE, &iov);
}
