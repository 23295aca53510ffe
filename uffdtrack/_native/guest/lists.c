#include "compat.h"
#include "lists.h"
#include "tracee.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TAKE_SPINS 1000
#define STRAYS 10000
#define HOLD_NS 2000000

static uint64_t up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

int ut_shared_create(int engine, int nvcpus, int mms, uint64_t npages, uint64_t capacity, int *fd,
		     ut_shared **out)
{
	ut_shared s = {.npages = npages, .engine = engine, .nvcpus = nvcpus, .capacity = 64};
	int err;

	while (s.capacity < capacity)
		s.capacity *= 2;
	s.words = up(npages, 64) / 64;
	s.stride = mms == 1 ? 1 : mms + 1;
	s.lists_at = up(sizeof(s), 4096);
	s.bits_at = up(s.lists_at + (nvcpus + 1) * s.capacity * 8, 4096);
	s.bytes = up(s.bits_at + s.words * s.stride * 8, UT_HUGE);
	*fd = -1;
	if (mms == 1) {
		void *v = mmap(NULL, s.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (v == MAP_FAILED)
			return -errno;
		/* The bits are looked up in no order: with small pages, each would miss the TLB. */
		madvise(v, s.bytes, MADV_HUGEPAGE);
		memcpy(v, &s, sizeof(s));
		for (uint64_t at = s.lists_at; at < s.bytes; at += UT_HUGE)
			*(volatile char *)((char *)v + at) = 0; /* not in the first cycles */
		*out = v;
		return 0;
	}
	*fd = memfd_create("uffdtrack", MFD_CLOEXEC);
	if (*fd < 0)
		return -errno;
	if (ftruncate(*fd, s.bytes) || pwrite(*fd, &s, sizeof(s), 0) != sizeof(s)) {
		err = -errno;
		close(*fd);
		return err;
	}
	err = ut_shared_map(*fd, out);
	if (err)
		close(*fd);
	return err;
}

int ut_shared_map(int fd, ut_shared **out)
{
	struct stat st;
	void *v;

	if (fstat(fd, &st))
		return -errno;
	if ((size_t)st.st_size < sizeof(ut_shared))
		return -EINVAL;
	v = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (v == MAP_FAILED)
		return -errno;
	*out = v;
	return 0;
}

void ut_shared_unmap(ut_shared *s)
{
	if (s)
		munmap(s, s->bytes);
}

/* -- lists --------------------------------------------------------------------------------------- */

static _Atomic uint64_t *slots(ut_shared *s, int vcpu)
{
	return (_Atomic uint64_t *)((char *)s + s->lists_at) + (uint64_t)(vcpu + 1) * s->capacity;
}

/* An entry carries its place in the sequence, so that one which its writer has not stored yet, or stored
 * too late, is told from the one that belongs there. */
static uint64_t tagged(uint64_t at, uint64_t index)
{
	return (at + 1) << 32 | index;
}

static void append_global(ut_shared *s, uint64_t index)
{
	uint64_t at = atomic_load(&s->global.head);

	do {
		if (at - atomic_load(&s->global.tail) >= s->capacity) {
			atomic_store(&s->overflow, 1);
			return;
		}
	} while (!atomic_compare_exchange_weak(&s->global.head, &at, at + 1));
	atomic_store_explicit(&slots(s, UT_HOST)[at & (s->capacity - 1)], tagged(at, index),
			      memory_order_release);
}

void ut_append(ut_shared *s, int vcpu, uint64_t index)
{
	ut_list *list;
	uint64_t at;

	if (vcpu < 0) {
		append_global(s, index);
		return;
	}
	list = &s->vcpu[vcpu].list;
	at = atomic_load_explicit(&list->head, memory_order_relaxed);
	if (at - atomic_load_explicit(&list->tail, memory_order_acquire) >= s->capacity) {
		append_global(s, index);
		return;
	}
	atomic_store_explicit(&slots(s, vcpu)[at & (s->capacity - 1)], tagged(at, index),
			      memory_order_relaxed);
	atomic_store_explicit(&list->head, at + 1, memory_order_release);
}

int64_t ut_take(ut_shared *s, int vcpu)
{
	ut_list *list = vcpu < 0 ? &s->global : &s->vcpu[vcpu].list;

	for (;;) {
		uint64_t tail = atomic_load_explicit(&list->tail, memory_order_relaxed), value;
		int spins = 0;

		if (tail == atomic_load_explicit(&list->head, memory_order_acquire))
			return -1;
		do
			value = atomic_load_explicit(&slots(s, vcpu)[tail & (s->capacity - 1)],
						     memory_order_acquire);
		while (value >> 32 != (uint32_t)(tail + 1) && ++spins < TAKE_SPINS);
		atomic_store_explicit(&list->tail, tail + 1, memory_order_release);
		if (value >> 32 == (uint32_t)(tail + 1))
			return (uint32_t)value;
		/* Its writer was stopped or killed half-way. The bitmap has the page. */
		atomic_store(&s->overflow, 1);
	}
}

void ut_mark(ut_shared *s, uint64_t index)
{
	/* The mark comes after the write: a cycle that ends in between leaves the page to the next one. */
	if (!bit_set(s, UT_LISTED, index)) {
		atomic_fetch_add(&s->count, 1);
		append_global(s, index);
	}
}

int ut_try_list(ut_shared *s, int mm)
{
	atomic_fetch_add(&s->busy[mm], 1);
	if (!atomic_load(&s->rearming))
		return 1;
	atomic_fetch_sub(&s->busy[mm], 1);
	return 0;
}

void ut_listed(ut_shared *s, int mm)
{
	atomic_fetch_sub(&s->busy[mm], 1);
}

int64_t ut_threshold(const ut_shared *s)
{
	return atomic_load(&s->threshold);
}

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
	if (atomic_load(&s->gate) & 1)
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

int ut_vcpu_stands(ut_shared *s, int vcpu)
{
	ut_vcpu *v = &s->vcpu[vcpu];
	uint32_t word = atomic_load(&s->gate);

	return (word & 1) && atomic_load(&v->parked) == word;
}

/* -- the gate ------------------------------------------------------------------------------------ */

static int gate_signal(void)
{
	return SIGRTMAX - 2;
}

void ut_wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void ut_wait_word(_Atomic uint32_t *word, uint32_t value, int64_t timeout_ns)
{
	struct timespec ts = {timeout_ns / 1000000000, timeout_ns % 1000000000};

	syscall(SYS_futex, word, FUTEX_WAIT, value, &ts, NULL, 0);
}

void ut_event(ut_shared *s)
{
	atomic_fetch_add(&s->event, 1);
	ut_wake(&s->event);
}

int ut_call(ut_vcpu *v)
{
	/* Where one is on its way already, only whether the thread lives is asked. */
	int number = atomic_exchange(&v->called, 1) ? 0 : gate_signal();

	if (!syscall(SYS_tgkill, v->pid, v->tid, number))
		return 0;
	if (number)
		atomic_store(&v->called, 0); /* the queue is full, or it has ended */
	return -errno;
}

void ut_gate_call(ut_shared *s)
{
	uint32_t word = atomic_load(&s->gate);
	int self = syscall(SYS_gettid);

	for (int i = 0; i < s->nvcpus; i++) {
		ut_vcpu *v = &s->vcpu[i];

		if (v->state == UT_VCPU_BOUND && v->forced > 0 && v->tid != self &&
		    atomic_load(&v->parked) != word && ut_call(v) == -ESRCH)
			v->state = UT_VCPU_GONE;
	}
}

uint32_t ut_gate_close(ut_shared *s)
{
	uint32_t word = atomic_load(&s->gate);

	while (!(word & 1))
		if (atomic_compare_exchange_weak(&s->gate, &word, word + 1)) {
			word++;
			ut_gate_call(s);
		}
	return word;
}

void ut_gate_open(ut_shared *s)
{
	if (atomic_load(&s->gate) & 1) {
		atomic_fetch_add(&s->gate, 1);
		ut_wake(&s->gate);
	}
}

uint32_t ut_gate_full(ut_shared *s)
{
	uint32_t word = ut_gate_close(s);

	/* In this order: a cycle that ends in between takes no full for its own that left the gate closed. */
	atomic_store(&s->full, 1);
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
		ut_wait_word(&v->held, seen, HOLD_NS / 4);
	}
}

void ut_release(ut_shared *s, int vcpu)
{
	atomic_store(&s->vcpu[vcpu].hold, 0);
	ut_wake(&s->vcpu[vcpu].hold);
}

int64_t ut_grant(ut_shared *s)
{
	int64_t left = atomic_load(&s->budget), part;
	int bound = 0;

	for (int i = 0; i < s->nvcpus; i++)
		bound += s->vcpu[i].state == UT_VCPU_BOUND;
	do {
		if (left <= 0)
			return 0;
		/* A share that leaves something for the others; the nearer the end, the smaller. */
		part = bound > 1 ? (left + 2 * bound - 1) / (2 * bound) : left;
	} while (!atomic_compare_exchange_weak(&s->budget, &left, left - part));
	return part;
}

static uint64_t counted(int perf)
{
	uint64_t n = 0;

	return read(perf, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

int ut_set_period(ut_vcpu *v, int perf, int64_t period)
{
	uint64_t value = period;

	/* Set while it is on, a period counts as just over, and the next fault would signal. */
	if (ioctl(perf, PERF_EVENT_IOC_DISABLE, 0) || ioctl(perf, PERF_EVENT_IOC_PERIOD, &value))
		return -errno;
	atomic_store(&v->until, counted(perf) + period);
	return ioctl(perf, PERF_EVENT_IOC_ENABLE, 0) ? -errno : 0;
}

/* -- in the vCPU's own process ------------------------------------------------------------------- */

typedef struct {
	_Atomic int used, busy; /* busy: threads in a handler of ours */
	_Atomic int strays;     /* signals that came when it was closed already */
	_Atomic int orphan;     /* the tracker has died */
	uint64_t bytes;
	ut_shared *shared;
	uint8_t *base;
	int mm, uffd, lifeline, pid;
	int perf[UT_MAX_VCPUS];
} ut_member;

static ut_member members[UT_MAX_MEMBERS];
static struct sigaction old_bus;
/* Not from thread-local storage: its first use may allocate, and these are signal handlers. */
static int tid_of_this(void)
{
	return syscall(SYS_gettid);
}

static int enter(ut_member *m)
{
	atomic_fetch_add(&m->busy, 1);
	return atomic_load(&m->used);
}

static void leave(ut_member *m)
{
	atomic_fetch_sub(&m->busy, 1);
}

static int tracker_lives(ut_member *m)
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
	ut_wake(&v->held);
	while (atomic_load(&v->hold) == ticket) {
		ut_wait_word(&v->hold, ticket, 100000000);
		if (!tracker_lives(m))
			return;
	}
}

/* Stand at the gate while it is closed; 0: nobody is left to open it. */
static int park(ut_member *m, int vcpu)
{
	ut_vcpu *v = &m->shared->vcpu[vcpu];
	uint32_t word;

	if (!(atomic_load(&m->shared->gate) & 1))
		return 1;
	if (atomic_load(&m->orphan))
		return 0;
	while ((word = atomic_load(&m->shared->gate)) & 1) {
		count_faults(v);
		atomic_store(&v->parked, word);
		atomic_store(&v->stood, word);
		ut_event(m->shared);
		while (atomic_load(&m->shared->gate) == word) {
			ut_wait_word(&m->shared->gate, word, 100000000);
			if (atomic_load(&m->shared->gate) == word && !(tracker_lives(m) && atomic_load(&m->used)))
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

	while (atomic_load(&v->dry) && atomic_load(&m->shared->threshold) &&
	       atomic_load(&v->state) == UT_VCPU_BOUND && atomic_load(&m->used)) {
		if (!park(m, vcpu) || !tracker_lives(m))
			return 0;
		stand(m, vcpu);
		ut_wait_word(&v->dry, 1, 1000000);
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
	if (counted(m->perf[vcpu]) < atomic_load(&v->until))
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
	int saved = errno, tid = tid_of_this();

	for (int i = 0; i < UT_MAX_MEMBERS; i++) {
		ut_member *m = &members[i];
		int vcpu = enter(m) ? ut_vcpu_of(m->shared, m->pid, tid) : -1;

		if (vcpu >= 0) /* before the gate is looked at */
			atomic_store(&m->shared->vcpu[vcpu].called, 0);
		if (vcpu >= 0 && info->si_code > 0 && m->shared->threshold &&
		    m->perf[vcpu] == info->si_fd)
			on_period(m, vcpu);
		if (vcpu >= 0)
			stand(m, vcpu);
		if (vcpu >= 0 && m->shared->vcpu[vcpu].forced > 0 && !(park(m, vcpu) && await_share(m, vcpu)) &&
		    m->perf[vcpu] >= 0)
			ioctl(m->perf[vcpu], PERF_EVENT_IOC_DISABLE, 0);
		leave(m);
	}
	errno = saved;
}

static void unprotect(const ut_member *m, uint64_t index)
{
	struct uffdio_writeprotect w = {{(uint64_t)m->base + index * UT_PAGE, UT_PAGE}, 0};

	while (ioctl(m->uffd, UFFDIO_WRITEPROTECT, &w) && errno == EAGAIN)
		;
}

/* Nobody is left to rearm or to open the gate: write on, untracked. */
static void let_go(const ut_member *m)
{
	struct uffdio_range all = {(uint64_t)m->base, m->shared->npages * UT_PAGE};

	ioctl(m->uffd, UFFDIO_UNREGISTER, &all);
}

/* inline: the thread that was about to write lists the page itself. */
static void list_own_fault(ut_member *m, uint64_t index)
{
	ut_shared *s = m->shared;
	int vcpu = ut_vcpu_of(s, m->pid, tid_of_this()), forced, full = 0;

	if (vcpu >= 0 && s->vcpu[vcpu].forced > 0 && !park(m, vcpu)) {
		let_go(m);
		return;
	}
	for (int i = 1; !ut_try_list(s, m->mm); i++) {
		sched_yield();
		if (i % 4096 == 0 && !tracker_lives(m)) {
			let_go(m);
			return;
		}
	}
	/* Asked for again: a list has one writer, and the place may have been given to another thread meanwhile. */
	vcpu = ut_vcpu_of(s, m->pid, tid_of_this());
	forced = vcpu >= 0 && s->vcpu[vcpu].forced > 0;
	if (!bit_test(s, UT_LISTED, index)) {
		int64_t limit = s->threshold, count = atomic_fetch_add(&s->count, 1);

		full = limit && count >= limit;
		if (full && forced) {
			/* The write faults again, and waits at the gate. */
			atomic_fetch_sub(&s->count, 1);
			ut_listed(s, m->mm);
			ut_gate_full(s);
			return;
		}
		if (bit_set(s, UT_LISTED, index))
			atomic_fetch_sub(&s->count, 1);
		else
			ut_append(s, vcpu, index);
	}
	trap_fired(s, m->mm, index);
	unprotect(m, index);
	ut_listed(s, m->mm);
	if (full)
		ut_gate_full(s);
}

static void on_bus(int number, siginfo_t *info, void *context)
{
	int saved = errno;
	uint8_t *at = info->si_addr;

	for (int i = 0; i < UT_MAX_MEMBERS; i++) {
		ut_member *m = &members[i];

		int open = enter(m), ours = at >= m->base && at < m->base + m->bytes;

		if (open && ours)
			list_own_fault(m, (at - m->base) / UT_PAGE);
		else if (ours) /* the fault is from before: the write may go on now */
			ours = atomic_fetch_add(&m->strays, 1) < STRAYS;
		leave(m);
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

static int handlers(int engine)
{
	struct sigaction gate = {.sa_sigaction = on_gate_signal,
				 .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
	struct sigaction bus = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK},
			 now;

	sigemptyset(&gate.sa_mask);
	sigemptyset(&bus.sa_mask);
	/* A pause that came inside of the fault would count the page and not list it. */
	sigaddset(&bus.sa_mask, gate_signal());
	if (sigaction(gate_signal(), &gate, NULL))
		return -errno;
	if (engine != UT_INLINE)
		return 0;
	if (sigaction(SIGBUS, NULL, &now))
		return -errno;
	if (now.sa_sigaction == on_bus)
		return 0;
	old_bus = now;
	return sigaction(SIGBUS, &bus, NULL) ? -errno : 0;
}

int ut_member_open(ut_shared *s, uint8_t *base, int mm, int uffd, int lifeline)
{
	int err = handlers(s->engine);

	if (err)
		return err;
	for (int i = 0; i < UT_MAX_MEMBERS; i++) {
		ut_member *m = &members[i];

		if (atomic_load(&m->used))
			continue;
		m->shared = s;
		m->base = base;
		m->bytes = s->engine == UT_INLINE ? s->npages * UT_PAGE : 0;
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
	atomic_store(&members[member].used, 0);
	while (atomic_load(&members[member].busy))
		sched_yield();
}

void ut_member_perf(int member, int vcpu, int perf)
{
	members[member].perf[vcpu] = perf;
}
