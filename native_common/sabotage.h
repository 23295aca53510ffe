/* Faults on purpose, for tests alone. */
#ifndef UT_SABOTAGE_H
#define UT_SABOTAGE_H
#include <stdatomic.h>
#include <stdint.h>

/* Negative controls: a test breaks the tracking, and has to see it fail. */
enum {
	UT_BREAK_FORGET = 1,       /* one page of a harvest is dropped */
	UT_BREAK_REARM = 2,        /* the trap of one page, or of what a rollback has written (sync), is not set again */
	UT_BREAK_LATE_REARM = 4,   /* of a process: a trap is set before the stop: a write between is lost */
	UT_BREAK_COMPARE = 8,      /* memory that is compared never differs from what was stored; a hot page does not, once */
	UT_BREAK_AUDIT = 16,       /* ring: no scan if there were more faults than samples */
	UT_BREAK_EVENTS = 32,      /* ring, sync: what the target maps, moves and gives back is not noticed */
	UT_BREAK_HANDLER = 64,     /* sync: the handler thread ends */
	UT_BREAK_HOLD = 128,       /* ring: a held vCPU comes too late */
	UT_BREAK_ORDER = 256,      /* kvm-ring: the vCPUs may be in KVM_RUN at a harvest */
	UT_BREAK_CLAIM = 512,      /* a fetch is kept from running before it claims; nothing is to fail of it */
	UT_BREAK_EARLY = 1024,     /* of a process: what was copied before the stop is not copied again in it */
	UT_BREAK_BARRIER = 4096,   /* what others may be writing is copied while they do */
	UT_BREAK_REFUSE = 8192,    /* the kernel sets no traps, of a guest once, of a process only those of mappings that
				    * it has set before a stop; nothing is to fail of it but that rearm */
	UT_BREAK_SHARERS = 16384,  /* of a process: nobody else is taken to have come to its shared memory */
	UT_BREAK_LATE_TAKE = 32768, /* ring: what was touched while a base's page tables are looked through is taken for looked at */
	UT_BREAK_DUE = 65536,      /* ring: what has its traps again just before the stop is not copied in it */
	UT_BREAK_LISTING = 131072, /* of a process: a listing without anybody new is taken for the end of a stop */
	UT_BREAK_SERIES = 262144,  /* of a process: of windows in a row, the contents are those of the last one */
	UT_BREAK_THIRD = 524288,   /* of a process: the third window in a row fails when it is over, as if another process traced it */
	UT_BREAK_DEVICE = 1048576, /* of a VM: KVM's trackers are not told what a device writes */
	UT_BREAK_DELAY = 2048,     /* the stop after early copies comes late; nothing is to fail of it */
};

/* Each module has one. */
extern _Atomic uint32_t ut_broken;

static inline void ut_break(uint32_t what)
{
	atomic_store(&ut_broken, what);
}

static inline int ut_breaks(uint32_t what)
{
	return !!(atomic_load_explicit(&ut_broken, memory_order_relaxed) & what);
}

/* Break it no more. */
static inline void ut_mend(uint32_t what)
{
	atomic_fetch_and(&ut_broken, ~what);
}

/* UFFDTRACK_SABOTAGE=KIND:POINT makes us hang at a point of that name (leaves/sabotage.c). */
void ut_sabotage(const char *point);
/* No sabotage in this process. */
void ut_sabotage_off(void);
#endif
