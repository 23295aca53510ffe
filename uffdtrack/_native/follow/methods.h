/* The ways to follow a mapping, and what these parts of a harvest have in common. */
#ifndef UT_METHODS_H
#define UT_METHODS_H
#include "cleanup.h"
#include "mm.h"
#include "space.h"

enum {
	UT_FOUND_ROOM = 16384, /* results of a scan; the kernel allocates for them in each call */
	UT_FOUND_FEW = 32,     /* so the first call asks for few, and is usually the only one */
};

#define UT_SCAN_OF(s, from, to, ...)                                                               \
	((ut_scan){.pagemap = (s)->reader.pagemap, .start = (from), .end = (to), .found = (s)->found, \
		   .room = UT_FOUND_ROOM, .first_room = UT_FOUND_FEW, __VA_ARGS__})

/* Each fills s->harvest.part with what it finds of a mapping. -EPERM, -EBUSY, -EINVAL: this way does not work
 * for it. */
/* trapped.c: by traps that the kernel takes away by itself (WP_ASYNC). */
int ut_follow_trapped(ut_space *s, ut_region *r);
/* noted.c, sync: by traps that wait for our thread. */
int ut_follow_noted(ut_space *s, ut_region *r);
/* private_files.c: pages that are not the file's any more, compared. */
int ut_follow_private_file(ut_space *s, ut_region *r);
/* trapped.c: those that are not writable, by traps if that takes nothing apart. */
int ut_follow_read_only_file(ut_space *s, ut_region *r);
/* private_files.c. 1: some of what touches it, and goes on in the same file, is writable and not registered. */
int ut_touches_compared(const ut_space *s, const ut_region *r);
/* compared.c: all pages, compared. */
int ut_follow_compared(ut_space *s, ut_region *r);

/* spans.c, private_files.c, for trapped.c: find what was written of anonymous memory, and of a file's mapping
 * or of one that we compare with the pages of before; `fresh`: all of it is new. */
int ut_look_spans(ut_space *s, const ut_region *r, int fresh);
int ut_look_pages(ut_space *s, const ut_region *r, int fresh);

/* spans.c: put what a scan for written pages finds into `want`, or into `gone` where there is no page. */
int ut_look_written(const ut_reader *r, ut_scan *scan, ut_runs *want, ut_runs *gone);
/* spans.c: the first range after the i-th that is too far from the one before it for a common scan. */
size_t ut_near(const ut_runs *pages, size_t i);

/* traps.c: 0: the page's mapping is registered with WP_ASYNC; -EPERM: it is not. */
int ut_is_registered(ut_space *s, uint64_t page);
/* Set the traps of pages that exist (an empty entry would become a marker, and count as clean), or take them
 * off. */
int ut_set_traps(const ut_space *s, const ut_runs *runs, int trap);

/* small.c. 1: we do not register this anonymous memory; ut_follow_alone() follows it. */
int ut_leave_alone(ut_space *s, const ut_region *r);
int ut_follow_alone(ut_space *s, ut_region *r);

/* early.c: before a stop, while the target runs, copy what was written if that is much. Stops it for moments. */
void ut_space_early(ut_space *s, ut_tracee *t, int64_t timeout_ns);
/* early.c: the same without copies: what was written in anonymous memory goes to `want`, under traps again, for the caller
 * to keep; the rest is for the stop. Then calls under way have ended (ut_barrier), unless it fails. */
int ut_look_early(ut_space *s, ut_tracee *t, int64_t timeout_ns, ut_runs *want);
/* early.c: what this harvest has found, and what it says is void, is later than any copy from before it. */
int ut_early_outdate(ut_space *s);
/* early.c: drop all copies; the stop copies these pages, with what is `again` already. */
int ut_early_withdraw(ut_early *e);

/* sole.c. The process stands, and its mappings have been read. */
void ut_sole_stands(ut_space *s, const ut_tracee *t);
/* What traps tell of its shared memory, and of all memory shared with it, is void. */
void ut_sole_forget(ut_space *s);
/* Its shared memory is not followed any more. */
void ut_sole_leave(ut_space *s);
/* Of a process by itself: append the places of those that are followed. */
int ut_sole_places(const ut_space *s, ut_runs *to);
/* 1: traps should tell of all that was written in this shared mapping since the last stop. */
int ut_sole_is_due(const ut_space *s, const ut_region *r);
/* 1: `found` are its pages that were; 0: compare all. */
int ut_sole_written(ut_space *s, const ut_region *r, ut_runs *found);
/* All of a shared mapping is compared now: follow it from here on, if nobody else can write it. `fd`: its object, or an
 * error; `used`: bytes. */
void ut_sole_prove(ut_space *s, const ut_region *r, int fd, uint64_t used);

/* finding.c: empty it. */
void ut_finding_clear(ut_finding *f);
/* Add what was found of one mapping to what was found of all. */
int ut_finding_add(ut_finding *to, const ut_finding *part);
void ut_finding_free(ut_finding *f);
/* Move `now`, what this harvest leaves for the next one, to `h`; `now` gets the old history, emptied. */
void ut_history_take(ut_history *h, ut_history *now);
void ut_history_clear(ut_history *h);
void ut_history_free(ut_history *h);

/* history.c. Whether two mappings of one address map the same place of the same file. */
int ut_is_same_object(const ut_region *a, const ut_region *b);
/* It looks at the mappings that were at this place at the last harvest. Note which files' may still be registered; */
void ut_note_registered(ut_space *s);
/* whether all of them are the same object; */
int ut_stood_before(const ut_space *s, const ut_region *r);
/* how many were compared (1), or not (0); */
size_t ut_count_before(const ut_space *s, const ut_region *r, int compared);
/* whether there is a digest of all that is stored of this place. */
int ut_is_known(const ut_space *s, const ut_region *r);
/* A range that was mapped then and is not now loses its history: a mapping may grow there in place (brk,
 * mremap, a stack) and keep its registration. */
int ut_note_unmapped(const ut_space *s, ut_runs *fresh);

/* claims.c. 1: another member stores the contents of this mapping. Else this member claims the mapping, if it
 * is sure to store all of it. */
int ut_is_elsewhere(ut_space *s, ut_region *r);
void ut_claims_drop(ut_claims *c, int member);
#endif
