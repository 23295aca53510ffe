/* The ring engine: the kernel clears a trap by itself and appends the fault to a perf ring. */
#include "compat.h"
#include "tracker.h"
#include "tracee.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	RECORD = 16, /* header and address */
	AUDITS = 4,
	AHEAD = 48, /* a whole cache miss, and the walk of the page table before it */
	DRAIN_LOST = 1,
	DRAIN_STRAYED = 2,
};
#define STAND_NS 1000000000

static int open_event(int tid, int config, uint64_t period, uint64_t sample, uint32_t wake_bytes)
{
	struct perf_event_attr a = {
		.type = PERF_TYPE_SOFTWARE, .size = sizeof(a), .config = config,
		.sample_period = period, .sample_type = sample, .disabled = 1,
		.watermark = 1, .wakeup_watermark = wake_bytes,
	};
	int fd = syscall(SYS_perf_event_open, &a, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* PERF_COUNT_SW_PAGE_FAULTS would be recorded before the kernel opens the page: a harvest in between
 * would take the record and rearm, and the write that follows would be in no list. MIN and MAJ are
 * recorded after it (mm_account_fault in mm/memory.c), one of them for each fault. */
int ut_ring_open(int tid, int threshold, int signal_tid, uint32_t wake_bytes, int out[3])
{
	struct f_owner_ex owner = {F_OWNER_TID, signal_tid};
	int err;

	out[0] = out[1] = out[2] = -1;
	out[0] = open_event(tid, PERF_COUNT_SW_PAGE_FAULTS_MIN, 1, PERF_SAMPLE_ADDR, wake_bytes);
	out[1] = out[0] < 0 ? -1 : open_event(tid, PERF_COUNT_SW_PAGE_FAULTS_MAJ, 1, PERF_SAMPLE_ADDR, wake_bytes);
	err = out[0] < 0 ? out[0] : out[1] < 0 ? out[1] : 0;
	if (!err && threshold) {
		out[2] = open_event(tid, PERF_COUNT_SW_PAGE_FAULTS_MIN, UT_NO_PERIOD, 0, UT_NEVER);
		if (out[2] < 0)
			err = out[2];
		else if (fcntl(out[2], F_SETOWN_EX, &owner) || fcntl(out[2], F_SETSIG, SIGRTMAX - 2) ||
			 fcntl(out[2], F_SETFL, O_ASYNC))
			err = -errno;
	}
	if (!err)
		return 0;
	for (int i = 0; i < 3; i++)
		if (out[i] >= 0)
			close(out[i]);
	return err;
}

int ut_ring_map(ut_events *e, size_t records)
{
	size_t bytes = 4096;
	void *v;

	while (bytes < records * RECORD)
		bytes *= 2;
	e->bytes = bytes + 4096;
	/* Populated: a thread that drains the ring of its own faults would fill it by draining. */
	v = mmap(NULL, e->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, e->min, 0);
	if (v == MAP_FAILED)
		return -errno;
	e->ring = v;
	if (ioctl(e->maj, PERF_EVENT_IOC_SET_OUTPUT, e->min) || ioctl(e->min, PERF_EVENT_IOC_ENABLE, 0) ||
	    ioctl(e->maj, PERF_EVENT_IOC_ENABLE, 0))
		return -errno;
	return 0;
}

void ut_ring_close(ut_events *e)
{
	if (e->ring)
		munmap(e->ring, e->bytes);
	for (int i = 0; i < 4; i++) {
		int fd = (int[]){e->min, e->maj, e->count, e->stat}[i];

		if (fd >= 0)
			close(fd);
	}
	*e = (ut_events){.min = -1, .maj = -1, .count = -1, .stat = -1};
}

/* Faults of the thread so far, those without a sample (GUP) included; *runs: it may be in the middle of one. */
static int64_t thread_faults(ut_tracker *t, int vcpu, int *runs)
{
	ut_vcpu *v = &t->s->vcpu[vcpu];
	struct rusage usage;
	char text[512], state, *p;
	uint64_t min, maj;
	uint32_t word = atomic_load(&t->s->gate);
	ssize_t n;

	*runs = 0;
	/* It stands, and has said so itself: the cheapest. At the gate it takes no faults in the RAM, but others,
	 * whose samples would make up for a write without one. */
	if ((word & 1) && atomic_load(&v->parked) == word && t->ev[vcpu].strayed != word)
		return atomic_load(&v->faults);
	if (v->tid == syscall(SYS_gettid)) {
		getrusage(RUSAGE_THREAD, &usage);
		return usage.ru_minflt + usage.ru_majflt;
	}
	n = pread(t->ev[vcpu].stat, text, sizeof(text) - 1, 0);
	if (n <= 0)
		return -ESRCH;
	text[n] = 0;
	p = strrchr(text, ')');
	if (!p || sscanf(p + 2, "%c %*d %*d %*d %*d %*d %*u %lu %*u %lu", &state, &min, &maj) != 3)
		return -EIO;
	/* Between counting a fault and its record nothing sleeps. */
	*runs = state != 'S' && !atomic_load(&t->s->halted);
	return min + maj;
}

/* Take the records out of the ring. LOST: some may have been dropped; STRAYED: some are not of the RAM. */
static int drain(ut_tracker *t, int vcpu)
{
	ut_events *e = &t->ev[vcpu];
	ut_mm *mm = &t->mm[e->mm];
	uint64_t head = __atomic_load_n(&e->ring->data_head, __ATOMIC_ACQUIRE), tail = e->ring->data_tail;
	uint64_t mask = e->bytes - 4096 - 1, length = t->s->npages * UT_PAGE;
	const char *data = (char *)e->ring + 4096;
	/* What finds no room is dropped, and the kernel says so only with the next record that fits: a ring
	 * that is full now may have dropped some. */
	int lost = head - tail + 2 * RECORD > mask + 1, strayed = 0;

	while (tail < head) {
		const struct perf_event_header *h = (const void *)(data + (tail & mask));
		/* The bits are more than a cache holds, and the pages in no order. */
		uint64_t ahead = *(const uint64_t *)(data + ((tail + AHEAD * RECORD + 8) & mask)) - mm->base;

		if (ahead < length)
			__builtin_prefetch(ut_word(t->s, ahead / UT_PAGE), 1);

		if (h->type == PERF_RECORD_SAMPLE) {
			uint64_t offset = *(const uint64_t *)(data + ((tail + 8) & mask)) - mm->base;

			e->samples++;
			strayed |= offset >= length;
			if (offset < length && ut_emit(t, mm, offset / UT_PAGE,
						       e->listed < t->s->capacity ? vcpu : UT_HOST))
				e->listed++;
		} else if (h->type == PERF_RECORD_LOST) {
			lost = 1;
		}
		tail += h->size;
	}
	__atomic_store_n(&e->ring->data_tail, tail, __ATOMIC_RELEASE);
	if (strayed)
		e->strayed = atomic_load(&t->s->gate);
	return (lost ? DRAIN_LOST : 0) | (strayed ? DRAIN_STRAYED : 0);
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
	uint32_t word;
	int stands, held = 0, runs = 0;

	for (int i = 0; i < AUDITS; i++) {
		faults = thread_faults(t, vcpu, &runs);
		if (faults < 0)
			return 1;
		if (faults <= (int64_t)e->samples + e->unseen)
			return 0;
		drain(t, vcpu);
		if (faults > (int64_t)e->samples + e->unseen)
			break; /* even with what came since */
	}
	word = atomic_load(&t->s->gate);
	stands = (word & 1) && atomic_load(&v->parked) == word;
	if (!stands && v->tid != syscall(SYS_gettid))
		held = ut_hold(t->s, vcpu);
	if (stands || held) {
		int strayed = drain(t, vcpu) & DRAIN_STRAYED;

		faults = atomic_load(&v->faults);
		missing = faults - (int64_t)e->samples;
		strayed |= stands && e->strayed == word;
		if (held)
			ut_release(t->s, vcpu);
		if (missing <= e->unseen)
			return strayed;
	} else {
		missing = faults - (int64_t)e->samples - runs;
	}
	if (missing > e->unseen)
		e->unseen = missing;
	return 1;
}

void ut_ring_drain(ut_tracker *t, int vcpu)
{
	int lost = drain(t, vcpu) & DRAIN_LOST, unsampled = audit(t, vcpu);

	t->stats.lost += !!lost;
	t->stats.audits += unsampled && !lost;
	if ((lost || unsampled) && !(t->sabotage & UT_BREAK_AUDIT))
		t->mm[t->ev[vcpu].mm].need_scan = 1;
}

void ut_ring_start(ut_tracker *t, int vcpu)
{
	ut_events *e = &t->ev[vcpu];

	e->unseen = INT64_MIN / 2;
	drain(t, vcpu);
	audit(t, vcpu);
}

/* It takes no faults just now: it stands, or it is this thread. */
static int is_still(ut_tracker *t, int vcpu)
{
	ut_vcpu *v = &t->s->vcpu[vcpu];
	uint32_t word = atomic_load(&t->s->gate);

	return ((word & 1) && atomic_load(&v->parked) == word) || v->tid == syscall(SYS_gettid);
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
			drain(t, i);
	ut_take_list(t, UT_HOST);
	left = t->s->threshold - (int64_t)t->log[t->open].n;
	/* What is left is not enough for a share each: full. Only a threshold below the number of vCPUs would never
	 * let them run at all. */
	full = left < bound && t->log[t->open].n;
	atomic_store(&t->s->budget, full ? 0 : left);
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
			ut_wake(&t->s->vcpu[i].dry);
	}
	if (full)
		ut_gate_full(t->s);
	return !full;
}

/* The share of a vCPU that runs cannot be set: between turning its event off and on again this thread may itself
 * be kept from running, and nobody would count meanwhile. Until then a vCPU has what is left of its old share. */
int ut_ring_grant(ut_tracker *t)
{
	int held[UT_MAX_VCPUS] = {0}, bound = 0, still = 1, shared;

	if (!t->s->threshold || t->engine != UT_RING)
		return 1;
	atomic_store(&t->s->budget, 0);
	for (int i = 0; i < t->s->nvcpus; i++)
		if (t->ev[i].used && t->ev[i].count >= 0) {
			bound++;
			held[i] = still && !is_still(t, i) && !(t->sabotage & UT_BREAK_HOLD) && ut_hold(t->s, i);
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
		atomic_store(&t->s->full, 0); /* of the old shares; of a new one nobody has said so before it runs */
		ut_gate_open(t->s);
	}
	for (int i = 0; i < t->s->nvcpus && still; i++)
		if (held[i])
			ut_release(t->s, i);
	return shared;
}

/* Records that nobody has taken, and what was; more than pages, where some are of the same page. */
static int64_t touched_so_far(const ut_tracker *t)
{
	int64_t n = t->log[t->open].n;

	for (int i = 0; i < t->s->nvcpus; i++)
		if (t->ev[i].used)
			n += (__atomic_load_n(&t->ev[i].ring->data_head, __ATOMIC_ACQUIRE) -
			      t->ev[i].ring->data_tail) / RECORD;
	return n;
}

int ut_ring_wait(ut_tracker *t, int64_t timeout_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;
	struct pollfd p[UT_MAX_VCPUS];

	if (!ut_enter(t))
		return -ESHUTDOWN;
	while (touched_so_far(t) < t->s->threshold) {
		int64_t left = deadline - ut_now_ns();
		int n = 0;

		if (left <= 0 || atomic_load(&t->closing)) {
			ut_leave(t);
			return 0;
		}
		for (int i = 0; i < t->s->nvcpus; i++)
			if (t->ev[i].used)
				p[n++] = (struct pollfd){t->ev[i].min, POLLIN, 0};
		poll(p, n, left / 1000000 + 1);
	}
	ut_leave(t);
	return 1;
}
