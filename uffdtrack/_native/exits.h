/* What the kernel writes in the name of a thread that ends.
 *
 * A fault of a thread that ends (PF_EXITING) does not wait for a userfaultfd: it fails (fs/userfaultfd.c,
 * handle_userfault). So what the kernel writes then is lost where the page is under a trap that somebody has to answer:
 * the word of set_tid_address(2), for which pthread_join(3) waits for ever then, and the robust mutexes that the thread
 * holds, which nobody gets any more. */
#ifndef UT_EXITS_H
#define UT_EXITS_H
#include "remote.h"
#include "runs.h"
#include "tracee.h"

/* The word of set_tid_address(2) of one thread; 0: it has none, or it cannot be known. */
typedef struct {
	int32_t tid;
	uint64_t fs_base, word;
} ut_exit_word;
typedef struct {
	ut_exit_word *v;
	size_t n;
} ut_exit_words;

/* Find those of all threads, which stand: where glibc has it, or by prctl(2) in the name of a thread that is not glibc's
 * and was not known yet. 0 or -errno. */
int ut_exit_words_find(ut_tracee *t, const ut_remote *r, ut_exit_words *words);
/* The pages with what the kernel would write for all threads, which stand; normalised. 0 or -errno. */
int ut_exit_pages(const ut_tracee *t, const ut_remote *r, const ut_exit_words *words, ut_runs *pages);
#endif
