#include "cleanup.h"
#include "clock.h"
#include "compat.h"
#include "sabotage.h"
#include "proc_stat.h"
#include "reader.h"

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

static int reopen(const ut_reader *r, const char *name, int32_t *fd)
{
	ut_close_fd(fd);
	*fd = ut_open_task(r->pid, r->tid, name);
	return *fd < 0 ? *fd : 0;
}

int ut_reader_open(ut_reader *r)
{
	TRY(reopen(r, "pagemap", &r->pagemap));
	return reopen(r, "mem", &r->mem);
}

void ut_reader_close(ut_reader *r)
{
	ut_close_fd(&r->pagemap);
	ut_close_fd(&r->mem);
	r->pagemap = r->mem = -1;
}

int ut_reader_overdue(const ut_reader *r)
{
	if (!r->give_up_ns)
		return 0;
	ut_sabotage("look");
	return ut_now_ns() >= r->give_up_ns ? -ETIME : 0;
}

long ut_reader_entries(const ut_reader *r, uint64_t start, uint64_t end, uint64_t *out, size_t room)
{
	size_t n = (end - start) / UT_PAGE;
	ssize_t got = pread(r->pagemap, out, (n < room ? n : room) * 8, start / UT_PAGE * 8);

	if (got <= 0)
		return got ? -errno : -ESRCH;
	return got / 8;
}

int ut_reader_peek(const ut_reader *r, uint64_t address, void *to, size_t n)
{
	uint64_t entry[2], first = address & ~(UT_PAGE - 1), end = (address + n + UT_PAGE - 1) & ~(UT_PAGE - 1);
	long pages = (end - first) / UT_PAGE;

	if (address >= UT_TASK_SIZE - n || ut_reader_entries(r, first, end, entry, 2) != pages)
		return 0;
	for (long i = 0; i < pages; i++)
		if (!(entry[i] & (UT_ENTRY_PRESENT | UT_ENTRY_SWAPPED)))
			return 0;
	/* By /proc/PID/mem, which waits for no userfaultfd. */
	return pread(r->mem, to, n, address) == (ssize_t)n;
}

/* 1: a page of its own that nobody shares, 0: shared, -1: not there, or a file's. */
static int is_alone(const ut_reader *r, uint64_t address)
{
	uint64_t entry;

	if (ut_reader_entries(r, address, address + UT_PAGE, &entry, 1) != 1 || !(entry & UT_ENTRY_PRESENT) ||
	    (entry & UT_ENTRY_FILE))
		return -1;
	return !!(entry & UT_ENTRY_ALONE);
}

/* Merged pages, too, are copied when they are pinned. */
static int is_merged(const ut_reader *r)
{
	char path[64];
	unsigned long n = 0;

	snprintf(path, sizeof(path), "/proc/%d/ksm_merging_pages", r->tid);
	AUTO_FILE file = fopen(path, "re");

	return file && fscanf(file, "%lu", &n) == 1 && n > 0;
}

/* After a fork all that parent and child have is shared, until one of them writes it or ends. What neither writes is
 * asked: relocated data, which is read-only (the first page of a read-only mapping that is not the file's any more), and
 * besides, the oldest page of the stack and of a program's data. */
static int may_be_shared(const ut_reader *r, const ut_maps *m)
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

void ut_reader_ask_shared(ut_reader *r, const ut_maps *m)
{
	r->shared = may_be_shared(r, m);
}

int ut_is_alone(int pid, int tid)
{
	ut_reader r = UT_READER_OF(pid);
	ut_maps maps = {0};
	int alone;

	r.tid = tid;
	alone = !ut_reader_open(&r) && !ut_maps_read(&maps, pid, tid) && !may_be_shared(&r, &maps);
	ut_maps_free(&maps);
	ut_reader_close(&r);
	return alone;
}

/* By /proc/PID/mem: also what has no read permission. */
static int read_slow(const ut_reader *r, uint64_t addr, size_t len, uint8_t *to, ut_runs *unreadable)
{
	while (len) {
		ssize_t n = pread(r->mem, to, len < SLOW_BYTES ? len : SLOW_BYTES, addr);

		TRY(ut_reader_overdue(r));
		if (n <= 0) {
			if (n < 0 && errno == EINTR)
				continue;
			if (n == 0) /* the memory is gone: the process has ended or called exec */
				return -ESRCH;
			if (errno != EIO && errno != EFAULT)
				return -errno;
			memset(to, 0, UT_PAGE);
			TRY(runs_push(unreadable, addr, addr + UT_PAGE));
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
	const ut_reader *r;
	struct iovec v[BATCH];
	size_t n, bytes;
	uint8_t *to;
	ut_runs *unreadable;
};

static int flush(struct batch *b)
{
	size_t i = 0;

	while (i < b->n) {
		TRY(ut_reader_overdue(b->r));
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
		TRY(read_slow(b->r, (uint64_t)b->v[i].iov_base, b->v[i].iov_len, b->to, b->unreadable));
		b->to += b->v[i].iov_len;
		b->bytes -= b->v[i].iov_len;
		i++;
	}
	b->n = b->bytes = 0;
	return 0;
}

static int add_fast(struct batch *b, uint64_t start, uint64_t end)
{
	if (b->n == BATCH || b->bytes >= BATCH_BYTES)
		TRY(flush(b));
	b->v[b->n++] = (struct iovec){(void *)start, end - start};
	b->bytes += end - start;
	return 0;
}

static int add_slow(struct batch *b, uint64_t start, uint64_t end)
{
	TRY(flush(b));
	TRY(read_slow(b->r, start, end - start, b->to, b->unreadable));
	b->to += end - start;
	return 0;
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

	while (start < end) {
		long n = ut_reader_entries(b->r, start, end, entry, ENTRIES);

		TRY(n);
		for (long i = 0, k; i < n; i = k) {
			int safe = is_safe(entry[i]);

			for (k = i + 1; k < n && is_safe(entry[k]) == safe; k++)
				;
			TRY((safe ? add_fast : add_slow)(b, start + i * UT_PAGE, start + k * UT_PAGE));
		}
		start += n * UT_PAGE;
	}
	return 0;
}

int ut_reader_read(const ut_reader *r, const ut_run *runs, size_t n, uint8_t *to, ut_runs *unreadable)
{
	struct batch b = {.r = r, .to = to, .unreadable = unreadable};

	for (size_t i = 0; i < n; i++) {
		if (!r->shared)
			TRY(add_fast(&b, runs[i].start, runs[i].end));
		else if (runs[i].end - runs[i].start < FEW * UT_PAGE)
			TRY(add_slow(&b, runs[i].start, runs[i].end));
		else
			TRY(add_asked(&b, runs[i].start, runs[i].end));
	}
	return flush(&b);
}
