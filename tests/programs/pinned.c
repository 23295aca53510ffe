/* An io_uring with a registered buffer, whose read waits for a FIFO: the kernel writes into that memory without a fault.
 *
 * usage: pinned FIFO; prints the address of the page */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SIZE = 4 << 20, PAGE = 4096 };

int main(int argc, char **argv)
{
	struct io_uring_params p = {0};
	int ring = syscall(SYS_io_uring_setup, 4, &p), fifo = argc > 1 ? open(argv[1], O_RDWR) : -1;
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec page = {memory + SIZE / 2, PAGE};
	struct io_uring_sqe *entry;
	char *queue;

	if (ring < 0 || fifo < 0 || memory == MAP_FAILED)
		return 1;
	queue = mmap(NULL, p.sq_off.array + sizeof(uint32_t), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	entry = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	memset(memory, 'a', SIZE);
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &page, 1))
		return 1;
	*entry = (struct io_uring_sqe){
		.opcode = IORING_OP_READ_FIXED, .fd = fifo, .addr = (uintptr_t)page.iov_base, .len = PAGE,
	};
	*(uint32_t *)(queue + p.sq_off.array) = 0;
	__atomic_store_n((uint32_t *)(queue + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0) != 1)
		return 1;
	printf("%lx\n", (unsigned long)page.iov_base);
	fflush(stdout);
	for (;;)
		pause();
}
