/* Parent and child share memory by fork and only read it. Prints the child's pid and where the memory is. A line of
 * input has the child write one page; "done" is the answer. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 2048

int main(void)
{
	char *m = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char line[16];
	pid_t child;

	if (m == MAP_FAILED)
		return 2;
	madvise(m, PAGES * PAGE, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < PAGES; i++)
		m[i * PAGE] = 1 + i % 100;
	child = fork();
	if (child) {
		for (;;)
			pause();
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	printf("%d %p\n", getpid(), (void *)m);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		strcpy(m + 7 * PAGE, line);
		printf("done\n");
		fflush(stdout);
	}
	return 0;
}
