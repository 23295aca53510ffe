#include "cleanup.h"
#include "compat.h"
#include "fd_passing.h"
#include "guard_page.h"
#include "sabotage.h"
#include "tracee_parts.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

static struct ut_guard_page *page;
static int line = -1; /* to the watchdog */

/* Whether the watchdog lives: its end of the line closes with it, and it never sends anything. Half a microsecond. */
static int is_watched(void)
{
	char byte;

	return recv(line, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

/* Without a free slot (so many targets at one time) the stop has no watchdog; all else works. */
static int claim(ut_tracee *t)
{
	struct ut_guard_news news = {.stopper = getpid()};
	struct ut_guard_slot *slot;
	int own, none = 0;

	for (; news.slot < UT_GUARD_SLOTS; news.slot++, none = 0)
		if (__atomic_compare_exchange_n(&page->slots[news.slot].stopper, &none, news.stopper, 0,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			break;
	if (news.slot == UT_GUARD_SLOTS)
		return 0;
	slot = &page->slots[news.slot];
	slot->tracer = syscall(SYS_gettid);
	slot->target = t->pid;
	slot->phase = UT_GUARD_FREE;
	slot->since_ns = slot->injecting = slot->attaching = slot->group_stopped = slot->born = slot->limited = 0;
	own = syscall(SYS_pidfd_open, news.stopper, 0);
	if (own < 0 || ut_send_fds(line, &news, sizeof(news), (int[2]){own, t->pidfd}, 2, MSG_DONTWAIT))
		slot->stopper = 0;
	else
		t->guard.slot = slot;
	if (own >= 0)
		close(own);
	return t->guard.slot ? 0 : UT_UNGUARDED;
}

static void set_phase(ut_tracee *t, int phase, int64_t since_ns)
{
	/* The watchdog loads them the other way round: a phase is never seen with the time of the one before. */
	__atomic_store_n(&t->guard.slot->since_ns, since_ns, __ATOMIC_RELEASE);
	__atomic_store_n(&t->guard.slot->phase, phase, __ATOMIC_RELEASE);
}

int ut_guard_stopping(ut_tracee *t)
{
	t->guard.stopped_ns = ut_now_ns();
	if (!page)
		return 0;
	if (!is_watched())
		return UT_UNGUARDED;
	if (t->guard.slot && t->guard.slot->stopper != getpid())
		t->guard.slot = NULL; /* of the process that we were forked from */
	if (!t->guard.slot)
		TRY(claim(t));
	if (!t->guard.slot)
		return 0;
	t->guard.slot->group_stopped = 0;
	set_phase(t, UT_GUARD_STOPPING, t->guard.stopped_ns);
	return 0;
}

void ut_guard_stopped(ut_tracee *t)
{
	if (t->guard.slot)
		set_phase(t, UT_GUARD_STOPPED, t->guard.stopped_ns);
}

void ut_guard_resumed(ut_tracee *t, size_t late)
{
	if (t->guard.slot && late)
		set_phase(t, UT_GUARD_LATE, ut_now_ns());
	else if (t->guard.slot)
		set_phase(t, UT_GUARD_FREE, 0);
}

void ut_guard_release(ut_tracee *t)
{
	/* A thread that could not be given its registers back is the watchdog's, once we have ended. */
	if (t->guard.slot && t->guard.slot->stopper == getpid() && !t->guard.slot->injecting)
		__atomic_store_n(&t->guard.slot->stopper, 0, __ATOMIC_RELEASE);
	t->guard.slot = NULL;
}

void ut_guard_injecting(ut_tracee *t, const ut_thread *th)
{
	if (!t->guard.slot)
		return;
	memcpy(t->guard.slot->regs, th->regs, sizeof(th->regs));
	t->guard.slot->sigmask = th->sigmask;
	t->guard.slot->section = t->injection.section;
	t->guard.slot->dispatch = t->injection.dispatch;
	__atomic_store_n(&t->guard.slot->injecting, th->tid, __ATOMIC_RELEASE);
}

void ut_guard_injected(ut_tracee *t)
{
	if (t->guard.slot)
		__atomic_store_n(&t->guard.slot->injecting, 0, __ATOMIC_RELEASE);
}

void ut_guard_attaching(ut_tracee *t, int on)
{
	if (t->guard.slot)
		t->guard.slot->attaching = on;
}

void ut_guard_born(ut_tracee *t, int tid)
{
	if (t->guard.slot)
		t->guard.slot->born = tid;
}

void ut_guard_limit(ut_tracee *t, const struct rlimit *kept)
{
	if (!t->guard.slot)
		return;
	if (kept)
		t->guard.slot->limit = *kept;
	t->guard.slot->limited = !!kept;
}

void ut_guard_group_stop(ut_tracee *t)
{
	if (t->guard.slot)
		t->guard.slot->group_stopped = 1;
}

int ut_guard_repair(ut_tracee *t, ut_thread *th)
{
	const struct ut_guard_slot *slot = t->guard.repair;

	if (!slot || slot->injecting != th->tid)
		return 0;
	t->guard.repair = NULL;
	memcpy(th->regs, slot->regs, sizeof(th->regs));
	th->sigmask = slot->sigmask;
	return ut_give_back(th->tid, regs_of(th), th->sigmask, &slot->section, &slot->dispatch);
}

int64_t ut_guard_max_ns(void)
{
	return page ? page->max_stop_ns : 0;
}

int64_t ut_guard_soft_end(const ut_tracee *t)
{
	return page ? t->guard.stopped_ns + page->max_stop_ns / 2 : INT64_MAX;
}

int ut_tracee_overdue(const ut_tracee *t)
{
	ut_sabotage("clock");
	return ut_now_ns() >= ut_guard_soft_end(t);
}

int ut_guard_verdict_of(int pid, ut_guard_verdict *out)
{
	for (int i = 0; page && i < UT_GUARD_VERDICTS; i++)
		if (page->verdicts[i].stopper == pid) {
			*out = page->verdicts[i];
			return 1;
		}
	return 0;
}

int ut_guard_open(int64_t max_stop_ns, int *theirs)
{
	int pair[2];

	if (page)
		return 0;
	page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED) {
		page = NULL;
		return -ENOMEM;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		int err = -errno;

		ut_guard_forget();
		return err;
	}
	page->max_stop_ns = max_stop_ns;
	line = pair[0];
	*theirs = pair[1];
	return 1;
}

struct ut_guard_page *ut_guard_page(void)
{
	return page;
}

int ut_guard_line(void)
{
	return line;
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
