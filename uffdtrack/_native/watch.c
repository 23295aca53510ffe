/* A thread reads the events of the target's userfaultfd: who gives memory back there waits until that was read. For
 * the ring engine it reads the perf rings of the target's threads too; for sync it answers its faults. */
#include "compat.h"
#include "watch.h"
#include "tracee.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	RECORDS = 8192,     /* of a thread's ring */
	FEW_RECORDS = 1024, /* the same, where there are many threads: the kernel's memory for rings is limited */
	MANY = 32,
	KEPT_FDS = 64, /* descriptors that are left for all else */
	RECORD = 16,
	MOST = 1 << 18,     /* pages; with more of them, a scan is cheaper */
	MOST_IDLE = 1 << 14, /* entries of a table that is nearly empty */
	MOST_RANGES = 4096, /* before they are merged */
	TICK_MS = 10,       /* new threads are looked for, where a limit counts what they touch */
	GRACE_NS = 1000000, /* in which a thread that is called to stop leaves its fault */
	UNKNOWN_NS = 20000000,
	AGAIN = 3,          /* a system call that is called to stop repeats its fault at once */
};

static int table_grow(ut_watch *w)
{
	size_t cap = w->table_cap ? w->table_cap * 2 : 4096;
	uint64_t *v = calloc(cap, sizeof(*v)), *old = w->table;

	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < w->table_cap; i++)
		if (old[i]) {
			size_t at = (old[i] * 0x9e3779b97f4a7c15ull) >> 20 & (cap - 1);

			while (v[at])
				at = (at + 1) & (cap - 1);
			v[at] = old[i];
		}
	w->table = v;
	w->table_cap = cap;
	free(old);
	return 0;
}

static void touch(ut_watch *w, uint64_t page)
{
	uint64_t key = page + 1;
	size_t at;

	if ((w->npages >= MOST && !w->sync) || (w->npages * 2 >= w->table_cap && table_grow(w))) {
		w->lost = 1;
		return;
	}
	at = (key * 0x9e3779b97f4a7c15ull) >> 20 & (w->table_cap - 1);
	while (w->table[at] && w->table[at] != key)
		at = (at + 1) & (w->table_cap - 1);
	if (!w->table[at]) {
		w->table[at] = key;
		w->npages++;
	}
}

static int touched(const ut_watch *w, uint64_t page)
{
	uint64_t key = page + 1;
	size_t at = (key * 0x9e3779b97f4a7c15ull) >> 20 & (w->table_cap - 1);

	while (w->table[at] && w->table[at] != key)
		at = (at + 1) & (w->table_cap - 1);
	return !!w->table[at];
}

static void drain(ut_watch *w, ut_events *e)
{
	uint64_t head = __atomic_load_n(&e->ring->data_head, __ATOMIC_ACQUIRE), tail = e->ring->data_tail;
	uint64_t mask = e->bytes - 4096 - 1;
	const char *data = (char *)e->ring + 4096;

	/* A record that finds no room is told of only with the next one that does. */
	if (head - tail + 2 * RECORD > mask + 1)
		w->lost = 1;
	while (tail < head) {
		const struct perf_event_header *h = (const void *)(data + (tail & mask));

		if (h->type == PERF_RECORD_SAMPLE) {
			w->samples++;
			touch(w, *(const uint64_t *)(data + ((tail + 8) & mask)) / UT_PAGE);
		} else if (h->type == PERF_RECORD_LOST || h->type == PERF_RECORD_FORK) {
			/* A thread that is new is watched from the next stop on. A process may be one of
			 * vfork(2), which writes in its parent's memory and whose faults are its own. */
			w->lost = 1;
		}
		tail += h->size;
	}
	__atomic_store_n(&e->ring->data_tail, tail, __ATOMIC_RELEASE);
}

static void forget_thread(ut_watch *w, size_t i)
{
	drain(w, &w->ev[i]);
	ut_ring_close(&w->ev[i]);
	w->n--;
	w->short_of = 0;
	memmove(&w->ev[i], &w->ev[i + 1], (w->n - i) * sizeof(*w->ev));
	memmove(&w->tid[i], &w->tid[i + 1], (w->n - i) * sizeof(*w->tid));
}

/* As the ring engine does (ring.c), but that a reader is woken, and told of new threads and processes. */
static int open_event(int tid, int config, uint32_t wake_bytes)
{
	struct perf_event_attr a = {
		.type = PERF_TYPE_SOFTWARE, .size = sizeof(a), .config = config,
		.sample_period = 1, .sample_type = PERF_SAMPLE_ADDR, .disabled = 1,
		.task = config == PERF_COUNT_SW_PAGE_FAULTS_MIN,
		.watermark = 1, .wakeup_watermark = wake_bytes,
	};

	return syscall(SYS_perf_event_open, &a, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

static int has_room(int fd)
{
	struct rlimit files;

	return !getrlimit(RLIMIT_NOFILE, &files) && (rlim_t)fd + KEPT_FDS < files.rlim_cur;
}

static int open_events(ut_events *e, int tid, size_t records, uint32_t wake)
{
	e->min = open_event(tid, PERF_COUNT_SW_PAGE_FAULTS_MIN, wake);
	if (e->min < 0)
		return -errno;
	e->maj = open_event(tid, PERF_COUNT_SW_PAGE_FAULTS_MAJ, wake);
	if (e->maj < 0)
		return -errno;
	return has_room(e->maj) ? ut_ring_map(e, records) : -EMFILE;
}

static void watch_thread(ut_watch *w, int tid)
{
	ut_events e = {.min = -1, .maj = -1, .count = -1, .stat = -1};
	size_t records = w->n < MANY ? RECORDS : FEW_RECORDS;
	uint32_t wake = records * RECORD / 2;
	int err;

	if (w->short_of)
		return;

	if (w->n == w->cap) {
		size_t cap = w->cap ? w->cap * 2 : 16;
		ut_events *ev = realloc(w->ev, cap * sizeof(*ev));
		int32_t *ids;

		if (!ev)
			return;
		w->ev = ev;
		ids = realloc(w->tid, cap * sizeof(*ids));
		if (!ids)
			return;
		w->tid = ids;
		w->cap = cap;
	}
	/* A limit is met by several threads at once, so each tells of a part of it. */
	if (w->limit && w->limit * RECORD / 8 < wake)
		wake = w->limit / 8 ? w->limit / 8 * RECORD : RECORD;
	err = open_events(&e, tid, records, wake);
	/* Where that fails, the audit finds faults without a sample. */
	if (err) {
		ut_ring_close(&e);
		if (err != -ESRCH)
			w->short_of = err;
		return;
	}
	w->ev[w->n] = e;
	w->tid[w->n++] = tid;
}

static void watch_threads(ut_watch *w)
{
	char path[64];
	struct dirent *entry;
	size_t hint = 0, before = w->n;
	uint8_t *lives = calloc(before + 1, 1);
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", w->pid);
	dir = opendir(path);
	while (dir && lives && (entry = readdir(dir))) {
		int tid = atoi(entry->d_name);
		size_t i = 0;

		if (tid <= 0)
			continue;
		while (i < before && w->tid[(hint + i) % before] != tid)
			i++;
		if (i < before) {
			hint = (hint + i) % before;
			lives[hint++] = 1;
		} else {
			watch_thread(w, tid);
		}
	}
	for (size_t i = before; dir && lives && i-- > 0;)
		if (!lives[i])
			forget_thread(w, i);
	if (dir)
		closedir(dir);
	free(lives);
}

/* Threads poll the events that were there when they went to sleep. */
static void poke(ut_watch *w)
{
	uint64_t one = 1;

	while (write(w->poke, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void ut_watch_threads(ut_watch *w)
{
	size_t before;

	if (w->sync)
		return;
	pthread_mutex_lock(&w->lock);
	before = w->n;
	watch_threads(w);
	if (w->n != before)
		poke(w);
	pthread_mutex_unlock(&w->lock);
}

static int note_range(ut_runs *r, uint64_t start, uint64_t end)
{
	if (r->n && r->n % MOST_RANGES == 0)
		runs_normalise(r);
	return runs_push(r, start & ~(UT_PAGE - 1), (end + UT_PAGE - 1) & ~(UT_PAGE - 1));
}

static int note_fault(ut_watch *w, uint64_t page, int tid, int missing)
{
	for (size_t i = 0; i < w->nfaults; i++) {
		ut_fault *f = &w->faults[i];

		if (f->page == page && f->tid == tid && f->missing == missing) {
			f->again++;
			return 0;
		}
	}
	if (w->nfaults == w->faults_cap) {
		size_t cap = w->faults_cap ? w->faults_cap * 2 : 64;
		ut_fault *v = realloc(w->faults, cap * sizeof(*v));

		if (!v)
			return -ENOMEM;
		w->faults = v;
		w->faults_cap = cap;
	}
	w->faults[w->nfaults++] = (ut_fault){page, tid, missing, 0};
	return 0;
}

static int note_event(ut_watch *w, const struct uffd_msg *m)
{
	uint64_t from = m->arg.remap.from, to = m->arg.remap.to, len = m->arg.remap.len;
	int err;

	if (m->event == UFFD_EVENT_PAGEFAULT)
		return note_fault(w, m->arg.pagefault.address / UT_PAGE, m->arg.pagefault.feat.ptid,
				  !(m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP));
	if (w->sabotage & UT_WATCH_BREAK_EVENTS)
		return 0;
	if (m->event == UFFD_EVENT_REMAP) {
		err = note_range(&w->moved, to, to + len);
	} else if (m->event == UFFD_EVENT_REMOVE || m->event == UFFD_EVENT_UNMAP) {
		from = m->arg.remove.start;
		len = m->arg.remove.end - from;
		err = 0;
	} else {
		return 0;
	}
	if (!err && m->event != UFFD_EVENT_REMOVE)
		err = note_range(&w->unmapped, from, from + len);
	return err ? err : note_range(&w->zapped, from, from + len);
}

/* They have to be read whatever happens, since the target waits for that. */
static void read_events(ut_watch *w)
{
	struct uffd_msg msg[64];
	ssize_t n;

	while ((n = read(w->uffd, msg, sizeof(msg))) > 0)
		for (size_t i = 0; i < n / sizeof(*msg); i++)
			if (note_event(w, &msg[i]))
				w->broken = 1;
}

static void tell(ut_watch *w)
{
	uint64_t one = 1;

	if (w->told)
		return;
	w->told = 1;
	while (write(w->full, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void wake(const ut_watch *w, uint64_t page)
{
	struct uffdio_range range = {page * UT_PAGE, UT_PAGE};

	ioctl(w->uffd, UFFDIO_WAKE, &range);
}

/* 0: not now, somebody changes the mappings and waits for an event to be read first. */
static int answer(const ut_watch *w, const ut_fault *f)
{
	struct uffdio_zeropage zero = {{f->page * UT_PAGE, UT_PAGE}, 0, 0};
	struct uffdio_writeprotect wp = {{f->page * UT_PAGE, UT_PAGE}, 0};

	if (!(f->missing ? ioctl(w->uffd, UFFDIO_ZEROPAGE, &zero) : ioctl(w->uffd, UFFDIO_WRITEPROTECT, &wp)))
		return 1;
	if (errno == EAGAIN)
		return 0;
	/* There is a page by now, or no mapping: whoever waits finds out. */
	wake(w, f->page);
	return 1;
}

/* A thread in user code leaves its fault when it is called to stop; one in a system call cannot stand before that
 * has come to its end. */
static int in_system_call(const ut_watch *w, const ut_fault *f)
{
	char path[64], c = 0;
	int fd;

	if (f->again > AGAIN)
		return 1;
	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", w->pid, f->tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	/* Not a thread of the target's, or its number is that of another namespace. */
	if (fd < 0)
		return ut_now_ns() - w->pass_at > UNKNOWN_NS;
	if (read(fd, &c, 1) != 1)
		c = 0;
	close(fd);
	return c >= '0' && c <= '9'; /* else "running", or -1: in none */
}

/* A thread of this process, which copies memory that the target has given back meanwhile. */
static int is_ours(int tid)
{
	char path[48];

	snprintf(path, sizeof(path), "/proc/self/task/%d", tid);
	return !access(path, F_OK);
}

static void answer_all(ut_watch *w)
{
	int stopping = w->pass_at && ut_now_ns() >= w->pass_at;
	size_t left = 0;

	for (size_t i = 0; i < w->nfaults; i++) {
		ut_fault *f = &w->faults[i];
		int known = touched(w, f->page), hold;

		hold = w->limit && w->limited && !w->broken && !known && w->npages >= w->limit;
		if (hold && ((stopping && in_system_call(w, f)) || is_ours(f->tid)))
			hold = 0;
		if (hold)
			tell(w);
		else if (!known)
			touch(w, f->page);
		if (hold || !answer(w, f))
			w->faults[left++] = *f;
	}
	w->nfaults = left;
}

static void look(ut_watch *w)
{
	read_events(w);
	for (size_t i = 0; i < w->n; i++)
		drain(w, &w->ev[i]);
	if (w->sync)
		answer_all(w);
	else if (w->limit && w->npages >= w->limit)
		tell(w);
}

static void drop_ended(ut_watch *w, int fd)
{
	for (size_t i = 0; i < w->n; i++)
		if (w->ev[i].min == fd) {
			forget_thread(w, i);
			return;
		}
}

static void *collect(void *arg)
{
	struct pollfd *p = NULL;
	ut_watch *w = arg;
	size_t cap = 0;

	pthread_mutex_lock(&w->lock);
	while (!w->stop) {
		size_t n = 2;
		uint64_t pokes;
		int found, wait;

		if (w->n + 2 > cap) {
			struct pollfd *more = realloc(p, (w->n + 2) * 2 * sizeof(*p));

			if (more) {
				p = more;
				cap = (w->n + 2) * 2;
			}
		}
		if (!p)
			break;
		p[0] = (struct pollfd){w->uffd, POLLIN, 0};
		p[1] = (struct pollfd){w->poke, POLLIN, 0};
		for (size_t i = 0; i < w->n && n < cap; i++)
			p[n++] = (struct pollfd){w->ev[i].min, POLLIN, 0};
		wait = w->nfaults ? 1 : w->limit && !w->sync ? TICK_MS : -1;
		pthread_mutex_unlock(&w->lock);
		found = poll(p, n, wait);
		pthread_mutex_lock(&w->lock);
		if (p[1].revents && read(w->poke, &pokes, sizeof(pokes)) < 0)
			pokes = 0;
		if (!found && !w->sync)
			watch_threads(w);
		look(w);
		for (size_t i = 2; i < n && found > 0; i++)
			if (p[i].revents & (POLLHUP | POLLERR))
				drop_ended(w, p[i].fd);
	}
	w->stop = 1;
	pthread_mutex_unlock(&w->lock);
	free(p);
	return NULL;
}

int ut_watch_open(int pid, int uffd, int sync, uint64_t limit, ut_watch **out)
{
	ut_watch *w = calloc(1, sizeof(*w));
	pthread_mutexattr_t inherit;
	sigset_t all, old;
	int err;

	if (!w)
		return -ENOMEM;
	*w = (ut_watch){.pid = pid, .uffd = uffd, .sync = sync, .limit = limit, .unseen = INT64_MIN / 2};
	/* Who stops the target may run at a higher priority than the collecting thread. */
	pthread_mutexattr_init(&inherit);
	pthread_mutexattr_setprotocol(&inherit, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&w->lock, &inherit);
	pthread_mutexattr_destroy(&inherit);
	w->poke = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	w->full = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	err = w->poke < 0 || w->full < 0 ? -errno : table_grow(w);
	/* The first event of a host costs the kernel milliseconds, which is too long for a stop. */
	if (!err && !sync)
		watch_threads(w);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (!err)
		err = -pthread_create(&w->thread, NULL, collect, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	w->running = !err;
	if (err) {
		ut_watch_close(w);
		return err;
	}
	*out = w;
	return 0;
}

void ut_watch_close(ut_watch *w)
{
	if (w->running) {
		pthread_mutex_lock(&w->lock);
		w->stop = 1;
		poke(w);
		pthread_mutex_unlock(&w->lock);
		pthread_join(w->thread, NULL);
	}
	for (size_t i = 0; i < w->n; i++)
		ut_ring_close(&w->ev[i]);
	if (w->poke >= 0)
		close(w->poke);
	if (w->full >= 0)
		close(w->full);
	pthread_mutex_destroy(&w->lock);
	runs_free(&w->zapped);
	runs_free(&w->unmapped);
	runs_free(&w->moved);
	free(w->faults);
	free(w->table);
	free(w->ev);
	free(w->tid);
	free(w);
}

/* Faults of the whole process so far, those of threads that have ended included. */
static int64_t all_faults(const ut_watch *w)
{
	char path[64], text[1024], *p;
	uint64_t min, maj;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", w->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return -ESRCH;
	text[n] = 0;
	p = strrchr(text, ')');
	if (!p || sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %lu %*u %lu", &min, &maj) != 2)
		return -EIO;
	return min + maj;
}

static void swap(ut_runs *to, ut_runs *from)
{
	ut_runs t = *to;

	*to = *from;
	*from = t;
	from->n = 0;
	runs_normalise(to);
}

static void sort(uint64_t *v, uint64_t *to, size_t n)
{
	uint64_t *first = v;

	for (int shift = 0; shift < 44; shift += 11) {
		uint32_t at[2048] = {0}, sum = 0;
		uint64_t *swap = v;

		for (size_t i = 0; i < n; i++)
			at[v[i] >> shift & 2047]++;
		if (at[v[0] >> shift & 2047] == n)
			continue;
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
	if (v != first)
		memcpy(first, v, n * sizeof(*v));
}

/* Sorted, and the table is empty after. */
static int take_pages(ut_watch *w, ut_runs *touched)
{
	size_t n = 0, cap = w->table_cap;
	uint64_t *v = malloc((w->npages * 2 + 1) * sizeof(*v)), *old = w->table;
	int err = 0;

	touched->n = 0;
	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < cap && n < w->npages; i++)
		if (old[i])
			v[n++] = old[i] - 1;
	if (cap > MOST_IDLE && n * 8 < cap) {
		/* A long table costs each stop that it is looked through. */
		w->table = NULL;
		w->table_cap = 0;
		free(old);
		err = table_grow(w);
	} else {
		memset(old, 0, cap * sizeof(*old));
	}
	w->npages = 0;
	if (n)
		sort(v, v + n, n);
	for (size_t i = 0; i < n && !err; i++)
		err = runs_push(touched, v[i] * UT_PAGE, (v[i] + 1) * UT_PAGE);
	free(v);
	return err;
}

static void forget_full(ut_watch *w)
{
	uint64_t told;

	w->told = 0;
	if (read(w->full, &told, sizeof(told)) < 0)
		told = 0;
}

int ut_watch_take(ut_watch *w, ut_news *news, int limited)
{
	int64_t faults;
	int err, scan;

	pthread_mutex_lock(&w->lock);
	look(w);
	scan = w->lost;
	if (!w->sync) {
		faults = all_faults(w);
		if (!(w->sabotage & UT_WATCH_BREAK_AUDIT))
			scan |= faults < 0 || faults != (int64_t)w->samples + w->unseen;
		/* They stand, so nothing is under way. */
		w->unseen = faults < 0 ? INT64_MIN / 2 : faults - (int64_t)w->samples;
	}
	/* Who was held has left its fault, or tries again. */
	for (size_t i = 0; i < w->nfaults; i++)
		wake(w, w->faults[i].page);
	w->nfaults = 0;
	w->limited = limited;
	err = take_pages(w, &news->touched);
	swap(&news->zapped, &w->zapped);
	swap(&news->unmapped, &w->unmapped);
	swap(&news->moved, &w->moved);
	w->lost = 0;
	forget_full(w);
	if (w->broken || (w->sync && scan))
		err = -ENOMEM;
	pthread_mutex_unlock(&w->lock);
	return err ? err : scan;
}

static int copy(ut_runs *to, const ut_runs *from)
{
	int err;

	to->n = 0;
	err = runs_append(to, from);
	runs_normalise(to);
	return err;
}

int ut_watch_peek(ut_watch *w, ut_news *news)
{
	int err;

	pthread_mutex_lock(&w->lock);
	look(w);
	news->touched.n = 0;
	err = copy(&news->zapped, &w->zapped);
	if (!err)
		err = copy(&news->unmapped, &w->unmapped);
	if (!err)
		err = copy(&news->moved, &w->moved);
	if (w->broken)
		err = -ENOMEM;
	pthread_mutex_unlock(&w->lock);
	return err;
}

void ut_watch_stopping(ut_watch *w)
{
	pthread_mutex_lock(&w->lock);
	w->pass_at = ut_now_ns() + GRACE_NS;
	pthread_mutex_unlock(&w->lock);
}

void ut_watch_resumed(ut_watch *w)
{
	pthread_mutex_lock(&w->lock);
	w->pass_at = 0;
	pthread_mutex_unlock(&w->lock);
}

void ut_news_free(ut_news *news)
{
	runs_free(&news->touched);
	runs_free(&news->zapped);
	runs_free(&news->unmapped);
	runs_free(&news->moved);
}
