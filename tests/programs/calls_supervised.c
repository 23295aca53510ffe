/* Calls that another process answers, or another thread. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls.h"

/* What a supervisor has done, in memory that it and the supervised have in common. */
static struct { volatile uint64_t calls, executed, unheard; } *shared;

static void supervise(int fd)
{
	for (;;) {
		struct seccomp_notif n = {0};
		struct seccomp_notif_resp r = {0};

		if (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &n)) {
			must(errno == ENOENT, "ioctl(SECCOMP_IOCTL_NOTIF_RECV)");
			continue;
		}
		nap(60); /* the work is done */
		shared->executed++;
		r.id = n.id;
		r.val = 42;
		if (ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &r))
			shared->unheard++;
	}
}

static int set_filter(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mknod, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {4, code};

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog);
}

static void ask(void)
{
	must(syscall(SYS_mknod, "x", 0, 0) == 42, "mknod");
	shared->calls++;
	if (shared->calls % 4 == 0)
		nap(5); /* the supervisor waits meanwhile, which is no reason not to stop it */
}

static void *asks(void *arg)
{
	int *fd = arg;

	*fd = set_filter();
	if (*fd < 0)
		exit(77);
	for (;;)
		ask();
	return arg;
}

static void answer(int pid)
{
	char line[64];

	printf("ready %d\n", pid);
	while (fgets(line, sizeof(line), stdin))
		printf("{\"calls\": %lu, \"executed\": %lu, \"unheard\": %lu}\n", shared->calls, shared->executed,
		       shared->unheard);
}

int supervised(int own)
{
	static volatile int fd = -1;
	pthread_t t;
	int pid;

	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (own) {
		pthread_create(&t, NULL, asks, (void *)&fd);
		while (fd < 0)
			usleep(100);
		pthread_create(&t, NULL, (void *(*)(void *))(void *)supervise, (void *)(long)fd);
		answer(getpid());
		return 0;
	}
	int lines[2];

	must(!pipe(lines), "pipe");
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		asks((void *)&fd);
	}
	while (!shared->calls && !waitpid(pid, NULL, WNOHANG) && fd < 0) {
		char path[64];

		/* The listener is the only anonymous inode there. */
		for (int i = 3; i < 16 && fd < 0; i++) {
			char to[64] = "";

			snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, i);
			if (readlink(path, to, sizeof(to) - 1) > 0 && strstr(to, "seccomp"))
				fd = syscall(438, syscall(434, pid, 0), i, 0);
		}
		usleep(1000);
	}
	if (fd < 0)
		return 77;
	pthread_create(&t, NULL, (void *(*)(void *))(void *)supervise, (void *)(long)fd);
	answer(pid);
	return 0;
}
