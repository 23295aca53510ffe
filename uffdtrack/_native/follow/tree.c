#include "compat.h"
#include "methods.h"
#include "parallel.h"
#include "tree.h"
#include "vec.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>

void ut_pids_free(ut_pids *p)
{
	free(p->v);
	p->v = NULL;
	p->n = p->cap = 0;
}

int ut_pids_push(ut_pids *p, int pid)
{
	return VEC_PUSH(p->v, p->n, p->cap, pid);
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

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, tid);
	AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno == ENOENT || errno == ESRCH ? 0 : -errno; /* ended by SIGKILL */
	while ((n = read(fd, text + kept, sizeof(text) - 1 - kept)) > 0) {
		char *at = text, *next;

		n += kept;
		text[n] = 0;
		/* Each number has a space behind it; what has none is not whole yet. */
		for (; (next = strchr(at, ' ')); at = next + 1) {
			int child = atoi(at);

			if (child > 0 && !is_known(t, child) && ut_live_thread(child) > 0)
				TRY(ut_pids_push(t->born, child));
		}
		kept = text + n - at;
		memmove(text, at, kept);
	}
	return 0;
}

static int children_of_all(struct tree *t, const ut_tracee *of)
{
	for (size_t i = 0; i < of->n; i++)
		if (of->threads[i].state == UT_THREAD_STOPPED)
			TRY(children_of(t, of->pid, of->threads[i].tid));
	return 0;
}

#define OTHER_NS 20000000

/* A process that is no member stands with the others, so that it writes no memory that they share. One that may not
 * be traced (set-user-ID), is in a call that a stop would harm, or does not stop at once, runs on. */
static int stop_other(struct tree *t, int pid)
{
	ut_tracee *other;
	int err;

	TRY(VEC_ROOM(t->others, t->nothers, t->others_cap));
	err = ut_tracee_open(pid, &other);
	if (!err && ut_is_in_call(other)) {
		ut_tracee_close(other);
		err = UT_BUSY;
	}
	t->others[t->nothers++] = err ? NULL : other;
	if (!err)
		err = ut_tracee_stop_now(other, OTHER_NS);
	return err == -ENOMEM ? err : 0;
}

/* All children, of those too that are found on the way; `known` of them were known before. */
static int find_children(struct tree *t, int adopter, size_t known, int without)
{
	if (adopter)
		TRY(children_of(t, adopter, adopter));
	for (size_t i = 0; i < t->n; i++)
		if (!t->v[i].result)
			TRY(children_of_all(t, t->v[i].tracee));
	for (size_t i = 0; i < (without ? t->born->n : known); i++) {
		if (ut_now_ns() >= t->deadline)
			break; /* all members stand: the rest of these run on */
		TRY(stop_other(t, t->born->v[i]));
		if (t->others[i])
			TRY(children_of_all(t, t->others[i]));
	}
	return 0;
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

struct part {
	ut_member_window *v;
	size_t n;
};

static int look_at_part(void *arg)
{
	const struct part *part = arg;

	for (size_t i = 0; i < part->n; i++) {
		ut_member_window *m = &part->v[i];

		if (!m->result)
			m->result = ut_look_at_stopped(m->tracee, m->space, m->flags, &m->times);
	}
	return 0;
}

/* Nothing of one member's look concerns another one's. */
static void look_at_members(struct tree *t)
{
	struct part parts[UT_SHARES];
	int k = ut_shares(t->n, 2);

	for (int i = 0; i < k; i++) {
		size_t from = t->n * i / k, to = t->n * (i + 1) / k;

		parts[i] = (struct part){t->v + from, to - from};
	}
	ut_parallel(look_at_part, parts, sizeof(*parts), k);
}

static void take_members(struct tree *t, ut_claims *claims, ut_times *times)
{
	int64_t t0 = ut_now_ns();

	claims->n = 0;
	look_at_members(t);
	for (size_t i = 0; i < t->n; i++)
		if (!t->v[i].result)
			ut_sole_stands(t->v[i].space, t->v[i].tracee);
	ut_sole_begin(claims->sole);
	times->harvest_ns = ut_now_ns() - t0;
	for (size_t i = 0; i < t->n; i++) {
		ut_member_window *m = &t->v[i];
		int64_t looked = m->times.harvest_ns;

		if (m->result)
			continue;
		m->result = ut_take_stopped(m->space, m->pending, m->npending, &m->times);
		/* What it has not stored, the next one has to. */
		if (m->result)
			ut_claims_drop(claims, m->space->member);
		times->harvest_ns += m->times.harvest_ns - looked;
		times->rearm_ns += m->times.rearm_ns;
		times->copy_ns += m->times.copy_ns;
	}
	ut_sole_end(claims->sole);
}

/* Returns how many threads are still on their way to a stop. */
static size_t resume_all(struct tree *t)
{
	size_t late = 0;

	for (size_t i = 0; i < t->n; i++) {
		if (t->stopping)
			ut_resumed(t->v[i].space);
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
	int64_t t0, stood = 0, longest = 0;
	size_t left = 0, known = born->n, late;

	*failed = n;
	*times = (ut_times){0};
	ut_sole_ask(claims->sole);
	err = await_all(&t, failed);
	t0 = ut_now_ns();
	t.deadline = t0 + timeout_ns;
	if (!err)
		err = stop_all(&t, failed);
	if (!err)
		err = find_children(&t, adopter, known, without);
	for (size_t i = 0; i < n; i++) {
		left += !v[i].result;
		stood += v[i].space->stood_ns;
		longest = ut_longer(longest, v[i].space->longest_ns);
		v[i].space->stood_ns = v[i].space->longest_ns = 0;
	}
	if (!err && (!left || (born->n > known && !without)))
		err = -EAGAIN;
	if (urgent && !err)
		ut_set_urgent(1);
	times->stop_ns = ut_now_ns() - t0 + stood;
	if (!err)
		take_members(&t, claims, times);
	late = resume_all(&t);
	times->pause_ns = ut_now_ns() - t0 + stood;
	if (stood)
		times->longest_ns = ut_longer(longest, times->pause_ns - stood);
	if (urgent && !err)
		ut_set_urgent(0);
	settle_all(&t, late);
	return err;
}
