/* Calls with a time limit that the kernel goes on with by restart_syscall(2): nanosleep, clock_nanosleep, poll and futex,
 * of each ABI. What is left of them is in the thread's restart block, in the kernel. When such a call was interrupted
 * once, its number is nowhere in the thread's registers any more: they name restart_syscall. A rollback puts registers
 * back, and not the block, which is that of the thread's last such call. So the call's own number is kept here from the
 * first stop on, and is in the registers that others see; the thread itself keeps those that the kernel wants. */
#include "compat.h"
#include "tracee_parts.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define X32_BIT 0x40000000ll
enum { RESTART_NATIVE = 219, RESTART_COMPAT = 0 };

/* By the thread's id, shared with the processes that we fork: one of them stops the target first. 0: at its last stop
 * the thread was in no such call; else of one word, so that it is never half written, the upper 48 bits are a digest of
 * what stays the same as long as the thread is in that call, the lower 16 its number. Threads that meet in one place
 * forget each other's call, whose number is not known then. */
enum { PLACES = 1 << 16, UNKNOWN = 0xffff, X32 = 0x8000 };
static _Atomic uint64_t *table;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_table(void)
{
	void *made = mmap(NULL, PLACES * sizeof(*table), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (made != MAP_FAILED)
		table = made;
}

int ut_blocks_open(void)
{
	pthread_once(&once, make_table);
	return table ? 0 : -ENOMEM;
}

static int names_restart(int64_t nr)
{
	return (nr & ~X32_BIT) == RESTART_NATIVE || nr == RESTART_COMPAT;
}

/* Of a call whose instruction ends at rip. */
static uint64_t digest(int tid, const struct user_regs_struct *r, uint64_t rip)
{
	const uint64_t same[] = {(uint64_t)tid, rip, r->rsp, r->rbp, r->rbx, r->rdi, r->rsi, r->rdx, r->r10, r->r8, r->r9};
	uint64_t h = 0xcbf29ce484222325ull;

	for (size_t i = 0; i < sizeof(same) / sizeof(*same); i++) {
		h = (h ^ same[i]) * 0x9e3779b97f4a7c15ull;
		h ^= h >> 32;
	}
	return (h | 1ull << 63) & ~0xffffull;
}

/* The instruction that rip is at makes a call; rax has restart_syscall's number. */
static int is_about_to(int tid, const struct user_regs_struct *r)
{
	uint8_t code[2];

	if (((r->rax & ~X32_BIT) != RESTART_NATIVE && r->rax != RESTART_COMPAT) ||
	    ut_read_remote(tid, r->rip, code, sizeof(code)))
		return 0;
	if (code[0] == 0xcd && code[1] == 0x80) /* int $0x80 */
		return r->rax == RESTART_COMPAT;
	return code[0] == 0x0f && code[1] == 0x05 && r->rax != RESTART_COMPAT; /* syscall */
}

static int64_t number_of(uint64_t word)
{
	uint64_t nr = word & 0xffff;

	if (nr == UNKNOWN)
		return -1;
	return nr & X32 ? (int64_t)(nr & ~(uint64_t)X32) | X32_BIT : (int64_t)nr;
}

static uint64_t number_as_bits(int64_t nr)
{
	if (names_restart(nr) || (nr & ~X32_BIT) >= UT_CALLS)
		return UNKNOWN;
	return nr & X32_BIT ? (uint64_t)(nr & ~X32_BIT) | X32 : (uint64_t)nr;
}

void ut_note_block(int tid, struct user_regs_struct *r)
{
	_Atomic uint64_t *place = &table[tid % PLACES];
	uint64_t was = atomic_load(place), now;

	if ((int64_t)r->orig_rax >= 0 && (int64_t)r->rax == -ERESTART_RESTARTBLOCK) {
		now = digest(tid, r, r->rip);
		if (!names_restart(r->orig_rax) || (was & ~0xffffull) != now)
			atomic_store(place, was = now | number_as_bits(r->orig_rax));
		if (number_of(was) >= 0)
			r->orig_rax = number_of(was);
		return;
	}
	if (!was)
		return;
	/* The kernel has all in place for it, and the thread has not come to the instruction yet. */
	if ((was & ~0xffffull) == digest(tid, r, r->rip + 2) && is_about_to(tid, r)) {
		if (number_of(was) >= 0)
			r->rax = number_of(was);
		return;
	}
	atomic_store(place, 0);
}

void ut_put_block(int tid, struct user_regs_struct *r)
{
	int inside = (int64_t)r->orig_rax >= 0 && (int64_t)r->rax == -ERESTART_RESTARTBLOCK;
	int before = !inside && is_about_to(tid, r);
	uint64_t now = atomic_load(&table[tid % PLACES]) & ~0xffffull;

	if (inside && !names_restart(r->orig_rax)) {
		r->rax = -ERESTARTNOHAND;
		return;
	}
	if ((!inside && !before) || now == digest(tid, r, r->rip + 2 * before))
		return;
	r->rip += 2 * before;
	r->rax = -EINTR;
}
