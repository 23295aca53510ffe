/* Memory that the kernel writes for a thread that ends.
 *
 * A fault of a thread that ends (PF_EXITING) does not wait for a userfaultfd: it fails (fs/userfaultfd.c,
 * handle_userfault). So the kernel's write is lost if the page has a trap that we would have to answer: the
 * word of set_tid_address(2), for which pthread_join(3) then waits for ever, and the thread's robust mutexes,
 * which no thread can lock any more. */
#ifndef UT_EXITS_H
#define UT_EXITS_H
#include "reader.h"
#include "tracee.h"

/* Find the pages with such words of all threads, which stand; normalised. 0 or -errno.
 *
 * Nothing outside of a thread tells its word of set_tid_address(2); we look where glibc has it. */
int ut_exit_pages(const ut_tracee *t, const ut_reader *r, ut_runs *pages);
#endif
