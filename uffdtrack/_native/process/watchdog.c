/* The watchdog. It shares a page with all that stop a target, and looks at it now and then: a stop costs one short
 * system call for its sake, which tells whether it lives. Each process that stops sends its pidfd first, so that a number is never mistaken.
 *
 * To end a process frees what it has stopped. Two things would be left broken by that: a thread in whose name a call is
 * being made goes on with our registers, and a call that the stop has interrupted and that is not mended yet returns
 * EINTR. So then the target gets SIGSTOP before its tracer dies: no thread of it returns to user mode. The watchdog
 * seizes them, puts all right, and lets the target go on. */
#include "cleanup.h"
#include "compat.h"
#include "fd_passing.h"
#include "guard_page.h"
#include "proc_stat.h"
#include "sabotage.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static struct ut_guard_page *page;

/* What the watchdog itself knows of a slot. */
struct watched {
	int stopper; /* 0: nobody */
	int pidfd, target_pidfd;
	int64_t seen_standing_ns;
};
static struct watched watched[UT_GUARD_SLOTS];

static int any_stands(int pid)
{
	AUTO_DIR dir = ut_open_tasks(pid);
	int tid;

	while (dir && (tid = ut_next_task(dir)))
		if (ut_thread_state(pid, tid) == 't')
			return 1;
	return 0;
}

static void note_verdict(const struct ut_guard_slot *slot)
{
	ut_guard_verdict *v = &page->verdicts[page->nverdicts++ % UT_GUARD_VERDICTS];

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
static void let_go_target(int stopper, int pidfd, int end_it)
{
	struct ut_guard_slot slots[UT_GUARD_SLOTS];
	struct pollfd end = {.fd = pidfd, .events = POLLIN};
	int own[UT_GUARD_SLOTS], n = 0, care = 0;

	for (int i = 0; i < UT_GUARD_SLOTS; i++)
		if (watched[i].stopper == stopper && page->slots[i].stopper == stopper) {
			care |= ut_needs_rescue(&page->slots[i], !end_it);
			own[n++] = i;
		}
	if (end_it && care && n)
		hold_stopper(pidfd, &page->slots[own[0]]);
	for (int k = 0; k < n; k++) {
		struct ut_guard_slot *slot = &slots[k];

		*slot = page->slots[own[k]];
		if (!end_it || !ut_needs_rescue(slot, 0))
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
		if (ut_needs_rescue(&slots[k], !end_it))
			ut_start_rescue(&slots[k], watched[own[k]].target_pidfd, end_it);
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
	struct ut_guard_news news;
	struct watched *w;
	int fds[UT_MOST_FDS], n, r = ut_receive_fds(from, &news, sizeof(news), fds, &n, MSG_DONTWAIT);

	if (r != 1 || n != 2)
		return r != 0;
	w = &watched[news.slot];
	if (w->stopper)
		drop(news.slot);
	*w = (struct watched){.stopper = news.stopper, .pidfd = fds[0], .target_pidfd = fds[1]};
	return 1;
}

static void watch(int from)
{
	int look_ms = page->max_stop_ns / 10000000;

	for (int open = 1;;) {
		struct pollfd fds[UT_GUARD_SLOTS + 1] = {{.fd = open ? from : -1, .events = POLLIN}};
		int at[UT_GUARD_SLOTS + 1];
		int64_t now;
		int n = 0;

		for (int i = 0; i < UT_GUARD_SLOTS; i++)
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
				let_go_target(stopper, fds[k].fd, 0);
			} else if (is_expired(i, now)) {
				note_verdict(&page->slots[i]);
				let_go_target(stopper, fds[k].fd, 1);
			}
		}
		if (fds[0].revents)
			open = receive(from);
	}
}

static _Noreturn void become_watchdog(int from)
{
	struct sched_param urgent = {.sched_priority = 2}; /* a worker has 1 while its target stands */
	sigset_t all;
	int null = open("/dev/null", O_RDWR);

	page = ut_guard_page();
	ut_guard_leave(); /* the other end is for who stops */
	ut_sabotage_off();
	setsid();
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	signal(SIGCHLD, SIG_IGN); /* rescuers are not waited for */
	prctl(PR_SET_NAME, "uffdtrack-guard");
	/* Nobody's pipe is to stay open for our sake. */
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	from = dup2(from, UT_GUARD_LINE);
	syscall(SYS_close_range, UT_GUARD_LINE + 1, ~0u, 0);
	if (chdir("/") || sched_setscheduler(0, SCHED_FIFO, &urgent)) {
		/* not allowed to: it will have to do */
	}
	watch(from);
	_exit(0);
}

int ut_guard_start(int64_t max_stop_ns)
{
	int from, child, r = ut_guard_open(max_stop_ns, &from);

	if (r <= 0)
		return r;
	child = fork();
	if (!child)
		become_watchdog(from);
	r = child < 0 ? -errno : child;
	close(from);
	if (child < 0)
		ut_guard_forget();
	return r;
}
