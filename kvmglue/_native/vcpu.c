#include "clock.h"
#include "futex.h"
#include "gate.h"
#include "net.h"
#include "serial.h"
#include "vcpu.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#define AGAIN_NS 10000000
#define NAP_NS 1000000

/* What a vCPU polls for: its thread then naps before it enters the guest again. */
enum { NO_NAP, NAP_FOR_ROOM, NAP_FOR_A_PACKET };

/* All signals are blocked, but for two in KVM_RUN, where a thread sleeps, and in take_signals(): ours, and that of
 * uffdtrack's gate (SIGRTMAX - 2), whose handler must not hold a thread while it has a lock. KVM_RUN returns for
 * them, and they stay pending outside of it. */
static void the_two(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, kg_kick_signal());
	sigaddset(set, SIGRTMAX - 2);
}

static void all_but_the_two(sigset_t *set)
{
	sigfillset(set);
	sigdelset(set, kg_kick_signal());
	sigdelset(set, SIGRTMAX - 2);
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

static void sleep_on(_Atomic uint32_t *word, uint32_t seen, int64_t timeout_ns)
{
	mask_signals(SIG_UNBLOCK);
	ut_futex_wait(word, seen, timeout_ns, UT_PRIVATE_WORD);
	mask_signals(SIG_BLOCK);
}

/* A guest that polls a device needs no processor for it. The nap is short: what it waits for may be something else.
 * A change of the gate ends it, by `changed`, or by the signal that comes with a kick. */
static void nap(kg_vcpu *v)
{
	sigset_t rest;

	if (v->naps == NAP_FOR_ROOM)
		sleep_on(&v->vm->gate.changed, v->nap_seen, NAP_NS);
	if (v->naps == NAP_FOR_A_PACKET) {
		all_but_the_two(&rest);
		kg_net_await(v->vm, &rest, NAP_NS);
	}
	v->naps = NO_NAP;
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

/* A device copies between the guest's memory and its own, as the host: no lock is held, since it may wait in a fault
 * for a tracker's pause to end. */
static void copy(void *to, const void *from, size_t n)
{
	mask_signals(SIG_UNBLOCK);
	memcpy(to, from, n);
	mask_signals(SIG_BLOCK);
}

/* A device writes the beginning of a page of the guest's. */
static void write_page(kg_vm *vm, uint64_t row, const void *from, size_t n)
{
	kg_listener *l;

	copy(vm->ram + row * KG_PAGE, from, n);
	l = atomic_load(&vm->listener);
	if (l)
		l->device_wrote(l, row, 1);
}

static void fill(kg_vcpu *v, uint64_t row)
{
	uint8_t page[KG_PAGE];

	if (row >= v->vm->rows)
		return;
	memset(page, v->mailbox->value, KG_PAGE);
	write_page(v->vm, row, page, KG_PAGE);
}

/* The packet is what it is now: the guest may write the page again at once. */
static void send_packet(kg_vcpu *v, uint64_t row)
{
	kg_vm *vm = v->vm;
	kg_packet packet;

	if (row >= vm->rows)
		return;
	copy(&packet, vm->ram + row * KG_PAGE, sizeof(packet));
	if (packet.bytes && packet.bytes <= KG_PACKET_MOST)
		kg_net_put(vm, &packet, &v->may_send);
}

static void receive_packet(kg_vm *vm, uint64_t row)
{
	kg_packet packet;

	if (row >= vm->rows)
		return;
	kg_net_receive(vm, &packet);
	if (packet.bytes)
		write_page(vm, row, &packet, offsetof(kg_packet, data) + packet.bytes);
}

/* The status of a device. Where it is not as the guest wants it, the guest will ask again. */
static uint32_t status(kg_vcpu *v, int port)
{
	kg_vm *vm = v->vm;
	uint32_t found = 0;
	int naps = NAP_FOR_ROOM;

	v->nap_seen = atomic_load(&vm->gate.changed);
	switch (port) {
	case KG_PORT_STATUS:
		v->may_print = kg_serial_ready(vm);
		found = v->may_print ? KG_LINE_READY : 0;
		break;
	case KG_PORT_SEND:
		found = v->may_send = kg_net_ready(vm);
		break;
	case KG_PORT_RECEIVE:
		found = kg_net_came(vm);
		naps = NAP_FOR_A_PACKET;
		break;
	default:
		return UINT32_MAX; /* nothing is there, as on a real bus */
	}
	v->naps = found ? NO_NAP : naps;
	return found;
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
		value = status(v, run->io.port);
		for (size_t i = 0; i < bytes; i++)
			data[i] = value >> 8 * (i % run->io.size);
		return 1;
	}
	memcpy(&value, data, bytes < sizeof(value) ? bytes : sizeof(value));
	switch (run->io.port) {
	case KG_PORT_SERIAL:
		kg_serial_put(v->vm, (char *)data, bytes, &v->may_print);
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
	case KG_PORT_SEND:
		send_packet(v, value);
		return 1;
	case KG_PORT_RECEIVE:
		receive_packet(v->vm, value);
		return 1;
	case KG_PORT_EXIT:
		return end(v, KG_END_EXIT, value, 0);
	}
	return 1;
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
			if (v->naps) {
				nap(v);
				continue;
			}
			if (!v->began_ns)
				v->began_ns = ut_now_ns();
			return 1;
		}
		if (!settle(v))
			return 0;
		if (word & 1) {
			atomic_store(&v->parked, word);
			kg_tell(&vm->gate.event);
			sleep_on(&vm->gate.word, word, -1);
			continue;
		}
		if (v->mailbox->seq != v->idle_seq) {
			atomic_store(&v->idle, 0);
			v->began_ns = ut_now_ns();
			continue; /* the gate may have been closed by one who saw us sleep */
		}
		sleep_on(&vm->gate.changed, changed, -1);
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
