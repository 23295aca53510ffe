/* Shared memory under traps: as long as nobody can write it but through the page tables of the processes that we follow. */
#ifndef UT_SOLE_H
#define UT_SOLE_H
#include "mapper.h"
#include "sharers.h"

/* One mapping of an object of the kernel's own mount for such objects, in one of the processes. */
typedef struct {
	uint64_t inode, start, end, offset;
	ut_mapper *mapper;
	int32_t number;  /* of the mapper */
	int32_t kind, segment;
	int32_t armed;   /* all of it has been under traps, since when they have been taken away by writes alone */
} ut_mapping;
typedef struct {
	ut_mapping *v; /* by inode, mapper and address */
	size_t n, cap;
} ut_mappings;

/* The processes that are stopped together: one, or a tree. */
typedef struct ut_sole {
	ut_mapper **v;
	size_t n, cap;
	int32_t made;    /* mappers, so far */
	int32_t left;    /* one has gone since the last stop */
	int32_t begun;   /* they stand, and it is known what they map */
	int32_t alone;   /* nobody else is a relative by fork and has that memory: seen before this stop, and true since */
	int32_t asked;   /* that would be worth knowing */
	int32_t over;    /* somebody may write it in a way that leaves no mark, or no marks can be had: no more of it */
	int64_t ask_again_ns;
	uint32_t major, minor; /* of that mount */
	ut_mappings now, before; /* at this stop, at the last one */
	ut_sharers sharers;
} ut_sole;

void ut_sole_free(ut_sole *m);
/* Before a stop: look for relatives by fork, if that is worth it. `m` may be NULL, here and below. */
void ut_sole_ask(ut_sole *m);
/* In a stop, when it is known which of them stand (ut_sole_stands, methods.h) and what they map. */
void ut_sole_begin(ut_sole *m);
void ut_sole_end(ut_sole *m);
#endif
