/* Calls a function that can be probed, once for each line of input, and answers how often it has. "l" calls one that begins
 * with an instruction that the kernel executes in [uprobes], "n" one that begins with a five-byte nop, which it makes a call
 * of; "w" one that waits inside for the next line. */
#include <stdio.h>
#include <unistd.h>

static volatile long calls;
static char line[16];

__attribute__((noinline, section(".text.probed"))) static void by_lea(void)
{
	long r;

	__asm__ volatile("lea 1(%1), %0\n\tmov %0, %0" : "=r"(r) : "r"(calls));
	calls = r;
}

__attribute__((noinline, naked, section(".text.probed"))) static void by_nop(void)
{
	__asm__ volatile(".byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n\tret");
}

__attribute__((noinline, section(".text.probed"))) static void waits(void)
{
	printf("inside\n");
	if (read(0, line, sizeof(line)) > 0)
		calls++;
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("%p %p %p\n", (void *)by_lea, (void *)by_nop, (void *)waits);
	while (read(0, line, sizeof(line)) > 0) {
		if (*line == 'l')
			by_lea();
		if (*line == 'n') {
			by_nop();
			calls++;
		}
		if (*line == 'w')
			waits();
		printf("%ld\n", calls);
	}
	return 0;
}
