#include "backing.h"
#include "cleanup.h"
#include "runs.h"
#include "sharers.h"
#include "vec.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>

enum {
	EVENTS = 4096,
	MOST = 256, /* objects: each is looked at for each visit */
};
#define NEVER 0x7fffffffffll

/* -- all objects --------------------------------------------------------------------------------- */

int ut_sharers_open(ut_sharers *s)
{
	const struct itimerspec never = {.it_value.tv_sec = NEVER};

	*s = (ut_sharers){.inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)};
	s->clock = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
	if (s->inotify < 0 || s->clock < 0 ||
	    timerfd_settime(s->clock, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, NULL)) {
		int err = -errno;

		ut_sharers_close(s);
		return err;
	}
	return 0;
}

void ut_sharers_close(ut_sharers *s)
{
	ut_close_fd(&s->inotify);
	ut_close_fd(&s->clock);
	free(s->v);
	*s = (ut_sharers){.inotify = -1, .clock = -1};
}

static void note_visit(ut_sharers *s, const struct inotify_event *e)
{
	for (size_t i = 0; i < s->n; i++) {
		if ((e->mask & IN_Q_OVERFLOW) || s->v[i].watch == e->wd)
			s->v[i].visited = 1;
		if ((e->mask & IN_IGNORED) && s->v[i].watch == e->wd)
			s->v[i].watch = -1;
	}
}

void ut_sharers_drain(ut_sharers *s)
{
	char buffer[EVENTS] __attribute__((aligned(8)));
	ssize_t n;

	while ((n = read(s->inotify, buffer, sizeof(buffer))) > 0)
		for (const char *at = buffer; at < buffer + n;) {
			const struct inotify_event *e = (const void *)at;

			note_visit(s, e);
			at += sizeof(*e) + e->len;
		}
}

int ut_sharers_clock_set(const ut_sharers *s)
{
	uint64_t expired;

	return read(s->clock, &expired, sizeof(expired)) >= 0 || errno != EAGAIN;
}

/* Where the object is, or belongs. */
static size_t place_of(const ut_sharers *s, const ut_region *r, int segment)
{
	size_t low = 0, high = s->n;

	while (low < high) {
		size_t middle = (low + high) / 2;
		const ut_object *o = &s->v[middle];

		if (o->region.inode < r->inode || (o->region.inode == r->inode && o->segment < segment))
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

ut_object *ut_sharers_find(ut_sharers *s, const ut_region *r, int segment)
{
	size_t i = place_of(s, r, segment);

	return i < s->n && s->v[i].region.inode == r->inode && s->v[i].segment == segment ? &s->v[i] : NULL;
}

ut_object *ut_sharers_add(ut_sharers *s, const ut_region *r, int segment)
{
	ut_object *o = ut_sharers_find(s, r, segment);

	if (o)
		return o;
	if (s->n == MOST || VEC_ROOM(s->v, s->n, s->cap))
		return NULL;
	o = &s->v[place_of(s, r, segment)];
	memmove(o + 1, o, (s->v + s->n++ - o) * sizeof(*o));
	*o = (ut_object){.region = *r, .segment = segment, .watch = -1, .seen = 1};
	return o;
}

void ut_sharers_drop(ut_sharers *s)
{
	size_t kept = 0;

	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].seen)
			s->v[kept++] = s->v[i];
		else if (s->v[i].watch >= 0)
			inotify_rm_watch(s->inotify, s->v[i].watch); /* fails where the object has gone */
	s->n = kept;
}

/* -- one object ---------------------------------------------------------------------------------- */

/* They are whole seconds of this clock. Those from before the present second are settled: a later change gives another
 * value, unless the clock is set back. */
static int read_stamps(const ut_object *o, ut_stamps *out, int *settled)
{
	struct timespec now;
	struct shmid_ds ds;

	memset(out, 0, sizeof(*out));
	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	if (shmctl(o->region.inode, IPC_STAT, &ds))
		return -errno;
	out->attached = ds.shm_atime;
	out->detached = ds.shm_dtime;
	out->set = ds.shm_ctime;
	out->last_pid = ds.shm_lpid;
	out->mappings = ds.shm_nattch;
	*settled = ds.shm_atime < now.tv_sec && ds.shm_dtime < now.tv_sec && ds.shm_ctime < now.tv_sec;
	return 0;
}

int ut_object_stayed(ut_object *o)
{
	int was_settled = o->settled;
	ut_stamps now;

	if (o->visited || !o->segment)
		return !o->visited;
	return !read_stamps(o, &now, &o->settled) && was_settled && !memcmp(&now, &o->stamps, sizeof(now));
}

/* A read lease is given if nobody has the file open for writing, or maps what was opened so. */
static int has_no_writer(int fd)
{
	int given;

	/* Who opens it in between waits, and we would get this signal; by default it is ignored. */
	fcntl(fd, F_SETSIG, SIGURG);
	given = !fcntl(fd, F_SETLEASE, F_RDLCK);
	if (given)
		fcntl(fd, F_SETLEASE, F_UNLCK);
	return given;
}

static int same_namespace(int pid)
{
	char path[48];
	struct stat own, its;

	snprintf(path, sizeof(path), "/proc/%d/ns/ipc", pid);
	return !stat("/proc/self/ns/ipc", &own) && !stat(path, &its) && own.st_ino == its.st_ino && own.st_dev == its.st_dev;
}

int ut_object_is_our_segment(const ut_object *o, int pid, const ut_region *r, int fd)
{
	uint64_t size = o->region.end - o->region.start;
	struct shmid_ds ds;
	struct statx s, mapped;

	return same_namespace(pid) && !shmctl(o->region.inode, IPC_STAT, &ds) &&
	       !statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &s) && (s.stx_mask & STATX_BTIME) && !o->region.offset &&
	       ((ds.shm_segsz + 4095) & ~4095ul) == size && llabs(s.stx_btime.tv_sec - (int64_t)ds.shm_ctime) <= 1 &&
	       !ut_stat_mapped(pid, r, &mapped) && mapped.stx_ino == o->region.inode &&
	       mapped.stx_btime.tv_sec == s.stx_btime.tv_sec && mapped.stx_btime.tv_nsec == s.stx_btime.tv_nsec;
}

static int watch(const ut_sharers *s, ut_object *o, int fd)
{
	char path[48];

	if (o->watch >= 0)
		return 1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	o->watch = inotify_add_watch(s->inotify, path, IN_OPEN | IN_MODIFY); /* truncate(2) opens nothing */
	return o->watch >= 0;
}

int ut_object_is_private(ut_sharers *s, ut_object *o, const ut_region *r, size_t n, int fd)
{
	o->region = *r;
	if (!watch(s, o, fd))
		return 0;
	/* Our own open is among the visits, and so are those of who may still have it open, whom the lease tells of. */
	ut_sharers_drain(s);
	o->visited = 0;
	if (!has_no_writer(fd))
		return 0;
	return !o->segment || (!read_stamps(o, &o->stamps, &o->settled) && o->stamps.mappings == n);
}
