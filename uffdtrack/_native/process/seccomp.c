/* What may be known of a thread's seccomp filters without CAP_SYS_ADMIN, which reading or suspending them takes. */
#include "cleanup.h"
#include "compat.h"
#include "tracee_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { MAX_DEPTH = 64 };

static int status_value(int pid, int tid, const char *key, int base, uint64_t *out)
{
	AUTO_FREE char *line = NULL;
	char path[64];
	int err = -ENOENT;
	size_t room = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, tid);
	AUTO_FILE f = fopen(path, "re");

	if (!f)
		return -errno;
	/* Line by line, since the one of the groups is as long as it likes. */
	while (err && getline(&line, &room, f) > 0)
		if (!strncmp(line, key, strlen(key))) {
			*out = strtoull(line + strlen(key), NULL, base);
			err = 0;
		}
	return err;
}

long ut_status_number(int pid, int tid, const char *key)
{
	uint64_t value;
	int err = status_value(pid, tid, key, 10, &value);

	return err ? err : (long)value;
}

int ut_status_mask(int pid, int tid, const char *key, uint64_t *mask)
{
	return status_value(pid, tid, key, 16, mask);
}

int ut_seccomp_mode(int pid, int tid)
{
	long mode = ut_status_number(pid, tid, "Seccomp:");

	return mode == -ENOENT ? 0 : mode; /* a kernel without seccomp(2), or an error, which is no 0 */
}

/* A process and what it descends from, itself first, as far as this PID namespace goes; returns how many. */
static int line_of(int pid, int line[MAX_DEPTH])
{
	int n = 0;

	while (pid > 0 && n < MAX_DEPTH) {
		line[n++] = pid;
		pid = ut_status_number(pid, pid, "PPid:");
	}
	return n;
}

static int all_have(const int *line, int n, long filters)
{
	for (int i = 0; i < n; i++)
		if (ut_status_number(line[i], line[i], "Seccomp_filters:") != filters)
			return 0;
	return 1;
}

/* Filters are inherited, are only ever added to, and this program adds none. So a thread that has as many as we do,
 * and as everybody on the lines from it and from us to the common ancestor, has the ones that we have: those of a
 * container, or of whoever has started us both. Seccomp_filters: Linux 5.9. */
static int has_ours(int pid, int tid)
{
	int ours[MAX_DEPTH], theirs[MAX_DEPTH], n = line_of(getpid(), ours), m = line_of(pid, theirs);
	long filters = ut_status_number(pid, tid, "Seccomp_filters:");

	if (filters <= 0 || n == MAX_DEPTH || m == MAX_DEPTH)
		return 0;
	/* Above the common ancestor the lines are one. Who was started from outside of the namespace has no line in it. */
	while (n > 1 && m > 1 && ours[n - 2] == theirs[m - 2]) {
		n--;
		m--;
	}
	return all_have(ours, n, filters) && all_have(theirs, m, filters);
}

/* Whether our filters let the calls of an attachment pass: tried by a child, for which they may be the end. */
static int let_attach(uint64_t uffd_flags)
{
	int status, child = fork();

	if (child < 0)
		return 0;
	if (!child) {
		long fd;

		prctl(PR_SET_DUMPABLE, 0); /* no core of ours; a filter that minds is one that we refuse */
		fd = syscall(SYS_userfaultfd, uffd_flags);
		_exit(fd < 0 || syscall(SYS_close, fd));
	}
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return 0;
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

int ut_seccomp_lets_attach(int pid, int tid, uint64_t uffd_flags)
{
	return has_ours(pid, tid) && let_attach(uffd_flags);
}
