/* The sync engine: a thread for each userfaultfd lists the page and then lets the write go on. */
#include "compat.h"
#include "tracker.h"
#include "tracee.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPIN_NS 20000
#define BATCH 64
#define GRACE_NS 1000000 /* for a thread that is called to the gate */
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

/* The threshold is reached: leave the write unanswered, and call its thread to the gate. The signal, or ptrace, ends
 * its wait, and after the pause it faults again. A system call cannot go to the gate: see `answer`. */
static void turn_away(ut_mm *mm, int vcpu, uint64_t index)
{
	ut_vcpu *v = &mm->tracker->s->vcpu[vcpu];
	uint32_t word = ut_gate_full(mm->tracker->s);

	if (!mm->waiting[vcpu] || mm->waiting_word[vcpu] != word)
		mm->turns[vcpu] = 0;
	mm->asleep[vcpu] = 0;
	if (!mm->nwaiting)
		mm->waiting_since = ut_now_ns();
	mm->nwaiting = 1;
	mm->waiting[vcpu] = index + 1;
	mm->waiting_word[vcpu] = word;
	mm->turns[vcpu]++;
	if (v->forced > 0)
		ut_call(v);
}

/* A write is listed, and goes on; 1: it is the first one to its page. */
static int let_through(ut_mm *mm, uint64_t index, int vcpu)
{
	ut_shared *s = mm->tracker->s;
	int fresh = !bit_set(s, UT_LISTED, index);

	if (fresh)
		ut_append(s, vcpu, index);
	trap_fired(s, mm->index, index);
	unprotect(mm, index);
	return fresh;
}

static int sleeps(const ut_vcpu *v)
{
	char path[64], text[256], *p;
	int fd, n;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", v->pid, v->tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = 0;
	p = strrchr(text, ')');
	return p && p[2] == 'D';
}

/* Whether a vCPU that was turned away is in a system call, which has to come to its end before it can stand. In
 * read(2) into the RAM the kernel repeats the fault at once, again and again, since a signal is pending; in GUP
 * it sleeps on, since only an answer wakes it. One that was in user code runs, towards the gate, or sleeps for a
 * lock of its address space for a moment. */
static int in_system_call(ut_mm *mm, int vcpu)
{
	ut_vcpu *v = &mm->tracker->s->vcpu[vcpu];

	mm->asleep[vcpu] = sleeps(v) ? mm->asleep[vcpu] + 1 : 0;
	/* It may have come to the gate since it was looked at. */
	return (mm->turns[vcpu] > TURNS || mm->asleep[vcpu] > TURNS) &&
	       atomic_load(&v->stood) < mm->waiting_word[vcpu];
}

static void on_fault(ut_mm *mm, uint64_t index, int tid)
{
	ut_shared *s = mm->tracker->s;
	int vcpu = vcpu_of(s, mm, tid), forced = vcpu >= 0 && s->vcpu[vcpu].forced;
	int counted = 0, full = 0;

	while (!ut_try_list(s, mm->index))
		sched_yield();
	if (!bit_test(s, UT_LISTED, index)) {
		int64_t limit = s->threshold;

		counted = 1;
		full = atomic_fetch_add(&s->count, 1) >= limit && limit;
	}
	if (full && forced) {
		atomic_fetch_sub(&s->count, 1);
		turn_away(mm, vcpu, index);
	} else {
		/* Before the write goes on, and its thread may end the cycle. */
		if (full)
			ut_gate_full(s);
		atomic_fetch_add(&s->count, let_through(mm, index, vcpu) - counted);
	}
	ut_listed(s, mm->index);
}

/* Those who were turned away: whoever stood at the gate since then has left its fault, and faults again if it
 * still wants to write. */
static void answer(ut_mm *mm)
{
	ut_shared *s = mm->tracker->s;
	uint32_t word = atomic_load(&s->gate);

	mm->nwaiting = 0;
	mm->waiting_since = ut_now_ns();
	for (int i = 0; i < s->nvcpus; i++) {
		uint64_t index = mm->waiting[i] - 1;

		if (!mm->waiting[i])
			continue;
		if (atomic_load(&s->vcpu[i].stood) >= mm->waiting_word[i] || atomic_load(&s->halted)) {
			mm->waiting[i] = 0;
		} else if (mm->waiting_word[i] != word) {
			mm->waiting[i] = 0;
			on_fault(mm, index, s->vcpu[i].tid);
		} else if (in_system_call(mm, i)) {
			mm->waiting[i] = 0;
			while (!ut_try_list(s, mm->index))
				sched_yield();
			atomic_fetch_add(&s->count, let_through(mm, index, i));
			ut_listed(s, mm->index);
		} else {
			mm->nwaiting = 1;
		}
	}
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

		if (mm->nwaiting && ut_now_ns() - mm->waiting_since > GRACE_NS)
			answer(mm);
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
		saw = poll(p, 2, ut_now_ns() - idle < SPIN_NS ? 0 : mm->nwaiting ? 1 : -1);
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
