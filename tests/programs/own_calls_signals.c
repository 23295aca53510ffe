/* Members that are about signals: their handlers, masks and stacks, and those of a thread's own instructions. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "own_calls.h"

/* Handlers, blocked and ignored signals that ours could meet. */
static struct sigaction actions[65];
static sigset_t mask;

static void take_signals(void)
{
	for (int i = 1; i < 65; i++)
		sigaction(i, NULL, &actions[i]);
	sigprocmask(SIG_SETMASK, NULL, &mask);
}

static void same_signals(void)
{
	struct sigaction now;
	sigset_t blocked;

	for (int i = 1; i < 65; i++)
		if (!sigaction(i, NULL, &now))
			check(now.sa_handler == actions[i].sa_handler && now.sa_flags == actions[i].sa_flags,
			      "the action of a signal");
	sigprocmask(SIG_SETMASK, NULL, &blocked);
	for (int i = 1; i < 65; i++)
		check(sigismember(&blocked, i) == sigismember(&mask, i), "the signal mask");
}

int signals_setup(void)
{
	siginfo_t own = {.si_signo = SIGSEGV, .si_code = SEGV_MAPERR};
	sigset_t some;

	signal(SIGTRAP, count);
	signal(SIGSYS, SIG_IGN);
	signal(SIGCHLD, count);
	signal(SIGSEGV, count);
	sigemptyset(&some);
	sigaddset(&some, SIGSEGV);
	sigaddset(&some, SIGBUS);
	sigprocmask(SIG_BLOCK, &some, NULL);
	take_signals();
	/* Blocked and pending all the time, although it looks like an instruction's. */
	return syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGSEGV, &own) ? UNSUPPORTED : 0;
}

void signals_round(void)
{
	same_signals();
	check(!signals, "a signal came");
	spin();
}

/* An alternate stack of the least size, used all the time. */
static uint8_t *alternate;
static size_t alternate_size;

int alternate_setup(void)
{
	struct sigaction sa = {.sa_handler = count, .sa_flags = SA_ONSTACK};
	struct itimerval every = {{0, 500}, {0, 500}};
	stack_t ss = {0};

	/* What a signal's frame needs on this processor, or what sigaltstack(2) takes. */
	alternate_size = sysconf(_SC_MINSIGSTKSZ);
	if (alternate_size < 2048)
		alternate_size = 2048;
	alternate = calloc(3, alternate_size);
	ss.ss_sp = alternate + alternate_size;
	ss.ss_size = alternate_size;
	sigaction(SIGALRM, &sa, NULL);
	return sigaltstack(&ss, NULL) || setitimer(ITIMER_REAL, &every, NULL) ? UNSUPPORTED : 0;
}

void alternate_round(void)
{
	spin();
	for (size_t i = 0; i < alternate_size; i++)
		check(!alternate[i] && !alternate[2 * alternate_size + i], "beside the alternate stack");
}

/* Inside of a handler, with the mask of it. */
static void in_handler(int number)
{
	sigset_t now;

	spin();
	sigprocmask(SIG_SETMASK, NULL, &now);
	check(sigismember(&now, number) && sigismember(&now, SIGUSR2), "the mask of a handler");
}

int handler_setup(void)
{
	struct sigaction sa = {.sa_handler = in_handler};

	sigaddset(&sa.sa_mask, SIGUSR2);
	sigaction(SIGUSR1, &sa, NULL);
	return 0;
}

void handler_round(void)
{
	raise(SIGUSR1);
}

/* sigsuspend: the mask of the call and the one after it. */
int suspend_setup(void)
{
	struct itimerval every = {{0, 700}, {0, 700}};
	sigset_t alarm;

	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	sigprocmask(SIG_BLOCK, &alarm, NULL);
	signal(SIGALRM, count);
	take_signals();
	return setitimer(ITIMER_REAL, &every, NULL) ? UNSUPPORTED : 0;
}

void suspend_round(void)
{
	sigset_t none;
	int before = signals;

	sigemptyset(&none);
	check(sigsuspend(&none) == -1 && errno == EINTR && signals > before, "sigsuspend without its signal");
	same_signals();
}

/* A thread that steps itself. */
static int steps(void)
{
	signals = 0;
	__asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq\n\t"
			 "movl $200, %%ecx\n"
			 "1: decl %%ecx; jnz 1b\n\t"
			 "pushfq; andl $~0x100, (%%rsp); popfq" ::: "rcx", "memory", "cc");
	return signals;
}

static int expected;

int step_setup(void)
{
	signal(SIGTRAP, count);
	expected = steps();
	return expected > 400 ? 0 : UNSUPPORTED;
}

void step_round(void)
{
	check(steps() == expected, "the number of single steps");
}

/* Signals of this thread's own instructions: each comes once, for its instruction and for no other. */
static volatile sig_atomic_t due;
static void *volatile after;
static char *cut_off;
static int trapped;

static void on_fault(int number, siginfo_t *info, void *context)
{
	ucontext_t *u = context;

	check(number == due && info->si_code > 0, "a signal of an instruction that was not executed");
	due = 0;
	u->uc_mcontext.gregs[REG_RIP] = (uintptr_t)after;
}

int faults_setup(void)
{
	static const int all[] = {SIGTRAP, SIGILL, SIGFPE, SIGSEGV, SIGBUS, SIGSYS};
	struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	FILE *f = tmpfile();

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		sigaction(all[i], &sa, NULL);
	cut_off = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(f), 0);
	return cut_off == MAP_FAILED ? UNSUPPORTED : 0;
}

/* With one more: a filter of seccomp(2) that answers with SIGSYS. */
int trap_setup(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xdead, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {4, code};

	trapped = 1;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog))
		return UNSUPPORTED;
	return faults_setup();
}

#define FAULT(signal, instruction)                                                                           \
	do {                                                                                                 \
		due = signal;                                                                                \
		__asm__ volatile("leaq 1f(%%rip), %%rcx\n\tmovq %%rcx, %[after]\n\t" instruction "\n1:"       \
				 : [after] "=m"(after)                                                       \
				 : [cut_off] "r"(cut_off), "a"(0xdead)                                       \
				 : "rcx", "rdx", "r11", "memory", "cc");                                     \
		check(!due, "an instruction without its signal");                                            \
	} while (0)

void faults_round(void)
{
	for (int i = 0; i < 50; i++) {
		FAULT(SIGTRAP, "int3");
		FAULT(SIGTRAP, ".byte 0xf1"); /* int1 */
		FAULT(SIGILL, "ud2");
		FAULT(SIGFPE, "xorl %%ecx, %%ecx; cltd; divl %%ecx");
		FAULT(SIGSEGV, "xorl %%ecx, %%ecx; movl $1, (%%rcx)");
		FAULT(SIGSEGV, "movq $-1, %%rcx; shrq $1, %%rcx; movl $1, (%%rcx)"); /* no such address */
		FAULT(SIGBUS, "movb $1, (%[cut_off])");
		if (trapped)
			FAULT(SIGSYS, "syscall");
	}
}
