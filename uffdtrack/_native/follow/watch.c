/* A thread reads the events of the target's userfaultfd: who gives memory back there waits until that was read. For
 * the ring engine it reads the perf rings of the target's threads too; for sync it answers its faults. */
#include "cleanup.h"
#include "clock.h"
#include "mm.h"
#include "proc_stat.h"
#include "vec.h"
#include "watch.h"
#include "sabotage.h"

#include <sys/eventfd.h>

enum {
	MOST_RANGES = 4096, /* before they are merged */
	TICK_MS = 10,       /* new threads are looked for, where a limit counts what they touch */
	GRACE_NS = 1000000, /* in which a thread that is called to stop leaves its fault */
	UNKNOWN_NS = 20000000,
	AGAIN = 3,          /* a system call that is called to stop repeats its fault at once */
};

/* A thread that has ended has its ring until the server finds out. */
static int are_watched(const ut_watch *w, const ut_tracee *t)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->threads[i].state == UT_THREAD_STOPPED && !ut_thread_rings_have(&w->rings, t->threads[i].tid, i))
			return 0;
	return 1;
}

static void renew_rings(ut_watch *w, const ut_tracee *t)
{
	if (are_watched(w, t))
		return;
	/* The server polls the rings that were there when it went to sleep. */
	if (ut_thread_rings_renew(&w->rings))
		ut_fault_server_poke(&w->server);
}

void ut_watch_threads(ut_watch *w, const ut_tracee *t)
{
	if (w->sync)
		return;
	pthread_mutex_lock(&w->lock);
	renew_rings(w, t);
	pthread_mutex_unlock(&w->lock);
}

/* -- what the userfaultfd says -------------------------------------------------------------------- */

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
	return VEC_PUSH(w->faults, w->nfaults, w->faults_cap, (ut_fault){page, tid, missing, 0});
}

static int note_message(ut_watch *w, const struct uffd_msg *m)
{
	uint64_t from = m->arg.remap.from, to = m->arg.remap.to, len = m->arg.remap.len;

	if (m->event == UFFD_EVENT_PAGEFAULT)
		return note_fault(w, m->arg.pagefault.address / UT_PAGE, m->arg.pagefault.feat.ptid,
				  !(m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP));
	if (ut_breaks(UT_BREAK_EVENTS))
		return 0;
	if (m->event == UFFD_EVENT_REMAP) {
		TRY(note_range(&w->changes.moved, to, to + len));
	} else if (m->event == UFFD_EVENT_REMOVE || m->event == UFFD_EVENT_UNMAP) {
		from = m->arg.remove.start;
		len = m->arg.remove.end - from;
	} else {
		return 0;
	}
	if (m->event != UFFD_EVENT_REMOVE)
		TRY(note_range(&w->changes.unmapped, from, from + len));
	return note_range(&w->changes.zapped, from, from + len);
}

/* They have to be read whatever happens, since the target waits for that. */
static void read_messages(ut_watch *w)
{
	struct uffd_msg msg[UT_FAULT_BATCH];
	int n;

	while ((n = ut_fault_server_read(&w->server, msg)) > 0)
		for (int i = 0; i < n; i++)
			if (note_message(w, &msg[i]))
				w->broken = 1;
}

/* -- the limit ------------------------------------------------------------------------------------ */

static void tell(ut_watch *w)
{
	uint64_t one = 1;

	if (w->told)
		return;
	w->told = 1;
	while (write(w->full, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void forget_full(ut_watch *w)
{
	uint64_t told;

	w->told = 0;
	if (read(w->full, &told, sizeof(told)) < 0)
		told = 0;
}

/* -- sync: answers -------------------------------------------------------------------------------- */

static void wake(const ut_watch *w, uint64_t page)
{
	ut_wake_faults(w->uffd, page * UT_PAGE, UT_PAGE);
}

/* 0: not now, somebody changes the mappings and waits for an event to be read first. */
static int answer_fault(const ut_watch *w, const ut_fault *f)
{
	int err = f->missing ? ut_zero_page(w->uffd, f->page * UT_PAGE)
			     : ut_try_protect(w->uffd, f->page * UT_PAGE, UT_PAGE, UT_NO_TRAP);

	if (err == -EAGAIN)
		return 0;
	/* There is a page by now, or no mapping: whoever waits finds out. */
	if (err)
		wake(w, f->page);
	return 1;
}

/* A thread in user code leaves its fault when it is called to stop; one in a system call cannot stand before that
 * has come to its end. */
static int cannot_stand(const ut_watch *w, const ut_fault *f)
{
	int in = f->again > AGAIN ? 1 : ut_in_system_call(w->pid, f->tid);

	/* Not a thread of the target's, or its number is that of another namespace. */
	return in < 0 ? ut_now_ns() - w->pass_at > UNKNOWN_NS : in;
}

/* The write would be one too many. */
static int must_wait(const ut_watch *w, const ut_fault *f)
{
	if (!w->limit || !w->limited || w->broken || w->touched.n < w->limit)
		return 0;
	if (w->pass_at && ut_now_ns() >= w->pass_at && cannot_stand(w, f))
		return 0;
	/* A thread of this process, which copies memory that the target has given back meanwhile. */
	return !ut_is_own_thread(f->tid);
}

static void answer_all(ut_watch *w)
{
	size_t left = 0;

	for (size_t i = 0; i < w->nfaults; i++) {
		ut_fault *f = &w->faults[i];
		int known = ut_touched_has(&w->touched, f->page), waits = !known && must_wait(w, f);

		if (waits)
			tell(w);
		else if (!known && ut_touched_add(&w->touched, f->page))
			w->lost = 1;
		if (waits || !answer_fault(w, f))
			w->faults[left++] = *f;
	}
	w->nfaults = left;
}

/* -- the server ----------------------------------------------------------------------------------- */

static void look_at_events(ut_watch *w)
{
	read_messages(w);
	ut_thread_rings_drain(&w->rings);
	if (w->sync)
		answer_all(w);
	else if (w->limit && w->touched.n >= w->limit)
		tell(w);
}

/* Poll the userfaultfd and the rings; *fds has room for all that there are. */
static size_t add_rings(const ut_watch *w, struct pollfd **fds, size_t *cap)
{
	size_t n = UT_SERVER_FDS;

	while (*cap < w->rings.n + UT_SERVER_FDS)
		if (VEC_ROOM(*fds, *cap, *cap))
			break;
	for (size_t i = 0; i < w->rings.n && n < *cap; i++)
		(*fds)[n++] = (struct pollfd){w->rings.v[i].ring.fd.min, POLLIN, 0};
	return *cap < UT_SERVER_FDS ? 0 : n;
}

static void serve_watch(void *arg)
{
	AUTO_FREE struct pollfd *fds = NULL;
	ut_watch *w = arg;
	size_t cap = 0, n;
	int found = 0;

	pthread_mutex_lock(&w->lock);
	while (found != -ESHUTDOWN && (n = add_rings(w, &fds, &cap))) {
		int wait = w->nfaults ? 1 : w->limit && !w->sync ? TICK_MS : -1;

		pthread_mutex_unlock(&w->lock);
		found = ut_fault_server_wait(&w->server, fds, n, wait);
		pthread_mutex_lock(&w->lock);
		if (!found && !w->sync)
			ut_thread_rings_renew(&w->rings);
		look_at_events(w);
		for (size_t i = UT_SERVER_FDS; i < n && found > 0; i++)
			if (fds[i].revents & (POLLHUP | POLLERR))
				ut_thread_rings_drop(&w->rings, fds[i].fd);
	}
	pthread_mutex_unlock(&w->lock);
}

int ut_watch_open(int pid, int uffd, int sync, uint64_t limit, ut_watch **out)
{
	ut_watch *w = calloc(1, sizeof(*w));
	pthread_mutexattr_t inherit;
	int err;

	if (!w)
		return -ENOMEM;
	*w = (ut_watch){.pid = pid, .uffd = uffd, .sync = sync, .limit = limit};
	ut_thread_rings_open(&w->rings, pid, limit, &w->touched);
	/* Who stops the target may run at a higher priority than the server. */
	pthread_mutexattr_init(&inherit);
	pthread_mutexattr_setprotocol(&inherit, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&w->lock, &inherit);
	pthread_mutexattr_destroy(&inherit);
	w->full = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	err = w->full < 0 ? -errno : ut_touched_open(&w->touched);
	/* The first event of a host costs the kernel milliseconds, which is too long for a stop. */
	if (!err && !sync)
		ut_thread_rings_renew(&w->rings);
	if (!err)
		err = ut_fault_server_start(&w->server, uffd, serve_watch, w);
	if (err) {
		ut_watch_close(w);
		return err;
	}
	*out = w;
	return 0;
}

static void free_changes(ut_changes *c)
{
	runs_free(&c->zapped);
	runs_free(&c->unmapped);
	runs_free(&c->moved);
}

void ut_watch_close(ut_watch *w)
{
	ut_fault_server_stop(&w->server);
	ut_thread_rings_close(&w->rings);
	if (w->full >= 0)
		close(w->full);
	pthread_mutex_destroy(&w->lock);
	free_changes(&w->changes);
	ut_touched_close(&w->touched);
	free(w->faults);
	free(w);
}

/* -- for a harvest -------------------------------------------------------------------------------- */

static void take_range(ut_runs *to, ut_runs *from)
{
	runs_take(to, from);
	runs_normalise(to);
}

static int misses(const ut_watch *w)
{
	return w->lost || w->unsettled || w->rings.lost || w->rings.births;
}

static int was_unsampled(ut_watch *w)
{
	return !w->sync && ut_thread_rings_audit(&w->rings) && !ut_breaks(UT_BREAK_AUDIT);
}

int ut_watch_take(ut_watch *w, ut_news *news, int limited)
{
	int err, scan;

	pthread_mutex_lock(&w->lock);
	look_at_events(w);
	scan = misses(w);
	scan |= was_unsampled(w);
	/* Who was held has left its fault, or tries again. */
	for (size_t i = 0; i < w->nfaults; i++)
		wake(w, w->faults[i].page);
	w->nfaults = 0;
	w->limited = limited;
	err = ut_touched_take(&w->touched, &news->touched);
	take_range(&news->changes.zapped, &w->changes.zapped);
	take_range(&news->changes.unmapped, &w->changes.unmapped);
	take_range(&news->changes.moved, &w->changes.moved);
	w->lost = w->unsettled = w->rings.lost = w->rings.births = 0;
	forget_full(w);
	if (w->broken || (w->sync && scan))
		err = -ENOMEM;
	pthread_mutex_unlock(&w->lock);
	return err ? err : scan;
}

static int copy(ut_runs *to, const ut_runs *from)
{
	to->n = 0;
	TRY(runs_append(to, from));
	runs_normalise(to);
	return 0;
}

int ut_watch_take_running(ut_watch *w, ut_news *news)
{
	int err;

	pthread_mutex_lock(&w->lock);
	look_at_events(w);
	/* What is missing now, the caller comes upon. Who was born may write on, until the process stands. */
	w->rings.lost = 0;
	w->unsettled = 1;
	err = ut_touched_take(&w->touched, &news->touched);
	if (!err)
		err = copy(&news->changes.zapped, &w->changes.zapped);
	if (!err)
		err = copy(&news->changes.unmapped, &w->changes.unmapped);
	if (!err)
		err = copy(&news->changes.moved, &w->changes.moved);
	if (w->broken)
		err = -ENOMEM;
	pthread_mutex_unlock(&w->lock);
	return err;
}

uint64_t ut_watch_count(ut_watch *w)
{
	uint64_t n;

	pthread_mutex_lock(&w->lock);
	look_at_events(w);
	n = w->touched.n;
	pthread_mutex_unlock(&w->lock);
	return n;
}

int ut_watch_misses(ut_watch *w)
{
	int lost;

	pthread_mutex_lock(&w->lock);
	lost = misses(w);
	pthread_mutex_unlock(&w->lock);
	return lost;
}

void ut_watch_settle(ut_watch *w, const ut_tracee *t)
{
	pthread_mutex_lock(&w->lock);
	if (w->unsettled) {
		look_at_events(w);
		w->rings.lost |= was_unsampled(w) | w->rings.births;
		w->unsettled = w->rings.births = 0;
		renew_rings(w, t);
	}
	pthread_mutex_unlock(&w->lock);
}

int ut_watch_early(ut_watch *w, ut_runs *touched)
{
	int err;

	pthread_mutex_lock(&w->lock);
	err = ut_touched_take(&w->touched, touched);
	pthread_mutex_unlock(&w->lock);
	return err;
}

static void set_pass_at(ut_watch *w, int64_t when)
{
	pthread_mutex_lock(&w->lock);
	w->pass_at = when;
	pthread_mutex_unlock(&w->lock);
}

void ut_watch_stopping(ut_watch *w)
{
	set_pass_at(w, ut_now_ns() + GRACE_NS);
}

void ut_watch_resumed(ut_watch *w)
{
	set_pass_at(w, 0);
}

void ut_watch_passed_over(ut_watch *w)
{
	pthread_mutex_lock(&w->lock);
	w->limited = 0;
	w->rings.lost |= !w->sync;
	pthread_mutex_unlock(&w->lock);
}

int ut_watch_note(ut_watch *w, const ut_runs *pages)
{
	int err = 0;

	if (ut_breaks(UT_BREAK_REARM))
		return 0;
	pthread_mutex_lock(&w->lock);
	for (size_t i = 0; i < pages->n && !err; i++)
		for (uint64_t at = pages->v[i].start; at < pages->v[i].end && !err; at += UT_PAGE)
			err = ut_touched_add(&w->touched, at / UT_PAGE);
	w->lost |= err != 0;
	pthread_mutex_unlock(&w->lock);
	return err;
}

void ut_news_free(ut_news *news)
{
	runs_free(&news->touched);
	free_changes(&news->changes);
}
