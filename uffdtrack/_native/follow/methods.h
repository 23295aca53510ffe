/* How mappings are followed: what the parts of a harvest have in common. */
#ifndef UT_METHODS_H
#define UT_METHODS_H
#include "cleanup.h"
#include "mm.h"
#include "space.h"

enum {
	UT_FOUND_ROOM = 16384, /* results of a scan; the kernel allocates for them in each call, */
	UT_FOUND_FEW = 32,     /* so the first one asks for few, and is the only one as a rule */
};

#define UT_SCAN_OF(s, from, to, ...)                                                               \
	((ut_scan){.pagemap = (s)->reader.pagemap, .start = (from), .end = (to), .found = (s)->found, \
		   .room = UT_FOUND_ROOM, .first_room = UT_FOUND_FEW, __VA_ARGS__})

/* Each fills s->harvest.part with what it finds of a mapping. -EPERM, -EBUSY, -EINVAL: it cannot be followed so. */
/* trapped.c: by traps that the kernel takes away by itself (WP_ASYNC). */
int ut_follow_trapped(ut_space *s, ut_region *r);
/* noted.c, sync: by traps that wait for our thread. */
int ut_follow_noted(ut_space *s, ut_region *r);
/* private_files.c: pages that are not the file's any more, compared. */
int ut_follow_private_file(ut_space *s, ut_region *r);
/* compared.c: all pages, compared. */
int ut_follow_compared(ut_space *s, ut_region *r);

/* spans.c, private_files.c, for trapped.c: what was written of anonymous memory, and of a file's or of what has to be
 * compared with what was there; `fresh`: all of it is new. */
int ut_look_spans(ut_space *s, const ut_region *r, int fresh);
int ut_look_pages(ut_space *s, const ut_region *r, int fresh);

/* traps.c: 0: the page's mapping is registered with WP_ASYNC; -EPERM: it is not. */
int ut_is_registered(ut_space *s, uint64_t page);
/* Set the traps of pages that exist (an empty entry would become a marker, and count as clean), or take them away. */
int ut_set_traps(const ut_space *s, const ut_runs *runs, int trap);

/* small.c: 1: anonymous memory that is not to be registered; it is followed by: */
int ut_leave_alone(ut_space *s, const ut_region *r);
int ut_follow_alone(ut_space *s, ut_region *r);

/* finding.c: as if nothing had been found. */
void ut_finding_clear(ut_finding *f);
/* What was found of one mapping goes to what was found of all. */
int ut_finding_add(ut_finding *to, const ut_finding *part);
void ut_finding_free(ut_finding *f);
/* What this harvest has to tell the next one; `now` has what was told before, to be cleared. */
void ut_history_take(ut_history *h, ut_history *now);
void ut_history_clear(ut_history *h);
void ut_history_free(ut_history *h);

/* history.c, of the mappings that stood at this place at the last harvest: */
/* whether all of them are the same object; */
int ut_stood_before(const ut_space *s, const ut_region *r);
/* how many were compared (1), or not (0); */
size_t ut_count_before(const ut_space *s, const ut_region *r, int compared);
/* whether there is a digest of all that is stored of this place. */
int ut_is_known(const ut_space *s, const ut_region *r);
/* What was mapped then and is not now has no history, should it be mapped again: a mapping may grow there in place (brk,
 * mremap, a stack) and keep its registration. */
int ut_note_unmapped(const ut_space *s, ut_runs *fresh);

/* claims.c: 1: a mapping whose contents another member stores. Else it is claimed, where that is sure to be all of it. */
int ut_is_elsewhere(ut_space *s, ut_region *r);
void ut_claims_drop(ut_claims *c, int member);
#endif
