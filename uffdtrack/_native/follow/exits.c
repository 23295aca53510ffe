#include "cleanup.h"
#include "compat.h"
#include "exits.h"
#include "tracee_parts.h"

#include <sys/syscall.h>

/* As many as the kernel follows (ROBUST_LIST_LIMIT). */
enum { MUTEXES = 2048 };
/* From fs_base on: the thread's own structure, in all versions of glibc for x86-64. */
enum { WORD = 0x2d0 };

static int page_of(ut_runs *pages, uint64_t addr)
{
	uint64_t page = addr & ~(UT_PAGE - 1);

	return page < UT_TASK_SIZE ? runs_push(pages, page, page + UT_PAGE) : 0;
}

/* struct robust_list_head: the first entry, the way from an entry to its word, and the entry that is about to be. Bit
 * 0 of an entry says whether it inherits priorities. */
static int mutexes_of(int tid, const ut_reader *r, ut_runs *pages)
{
	uint64_t head = 0, size, list[3], entry, next;

	if (syscall(SYS_get_robust_list, tid, &head, &size) || !head || !ut_reader_peek(r, head, list, sizeof(list)))
		return 0;
	if (list[2])
		TRY(page_of(pages, (list[2] & ~1ul) + list[1]));
	entry = list[0] & ~1ul;
	for (int n = 0; entry && entry != head && n < MUTEXES; n++, entry = next) {
		TRY(page_of(pages, entry + list[1]));
		if (!ut_reader_peek(r, entry, &next, sizeof(next)))
			break;
		next &= ~1ul;
		if (next == entry) /* the end of a list that was given another head */
			break;
	}
	return 0;
}

int ut_exit_pages(const ut_tracee *t, const ut_reader *r, ut_runs *pages)
{
	pages->n = 0;
	for (size_t i = 0; i < t->n; i++) {
		const ut_thread *th = &t->threads[i];
		const struct user_regs_struct *regs = (const struct user_regs_struct *)th->regs;

		if (th->state == UT_THREAD_DEAD || th->worker)
			continue;
		if (regs->fs_base)
			TRY(page_of(pages, regs->fs_base + WORD));
		TRY(mutexes_of(th->tid, r, pages));
		TRY(ut_reader_overdue(r));
	}
	runs_normalise(pages);
	return 0;
}
