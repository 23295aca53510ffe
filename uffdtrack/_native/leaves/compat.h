/* Kernel interfaces that older distribution headers lack. At run time we find out by trying whether
 * the kernel has them (uffdtrack/features.py). */
#ifndef UT_COMPAT_H
#define UT_COMPAT_H

#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
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

/* Numbers of x86-64. */
#ifndef SYS_preadv2 /* Linux 4.6 */
#define SYS_preadv2 327
#define SYS_pwritev2 328
#endif
#ifndef SYS_pkey_mprotect /* Linux 4.9 */
#define SYS_pkey_mprotect 329
#endif
#ifndef SYS_io_pgetevents /* Linux 4.18 */
#define SYS_io_pgetevents 333
#endif
#ifndef SYS_rseq /* Linux 4.18 */
#define SYS_rseq 334
#endif
#ifndef SYS_io_uring_enter /* Linux 5.1 */
#define SYS_io_uring_enter 426
#endif
#ifndef SYS_pidfd_send_signal /* Linux 5.1 */
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open /* Linux 5.3 */
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range /* Linux 5.9 */
#define SYS_close_range 436
#endif
#ifndef SYS_openat2 /* Linux 5.6 */
#define SYS_openat2 437
#endif
#ifndef SYS_pidfd_getfd /* Linux 5.6 */
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_epoll_pwait2 /* Linux 5.11 */
#define SYS_epoll_pwait2 441
#endif
#ifndef SYS_memfd_secret /* Linux 5.14 */
#define SYS_memfd_secret 447
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2
#endif
#define UT_PIDFD_THREAD O_EXCL  /* pidfd_open(2), Linux 6.9 */
#define UT_RESOLVE_IN_ROOT 0x10 /* openat2(2) */
#define UT_RESOLVE_CACHED 0x20  /* Linux 5.12 */

/* ptrace(2) */
#define UT_PTRACE_O_SUSPEND_SECCOMP (1 << 21) /* Linux 4.3 */
#define UT_PTRACE_GET_RSEQ 0x420f             /* Linux 5.13 */
#define UT_PTRACE_SET_DISPATCH 0x4210         /* Linux 6.4 */
#define UT_PTRACE_GET_DISPATCH 0x4211

#define UT_MADV_GUARD_INSTALL 102 /* Linux 6.13 */

#ifndef UFFDIO_CONTINUE /* Linux 5.13 */
struct uffdio_continue {
	struct uffdio_range range;
	__u64 mode;
	__s64 mapped;
};
#define UFFDIO_CONTINUE_MODE_DONTWAKE ((__u64)1 << 0)
#define UFFDIO_CONTINUE _IOWR(UFFDIO, 0x07, struct uffdio_continue)
#endif

#define UT_TASK_SIZE (1ul << 47)
#define UT_PAGE 4096ul
#define UT_HUGE (2ul << 20)

#endif
