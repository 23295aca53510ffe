/* own_calls MEMBER [files]: the first thread sets up something about its own system calls, signals or registers, says
 * "ready" and works on, round by round; each round checks that nothing of it has changed. A second thread answers each
 * byte of the input with the number of rounds; `files`: it has descriptors of its own, unshare(2). What is noticed ends
 * the program with a word about it. 77: not to be had here. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <linux/hw_breakpoint.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "own_calls.h"

static volatile unsigned long rounds;
volatile sig_atomic_t signals;

void noticed(const char *what)
{
	dprintf(1, "noticed: %s (errno %d)\n", what, errno);
	_exit(9);
}

void check(int right, const char *what)
{
	if (!right)
		noticed(what);
}

void spin(void)
{
	for (volatile int i = 0; i < SPIN; i++)
		;
}

static volatile int own_files;

static void *answer(void *unused)
{
	char c;

	if (own_files && (unshare(CLONE_FILES) || open("/dev/null", O_RDONLY) < 0 || open("/dev/null", O_RDONLY) < 0))
		_exit(2);
	own_files = 0;

	while (read(0, &c, 1) == 1)
		dprintf(1, "%lu\n", rounds);
	_exit(0);
	return unused;
}

void count(int number)
{
	(void)number;
	signals++;
}

void nap(long us)
{
	struct timespec ts = {0, us * 1000};

	check(!syscall(SYS_nanosleep, &ts, NULL), "nanosleep");
}

/* rseq(2): who is inside of a section must not see rseq_cs cleared, but be aborted. */
static uint64_t *rseq_cs;

static int rseq_setup(void)
{
	struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	rseq_cs = (uint64_t *)(uintptr_t)((char *)area + offsetof(struct rseq, rseq_cs));
	return __rseq_size && (int)area->cpu_id >= 0 ? 0 : UNSUPPORTED;
}

static void section(uint64_t n)
{
	__asm__ volatile goto(".pushsection __rseq_cs, \"aw\"\n\t.balign 32\n"
			      "3:\t.long 0, 0\n\t.quad 1f, (2f - 1f), 4f\n\t.popsection\n\t"
			      "leaq 3b(%%rip), %%rax\n\t"
			      "movq %%rax, (%[cs])\n"
			      "1:\tcmpq $0, (%[cs])\n\t"
			      "je 5f\n\t"
			      "decq %[n]\n\t"
			      "jnz 1b\n"
			      "2:\tjmp %l[left]\n"
			      "5:\tjmp %l[lost]\n\t"
			      ".pushsection __rseq_failure, \"ax\"\n\t"
			      ".byte 0x0f, 0xb9, 0x3d\n\t.long 0x53053053\n"
			      "4:\tjmp %l[left]\n\t.popsection"
			      : [n] "+r"(n)
			      : [cs] "r"(rseq_cs)
			      : "rax", "memory", "cc"
			      : left, lost);
left:
	*(volatile uint64_t *)rseq_cs = 0;
	return;
lost:
	noticed("rseq_cs was cleared inside of a section that was not aborted");
}

static void rseq_round(void)
{
	section(50000000);
}

/* A thread that registers with rseq(2) itself, takes that back, and does so again: twice in a row is an error. */
static struct rseq own_area __attribute__((aligned(32))) = {.cpu_id = -1};

static int registration_setup(void)
{
	rseq_cs = (uint64_t *)&own_area.rseq_cs;
	if (!__rseq_size)
		return 0;
	setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0", 1);
	execl("/proc/self/exe", "own_calls", "registration", NULL);
	return UNSUPPORTED;
}

static void registration_round(void)
{
	check(!syscall(SYS_rseq, &own_area, 32, 0, 0x53053053), "it was registered already");
	spin();
	check((int)own_area.cpu_id >= 0, "the number of the processor");
	section(400000);
	check(!syscall(SYS_rseq, &own_area, 32, RSEQ_FLAG_UNREGISTER, 0x53053053), "it was not registered any more");
	check((int)own_area.cpu_id == -1, "a number of the processor that nobody keeps");
	spin();
	check((int)own_area.cpu_id == -1, "a number of the processor that nobody has asked for");
}

/* No descriptor is left; `limit`: the limit is a hard one. */
static struct rlimit limit_is = {32, 32};

static int limit_setup(void)
{
	setrlimit(RLIMIT_NOFILE, &limit_is);
	while (open("/dev/null", O_RDONLY) >= 0)
		;
	return errno == EMFILE ? 0 : UNSUPPORTED;
}

static int soft_limit_setup(void)
{
	limit_is.rlim_max = 4096;
	return limit_setup();
}

static void limit_round(void)
{
	struct rlimit now;

	getrlimit(RLIMIT_NOFILE, &now);
	check(!memcmp(&now, &limit_is, sizeof(now)), "the limit has changed");
	check(open("/dev/null", O_RDONLY) < 0 && errno == EMFILE, "a descriptor is free");
	nap(500);
}

/* No vdso to find a syscall instruction in. */
static int no_vdso_setup(void)
{
	char line[256];
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned long start, end, found = 0;

	while (fgets(line, sizeof(line), f))
		if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			found = !munmap((void *)start, end - start);
	fclose(f);
	return found ? 0 : UNSUPPORTED;
}

static void nap_round(void)
{
	nap(500);
}

/* A breakpoint of the processor's, which counts. */
static int counter;
static uint64_t hits;

__attribute__((noinline)) static void hit(void)
{
	__asm__ volatile("" ::: "memory");
	hits++;
}

static int breakpoint_setup(void)
{
	struct perf_event_attr attr = {.type = PERF_TYPE_BREAKPOINT, .size = sizeof(attr), .bp_type = HW_BREAKPOINT_X,
				       .bp_addr = (uintptr_t)hit, .bp_len = sizeof(long), .exclude_kernel = 1};

	counter = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	return counter < 0 ? UNSUPPORTED : 0;
}

static void breakpoint_round(void)
{
	uint64_t counted;

	for (int i = 0; i < 200; i++)
		hit();
	if (read(counter, &counted, 8) != 8)
		noticed("read of the counter");
	check(counted == hits, "hits of a breakpoint");
}

/* Calls by int 0x80 from 64-bit code: other numbers, and a restart of another kind. */
static int32_t *low;

static int compat_call(int number, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
	int r;
	register uint64_t si __asm__("rsi") = d;

	__asm__ volatile("int $0x80"
			 : "=a"(r)
			 : "0"(number), "b"(a), "c"(b), "d"(c), "r"(si)
			 : "memory", "r8", "r9", "r10", "r11");
	return r;
}

static int compat_setup(void)
{
	low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	return low != MAP_FAILED && compat_call(20, 0, 0, 0, 0) == getpid() ? 0 : UNSUPPORTED;
}

static void compat_round(void)
{
	struct timespec a, b;

	low[0] = 0;
	low[1] = 4000000;
	low[2] = 7;
	clock_gettime(CLOCK_MONOTONIC, &a);
	check(compat_call(162, (uintptr_t)low, 0, 0, 0) == 0, "nanosleep by int 0x80");
	check(compat_call(240, (uintptr_t)(low + 2), 0, 7, (uintptr_t)low) == -ETIMEDOUT, "futex by int 0x80");
	clock_gettime(CLOCK_MONOTONIC, &b);
	check((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec >= 8000000, "calls by int 0x80 ended early");
}

/* Code of 32 bits in a process of 64. */
static struct {
	uint32_t offset;
	uint16_t segment;
} __attribute__((packed)) *far32;

static int code32_setup(void)
{
	static const uint8_t text[] = {
		0xb9, 0x00, 0x09, 0x3d, 0x00, /* mov ecx, 4000000 */
		0x49,                         /* 1: dec ecx: a REX prefix, if this were code of 64 bits */
		0x75, 0xfd,                   /* jnz 1b */
		0xcb,                         /* lret */
		0x41, 0xff, 0xe5,             /* 64 bits again: jmp *r13 */
	};
	uint8_t *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	if (page == MAP_FAILED)
		return UNSUPPORTED;
	memcpy(page, text, sizeof(text));
	far32 = (void *)(page + 2048);
	far32->offset = (uintptr_t)page;
	far32->segment = 0x23;
	return 0;
}

static void code32_round(void)
{
	uint64_t stack = (uintptr_t)far32 + 4096, back = far32->offset + 9;
	uint32_t left = 1;

	/* The stack and the way back have to be where 32 bits reach; lret takes 32-bit words. */
	__asm__ volatile("movq %%rsp, %%r12\n\t"
			 "movq %[stack], %%rsp\n\t"
			 "subq $8, %%rsp\n\t"
			 "leaq 2f(%%rip), %%r13\n\t"
			 "movl $0x33, 4(%%rsp)\n\t"
			 "movl %k[back], (%%rsp)\n\t"
			 "ljmpl *(%[far])\n"
			 "2:\tmovq %%r12, %%rsp"
			 : "=c"(left)
			 : [stack] "r"(stack), [far] "r"(far32), [back] "r"(back)
			 : "r12", "r13", "memory", "cc");
	check(!left, "code of 32 bits");
}

/* Registers, the red zone below the stack, the direction flag. */
static void registers_round(void)
{
	uint64_t bad;

	__asm__ volatile("movq $0x1111, %%r8; movq $0x2222, %%r9; movq $0x3333, %%r10; movq $0x4444, %%r11\n\t"
			 "movq $0x5555, %%rdi; movq $0x6666, %%rsi; movq $0x7777, %%rdx\n\t"
			 "movq %%r8, %%xmm0; movq %%r9, %%xmm15\n\t"
			 "movq %%r10, -8(%%rsp); movq %%r11, -128(%%rsp)\n\t"
			 "movl $3000000, %%ecx; std\n"
			 "1: decl %%ecx; jnz 1b\n\t"
			 "xorl %%eax, %%eax\n\t"
			 "cmpq $0x3333, -8(%%rsp); setne %%al; movq %%rax, %%rcx\n\t"
			 "cmpq $0x4444, -128(%%rsp); setne %%al; orq %%rax, %%rcx\n\t"
			 "cmpq $0x1111, %%r8; setne %%al; orq %%rax, %%rcx\n\t"
			 "cmpq $0x2222, %%r9; setne %%al; orq %%rax, %%rcx\n\t"
			 "cmpq $0x3333, %%r10; setne %%al; orq %%rax, %%rcx\n\t"
			 "cmpq $0x4444, %%r11; setne %%al; orq %%rax, %%rcx\n\t"
			 "cmpq $0x5555, %%rdi; setne %%al; orq %%rax, %%rcx\n\t"
			 "cmpq $0x6666, %%rsi; setne %%al; orq %%rax, %%rcx\n\t"
			 "cmpq $0x7777, %%rdx; setne %%al; orq %%rax, %%rcx\n\t"
			 "movq %%xmm0, %%rax; cmpq $0x1111, %%rax; movl $0, %%eax; setne %%al; orq %%rax, %%rcx\n\t"
			 "movq %%xmm15, %%rax; cmpq $0x2222, %%rax; movl $0, %%eax; setne %%al; orq %%rax, %%rcx\n\t"
			 "subq $256, %%rsp; pushfq; popq %%rax; addq $256, %%rsp; cld\n\t"
			 "testl $0x400, %%eax; movl $0, %%eax; sete %%al; orq %%rax, %%rcx"
			 : "=c"(bad)
			 :
			 : "rax", "rdi", "rsi", "rdx", "r8", "r9", "r10", "r11", "xmm0", "xmm15", "memory", "cc");
	check(!bad, "a register, the red zone or a flag");
}

static int nothing_setup(void)
{
	return 0;
}

static int hidden_setup(void)
{
	return prctl(PR_SET_DUMPABLE, 0) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static void hidden_round(void)
{
	check(!prctl(PR_GET_DUMPABLE), "dumpable");
	spin();
}

static int tsc_setup(void)
{
	return prctl(PR_SET_TSC, PR_TSC_SIGSEGV) ? UNSUPPORTED : 0;
}

static int mdwe_setup(void)
{
	return prctl(65, 1, 0, 0, 0) ? UNSUPPORTED : 0; /* PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN */
}

static void mdwe_round(void)
{
	check(mmap(NULL, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED, "MDWE");
	spin();
}

static void vfork_round(void)
{
	int status, child = vfork();

	if (!child) {
		syscall(SYS_nanosleep, &(struct timespec){0, 2000000}, NULL);
		_exit(7);
	}
	check(child > 0 && waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7, "vfork");
}

static const struct member {
	const char *name;
	int (*setup)(void);
	void (*round)(void);
} members[] = {
	{"rseq", rseq_setup, rseq_round},
	{"dispatch", dispatch_setup, dispatch_round},
	{"filter", filter_setup, filter_round},
	{"filters", filters_setup, filter_round},
	{"strict", strict_setup, strict_round},
	{"limit", limit_setup, limit_round},
	{"soft-limit", soft_limit_setup, limit_round},
	{"no-vdso", no_vdso_setup, nap_round},
	{"signals", signals_setup, signals_round},
	{"alternate", alternate_setup, alternate_round},
	{"handler", handler_setup, handler_round},
	{"suspend", suspend_setup, suspend_round},
	{"registration", registration_setup, registration_round},
	{"step", step_setup, step_round},
	{"faults", faults_setup, faults_round},
	{"trap", trap_setup, faults_round},
	{"breakpoint", breakpoint_setup, breakpoint_round},
	{"compat", compat_setup, compat_round},
	{"code32", code32_setup, code32_round},
	{"registers", nothing_setup, registers_round},
	{"hidden", hidden_setup, hidden_round},
	{"tsc", tsc_setup, nap_round},
	{"mdwe", mdwe_setup, mdwe_round},
	{"vfork", nothing_setup, vfork_round},
};

int main(int argc, char **argv)
{
	const struct member *m = NULL;
	sigset_t all, mine;
	pthread_t t;
	int r;

	for (size_t i = 0; argc > 1 && i < sizeof(members) / sizeof(*members); i++)
		if (!strcmp(argv[1], members[i].name))
			m = &members[i];
	if (!m)
		return 2;
	own_files = argc > 2;
	/* Signals are the first thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mine);
	pthread_create(&t, NULL, answer, NULL);
	pthread_sigmask(SIG_SETMASK, &mine, NULL);
	while (own_files)
		sched_yield();
	r = m->setup();
	if (r) {
		dprintf(1, "unsupported\n");
		return r;
	}
	if (write(1, "ready\n", 6) != 6) /* all that the strict mode of seccomp(2) leaves */
		return 2;
	for (;;) {
		m->round();
		rounds++;
	}
}
