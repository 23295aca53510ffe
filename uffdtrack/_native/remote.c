#include "compat.h"
#include "remote.h"
#include "tracee.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	BATCH = 512,   /* ranges in one call */
	ENTRIES = 512, /* of the pagemap in one read */
	FEW = 8,       /* pages that are read faster than asked about */
	SAMPLES = 4,
	TRIES = 64,
};
#define BATCH_BYTES (64ul << 20)
#define SLOW_BYTES (4ul << 20)

static int entry_at(const ut_remote *r, uint64_t address, uint64_t *entry)
{
	return pread(r->pagemap, entry, 8, address / UT_PAGE * 8) == 8;
}

/* 1: a page of its own that nobody shares, 0: shared, -1: not there, or a file's. */
static int is_alone(const ut_remote *r, uint64_t address)
{
	uint64_t entry;

	if (!entry_at(r, address, &entry) || !(entry & UT_ENTRY_PRESENT) || (entry & UT_ENTRY_FILE))
		return -1;
	return !!(entry & UT_ENTRY_ALONE);
}

/* Merged pages, too, are copied when they are pinned. */
static int is_merged(const ut_remote *r)
{
	char path[64];
	unsigned long n = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/ksm_merging_pages", r->tid);
	file = fopen(path, "re");
	if (!file)
		return 0;
	if (fscanf(file, "%lu", &n) != 1)
		n = 0;
	fclose(file);
	return n > 0;
}

/* After a fork all that parent and child have is shared, until one of them writes it or ends. What neither writes is
 * asked: relocated data, which is read-only (the first page of a read-only mapping that is not the file's any more), and
 * besides, the oldest page of the stack and of a program's data. */
int ut_remote_shared(const ut_remote *r, const ut_maps *m)
{
	int found = 0, tries = 0, alone;

	for (size_t i = 0; i < m->n && found < SAMPLES && tries < TRIES; i++) {
		const ut_region *at = &m->regions[i];

		if (at->kind != UT_KIND_FILE || (at->prot & 4))
			continue;
		tries++;
		alone = is_alone(r, at->start);
		if (!alone)
			return 1;
		found += alone > 0;
	}
	for (size_t i = m->n; i-- && m->n - i < 16;) {
		if (strncmp(m->text + m->regions[i].name, "[stack]", 7))
			continue;
		alone = is_alone(r, m->regions[i].end - UT_PAGE);
		if (!alone)
			return 1;
		found += alone > 0;
	}
	return !found || is_merged(r);
}

int ut_remote_alone(int pid, int tid)
{
	ut_remote r = {.tid = tid, .mem = -1};
	ut_maps maps = {0};
	char path[64];
	int alone = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/pagemap", pid, tid);
	r.pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (r.pagemap < 0)
		return 0;
	if (!ut_maps_read(&maps, pid, tid))
		alone = !ut_remote_shared(&r, &maps);
	ut_maps_free(&maps);
	close(r.pagemap);
	return alone;
}

int ut_remote_overdue(const ut_remote *r)
{
	return r->give_up_ns && ut_now_ns() >= r->give_up_ns ? -ETIME : 0;
}

/* By /proc/PID/mem: also what has no read permission. */
static int read_slow(const ut_remote *r, uint64_t addr, size_t len, uint8_t *to, ut_runs *unreadable)
{
	while (len) {
		ssize_t n = pread(r->mem, to, len < SLOW_BYTES ? len : SLOW_BYTES, addr);

		if (ut_remote_overdue(r))
			return -ETIME;
		if (n <= 0) {
			if (n < 0 && errno == EINTR)
				continue;
			if (n == 0) /* the memory is gone: the process has ended or called exec */
				return -ESRCH;
			if (errno != EIO && errno != EFAULT)
				return -errno;
			memset(to, 0, UT_PAGE);
			int err = runs_push(unreadable, addr, addr + UT_PAGE);

			if (err)
				return err;
			n = UT_PAGE;
		}
		n &= ~(UT_PAGE - 1);
		if (!n)
			return -EIO;
		addr += n;
		to += n;
		len -= n;
	}
	return 0;
}

/* Ranges that are to be read by one call. */
struct batch {
	const ut_remote *r;
	struct iovec v[BATCH];
	size_t n, bytes;
	uint8_t *to;
	ut_runs *unreadable;
};

static int flush(struct batch *b)
{
	size_t i = 0;
	int err;

	while (i < b->n) {
		if (ut_remote_overdue(b->r))
			return -ETIME;
		struct iovec local = {b->to, b->bytes};
		ssize_t got = process_vm_readv(b->r->tid, &local, 1, &b->v[i], b->n - i, 0);

		if (got < 0 && errno != EFAULT)
			return -errno;
		got = got < 0 ? 0 : got & ~(UT_PAGE - 1);
		b->to += got;
		b->bytes -= got;
		for (; i < b->n && got >= (ssize_t)b->v[i].iov_len; i++)
			got -= b->v[i].iov_len;
		if (i == b->n)
			break;
		/* Short: this range has something that only the other way reads, or nothing does. */
		b->v[i].iov_base = (uint8_t *)b->v[i].iov_base + got;
		b->v[i].iov_len -= got;
		err = read_slow(b->r, (uint64_t)b->v[i].iov_base, b->v[i].iov_len, b->to, b->unreadable);
		if (err)
			return err;
		b->to += b->v[i].iov_len;
		b->bytes -= b->v[i].iov_len;
		i++;
	}
	b->n = b->bytes = 0;
	return 0;
}

static int add_fast(struct batch *b, uint64_t start, uint64_t end)
{
	int err = b->n == BATCH || b->bytes >= BATCH_BYTES ? flush(b) : 0;

	if (err)
		return err;
	b->v[b->n++] = (struct iovec){(void *)start, end - start};
	b->bytes += end - start;
	return 0;
}

static int add_slow(struct batch *b, uint64_t start, uint64_t end)
{
	int err = b->n ? flush(b) : 0;

	if (!err)
		err = read_slow(b->r, start, end - start, b->to, b->unreadable);
	b->to += end - start;
	return err;
}

/* A pin leaves alone what is a file's, what nobody shares, and what is not there. */
static int is_safe(uint64_t entry)
{
	return !(entry & (UT_ENTRY_PRESENT | UT_ENTRY_SWAPPED)) ||
	       ((entry & UT_ENTRY_PRESENT) && (entry & (UT_ENTRY_FILE | UT_ENTRY_ALONE)));
}

static int add_asked(struct batch *b, uint64_t start, uint64_t end)
{
	uint64_t entry[ENTRIES];
	int err = 0;

	while (start < end && !err) {
		size_t n = (end - start) / UT_PAGE, i = 0, k;
		ssize_t got = pread(b->r->pagemap, entry, (n > ENTRIES ? ENTRIES : n) * 8, start / UT_PAGE * 8);

		if (got <= 0)
			return got ? -errno : -ESRCH;
		for (n = got / 8; i < n && !err; i = k) {
			int safe = is_safe(entry[i]);

			for (k = i + 1; k < n && is_safe(entry[k]) == safe; k++)
				;
			err = (safe ? add_fast : add_slow)(b, start + i * UT_PAGE, start + k * UT_PAGE);
		}
		start += n * UT_PAGE;
	}
	return err;
}

int ut_remote_read(const ut_remote *r, const ut_run *runs, size_t n, uint8_t *to, ut_runs *unreadable)
{
	struct batch b = {.r = r, .to = to, .unreadable = unreadable};
	int err = 0;

	for (size_t i = 0; i < n && !err; i++) {
		if (!r->shared)
			err = add_fast(&b, runs[i].start, runs[i].end);
		else if (runs[i].end - runs[i].start < FEW * UT_PAGE)
			err = add_slow(&b, runs[i].start, runs[i].end);
		else
			err = add_asked(&b, runs[i].start, runs[i].end);
	}
	return err ? err : flush(&b);
}
