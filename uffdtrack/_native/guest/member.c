#include "cleanup.h"
#include "clock.h"
#include "futex.h"
#include "gate.h"
#include "member.h"
#include "share.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#define SPIN_NS 200000

ut_member ut_members[UT_MAX_MEMBERS];

/* Not from thread-local storage: its first use may allocate, and these are signal handlers. */
int ut_own_tid(void)
{
	return syscall(SYS_gettid);
}

int ut_member_has_tracker(ut_member *m)
{
	struct pollfd p = {.fd = m->lifeline, .events = POLLRDHUP};

	if (m->lifeline < 0)
		return 1;
	if (!atomic_load(&m->orphan) && poll(&p, 1, 0) > 0 &&
	    (p.revents & (POLLHUP | POLLRDHUP | POLLERR)))
		atomic_store(&m->orphan, 1);
	return !atomic_load(&m->orphan);
}

static void count_faults(ut_vcpu *v)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	atomic_store(&v->faults, usage.ru_minflt + usage.ru_majflt);
}

/* Stand for a moment, where the tracker has to know how many faults there were. */
static void stand(ut_member *m, int vcpu)
{
	ut_vcpu *v = &m->shared->vcpu[vcpu];
	uint32_t ticket = atomic_load(&v->hold);

	if (!ticket)
		return;
	count_faults(v);
	atomic_store(&v->held, ticket);
	ut_futex_wake(&v->held, UT_SHARED_WORD);
	while (atomic_load(&v->hold) == ticket) {
		ut_futex_wait(&v->hold, ticket, 100000000, UT_SHARED_WORD);
		if (!ut_member_has_tracker(m))
			return;
	}
}

/* A processor that goes idle takes some 50 us to come back, in a virtual machine: most pauses are over by then. But the
 * tracker needs the processor that it has closed the gate on. No sched_yield(2): from Linux 6.18 on, each one gives
 * up a whole time slice where another thread could run. 1: it takes longer. */
static int await_open(ut_shared *s, uint32_t word)
{
	int64_t until = ut_now_ns() + SPIN_NS;
	int cpu = atomic_load(&s->gate.cpu);

	if (cpu >= 0 && cpu != sched_getcpu())
		while (atomic_load(&s->gate.word) == word && !atomic_load(&s->gate.dozing) && ut_now_ns() < until)
			__builtin_ia32_pause();
	return atomic_load(&s->gate.word) == word;
}

int ut_member_park(ut_member *m, int vcpu)
{
	ut_vcpu *v = &m->shared->vcpu[vcpu];
	uint32_t word;

	if (!(atomic_load(&m->shared->gate.word) & 1))
		return 1;
	if (atomic_load(&m->orphan))
		return 0;
	while ((word = atomic_load(&m->shared->gate.word)) & 1) {
		count_faults(v);
		atomic_store(&v->parked, word);
		atomic_store(&v->stood, word);
		ut_event(m->shared);
		while (await_open(m->shared, word)) {
			atomic_fetch_add(&m->shared->gate.asleep, 1);
			ut_futex_wait(&m->shared->gate.word, word, 100000000, UT_SHARED_WORD);
			atomic_fetch_sub(&m->shared->gate.asleep, 1);
			if (atomic_load(&m->shared->gate.word) == word && !(ut_member_has_tracker(m) && atomic_load(&m->used)))
				return 0;
		}
	}
	atomic_store(&v->parked, 0);
	return 1;
}

/* Who has no share does not go on, whoever has opened the gate meanwhile; 0: nobody is left to grant one. */
static int await_share(ut_member *m, int vcpu)
{
	ut_vcpu *v = &m->shared->vcpu[vcpu];

	while (atomic_load(&v->dry) && atomic_load(&m->shared->limit.threshold) &&
	       atomic_load(&v->state) == UT_VCPU_BOUND && atomic_load(&m->used)) {
		if (!ut_member_park(m, vcpu) || !ut_member_has_tracker(m))
			return 0;
		stand(m, vcpu);
		ut_futex_wait(&v->dry, 1, 1000000, UT_SHARED_WORD);
	}
	return 1;
}

/* The share that the tracker granted is used up: another, or the end of the cycle. The tracker shares out anew only
 * while this thread is not in here: it stands at the gate, or is held. */
static void on_period(ut_member *m, int vcpu)
{
	ut_vcpu *v = &m->shared->vcpu[vcpu];
	int stands = v->forced > 0;
	int64_t part;

	/* A signal may be of the share before: it came while this thread stood. */
	if (ut_counted(m->perf[vcpu]) < atomic_load(&v->until))
		return;
	part = ut_grant(m->shared);
	/* The event would begin the same share again. */
	ut_set_period(v, m->perf[vcpu], part ? part : stands ? UT_NO_PERIOD : 1);
	if (part)
		return;
	if (stands)
		atomic_store(&v->dry, 1);
	ut_gate_full(m->shared);
}

static void on_gate_signal(int number, siginfo_t *info, void *context)
{
	int saved = errno, tid = ut_own_tid();

	for (int i = 0; i < UT_MAX_MEMBERS; i++) {
		ut_member *m = &ut_members[i];
		int vcpu = ut_member_enter(m) ? ut_vcpu_of(m->shared, m->pid, tid) : -1;

		if (vcpu >= 0) /* before the gate is looked at */
			atomic_store(&m->shared->vcpu[vcpu].called, 0);
		if (vcpu >= 0 && info->si_code > 0 && m->shared->limit.threshold &&
		    m->perf[vcpu] == info->si_fd)
			on_period(m, vcpu);
		if (vcpu >= 0)
			stand(m, vcpu);
		if (vcpu >= 0 && m->shared->vcpu[vcpu].forced > 0 && !(ut_member_park(m, vcpu) && await_share(m, vcpu)) &&
		    m->perf[vcpu] >= 0)
			ioctl(m->perf[vcpu], PERF_EVENT_IOC_DISABLE, 0);
		ut_member_leave(m);
	}
	errno = saved;
}

static int handle_gate_signal(void)
{
	struct sigaction gate = {.sa_sigaction = on_gate_signal, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};

	sigemptyset(&gate.sa_mask);
	return sigaction(ut_gate_signal(), &gate, NULL) ? -errno : 0;
}

int ut_member_take(ut_shared *s, uint8_t *base, uint64_t bytes, int mm, int uffd, int lifeline)
{
	TRY(handle_gate_signal());
	for (int i = 0; i < UT_MAX_MEMBERS; i++) {
		ut_member *m = &ut_members[i];

		if (atomic_load(&m->used))
			continue;
		m->shared = s;
		m->base = base;
		m->bytes = bytes;
		m->strays = 0;
		m->orphan = 0;
		m->mm = mm;
		m->uffd = uffd;
		m->lifeline = lifeline;
		m->pid = getpid();
		for (int k = 0; k < UT_MAX_VCPUS; k++)
			m->perf[k] = -1;
		atomic_store(&m->used, 1);
		return i;
	}
	return -EMFILE;
}

void ut_member_close(int member)
{
	atomic_store(&ut_members[member].used, 0);
	while (atomic_load(&ut_members[member].busy))
		sched_yield();
}

void ut_member_perf(int member, int vcpu, int perf)
{
	ut_members[member].perf[vcpu] = perf;
}
