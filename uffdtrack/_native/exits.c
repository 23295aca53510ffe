#include "compat.h"
#include "exits.h"
#include "guard.h"
#include "tracee_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As many as the kernel follows (ROBUST_LIST_LIMIT). */
enum { MUTEXES = 2048 };
/* From fs_base on: the thread's own structure, in all versions of glibc for x86-64. */
enum { WORD = 0x2d0 };
enum { RED_ZONE = 128 };

static int page_of(ut_runs *pages, uint64_t addr)
{
	uint64_t page = addr & ~(UT_PAGE - 1);

	return page < UT_TASK_SIZE ? runs_push(pages, page, page + UT_PAGE) : 0;
}

/* Only what is there: a page that has to be fetched may never come. By /proc/PID/mem, which waits for no userfaultfd. */
static int get(const ut_remote *r, uint64_t addr, void *to, size_t n)
{
	uint64_t entry[2], first = addr / UT_PAGE, pages = (addr + n - 1) / UT_PAGE - first + 1;

	if (addr >= UT_TASK_SIZE - n)
		return 0;
	if (pread(r->pagemap, entry, pages * 8, first * 8) != (ssize_t)pages * 8)
		return 0;
	for (uint64_t i = 0; i < pages; i++)
		if (!(entry[i] & (UT_ENTRY_PRESENT | UT_ENTRY_SWAPPED)))
			return 0;
	return pread(r->mem, to, n, addr) == (ssize_t)n;
}

/* struct robust_list_head: the first entry, the way from an entry to its word, and the entry that is about to be. Bit
 * 0 of an entry says whether it inherits priorities. */
static int mutexes_of(int tid, const ut_remote *r, ut_runs *pages)
{
	uint64_t head = 0, size, list[3], entry, next;

	if (syscall(SYS_get_robust_list, tid, &head, &size) || !head || !get(r, head, list, sizeof(list)))
		return 0;
	if (list[2])
		TRY(page_of(pages, (list[2] & ~1ul) + list[1]));
	entry = list[0] & ~1ul;
	for (int n = 0; entry && entry != head && n < MUTEXES; n++, entry = next) {
		TRY(page_of(pages, entry + list[1]));
		if (!get(r, entry, &next, sizeof(next)))
			break;
		next &= ~1ul;
		if (next == entry) /* the end of a list that was given another head */
			break;
	}
	return 0;
}

static int is_glibc(const ut_tracee *t, int tid, const ut_remote *r, uint64_t fs_base)
{
	int32_t value;

	return fs_base && get(r, fs_base + WORD, &value, sizeof(value)) &&
	       (value == tid || value == ut_own_tid(t->pid, tid));
}

/* The answer is written to the thread's stack, below the red zone, and what was there is put back. */
static int ask(ut_tracee *t, size_t index, const ut_remote *r, uint64_t *word)
{
	uint64_t at = (regs_of(&t->threads[index])->rsp - RED_ZONE - sizeof(*word)) & ~7ull, kept;
	const uint64_t args[6] = {PR_GET_TID_ADDRESS, at};
	int tid = t->threads[index].tid, err;
	int64_t result;

	*word = 0;
	if (!get(r, at, &kept, sizeof(kept)))
		return 0;
	err = ut_inject_begin(t, index);
	if (err)
		return err == UT_SECCOMP ? 0 : err;
	err = ut_inject(t, index, SYS_prctl, args, &result);
	if (!err && !result) {
		err = ut_read_remote(tid, at, word, sizeof(*word));
		if (!err)
			err = ut_remote_write(tid, at, &kept, sizeof(kept));
	}
	TRY(ut_inject_end(t, index));
	return err;
}

/* `at`: where to begin; threads are mostly in the same order as the last time. */
static const ut_exit_word *known(const ut_exit_words *words, size_t *at, int tid, uint64_t fs_base)
{
	for (size_t i = 0; i < words->n; i++, ++*at) {
		const ut_exit_word *w = &words->v[*at % words->n];

		if (w->tid == tid && w->fs_base == fs_base)
			return w;
	}
	return NULL;
}

int ut_exit_words_find(ut_tracee *t, const ut_remote *r, ut_exit_words *words)
{
	ut_exit_words found = {calloc(t->n ? t->n : 1, sizeof(*found.v)), 0};
	int err = found.v ? 0 : -ENOMEM;
	size_t at = 0;

	for (size_t i = 0; i < t->n && !err; i++) {
		ut_thread *th = &t->threads[i];
		uint64_t fs_base = regs_of(th)->fs_base;
		ut_exit_word *w = &found.v[found.n];
		const ut_exit_word *old;

		if (th->state != UT_THREAD_STOPPED || th->worker)
			continue;
		old = known(words, &at, th->tid, fs_base);
		*w = old ? *old : (ut_exit_word){th->tid, fs_base, fs_base + WORD};
		if (!old && !is_glibc(t, th->tid, r, fs_base))
			err = ask(t, i, r, &w->word);
		found.n++;
		if (!err && r->give_up_ns && ut_now_ns() >= r->give_up_ns)
			err = -ETIME;
	}
	/* What was found so far is known the next time. */
	if (found.v) {
		free(words->v);
		*words = found;
	}
	return err;
}

int ut_exit_pages(const ut_tracee *t, const ut_remote *r, const ut_exit_words *words, ut_runs *pages)
{
	pages->n = 0;
	for (size_t i = 0; i < words->n; i++)
		if (words->v[i].word)
			TRY(page_of(pages, words->v[i].word));
	for (size_t i = 0; i < t->n; i++) {
		const ut_thread *th = &t->threads[i];

		if (th->state == UT_THREAD_DEAD || th->worker)
			continue;
		TRY(mutexes_of(th->tid, r, pages));
		if (r->give_up_ns && ut_now_ns() >= r->give_up_ns)
			return -ETIME;
	}
	runs_normalise(pages);
	return 0;
}
