/* The ring engine: the kernel clears a trap by itself and appends the fault to a perf ring. */
#include "clock.h"
#include "compat.h"
#include "engine.h"
#include "futex.h"
#include "gate.h"
#include "harvest.h"
#include "pause.h"
#include "proc_stat.h"
#include "share.h"
#include "sabotage.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>

enum {
	AUDITS = 4,
	AHEAD = 48, /* a whole cache miss, and the walk of the page table before it */
	DRAIN_LOST = 1,
	DRAIN_STRAYED = 2,
};
#define STAND_NS 1000000000

/* -- events -------------------------------------------------------------------------------------- */

/* An event that counts a thread's faults, and signals another at the end of its period. */
static int open_counter(int tid, int signal_tid)
{
	struct f_owner_ex owner = {F_OWNER_TID, signal_tid};
	int err, fd = ut_software_event(tid, PERF_COUNT_SW_PAGE_FAULTS_MIN, UT_NO_PERIOD, 0, UT_NEVER, 0);

	if (fd < 0)
		return fd;
	if (!fcntl(fd, F_SETOWN_EX, &owner) && !fcntl(fd, F_SETSIG, ut_gate_signal()) && !fcntl(fd, F_SETFL, O_ASYNC))
		return fd;
	err = -errno;
	close(fd);
	return err;
}

int ut_ring_open(int tid, int threshold, int signal_tid, uint32_t wake_bytes, int out[3])
{
	ut_fault_events events;

	out[0] = out[1] = out[2] = -1;
	TRY(ut_fault_events_open(tid, wake_bytes, 0, &events));
	if (threshold) {
		out[2] = open_counter(tid, signal_tid);
		if (out[2] < 0) {
			ut_fault_events_close(&events);
			return out[2];
		}
	}
	out[0] = events.min;
	out[1] = events.maj;
	return 0;
}

void ut_ring_close(ut_events *e)
{
	ut_fault_ring_close(&e->ring);
	ut_close_fd(&e->count);
	ut_close_fd(&e->stat);
	*e = (ut_events){.count = -1, .stat = -1, .ring = UT_NO_FAULT_RING};
}

/* -- harvest ------------------------------------------------------------------------------------- */

/* Faults of the thread so far, those without a sample (GUP) included; *runs: it may be in the middle of one. */
static int64_t thread_faults(ut_tracker *t, int vcpu, int *runs)
{
	ut_vcpu *v = &t->s->vcpu[vcpu];
	struct rusage usage;
	ut_proc_stat stat;
	uint32_t word = ut_vcpu_stands(t->s, vcpu);

	*runs = 0;
	/* It stands, and has said so itself: the cheapest. At the gate it takes no faults in the RAM, but others,
	 * whose samples would make up for a write without one. */
	if (word && t->ev[vcpu].strayed != word)
		return atomic_load(&v->faults);
	if (v->tid == syscall(SYS_gettid)) {
		getrusage(RUSAGE_THREAD, &usage);
		return usage.ru_minflt + usage.ru_majflt;
	}
	TRY(ut_proc_stat_of(t->ev[vcpu].stat, &stat));
	/* Between counting a fault and its record nothing sleeps. */
	*runs = stat.state != 'S' && !atomic_load(&t->s->gate.halted);
	return stat.faults;
}

/* Take the records out of the ring. LOST: some may have been dropped; STRAYED: some are not of the RAM. */
static int take_records(ut_tracker *t, int vcpu)
{
	ut_events *e = &t->ev[vcpu];
	ut_mm *mm = &t->mm[e->mm];
	uint64_t length = t->s->npages * UT_PAGE, address;
	ut_fault_cursor at = ut_fault_ring_begin(&e->ring);
	int strayed = 0;

	for (;;) {
		/* The bits are more than a cache holds, and the pages in no order. */
		uint64_t ahead = ut_fault_ahead(&at, AHEAD) - mm->base, offset;

		if (ahead < length)
			__builtin_prefetch(ut_word(t->s, ahead / UT_PAGE), 1);
		if (!ut_fault_ring_next(&e->ring, &at, &address))
			break;
		offset = address - mm->base;
		strayed |= offset >= length;
		if (offset < length && ut_emit(t, mm, offset / UT_PAGE, e->listed < t->s->capacity ? vcpu : UT_HOST))
			e->listed++;
	}
	ut_fault_ring_end(&e->ring, &at);
	if (strayed)
		e->strayed = atomic_load(&t->s->gate.word);
	return (at.lost ? DRAIN_LOST : 0) | (strayed ? DRAIN_STRAYED : 0);
}

/* Faults that have no sample (writes through GUP, dropped records) show in the thread's own count. Samples
 * are counted first: a fault in between looks like one without a sample, never the other way round. A thread
 * that runs on is asked again, since the ring is nearly empty then and the time in between is short.
 *
 * What is found missing is taken as made good by the scan that follows. That figure must not be too high, or
 * it hides the next one: a fault of a thread that runs may be counted and its sample still to come, so the
 * thread says itself how many there were, from its own code. */
static int audit(ut_tracker *t, int vcpu)
{
	ut_events *e = &t->ev[vcpu];
	ut_vcpu *v = &t->s->vcpu[vcpu];
	int64_t faults = -1, missing = 1;
	uint32_t stands;
	int held = 0, runs = 0;

	for (int i = 0; i < AUDITS; i++) {
		faults = thread_faults(t, vcpu, &runs);
		if (faults < 0)
			return 1;
		if (faults <= (int64_t)e->ring.samples + e->unseen)
			return 0;
		take_records(t, vcpu);
		if (faults > (int64_t)e->ring.samples + e->unseen)
			break; /* even with what came since */
	}
	stands = ut_vcpu_stands(t->s, vcpu);
	if (!stands && v->tid != syscall(SYS_gettid))
		held = ut_hold(t->s, vcpu);
	if (stands || held) {
		int strayed = take_records(t, vcpu) & DRAIN_STRAYED;

		faults = atomic_load(&v->faults);
		missing = faults - (int64_t)e->ring.samples;
		strayed |= stands && e->strayed == stands;
		if (held)
			ut_release(t->s, vcpu);
		if (missing <= e->unseen)
			return strayed;
	} else {
		missing = faults - (int64_t)e->ring.samples - runs;
	}
	if (missing > e->unseen)
		e->unseen = missing;
	return 1;
}

static void drain_vcpu(ut_tracker *t, int vcpu)
{
	int lost = take_records(t, vcpu) & DRAIN_LOST, unsampled = audit(t, vcpu);

	t->stats.lost += !!lost;
	t->stats.audits += unsampled && !lost;
	if ((lost || unsampled) && !ut_breaks(UT_BREAK_AUDIT))
		t->mm[t->ev[vcpu].mm].need_scan = 1;
}

/* -- the threshold ------------------------------------------------------------------------------- */

/* It takes no faults just now: it stands, or it is this thread. */
static int is_still(ut_tracker *t, int vcpu)
{
	return ut_vcpu_stands(t->s, vcpu) || t->s->vcpu[vcpu].tid == syscall(SYS_gettid);
}

/* A Python thread, or one that has ended. */
static int never_stands(const ut_vcpu *v)
{
	return v->forced <= 0 || (syscall(SYS_tgkill, v->pid, v->tid, 0) && errno == ESRCH);
}

/* What is left of the threshold, in shares; the vCPUs stand, or are held. 1: there is one for each; 0: full. */
static int share_out(ut_tracker *t, int bound)
{
	int64_t left;
	int full;

	for (int i = 0; i < t->s->nvcpus; i++)
		if (t->ev[i].used)
			take_records(t, i);
	ut_take_list(t, UT_HOST);
	left = t->s->limit.threshold - (int64_t)(ut_cycle_open_log(&t->cycle)->n + t->hot.n);
	/* What is left is not enough for a share each: full. Only a threshold below the number of vCPUs would never
	 * let them run at all. */
	full = left < bound && ut_cycle_open_log(&t->cycle)->n;
	atomic_store(&t->s->limit.budget, full ? 0 : left);
	for (int i = 0; i < t->s->nvcpus; i++) {
		int64_t part;
		int dry, err;

		if (!t->ev[i].used || t->ev[i].count < 0)
			continue;
		part = ut_grant(t->s);
		dry = full && t->s->vcpu[i].forced > 0;
		err = ut_set_period(&t->s->vcpu[i], t->ev[i].count, part ? part : dry ? UT_NO_PERIOD : 1);
		if (err && err != -ESRCH)
			return err;
		if (atomic_exchange(&t->s->vcpu[i].dry, dry))
			ut_futex_wake(&t->s->vcpu[i].dry, UT_SHARED_WORD);
	}
	if (full)
		ut_gate_full(t->s);
	return !full;
}

/* The share of a vCPU that runs cannot be set: between turning its event off and on again this thread may itself
 * be kept from running, and nobody would count meanwhile. Until then a vCPU has what is left of its old share. */
static int grant(ut_tracker *t)
{
	int held[UT_MAX_VCPUS] = {0}, bound = 0, still = 1, shared;

	if (!t->s->limit.threshold)
		return 1;
	atomic_store(&t->s->limit.budget, 0);
	for (int i = 0; i < t->s->nvcpus; i++)
		if (t->ev[i].used && t->ev[i].count >= 0) {
			bound++;
			held[i] = still && !is_still(t, i) && !ut_breaks(UT_BREAK_HOLD) && ut_hold(t->s, i);
			still &= held[i] || is_still(t, i) || never_stands(&t->s->vcpu[i]);
		}
	if (!bound)
		return 1; /* of an attached process, whose rings are looked at instead */
	if (!still) {
		for (int i = 0; i < t->s->nvcpus; i++)
			if (held[i])
				ut_release(t->s, i);
		if (ut_wait_parked(t, ut_gate_close(t->s), STAND_NS)) {
			ut_gate_full(t->s); /* whoever waits for it is told who does not stand */
			return 0;
		}
	}
	shared = share_out(t, bound);
	if (shared < 0)
		ut_gate_full(t->s);
	if (shared > 0 && !t->paused) {
		atomic_store(&t->s->gate.full, 0); /* of the old shares; of a new one nobody has said so before it runs */
		ut_gate_open(t->s);
	}
	for (int i = 0; i < t->s->nvcpus && still; i++)
		if (held[i])
			ut_release(t->s, i);
	return shared;
}

static int host_wrote(ut_tracker *t)
{
	if (!atomic_load(&t->s->limit.threshold))
		return 0;
	UT_LOCK(&t->cycle.lock);
	return grant(t);
}

/* The threshold is met by granted shares, some of which are unused, and by faults outside of the RAM. */
static int not_full(ut_tracker *t)
{
	int64_t bound = 0, threshold = atomic_load(&t->s->limit.threshold);

	for (int i = 0; i < t->s->nvcpus; i++)
		bound += t->s->vcpu[i].state == UT_VCPU_BOUND;
	TRY(ut_harvest(t));
	if ((int64_t)(ut_cycle_open_log(&t->cycle)->n + t->hot.n) + (bound > 1 ? bound - 1 : 0) >= threshold)
		return 0;
	t->stats.false_full++;
	atomic_store(&t->s->gate.full, 0);
	return grant(t);
}

/* -- a vCPU -------------------------------------------------------------------------------------- */

static int follow_vcpu(ut_tracker *t, int vcpu)
{
	ut_events *e = &t->ev[vcpu];
	ut_vcpu *v = &t->s->vcpu[vcpu];
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", v->pid, v->tid);
	e->stat = open(path, O_RDONLY | O_CLOEXEC);
	if (e->stat < 0)
		return -errno;
	if (e->count >= 0)
		TRY(ut_set_period(v, e->count, 1)); /* until it has a share */
	return ut_fault_ring_map(&e->ring, 2 * t->s->capacity);
}

int ut_ring_start(ut_tracker *t, int vcpu, int mm, int min, int maj, int count)
{
	ut_events *e = &t->ev[vcpu];
	int err;

	*e = (ut_events){.mm = mm, .ring = {.fd = {min, maj}}, .count = count, .stat = -1};
	err = follow_vcpu(t, vcpu);
	UT_LOCK(&t->cycle.lock);
	if (!err) {
		e->unseen = INT64_MIN / 2;
		take_records(t, vcpu);
		audit(t, vcpu);
		e->used = 1;
		err = grant(t);
	}
	if (err < 0)
		ut_ring_close(e);
	return err < 0 ? err : 0;
}

const ut_engine_ops ut_engine_ring = {
	.features = UFFD_FEATURE_WP_ASYNC,
	.async = 1,
	.drain = drain_vcpu,
	.share = grant,
	.host_wrote = host_wrote,
	.not_full = not_full,
};

/* -- an attached process ------------------------------------------------------------------------- */

/* Records that nobody has taken, and what was; more than pages, where some are of the same page. */
static int64_t touched_so_far(ut_tracker *t)
{
	int64_t n = ut_cycle_open_log(&t->cycle)->n;

	for (int i = 0; i < t->s->nvcpus; i++)
		if (t->ev[i].used)
			n += ut_fault_ring_waiting(&t->ev[i].ring);
	return n;
}

int ut_ring_wait(ut_tracker *t, int64_t timeout_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;
	struct pollfd p[UT_MAX_VCPUS];

	UT_ENTER(&t->cycle);
	while (touched_so_far(t) < t->s->limit.threshold) {
		int64_t left = deadline - ut_now_ns();
		int n = 0;

		if (left <= 0 || atomic_load(&t->cycle.closing))
			return 0;
		for (int i = 0; i < t->s->nvcpus; i++)
			if (t->ev[i].used)
				p[n++] = (struct pollfd){t->ev[i].ring.fd.min, POLLIN, 0};
		poll(p, n, left / 1000000 + 1);
	}
	return 1;
}
