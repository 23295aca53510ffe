/* visitor HOW PID TID VALUE: traces the process as HOW says, tells "here", and leaves at a line on stdin.
 * Where it has a thread standing, it writes VALUE to pages 3 (by ptrace) and 4 (by /proc/PID/mem) of visited.c; "here"
 * is followed by how many of these were let through. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define AT 0x200000000000

static int pokes(int pid, int tid, uint64_t value)
{
	int done = 0, fd;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	done += !ptrace(PTRACE_POKEDATA, tid, (void *)(AT + 3 * 4096), (void *)value);
	fd = open(path, O_RDWR);
	done += fd >= 0 && pwrite(fd, &value, sizeof(value), AT + 4 * 4096) == sizeof(value);
	close(fd);
	return done;
}

static int take(const char *how, int tid)
{
	int attach = !strncmp(how, "attach", 6);

	/* Who stops the process for an epoch has it for a moment. */
	for (int i = 0; ptrace(attach ? PTRACE_ATTACH : PTRACE_SEIZE, tid, NULL, NULL); i++) {
		if (i > 5000)
			return -1;
		usleep(1000);
	}
	if (!strncmp(how, "watch", 5))
		return 0;
	if (!attach)
		ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	return waitpid(tid, NULL, __WALL) == tid ? 0 : -1;
}

int main(int argc, char **argv)
{
	int both[2], n = 1, poked = 0, stop;
	const char *how;
	char c;

	if (argc != 5)
		return 2;
	how = argv[1];
	both[0] = !strcmp(how, "one") ? atoi(argv[3]) : atoi(argv[2]);
	both[1] = atoi(argv[3]);
	n = strcmp(how, "one") && strcmp(how, "watch-one") ? 2 : 1;
	for (int i = 0; i < n; i++)
		if (take(how, both[i]))
			return 1;
	if (strncmp(how, "watch", 5))
		poked = pokes(atoi(argv[2]), both[0], strtoul(argv[4], NULL, 0));
	for (int i = 0; i < n && (!strcmp(how, "run") || !strcmp(how, "one")); i++)
		ptrace(PTRACE_CONT, both[i], NULL, NULL);
	printf("here %d\n", poked);
	fflush(stdout);
	if (read(0, &c, 1) != 1)
		return 1;
	stop = strcmp(how, "attach-stop") ? 0 : SIGSTOP;
	if (!strncmp(how, "watch", 5) || !strcmp(how, "run") || !strcmp(how, "one"))
		for (int i = 0; i < n; i++) {
			ptrace(PTRACE_INTERRUPT, both[i], NULL, NULL);
			waitpid(both[i], NULL, __WALL);
		}
	for (int i = 0; i < n && strcmp(how, "attach-killed"); i++)
		if (ptrace(PTRACE_DETACH, both[i], NULL, (void *)(long)stop))
			return 1;
	printf("left\n");
	return 0;
}
