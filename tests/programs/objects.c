/* Makes kernel objects of the kinds that its arguments name, says which of them it has, and changes them when asked:
 * "change" has it do to each what programs do to it. "wait" keeps it from reading what it is asked for next. */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <mqueue.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/msg.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "objects.h"

static int silent_pipe(int step)
{
	static int ends[2];
	char byte = 1;

	if (step == MAKE)
		return pipe(ends);
	return write(ends[1], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1;
}

static int fifo(int step)
{
	static int fd;
	char byte = 1;

	if (step == MAKE)
		return mkfifo("fifo", 0600) || (fd = open("fifo", O_RDWR)) < 0;
	return write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1;
}

static int unix_socket(int step)
{
	static int ends[2];
	char byte = 1;

	if (step == MAKE)
		return socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
	return send(ends[1], &byte, 1, 0) != 1 || recv(ends[0], &byte, 1, 0) != 1;
}

static int event(int step)
{
	static int fd;

	return step == MAKE ? (fd = eventfd(0, 0)) < 0 : eventfd_write(fd, 17);
}

static int timer_descriptor(int step)
{
	struct itimerspec when = {.it_value.tv_sec = step == MAKE ? 1000 : 2000};
	static int fd;

	if (step == MAKE && (fd = timerfd_create(CLOCK_MONOTONIC, 0)) < 0)
		return -1;
	return timerfd_settime(fd, 0, &when, NULL);
}

static int periodic(int step)
{
	struct itimerspec when = {.it_value.tv_nsec = 1, .it_interval.tv_nsec = step == MAKE ? 10000000 : 20000000};
	static int fd;

	if (step == MAKE && (fd = timerfd_create(CLOCK_MONOTONIC, 0)) < 0)
		return -1;
	return timerfd_settime(fd, 0, &when, NULL);
}

static int signal_descriptor(int step)
{
	static int fd = -1;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, step == MAKE ? SIGWINCH : SIGURG);
	fd = signalfd(fd, &set, 0);
	return fd < 0;
}

static int epoll(int step)
{
	struct epoll_event watched = {.events = EPOLLIN};
	static int fd;

	return step == MAKE ? (fd = epoll_create1(0)) < 0 : epoll_ctl(fd, EPOLL_CTL_ADD, 0, &watched);
}

static int inotify(int step)
{
	static int fd;

	return step == MAKE ? (fd = inotify_init1(0)) < 0 : inotify_add_watch(fd, ".", IN_CREATE) < 0;
}

static int fanotify(int step)
{
	static int fd;

	if (step == MAKE)
		return (fd = fanotify_init(FAN_CLASS_NOTIF, 0)) < 0;
	return fanotify_mark(fd, FAN_MARK_ADD, FAN_CLOSE_WRITE, AT_FDCWD, ".");
}

static int offset(int step)
{
	static int fd;

	return step == MAKE ? (fd = open("/proc/self/exe", O_RDONLY)) < 0 : lseek(fd, 7, SEEK_SET) != 7;
}

static int flags(int step)
{
	static int fd;

	return step == MAKE ? (fd = open("/", O_RDONLY)) < 0 : fcntl(fd, F_SETFL, O_NONBLOCK);
}

static int whole_lock(int step)
{
	static int fd;

	return step == MAKE ? (fd = open("lock", O_CREAT | O_RDWR, 0600)) < 0 : flock(fd, LOCK_EX);
}

static int range_lock(int step)
{
	struct flock range = {.l_type = F_WRLCK, .l_len = 10};
	static int fd;

	return step == MAKE ? (fd = open("range", O_CREAT | O_RDWR, 0600)) < 0 : fcntl(fd, F_SETLK, &range);
}

static int pid_descriptor(int step)
{
	static pid_t child;

	if (step == CHANGE)
		return kill(child, SIGKILL) || waitpid(child, NULL, 0) != child;
	child = fork();
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
	}
	return child < 0 || syscall(SYS_pidfd_open, child, 0) < 0;
}

static int queue(int step)
{
	struct mq_attr attr = {.mq_maxmsg = 2, .mq_msgsize = 8};
	static mqd_t fd;
	char name[32];

	if (step == CHANGE)
		return mq_send(fd, "message", 7, 0);
	snprintf(name, sizeof(name), "/objects-%d", getpid());
	fd = mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, &attr);
	return fd < 0 || mq_unlink(name);
}

static int old_queue = -1;

static void remove_old_queue(void)
{
	msgctl(old_queue, IPC_RMID, NULL);
}

static int message(int step)
{
	struct {
		long type;
		char text[8];
	} m = {1, "message"};

	if (step == MAKE && (old_queue = msgget(IPC_PRIVATE, IPC_CREAT | 0600)) >= 0)
		atexit(remove_old_queue);
	return msgsnd(old_queue, &m, 8, 0);
}

static int opened(int step)
{
	return step == MAKE ? 0 : open("/dev/full", O_RDONLY) < 0;
}

static int closed(int step)
{
	static int fd;

	return step == MAKE ? (fd = open("/dev/random", O_RDONLY)) < 0 : close(fd);
}

static int replaced(int step)
{
	static int fd;

	if (step == MAKE)
		return (fd = open("/dev/null", O_RDONLY)) < 0;
	return dup2(0, fd) < 0;
}

static int posix_timer(int step)
{
	struct sigevent none = {.sigev_notify = SIGEV_NONE};
	timer_t id;

	return step == MAKE ? 0 : timer_create(CLOCK_MONOTONIC, &none, &id);
}

static void handler(int number)
{
	(void)number;
}

static int action(int step)
{
	return step == MAKE ? 0 : signal(SIGUSR1, handler) == SIG_ERR || signal(SIGWINCH, SIG_IGN) == SIG_ERR;
}

static int pending(int step)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return step == MAKE ? sigprocmask(SIG_BLOCK, &set, NULL) : kill(getpid(), SIGUSR2);
}

static int mask(int step)
{
	umask(step == MAKE ? 022 : 077);
	return 0;
}

static int directory(int step)
{
	return step == MAKE ? 0 : chdir("/usr");
}

static int root(int step)
{
	return step == MAKE ? 0 : chroot("/usr");
}

static int limit(int step)
{
	struct rlimit l;

	if (step == MAKE)
		return 0;
	getrlimit(RLIMIT_CORE, &l);
	l.rlim_cur = 4096;
	return setrlimit(RLIMIT_CORE, &l);
}

static int priority(int step)
{
	return step == MAKE ? 0 : setpriority(PRIO_PROCESS, 0, 3);
}

static int policy(int step)
{
	struct sched_param none = {0};

	return step == MAKE ? 0 : sched_setscheduler(0, SCHED_BATCH, &none);
}

static int processors(int step)
{
	cpu_set_t set;

	if (step == MAKE)
		return 0;
	sched_getaffinity(0, sizeof(set), &set);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &set) && CPU_COUNT(&set) > 1)
			CPU_CLR(i, &set);
	return sched_setaffinity(0, sizeof(set), &set);
}

static int name(int step)
{
	return step == MAKE ? 0 : prctl(PR_SET_NAME, "another");
}

static int killed_first(int step)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY);

	return fd < 0 || write(fd, step == MAKE ? "0" : "500", step == MAKE ? 1 : 3) < 0 || close(fd);
}

static int persona(int step)
{
	return step == MAKE ? 0 : personality(ADDR_NO_RANDOMIZE) < 0;
}

static int child(int step)
{
	pid_t pid = step == MAKE ? 1 : fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
	}
	return pid < 0;
}

static int capability(int step)
{
	return step == MAKE ? 0 : prctl(PR_CAPBSET_DROP, 22); /* CAP_SYS_BOOT */
}

static int groups(int step)
{
	gid_t one = 12345;

	return step == MAKE ? 0 : setgroups(1, &one);
}

static int privileges(int step)
{
	return step == MAKE ? 0 : prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static int space(int step)
{
	return step == MAKE ? 0 : unshare(CLONE_NEWUTS);
}

#define KIND(f) {#f, f}
static const struct {
	const char *name;
	int (*step)(int);
} kinds[] = {
	KIND(io_uring), KIND(aio), KIND(perf), KIND(packet), KIND(bpf), KIND(kvm), KIND(secret), KIND(uring_gone),
	KIND(silent_pipe), KIND(fifo), KIND(unix_socket), KIND(event), KIND(timer_descriptor), KIND(periodic), KIND(signal_descriptor),
	KIND(epoll), KIND(inotify), KIND(fanotify), KIND(offset), KIND(flags), KIND(whole_lock), KIND(range_lock),
	KIND(pid_descriptor), KIND(queue), KIND(message), KIND(opened), KIND(closed), KIND(replaced), KIND(posix_timer),
	KIND(action), KIND(pending), KIND(mask), KIND(directory), KIND(limit), KIND(priority), KIND(policy),
	KIND(processors), KIND(name), KIND(killed_first), KIND(persona), KIND(child), KIND(capability), KIND(groups),
	KIND(privileges), KIND(space), KIND(root),
};

static void each(char **names, int step)
{
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		for (char **wanted = names; *wanted; wanted++)
			if (!strcmp(*wanted, kinds[i].name) && (errno = 0, kinds[i].step(step)))
				printf("no %s: %s\n", *wanted, strerror(errno));
}

int main(int argc, char **argv)
{
	char line[16];

	(void)argc;
	each(argv + 1, MAKE);
	puts("ready");
	fflush(stdout);
	while (read(0, line, sizeof(line)) > 0 && strncmp(line, "end", 3)) {
		if (line[0] == 'c')
			each(argv + 1, CHANGE);
		puts("done");
		fflush(stdout);
		if (line[0] == 'w')
			pause();
	}
	return 0;
}
