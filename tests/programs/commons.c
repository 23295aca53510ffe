/* Processes that write memory which they share, each with a log of its own: commons WRITERS PAGES SEED WAYS.
 *
 * The n-th write of writer w is n, into its word of page mix(SEED, w, n) % PAGES; then count[w], in the page after the last,
 * becomes n. So any instant of it can be worked out from the counts (tests/kernel/commons.py). WAYS, each a letter, to write or
 * to disturb those who look, are tried now and then by who has got an odd number of SIGUSR1; S: the memory is a System V
 * segment. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t *const memory = (void *)0x200000000000;
static uint64_t pages, seed, done;
static int self, first;
static volatile int disturbing;

static uint64_t mix(uint64_t w, uint64_t n)
{
	uint64_t z = seed + w * 0x9e3779b97f4a7c15 + n * 0xbf58476d1ce4e5b9;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static uint64_t *next(void)
{
	done++;
	return memory + mix(self, done) % pages * 512 + self;
}

static void count(void)
{
	*(volatile uint64_t *)(memory + pages * 512 + self) = done;
}

static void *by_store(void *arg)
{
	*(volatile uint64_t *)next() = done;
	count();
	return arg;
}

static void by_read(void)
{
	uint64_t *at = next();
	int fds[2];

	if (pipe(fds) || write(fds[1], &done, 8) != 8 || read(fds[0], at, 8) != 8)
		_exit(9);
	close(fds[0]);
	close(fds[1]);
	count();
}

/* Through the page tables of the first of them. */
static void by_other(void)
{
	struct iovec local = {&done, 8}, remote = {next(), 8};

	if (process_vm_writev(first, &local, 1, &remote, 1, 0) != 8)
		_exit(9);
	count();
}

static void by_child(int leave)
{
	pid_t pid = fork();

	if (!pid) {
		if (leave && fork())
			_exit(0);
		by_store(NULL);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	/* One whose parent has ended may need a moment. */
	done++;
	while (*(volatile uint64_t *)(memory + pages * 512 + self) != done)
		usleep(50);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static void by_thread(void)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, by_store, NULL) || pthread_join(thread, NULL))
		_exit(9);
}

/* A writer but the first one does no more after its last write; the memory stays, or goes with it. */
static void leave(char way)
{
	if (!self)
		return;
	by_store(NULL);
	if (way == 'k')
		raise(SIGKILL);
	if (way == 'e')
		execlp("sleep", "sleep", "1000", NULL);
	if (way == 'x')
		_exit(0);
	if (way == 'u')
		munmap(memory, (pages + 1) * 4096);
	if ((way != 'n' && way != 'f') || fork()) {
		if (way == 'f')
			_exit(0);
		for (;;)
			pause();
	}
	if (way == 'n')
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	disturbing = 0;
}

static void disturb(char way)
{
	uint64_t page = mix(self, ~done) % (pages - 16);
	char *at = (char *)memory + page * 4096;

	switch (way) {
	case 'r': by_read(); break;
	case 'o': by_other(); break;
	case 'c': by_child(0); break;
	case 'g': by_child(1); break;
	case 't': by_thread(); break;
	case 'd': madvise(at, 16 * 4096, MADV_DONTNEED); break;
	case 'D': madvise(memory, pages * 4096, MADV_DONTNEED); break;
	case 'p': madvise(at, 16 * 4096, MADV_PAGEOUT); break;
	case 'm':
		mprotect(at, 4096, PROT_READ);
		by_store(NULL);
		mprotect(at, 4096, PROT_READ | PROT_WRITE);
		break;
	case 'M': {
		char *other = mremap(memory, 0, (pages + 1) * 4096, MREMAP_MAYMOVE);
		uint64_t *to = next();

		*(volatile uint64_t *)(other + ((char *)to - (char *)memory)) = done;
		munmap(other, (pages + 1) * 4096);
		count();
		break;
	}
	default: leave(way);
	}
}

static void work(const char *ways)
{
	int n = strlen(ways);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (uint64_t i = 1;; i++) {
		struct timespec pause = {0, mix(self, i) % 200000};

		if (n && disturbing && i % 32 == 0)
			disturb(ways[mix(self, i) / 8 % n]);
		else
			by_store(NULL);
		if (i % 8 == 0)
			nanosleep(&pause, NULL);
	}
}

/* On SIGSEGV in a page that is just read-only: the writer is by itself, so it waits for nobody. */
static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	if (mprotect((void *)((uintptr_t)info->si_addr & ~4095ul), 4096, PROT_READ | PROT_WRITE))
		_exit(9);
}

static void turn(int number)
{
	(void)number;
	disturbing = !disturbing;
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	int writers = argc == 5 ? atoi(argv[1]) : 0, id = -1;
	char *ways = writers ? argv[4] : "";
	size_t size;
	void *at;

	if (!writers)
		return 2;
	pages = atol(argv[2]);
	seed = atol(argv[3]);
	size = (pages + 1) * 4096;
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGUSR1, &(struct sigaction){.sa_handler = turn, .sa_flags = SA_RESTART}, NULL);
	if (*ways == 'S') {
		ways++;
		id = shmget(IPC_PRIVATE, size, 0600);
		at = shmat(id, memory, 0);
		shmctl(id, IPC_RMID, NULL);
	} else {
		at = mmap(memory, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	}
	if (at != memory)
		return 9;
	first = getpid();
	/* Orphans stay its descendants, but for a writer that has to be none. */
	if (!strchr(ways, 'f') && prctl(PR_SET_CHILD_SUBREAPER, 1))
		return 9;
	for (uint64_t page = 0; page < pages; page++)
		memory[page * 512 + 511] = ~page;
	for (self = writers - 1; self > 0; self--)
		if (!fork())
			work(ways);
	puts("ready");
	fflush(stdout);
	work(ways);
}
