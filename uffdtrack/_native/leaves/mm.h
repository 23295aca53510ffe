/* One address space (mm): its userfaultfd, its pagemap, and the meaning of the kernel's answers.
 *
 * Documentation/admin-guide/mm/{userfaultfd,pagemap}.rst */
#ifndef UT_MM_H
#define UT_MM_H
#include "compat.h"
#include "runs.h"

#include <stddef.h>

/* -- the userfaultfd ------------------------------------------------------------------------------ */

/* Set the features of a userfaultfd that was just made; `*supported` (may be NULL): all that the kernel
 * has. */
int ut_uffd_api(int uffd, uint64_t features, uint64_t *supported);
/* Make a userfaultfd of this process's memory. */
int ut_uffd_make(int user_mode_only, uint64_t features, uint64_t *supported);
/* Register [start, start + bytes). -EINVAL, -EBUSY, -EPERM: the memory cannot be registered, or another
 * userfaultfd has it. */
int ut_register(int uffd, uint64_t start, uint64_t bytes, uint64_t mode);
/* Unregister it: take every trap away, and wake the threads that wait. */
void ut_unregister(int uffd, uint64_t start, uint64_t bytes);
void ut_wake_faults(int uffd, uint64_t start, uint64_t bytes);

enum { UT_TRAP = 1, UT_NO_TRAP = 0 };

/* Set the traps of [start, start + bytes), or take them away and wake the threads that wait. 0; -ESRCH: no
 * process has that memory any more; -ENOENT: some of it is not registered; -EAGAIN: a thread changes the
 * mappings and waits until an event of this userfaultfd was read. */
int ut_try_protect(int uffd, uint64_t start, uint64_t bytes, int trap);
/* The same, repeated while the kernel asks for that; not for the thread that reads the events. */
int ut_protect(int uffd, uint64_t start, uint64_t bytes, int trap);
/* Put a page of zeros where there is no page, and wake the threads that wait for it. Returns as
 * ut_try_protect; -EEXIST: there is a page. */
int ut_zero_page(int uffd, uint64_t at);
/* 1: no process has that memory any more: it has ended, or has called exec. */
int ut_mm_is_gone(int uffd);

/* -- PAGEMAP_SCAN --------------------------------------------------------------------------------- */

enum {
	UT_POPULATED = UT_PAGE_IS_PRESENT | UT_PAGE_IS_SWAPPED,
	/* Set the traps of the pages that it finds. */
	UT_REARM = UT_SCAN_WP_MATCHING | UT_SCAN_CHECK_WPASYNC,
};

/* A scan of [start, end), in as many calls as it takes. `start` moves on with it. */
typedef struct {
	int pagemap;
	uint64_t start, end;
	uint64_t flags, mask, anyof, give; /* struct pm_scan_arg; `give`: return_mask */
	struct ut_page_region *found;
	size_t room;      /* results that fit into `found`; the kernel allocates for them in each call */
	size_t first_room; /* the same for the first call alone, or 0 */
	int stuck;         /* the kernel has given results and gone no further */
} ut_scan;

/* Only pages written since their trap was set: the kernel's fast path. It goes over every entry, empty ones
 * included, so that it finds a zapped page once. */
#define UT_SCAN_WRITTEN .mask = UT_PAGE_IS_WRITTEN, .give = UT_PAGE_IS_WRITTEN
/* Pages that exist; the kernel passes over holes. */
#define UT_SCAN_POPULATED .anyof = UT_POPULATED, .give = UT_POPULATED

/* Put the next results into `found`; returns how many; 0: the end. -EPERM: part of the range is not
 * registered with WP_ASYNC (any more). -ESRCH: the process has ended. */
long ut_scan_next(ut_scan *s);
/* Append all that it finds. */
int ut_scan_runs(ut_scan *s, ut_runs *to);
/* 1: the page is not the file's; the scan has to ask for UT_PAGE_IS_FILE. A swapped entry of a file mapping
 * may be a mere marker; reading it tells. */
static inline int ut_is_private_page(uint64_t categories)
{
	return !(categories & UT_PAGE_IS_FILE) || categories & UT_PAGE_IS_SWAPPED;
}
#endif
