/* No look at /proc shows one instant: who is not seen yet may make a child among those that were seen, and end. So a look
 * counts only if the whole host has made no process meanwhile.
 *
 * A process that is just being made has its memory before it can be seen, and its parent may have given up the
 * mapping by then. So mappings alone are not enough: the parent can be seen all the time, and is recognised by its
 * stack's address, which fork copies and exec draws anew. Who has called exec since it was made is no relative: it has got
 * new memory then.
 *
 * There may be processes of which not even root may know their memory. Such a one, if it has called exec since it was made,
 * could only be the one that ours come from. So they have to come from each other. */
#include "cleanup.h"
#include "proc_stat.h"
#include "relatives.h"

#include <errno.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define INITIAL_PID_NAMESPACE 0xeffffffcu /* include/uapi/linux/nsfs.h */
#define INITIAL_USER_NAMESPACE 0xeffffffdu
enum {
	TRIES = 3,
	FORKED = 0x40, /* PF_FORKNOEXEC, include/linux/sched.h */
};

static int is_initial(const char *namespace, uint32_t inode)
{
	struct stat s;

	return !stat(namespace, &s) && (uint32_t)s.st_ino == inode;
}

/* With a /proc that is mounted with hidepid, others may be hidden from who has not CAP_SYS_PTRACE. */
static int may_trace_all(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	return !syscall(SYS_capget, &head, data) && (data[0].effective >> CAP_SYS_PTRACE & 1);
}

int ut_sees_all_processes(void)
{
	return is_initial("/proc/self/ns/pid", INITIAL_PID_NAMESPACE) &&
	       is_initial("/proc/self/ns/user", INITIAL_USER_NAMESPACE) && may_trace_all();
}

/* How many processes and threads the host has made; -1: not known. */
static int64_t count_made(void)
{
	AUTO_FREE char *line = NULL;
	AUTO_FILE file = fopen("/proc/stat", "re");
	size_t room = 0;
	long n;

	while (file && getline(&line, &room, file) > 0)
		if (sscanf(line, "processes %ld", &n) == 1)
			return n;
	return -1;
}

/* proc_pid_stat(5) */
struct program {
	unsigned long code, stack; /* where they begin; 0: it has no memory; code 1: we may not know */
	long threads;
	unsigned flags;
	int parent;
};

static int read_program(int pid, int tid, struct program *out)
{
	char text[2048], *at;

	TRY(ut_read_task(pid, tid, "stat", text, sizeof(text)));
	at = strrchr(text, ')');
	if (!at || sscanf(at + 1,
			  " %*c %d %*s %*s %*s %*s %u %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %ld"
			  " %*s %*s %*s %*s %*s %lu %*s %lu",
			  &out->parent, &out->flags, &out->threads, &out->code, &out->stack) != 5)
		return -EINVAL;
	return 0;
}

static int maps_any(int pid, int tid, const ut_region *objects, size_t n, ut_maps *maps)
{
	int err = ut_maps_read(maps, pid, tid);

	if (err)
		return err == -ESRCH ? 0 : 1;
	for (size_t i = 0; i < maps->n; i++)
		for (size_t k = 0; k < n; k++) {
			const ut_region *a = &maps->regions[i], *b = &objects[k];

			if (a->inode == b->inode && a->major == b->major && a->minor == b->minor)
				return 1;
		}
	return 0;
}

/* The first thread has ended, and has no memory any more: ask the others. */
static int ask_threads(int pid, int *tid, struct program *out)
{
	AUTO_DIR dir = ut_open_tasks(pid);

	if (!dir)
		return -ESRCH;
	while ((*tid = ut_next_task(dir))) {
		struct program one;
		int err = read_program(pid, *tid, &one);

		if (err && err != -ESRCH)
			return err;
		if (err || !one.code)
			continue;
		out->code = one.code;
		out->stack = one.stack;
		return 0;
	}
	return -EAGAIN; /* they all end, or have ended under the listing */
}

static int find_program(int pid, int *tid, struct program *out)
{
	*tid = pid;
	TRY(read_program(pid, 0, out));
	return out->code || out->threads <= 1 ? 0 : ask_threads(pid, tid, out);
}

/* Those that are asked about. */
struct own {
	const int32_t *pids;
	size_t n;
	struct program *v;
	int anybody;
	unsigned flags; /* of any */
	int strays;     /* how many have been made by none of them, and have not called exec since */
};

static const struct program *find_in(const struct own *own, int pid)
{
	for (size_t i = 0; i < own->n; i++)
		if (own->pids[i] == pid)
			return &own->v[i];
	return NULL;
}

static int has_stack_of(const struct own *own, unsigned long stack)
{
	for (size_t i = 0; i < own->n; i++)
		if (own->v[i].stack == stack)
			return 1;
	return 0;
}

static int find_own(struct own *own)
{
	for (size_t i = 0; i < own->n; i++) {
		int tid;

		TRY(find_program(own->pids[i], &tid, &own->v[i]));
		if (own->v[i].code <= 1)
			return -EPERM;
		own->flags |= own->v[i].flags;
	}
	for (size_t i = 0; i < own->n; i++) {
		const struct program *parent = find_in(own, own->v[i].parent);

		/* The stack tells whether that one has made it, and not adopted it. */
		if ((own->v[i].flags & FORKED) && (!parent || parent->stack != own->v[i].stack))
			own->strays++;
	}
	return 0;
}

static int is_relative(int pid, const struct own *own, const ut_region *objects, size_t n, ut_maps *maps)
{
	struct program program;
	int tid, err = find_program(pid, &tid, &program);

	if (err) /* one that has ended had no child since the look began, or the look does not count */
		return err != -ESRCH;
	if (!program.code)
		return 0;
	if (!((program.flags | own->flags) & FORKED))
		return own->anybody && program.code != 1 && maps_any(pid, tid, objects, n, maps);
	if (program.code == 1)
		return (program.flags & FORKED) || own->strays;
	return has_stack_of(own, program.stack) || maps_any(pid, tid, objects, n, maps);
}

static int look_for_relatives(struct own *own, const ut_region *objects, size_t n)
{
	int64_t before = count_made();
	AUTO_DIR dir = opendir("/proc");
	struct dirent *entry;
	ut_maps maps = {0};
	int found;

	own->flags = own->strays = 0;
	found = !dir || before < 0 || find_own(own);
	while (!found && (errno = 0, entry = readdir(dir))) {
		int other = atoi(entry->d_name);

		if (other > 0 && !find_in(own, other))
			found = is_relative(other, own, objects, n, &maps);
	}
	found |= errno != 0;
	ut_maps_free(&maps);
	if (!found && count_made() != before)
		return -EAGAIN;
	return !found;
}

int ut_have_no_relatives(const int32_t *pids, size_t n, const ut_region *objects, size_t nobjects, int anybody)
{
	AUTO_FREE struct program *programs = calloc(n + 1, sizeof(*programs));
	struct own own = {pids, n, programs, anybody, 0, 0};
	int alone = -EAGAIN;

	for (int i = 0; programs && i < TRIES && alone == -EAGAIN; i++)
		alone = look_for_relatives(&own, objects, nobjects);
	return alone == 1;
}
