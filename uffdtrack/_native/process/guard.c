/* The watchdog. It shares a page with all that stop a target, and looks at it now and then: a stop costs no system call
 * for its sake. Each process that stops sends its pidfd first, so that a number is never mistaken.
 *
 * To end a process frees what it has stopped. Two things would be left broken by that: a thread in whose name a call is
 * being made goes on with our registers, and a call that the stop has interrupted and that is not mended yet returns
 * EINTR. So then the target gets SIGSTOP before its tracer dies: no thread of it returns to user mode. The watchdog
 * seizes them, puts all right, and lets the target go on. */
#include "compat.h"
#include "guard.h"
#include "tracee_parts.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

enum { SLOTS = 256, VERDICTS = 64 };
#define KEPT_SIGNALS (1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1)) /* cannot be blocked */

struct page {
	int64_t max_stop_ns;
	int32_t nverdicts;
	ut_guard_verdict verdicts[VERDICTS];
	struct ut_guard_slot slots[SLOTS];
};

static struct page *page;
static int line = -1; /* to the watchdog */
static int is_watchdog; /* or of its kind */

/* What the watchdog itself knows of a slot. */
struct watched {
	int stopper; /* 0: nobody */
	int pidfd, target_pidfd;
	int64_t seen_standing_ns;
};
static struct watched watched[SLOTS];

struct news {
	int slot, stopper;
};

/* -- for who stops -------------------------------------------------------------------------------- */

static int send_fds(int to, const struct news *news, const int fds[2])
{
	char room[CMSG_SPACE(2 * sizeof(int))] = {0};
	struct iovec iov = {(void *)news, sizeof(*news)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(2 * sizeof(int));
	memcpy(CMSG_DATA(c), fds, 2 * sizeof(int));
	return sendmsg(to, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* Without a slot, or a watchdog that hears us, the stop is not watched; all else works. */
static void claim(ut_tracee *t)
{
	struct news news = {.stopper = getpid()};
	struct ut_guard_slot *slot;
	int own, none = 0;

	for (; news.slot < SLOTS; news.slot++, none = 0)
		if (__atomic_compare_exchange_n(&page->slots[news.slot].stopper, &none, news.stopper, 0,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			break;
	if (news.slot == SLOTS)
		return;
	slot = &page->slots[news.slot];
	slot->tracer = syscall(SYS_gettid);
	slot->target = t->pid;
	slot->phase = UT_GUARD_FREE;
	slot->since_ns = slot->injecting = slot->attaching = slot->group_stopped = slot->born = slot->limited = 0;
	own = syscall(SYS_pidfd_open, news.stopper, 0);
	if (own < 0 || send_fds(line, &news, (int[2]){own, t->pidfd}))
		slot->stopper = 0;
	else
		t->slot = slot;
	if (own >= 0)
		close(own);
}

static void set_phase(ut_tracee *t, int phase, int64_t since_ns)
{
	/* The watchdog loads them the other way round: a phase is never seen with the time of the one before. */
	__atomic_store_n(&t->slot->since_ns, since_ns, __ATOMIC_RELEASE);
	__atomic_store_n(&t->slot->phase, phase, __ATOMIC_RELEASE);
}

void ut_guard_stopping(ut_tracee *t)
{
	t->stopped_ns = ut_now_ns();
	if (!page)
		return;
	if (t->slot && t->slot->stopper != getpid())
		t->slot = NULL; /* of the process that we were forked from */
	if (!t->slot)
		claim(t);
	if (!t->slot)
		return;
	t->slot->group_stopped = 0;
	set_phase(t, UT_GUARD_STOPPING, t->stopped_ns);
}

void ut_guard_stopped(ut_tracee *t)
{
	if (t->slot)
		set_phase(t, UT_GUARD_STOPPED, t->stopped_ns);
}

void ut_guard_resumed(ut_tracee *t, size_t late)
{
	if (t->slot && late)
		set_phase(t, UT_GUARD_LATE, ut_now_ns());
	else if (t->slot)
		set_phase(t, UT_GUARD_FREE, 0);
}

void ut_guard_release(ut_tracee *t)
{
	/* A thread that could not be given its registers back is the watchdog's, once we have ended. */
	if (t->slot && t->slot->stopper == getpid() && !t->slot->injecting)
		__atomic_store_n(&t->slot->stopper, 0, __ATOMIC_RELEASE);
	t->slot = NULL;
}

void ut_guard_injecting(ut_tracee *t, const ut_thread *th)
{
	if (!t->slot)
		return;
	memcpy(t->slot->regs, th->regs, sizeof(th->regs));
	t->slot->sigmask = th->sigmask;
	t->slot->section = t->inject_section;
	t->slot->dispatch = t->inject_dispatch;
	__atomic_store_n(&t->slot->injecting, th->tid, __ATOMIC_RELEASE);
}

void ut_guard_injected(ut_tracee *t)
{
	if (t->slot)
		__atomic_store_n(&t->slot->injecting, 0, __ATOMIC_RELEASE);
}

void ut_guard_attaching(ut_tracee *t, int on)
{
	if (t->slot)
		t->slot->attaching = on;
}

void ut_guard_born(ut_tracee *t, int tid)
{
	if (t->slot)
		t->slot->born = tid;
}

void ut_guard_limit(ut_tracee *t, const struct rlimit *kept)
{
	if (!t->slot)
		return;
	if (kept)
		t->slot->limit = *kept;
	t->slot->limited = !!kept;
}

void ut_guard_group_stop(ut_tracee *t)
{
	if (t->slot)
		t->slot->group_stopped = 1;
}

int64_t ut_guard_max_ns(void)
{
	return page ? page->max_stop_ns : 0;
}

int64_t ut_guard_soft_end(const ut_tracee *t)
{
	return page ? t->stopped_ns + page->max_stop_ns / 2 : INT64_MAX;
}

int ut_tracee_overdue(const ut_tracee *t)
{
	ut_sabotage("clock");
	return ut_now_ns() >= ut_guard_soft_end(t);
}

int ut_guard_verdict_of(int pid, ut_guard_verdict *out)
{
	for (int i = 0; page && i < VERDICTS; i++)
		if (page->verdicts[i].stopper == pid) {
			*out = page->verdicts[i];
			return 1;
		}
	return 0;
}

/* -- the watchdog --------------------------------------------------------------------------------- */

static int any_stands(int pid)
{
	char path[32];
	struct dirent *e;
	int found = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return 0;
	while (!found && (e = readdir(dir)))
		found = ut_thread_state(pid, atoi(e->d_name)) == 't';
	closedir(dir);
	return found;
}

/* Whether the target is to be stopped by a signal first; `ended`: its tracer has died already, and what a stop had
 * interrupted has gone on. */
static int needs_care(const struct ut_guard_slot *slot, int ended)
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
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd", t->pid, t->threads[at].tid);
	dir = opendir(path);
	if (!dir)
		return;
	if (!ut_inject_begin(t, at)) {
		while ((e = readdir(dir))) {
			ssize_t n = readlinkat(dirfd(dir), e->d_name, name, sizeof(name) - 1);

			name[n < 0 ? 0 : n] = 0;
			if (!strcmp(name, "anon_inode:[userfaultfd]"))
				ut_inject(t, at, SYS_close, (uint64_t[6]){strtoull(e->d_name, NULL, 10)}, &ignored);
		}
		ut_inject_end(t, at);
	}
	closedir(dir);
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

int ut_guard_repair(ut_tracee *t, ut_thread *th)
{
	const struct ut_guard_slot *slot = t->repair;
	int err;

	if (!slot || slot->injecting != th->tid)
		return 0;
	t->repair = NULL;
	memcpy(th->regs, slot->regs, sizeof(th->regs));
	th->sigmask = slot->sigmask;
	if (slot->section.word)
		ut_rseq_abort(th->tid, &slot->section, regs_of(th));
	if (slot->dispatch.mode)
		ut_set_dispatch(th->tid, &slot->dispatch);
	err = trace(PTRACE_SETREGS, th->tid, NULL, th->regs);
	return err ? err : trace(PTRACE_SETSIGMASK, th->tid, (void *)8, &th->sigmask);
}

/* The target has no tracer any more, and, but where that one was killed by somebody else, SIGSTOP pending. Once they
 * are seized its threads cannot reach user mode, so this waits for as long as they take to stop. */
static void rescue(const struct ut_guard_slot *slot, int target_pidfd, int stopped)
{
	ut_tracee *t;
	int at, err, tries = 0;

	if (ut_tracee_open(slot->target, &t))
		return;
	t->repair = slot;
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

/* In a process of its own, since it may have to wait. */
static void start_rescue(const struct ut_guard_slot *slot, int target_pidfd, int stopped)
{
	int child = fork();

	if (child < 0 && stopped && !slot->group_stopped) /* broken, maybe, but not standing for ever */
		syscall(SYS_pidfd_send_signal, target_pidfd, SIGCONT, NULL, 0);
	if (child)
		return;
	signal(SIGCHLD, SIG_DFL);
	page = NULL; /* it is not watched: its stop has limits of its own, and what it does must be done */
	rescue(slot, target_pidfd, stopped);
	_exit(0);
}

static void note_verdict(const struct ut_guard_slot *slot)
{
	ut_guard_verdict *v = &page->verdicts[page->nverdicts++ % VERDICTS];

	*v = (ut_guard_verdict){
		.target = slot->target,
		.phase = slot->phase,
		.injecting = slot->injecting,
		.stood_ns = ut_now_ns() - slot->since_ns,
	};
	__atomic_store_n(&v->stopper, slot->stopper, __ATOMIC_RELEASE);
}

/* Nobody is to take the target's SIGSTOP away from it. */
static void hold_stopper(int pidfd, const struct ut_guard_slot *slot)
{
	char state = 0;

	syscall(SYS_pidfd_send_signal, pidfd, SIGSTOP, NULL, 0);
	for (int i = 0; i < 100 && state != 'T' && state != 't' && state != 'Z'; i++) {
		state = ut_thread_state(slot->stopper, slot->tracer);
		if (state != 'T')
			poll(NULL, 0, 1);
	}
}

static void drop(int i)
{
	close(watched[i].pidfd);
	close(watched[i].target_pidfd);
	watched[i].stopper = 0;
}

/* A process has ended, or is to be. Others of its slots are its other targets. */
static void let_go(int stopper, int pidfd, int end_it)
{
	struct ut_guard_slot slots[SLOTS];
	struct pollfd end = {.fd = pidfd, .events = POLLIN};
	int own[SLOTS], n = 0, care = 0;

	for (int i = 0; i < SLOTS; i++)
		if (watched[i].stopper == stopper && page->slots[i].stopper == stopper) {
			care |= needs_care(&page->slots[i], !end_it);
			own[n++] = i;
		}
	if (end_it && care && n)
		hold_stopper(pidfd, &page->slots[own[0]]);
	for (int k = 0; k < n; k++) {
		struct ut_guard_slot *slot = &slots[k];

		*slot = page->slots[own[k]];
		if (!end_it || !needs_care(slot, 0))
			continue;
		syscall(SYS_pidfd_send_signal, watched[own[k]].target_pidfd, SIGSTOP, NULL, 0);
		/* By its number it cannot be mistaken while it is traced. */
		if (slot->injecting)
			syscall(SYS_tgkill, slot->target, slot->injecting, SIGSTOP);
	}
	if (end_it) {
		syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
		poll(&end, 1, 2000);
	}
	for (int k = 0; k < n; k++) {
		if (needs_care(&slots[k], !end_it))
			start_rescue(&slots[k], watched[own[k]].target_pidfd, end_it);
		page->slots[own[k]].stopper = 0;
		drop(own[k]);
	}
}

static int is_expired(int i, int64_t now)
{
	const struct ut_guard_slot *slot = &page->slots[i];
	int phase = __atomic_load_n(&slot->phase, __ATOMIC_ACQUIRE);
	int64_t since = __atomic_load_n(&slot->since_ns, __ATOMIC_ACQUIRE);

	if (!since || phase == UT_GUARD_FREE || now - since < page->max_stop_ns) {
		watched[i].seen_standing_ns = 0;
		return 0;
	}
	if (phase != UT_GUARD_LATE)
		return 1;
	/* A thread that was asked to stop may have done so. Until now it has not been looked at again. */
	if (!any_stands(slot->target)) {
		watched[i].seen_standing_ns = 0;
		return 0;
	}
	if (!watched[i].seen_standing_ns)
		watched[i].seen_standing_ns = now;
	return now - watched[i].seen_standing_ns >= page->max_stop_ns / 5;
}

/* 0: nobody is left who could send. */
static int receive(int from)
{
	char room[CMSG_SPACE(2 * sizeof(int))];
	struct news news;
	struct iovec iov = {&news, sizeof(news)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
	ssize_t n = recvmsg(from, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	struct watched *w;
	int fds[2];

	if (n != sizeof(news) || !c || c->cmsg_len != CMSG_LEN(sizeof(fds)))
		return n != 0;
	w = &watched[news.slot];
	if (w->stopper)
		drop(news.slot);
	memcpy(fds, CMSG_DATA(c), sizeof(fds));
	*w = (struct watched){.stopper = news.stopper, .pidfd = fds[0], .target_pidfd = fds[1]};
	return 1;
}

static void watch(int from)
{
	int look_ms = page->max_stop_ns / 10000000;

	for (int open = 1;;) {
		struct pollfd fds[SLOTS + 1] = {{.fd = open ? from : -1, .events = POLLIN}};
		int at[SLOTS + 1];
		int64_t now;
		int n = 0;

		for (int i = 0; i < SLOTS; i++)
			if (watched[i].stopper) {
				at[++n] = i;
				fds[n] = (struct pollfd){.fd = watched[i].pidfd, .events = POLLIN};
			}
		if (!open && !n)
			return; /* nobody is left who could stop anything */
		poll(fds, n + 1, n ? (look_ms ? look_ms : 1) : -1);
		now = ut_now_ns();
		for (int k = 1; k <= n; k++) {
			int i = at[k], stopper = watched[i].stopper;

			if (!stopper)
				continue; /* went with another slot of the same process */
			if (page->slots[i].stopper != stopper) {
				drop(i);
			} else if (fds[k].revents) {
				let_go(stopper, fds[k].fd, 0);
			} else if (is_expired(i, now)) {
				note_verdict(&page->slots[i]);
				let_go(stopper, fds[k].fd, 1);
			}
		}
		if (fds[0].revents)
			open = receive(from);
	}
}

static void become_watchdog(int from)
{
	struct sched_param urgent = {.sched_priority = 2}; /* a worker has 1 while its target stands */
	sigset_t all;
	int null = open("/dev/null", O_RDWR);

	is_watchdog = 1;
	setsid();
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	signal(SIGCHLD, SIG_IGN); /* rescuers are not waited for */
	prctl(PR_SET_NAME, "uffdtrack-guard");
	/* Nobody's pipe is to stay open for our sake. */
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	from = dup2(from, 3);
	syscall(SYS_close_range, 4, ~0u, 0);
	if (chdir("/") || sched_setscheduler(0, SCHED_FIFO, &urgent)) {
		/* not allowed to: it will have to do */
	}
	watch(from);
	_exit(0);
}

int ut_guard_start(int64_t max_stop_ns)
{
	int pair[2], child, err;

	if (page)
		return 0;
	page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		err = -errno;
		goto out;
	}
	page->max_stop_ns = max_stop_ns;
	child = fork();
	if (!child) {
		close(pair[0]);
		become_watchdog(pair[1]);
	}
	err = -errno;
	close(pair[1]);
	if (child < 0) {
		close(pair[0]);
		goto out;
	}
	line = pair[0];
	return child;
out:
	if (page != MAP_FAILED)
		munmap(page, sizeof(*page));
	page = NULL;
	return err;
}

void ut_guard_leave(void)
{
	if (line >= 0)
		close(line);
	line = -1;
}

void ut_guard_forget(void)
{
	ut_guard_leave();
	if (page)
		munmap(page, sizeof(*page));
	page = NULL;
}

/* -- faults on purpose ------------------------------------------------------------------------------ */

void ut_sabotage(const char *point)
{
	static const char *order, *where;

	if (!order) {
		order = getenv("UFFDTRACK_SABOTAGE");
		order = order ? order : "";
		where = strchr(order, ':');
	}
	if (is_watchdog || !where || strcmp(where + 1, point))
		return;
	if (!strncmp(order, "slow", 4)) {
		poll(NULL, 0, 1000);
	} else if (!strncmp(order, "stop", 4)) {
		kill(getpid(), SIGSTOP);
	} else if (!strncmp(order, "sleep", 5)) {
		for (;;)
			pause();
	} else {
		for (volatile int i = 0;; i++)
			;
	}
}
