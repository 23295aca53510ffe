/* A tree of processes that talk to each other all the time, so that a cut which is not one instant shows.
 *
 * Each process has a page of its own (struct mine) and all have one in common (struct shared), at the same places.
 *  - Whoever works counts up its slot of the common page, then its own count: the two differ by 0 or 1 at any instant.
 *  - Three processes pass a token round, by pipes: its number is counted before it is passed on.
 *  - `forks N`: the first process also keeps N children that work, some after an exec, some as orphans, and end soon.
 * Commands on stdin: "h" the first one keeps the token and begins no more children (answer: held), "g" it goes on, "c"
 * begins a child that only waits, and says its number, "s" says the number of errors that the processes have seen
 * themselves and the token's number. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define RING 3
#define SLOTS 256

struct mine {
	volatile uint64_t pid, slot, count, token;
	char rest[4096 - 32];
};
struct shared {
	volatile uint64_t errors, count[SLOTS];
};

static struct mine *const mine = (void *)0x100000000000;
static struct shared *const shared = (void *)0x200000000000;
static int shm;

static void map(void)
{
	const int fixed = MAP_FIXED_NOREPLACE;

	if (mmap(mine, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0) != mine ||
	    mmap(shared, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | fixed, shm, 0) != shared)
		exit(9);
}

static void begin(int slot)
{
	mine->pid = 0;
	mine->slot = slot;
	mine->count = shared->count[slot];
	mine->pid = getpid();
}

static void work(void)
{
	for (int i = 0; i < 50; i++) {
		if (shared->count[mine->slot] != mine->count)
			__atomic_add_fetch(&shared->errors, 1, __ATOMIC_SEQ_CST);
		shared->count[mine->slot]++;
		mine->count++;
	}
}

static void nap(long us)
{
	struct timespec t = {0, us * 1000};

	nanosleep(&t, NULL);
}

static int get(int in)
{
	struct pollfd p = {in, POLLIN, 0};
	uint64_t token;

	if (poll(&p, 1, 1) != 1 || read(in, &token, 8) != 8)
		return 0;
	if (token != mine->token + !!mine->slot)
		__atomic_add_fetch(&shared->errors, 1, __ATOMIC_SEQ_CST);
	return 1;
}

/* The first one counts it up; so its own number is that of the others or one more. */
static void give(int out)
{
	uint64_t token = mine->token + 1;

	mine->token = token;
	if (write(out, &token, 8) != 8)
		_exit(8);
}

static void ring(int slot, int in, int out)
{
	begin(slot);
	for (;;) {
		work();
		if (get(in))
			give(out);
	}
}

static void live_and_end(int slot, unsigned seed)
{
	unsigned long until = 100 + rand_r(&seed) % 2000;

	begin(slot);
	for (unsigned long i = 0; i < until; i++) {
		work();
		nap(500);
	}
	_exit(0);
}

static void child(int slot, unsigned seed)
{
	char a[16], b[16], c[16];

	prctl(PR_SET_PDEATHSIG, 0);
	if (rand_r(&seed) % 3 == 0) {
		snprintf(a, sizeof(a), "%d", shm);
		snprintf(b, sizeof(b), "%d", slot);
		snprintf(c, sizeof(c), "%u", seed);
		mine->pid = 0;
		execl("/proc/self/exe", "forks", a, b, c, NULL);
		_exit(7);
	}
	if (rand_r(&seed) % 3 == 0 && fork()) {
		mine->pid = 0;
		_exit(1); /* its child becomes an orphan, and takes the slot */
	}
	live_and_end(slot, seed);
}

int main(int argc, char **argv)
{
	int pipes[RING][2], wanted = argc > 1 ? atoi(argv[1]) : 0, living = 0, held = 0, have = 1, next = RING, end;
	unsigned seed = 1;
	char line[16];

	if (argc == 4) {
		shm = atoi(argv[1]);
		map();
		live_and_end(atoi(argv[2]), atoi(argv[3]));
	}
	shm = memfd_create("forks", 0);
	if (shm < 0 || ftruncate(shm, 4096))
		return 9;
	map();
	for (int i = 0; i < RING; i++)
		if (pipe(pipes[i]))
			return 9;
	for (int i = 1; i < RING; i++)
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			ring(i, pipes[i - 1][0], pipes[i][1]);
		}
	begin(0);
	fcntl(0, F_SETFL, O_NONBLOCK);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t n = read(0, line, sizeof(line));

		if (!n)
			return 0;
		for (ssize_t i = 0; i < n; i++) {
			if (line[i] == 'h' || line[i] == 'g')
				held = line[i] == 'h';
			if (line[i] == 'h' && have)
				puts("held");
			if (line[i] == 'c') {
				int pid = fork();

				for (mine->pid = pid ? getpid() : 0; !pid;)
					pause();
				printf("%d\n", pid);
			}
			if (line[i] == 's')
				printf("%lu %lu\n", (unsigned long)shared->errors, (unsigned long)mine->token);
		}
		fflush(stdout);
		work();
		if (!have && get(pipes[RING - 1][0])) {
			have = 1;
			if (held)
				puts("held"), fflush(stdout);
		}
		if (have && !held) {
			give(pipes[0][1]);
			have = 0;
		}
		nap(held ? 500 : 100);
		while (waitpid(-1, &end, WNOHANG) > 0)
			living -= !WIFEXITED(end) || WEXITSTATUS(end) != 1;
		while (living < wanted && !held) {
			next = next + 1 < SLOTS ? next + 1 : RING;
			shared->count[next] = 0;
			living++;
			if (!fork())
				child(next, seed);
			seed++;
		}
	}
}
