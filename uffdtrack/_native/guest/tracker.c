#include "compat.h"
#include "tracker.h"
#include "tracee.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define VEC 4096
#define SPARE 4096 /* a page whose lister was late may come from the bitmap and from its list */
#define SPIN_NS 50000
#define STALL_NS 5000000
#define PART 256 /* pages that are rearmed while no fault is listed */

int ut_own_uffd(int engine, int *kernel)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_UNPOPULATED |
							      UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	*kernel = fd >= 0;
	if (fd < 0 && errno == EPERM)
		fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		return -errno;
	if (engine == UT_RING || engine == UT_SCAN)
		api.features |= UFFD_FEATURE_WP_ASYNC;
	else
		api.features |= UFFD_FEATURE_PAGEFAULT_FLAG_WP |
				(engine == UT_SYNC ? UFFD_FEATURE_THREAD_ID : UFFD_FEATURE_SIGBUS);
	if (ioctl(fd, UFFDIO_API, &api)) {
		int err = -errno;

		close(fd);
		return err;
	}
	return fd;
}

int ut_arm(int uffd, uint64_t base, uint64_t bytes)
{
	struct uffdio_register r = {{base, bytes}, UFFDIO_REGISTER_MODE_WP, 0};
	struct uffdio_writeprotect w = {{base, bytes}, UFFDIO_WRITEPROTECT_MODE_WP};

	if (ioctl(uffd, UFFDIO_REGISTER, &r))
		return -errno;
	while (ioctl(uffd, UFFDIO_WRITEPROTECT, &w))
		if (errno != EAGAIN)
			return -errno;
	return 0;
}

/* -- open and close ------------------------------------------------------------------------------ */

static size_t room(size_t n, size_t size)
{
	return (n * size + 4095) & ~4095ul;
}

/* All that a cycle needs, in one piece; pages of it become real when they are used. The logs' length is the
 * RAM's: no cycle is too large. */
size_t ut_arena_bytes(const ut_shared *s)
{
	size_t n = s->npages + SPARE;

	return 2 * room(n, 8) + 4 * room(n, 4) + room(s->words, 8) + room(VEC, sizeof(struct ut_page_region));
}

int ut_tracker_open(ut_shared *s, const ut_slot *slots, int nslots, void *arena, ut_tracker **out)
{
	size_t n = s->npages + SPARE;
	char *at = arena;
	ut_tracker *t;

	if (nslots < 1 || nslots > UT_MAX_SLOTS)
		return -EINVAL;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	madvise(arena, ut_arena_bytes(s), MADV_HUGEPAGE);
/* Each beginning is made real here, not in one of the first cycles: clearing a huge page takes half a millisecond. */
#define CARVE(what, n, size) ((what) = (void *)at, *(volatile char *)at = 0, at += room(n, size))
	for (int i = 0; i < 2; i++) {
		CARVE(t->log[i].gfn, n, 8);
		CARVE(t->log[i].vcpu, n, 4);
	}
	CARVE(t->scratch, n, 4);
	CARVE(t->scratch2, n, 4);
	CARVE(t->seen, s->words, 8);
	CARVE(t->vec, VEC, sizeof(*t->vec));
#undef CARVE
	t->s = s;
	t->engine = s->engine;
	t->nslots = nslots;
	memcpy(t->slots, slots, nslots * sizeof(*slots));
	for (int i = 0; i < UT_MAX_VCPUS; i++)
		t->ev[i] = (ut_events){.min = -1, .maj = -1, .count = -1, .stat = -1};
	pthread_mutex_init(&t->lock, NULL);
	*out = t;
	return 0;
}

/* -- who is inside ------------------------------------------------------------------------------- */

int ut_enter(ut_tracker *t)
{
	atomic_fetch_add(&t->inside, 1);
	if (!atomic_load(&t->closing))
		return 1;
	atomic_fetch_sub(&t->inside, 1);
	return 0;
}

void ut_leave(ut_tracker *t)
{
	atomic_fetch_sub(&t->inside, 1);
}

void ut_tracker_close(ut_tracker *t)
{
	struct timespec nap = {0, 100000};

	if (atomic_exchange(&t->closing, 1))
		return;
	while (atomic_load(&t->inside)) {
		ut_event(t->s); /* whoever waits sees that it is closing */
		nanosleep(&nap, NULL);
	}
	atomic_store(&t->s->threshold, 0);
	for (int i = 0; i < t->s->nvcpus; i++)
		atomic_store(&t->s->vcpu[i].state, UT_VCPU_FREE);
	atomic_store(&t->s->full, 0);
	ut_gate_open(t->s);
	for (int i = 0; i < UT_MAX_VCPUS; i++)
		ut_ring_close(&t->ev[i]);
	for (int i = 0; i <= UT_MAX_VCPUS; i++)
		ut_tracker_remove(t, i);
	/* One that met the threshold just before may have closed it again. */
	ut_gate_open(t->s);
}

void ut_tracker_free(ut_tracker *t)
{
	pthread_mutex_destroy(&t->lock);
	free(t);
}

void ut_tracker_forked(ut_tracker *t)
{
	for (int i = 0; i <= UT_MAX_VCPUS; i++)
		if (t->mm[i].used) {
			close(t->mm[i].uffd);
			close(t->mm[i].pagemap);
		}
}

static int add_inside(ut_tracker *t, int index, int uffd, int pagemap, uint64_t base, int vcpu)
{
	ut_mm *mm = &t->mm[index];

	if (mm->used)
		return -EBUSY;
	*mm = (ut_mm){.uffd = uffd, .pagemap = pagemap, .base = base, .index = index, .vcpu = vcpu,
		      .tracker = t, .stop = -1};
	atomic_store(&t->s->busy[index], 0); /* of one that was killed there */
	if (t->engine == UT_SYNC) {
		int err = ut_sync_start(t, mm);

		if (err)
			return err;
	}
	mm->used = 1;
	return 0;
}

int ut_tracker_add(ut_tracker *t, int index, int uffd, int pagemap, uint64_t base, int vcpu)
{
	int err;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	err = add_inside(t, index, uffd, pagemap, base, vcpu);
	ut_leave(t);
	return err;
}

void ut_let_go(const ut_mm *mm)
{
	struct uffdio_range all = {mm->base, mm->tracker->s->npages * UT_PAGE};

	/* Unregistering wakes those that wait for a missing page, and not those that want to write. */
	ioctl(mm->uffd, UFFDIO_UNREGISTER, &all);
	ioctl(mm->uffd, UFFDIO_WAKE, &all);
}

void ut_tracker_remove(ut_tracker *t, int index)
{
	ut_mm *mm = &t->mm[index];

	if (!mm->used)
		return;
	if (t->engine == UT_SYNC)
		ut_sync_stop(mm);
	mm->used = 0;
	/* Closing alone would do, but where a thread is just in a call on it, only some time later. */
	ut_let_go(mm);
	close(mm->uffd);
	close(mm->pagemap);
}

static int events_inside(ut_tracker *t, int vcpu, int mm, int min, int maj, int count)
{
	ut_events *e = &t->ev[vcpu];
	ut_vcpu *v = &t->s->vcpu[vcpu];
	char path[64];
	int err;

	*e = (ut_events){.mm = mm, .min = min, .maj = maj, .count = count};
	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", v->pid, v->tid);
	e->stat = open(path, O_RDONLY | O_CLOEXEC);
	err = e->stat < 0 ? -errno : 0;
	if (!err && count >= 0)
		err = ut_set_period(v, count, 1); /* until it has a share */
	if (!err)
		err = ut_ring_map(e, 2 * t->s->capacity);
	pthread_mutex_lock(&t->lock);
	if (!err) {
		ut_ring_start(t, vcpu);
		e->used = 1;
		err = ut_ring_grant(t);
	}
	if (err < 0)
		ut_ring_close(e);
	pthread_mutex_unlock(&t->lock);
	return err < 0 ? err : 0;
}

int ut_tracker_events(ut_tracker *t, int vcpu, int mm, int min, int maj, int count)
{
	int err;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	err = events_inside(t, vcpu, mm, min, maj, count);
	ut_leave(t);
	return err;
}

/* -- harvest ------------------------------------------------------------------------------------- */

static uint64_t gfn_of(const ut_tracker *t, uint64_t index)
{
	int i = 0;

	while (i + 1 < t->nslots && index >= t->slots[i + 1].index)
		i++;
	return index - t->slots[i].index + t->slots[i].gfn;
}

static int64_t index_of(const ut_tracker *t, uint64_t gfn)
{
	for (int i = 0; i < t->nslots; i++)
		if (gfn - t->slots[i].gfn < t->slots[i].npages)
			return gfn - t->slots[i].gfn + t->slots[i].index;
	return -EINVAL;
}

static void put(ut_tracker *t, uint64_t index, int vcpu)
{
	ut_log *log = &t->log[t->open];

	log->gfn[log->n] = gfn_of(t, index);
	log->vcpu[log->n++] = vcpu;
}

int ut_emit(ut_tracker *t, ut_mm *mm, uint64_t index, int vcpu)
{
	/* sync and inline have set the page's bit, and listed it once, when it was written. */
	if (mm) {
		if (t->s->stride > 1)
			bit_set_alone(t->s, UT_TRAPPED + mm->index, index);
		if (bit_set_alone(t->s, UT_LISTED, index)) {
			t->stats.duplicates++;
			return 0;
		}
	}
	put(t, index, vcpu);
	return 1;
}

static int scan_mm(ut_tracker *t, ut_mm *mm)
{
	uint64_t at = mm->base, end = mm->base + t->s->npages * UT_PAGE;

	t->stats.scans++;
	while (at < end) {
		struct ut_pm_scan_arg a = {
			.size = sizeof(a), .flags = UT_SCAN_WP_MATCHING | UT_SCAN_CHECK_WPASYNC,
			.start = at, .end = end, .vec = (uint64_t)t->vec, .vec_len = VEC,
			.category_mask = UT_PAGE_IS_WRITTEN, .return_mask = UT_PAGE_IS_WRITTEN,
		};
		long n = ioctl(mm->pagemap, UT_PAGEMAP_SCAN, &a);

		if (n < 0 && errno == ESRCH) {
			/* Its process has died, and what it wrote last only its page tables knew. */
			t->everything = 1;
			return 0;
		}
		if (n < 0)
			return -errno;
		for (long i = 0; i < n; i++)
			for (uint64_t p = t->vec[i].start; p < t->vec[i].end; p += UT_PAGE)
				ut_emit(t, mm, (p - mm->base) / UT_PAGE, mm->vcpu);
		if (a.walk_end <= at)
			return -EIO;
		at = a.walk_end;
	}
	mm->need_scan = 0;
	return 0;
}

void ut_take_list(ut_tracker *t, int vcpu)
{
	int64_t index;

	while ((index = ut_take(t->s, vcpu)) >= 0)
		ut_emit(t, NULL, index, vcpu);
}

/* sync, inline: have no fault listed, until `let_in`. */
static void keep_out(ut_tracker *t)
{
	struct timespec nap = {0, 20000};

	if (t->engine != UT_SYNC && t->engine != UT_INLINE)
		return;
	atomic_fetch_add(&t->s->rearming, 1);
	for (int i = 0; i <= t->s->nvcpus; i++)
		for (int k = 0; t->mm[i].used && atomic_load(&t->s->busy[i]); k++)
			if (k < 100)
				sched_yield();
			else
				nanosleep(&nap, NULL); /* until it is found out that its process died */
}

static void let_in(ut_tracker *t)
{
	if (t->engine == UT_SYNC || t->engine == UT_INLINE)
		atomic_fetch_sub(&t->s->rearming, 1);
}

/* What a vCPU has written so far stays in its cycle; from now on it writes nothing. `died`: it could not be
 * asked, so that faults without a sample may have been missed. */
static int drop_inside(ut_tracker *t, int vcpu, int died)
{
	ut_vcpu *v = &t->s->vcpu[vcpu];
	ut_events *e = &t->ev[vcpu];
	ut_mm *own = &t->mm[vcpu + 1];

	if (died) { /* whoever waits for it has the lock */
		atomic_store(&v->state, UT_VCPU_GONE);
		ut_event(t->s);
	}
	pthread_mutex_lock(&t->lock);
	if (e->used) {
		ut_ring_drain(t, vcpu);
		e->used = 0;
	}
	ut_ring_close(e);
	if (own->used) {
		/* Its page tables go with it. Where only they tell, all may have been written. */
		if (!died && (t->engine == UT_SCAN || own->need_scan))
			died = scan_mm(t, own) < 0;
		if (died && (t->engine == UT_RING || t->engine == UT_SCAN))
			t->everything = 1;
		ut_tracker_remove(t, vcpu + 1);
	}
	/* A list has one writer: nobody is just about to append when the place is given away. */
	keep_out(t);
	atomic_store(&v->state, UT_VCPU_FREE);
	ut_take_list(t, vcpu);
	let_in(t);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

int ut_tracker_drop(ut_tracker *t, int vcpu, int died)
{
	int err;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	err = drop_inside(t, vcpu, died);
	ut_leave(t);
	return err;
}

/* Pages that are in the bitmap and in no list. */
static void take_bitmap(ut_tracker *t)
{
	t->stats.overflows++;
	for (size_t i = 0; i < t->log[t->open].n; i++) {
		uint64_t index = index_of(t, t->log[t->open].gfn[i]);

		t->seen[index / 64] |= 1ull << (index % 64);
	}
	for (uint64_t w = 0; w < t->s->words; w++) {
		uint64_t left = atomic_load(ut_word(t->s, w * 64)) & ~t->seen[w];

		for (; left; left &= left - 1)
			put(t, w * 64 + __builtin_ctzll(left), UT_HOST);
		t->seen[w] = 0;
	}
}

static int any_dead(const ut_tracker *t)
{
	for (int i = 0; i <= t->s->nvcpus; i++)
		if (t->mm[i].used && atomic_load(&t->mm[i].dead))
			return 1;
	return 0;
}

static int collect(ut_tracker *t)
{
	int full = t->engine == UT_SCAN, overflow;

	if (any_dead(t))
		return -EPIPE;
	for (int i = 0; i < t->s->nvcpus; i++) {
		if (t->ev[i].used)
			ut_ring_drain(t, i);
		ut_take_list(t, i);
	}
	for (int i = 0; i <= t->s->nvcpus; i++) {
		if (t->mm[i].used && (full || t->mm[i].need_scan)) {
			int err = scan_mm(t, &t->mm[i]);

			if (err)
				return err;
		}
	}
	/* Read before the lists are emptied for the last time: what comes after it is in them. */
	overflow = atomic_exchange(&t->s->overflow, 0);
	ut_take_list(t, UT_HOST);
	overflow |= atomic_exchange(&t->s->overflow, 0);
	if (t->everything) {
		t->everything = 0;
		t->stats.everything++;
		for (uint64_t i = 0; i < t->s->npages; i++)
			bit_set(t->s, UT_LISTED, i);
		overflow = 1;
	}
	/* Until the last cycle's pages are rearmed, their bits stand too: the end of this cycle will do. */
	if (overflow && atomic_load(&t->rearmed) < t->log[!t->open].n) {
		atomic_store(&t->s->overflow, 1);
	} else if (overflow) {
		/* Nobody has set a page's bit and not appended it yet. */
		keep_out(t);
		for (int i = UT_HOST; i < t->s->nvcpus; i++)
			ut_take_list(t, i);
		take_bitmap(t);
		let_in(t);
	}
	return 0;
}

int64_t ut_pending(ut_tracker *t)
{
	int64_t n;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	pthread_mutex_lock(&t->lock);
	n = collect(t);
	if (!n)
		n = t->log[t->open].n;
	pthread_mutex_unlock(&t->lock);
	ut_leave(t);
	return n;
}

static int64_t cut(ut_tracker *t)
{
	ut_log *log;
	int err;

	if (atomic_load(&t->rearmed) < t->log[!t->open].n)
		return -EBUSY;
	err = collect(t);
	if (err)
		return err;
	log = &t->log[t->open];
	if ((t->sabotage & UT_BREAK_FORGET) && log->n > 8) {
		bit_clear(t->s, UT_LISTED, index_of(t, log->gfn[--log->n]));
		t->sabotage &= ~UT_BREAK_FORGET;
	}
	t->open = !t->open;
	t->log[t->open].n = 0;
	atomic_store(&t->next, 0);
	atomic_store(&t->rearmed, 0);
	atomic_fetch_sub(&t->s->count, log->n);
	if (t->engine != UT_SYNC && t->engine != UT_INLINE)
		atomic_store(&t->s->count, 0);
	atomic_store(&t->s->full, 0);
	for (int i = 0; i < t->s->nvcpus; i++)
		t->ev[i].listed = 0;
	err = ut_ring_grant(t);
	t->stats.cycles++;
	t->stats.pages += log->n;
	return err < 0 ? err : (int64_t)log->n;
}

int64_t ut_prepare(ut_tracker *t)
{
	int64_t n;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	pthread_mutex_lock(&t->lock);
	n = cut(t);
	pthread_mutex_unlock(&t->lock);
	ut_leave(t);
	return n;
}

static int rearm(ut_tracker *t, const uint64_t *gfn, size_t n);

int64_t ut_fetch(ut_tracker *t, uint64_t max, uint64_t *first)
{
	uint64_t n = t->log[!t->open].n, at = atomic_load(&t->next), part;

	do {
		part = n - at < max ? n - at : max;
	} while (!atomic_compare_exchange_weak(&t->next, &at, at + part));
	*first = at;
	return part;
}

static int64_t exchange(ut_tracker *t)
{
	ut_log *log;
	int64_t n;
	int err;

	pthread_mutex_lock(&t->lock);
	n = cut(t);
	log = &t->log[!t->open];
	if (n >= 0)
		atomic_store(&t->next, n);
	pthread_mutex_unlock(&t->lock);
	if (n < 0)
		return n;
	err = rearm(t, log->gfn, n);
	if (!err)
		return n;
	atomic_store(&t->next, 0); /* they can be fetched, and rearmed again */
	return err;
}

int64_t ut_exchange(ut_tracker *t)
{
	int64_t n;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	n = exchange(t);
	ut_leave(t);
	return n;
}

/* Pages that came to the global list count towards the threshold, too. */
static int count_host(ut_tracker *t)
{
	int64_t threshold = atomic_load(&t->s->threshold);
	int err = 0;

	if (!threshold)
		return 0;
	if (t->engine == UT_RING) {
		pthread_mutex_lock(&t->lock);
		err = ut_ring_grant(t);
		pthread_mutex_unlock(&t->lock);
	} else if (atomic_load(&t->s->count) >= threshold) {
		ut_gate_full(t->s);
	}
	return err < 0 ? err : 0;
}

/* -- rearm --------------------------------------------------------------------------------------- */

/* Sorted by page, 11 bits a pass. `to` has room for n too; returns where the result is. */
static uint32_t *sort(uint32_t *v, uint32_t *to, size_t n, uint64_t npages)
{
	for (int shift = 0; shift < 33 && npages >> shift; shift += 11) {
		uint32_t at[2048] = {0}, sum = 0, *swap = v;

		for (size_t i = 0; i < n; i++)
			at[v[i] >> shift & 2047]++;
		for (int i = 0; i < 2048; i++) {
			uint32_t here = at[i];

			at[i] = sum;
			sum += here;
		}
		for (size_t i = 0; i < n; i++)
			to[at[v[i] >> shift & 2047]++] = v[i];
		v = to;
		to = swap;
	}
	return v;
}

static uint32_t *sort_few(uint32_t *v, size_t n)
{
	for (size_t i = 1; i < n; i++) {
		uint32_t x = v[i];
		size_t k = i;

		for (; k && v[k - 1] > x; k--)
			v[k] = v[k - 1];
		v[k] = x;
	}
	return v;
}

static int rearm_part(ut_tracker *t, const uint32_t *v, size_t n, uint32_t *mine)
{
	/* The bit goes first: a write that comes between it and the trap is listed anew. */
	pthread_mutex_lock(&t->lock);
	for (size_t i = 0; i < n; i++)
		bit_clear(t->s, UT_LISTED, v[i]);
	pthread_mutex_unlock(&t->lock);
	/* A scan has set the trap of what it found. */
	for (int i = 0; i <= t->s->nvcpus && t->engine != UT_SCAN; i++) {
		size_t k = 0;
		int err;

		if (!t->mm[i].used)
			continue;
		pthread_mutex_lock(&t->lock);
		for (size_t j = 0; j < n; j++)
			if (t->s->stride == 1 || bit_clear(t->s, UT_TRAPPED + i, v[j]))
				mine[k++] = v[j];
		pthread_mutex_unlock(&t->lock);
		if ((t->sabotage & UT_BREAK_REARM) && k > 8) {
			k--;
			t->sabotage &= ~UT_BREAK_REARM;
		}
		err = ut_rearm_sorted(t, &t->mm[i], mine, k);
		if (err)
			return err;
	}
	return 0;
}

static int rearm(ut_tracker *t, const uint64_t *gfn, size_t n)
{
	size_t place = gfn - t->log[!t->open].gfn;
	uint32_t *v = t->scratch + place, *other = t->scratch2 + place, *sorted;
	uint64_t carried = t->stats.carried;
	int listing = t->engine == UT_SYNC || t->engine == UT_INLINE;
	size_t done = 0;

	if (place + n > t->log[!t->open].n)
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		int64_t index = index_of(t, gfn[i]);

		if (index < 0)
			return index;
		v[i] = index;
	}
	sorted = n < 48 ? sort_few(v, n) : sort(v, other, n, t->s->npages);
	if (sorted != v)
		other = v;
	while (done < n) {
		size_t part = n - done;
		int err;

		/* Faults wait meanwhile, but not for long. */
		if (listing && part > PART)
			part = PART;
		keep_out(t);
		err = rearm_part(t, sorted + done, part, other + done);
		let_in(t);
		if (err)
			return err;
		done += part;
	}
	atomic_fetch_add(&t->rearmed, n);
	return t->stats.carried == carried ? 0 : count_host(t);
}

int ut_rearm(ut_tracker *t, const uint64_t *gfn, size_t n)
{
	int err;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	err = rearm(t, gfn, n);
	ut_leave(t);
	return err;
}

/* -- pause --------------------------------------------------------------------------------------- */

int ut_wait_parked(ut_tracker *t, uint32_t word, int64_t timeout_ns)
{
	int64_t now = ut_now_ns(), last = now, spent = 0, spin = now + SPIN_NS, call = now + 10000000;

	for (;;) {
		uint32_t event = atomic_load(&t->s->event);
		int waiting = 0, gone = 0;

		for (int i = 0; i < t->s->nvcpus; i++) {
			ut_vcpu *v = &t->s->vcpu[i];
			uint32_t state = atomic_load(&v->state);

			gone |= state == UT_VCPU_GONE;
			waiting |= state == UT_VCPU_BOUND && v->forced > 0 &&
				   atomic_load(&v->parked) != word;
		}
		if (gone)
			return -ESRCH;
		if (!waiting)
			return any_dead(t) ? -EPIPE : 0;
		if (atomic_load(&t->closing))
			return -ESHUTDOWN;
		now = ut_now_ns();
		/* Where this thread itself was kept from running, the others may have been: such time does not count. */
		spent += now - last < STALL_NS ? now - last : STALL_NS;
		last = now;
		if (spent >= timeout_ns)
			return -ETIMEDOUT;
		if (now < spin) {
			sched_yield();
			continue;
		}
		if (now >= call) {
			ut_gate_call(t->s); /* and find out who has ended */
			call = now + 10000000;
		}
		ut_wait_word(&t->s->event, event, 1000000);
	}
}

static uint32_t close_gate(ut_tracker *t)
{
	uint32_t word;

	pthread_mutex_lock(&t->lock);
	t->paused = 1;
	word = ut_gate_close(t->s);
	pthread_mutex_unlock(&t->lock);
	return word;
}

static void open_gate(ut_tracker *t)
{
	t->paused = 0;
	ut_gate_open(t->s);
}

int ut_pause(ut_tracker *t, int64_t timeout_ns)
{
	int err;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	err = ut_wait_parked(t, close_gate(t), timeout_ns);
	ut_leave(t);
	return err;
}

/* Whether the lists are full; 1: not so, and the vCPUs may go on. A fault that was on its way when the cycle
 * ended may have said so too late. ring: the threshold is met by granted shares, some of which are unused, and
 * by faults outside of the RAM. */
static int not_full(ut_tracker *t)
{
	int64_t bound = 0, threshold = atomic_load(&t->s->threshold);
	int err = 0;

	if (t->engine != UT_RING) {
		if (atomic_load(&t->s->count) >= threshold)
			return 0;
		t->stats.false_full++;
		atomic_store(&t->s->full, 0);
		return 1;
	}
	for (int i = 0; i < t->s->nvcpus; i++)
		bound += t->s->vcpu[i].state == UT_VCPU_BOUND;
	err = collect(t);
	if (!err && (int64_t)t->log[t->open].n + (bound > 1 ? bound - 1 : 0) < threshold) {
		t->stats.false_full++;
		atomic_store(&t->s->full, 0);
		err = ut_ring_grant(t);
	}
	return err;
}

/* Open the gate; 0: the lists are full; or -errno. */
static int open_unless_full(ut_tracker *t)
{
	int may = 1;

	pthread_mutex_lock(&t->lock);
	if (atomic_load(&t->s->full))
		may = not_full(t);
	if (may > 0)
		open_gate(t);
	pthread_mutex_unlock(&t->lock);
	return may;
}

int ut_resume(ut_tracker *t)
{
	int may;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	may = open_unless_full(t);
	ut_leave(t);
	return may > 0 ? 0 : may ? may : -EBUSY;
}

void ut_let_run(ut_tracker *t)
{
	if (!ut_enter(t))
		return;
	pthread_mutex_lock(&t->lock);
	open_gate(t);
	pthread_mutex_unlock(&t->lock);
	ut_leave(t);
}

static int wait_full(ut_tracker *t, int64_t timeout_ns, int64_t stop_ns)
{
	int64_t deadline = ut_now_ns() + timeout_ns;

	for (;;) {
		uint32_t event = atomic_load(&t->s->event);
		int64_t left;

		if (atomic_load(&t->closing))
			return -ESHUTDOWN;
		if (any_dead(t))
			return -EPIPE;
		for (int i = 0; i < t->s->nvcpus; i++)
			if (t->s->vcpu[i].state == UT_VCPU_GONE)
				return -ESRCH;
		if (atomic_load(&t->s->full)) {
			int err = ut_wait_parked(t, close_gate(t), stop_ns);

			if (!err)
				err = open_unless_full(t);
			if (err <= 0)
				return err ? err : 1;
			continue;
		}
		left = deadline - ut_now_ns();
		if (left <= 0)
			return 0;
		ut_wait_word(&t->s->event, event, left < 100000000 ? left : 100000000);
	}
}

int ut_wait_full(ut_tracker *t, int64_t timeout_ns, int64_t stop_ns)
{
	int result;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	result = wait_full(t, timeout_ns, stop_ns);
	ut_leave(t);
	return result;
}

void ut_set_halted(ut_tracker *t, int halted)
{
	atomic_store(&t->s->halted, halted);
}

int ut_set_threshold(ut_tracker *t, int64_t pages)
{
	int err;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	pthread_mutex_lock(&t->lock);
	atomic_store(&t->s->threshold, pages);
	err = ut_ring_grant(t);
	pthread_mutex_unlock(&t->lock);
	ut_leave(t);
	return err < 0 ? err : 0;
}

int ut_host_write(ut_tracker *t, uint64_t index, uint64_t n)
{
	int err;

	if (!ut_enter(t))
		return -ESHUTDOWN;
	pthread_mutex_lock(&t->lock);
	for (uint64_t i = index; i < index + n; i++) {
		if (t->mm[0].used)
			trap_fired(t->s, 0, i);
		ut_mark(t->s, i);
	}
	pthread_mutex_unlock(&t->lock);
	err = count_host(t);
	ut_leave(t);
	return err;
}
