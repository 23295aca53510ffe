#include "cleanup.h"
#include "maps.h"
#include "proc_stat.h"
#include "vec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *number(const char *p, const char *end, unsigned base, char stop, uint64_t *out)
{
	uint64_t v = 0;
	const char *at = p;

	for (; p < end && *p != stop; p++) {
		unsigned d;

		if (*p >= '0' && *p <= '9')
			d = *p - '0';
		else if (*p >= 'a' && *p <= 'f')
			d = *p - 'a' + 10;
		else
			return NULL;
		if (d >= base)
			return NULL;
		v = v * base + d;
	}
	if (p == at || p == end)
		return NULL;
	*out = v;
	return p + 1;
}

static int starts(const char *s, const char *end, const char *prefix)
{
	size_t n = strlen(prefix);

	return (size_t)(end - s) >= n && !memcmp(s, prefix, n);
}

static int ends(const char *s, const char *end, const char *suffix)
{
	size_t n = strlen(suffix);

	return (size_t)(end - s) >= n && !memcmp(end - n, suffix, n);
}

/* Where nothing else is known. */
static int backing_by_name(const char *s, const char *e)
{
	if (starts(s, e, "/memfd:") || starts(s, e, "/dev/shm/") || starts(s, e, "/SYSV"))
		return UT_BACKING_MEMORY;
	if (starts(s, e, "/dev/zero"))
		return e - s == 9 ? UT_BACKING_ZERO : UT_BACKING_MEMORY;
	if (starts(s, e, "/dev/hugepages") || starts(s, e, "/anon_hugepage"))
		return UT_BACKING_HUGETLB;
	if (starts(s, e, "anon_inode:") || starts(s, e, "/[aio]") || starts(s, e, "socket:["))
		return UT_BACKING_KERNEL;
	if (starts(s, e, "/secretmem"))
		return UT_BACKING_SECRET;
	if (starts(s, e, "/dev/") || starts(s, e, "/sys/") || starts(s, e, "/dmabuf:"))
		return UT_BACKING_DEVICE;
	return UT_BACKING_PLAIN;
}

static int kind_without_file(const char *s, const char *e)
{
	if (starts(s, e, "[vdso]"))
		return UT_KIND_VDSO;
	if (starts(s, e, "[vvar") || starts(s, e, "[vsyscall]") || starts(s, e, "[uprobes"))
		return UT_KIND_KERNEL;
	return UT_KIND_ANON;
}

static int kind_of(const ut_region *r, int backing, const char *s, const char *e)
{
	switch (backing) {
	case UT_BACKING_DEVICE:
		return UT_KIND_DEVICE;
	case UT_BACKING_SECRET:
		return UT_KIND_SECRET;
	case UT_BACKING_KERNEL:
		return UT_KIND_RING;
	case UT_BACKING_ZERO:
		return r->shared ? UT_KIND_SHARED : UT_KIND_ANON;
	case UT_BACKING_HUGETLB:
		if (!r->shared && starts(s, e, "/anon_hugepage"))
			return UT_KIND_HUGE;
	}
	if (r->in_memory || r->deleted)
		return r->shared ? UT_KIND_SHARED : UT_KIND_DELETED;
	if (r->shared)
		return r->prot & 2 ? UT_KIND_SHARED : UT_KIND_VIEW;
	return UT_KIND_FILE;
}

static void name_of(const ut_maps *m, const ut_region *r, const char **s, const char **e)
{
	*s = m->text + r->name;
	*e = memchr(*s, '\n', m->text + m->len - *s);
}

int ut_maps_names_deleted(const ut_maps *m, const ut_region *r)
{
	const char *s, *e;

	name_of(m, r, &s, &e);
	return ends(s, e, " (deleted)");
}

int ut_maps_names_kernel(const ut_maps *m, const ut_region *r)
{
	const char *s, *e;
	int backing;

	name_of(m, r, &s, &e);
	backing = backing_by_name(s, e);
	return backing == UT_BACKING_KERNEL || backing == UT_BACKING_SECRET || backing == UT_BACKING_DEVICE;
}

int ut_maps_is_segment(const ut_maps *m, const ut_region *r)
{
	const char *s, *e;

	name_of(m, r, &s, &e);
	return starts(s, e, "/SYSV");
}

int ut_maps_is_anonymous(const ut_maps *m, const ut_region *r)
{
	static const char name[] = "/dev/zero (deleted)";
	const char *s, *e;

	name_of(m, r, &s, &e);
	return (size_t)(e - s) == sizeof(name) - 1 && starts(s, e, name);
}

void ut_maps_decide(const ut_maps *m, ut_region *r)
{
	const char *s, *e;
	int backing = r->backing;

	name_of(m, r, &s, &e);
	if (!r->inode && !r->shared && !starts(s, e, "/")) {
		r->kind = kind_without_file(s, e);
		return;
	}
	if (backing == UT_BACKING_UNKNOWN)
		backing = backing_by_name(s, e);
	if (backing == UT_BACKING_TMPFS)
		backing = starts(s, e, "/dev/") ? UT_BACKING_MEMORY : UT_BACKING_PLAIN;
	r->in_memory = backing == UT_BACKING_MEMORY || backing == UT_BACKING_HUGETLB;
	r->kind = kind_of(r, backing, s, e);
}

static int parse_line(ut_maps *m, const char *p, const char *end, ut_region *r)
{
	uint64_t major, minor;

	*r = (ut_region){0};
	if (!(p = number(p, end, 16, '-', &r->start)) || !(p = number(p, end, 16, ' ', &r->end)) ||
	    end - p < 5)
		return -EINVAL;
	r->prot = (p[0] == 'r') | (p[1] == 'w') << 1 | (p[2] == 'x') << 2;
	r->shared = p[3] == 's';
	p += 5;
	if (!(p = number(p, end, 16, ' ', &r->offset)) || !(p = number(p, end, 16, ':', &major)) ||
	    !(p = number(p, end, 16, ' ', &minor)))
		return -EINVAL;
	r->major = major;
	r->minor = minor;
	/* The inode ends at a space where a name follows, or at the line's end in old kernels. */
	r->inode = 0;
	for (; p < end && *p >= '0' && *p <= '9'; p++)
		r->inode = r->inode * 10 + (*p - '0');
	while (p < end && *p == ' ')
		p++;
	r->name = p - m->text;
	r->deleted = r->named_deleted = ends(p, end, " (deleted)");
	ut_maps_decide(m, r);
	return r->start < r->end ? 0 : -EINVAL;
}

int ut_maps_parse(ut_maps *m)
{
	const char *p = m->text, *end = m->text + m->len;

	m->n = 0;
	while (p < end) {
		const char *eol = memchr(p, '\n', end - p);

		if (!eol)
			return -EINVAL;
		TRY(VEC_ROOM(m->regions, m->n, m->cap));
		TRY(parse_line(m, p, eol, &m->regions[m->n]));
		m->n++;
		p = eol + 1;
	}
	return 0;
}

int ut_maps_read(ut_maps *m, int pid, int tid)
{
	AUTO_FD fd = ut_open_task(pid, tid, "maps");

	if (fd < 0)
		return fd;
	m->len = 0;
	for (;;) {
		ssize_t n;

		if (m->text_cap - m->len < 16384) {
			char *v = realloc(m->text, m->text_cap * 2 + 65536);

			if (!v)
				return -ENOMEM;
			m->text = v;
			m->text_cap = m->text_cap * 2 + 65536;
		}
		n = read(fd, m->text + m->len, m->text_cap - m->len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		m->len += n;
	}
	/* A process that has given up its memory has an empty file. */
	return m->len ? ut_maps_parse(m) : -ESRCH;
}

void ut_maps_free(ut_maps *m)
{
	free(m->text);
	free(m->regions);
	*m = (ut_maps){0};
}
