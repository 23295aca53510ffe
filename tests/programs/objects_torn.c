/* Kinds of objects that a rollback would tear. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "objects.h"

int io_uring(int step)
{
	static struct io_uring_params params;
	static uint32_t *ring;
	static int fd;

	if (step == MAKE) {
		fd = syscall(SYS_io_uring_setup, 4, &params);
		if (fd < 0)
			return -1;
		ring = map(fd, params.sq_off.array + params.sq_entries * 4);
		return !ring;
	}
	/* An entry of zeros is IORING_OP_NOP. */
	__atomic_fetch_add(ring + params.sq_off.tail / 4, 1, __ATOMIC_RELEASE);
	return syscall(SYS_io_uring_enter, fd, 1, 0, 0, NULL, 0) != 1;
}

int aio(int step)
{
	static aio_context_t context;
	static char data[512];
	static int fd;
	struct iocb request = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_buf = (uintptr_t)data,
		.aio_nbytes = sizeof(data),
	};
	struct iocb *all[] = {&request};

	if (step == MAKE)
		return (fd = open("/proc/self/exe", O_RDONLY)) < 0 || syscall(SYS_io_setup, 4, &context);
	request.aio_fildes = fd;
	return syscall(SYS_io_submit, context, 1, all) != 1;
}

/* Of the others it is enough that they are there. */

int perf(int step)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_PAGE_FAULTS,
		.sample_period = 1,
		.exclude_kernel = 1,
	};
	int fd;

	if (step == CHANGE)
		return 0;
	fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	return fd < 0 || !map(fd, 2 * 4096) ? -1 : 0;
}

int packet(int step)
{
	struct tpacket_req ring = {.tp_block_size = 4096, .tp_block_nr = 1, .tp_frame_size = 2048, .tp_frame_nr = 2};
	int fd;

	if (step == CHANGE)
		return 0;
	fd = socket(AF_PACKET, SOCK_RAW, 0);
	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)) || !map(fd, 4096))
		return -1;
	return close(fd); /* the ring lives on in the mapping */
}

int bpf(int step)
{
	union bpf_attr attr = {
		.map_type = BPF_MAP_TYPE_ARRAY,
		.key_size = 4,
		.value_size = 4096,
		.max_entries = 1,
		.map_flags = BPF_F_MMAPABLE,
	};
	int fd;

	if (step == CHANGE)
		return 0;
	fd = syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr));
	return fd < 0 || !map(fd, 4096) ? -1 : 0;
}

int kvm(int step)
{
	static const uint8_t code[] = {0xf4}; /* hlt */
	struct kvm_userspace_memory_region slot = {.memory_size = 4096};
	struct kvm_sregs sregs;
	struct kvm_regs regs = {.rflags = 2};
	static int vcpu;
	int fd, vm;

	if (step == CHANGE)
		return 0;
	fd = open("/dev/kvm", O_RDWR);
	vm = fd < 0 ? -1 : ioctl(fd, KVM_CREATE_VM, 0);
	vcpu = vm < 0 ? -1 : ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return -1;
	slot.userspace_addr = (uintptr_t)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy((void *)(uintptr_t)slot.userspace_addr, code, sizeof(code));
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) || !map(vcpu, ioctl(fd, KVM_GET_VCPU_MMAP_SIZE, 0)))
		return -1;
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return -1;
	sregs.cs.base = sregs.cs.selector = 0;
	return ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs) || ioctl(vcpu, KVM_RUN, 0);
}

int secret(int step)
{
	int fd;

	if (step == CHANGE)
		return 0;
	fd = syscall(447, 0); /* memfd_secret */
	return fd < 0 || ftruncate(fd, 4096) || !map(fd, 4096) ? -1 : 0;
}

int uring_gone(int step)
{
	struct io_uring_params params = {0};
	static int fd;

	if (step == CHANGE)
		return close(fd);
	fd = syscall(SYS_io_uring_setup, 4, &params);
	return fd < 0 ? -1 : 0;
}
