/* Restartable sequences, rseq(2), of a stopped thread.
 *
 * A thread that is taken off its processor inside of a critical section goes on at the section's abort address: the
 * kernel sees to that on the thread's way back, by its instruction pointer and by the word rseq_cs in its memory, and
 * clears that word where the pointer is outside of the section (Documentation/userspace-api/rseq.rst). So whoever
 * moves the pointer, as an injected call does, has made the kernel forget the section. */
#include "cleanup.h"
#include "compat.h"
#include "tracee_parts.h"

#include <stdlib.h>

/* The head of struct rseq, which has these since Linux 4.18, and its descriptor of a section. */
enum { AREA_CS = 8, AREA_NODE = 20, AREA_HEAD = 28 };
struct section {
	uint32_t version, flags;
	uint64_t start, length, abort;
};

ut_registration ut_rseq_of(int tid)
{
	ut_registration c = {0};
	long n = trace(UT_PTRACE_GET_RSEQ, tid, (void *)sizeof(c), &c);

	return n == sizeof(c) ? c : (ut_registration){0};
}

void ut_rseq_find(int tid, uint64_t rip, ut_section *found)
{
	ut_registration c = ut_rseq_of(tid);
	struct section s;
	uint64_t at;
	uint32_t before_abort;

	*found = (ut_section){0};
	if (!c.area || ut_read_remote(tid, c.area + AREA_CS, &at, sizeof(at)) || !at ||
	    ut_read_remote(tid, at, &s, sizeof(s)))
		return;
	/* What the kernel asks before it believes a descriptor; it ends the thread where the signature is wrong. */
	if (s.version || rip - s.start >= s.length || s.abort - s.start < s.length ||
	    ut_read_remote(tid, s.abort - 4, &before_abort, 4) || before_abort != c.signature)
		return;
	*found = (ut_section){c.area + AREA_CS, at, s.abort};
}

/* The word is put back, so that memory is as it was: a copy of it, or the undoing of a rollback, may go by it. Where that
 * fails the area is not there any more, and nobody will miss it. The pointer goes to the abort address here and now:
 * kernels since 6.19 look at the word only on the way back from an interrupt of user code, and after an injected call
 * the thread is on its way back from a system call. */
void ut_rseq_abort(int tid, const ut_section *s, struct user_regs_struct *live)
{
	live->rip = s->abort;
	ut_remote_write(tid, s->word, &s->descriptor, sizeof(s->descriptor));
}

void ut_set_dispatch(int tid, const ut_dispatch *d)
{
	trace(UT_PTRACE_SET_DISPATCH, tid, (void *)sizeof(*d), (void *)d);
}

int ut_give_back(int tid, struct user_regs_struct *live, uint64_t sigmask, const ut_section *section,
		 const ut_dispatch *dispatch)
{
	if (section->word)
		ut_rseq_abort(tid, section, live);
	if (dispatch->mode)
		ut_set_dispatch(tid, dispatch);
	TRY(trace(PTRACE_SETREGS, tid, NULL, live));
	return trace(PTRACE_SETSIGMASK, tid, (void *)8, &sigmask);
}

/* Kernels since 6.19 write the numbers of processor, node and concurrency to the area when they change, not at each
 * return: memory of an earlier time would leave those of then there, and per-CPU data would be another processor's. */
int ut_rseq_keep(ut_tracee *t)
{
	free(t->rseq.v);
	t->rseq.n = 0;
	t->rseq.v = calloc(t->n ? t->n : 1, sizeof(*t->rseq.v));
	if (!t->rseq.v)
		return -ENOMEM;
	for (size_t i = 0; i < t->n; i++) {
		const ut_thread *th = &t->threads[i];
		ut_rseq *kept = &t->rseq.v[t->rseq.n];

		if (th->state != UT_THREAD_STOPPED || !th->rseq.area ||
		    ut_read_remote(th->tid, th->rseq.area, kept->head, AREA_HEAD))
			continue;
		kept->area = th->rseq.area;
		kept->tid = th->tid;
		t->rseq.n++;
	}
	return 0;
}

int ut_rseq_put(ut_tracee *t)
{
	for (size_t i = 0; i < t->rseq.n; i++) {
		const ut_rseq *kept = &t->rseq.v[i];
		int at = ut_tracee_index(t, kept->tid);

		/* Where the area of one that was ended has been, or of one that had not registered it yet, there is something
		 * else now. */
		if (at < 0 || t->threads[at].state != UT_THREAD_STOPPED || ut_rseq_of(kept->tid).area != kept->area)
			continue;
		/* All but rseq_cs and the flags. */
		TRY(ut_remote_write(kept->tid, kept->area, kept->head, AREA_CS));
		TRY(ut_remote_write(kept->tid, kept->area + AREA_NODE, kept->head + AREA_NODE, AREA_HEAD - AREA_NODE));
	}
	return 0;
}
