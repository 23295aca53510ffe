/* A program that aborts at the first thing that it should not have seen. It prints "ready" and then, on
 * each line that it reads, one line of counters.
 *
 * Threads: one in each call that the kernel never restarts, with and without a time limit; signals at a
 * high rate, blocked and unblocked; registers that must stay; a call that must time out in time. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t timeouts, events, signals, naps, socket_timeouts, sig_timeouts, pwaits, polls;
static volatile uint64_t const_polls, const_selects, select_events;
static struct timeval *limits; /* 50 ms, an hour: in read-only memory */
static int event_fd, epoll_quiet, epoll_events;

static void die(const char *what)
{
	fprintf(stderr, "noticed: %s: %s\n", what, strerror(errno));
	abort();
}

static void *wait_forever(void *arg)
{
	struct epoll_event e;

	for (;;) {
		int n = epoll_wait(epoll_events, &e, 1, -1);

		if (n < 0)
			die("epoll_wait");
		if (n != 1)
			die("epoll_wait without events");
		uint64_t v;

		if (read(event_fd, &v, 8) == 8)
			events += v;
	}
	return arg;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* Nothing ever happens here: each call must end by its limit, not before. */
static void *wait_limited(void *arg)
{
	struct epoll_event e;

	for (;;) {
		double t = now();
		int n = epoll_wait(epoll_quiet, &e, 1, 50);

		if (n)
			die("epoll_wait with a limit");
		if (now() - t < 0.0499)
			die("epoll_wait ended before its limit");
		timeouts++;
	}
	return arg;
}

static void *receive_limited(void *arg)
{
	struct timeval limit = {0, 50000};
	const int *pair = arg;
	char c;

	setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	for (;;) {
		if (recv(pair[0], &c, 1, 0) != -1 || errno != EAGAIN)
			die("recv with SO_RCVTIMEO");
		socket_timeouts++;
	}
	return arg;
}

static void *signals_limited(void *arg)
{
	struct timespec limit = {0, 50000000};
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	for (;;) {
		if (sigtimedwait(&set, NULL, &limit) != -1 || errno != EAGAIN)
			die("sigtimedwait");
		sig_timeouts++;
	}
	return arg;
}

static void *semaphore(void *arg)
{
	int id = semget(IPC_PRIVATE, 1, 0600);
	struct sembuf down = {0, -1, 0};

	if (semop(id, &down, 1))
		die("semop");
	return arg;
}

static void *naps_and_polls(void *arg)
{
	struct timespec ts = {0, 3000000}, left;
	struct pollfd none = {.fd = event_fd, .events = POLLERR};

	for (;;) {
		double t = now();

		if (nanosleep(&ts, &left))
			die("nanosleep");
		if (now() - t < 0.003)
			die("nanosleep ended early");
		naps++;
		if (poll(&none, 1, 3) != 0)
			die("poll");
		polls++;
	}
	return arg;
}

/* Limits in read-only memory: the kernel cannot write back what is left of them, and gives up with EINTR. */
static void *poll_const(void *arg)
{
	static const struct timespec limit = {0, 50000000};

	for (;;) {
		double t = now();

		if (syscall(SYS_ppoll, NULL, 0, &limit, NULL, 8))
			die("ppoll");
		if (now() - t < 0.0499)
			die("ppoll ended before its limit");
		const_polls++;
	}
	return arg;
}

static void *select_const(void *arg)
{
	static const struct timespec same = {0, 50000000};

	for (;;) {
		double t = now();

		if (syscall(SYS_select, 0, NULL, NULL, NULL, &limits[0]))
			die("select");
		if (syscall(SYS_pselect6, 0, NULL, NULL, NULL, &same, NULL))
			die("pselect6");
		if (now() - t < 0.0998)
			die("select ended before its limit");
		const_selects++;
	}
	return arg;
}

/* With sets: until the event that is asked for. */
static void *select_event(void *arg)
{
	const int *pair = arg;

	for (;;) {
		fd_set set;
		char c;

		FD_ZERO(&set);
		FD_SET(pair[0], &set);
		if (syscall(SYS_select, pair[0] + 1, &set, NULL, NULL, &limits[1]) != 1 || !FD_ISSET(pair[0], &set))
			die("select with a set");
		if (read(pair[0], &c, 1) != 1)
			die("read after select");
		select_events++;
	}
	return arg;
}

/* epoll_pwait lets a signal in that is blocked otherwise: EINTR is right here, and only then. */
static volatile sig_atomic_t let_in;

static void on_usr1(int n)
{
	let_in = n;
}

static void *pwait(void *arg)
{
	struct epoll_event e;
	sigset_t blocked, open;

	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &blocked, &open);
	sigdelset(&open, SIGUSR1);
	*(volatile pthread_t *)arg = pthread_self();
	for (;;) {
		let_in = 0;
		int n = epoll_pwait(epoll_quiet, &e, 1, -1, &open);

		if (n != -1 || errno != EINTR || !let_in)
			die("epoll_pwait returned without a signal");
		pwaits++;
	}
	return NULL;
}

static void on_alarm(int n)
{
	(void)n;
	signals++;
}

/* Registers that no call and no signal may change: the vector ones and the callee-saved ones. */
static void *registers(void *arg)
{
	for (;;) {
		uint64_t bad = 0;

		__asm__ volatile("mov $0x1234567887654321, %%rbx\n"
				 "mov %%rbx, %%r12\n"
				 "mov %%rbx, %%r13\n"
				 "mov %%rbx, %%r15\n"
				 "mov %%rbx, %%r8\n"
				 "mov %%rbx, %%r9\n"
				 "mov %%rbx, %%rdi\n"
				 "movq %%rbx, %%xmm15\n"
				 "mov $200000, %%r14\n"
				 "1: mov $39, %%eax\n" /* getpid */
				 "test $1023, %%r14\n"
				 "jnz 2f\n"
				 "syscall\n"
				 "2: dec %%r14\n"
				 "jnz 1b\n"
				 "movq %%xmm15, %%rax\n"
				 "xor %%rbx, %%rax\n"
				 "xor %%rbx, %%r12\n"
				 "xor %%rbx, %%r13\n"
				 "xor %%rbx, %%r15\n"
				 "xor %%rbx, %%r8\n"
				 "xor %%rbx, %%r9\n"
				 "xor %%rbx, %%rdi\n"
				 "or %%r12, %%rax\n"
				 "or %%r13, %%rax\n"
				 "or %%r15, %%rax\n"
				 "or %%r8, %%rax\n"
				 "or %%r9, %%rax\n"
				 "or %%rdi, %%rax\n"
				 "mov $0x1234567887654321, %%rcx\n"
				 "xor %%rcx, %%rbx\n"
				 "or %%rbx, %%rax\n"
				 "mov %%rax, %0\n"
				 : "=r"(bad)::"rax", "rbx", "rcx", "rdi", "r8", "r9", "r11", "r12", "r13",
				   "r14", "r15", "xmm15", "memory");
		if (bad)
			die("a register has changed");
		usleep(2000);
	}
	return arg;
}

int main(void)
{
	struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	struct itimerval timer = {{0, 2000}, {0, 2000}};
	struct epoll_event e = {.events = EPOLLIN};
	sigset_t alarm_only;
	pthread_t t;
	static pthread_t pwaiter;
	static int pair[2], watched[2];
	char line[64];

	setvbuf(stdout, NULL, _IONBF, 0);
	limits = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	limits[0].tv_usec = 50000;
	limits[1].tv_sec = 3600;
	mprotect(limits, 4096, PROT_READ);
	event_fd = eventfd(0, EFD_NONBLOCK);
	epoll_quiet = epoll_create1(0);
	epoll_events = epoll_create1(0);
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	socketpair(AF_UNIX, SOCK_STREAM, 0, watched);
	epoll_ctl(epoll_events, EPOLL_CTL_ADD, event_fd, &e);
	sigaction(SIGALRM, &sa, NULL);
	sa.sa_handler = on_usr1;
	sa.sa_flags = 0;
	sigaction(SIGUSR1, &sa, NULL);
	/* Only the main thread takes the timer's signals: EINTR elsewhere is ours. */
	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	sigaddset(&alarm_only, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &alarm_only, NULL);
	void *(*all[])(void *) = {wait_forever, wait_limited, receive_limited, signals_limited,
				  semaphore, naps_and_polls, registers,
				  poll_const, select_const};
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		pthread_create(&t, NULL, all[i], pair);
	pthread_create(&t, NULL, select_event, watched);
	pthread_create(&t, NULL, pwait, &pwaiter);
	while (!*(volatile pthread_t *)&pwaiter)
		usleep(100);
	sigdelset(&alarm_only, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	puts("ready");
	for (;;) {
		ssize_t n = read(0, line, sizeof(line)); /* SA_RESTART: never EINTR */

		if (n < 0)
			die("read");
		if (!n)
			return 0;
		uint64_t one = 1, before = pwaits, before_select;

		if (write(event_fd, &one, 8) != 8)
			die("eventfd");
		before_select = select_events;
		if (write(watched[1], "x", 1) != 1)
			die("write");
		for (int i = 0; select_events == before_select; i++) {
			usleep(100);
			if (i > 300000)
				die("select lost an event");
		}
		pthread_kill(pwaiter, SIGUSR1);
		for (int i = 0; pwaits == before; i++) {
			usleep(100);
			if (i > 300000)
				die("epoll_pwait lost a wake-up");
		}
		printf("{\"timeouts\": %lu, \"events\": %lu, \"signals\": %lu, \"naps\": %lu, "
		       "\"polls\": %lu, \"socket_timeouts\": %lu, \"sig_timeouts\": %lu, "
		       "\"pwaits\": %lu, \"const_polls\": %lu, \"const_selects\": %lu, \"select_events\": %lu}\n",
		       timeouts, events, signals, naps, polls, socket_timeouts, sig_timeouts, pwaits,
		       const_polls, const_selects, select_events);
	}
}
