#include "clock.h"
#include "futex.h"
#include "gate.h"
#include "serial.h"
#include "vcpu.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#define AGAIN_NS 10000000

/* All signals are blocked, but for two in KVM_RUN, where a thread sleeps, and in take_signals(): ours, and that of
 * uffdtrack's gate (SIGRTMAX - 2), whose handler must not hold a thread while it has a lock. KVM_RUN returns for
 * them, and they stay pending outside of it. */
static void the_two(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, kg_kick_signal());
	sigaddset(set, SIGRTMAX - 2);
}

static void mask_signals(int how)
{
	sigset_t two;

	the_two(&two);
	pthread_sigmask(how, &two, NULL);
}

static void take_signals(void)
{
	mask_signals(SIG_UNBLOCK);
	mask_signals(SIG_BLOCK);
}

static void sleep_on(_Atomic uint32_t *word, uint32_t seen)
{
	mask_signals(SIG_UNBLOCK);
	ut_futex_wait(word, seen, -1, UT_PRIVATE_WORD);
	mask_signals(SIG_BLOCK);
}

static int end(kg_vcpu *v, int reason, int code, uint64_t detail)
{
	v->reason = reason;
	v->code = code;
	v->detail = detail;
	atomic_store(&v->state, KG_ENDED);
	kg_tell(&v->vm->gate.event);
	return 0;
}

static void print(kg_vm *vm, const char *text, size_t n)
{
	kg_serial_put(&vm->serial, text, n);
	if (memchr(text, '\n', n))
		kg_tell(&vm->gate.event);
}

/* A device writes the guest's memory, as the host. */
static void fill(kg_vcpu *v, uint64_t row)
{
	kg_vm *vm = v->vm;
	kg_listener *l;

	if (row >= vm->rows)
		return;
	mask_signals(SIG_UNBLOCK); /* it may wait in a write fault, for a tracker's pause to end */
	memset(vm->ram + row * KG_PAGE, v->mailbox->value, KG_PAGE);
	mask_signals(SIG_BLOCK);
	l = atomic_load(&vm->listener);
	if (l)
		l->device_wrote(l, row, 1);
}

/* One access to a port; 0: the vCPU has ended. */
static int port(kg_vcpu *v)
{
	struct kvm_run *run = v->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t bytes = (size_t)run->io.size * run->io.count;
	uint32_t value = 0;
	int64_t now;

	v->port_due = 1;
	atomic_fetch_add(&v->ports, 1);
	if (run->io.direction == KVM_EXIT_IO_IN) {
		memset(data, run->io.port == KG_PORT_STATUS ? 0x60 : 0xff, bytes);
		return 1;
	}
	memcpy(&value, data, bytes < sizeof(value) ? bytes : sizeof(value));
	switch (run->io.port) {
	case KG_PORT_SERIAL:
		print(v->vm, (char *)data, bytes);
		return 1;
	case KG_PORT_WAIT:
		v->idle_seq = value;
		atomic_store(&v->idle, 1);
		return 1;
	case KG_PORT_DONE:
		now = ut_now_ns();
		v->took_ns = now - v->began_ns;
		v->began_ns = now; /* the next one may be posted before this vCPU has slept */
		kg_tell(&v->vm->gate.event);
		return 1;
	case KG_PORT_FILL:
		fill(v, value);
		return 1;
	case KG_PORT_EXIT:
		return end(v, KG_END_EXIT, value, 0);
	}
	return 1; /* nothing is there, as on a real bus */
}

static int ring_full(kg_vcpu *v)
{
	kg_listener *l = atomic_load(&v->vm->listener);

	atomic_fetch_add(&v->fulls, 1);
	return !l || l->ring_full(l) < 0 ? end(v, KG_END_ERRNO, EIO, 0) : 1;
}

static int handle(kg_vcpu *v)
{
	struct kvm_run *run = v->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return port(v);
	case KVM_EXIT_INTR:
		return 1;
	case KVM_EXIT_DIRTY_RING_FULL:
		return ring_full(v);
	case KVM_EXIT_INTERNAL_ERROR:
		return end(v, run->exit_reason, run->internal.suberror, 0);
	case KVM_EXIT_FAIL_ENTRY:
		return end(v, run->exit_reason, 0, run->fail_entry.hardware_entry_failure_reason);
	case KVM_EXIT_MMIO:
		return end(v, run->exit_reason, run->mmio.is_write, run->mmio.phys_addr);
	}
	return end(v, run->exit_reason, 0, 0);
}

/* Complete a port access, so that the vCPU's state is whole: KVM does that at the next KVM_RUN, before it looks at
 * immediate_exit (Documentation/virt/kvm/api.rst). */
static int settle(kg_vcpu *v)
{
	while (v->port_due) {
		int result;

		v->port_due = 0;
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		result = ioctl(v->fd, KVM_RUN, 0);
		if (result < 0 && errno != EINTR && errno != EAGAIN)
			return end(v, KG_END_ERRNO, errno, 0);
		if (result >= 0 && !handle(v)) /* the rest of a string instruction */
			return 0;
	}
	return 1;
}

/* Stand at the gate while it is closed, sleep while there is nothing to do; 0: the vCPU is to end. */
static int stand(kg_vcpu *v)
{
	kg_vm *vm = v->vm;

	for (;;) {
		uint32_t changed = atomic_load(&vm->gate.changed), word;

		__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST); /* before the gate is looked at */
		word = atomic_load(&vm->gate.word);
		if (atomic_load(&vm->quit))
			return end(v, KG_END_TOLD, 0, 0);
		if (!(word & 1) && !atomic_load(&v->idle)) {
			if (!v->began_ns)
				v->began_ns = ut_now_ns();
			return 1;
		}
		if (!settle(v))
			return 0;
		if (word & 1) {
			atomic_store(&v->parked, word);
			kg_tell(&vm->gate.event);
			sleep_on(&vm->gate.word, word);
			continue;
		}
		if (v->mailbox->seq != v->idle_seq) {
			atomic_store(&v->idle, 0);
			v->began_ns = ut_now_ns();
			continue; /* the gate may have been closed by one who saw us sleep */
		}
		sleep_on(&vm->gate.changed, changed);
	}
}

static void *run_vcpu(void *arg)
{
	kg_vcpu *v = arg;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	atomic_store(&v->tid, syscall(SYS_gettid));
	kg_tell(&v->vm->gate.event);
	while (stand(v)) {
		int result;

		atomic_fetch_add_explicit(&v->runs, 1, memory_order_relaxed);
		v->port_due = 0;
		result = ioctl(v->fd, KVM_RUN, 0);
		if (result < 0 && (errno == EINTR || errno == EAGAIN)) {
			atomic_fetch_add_explicit(&v->kicks, 1, memory_order_relaxed);
			take_signals();
			continue;
		}
		if (result < 0) {
			end(v, KG_END_ERRNO, errno, 0);
			break;
		}
		if (!handle(v))
			break;
	}
	return NULL;
}

int kg_vcpu_unblock(int fd)
{
	struct {
		struct kvm_signal_mask head;
		uint64_t set;
	} __attribute__((packed)) mask = {.head.len = 8};
	sigset_t two;

	the_two(&two);
	memcpy(&mask.set, &two, sizeof(mask.set));
	mask.set = ~mask.set;
	return ioctl(fd, KVM_SET_SIGNAL_MASK, &mask) ? -errno : 0;
}

int kg_vcpu_start(kg_vcpu *v)
{
	_Atomic uint32_t *event = &v->vm->gate.event;
	int err;

	atomic_store(&v->state, KG_RUNS);
	err = -pthread_create(&v->thread, NULL, run_vcpu, v);
	if (err)
		return err;
	v->started = 1;
	while (!atomic_load(&v->tid)) {
		uint32_t seen = atomic_load(event);

		if (!atomic_load(&v->tid))
			ut_futex_wait(event, seen, AGAIN_NS, UT_PRIVATE_WORD);
	}
	return 0;
}
