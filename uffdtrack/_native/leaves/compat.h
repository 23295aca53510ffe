/* Kernel interfaces that older distribution headers lack. Whether the running kernel has them
 * is decided at run time, by trying (uffdtrack/features.py). */
#ifndef UT_COMPAT_H
#define UT_COMPAT_H

#include <stdint.h>
#include <sys/ioctl.h>
#include <linux/userfaultfd.h>

#ifndef UFFD_USER_MODE_ONLY /* Linux 5.11 */
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM /* Linux 5.19 */
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED /* Linux 6.4 */
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC /* Linux 6.7 */
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

/* PAGEMAP_SCAN, Linux 6.7: Documentation/admin-guide/mm/pagemap.rst */
#define UT_PAGE_IS_WRITTEN (1u << 1)
#define UT_PAGE_IS_FILE (1u << 2)
#define UT_PAGE_IS_PRESENT (1u << 3)
#define UT_PAGE_IS_SWAPPED (1u << 4)
#define UT_SCAN_WP_MATCHING (1u << 0)
#define UT_SCAN_CHECK_WPASYNC (1u << 1)

struct ut_page_region {
	uint64_t start, end, categories;
};

struct ut_pm_scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define UT_PAGEMAP_SCAN _IOWR('f', 16, struct ut_pm_scan_arg)

/* Entries of /proc/PID/pagemap. */
#define UT_ENTRY_PRESENT (1ull << 63)
#define UT_ENTRY_SWAPPED (1ull << 62)
#define UT_ENTRY_FILE (1ull << 61)  /* of a file, or shared memory */
#define UT_ENTRY_ALONE (1ull << 56) /* mapped here and nowhere else */

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

#ifndef SYS_close_range /* Linux 5.9 */
#define SYS_close_range 436
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2
#endif

#ifndef UFFDIO_CONTINUE /* Linux 5.13 */
struct uffdio_continue {
	struct uffdio_range range;
	__u64 mode;
	__s64 mapped;
};
#define UFFDIO_CONTINUE_MODE_DONTWAKE ((__u64)1 << 0)
#define UFFDIO_CONTINUE _IOWR(UFFDIO, 0x07, struct uffdio_continue)
#endif

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#define UT_RESOLVE_IN_ROOT 0x10 /* openat2(2) */
#define UT_RESOLVE_CACHED 0x20  /* Linux 5.12 */

#define UT_TASK_SIZE (1ul << 47)
#define UT_PAGE 4096ul
#define UT_HUGE (2ul << 20)

#endif
