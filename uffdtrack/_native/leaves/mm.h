/* One address space (mm): its userfaultfd, its pagemap, and what the kernel's answers mean.
 *
 * Documentation/admin-guide/mm/{userfaultfd,pagemap}.rst */
#ifndef UT_MM_H
#define UT_MM_H
#include "compat.h"
#include "runs.h"

#include <stddef.h>

/* -- the userfaultfd ------------------------------------------------------------------------------ */

/* Agree on features with a userfaultfd that was just made; `*supported` (may be NULL): all that there are. */
int ut_uffd_api(int uffd, uint64_t features, uint64_t *supported);
/* One of this process's memory. */
int ut_uffd_make(int user_mode_only, uint64_t features, uint64_t *supported);
/* Register [start, start + bytes). -EINVAL, -EBUSY, -EPERM: memory that cannot be registered, or is of another one. */
int ut_register(int uffd, uint64_t start, uint64_t bytes, uint64_t mode);
/* Take every trap of it away, and let those go on that wait. */
void ut_unregister(int uffd, uint64_t start, uint64_t bytes);
void ut_wake_faults(int uffd, uint64_t start, uint64_t bytes);

enum { UT_TRAP = 1, UT_NO_TRAP = 0 };

/* Set the traps of [start, start + bytes), or take them away and wake whoever waits. 0; -ESRCH: nobody has that memory
 * any more; -ENOENT: some of it is not registered; -EAGAIN: somebody changes the mappings and waits until an event of
 * this userfaultfd has been read. */
int ut_try_protect(int uffd, uint64_t start, uint64_t bytes, int trap);
/* The same, repeated where the kernel says that it has to be; not for who reads the events. */
int ut_protect(int uffd, uint64_t start, uint64_t bytes, int trap);
/* Put a page of zeros where there is none, and let those go on that wait for it. As ut_try_protect; -EEXIST: there is
 * one. */
int ut_zero_page(int uffd, uint64_t at);
/* 1: no process has that memory any more: it has ended, or has called exec. */
int ut_mm_is_gone(int uffd);

/* -- PAGEMAP_SCAN --------------------------------------------------------------------------------- */

enum {
	UT_POPULATED = UT_PAGE_IS_PRESENT | UT_PAGE_IS_SWAPPED,
	/* Give what was found its trap again. */
	UT_REARM = UT_SCAN_WP_MATCHING | UT_SCAN_CHECK_WPASYNC,
};

/* A scan of [start, end), in as many calls as it takes. `start` is where it has come to. */
typedef struct {
	int pagemap;
	uint64_t start, end;
	uint64_t flags, mask, anyof, give; /* struct pm_scan_arg; `give`: return_mask */
	struct ut_page_region *found;
	size_t room;      /* results of `found` */
	size_t first_room; /* of the first call, or 0: the kernel allocates for so many in each one */
} ut_scan;

/* Only what was written since its trap was set: the kernel's fast path, which goes over every entry, empty ones
 * included, so that a page that is given back is found once. */
#define UT_SCAN_WRITTEN .mask = UT_PAGE_IS_WRITTEN, .give = UT_PAGE_IS_WRITTEN
/* Pages that exist; the kernel passes over holes. */
#define UT_SCAN_POPULATED .anyof = UT_POPULATED, .give = UT_POPULATED

/* The next results, in `found`: how many; 0: the end. -EPERM: part of the range is not registered with WP_ASYNC (any
 * more). -ESRCH: the process has ended. */
long ut_scan_next(ut_scan *s);
/* Append all that it finds. */
int ut_scan_runs(ut_scan *s, ut_runs *to);
/* Of a page that was asked for UT_PAGE_IS_FILE: it is not the file's. A swapped entry of a file mapping may be a mere
 * marker; reading it tells. */
static inline int ut_is_private_page(uint64_t categories)
{
	return !(categories & UT_PAGE_IS_FILE) || categories & UT_PAGE_IS_SWAPPED;
}
#endif
