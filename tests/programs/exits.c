/* exits NAME: a thread that has written nothing for a while ends, and the kernel writes in its name: the word of
 * set_tid_address(2), for which pthread_join(3) waits, and robust mutexes that it holds (get_robust_list(2)).
 * Prints "ready", waits for a line, lets the thread end, and prints what became of it. */
#define _GNU_SOURCE
#include <alloca.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MUTEXES = 5, SECONDS = 5 };
struct lock {
	pthread_mutex_t mutex;
	char room[3 * PAGE - sizeof(pthread_mutex_t)];
};
static struct lock *locks;
static const char *name;
static int *may_end, *waits, *volatile word;
static uint32_t *pending;

static int futex(int *word, int op, int value)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Far from the page that has the thread's own words, which its C library writes at a regular end. */
static __attribute__((noinline)) void wait_and_end(void *room)
{
	*(volatile char *)room = 0;
	*waits = 1;
	futex(waits, FUTEX_WAKE, 1);
	while (!*(volatile int *)may_end)
		futex(may_end, FUTEX_WAIT, 0);
	syscall(SYS_exit, 0);
}

static void *thread(void *unused)
{
	(void)unused;
	prctl(PR_GET_TID_ADDRESS, &word);
	if (!strncmp(name, "robust", 6))
		for (int i = 0; i < MUTEXES; i++)
			pthread_mutex_lock(&locks[i].mutex);
	if (!strcmp(name, "pending")) {
		struct robust_list_head *head;
		size_t size;

		/* As between the request for a lock and its place in the list. */
		syscall(SYS_get_robust_list, 0, &head, &size);
		*pending = gettid();
		head->list_op_pending = (struct robust_list *)((char *)pending - head->futex_offset);
	}
	wait_and_end(alloca(16 * PAGE));
	return NULL;
}

static void *own_page(size_t size)
{
	void *p = mmap(NULL, size + (1 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return memset(p, 0, size);
}

int main(int argc, char **argv)
{
	struct timespec end;
	pthread_mutexattr_t attr;
	pthread_t t;
	char line[16];
	int died = 0;

	if (argc != 2)
		return 2;
	name = argv[1];
	may_end = own_page(PAGE);
	waits = own_page(PAGE);
	pending = own_page(PAGE);
	locks = own_page(MUTEXES * sizeof(*locks));
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	if (!strcmp(name, "robust-pi"))
		pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
	for (int i = 0; i < MUTEXES; i++)
		pthread_mutex_init(&locks[i].mutex, &attr);
	if (pthread_create(&t, NULL, thread, NULL))
		return 2;
	while (!*(volatile int *)waits)
		futex(waits, FUTEX_WAIT, 0);
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 2;
	*may_end = 1;
	futex(may_end, FUTEX_WAKE, 1);
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += SECONDS;
	/* Only looked at: a wait at the word, as pthread_join(3) does, may lift a trap. */
	while (*(volatile int *)word && time(NULL) < end.tv_sec)
		sched_yield();
	if (*(volatile int *)word) {
		puts("its end was not told");
		return 1;
	}
	for (int i = 0; i < MUTEXES && !strncmp(name, "robust", 6); i++)
		died += pthread_mutex_timedlock(&locks[i].mutex, &end) == EOWNERDEAD;
	if (!strcmp(name, "pending"))
		died = *pending == FUTEX_OWNER_DIED;
	printf("ended %d\n", died);
	fflush(stdout);
	return fgets(line, sizeof(line), stdin) ? 0 : 2;
}
