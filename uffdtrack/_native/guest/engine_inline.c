/* The inline engine: UFFD_FEATURE_SIGBUS, the thread that is about to write gets a signal, and lists the page itself. */
#include "compat.h"
#include "engine.h"
#include "gate.h"
#include "member.h"
#include "mm.h"

#include <errno.h>
#include <sched.h>

#define STRAYS 10000

static struct sigaction old_bus;

/* Nobody is left to rearm or to open the gate: write on, untracked. */
static void let_go_member(const ut_member *m)
{
	ut_unregister(m->uffd, (uint64_t)m->base, m->shared->npages * UT_PAGE);
}

/* The thread that was about to write lists the page itself. */
static void list_own_fault(ut_member *m, uint64_t index)
{
	ut_shared *s = m->shared;
	int vcpu = ut_vcpu_of(s, m->pid, ut_own_tid()), forced, full = 0;

	if (vcpu >= 0 && s->vcpu[vcpu].forced > 0 && !ut_member_park(m, vcpu)) {
		let_go_member(m);
		return;
	}
	for (int i = 1; !ut_try_list(s, m->mm); i++) {
		sched_yield();
		if (i % 4096 == 0 && !ut_member_has_tracker(m)) {
			let_go_member(m);
			return;
		}
	}
	/* Asked for again: a list has one writer, and the place may have been given to another thread meanwhile. */
	vcpu = ut_vcpu_of(s, m->pid, ut_own_tid());
	forced = vcpu >= 0 && s->vcpu[vcpu].forced > 0;
	if (!bit_test(s, UT_LISTED, index)) {
		int64_t limit = s->limit.threshold, count = atomic_fetch_add(&s->limit.count, 1);

		full = limit && count >= limit;
		if (full && forced) {
			/* The write faults again, and waits at the gate. */
			atomic_fetch_sub(&s->limit.count, 1);
			ut_listed(s, m->mm);
			ut_gate_full(s);
			return;
		}
		if (bit_set(s, UT_LISTED, index))
			atomic_fetch_sub(&s->limit.count, 1);
		else
			ut_append(s, vcpu, index);
	}
	trap_fired(s, m->mm, index);
	ut_protect(m->uffd, (uint64_t)m->base + index * UT_PAGE, UT_PAGE, UT_NO_TRAP);
	ut_listed(s, m->mm);
	if (full)
		ut_gate_full(s);
}

static void on_bus(int number, siginfo_t *info, void *context)
{
	int saved = errno;
	uint8_t *at = info->si_addr;

	for (int i = 0; i < UT_MAX_MEMBERS; i++) {
		ut_member *m = &ut_members[i];

		int open = ut_member_enter(m), ours = at >= m->base && at < m->base + m->bytes;

		if (open && ours)
			list_own_fault(m, (at - m->base) / UT_PAGE);
		else if (ours) /* the fault is from before: the write may go on now */
			ours = atomic_fetch_add(&m->strays, 1) < STRAYS;
		ut_member_leave(m);
		if (ours) {
			errno = saved;
			return;
		}
	}
	if (old_bus.sa_flags & SA_SIGINFO) {
		old_bus.sa_sigaction(number, info, context);
	} else if (old_bus.sa_handler != SIG_DFL && old_bus.sa_handler != SIG_IGN) {
		old_bus.sa_handler(number);
	} else {
		/* Not ours: the write faults again, and has the default effect. */
		signal(SIGBUS, SIG_DFL);
	}
}

static int handlers(void)
{
	struct sigaction now, bus = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};

	sigemptyset(&bus.sa_mask);
	/* A pause that came inside of the fault would count the page and not list it. */
	sigaddset(&bus.sa_mask, ut_gate_signal());
	if (sigaction(SIGBUS, NULL, &now))
		return -errno;
	if (now.sa_sigaction == on_bus)
		return 0;
	old_bus = now;
	return sigaction(SIGBUS, &bus, NULL) ? -errno : 0;
}

const ut_engine_ops ut_engine_inline = {
	.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_SIGBUS,
	.lists = 1,
	.handlers = handlers,
	.host_wrote = ut_counted_host_wrote,
	.not_full = ut_counted_not_full,
};
