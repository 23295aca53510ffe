/* The sync engine: a thread for each userfaultfd lists the page and then lets the write go on. */
#include "arm.h"
#include "clock.h"
#include "compat.h"
#include "engine.h"
#include "gate.h"
#include "mm.h"
#include "proc_stat.h"
#include "sabotage.h"

#include <errno.h>
#include <sched.h>

#define SPIN_NS 20000
#define GRACE_NS 1000000 /* for a thread that is called to the gate */
#define TURNS 3

static int vcpu_of(const ut_shared *s, const ut_mm *mm, int tid)
{
	for (int i = 0; i < s->nvcpus; i++)
		if (s->vcpu[i].tid == tid && s->vcpu[i].state == UT_VCPU_BOUND)
			return i;
	return mm->vcpu;
}

/* The threshold is reached: leave the write unanswered, and call its thread to the gate. The signal, or ptrace, ends
 * its wait, and after the pause it faults again. A system call cannot go to the gate: see `answer`. */
static void turn_away(ut_mm *mm, int vcpu, uint64_t index)
{
	ut_vcpu *v = &mm->tracker->s->vcpu[vcpu];
	uint32_t word = ut_gate_full(mm->tracker->s);

	if (!mm->waiting.page[vcpu] || mm->waiting.word[vcpu] != word)
		mm->waiting.turns[vcpu] = 0;
	mm->waiting.asleep[vcpu] = 0;
	if (!mm->waiting.any)
		mm->waiting.since = ut_now_ns();
	mm->waiting.any = 1;
	mm->waiting.page[vcpu] = index + 1;
	mm->waiting.word[vcpu] = word;
	mm->waiting.turns[vcpu]++;
	if (v->forced > 0)
		ut_call(v);
}

/* A write is listed, and goes on; 1: it is the first one to its page. */
static int let_through(ut_mm *mm, uint64_t index, int vcpu)
{
	ut_shared *s = mm->tracker->s;
	int fresh = !bit_set(s, UT_LISTED, index);

	if (fresh)
		ut_append(s, vcpu, index);
	trap_fired(s, mm->index, index);
	ut_protect(mm->uffd, mm->base + index * UT_PAGE, UT_PAGE, UT_NO_TRAP);
	return fresh;
}

/* Whether a vCPU that was turned away is in a system call, which has to come to its end before it can stand. In
 * read(2) into the RAM the kernel repeats the fault at once, again and again, since a signal is pending; in GUP
 * it sleeps on, since only an answer wakes it. One that was in user code runs, towards the gate, or sleeps for a
 * lock of its address space for a moment. */
static int in_system_call(ut_mm *mm, int vcpu)
{
	ut_vcpu *v = &mm->tracker->s->vcpu[vcpu];

	mm->waiting.asleep[vcpu] = ut_thread_state(v->pid, v->tid) == 'D' ? mm->waiting.asleep[vcpu] + 1 : 0;
	/* It may have come to the gate since it was looked at. */
	return (mm->waiting.turns[vcpu] > TURNS || mm->waiting.asleep[vcpu] > TURNS) &&
	       atomic_load(&v->stood) < mm->waiting.word[vcpu];
}

static void on_fault(ut_mm *mm, uint64_t index, int tid)
{
	ut_shared *s = mm->tracker->s;
	int vcpu = vcpu_of(s, mm, tid), forced = vcpu >= 0 && s->vcpu[vcpu].forced;
	int counted = 0, full = 0;

	while (!ut_try_list(s, mm->index))
		sched_yield();
	if (!bit_test(s, UT_LISTED, index)) {
		int64_t limit = s->limit.threshold;

		counted = 1;
		full = atomic_fetch_add(&s->limit.count, 1) >= limit && limit;
	}
	if (full && forced) {
		atomic_fetch_sub(&s->limit.count, 1);
		turn_away(mm, vcpu, index);
	} else {
		/* Before the write goes on, and its thread may end the cycle. */
		if (full)
			ut_gate_full(s);
		atomic_fetch_add(&s->limit.count, let_through(mm, index, vcpu) - counted);
	}
	ut_listed(s, mm->index);
}

/* Those who were turned away: whoever stood at the gate since then has left its fault, and faults again if it
 * still wants to write. */
static void answer_waiting(ut_mm *mm)
{
	ut_shared *s = mm->tracker->s;
	uint32_t word = atomic_load(&s->gate.word);

	mm->waiting.any = 0;
	mm->waiting.since = ut_now_ns();
	for (int i = 0; i < s->nvcpus; i++) {
		uint64_t index = mm->waiting.page[i] - 1;

		if (!mm->waiting.page[i])
			continue;
		if (atomic_load(&s->vcpu[i].stood) >= mm->waiting.word[i] || atomic_load(&s->gate.halted)) {
			mm->waiting.page[i] = 0;
		} else if (mm->waiting.word[i] != word) {
			mm->waiting.page[i] = 0;
			on_fault(mm, index, s->vcpu[i].tid);
		} else if (in_system_call(mm, i)) {
			mm->waiting.page[i] = 0;
			while (!ut_try_list(s, mm->index))
				sched_yield();
			atomic_fetch_add(&s->limit.count, let_through(mm, index, i));
			ut_listed(s, mm->index);
		} else {
			mm->waiting.any = 1;
		}
	}
}

/* No handler: no fault may wait. */
static void give_up(ut_mm *mm)
{
	atomic_store(&mm->dead, 1);
	ut_let_go(mm);
	ut_event(mm->tracker->s);
}

static void on_faults(ut_mm *mm, const struct uffd_msg *msg, int n)
{
	for (int i = 0; i < n; i++)
		if (msg[i].event == UFFD_EVENT_PAGEFAULT)
			on_fault(mm, (msg[i].arg.pagefault.address - mm->base) / UT_PAGE,
				 msg[i].arg.pagefault.feat.ptid);
}

static void serve_faults(void *arg)
{
	struct uffd_msg msg[UT_FAULT_BATCH];
	struct pollfd p[UT_SERVER_FDS];
	ut_mm *mm = arg;
	int64_t idle = ut_now_ns();

	for (;;) {
		int n = ut_fault_server_read(&mm->server, msg), saw;

		if (mm->waiting.any && ut_now_ns() - mm->waiting.since > GRACE_NS)
			answer_waiting(mm);
		if (n < 0 || (n && ut_breaks(UT_BREAK_HANDLER))) {
			give_up(mm);
			return;
		}
		if (n) {
			on_faults(mm, msg, n);
			idle = ut_now_ns();
			continue;
		}
		/* The next fault of a thread that was just let go often follows at once. */
		saw = ut_fault_server_wait(&mm->server, p, UT_SERVER_FDS,
					   ut_now_ns() - idle < SPIN_NS ? 0 : mm->waiting.any ? 1 : -1);
		if (saw == -ESHUTDOWN)
			return;
		if (!saw)
			sched_yield();
	}
}

static int start(ut_mm *mm)
{
	return ut_fault_server_start(&mm->server, mm->uffd, serve_faults, mm);
}

static void stop(ut_mm *mm)
{
	ut_fault_server_stop(&mm->server);
}

const ut_engine_ops ut_engine_sync = {
	.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_THREAD_ID,
	.lists = 1,
	.start = start,
	.stop = stop,
	.host_wrote = ut_counted_host_wrote,
	.not_full = ut_counted_not_full,
};
