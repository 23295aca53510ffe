#include "cleanup.h"
#include "proc_stat.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

enum { LISTINGS = 100 };

int ut_proc_stat_of(int fd, ut_proc_stat *out)
{
	char text[1024], *p;
	uint64_t min, maj;
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return -ESRCH;
	text[n] = 0;
	/* The name of the command is in brackets, and may have some of its own. */
	p = strrchr(text, ')');
	if (!p || sscanf(p + 1, " %c %*d %*d %*d %*d %*d %*u %" SCNu64 " %*u %" SCNu64, &out->state, &min, &maj) != 3)
		return -EIO;
	out->faults = min + maj;
	return 0;
}

int ut_open_task(int pid, int tid, const char *name)
{
	char path[64];
	int fd;

	if (tid)
		snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", pid, tid, name);
	else
		snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 ? fd : errno == ENOENT ? -ESRCH : -errno;
}

DIR *ut_open_tasks(int pid)
{
	char path[32];
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir && errno == ENOENT)
		errno = ESRCH;
	return dir;
}

long ut_count_tasks(int pid)
{
	char path[32];
	struct stat s;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	return stat(path, &s) ? -errno : (long)s.st_nlink - 2; /* each is a directory in it */
}

int ut_next_task(DIR *dir)
{
	struct dirent *e;

	while ((e = readdir(dir))) {
		int tid = atoi(e->d_name);

		if (tid > 0)
			return tid;
	}
	return 0;
}

int ut_proc_stat_read(int pid, int tid, ut_proc_stat *out)
{
	AUTO_FD fd = ut_open_task(pid, tid, "stat");

	return fd < 0 ? fd : ut_proc_stat_of(fd, out);
}

char ut_thread_state(int pid, int tid)
{
	ut_proc_stat stat;
	int err = ut_proc_stat_read(pid, tid, &stat);

	return err == -ESRCH ? 0 : err ? '?' : stat.state;
}

int ut_thread_is_dead(int pid, int tid)
{
	char state = ut_thread_state(pid, tid);

	return !state || state == 'Z' || state == 'X';
}

int ut_dumps_core(int pid)
{
	char text[1 << 16];
	AUTO_FD fd = ut_open_task(pid, 0, "status");
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	text[n > 0 ? n : 0] = 0;
	return strstr(text, "\nCoreDumping:\t1\n") != NULL;
}

static int list_for_living(int pid)
{
	AUTO_DIR dir = ut_open_tasks(pid);
	int tid;

	if (!dir)
		return -errno;
	while ((tid = ut_next_task(dir)))
		if (!ut_thread_is_dead(pid, tid))
			return tid;
	return 0;
}

int ut_live_thread(int pid)
{
	if (!ut_thread_is_dead(pid, pid))
		return pid;
	/* A listing ends early where a thread ends under it. */
	for (int i = 0; i < LISTINGS; i++) {
		int tid = list_for_living(pid);

		if (tid)
			return tid;
		if (ut_count_tasks(pid) <= 1)
			break;
	}
	/* It may have called exec meanwhile, and have the first one's id. */
	return ut_thread_is_dead(pid, pid) ? -ESRCH : pid;
}

int ut_is_own_thread(int tid)
{
	char path[48];

	snprintf(path, sizeof(path), "/proc/self/task/%d", tid);
	return !access(path, F_OK);
}

int ut_read_task(int pid, int tid, const char *name, char *to, size_t room)
{
	AUTO_FD fd = ut_open_task(pid, tid, name);
	ssize_t n;

	if (fd < 0)
		return fd;
	n = read(fd, to, room - 1);
	to[n > 0 ? n : 0] = 0;
	return n > 0 ? 0 : -ENOENT;
}

int ut_proc_call_read(int pid, int tid, ut_proc_call *out)
{
	char text[256];

	*out = (ut_proc_call){.nr = -1};
	TRY(ut_read_task(pid, tid, "syscall", text, sizeof(text)));
	out->running = !strncmp(text, "running", 7);
	if (!out->running)
		sscanf(text, "%" SCNd64 " %" SCNx64 " %*x %*x %*x %*x %*x %*x %" SCNx64, &out->nr, &out->fd, &out->pc);
	return 0;
}

int ut_in_system_call(int pid, int tid)
{
	ut_proc_call call;

	TRY(ut_proc_call_read(pid, tid, &call));
	return call.nr >= 0;
}
