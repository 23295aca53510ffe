#include "tree.h"
#include "compat.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/vfs.h>
#include <unistd.h>

/* -- shared memory: taken once ------------------------------------------------------------------- */

static void *grow(void *v, size_t n, size_t *cap, size_t size)
{
	size_t more = *cap ? *cap * 2 : 16;
	void *w;

	if (n < *cap)
		return v;
	w = realloc(v, more * size);
	if (w)
		*cap = more;
	return w;
}

void ut_claims_drop(ut_claims *c, int member)
{
	size_t kept = 0;

	for (size_t i = 0; i < c->n; i++)
		if (c->v[i].member != member)
			c->v[kept++] = c->v[i];
	c->n = kept;
}

void ut_claims_free(ut_claims *c)
{
	free(c->v);
	c->v = NULL;
	c->n = c->cap = 0;
}

/* Whether the pages of the object that this process has never touched are found as well: by /proc/PID/map_files, which
 * takes CAP_CHECKPOINT_RESTORE, and not of hugetlbfs (found_in_file, space.c). */
static int sees_all(const ut_space *s, const ut_region *r)
{
	char path[96];
	struct statfs fs;
	int fd, seen;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%lx-%lx", s->pid, r->start, r->end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	seen = !fstatfs(fd, &fs) && fs.f_type == TMPFS_MAGIC;
	close(fd);
	return seen;
}

static int note_elsewhere(ut_space *s, ut_region *r, const ut_claim *c)
{
	ut_elsewhere *v = grow(s->elsewhere, s->nelsewhere, &s->elsewhere_cap, sizeof(*v));

	if (!v)
		return -ENOMEM;
	s->elsewhere = v;
	v[s->nelsewhere++] = (ut_elsewhere){r->start, r->end, c->address + (r->offset - c->offset), c->member};
	r->kind = UT_KIND_ELSEWHERE;
	/* What this member has stored of it so far is not what is to be found here any more. */
	if (!ut_stood_before(s, r)) {
		int err = runs_push(&s->fresh, r->start, r->end);

		if (err)
			return err;
	}
	return 1;
}

int ut_is_elsewhere(ut_space *s, ut_region *r)
{
	ut_claims *c = s->claims;
	uint64_t end = r->offset + (r->end - r->start);
	ut_claim *v;

	if (r->kind != UT_KIND_SHARED || !r->in_memory)
		return 0;
	for (size_t i = 0; i < c->n; i++) {
		v = &c->v[i];
		if (v->inode == r->inode && v->major == r->major && v->minor == r->minor && v->offset <= r->offset &&
		    end <= v->end && v->member != s->member)
			return note_elsewhere(s, r, v);
	}
	if (!sees_all(s, r))
		return 0;
	v = grow(c->v, c->n, &c->cap, sizeof(*v));
	if (!v)
		return -ENOMEM;
	c->v = v;
	v[c->n++] = (ut_claim){r->inode, r->offset, end, r->start, r->major, r->minor, s->member};
	return 0;
}

void ut_space_join(ut_space *s, ut_claims *claims, int member)
{
	s->claims = claims;
	s->member = member;
}

/* -- children ------------------------------------------------------------------------------------ */

void ut_pids_free(ut_pids *p)
{
	free(p->v);
	p->v = NULL;
	p->n = p->cap = 0;
}

int ut_pids_push(ut_pids *p, int pid)
{
	int32_t *v = grow(p->v, p->n, &p->cap, sizeof(*v));

	if (!v)
		return -ENOMEM;
	p->v = v;
	v[p->n++] = pid;
	return 0;
}

struct tree {
	ut_member_window *v;
	size_t n;
	ut_pids *born;
	const ut_pids *ours;
	ut_tracee **others; /* of `born`; NULL: it may not be traced */
	size_t nothers, others_cap;
	int64_t deadline;
	int stopping; /* the watches know */
};

static int has_pid(const ut_pids *p, int pid)
{
	for (size_t i = 0; i < p->n; i++)
		if (p->v[i] == pid)
			return 1;
	return 0;
}

static int is_known(const struct tree *t, int pid)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->v[i].tracee->pid == pid)
			return 1;
	return has_pid(t->born, pid) || has_pid(t->ours, pid);
}

/* The children of a thread, of which none comes or goes but by its own end (proc_pid_children(5): the list can be relied
 * on where all are stopped). */
static int children_of(struct tree *t, int pid, int tid)
{
	char path[64], text[4097];
	size_t kept = 0;
	ssize_t n;
	int fd, err = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT || errno == ESRCH ? 0 : -errno; /* ended by SIGKILL */
	while (!err && (n = read(fd, text + kept, sizeof(text) - 1 - kept)) > 0) {
		char *at = text, *next;

		n += kept;
		text[n] = 0;
		/* Each number has a space behind it; what has none is not whole yet. */
		for (; !err && (next = strchr(at, ' ')); at = next + 1) {
			int child = atoi(at);

			if (child > 0 && !is_known(t, child) && ut_live_thread(child) > 0)
				err = ut_pids_push(t->born, child);
		}
		kept = text + n - at;
		memmove(text, at, kept);
	}
	close(fd);
	return err;
}

static int children_of_all(struct tree *t, const ut_tracee *of)
{
	int err = 0;

	for (size_t i = 0; i < of->n && !err; i++)
		if (of->threads[i].state == UT_THREAD_STOPPED)
			err = children_of(t, of->pid, of->threads[i].tid);
	return err;
}

#define OTHER_NS 20000000

/* A process that is no member stands with the others, so that it writes no memory that they share. One that may not
 * be traced (set-user-ID), is in a call that a stop would harm, or does not stop at once, runs on. */
static int stop_other(struct tree *t, int pid)
{
	ut_tracee **v = grow(t->others, t->nothers, &t->others_cap, sizeof(ut_tracee *)), *other;
	int err;

	if (!v)
		return -ENOMEM;
	t->others = v;
	err = ut_tracee_open(pid, &other);
	if (!err && ut_is_in_call(other)) {
		ut_tracee_close(other);
		err = UT_BUSY;
	}
	v[t->nothers++] = err ? NULL : other;
	if (!err)
		err = ut_tracee_stop_now(other, OTHER_NS);
	return err == -ENOMEM ? err : 0;
}

/* All children, of those too that are found on the way; `known` of them were known before. */
static int find_children(struct tree *t, int adopter, size_t known, int without)
{
	int err = adopter ? children_of(t, adopter, adopter) : 0;

	for (size_t i = 0; i < t->n && !err; i++)
		if (!t->v[i].result)
			err = children_of_all(t, t->v[i].tracee);
	for (size_t i = 0; i < (without ? t->born->n : known) && !err; i++) {
		if (ut_now_ns() >= t->deadline)
			break; /* all members stand: the rest of these run on */
		err = stop_other(t, t->born->v[i]);
		if (!err && t->others[i])
			err = children_of_all(t, t->others[i]);
	}
	return err;
}

int ut_adopt_orphans(void)
{
	return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) ? -errno : 0;
}

/* -- one instant --------------------------------------------------------------------------------- */

/* While all run: until none is in a call that a stop would harm. */
static int await_all(struct tree *t, size_t *failed)
{
	ut_tracee **v = calloc(t->n + 1, sizeof(*v));
	size_t at = t->n;
	int err;

	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < t->n; i++) {
		v[i] = t->v[i].tracee;
		t->v[i].result = 0;
	}
	err = ut_await_calls_of(v, t->n, t->deadline - ut_now_ns(), &at);
	free(v);
	if (err)
		*failed = at;
	return err;
}

/* Each is asked before any is waited for, so that they come to their stops side by side. */
static int stop_all(struct tree *t, size_t *failed)
{
	t->stopping = 1;
	for (size_t i = 0; i < t->n; i++) {
		ut_stopping(t->v[i].space);
		/* What else goes wrong is said by the stop. */
		if (ut_tracee_ask(t->v[i].tracee) == UT_BUSY) {
			*failed = i;
			return t->v[i].result = UT_BUSY;
		}
	}
	for (size_t i = 0; i < t->n; i++) {
		int err = ut_tracee_stop_now(t->v[i].tracee, t->deadline - ut_now_ns());

		t->v[i].result = err;
		if (err && err != -ESRCH) {
			*failed = i;
			return err;
		}
	}
	return 0;
}

static void take_all(struct tree *t, ut_claims *claims, ut_times *times)
{
	claims->n = 0;
	for (size_t i = 0; i < t->n; i++) {
		ut_member_window *m = &t->v[i];

		if (m->result)
			continue;
		m->result = ut_take_stopped(m->tracee, m->space, m->flags, m->pending, m->npending, &m->times);
		/* What it has not stored, the next one has to. */
		if (m->result)
			ut_claims_drop(claims, m->space->member);
		times->harvest_ns += m->times.harvest_ns;
		times->rearm_ns += m->times.rearm_ns;
		times->copy_ns += m->times.copy_ns;
	}
}

/* Returns how many threads are still on their way to a stop. */
static size_t resume_all(struct tree *t)
{
	size_t late = 0;

	for (size_t i = 0; i < t->n; i++) {
		if (t->stopping && t->v[i].space->watch)
			ut_watch_resumed(t->v[i].space->watch);
		late += ut_tracee_resume(t->v[i].tracee);
	}
	for (size_t i = 0; i < t->nothers; i++)
		if (t->others[i])
			ut_tracee_resume(t->others[i]);
	return late;
}

/* What may take its time, since all run. */
static void settle_all(struct tree *t, size_t late)
{
	for (size_t i = 0; i < t->nothers; i++) {
		if (t->others[i])
			ut_tracee_settle(t->others[i], 100000000);
		ut_tracee_close(t->others[i]);
	}
	free(t->others);
	/* Those that had been asked already, or were killed while they stood. */
	for (size_t i = 0; late && i < t->n; i++)
		ut_tracee_settle(t->v[i].tracee, 100000000);
}

int ut_tree_window(ut_member_window *v, size_t n, ut_claims *claims, const ut_pids *ours, int adopter, int without,
		   int64_t timeout_ns, ut_pids *born, size_t *failed, ut_times *times)
{
	int urgent = sched_getscheduler(0) == SCHED_OTHER, err;
	struct tree t = {.v = v, .n = n, .born = born, .ours = ours, .deadline = ut_now_ns() + timeout_ns};
	int64_t t0;
	size_t left = 0, known = born->n, late;

	*failed = n;
	*times = (ut_times){0};
	err = await_all(&t, failed);
	t0 = ut_now_ns();
	t.deadline = t0 + timeout_ns;
	if (!err)
		err = stop_all(&t, failed);
	if (!err)
		err = find_children(&t, adopter, known, without);
	for (size_t i = 0; i < n; i++)
		left += !v[i].result;
	if (!err && (!left || (born->n > known && !without)))
		err = -EAGAIN;
	if (urgent && !err)
		ut_set_urgent(1);
	times->stop_ns = ut_now_ns() - t0;
	if (!err)
		take_all(&t, claims, times);
	late = resume_all(&t);
	times->pause_ns = ut_now_ns() - t0;
	if (urgent && !err)
		ut_set_urgent(0);
	settle_all(&t, late);
	return err;
}
