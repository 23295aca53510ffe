#include "compat.h"

#include "descriptors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { INFO_PART = 64 << 10 };

void ut_text_free(ut_text *t)
{
	free(t->v);
	*t = (ut_text){0};
}

int ut_file_mode(int directory, const char *name, uint64_t *size)
{
	struct statx s;

	if (statx(directory, name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE | STATX_MODE | STATX_SIZE, &s))
		return -errno;
	*size = s.stx_size;
	return s.stx_mode;
}

static int make_text_room(ut_text *t, size_t wanted)
{
	size_t cap = t->cap ? t->cap : 2 * INFO_PART;
	char *v;

	while (cap - t->n < wanted)
		cap *= 2;
	if (cap == t->cap)
		return 0;
	v = realloc(t->v, cap);
	if (!v)
		return -ENOMEM;
	t->v = v;
	t->cap = cap;
	return 0;
}

/* A file of /proc that is made in one piece (single_open): a read that does not fill the room has had all of it. */
static int append_file(ut_text *t, int directory, const char *name)
{
	int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
	int error = fd < 0 ? -errno : 0;
	ssize_t n = INFO_PART;

	while (!error && n == INFO_PART) {
		error = make_text_room(t, INFO_PART + 1);
		if (error)
			break;
		n = read(fd, t->v + t->n, INFO_PART);
		if (n < 0)
			error = -errno;
		else
			t->n += n;
	}
	if (fd >= 0)
		close(fd);
	return error;
}

static int append_descriptor(ut_text *t, int links, int infos, const char *name)
{
	struct timespec now;
	ssize_t n;
	int error = make_text_room(t, PATH_MAX + 64);

	if (error)
		return error;
	clock_gettime(CLOCK_BOOTTIME, &now);
	t->n += sprintf(t->v + t->n, "%s", name) + 1;
	t->n += sprintf(t->v + t->n, "%lld", now.tv_sec * 1000000000LL + now.tv_nsec) + 1;
	n = readlinkat(links, name, t->v + t->n, PATH_MAX);
	if (n < 0)
		return -errno;
	t->n += n;
	t->v[t->n++] = 0;
	error = append_file(t, infos, name);
	if (error)
		return error;
	t->v[t->n++] = 0;
	return 0;
}

static int open_directory(int at, const char *name)
{
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static int append_all(ut_text *out, DIR *links, int infos)
{
	struct dirent *entry;

	while ((entry = readdir(links))) {
		size_t before = out->n;
		int error;

		if (entry->d_name[0] == '.')
			continue;
		error = append_descriptor(out, dirfd(links), infos, entry->d_name);
		if (error == -ENOMEM)
			return error;
		if (error)
			out->n = before; /* it has just been closed */
	}
	return 0;
}

int ut_descriptors(int task, ut_text *out)
{
	int fd = open_directory(task, "fd"), infos, result;
	DIR *links;

	if (fd < 0)
		return fd;
	links = fdopendir(fd);
	if (!links) { /* it asks what `fd` is: of a thread that has ended, nothing */
		result = -errno;
		close(fd);
		return result;
	}
	infos = open_directory(task, "fdinfo");
	result = infos < 0 ? infos : append_all(out, links, infos);
	if (infos >= 0)
		close(infos);
	closedir(links);
	/* The list of a thread that has ended just ends, wherever it was. */
	if (!result && faccessat(task, "fd", F_OK, 0))
		result = -errno;
	return result;
}
