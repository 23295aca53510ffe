/* One thread reads a file past the page cache, over and over, into one buffer; another writes to other pages.
 *
 * usage: direct FILE. Each block of the file is full of a byte of its own. Prints the buffer's address. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, BLOCKS = 8 };
#define SIZE (4ul << 20)
#define OTHER (16ul << 20)

static uint8_t *buffer, *other;

static void *write_on(void *unused)
{
	for (uint32_t x = 1;; x = x * 1103515245 + 12345)
		other[(x >> 8) % (OTHER / PAGE) * PAGE]++;
	return unused;
}

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECT) : -1;
	pthread_t thread;

	buffer = mmap(NULL, SIZE + OTHER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (fd < 0 || buffer == MAP_FAILED)
		return 2;
	other = buffer + SIZE;
	memset(buffer, 1, SIZE + OTHER);
	if (pthread_create(&thread, NULL, write_on, NULL))
		return 1;
	printf("%lx\n", (unsigned long)buffer);
	fflush(stdout);
	for (unsigned k = 0;; k++)
		if (pread(fd, buffer, SIZE, k % BLOCKS * SIZE) != SIZE)
			return 1;
}
