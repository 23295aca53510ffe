/* Programs that sit in one call, again and again, and abort at the first result that the call cannot have without an
 * interruption. "ready PID" is printed when all are at work; for each line read, one line of counters.
 *
 *   calls waits DIR     threads in calls that the kernel restarts, or that are repeated
 *   calls children      fork(2), wait(2), and what copies to another process in parts
 *   calls files DIR     calls on a file system in user space (see fusefs.c)
 *   calls load          bpf(BPF_PROG_LOAD), whose verification takes long
 *   calls allocate      fallocate(2) of memory, which is undone if it is interrupted
 *   calls supervised    calls that a process answers (SECCOMP_RET_USER_NOTIF); the pid is that of the one under the filter
 *   calls own           the same, and a thread of the process itself answers */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "calls.h"

#define MADV_POPULATE_WRITE_ 23
#define LIMIT_NS 20000000

char dir[512];

void die(const char *what)
{
	fprintf(stderr, "noticed: %s: %s\n", what, strerror(errno));
	abort();
}

void must(int right, const char *what)
{
	if (!right)
		die(what);
}

void nap(int ms)
{
	struct timespec ts = {0, ms * 1000000l};

	must(!nanosleep(&ts, NULL), "nanosleep");
}

const char *in_dir(const char *name)
{
	static __thread char path[4][640];
	static __thread int at;

	at = (at + 1) % 4;
	snprintf(path[at], sizeof(path[at]), "%s/%s", dir, name);
	return path[at];
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* Memory: 2 MiB, so that there is something to interrupt. */
static void populate(void)
{
	size_t n = 2 << 20;
	char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(p != MAP_FAILED, "mmap");
	must(!madvise(p, n, MADV_POPULATE_WRITE_) || errno == EINVAL, "madvise(MADV_POPULATE_WRITE)");
	must(!munmap(p, n), "munmap");
	p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	must(p != MAP_FAILED, "mmap(MAP_POPULATE)");
	must(!mlock(p, n), "mlock");
	must(!munmap(p, n), "munmap");
	nap(1);
}

static void forks(void)
{
	int status, pid = fork();

	if (!pid)
		_exit(7);
	must(pid > 0, "fork");
	must(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 7, "waitpid");
	nap(1);
}

/* Two open files, one lock: who waits gets it when the other lets go. */
static void locks_with(int (*lock)(int), int (*unlock)(int), const char *what)
{
	int fd = open(in_dir("lock"), O_RDWR | O_CREAT, 0600);

	must(fd >= 0, "open of a lock");
	must(!lock(fd), what);
	nap(7);
	must(!unlock(fd), what);
	must(!close(fd), "close of a lock");
}

static int ofd(int fd, int type)
{
	struct flock f = {.l_type = type, .l_whence = SEEK_SET};

	return fcntl(fd, F_OFD_SETLKW, &f);
}
static int ofd_lock(int fd) { return ofd(fd, F_WRLCK); }
static int ofd_unlock(int fd) { return ofd(fd, F_UNLCK); }
static int f_lock(int fd) { return flock(fd, LOCK_EX); }
static int f_unlock(int fd) { return flock(fd, LOCK_UN); }
static void record_lock(void) { locks_with(ofd_lock, ofd_unlock, "fcntl(F_OFD_SETLKW)"); }
static void file_lock(void) { locks_with(f_lock, f_unlock, "flock"); }

static pthread_barrier_t both;

static void fifo_end(int flags)
{
	char c = 'x';
	int fd;

	if (flags == O_WRONLY)
		nap(6); /* the other one waits in open(2) */
	fd = open(in_dir("fifo"), flags);
	must(fd >= 0, "open of a FIFO");
	if (flags == O_RDONLY)
		must(read(fd, &c, 1) == 1 && c == 'x', "read of a FIFO");
	else
		must(write(fd, &c, 1) == 1, "write to a FIFO");
	pthread_barrier_wait(&both);
	must(!close(fd), "close of a FIFO");
	pthread_barrier_wait(&both);
}
static void fifo_read(void) { fifo_end(O_RDONLY); }
static void fifo_write(void) { fifo_end(O_WRONLY); }

static void drain(void)
{
	static int slave = -1;

	if (slave < 0) {
		int master = posix_openpt(O_RDWR | O_NOCTTY);

		must(master >= 0 && !grantpt(master) && !unlockpt(master), "posix_openpt");
		slave = open(ptsname(master), O_RDWR | O_NOCTTY);
		must(slave >= 0, "open of a terminal");
	}
	for (int i = 0; i < 200; i++)
		must(!tcdrain(slave), "tcdrain");
	nap(1);
}

static void randoms(void)
{
	static char room[1 << 20];
	size_t got = 0;

	while (got < sizeof(room)) {
		ssize_t n = getrandom(room + got, sizeof(room) - got, 0);

		must(n > 0, "getrandom");
		got += n;
	}
	nap(1);
}

/* 1 MiB through a socket and back through a pipe, with readers that are slow; parts are right, errors are not. */
static void copies(void)
{
	static char room[1 << 16];
	static int from = -1;
	int pair[2], pipes[2], status;
	size_t size = 1 << 20, got = 0;
	off_t at = 0;

	if (from < 0) {
		from = memfd_create("copies", 0);
		must(from >= 0 && !ftruncate(from, size), "memfd_create");
	}
	must(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair) && !pipe(pipes), "socketpair");
	int pid = fork();

	must(pid >= 0, "fork");
	if (!pid) {
		loff_t in = 0;

		prctl(PR_SET_PDEATHSIG, SIGKILL); /* it holds both ends of the pipe */

		while ((size_t)at < size)
			must(sendfile(pair[1], from, &at, size - at) > 0, "sendfile");
		while ((size_t)in < size)
			must(splice(from, &in, pipes[1], NULL, size - in, 0) > 0, "splice");
		_exit(0);
	}
	for (; got < 2 * size; usleep(300)) {
		ssize_t n = got < size ? read(pair[0], room, sizeof(room)) : read(pipes[0], room, sizeof(room));

		must(n > 0, "read of what was copied");
		got += n;
	}
	must(waitpid(pid, &status, 0) == pid && !status, "the copier");
	for (int i = 0; i < 2; i++)
		must(!close(pair[i]) && !close(pipes[i]), "close");
}

static int queue = -1;

static void msg_send(void)
{
	struct { long type; char text[64]; } m = {1, "text"};

	for (int i = 0; i < 400; i++) /* more than the queue has room for */
		must(!msgsnd(queue, &m, sizeof(m.text), 0), "msgsnd");
}

static void msg_receive(void)
{
	struct { long type; char text[64]; } m;

	for (int i = 0; i < 20; i++)
		must(msgrcv(queue, &m, sizeof(m.text), 0, 0) == sizeof(m.text) && !strcmp(m.text, "text"), "msgrcv");
	nap(1);
}

/* Nothing comes: each must end by its limit. */
static void limits(void)
{
	static int quiet = -1, word;
	struct timespec limit = {0, LIMIT_NS}, then;
	struct epoll_event e;
	double t = now();
	int n = 0;

	if (quiet < 0)
		quiet = epoll_create1(0);
	must(!syscall(441, quiet, &e, 1, &limit, NULL, 8), "epoll_pwait2"), n++;
	must(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &limit) == -1 && errno == ETIMEDOUT, "futex"), n++;
	clock_gettime(CLOCK_MONOTONIC, &then);
	then.tv_nsec += LIMIT_NS;
	then.tv_sec += then.tv_nsec / 1000000000;
	then.tv_nsec %= 1000000000;
	must(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &then, NULL, ~0) == -1 && errno == ETIMEDOUT,
	     "futex until"), n++;
	must(!clock_nanosleep(CLOCK_MONOTONIC, 0, &limit, NULL), "clock_nanosleep"), n++;
	must(now() - t >= n * LIMIT_NS / 1e9 - 1e-4, "a call ended before its limit");
}

static void aio_limit(void)
{
	static aio_context_t context;
	struct timespec limit = {0, LIMIT_NS};
	struct io_event event;
	double t = now();

	must(context || !syscall(SYS_io_setup, 1, &context), "io_setup");
	must(!syscall(SYS_io_getevents, context, 1, 1, &event, &limit), "io_getevents");
	must(now() - t >= LIMIT_NS / 1e9, "io_getevents ended before its limit");
}

static void ring_limit(void)
{
	struct { uint64_t sigmask; uint32_t size, pad; uint64_t ts; } arg = {.size = 8};
	static int ring = -1;
	struct timespec limit = {0, LIMIT_NS};
	double t = now();

	arg.ts = (uintptr_t)&limit;
	if (ring == -1) {
		struct io_uring_params params = {0};

		ring = syscall(425, 1, &params);
		if (ring < 0)
			ring = -2; /* kernel.io_uring_disabled */
	}
	if (ring < 0)
		return nap(1);
	/* IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG */
	must(syscall(426, ring, 0, 1, 1 | 8, &arg, sizeof(arg)) == -1 && errno == ETIME, "io_uring_enter");
	must(now() - t >= LIMIT_NS / 1e9, "io_uring_enter ended before its limit");
}

static void timer(void)
{
	struct itimerspec in = {.it_value = {0, 9000000}};
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	uint64_t n;

	must(fd >= 0 && !timerfd_settime(fd, 0, &in, NULL), "timerfd");
	must(read(fd, &n, 8) == 8 && n >= 1, "read of a timerfd");
	must(!close(fd), "close of a timerfd");
}

static int event = -1, watch = -1, listener = -1;
static struct sockaddr_un address = {AF_UNIX, ""};

static void events_out(void)
{
	uint64_t one = 1;

	nap(9);
	must(write(event, &one, 8) == 8, "write of an eventfd");
	must(!chmod(in_dir("lock"), 0600), "chmod");
}

static void events_in(void)
{
	struct inotify_event e;
	uint64_t n;

	must(read(event, &n, 8) == 8, "read of an eventfd");
	must(read(watch, &e, sizeof(e)) == sizeof(e), "read of inotify");
}

static void connects(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	char c;

	must(fd >= 0 && !connect(fd, (void *)&address, sizeof(address)), "connect");
	must(recv(fd, &c, 1, 0) == 1, "recv");
	must(!close(fd), "close of a socket");
}

static void accepts(void)
{
	int fd = accept(listener, NULL, NULL);

	must(fd >= 0, "accept");
	nap(4);
	must(send(fd, "x", 1, 0) == 1, "send");
	must(!close(fd), "close of a socket");
}

static void prepare_waits(void)
{
	queue = msgget(IPC_PRIVATE, 0600);
	must(queue >= 0, "msgget");
	pthread_barrier_init(&both, NULL, 2);
	must(!mkfifo(in_dir("fifo"), 0600), "mkfifo");
	must(close(open(in_dir("lock"), O_RDWR | O_CREAT, 0600)) == 0, "lock");
	event = eventfd(0, 0);
	watch = inotify_init1(0);
	must(inotify_add_watch(watch, in_dir("lock"), IN_ATTRIB) >= 0, "inotify_add_watch");
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/s", open(dir, O_PATH));
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	must(!bind(listener, (void *)&address, sizeof(address)) && !listen(listener, 1), "listen");
}

static struct counter waits[] = {
	{"populate", populate, 0}, {"record_lock", record_lock, 0}, {"record_lock_too", record_lock, 0},
	{"file_lock", file_lock, 0}, {"file_lock_too", file_lock, 0}, {"fifo_read", fifo_read, 0},
	{"fifo_write", fifo_write, 0}, {"drain", drain, 0}, {"randoms", randoms, 0},
	{"msg_send", msg_send, 0}, {"msg_receive", msg_receive, 0}, {"limits", limits, 0}, {"aio_limit", aio_limit, 0},
	{"ring_limit", ring_limit, 0}, {"timer", timer, 0}, {"events_out", events_out, 0}, {"events_in", events_in, 0},
	{"connects", connects, 0}, {"accepts", accepts, 0}, {NULL, NULL, 0},
};

/* Apart: a child inherits descriptors of all threads, and a FIFO has a writer as long as one has it open. */
static struct counter children[] = {{"forks", forks, 0}, {"copies", copies, 0}, {NULL, NULL, 0}};

static void *run(void *arg)
{
	struct counter *c = arg;

	for (;;) {
		c->once();
		c->n++;
	}
	return arg;
}

static int work(struct counter *all)
{
	char line[64];
	pthread_t t;

	for (struct counter *c = all; c->name; c++)
		pthread_create(&t, NULL, run, c);
	for (struct counter *c = all; c->name; c++)
		while (!c->n)
			usleep(1000);
	printf("ready %d\n", getpid());
	while (fgets(line, sizeof(line), stdin)) {
		for (struct counter *c = all; c->name; c++)
			printf("%s\"%s\": %lu", c == all ? "{" : ", ", c->name, c->n);
		printf("}\n");
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	snprintf(dir, sizeof(dir), "%s", argc > 2 ? argv[2] : ".");
	if (!strcmp(what, "waits")) {
		prepare_waits();
		return work(waits);
	}
	if (!strcmp(what, "children"))
		return work(children);
	if (!strcmp(what, "files"))
		return work(on_files);
	if (!strcmp(what, "load"))
		return work(on_load);
	if (!strcmp(what, "allocate"))
		return work(on_allocate);
	return strcmp(what, "supervised") && strcmp(what, "own") ? 2 : supervised(!strcmp(what, "own"));
}
