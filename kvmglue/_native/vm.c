#include "vm.h"
#include "dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS 50000
#define AGAIN_NS 10000000
#define STALL_NS 5000000

static int kick_signal(void)
{
	return SIGRTMAX - 4;
}

static void on_kick(int number)
{
}

int64_t kg_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

void kg_wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void kg_wait(_Atomic uint32_t *word, uint32_t value, int64_t timeout_ns)
{
	struct timespec ts = {timeout_ns / 1000000000, timeout_ns % 1000000000};

	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, timeout_ns < 0 ? NULL : &ts, NULL, 0);
}

static void tell(_Atomic uint32_t *word)
{
	atomic_fetch_add(word, 1);
	kg_wake(word);
}

/* -- open and close ------------------------------------------------------------------------------ */

int kg_open(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int kg_create_vm(int kvm)
{
	int fd;

	do
		fd = ioctl(kvm, KVM_CREATE_VM, 0);
	while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

int kg_check(int fd, int capability)
{
	int n = ioctl(fd, KVM_CHECK_EXTENSION, capability);

	return n < 0 ? -errno : n;
}

static int set_slot(const kg_vm *vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t bytes, void *memory)
{
	struct kvm_userspace_memory_region r = {slot, flags, gpa, bytes, (uint64_t)memory};

	return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &r) ? -errno : 0;
}

int kg_set_slots(kg_vm *vm, uint32_t flags)
{
	for (int i = 0; i < vm->nslots; i++) {
		const kg_slot *s = &vm->slots[i];
		int err = set_slot(vm, i, flags, s->gfn * KG_PAGE, s->npages * KG_PAGE,
				   vm->ram + s->row * KG_PAGE);

		if (err)
			return err;
	}
	return 0;
}

int kg_vm_open(int fd, uint8_t *ram, const kg_slot *slots, int nslots, uint8_t *system, uint64_t system_bytes,
	       kg_vm **out)
{
	struct sigaction kick = {.sa_handler = on_kick};
	kg_vm *vm;
	int err;

	if (nslots < 1 || nslots > KG_MAX_SLOTS)
		return -EINVAL;
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return -ENOMEM;
	vm->fd = fd;
	vm->ram = ram;
	vm->system = system;
	vm->system_bytes = system_bytes;
	vm->nslots = nslots;
	memcpy(vm->slots, slots, nslots * sizeof(*slots));
	vm->rows = slots[nslots - 1].row + slots[nslots - 1].npages;
	vm->gate = vm->paused = 1;
	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->gate_lock, NULL);
	sigemptyset(&kick.sa_mask);
	err = sigaction(kick_signal(), &kick, NULL) ? -errno : kg_set_slots(vm, 0);
	if (!err)
		err = set_slot(vm, nslots, 0, KG_SYSTEM_AT, system_bytes, system);
	if (err) {
		free(vm);
		return err;
	}
	*out = vm;
	return 0;
}

static void kick(kg_vcpu *v)
{
	if (v->started && atomic_load(&v->state) == KG_RUNS) {
		/* Either is enough where the other comes too late: the signal in KVM_RUN, the flag before it. */
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		syscall(SYS_tgkill, getpid(), atomic_load(&v->tid), kick_signal());
	}
}

void kg_vm_close(kg_vm *vm)
{
	if (!vm)
		return;
	atomic_store(&vm->quit, 1);
	for (int i = 0; i < vm->nvcpus; i++)
		kick(&vm->vcpu[i]);
	tell(&vm->changed);
	atomic_fetch_add(&vm->gate, 2);
	kg_wake(&vm->gate);
	for (int i = 0; i < vm->nvcpus; i++) {
		kg_vcpu *v = &vm->vcpu[i];

		if (v->started)
			pthread_join(v->thread, NULL);
		munmap(v->run, v->run_bytes);
		close(v->fd);
	}
	close(vm->fd);
	pthread_mutex_destroy(&vm->lock);
	pthread_mutex_destroy(&vm->gate_lock);
	free(vm->serial);
	free(vm);
}

int kg_enable_ring(kg_vm *vm, uint32_t bytes)
{
	struct kvm_enable_cap c = {.cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL, .args = {bytes}};

	if (!ioctl(vm->fd, KVM_ENABLE_CAP, &c))
		return 0;
	c.cap = KVM_CAP_DIRTY_LOG_RING; /* before 6.1; x86 orders its stores by itself */
	return ioctl(vm->fd, KVM_ENABLE_CAP, &c) ? -errno : 0;
}

/* -- a vCPU's thread ----------------------------------------------------------------------------- */

/* All signals are blocked, but for two in KVM_RUN, where a thread sleeps, and in take_signals(): ours, and that of
 * uffdtrack's gate (SIGRTMAX - 2), whose handler must not hold a thread while it has a lock. KVM_RUN returns for
 * them, and they stay pending outside of it. */
static void the_two(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, kick_signal());
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
	kg_wait(word, seen, -1);
	mask_signals(SIG_BLOCK);
}

static int end(kg_vcpu *v, int reason, int code, uint64_t detail)
{
	v->reason = reason;
	v->code = code;
	v->detail = detail;
	atomic_store(&v->state, KG_ENDED);
	tell(&v->vm->event);
	return 0;
}

static void print(kg_vm *vm, const char *text, size_t n)
{
	pthread_mutex_lock(&vm->lock);
	if (vm->serial_bytes + n > vm->serial_room) {
		size_t room = 2 * vm->serial_room + n + 4096;
		char *more = realloc(vm->serial, room);

		if (more) {
			vm->serial = more;
			vm->serial_room = room;
		} else {
			n = 0;
		}
	}
	memcpy(vm->serial + vm->serial_bytes, text, n);
	vm->serial_bytes += n;
	pthread_mutex_unlock(&vm->lock);
	if (memchr(text, '\n', n))
		tell(&vm->event);
}

size_t kg_take_serial(kg_vm *vm, char *to, size_t room)
{
	size_t n;

	pthread_mutex_lock(&vm->lock);
	n = vm->serial_bytes < room ? vm->serial_bytes : room;
	memcpy(to, vm->serial, n);
	vm->serial_bytes -= n;
	memmove(vm->serial, vm->serial + n, vm->serial_bytes);
	pthread_mutex_unlock(&vm->lock);
	return n;
}

/* A device writes the guest's memory, as the host. */
static void fill(kg_vcpu *v, uint64_t row)
{
	kg_vm *vm = v->vm;
	struct kg_tracker *t;

	if (row >= vm->rows)
		return;
	mask_signals(SIG_UNBLOCK); /* it may wait in a write fault, for a tracker's pause to end */
	memset(vm->ram + row * KG_PAGE, v->mailbox->value, KG_PAGE);
	mask_signals(SIG_BLOCK);
	t = atomic_load(&vm->tracker);
	if (t)
		kg_mark(t, row, 1);
}

/* One access to a port; 0: the vCPU has ended. */
static int port(kg_vcpu *v)
{
	struct kvm_run *run = v->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t bytes = (size_t)run->io.size * run->io.count;
	uint32_t value = 0;

	v->pending = 1;
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
		v->took_ns = kg_now() - v->began_ns;
		tell(&v->vm->event);
		return 1;
	case KG_PORT_FILL:
		fill(v, value);
		return 1;
	case KG_PORT_EXIT:
		return end(v, KG_END_EXIT, value, 0);
	}
	return 1; /* nothing is there, as on a real bus */
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
		atomic_fetch_add(&v->fulls, 1);
		return kg_ring_full(v->vm) < 0 ? end(v, KG_END_ERRNO, EIO, 0) : 1;
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
	while (v->pending) {
		int result;

		v->pending = 0;
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
		uint32_t changed = atomic_load(&vm->changed), word;

		__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST); /* before the gate is looked at */
		word = atomic_load(&vm->gate);
		if (atomic_load(&vm->quit))
			return end(v, KG_END_TOLD, 0, 0);
		if (!(word & 1) && !atomic_load(&v->idle))
			return 1;
		if (!settle(v))
			return 0;
		if (word & 1) {
			atomic_store(&v->parked, word);
			tell(&vm->event);
			sleep_on(&vm->gate, word);
			continue;
		}
		if (v->mailbox->seq != v->idle_seq) {
			atomic_store(&v->idle, 0);
			v->began_ns = kg_now();
			continue; /* the gate may have been closed by one who saw us sleep */
		}
		sleep_on(&vm->changed, changed);
	}
}

static void *run_vcpu(void *arg)
{
	kg_vcpu *v = arg;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	atomic_store(&v->tid, syscall(SYS_gettid));
	tell(&v->vm->event);
	while (stand(v)) {
		int result;

		atomic_fetch_add_explicit(&v->runs, 1, memory_order_relaxed);
		v->pending = 0;
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

static int unblock_in_run(int fd)
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

int kg_vcpu_open(kg_vm *vm, int kvm, uint64_t mailbox, uint64_t stack, uint64_t tables)
{
	int number = vm->nvcpus, bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), err;
	kg_vcpu *v = &vm->vcpu[number];

	if (number == KG_MAX_VCPUS)
		return -EINVAL;
	if (bytes < (int)sizeof(struct kvm_run))
		return -EINVAL;
	*v = (kg_vcpu){.vm = vm, .number = number, .run_bytes = bytes};
	v->mailbox = (kg_mailbox *)(vm->system + (mailbox - KG_SYSTEM_AT));
	v->fd = ioctl(vm->fd, KVM_CREATE_VCPU, number);
	if (v->fd < 0)
		return -errno;
	v->run = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED) {
		err = -errno;
		close(v->fd);
		return err;
	}
	vm->nvcpus++; /* closing the VM ends it from here on */
	err = unblock_in_run(v->fd);
	if (!err)
		err = kg_boot_state(vm, kvm, number, KG_SYSTEM_AT, mailbox, stack, tables);
	if (err)
		return err;
	atomic_store(&v->state, KG_RUNS);
	err = -pthread_create(&v->thread, NULL, run_vcpu, v);
	if (err)
		return err;
	v->started = 1;
	while (!atomic_load(&v->tid)) {
		uint32_t seen = atomic_load(&vm->event);

		if (!atomic_load(&v->tid))
			kg_wait(&vm->event, seen, AGAIN_NS);
	}
	return number;
}

int kg_vcpu_tid(const kg_vm *vm, int vcpu)
{
	return vm->vcpu[vcpu].tid;
}

int kg_vcpu_state(const kg_vm *vm, int vcpu)
{
	return atomic_load(&vm->vcpu[vcpu].state);
}

kg_counts kg_vcpu_counts(const kg_vm *vm, int vcpu)
{
	const kg_vcpu *v = &vm->vcpu[vcpu];

	return (kg_counts){v->runs, v->kicks, v->ports, v->fulls};
}

/* -- the gate ------------------------------------------------------------------------------------ */

/* Under the lock: have the gate as those who want it closed say. */
static void set_gate(kg_vm *vm)
{
	int closed = vm->paused || vm->holds;

	if (closed == (int)(atomic_load(&vm->gate) & 1))
		return;
	atomic_fetch_add(&vm->gate, 1);
	if (closed)
		for (int i = 0; i < vm->nvcpus; i++)
			kick(&vm->vcpu[i]);
	else
		kg_wake(&vm->gate);
	/* For those that are just about to sleep, and those whose mailboxes have changed meanwhile. */
	tell(&vm->changed);
}

static void change_gate(kg_vm *vm, int paused, int holds)
{
	pthread_mutex_lock(&vm->gate_lock);
	vm->paused = paused < 0 ? vm->paused : paused;
	vm->holds += holds;
	set_gate(vm);
	pthread_mutex_unlock(&vm->gate_lock);
}

void kg_gate_close(kg_vm *vm)
{
	change_gate(vm, 1, 0);
}

void kg_gate_open(kg_vm *vm)
{
	change_gate(vm, 0, 0);
}

void kg_gate_hold(kg_vm *vm)
{
	change_gate(vm, -1, 1);
}

void kg_gate_release(kg_vm *vm)
{
	change_gate(vm, -1, -1);
}

int kg_gate_closed(kg_vm *vm)
{
	return vm->paused;
}

int kg_is_full(kg_vm *vm)
{
	return !!atomic_load(&vm->full);
}

int kg_stands(kg_vm *vm, int vcpu)
{
	kg_vcpu *v = &vm->vcpu[vcpu];
	uint32_t word = atomic_load(&vm->gate);

	if (atomic_load(&v->state) != KG_RUNS)
		return 1;
	return (word & 1) && atomic_load(&v->parked) == word;
}

int kg_wait_parked(kg_vm *vm, int64_t timeout_ns)
{
	int64_t now = kg_now(), last = now, spent = 0, spin = now + SPIN_NS, again = now + AGAIN_NS;

	for (;;) {
		uint32_t event = atomic_load(&vm->event);
		int waiting = 0;

		for (int i = 0; i < vm->nvcpus; i++)
			waiting |= !kg_stands(vm, i);
		if (!waiting)
			return 0;
		now = kg_now();
		/* Where this thread itself was kept from running, the others may have been: such time does not count. */
		spent += now - last < STALL_NS ? now - last : STALL_NS;
		last = now;
		if (spent >= timeout_ns)
			return -ETIMEDOUT;
		if (now < spin) {
			sched_yield();
			continue;
		}
		if (now >= again) {
			for (int i = 0; i < vm->nvcpus; i++)
				if (!kg_stands(vm, i))
					kick(&vm->vcpu[i]);
			again = now + AGAIN_NS;
		}
		kg_wait(&vm->event, event, 1000000);
	}
}

void kg_ring_bell(kg_vm *vm)
{
	tell(&vm->changed);
}

uint32_t kg_wait_event(kg_vm *vm, uint32_t seen, int64_t timeout_ns)
{
	if (atomic_load(&vm->event) == seen)
		kg_wait(&vm->event, seen, timeout_ns);
	return atomic_load(&vm->event);
}
