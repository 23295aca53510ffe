/* Members that are about what becomes of system calls: user dispatch, filters, the strict mode. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "own_calls.h"

/* Syscall user dispatch: a call of this program's is to become SIGSYS. */
static volatile char selector;

static void on_sys(int number, siginfo_t *info, void *context)
{
	ucontext_t *u = context;

	(void)number, (void)info;
	selector = 0;
	u->uc_mcontext.gregs[REG_RAX] = 42;
}

static long foreign_call(void)
{
	long r;

	__asm__ volatile("syscall" : "=a"(r) : "0"(0xdeadl) : "rcx", "r11", "memory");
	return r;
}

int dispatch_setup(void)
{
	struct sigaction sa = {.sa_sigaction = on_sys, .sa_flags = SA_SIGINFO};

	sigaction(SIGSYS, &sa, NULL);
	return prctl(59, 1, 0, 0, &selector) ? UNSUPPORTED : 0; /* PR_SET_SYSCALL_USER_DISPATCH */
}

void dispatch_round(void)
{
	selector = 1;
	spin();
	check(foreign_call() == 42, "a call was not dispatched");
}

/* A filter, of this thread only or of both. */
static int filter_with(unsigned flags)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog prog = {5, code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog))
		return UNSUPPORTED;
	return 0;
}

int filter_setup(void)
{
	return filter_with(0);
}

int filters_setup(void)
{
	return filter_with(SECCOMP_FILTER_FLAG_TSYNC);
}

void filter_round(void)
{
	nap(3000);
	check(!poll(NULL, 0, 3), "poll");
}

static int null;

int strict_setup(void)
{
	null = open("/dev/null", O_WRONLY);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) ? UNSUPPORTED : 0;
}

void strict_round(void)
{
	spin();
	if (write(null, "", 1) != 1)
		noticed("write");
}
