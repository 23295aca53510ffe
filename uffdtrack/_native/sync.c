/* The sync engine: a thread for each userfaultfd lists the page and then lets the write go on. */
#include "compat.h"
#include "tracker.h"
#include "tracee.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPIN_NS 20000
#define BATCH 64
#define TURNS 3

static void unprotect(const ut_mm *mm, uint64_t index)
{
	struct uffdio_writeprotect w = {{mm->base + index * UT_PAGE, UT_PAGE}, 0};

	while (ioctl(mm->uffd, UFFDIO_WRITEPROTECT, &w) && errno == EAGAIN)
		sched_yield();
}

static int vcpu_of(const ut_shared *s, const ut_mm *mm, int tid)
{
	for (int i = 0; i < s->nvcpus; i++)
		if (s->vcpu[i].tid == tid && s->vcpu[i].state == UT_VCPU_BOUND)
			return i;
	return mm->vcpu;
}

/* The threshold is reached: leave the write unanswered, and call its thread to the gate. The signal ends its
 * wait; after the pause it faults again. In a system call it cannot go to the gate: there the kernel repeats
 * the fault at once, again and again, and the call has to be let through to its end. */
static int turn_away(ut_mm *mm, int vcpu)
{
	ut_shared *s = mm->tracker->s;
	ut_vcpu *v = &s->vcpu[vcpu];
	uint32_t word = ut_gate_full(s);

	if (mm->turned_word[vcpu] != word) {
		mm->turned_word[vcpu] = word;
		mm->turned[vcpu] = 0;
	}
	if (++mm->turned[vcpu] > TURNS)
		return 0;
	syscall(SYS_tgkill, v->pid, v->tid, SIGRTMAX - 2);
	return 1;
}

static void on_fault(ut_mm *mm, uint64_t index, int tid)
{
	ut_shared *s = mm->tracker->s;
	int vcpu = vcpu_of(s, mm, tid), full = 0;

	while (!ut_try_list(s, mm->index))
		sched_yield();
	if (!bit_test(s, UT_LISTED, index)) {
		int64_t limit = s->threshold, count = atomic_fetch_add(&s->count, 1);

		full = limit && count >= limit;
		if (full && vcpu >= 0 && s->vcpu[vcpu].forced > 0 && turn_away(mm, vcpu)) {
			atomic_fetch_sub(&s->count, 1);
			ut_listed(s, mm->index);
			return;
		}
		if (bit_set(s, UT_LISTED, index))
			atomic_fetch_sub(&s->count, 1);
		else
			ut_append(s, vcpu, index);
	}
	/* Before the write goes on, and its thread may end the cycle. */
	if (full)
		ut_gate_full(s);
	trap_fired(s, mm->index, index);
	unprotect(mm, index);
	ut_listed(s, mm->index);
}

/* No handler: no fault may wait. */
static void give_up(ut_mm *mm)
{
	atomic_store(&mm->dead, 1);
	ut_let_go(mm);
	ut_event(mm->tracker->s);
}

static void *handle(void *arg)
{
	struct uffd_msg msg[BATCH];
	ut_mm *mm = arg;
	int64_t idle = ut_now_ns();

	for (;;) {
		struct pollfd p[2] = {{mm->uffd, POLLIN, 0}, {mm->stop, POLLIN, 0}};
		ssize_t n = read(mm->uffd, msg, sizeof(msg));
		int saw;

		if (n > 0 && !(mm->tracker->sabotage & UT_BREAK_HANDLER)) {
			for (size_t i = 0; i < n / sizeof(*msg); i++)
				if (msg[i].event == UFFD_EVENT_PAGEFAULT)
					on_fault(mm, (msg[i].arg.pagefault.address - mm->base) / UT_PAGE,
						 msg[i].arg.pagefault.feat.ptid);
			idle = ut_now_ns();
			continue;
		}
		if (n > 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
			give_up(mm);
			return NULL;
		}
		/* The next fault of a thread that was just let go often follows at once. */
		saw = poll(p, 2, ut_now_ns() - idle < SPIN_NS ? 0 : -1);
		if (saw > 0 && (p[1].revents & POLLIN))
			return NULL;
		if (!saw)
			sched_yield();
	}
}

int ut_sync_start(ut_tracker *t, ut_mm *mm)
{
	sigset_t all, old;
	int err;

	mm->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (mm->stop < 0)
		return -errno;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = -pthread_create(&mm->thread, NULL, handle, mm);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err)
		close(mm->stop);
	mm->running = !err;
	return err;
}

void ut_sync_stop(ut_mm *mm)
{
	uint64_t end = 1;

	if (!mm->running)
		return;
	while (write(mm->stop, &end, sizeof(end)) < 0 && errno == EINTR)
		;
	pthread_join(mm->thread, NULL);
	mm->running = 0;
	close(mm->stop);
}
