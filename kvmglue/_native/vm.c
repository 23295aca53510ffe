#include "cleanup.h"
#include "futex.h"
#include "gate.h"
#include "net.h"
#include "serial.h"
#include "vcpu.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

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
	for (int i = 0; i < vm->slots.n; i++) {
		const ut_slot *s = &vm->slots.v[i];

		TRY(set_slot(vm, i, flags, s->gfn * KG_PAGE, s->npages * KG_PAGE, vm->ram + s->row * KG_PAGE));
	}
	return 0;
}

static void on_kick(int number)
{
}

static int give_memory(kg_vm *vm)
{
	struct sigaction kick = {.sa_handler = on_kick};

	sigemptyset(&kick.sa_mask);
	if (sigaction(kg_kick_signal(), &kick, NULL))
		return -errno;
	TRY(kg_set_slots(vm, 0));
	return set_slot(vm, vm->slots.n, 0, KG_SYSTEM_AT, vm->system_bytes, vm->system);
}

int kg_vm_open(int fd, uint8_t *ram, const ut_slot *slots, int nslots, uint8_t *system, uint64_t system_bytes,
	       kg_vm **out)
{
	kg_vm *vm;
	int err;

	if (nslots < 1 || nslots > UT_MAX_SLOTS)
		return -EINVAL;
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return -ENOMEM;
	vm->fd = fd;
	vm->ram = ram;
	vm->system = system;
	vm->system_bytes = system_bytes;
	vm->slots.n = nslots;
	memcpy(vm->slots.v, slots, nslots * sizeof(*slots));
	vm->rows = slots[nslots - 1].row + slots[nslots - 1].npages;
	kg_gate_init(&vm->gate);
	err = kg_serial_init(&vm->serial);
	if (!err)
		err = kg_net_init(&vm->net);
	if (!err)
		err = give_memory(vm);
	if (err) {
		kg_serial_free(&vm->serial);
		kg_net_free(&vm->net);
		free(vm);
		return err;
	}
	*out = vm;
	return 0;
}

void kg_vm_close(kg_vm *vm)
{
	if (!vm)
		return;
	atomic_store(&vm->quit, 1);
	for (int i = 0; i < vm->nvcpus; i++)
		kg_kick(&vm->vcpu[i]);
	kg_tell(&vm->gate.changed);
	atomic_fetch_add(&vm->gate.word, 2);
	ut_futex_wake(&vm->gate.word, UT_PRIVATE_WORD);
	for (int i = 0; i < vm->nvcpus; i++) {
		kg_vcpu *v = &vm->vcpu[i];

		if (v->started)
			pthread_join(v->thread, NULL);
		munmap(v->run, v->run_bytes);
		close(v->fd);
	}
	close(vm->fd);
	kg_gate_free(&vm->gate);
	kg_serial_free(&vm->serial);
	kg_net_free(&vm->net);
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

void kg_hold(kg_vm *vm, int64_t serial, int64_t packets)
{
	int room = kg_serial_hold(vm, serial);

	if (kg_net_hold(vm, packets) || room)
		kg_tell(&vm->gate.changed);
}

int kg_has_output(kg_vm *vm)
{
	return kg_serial_waits(vm) || kg_net_waits(vm);
}

/* -- vCPUs --------------------------------------------------------------------------------------- */

int kg_vcpu_open(kg_vm *vm, int kvm, uint64_t mailbox, uint64_t stack, uint64_t tables)
{
	int number = vm->nvcpus, bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	kg_vcpu *v = &vm->vcpu[number];

	if (number == KG_MAX_VCPUS || bytes < (int)sizeof(struct kvm_run))
		return -EINVAL;
	*v = (kg_vcpu){.vm = vm, .number = number, .run_bytes = bytes, .may_print = 1, .may_send = 1};
	v->mailbox = (kg_mailbox *)(vm->system + (mailbox - KG_SYSTEM_AT));
	AUTO_FD fd = ioctl(vm->fd, KVM_CREATE_VCPU, number);

	if (fd < 0)
		return -errno;
	v->run = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (v->run == MAP_FAILED)
		return -errno;
	v->fd = ut_keep_fd(&fd);
	vm->nvcpus++; /* closing the VM ends it from here on */
	TRY(kg_vcpu_unblock(v->fd));
	TRY(kg_boot_state(vm, kvm, number, KG_SYSTEM_AT, mailbox, stack, tables));
	TRY(kg_vcpu_start(v));
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
