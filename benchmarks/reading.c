/* Ways of reading another process's memory: us a page, by the length of the runs that are read. Called by reading.py. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define SIZE (256ul << 20)
#define BATCH 512

static char *memory, *out;
static int child, mem, pagemap;
static size_t run, stride, count;

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void by_readv(void)
{
	struct iovec remote[BATCH];
	char *to = out;

	for (size_t i = 0; i < count;) {
		size_t n = 0;

		for (; n < BATCH && i < count; n++, i++)
			remote[n] = (struct iovec){memory + i * stride, run};
		struct iovec local = {to, n * run};

		if (process_vm_readv(child, &local, 1, remote, n, 0) != (ssize_t)(n * run))
			exit(3);
		to += n * run;
	}
}

static void by_mem(void)
{
	char *to = out;

	for (size_t i = 0; i < count; i++, to += run)
		if (pread(mem, to, run, (off_t)(memory + i * stride)) != (ssize_t)run)
			exit(3);
}

/* Asking first whether the pages are shared. */
static void by_pagemap_and_readv(void)
{
	static uint64_t entry[SIZE / PAGE];

	for (size_t i = 0; i < count; i++)
		if (pread(pagemap, entry, run / PAGE * 8, (uintptr_t)(memory + i * stride) / PAGE * 8) < 0)
			exit(3);
	by_readv();
}

int main(void)
{
	static const size_t lengths[] = {1, 2, 4, 8, 16, 64, 512};
	static void (*const ways[])(void) = {by_readv, by_mem, by_pagemap_and_readv};
	char path[64];
	int status;

	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	out = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(memory, SIZE, MADV_NOHUGEPAGE);
	memset(out, 1, SIZE);
	child = fork();
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (size_t i = 0; i < SIZE; i += PAGE)
			memory[i] = 1 + i / PAGE % 100;
		raise(SIGSTOP);
		_exit(0);
	}
	waitpid(child, &status, WUNTRACED);
	snprintf(path, sizeof(path), "/proc/%d/mem", child);
	mem = open(path, O_RDONLY);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", child);
	pagemap = open(path, O_RDONLY);
	for (size_t k = 0; k < sizeof(lengths) / sizeof(*lengths); k++) {
		run = lengths[k] * PAGE;
		count = (lengths[k] < 64 ? 8ul << 20 : 64ul << 20) / run;
		stride = SIZE / count / PAGE * PAGE;
		for (int round = 0; round < 9; round++)
			for (int way = 0; way < 3; way++) {
				double started = now_us();

				ways[way]();
				printf("%zu %d %.4f\n", lengths[k], way, (now_us() - started) / (count * lengths[k]));
			}
	}
	kill(child, SIGKILL);
	return 0;
}
