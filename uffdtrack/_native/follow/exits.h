/* What the kernel writes in the name of a thread that ends.
 *
 * A fault of a thread that ends (PF_EXITING) does not wait for a userfaultfd: it fails (fs/userfaultfd.c,
 * handle_userfault). So what the kernel writes then is lost where the page is under a trap that somebody has to answer:
 * the word of set_tid_address(2), for which pthread_join(3) waits for ever then, and the robust mutexes that the thread
 * holds, which nobody gets any more. */
#ifndef UT_EXITS_H
#define UT_EXITS_H
#include "reader.h"
#include "tracee.h"

/* The pages with such words of all threads, which stand; normalised. 0 or -errno.
 *
 * There is no way to ask for the word of set_tid_address(2) from outside; it is looked for where glibc has it. */
int ut_exit_pages(const ut_tracee *t, const ut_reader *r, ut_runs *pages);
#endif
