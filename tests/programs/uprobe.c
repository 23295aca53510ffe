/* uprobe PID PATH OFFSET RETURN: a probe of that place of a file in a process, or of the return from there, by
 * perf_event_open(2). Each line of input is answered with its hits; it goes with the end of input. */
#define _GNU_SOURCE
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	FILE *f = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
	struct perf_event_attr event = {.size = sizeof(event)};
	uint64_t hits;
	char line[16];
	int type, fd;

	if (argc != 5)
		return 2;
	if (!f || fscanf(f, "%d", &type) != 1)
		return 77;
	event.type = type;
	event.config = atoi(argv[4]); /* bit 0: a probe of the return */
	event.config1 = (uintptr_t)argv[2];
	event.config2 = strtoul(argv[3], NULL, 0);
	fd = syscall(SYS_perf_event_open, &event, atoi(argv[1]), -1, -1, 0);
	if (fd < 0)
		return 77;
	do {
		if (read(fd, &hits, sizeof(hits)) != sizeof(hits))
			return 3;
		printf("%lu\n", hits);
		fflush(stdout);
	} while (fgets(line, sizeof(line), stdin));
	return 0;
}
