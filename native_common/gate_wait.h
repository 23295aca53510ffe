/* Wait until every vCPU stands at a pause gate, or until a threshold closes it.
 *
 * A futex word (`event`) counts events: a vCPU has come to the gate, the threshold is reached, the tracker is
 * being closed. We read it before we look at anything else, so we never sleep through an event. */
#ifndef UT_GATE_WAIT_H
#define UT_GATE_WAIT_H
#include "clock.h"
#include "futex.h"

#include <errno.h>
#include <sched.h>

enum {
	UT_GATE_SPIN_NS = 30000,      /* most vCPUs come at once */
	UT_GATE_URGENT_SPIN_NS = 4000,
	UT_GATE_AGAIN_NS = 10000000,  /* then call them again */
	UT_GATE_STALL_NS = 5000000,
	UT_GATE_NAP_NS = 1000000,
	UT_GATE_SLICE_NS = 100000000,
};

typedef struct {
	_Atomic uint32_t *event;
	int whose;               /* see futex.h */
	/* 1: every vCPU that can be stopped stands; 0: not yet; -errno: waiting any longer is no use. */
	int (*stands)(void *arg);
	/* Call those that do not stand yet. */
	void (*call)(void *arg);
	void *arg;
} ut_gate_wait;

/* 0; -ETIMEDOUT, or what `stands` says. */
static inline int ut_gate_wait_parked(const ut_gate_wait *g, int64_t timeout_ns)
{
	int64_t now = ut_now_ns(), last = now, spent = 0, spin, again = now + UT_GATE_AGAIN_NS;

	/* A vCPU that is queued for this very processor gets it when we sleep. No sched_yield(2): from Linux 6.18 on,
	 * each one gives up a whole time slice where another thread could run. */
	spin = now + (sched_getscheduler(0) == SCHED_OTHER ? UT_GATE_SPIN_NS : UT_GATE_URGENT_SPIN_NS);
	for (;;) {
		uint32_t event = atomic_load(g->event);
		int stands = g->stands(g->arg);

		if (stands)
			return stands < 0 ? stands : 0;
		now = ut_now_ns();
		/* If this thread itself was kept from running, the others may have been: such time does not
		 * count. */
		spent += now - last < UT_GATE_STALL_NS ? now - last : UT_GATE_STALL_NS;
		last = now;
		if (spent >= timeout_ns)
			return -ETIMEDOUT;
		if (now < spin) {
			__builtin_ia32_pause();
			continue;
		}
		if (now >= again) {
			g->call(g->arg);
			again = now + UT_GATE_AGAIN_NS;
		}
		ut_futex_wait(g->event, event, UT_GATE_NAP_NS, g->whose);
	}
}

/* `full`: 1: the threshold is reached, and every vCPU stands; 0: not yet; -errno. Returns what it says, or 0 when the
 * time is over. */
static inline int ut_gate_wait_full(_Atomic uint32_t *event, int whose, int (*full)(void *arg), void *arg,
				    int64_t timeout_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;

	for (;;) {
		uint32_t seen = atomic_load(event);
		int result = full(arg);
		int64_t left = deadline - ut_now_ns();

		if (result || left <= 0)
			return result;
		ut_futex_wait(event, seen, left < UT_GATE_SLICE_NS ? left : UT_GATE_SLICE_NS, whose);
	}
}

#endif
