#include "cleanup.h"
#include "compat.h"
#include "backing.h"
#include "vec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DEV_ZERO makedev(1, 5)
#define NAME_MAX_BYTES 4096

static int add_filesystem(ut_filesystems *f, uint32_t major, uint32_t minor, uint8_t backing)
{
	return VEC_PUSH(f->v, f->n, f->cap, (ut_filesystem){major, minor, backing});
}

static const ut_filesystem *filesystem(const ut_filesystems *f, const ut_region *r)
{
	for (size_t i = 0; i < f->n; i++)
		if (f->v[i].major == r->major && f->v[i].minor == r->minor)
			return &f->v[i];
	return NULL;
}

/* The kernel's own mounts, which no list has, are found by a file of our own on each. */
static int add_own(ut_filesystems *f)
{
	const struct {
		int fd;
		uint8_t backing;
	} tries[] = {
		{memfd_create("uffdtrack", MFD_CLOEXEC), UT_BACKING_MEMORY},
		{memfd_create("uffdtrack", MFD_CLOEXEC | MFD_HUGETLB), UT_BACKING_HUGETLB},
		{memfd_create("uffdtrack", MFD_CLOEXEC | MFD_HUGETLB | 21u << 26), UT_BACKING_HUGETLB},
		{memfd_create("uffdtrack", MFD_CLOEXEC | MFD_HUGETLB | 30u << 26), UT_BACKING_HUGETLB},
		{syscall(SYS_memfd_secret, O_CLOEXEC), UT_BACKING_SECRET},
		{eventfd(0, EFD_CLOEXEC), UT_BACKING_KERNEL}, /* on the file system of all anonymous inodes */
		{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), UT_BACKING_KERNEL},
	};
	int err = 0;

	for (size_t i = 0; i < sizeof(tries) / sizeof(*tries); i++) {
		struct stat s;

		if (tries[i].fd < 0)
			continue;
		if (!err && !fstat(tries[i].fd, &s))
			err = add_filesystem(f, major(s.st_dev), minor(s.st_dev), tries[i].backing);
		close(tries[i].fd);
	}
	return err;
}

static uint8_t of_type(const char *type)
{
	/* What can be mapped there is a device's memory, or a ring of the kernel's. */
	static const char *const kernel[] = {"sysfs", "proc", "tracefs", "debugfs", "securityfs", "bpf", "devpts"};

	if (!strcmp(type, "hugetlbfs"))
		return UT_BACKING_HUGETLB;
	if (!strcmp(type, "tmpfs") || !strcmp(type, "devtmpfs") || !strcmp(type, "ramfs"))
		return UT_BACKING_TMPFS;
	for (size_t i = 0; i < sizeof(kernel) / sizeof(*kernel); i++)
		if (!strcmp(type, kernel[i]))
			return UT_BACKING_DEVICE;
	return UT_BACKING_PLAIN;
}

/* The mounts that the target sees: proc_pid_mountinfo(5). No file system is asked anything. */
static int add_mounts(ut_filesystems *f, int pid, int tid)
{
	AUTO_FREE char *line = NULL;
	char path[64];
	size_t room = 0;
	int err = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/mountinfo", pid, tid);
	AUTO_FILE file = fopen(path, "re");

	if (!file)
		return errno == ENOMEM ? -ENOMEM : 0; /* names have to do */
	while (!err && getline(&line, &room, file) > 0) {
		unsigned major, minor;
		char type[64];
		const char *tail = strstr(line, " - ");

		if (tail && sscanf(line, "%*u %*u %u:%u", &major, &minor) == 2 && sscanf(tail + 3, "%63s", type) == 1)
			err = add_filesystem(f, major, minor, of_type(type));
	}
	return err;
}

static int renew(ut_filesystems *f, int pid, int tid)
{
	f->n = 0;
	f->read = 1;
	TRY(add_own(f));
	return add_mounts(f, pid, tid);
}

/* By name, and only as far as the kernel remembers the way: a file system that the target itself serves (FUSE) would
 * never answer while it stands. */
static int stat_by_name(const ut_maps *m, const ut_region *r, int pid, int tid, struct statx *out)
{
	struct {
		uint64_t flags, mode, resolve;
	} how = {O_PATH | O_CLOEXEC, 0, UT_RESOLVE_CACHED | UT_RESOLVE_IN_ROOT};
	const char *name = m->text + r->name, *end = memchr(name, '\n', m->text + m->len - name);
	char copy[NAME_MAX_BYTES], root[64];

	if (!end || *name != '/' || end - name >= NAME_MAX_BYTES)
		return 0;
	memcpy(copy, name, end - name);
	copy[end - name] = 0;
	snprintf(root, sizeof(root), "/proc/%d/task/%d/root", pid, tid);
	/* The kernel names a file as seen from our root; one of another mount namespace, as from its own. */
	for (int i = 0, found = 0; i < 2; i++) {
		int base = open(i ? root : "/", O_PATH | O_CLOEXEC), fd = -1;

		if (base >= 0)
			fd = syscall(SYS_openat2, base, copy, &how, sizeof(how));
		if (fd >= 0)
			found = !syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, out) &&
				out->stx_ino == r->inode && out->stx_dev_major == r->major &&
				out->stx_dev_minor == r->minor;
		if (fd >= 0)
			close(fd);
		if (base >= 0)
			close(base);
		if (found)
			return 1;
	}
	return 0;
}

enum { MAPPED = 96 }; /* bytes of a path */

/* The link in map_files leads to the very file. */
static void name_mapped(char path[MAPPED], int pid, const ut_region *r)
{
	snprintf(path, MAPPED, "/proc/%d/map_files/%lx-%lx", pid, r->start, r->end);
}

int ut_open_mapped(int pid, const ut_region *r, long *type)
{
	char path[MAPPED];
	struct statfs fs;
	int fd;

	name_mapped(path, pid, r);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstatfs(fd, &fs)) {
		int err = -errno;

		ut_close_fd(&fd);
		return err;
	}
	*type = fs.f_type;
	return fd;
}

int ut_stat_mapped(int pid, const ut_region *r, struct statx *out)
{
	char path[MAPPED];

	name_mapped(path, pid, r);
	return syscall(SYS_statx, AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_BASIC_STATS | STATX_BTIME, out) ? -errno : 0;
}

static int stat_file(const ut_maps *m, const ut_region *r, int pid, int tid, struct statx *out)
{
	if (!ut_stat_mapped(pid, r, out))
		return 1;
	return stat_by_name(m, r, pid, tid, out);
}

static int look_at_file(ut_maps *m, ut_region *r, ut_filesystems *known, int pid, int tid)
{
	const ut_filesystem *f = filesystem(known, r);
	struct statx s;

	if (!f && !known->read) {
		TRY(renew(known, pid, tid));
		f = filesystem(known, r);
	}
	r->backing = f ? f->backing : UT_BACKING_UNKNOWN;
	r->deleted = ut_maps_names_deleted(m, r);
	if (r->backing == UT_BACKING_UNKNOWN || r->backing == UT_BACKING_PLAIN || r->backing == UT_BACKING_TMPFS) {
		/* A file may bear a name of this end. */
		r->deleted = r->deleted && !stat_by_name(m, r, pid, tid, &s);
		if (!stat_file(m, r, pid, tid, &s)) {
			r->backing = UT_BACKING_UNKNOWN;
		} else if (S_ISCHR(s.stx_mode)) {
			int zero = makedev(s.stx_rdev_major, s.stx_rdev_minor) == DEV_ZERO;

			r->backing = zero ? UT_BACKING_ZERO : UT_BACKING_DEVICE;
		} else if (S_ISBLK(s.stx_mode)) {
			r->backing = UT_BACKING_PLAIN; /* contents that the disk has */
		} else if (r->backing == UT_BACKING_UNKNOWN && S_ISREG(s.stx_mode) && !ut_maps_names_kernel(m, r)) {
			r->backing = UT_BACKING_PLAIN; /* of a mount that is gone */
		}
	}
	return 0;
}

static int same_file(const ut_region *a, const ut_region *b)
{
	return a->inode == b->inode && a->major == b->major && a->minor == b->minor;
}

int ut_backing_find(ut_maps *m, const ut_maps *before, ut_filesystems *known, int pid, int tid, int flags)
{
	size_t k = 0;

	known->read = 0;
	for (size_t i = 0; i < m->n; i++) {
		ut_region *r = &m->regions[i];
		const ut_region *same = NULL;

		if (!r->inode)
			continue;
		while (before && k < before->n && before->regions[k].end <= r->start)
			k++;
		if (before && k < before->n && before->regions[k].start < r->end && before->regions[k].sure &&
		    same_file(&before->regions[k], r))
			same = &before->regions[k];
		if (same && same->start == r->start && same->offset == r->offset && !(flags & UT_BACKING_ANEW))
			r->head = same->head;
		if (!same && i && same_file(r - 1, r))
			same = r - 1;
		if (same && ut_maps_names_deleted(m, r) == same->named_deleted) {
			r->backing = same->backing;
			r->deleted = same->deleted;
		} else {
			TRY(look_at_file(m, r, known, pid, tid));
		}
		r->named_deleted = ut_maps_names_deleted(m, r);
		r->sure = !!(flags & UT_BACKING_SURE);
		ut_maps_decide(m, r);
	}
	return 0;
}

void ut_filesystems_free(ut_filesystems *f)
{
	free(f->v);
	*f = (ut_filesystems){0};
}

int ut_maps_look(ut_maps *m, int pid, int tid)
{
	ut_filesystems known = {0};
	int err = ut_maps_read(m, pid, tid);

	if (!err)
		err = ut_backing_find(m, NULL, &known, pid, tid, 0);
	ut_filesystems_free(&known);
	return err;
}
