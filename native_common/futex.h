#ifndef UT_FUTEX_H
#define UT_FUTEX_H
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Other processes map the word, too; or only the threads of this one use it, which costs less. */
enum { UT_SHARED_WORD = 0, UT_PRIVATE_WORD = FUTEX_PRIVATE_FLAG };

static inline void ut_futex_wake(_Atomic uint32_t *word, int whose)
{
	syscall(SYS_futex, word, FUTEX_WAKE | whose, INT_MAX, NULL, NULL, 0);
}

/* Sleep while the word has this value, at most this long (below 0: for ever). May return early. */
static inline void ut_futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t timeout_ns, int whose)
{
	struct timespec ts = {timeout_ns / 1000000000, timeout_ns % 1000000000};

	syscall(SYS_futex, word, FUTEX_WAIT | whose, value, timeout_ns < 0 ? NULL : &ts, NULL, 0);
}

#endif
