/* Read another process's memory, without making it larger.
 *
 * process_vm_readv(2) pins what it reads. For that the kernel gives a page that is shared by fork, or merged
 * (KSM), a copy of its own: the memory of a prefork server doubles. /proc/PID/mem does not pin, and takes
 * 1.4 to 3 times as long. So we use process_vm_readv(2) only for pages that no other process shares. */
#ifndef UT_READER_H
#define UT_READER_H
#include "maps.h"
#include "runs.h"

typedef struct {
	int32_t pid;
	int32_t tid;          /* a living thread of it, whose /proc has the files */
	int32_t pagemap, mem; /* after an exec they still are of the old memory; -1: not open */
	int32_t shared;       /* another process may share its pages: ask about each */
	int64_t give_up_ns;   /* when to give up with -ETIME; 0: never */
} ut_reader;

#define UT_READER_OF(process) ((ut_reader){.pid = (process), .tid = (process), .pagemap = -1, .mem = -1})

/* Open its files, anew if they were. 0, -ESRCH or -errno. */
int ut_reader_open(ut_reader *r);
void ut_reader_close(ut_reader *r);
/* -ETIME: it is time to give up; else 0. */
int ut_reader_overdue(const ut_reader *r);
/* Set `shared`: another process may share pages of this memory. It looks at pages that a child leaves as they
 * are. */
void ut_reader_ask_shared(ut_reader *r, const ut_maps *m);
/* The same for a process without a reader. 1: no other process shares its pages. */
int ut_is_alone(int pid, int tid);

/* Read entries of the pagemap, from `start` up to at most `end`; returns how many. */
long ut_reader_entries(const ut_reader *r, uint64_t start, uint64_t end, uint64_t *out, size_t room);
/* Copy ranges, back to back, to `to`. Pages that cannot be read become zero and go into `unreadable`. */
int ut_reader_read(const ut_reader *r, const ut_run *runs, size_t n, uint8_t *to, ut_runs *unreadable);
/* Read up to a page, if it is in memory: a page that has to be fetched may never come. 1; 0: it is not in
 * memory. */
int ut_reader_peek(const ut_reader *r, uint64_t address, void *to, size_t n);
#endif
