/* fusefs DIR MS: a file system in user space in which everything takes MS milliseconds, and which answers EINTR where the
 * kernel says that a request has been interrupted. It has one file, "file", that is "text" at even offsets and "TEXT" at odd
 * ones, and one name that comes and goes, "new" or "other". Prints "mounted", and at its end how many requests were interrupted. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int fd;
static char taken[1 << 18], held[1 << 18]; /* the request that takes its time; len 0: none */
static const char *name;                   /* the name that comes and goes, or NULL */
static unsigned name_mode;
static unsigned long interrupted;

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ll + ts.tv_nsec / 1000000;
}

static void reply(const void *request, int error, const void *data, size_t n)
{
	char out[8192];
	struct fuse_out_header *h = (void *)out;

	*h = (struct fuse_out_header){.len = sizeof(*h) + n, .error = error};
	h->unique = ((const struct fuse_in_header *)request)->unique;
	if (n)
		memcpy(out + sizeof(*h), data, n);
	if (write(fd, out, h->len) < 0 && errno != ENOENT)
		perror("reply");
}

static struct fuse_attr attr_of(uint64_t node)
{
	unsigned mode = node == 1 ? S_IFDIR | 0755 : node == 2 ? S_IFREG | 0644 : name_mode;

	return (struct fuse_attr){.ino = node, .mode = mode, .nlink = 1, .blksize = 4096, .size = 4};
}

static void reply_entry(const void *request, uint64_t node)
{
	struct fuse_entry_out o = {.nodeid = node, .attr = attr_of(node)};

	reply(request, 0, &o, sizeof(o));
}

static void make(const void *request, const char *what, unsigned mode)
{
	if (name && !strcmp(name, what))
		return reply(request, -EEXIST, NULL, 0);
	name = !strcmp(what, "new") ? "new" : "other";
	name_mode = mode;
	reply_entry(request, 3);
}

static int drop(const char *what)
{
	if (!name || strcmp(name, what))
		return -ENOENT;
	name = NULL;
	return 0;
}

static void answer(const void *request)
{
	const struct fuse_in_header *in = request;
	const char *body = (const char *)(in + 1);
	struct fuse_attr_out attr = {.attr = attr_of(in->nodeid)};
	struct fuse_open_out opened = {.fh = 1, .open_flags = FOPEN_DIRECT_IO};
	struct fuse_write_out written = {.size = 4};
	struct fuse_getxattr_out size = {.size = 4};
	struct fuse_statfs_out fs = {.st = {.bsize = 4096, .namelen = 255}};
	int error;

	switch (in->opcode) {
	case FUSE_LOOKUP:
		if (!strcmp(body, "file"))
			return reply_entry(request, 2);
		if (name && !strcmp(body, name))
			return reply_entry(request, 3);
		return reply(request, -ENOENT, NULL, 0);
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		return reply(request, 0, &attr, sizeof(attr));
	case FUSE_OPEN:
		return reply(request, 0, &opened, sizeof(opened));
	case FUSE_READ:
		return reply(request, 0, ((const struct fuse_read_in *)body)->offset & 1 ? "TEXT" : "text", 4);
	case FUSE_READLINK:
		return reply(request, 0, "file", 4);
	case FUSE_WRITE:
		return reply(request, 0, &written, sizeof(written));
	case FUSE_GETXATTR:
		if (((const struct fuse_getxattr_in *)body)->size)
			return reply(request, 0, "text", 4);
		return reply(request, 0, &size, sizeof(size));
	case FUSE_STATFS:
		return reply(request, 0, &fs, sizeof(fs));
	case FUSE_MKDIR:
		return make(request, body + sizeof(struct fuse_mkdir_in), S_IFDIR | 0755);
	case FUSE_SYMLINK:
		return make(request, body, S_IFLNK | 0777);
	case FUSE_RENAME2:
	case FUSE_RENAME:
		error = drop("new");
		name = error ? name : "other";
		return reply(request, error, NULL, 0);
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		return reply(request, drop(body), NULL, 0);
	case FUSE_FLUSH:
	case FUSE_FSYNC:
	case FUSE_SETXATTR:
	case FUSE_RELEASE:
		return reply(request, 0, NULL, 0);
	default:
		return reply(request, -ENOSYS, NULL, 0);
	}
}

/* What is not held. */
static int at_once(const struct fuse_in_header *in)
{
	struct fuse_init_out o = {.major = 7, .minor = 31, .max_write = 65536, .max_background = 8, .congestion_threshold = 6};

	switch (in->opcode) {
	case FUSE_INIT:
		reply(in, 0, &o, sizeof(o));
		return 1;
	case FUSE_INTERRUPT:
		if (((struct fuse_in_header *)held)->len &&
		    ((const struct fuse_interrupt_in *)(in + 1))->unique == ((struct fuse_in_header *)held)->unique) {
			reply(held, -EINTR, NULL, 0);
			((struct fuse_in_header *)held)->len = 0;
			interrupted++;
		}
		return 1;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		return 1;
	case FUSE_RELEASE:
	case FUSE_DESTROY:
		answer(in);
		return 1;
	default:
		return 0;
	}
}

static void at_end(int n)
{
	dprintf(1, "interrupted %lu\n", interrupted);
	_exit(n == SIGTERM ? 0 : 1);
}

int main(int argc, char **argv)
{
	struct fuse_in_header *busy = (void *)held;
	int64_t due = 0;
	char opts[128];

	signal(SIGTERM, at_end);
	if (argc != 3 || (fd = open("/dev/fuse", O_RDWR)) < 0)
		return 77;
	snprintf(opts, sizeof(opts), "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
	if (mount("fusefs", argv[1], "fuse", MS_NOSUID | MS_NODEV, opts))
		return 77;
	dprintf(1, "mounted\n");
	for (;;) {
		struct pollfd p = {fd, POLLIN, 0};
		ssize_t n;

		if (busy->len && now() >= due) {
			answer(held);
			busy->len = 0;
		}
		if (poll(&p, 1, busy->len ? (int)(due - now()) : 1000) <= 0)
			continue;
		n = read(fd, taken, sizeof(taken));
		if (n < 0 && errno != EINTR && errno != ENOENT && errno != EAGAIN)
			return 0;
		if (n < 0 || at_once((void *)taken))
			continue;
		if (busy->len) {
			answer(taken);
			continue;
		}
		memcpy(held, taken, n);
		due = now() + atoi(argv[2]);
	}
}
