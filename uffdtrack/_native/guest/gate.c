#include "clock.h"
#include "futex.h"
#include "gate.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#define HOLD_NS 2000000

/* -- vCPUs --------------------------------------------------------------------------------------- */

int ut_vcpu_of(const ut_shared *s, int pid, int tid)
{
	for (int i = 0; i < s->nvcpus; i++)
		if (s->vcpu[i].tid == tid && s->vcpu[i].pid == pid && s->vcpu[i].state == UT_VCPU_BOUND)
			return i;
	return UT_HOST;
}

void ut_vcpu_bind(ut_shared *s, int vcpu, int pid, int tid, int forced)
{
	ut_vcpu *v = &s->vcpu[vcpu];

	v->pid = pid;
	v->tid = tid;
	v->forced = forced;
	atomic_store(&v->parked, 0);
	atomic_store(&v->stood, 0);
	atomic_store(&v->dry, 0);
	atomic_store(&v->hold, 0);
	atomic_store(&v->called, 0);
	atomic_store(&v->state, UT_VCPU_BOUND);
	if (atomic_load(&s->gate.word) & 1)
		ut_gate_call(s); /* it was bound in a pause */
}

int ut_vcpu_state(ut_shared *s, int vcpu)
{
	return atomic_load(&s->vcpu[vcpu].state);
}

int ut_vcpu_tid(const ut_shared *s, int vcpu)
{
	return s->vcpu[vcpu].tid;
}

uint32_t ut_vcpu_stands(ut_shared *s, int vcpu)
{
	uint32_t word = atomic_load(&s->gate.word);

	return (word & 1) && atomic_load(&s->vcpu[vcpu].parked) == word ? word : 0;
}

/* -- the gate ------------------------------------------------------------------------------------ */

int ut_gate_signal(void)
{
	return SIGRTMAX - 2;
}

void ut_event(ut_shared *s)
{
	atomic_fetch_add(&s->gate.event, 1);
	ut_futex_wake(&s->gate.event, UT_SHARED_WORD);
}

int ut_call(ut_vcpu *v)
{
	/* Where one is on its way already, only whether the thread lives is asked. */
	int number = atomic_exchange(&v->called, 1) ? 0 : ut_gate_signal();

	if (!syscall(SYS_tgkill, v->pid, v->tid, number))
		return 0;
	if (number)
		atomic_store(&v->called, 0); /* the queue is full, or it has ended */
	return -errno;
}

void ut_gate_call(ut_shared *s)
{
	uint32_t word = atomic_load(&s->gate.word);
	int self = syscall(SYS_gettid);

	for (int i = 0; i < s->nvcpus; i++) {
		ut_vcpu *v = &s->vcpu[i];

		if (v->state == UT_VCPU_BOUND && v->forced > 0 && v->tid != self &&
		    atomic_load(&v->parked) != word && ut_call(v) == -ESRCH)
			v->state = UT_VCPU_GONE;
	}
}

static uint32_t close_at(ut_shared *s, int cpu)
{
	uint32_t word = atomic_load(&s->gate.word);

	while (!(word & 1))
		if (atomic_compare_exchange_weak(&s->gate.word, &word, word + 1)) {
			word++;
			atomic_store(&s->gate.dozing, 0);
			atomic_store(&s->gate.cpu, cpu);
			ut_gate_call(s);
		}
	return word;
}

uint32_t ut_gate_close(ut_shared *s)
{
	return close_at(s, -1);
}

uint32_t ut_gate_close_here(ut_shared *s)
{
	return close_at(s, sched_getcpu());
}

void ut_gate_doze(ut_shared *s)
{
	atomic_store(&s->gate.dozing, 1);
}

/* Waking takes some 10 us, and most pauses are so short that nobody sleeps. */
static void wake_sleepers(ut_shared *s)
{
	if (atomic_load(&s->gate.asleep))
		ut_futex_wake(&s->gate.word, UT_SHARED_WORD);
}

void ut_gate_rouse(ut_shared *s)
{
	if (!atomic_exchange(&s->gate.dozing, 0) || !(atomic_load(&s->gate.word) & 1))
		return;
	wake_sleepers(s);
}

void ut_gate_open(ut_shared *s)
{
	if (atomic_load(&s->gate.word) & 1) {
		atomic_fetch_add(&s->gate.word, 1);
		wake_sleepers(s);
	}
}

uint32_t ut_gate_full(ut_shared *s)
{
	uint32_t word = ut_gate_close(s);

	/* In this order: a cycle that ends in between takes no full for its own that left the gate closed. */
	atomic_store(&s->gate.full, 1);
	ut_event(s);
	return word;
}

int ut_hold(ut_shared *s, int vcpu)
{
	ut_vcpu *v = &s->vcpu[vcpu];
	int64_t deadline = ut_now_ns() + HOLD_NS;
	uint32_t ticket = ++v->tickets;

	if (!ticket) /* 0: go on */
		ticket = ++v->tickets;
	atomic_store(&v->hold, ticket);
	if (v->forced <= 0 || ut_call(v)) {
		ut_release(s, vcpu);
		return 0;
	}
	for (;;) {
		uint32_t seen = atomic_load(&v->held);

		if (seen == ticket)
			return 1;
		if (ut_now_ns() >= deadline) {
			ut_release(s, vcpu);
			return 0;
		}
		ut_futex_wait(&v->held, seen, HOLD_NS / 4, UT_SHARED_WORD);
	}
}

void ut_release(ut_shared *s, int vcpu)
{
	atomic_store(&s->vcpu[vcpu].hold, 0);
	ut_futex_wake(&s->vcpu[vcpu].hold, UT_SHARED_WORD);
}
