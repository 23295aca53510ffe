/* Reading another process's memory, without making it larger.
 *
 * process_vm_readv(2) pins what it reads, and the kernel gives a page that is shared by fork, or merged (KSM), a copy of
 * its own for that: the memory of a prefork server doubles. /proc/PID/mem does not pin, and is 1.5 to 2 times slower. So
 * the former reads what nobody shares. */
#ifndef UT_READER_H
#define UT_READER_H
#include "maps.h"
#include "runs.h"

typedef struct {
	int32_t pid;
	int32_t tid;          /* a thread of it that lives, whose /proc has the files */
	int32_t pagemap, mem; /* they stay with the memory of before an exec; -1: not open */
	int32_t shared;       /* somebody may share its pages: each has to be asked */
	int64_t give_up_ns;   /* when to leave off, -ETIME; 0: never */
} ut_reader;

#define UT_READER_OF(process) ((ut_reader){.pid = (process), .tid = (process), .pagemap = -1, .mem = -1})

/* Open its files, anew if they were. 0, -ESRCH or -errno. */
int ut_reader_open(ut_reader *r);
void ut_reader_close(ut_reader *r);
/* -ETIME: it is time to leave off; else 0. */
int ut_reader_overdue(const ut_reader *r);
/* Find out whether somebody may share pages of this memory, by those that a child leaves as they are. */
void ut_reader_ask_shared(ut_reader *r, const ut_maps *m);
/* The same of a process that is looked at once; 1: nobody does. */
int ut_is_alone(int pid, int tid);

/* Entries of the pagemap: how many, from one page to at most another. */
long ut_reader_entries(const ut_reader *r, uint64_t start, uint64_t end, uint64_t *out, size_t room);
/* Copy ranges, one behind the other, to `to`. Pages that cannot be read become zero and are listed in `unreadable`. */
int ut_reader_read(const ut_reader *r, const ut_run *runs, size_t n, uint8_t *to, ut_runs *unreadable);
/* Up to a page of what is there: one that has to be fetched may never come. 1; 0: it is not there. */
int ut_reader_peek(const ut_reader *r, uint64_t address, void *to, size_t n);
#endif
