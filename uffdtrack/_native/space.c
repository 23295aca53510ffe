#include "compat.h"
#include "exits.h"
#include "guard.h"
#include "space.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/vfs.h>
#include <unistd.h>

#define VEC 16384
#define SMALL (512ul << 10) /* is compared in 0.1 ms */
#define SMALL_IN_ALL 4      /* times that */
#define SHARES 4
#define BOUNCE (64 * UT_PAGE) /* is compared while it is in the processor's cache */
#define ARM_BYTES (256ul << 20) /* is armed between two looks at the clock */
#define GAP (375 * UT_PAGE) /* is walked for the price of another call, see rearm.c */
#define SHARE_BYTES (1ul << 20) /* below that a thread costs more than it saves */
#define POPULATED (UT_PAGE_IS_PRESENT | UT_PAGE_IS_SWAPPED)

/* The target has stood for as long as it may, and is to be let go. */
static int is_overdue(const ut_space *s)
{
	if (!s->give_up_ns)
		return 0;
	ut_sabotage("look");
	return ut_now_ns() >= s->give_up_ns ? -ETIME : 0;
}

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

typedef int (*found_fn)(void *arg, const struct ut_page_region *r);

/* One PAGEMAP_SCAN over [start, end), in as many calls as it takes. */
static int scan(int pagemap, struct ut_page_region *vec, uint64_t start, uint64_t end,
		uint64_t flags, uint64_t mask, uint64_t anyof, uint64_t ret, found_fn found,
		void *arg)
{
	/* The kernel allocates room for up to 512 results in each call, so most calls ask for few. */
	uint64_t room = 32;

	while (start < end) {
		struct ut_pm_scan_arg a = {
			.size = sizeof(a), .flags = flags, .start = start, .end = end,
			.vec = (uint64_t)vec, .vec_len = room, .category_mask = mask,
			.category_anyof_mask = anyof, .return_mask = ret,
		};
		long n = ioctl(pagemap, UT_PAGEMAP_SCAN, &a);

		if (n < 0)
			return -errno;
		for (long i = 0; i < n; i++)
			TRY(found(arg, &vec[i]));
		if (a.walk_end <= start)
			return -EIO;
		start = a.walk_end;
		room = VEC;
	}
	return 0;
}

/* -- contents ----------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t a, uint64_t b)
{
	__uint128_t p = (__uint128_t)a * b;

	return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static void page_hash(const ut_space *s, const uint8_t *page, uint64_t out[2])
{
	const uint64_t *w = (const uint64_t *)page, *k = s->seed;
	uint64_t a = k[0], b = k[1], c = k[2], d = k[3];

	/* Four chains, each over its quarter of the words, with secrets that no target knows. */
	for (int i = 0; i < 512; i += 8) {
		a = mix(a ^ w[i], k[4] ^ w[i + 1]);
		b = mix(b ^ w[i + 2], k[5] ^ w[i + 3]);
		c = mix(c ^ w[i + 4], k[6] ^ w[i + 5]);
		d = mix(d ^ w[i + 6], k[7] ^ w[i + 7]);
	}
	out[0] = mix(a ^ k[7], b ^ k[6]);
	out[1] = mix(c ^ k[5], d ^ k[4]);
}

static ut_digest *digest_slot(ut_digest *v, size_t cap, uint64_t page)
{
	size_t i = (page * 0x9e3779b97f4a7c15ull) >> 20 & (cap - 1);

	while (v[i].page && v[i].page != page + 1)
		i = (i + 1) & (cap - 1);
	return &v[i];
}

static ut_digest *digest_find(const ut_space *s, uint64_t addr)
{
	ut_digest *d;

	if (!s->digests_cap)
		return NULL;
	d = digest_slot(s->digests, s->digests_cap, addr / UT_PAGE);
	return d->page ? d : NULL;
}

static int is_void(const ut_digest *d)
{
	return !d->hash[0] && !d->hash[1];
}

/* Room for one more; what is void is left behind. */
static int digests_grow(ut_space *s)
{
	size_t live = 0, cap = s->digests_cap ? s->digests_cap : 4096;
	ut_digest *v;

	for (size_t i = 0; i < s->digests_cap; i++)
		live += s->digests[i].page && !is_void(&s->digests[i]);
	if (live * 4 >= cap)
		cap *= 2;
	v = calloc(cap, sizeof(*v));
	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < s->digests_cap; i++)
		if (s->digests[i].page && !is_void(&s->digests[i]))
			*digest_slot(v, cap, s->digests[i].page - 1) = s->digests[i];
	free(s->digests);
	s->digests = v;
	s->digests_cap = cap;
	s->ndigests = live;
	return 0;
}

static int digest_put(ut_space *s, uint64_t addr, const uint64_t hash[2])
{
	ut_digest *d;

	if (s->ndigests * 2 >= s->digests_cap)
		TRY(digests_grow(s));
	d = digest_slot(s->digests, s->digests_cap, addr / UT_PAGE);
	if (!d->page)
		s->ndigests++;
	*d = (ut_digest){addr / UT_PAGE + 1, {hash[0], hash[1]}};
	return 0;
}

static void digest_void(ut_digest *d)
{
	d->hash[0] = d->hash[1] = 0;
}

/* What the image has of these pages holds no longer. The same contents may come again, and must not pass for
 * what is stored then. */
static void digests_void(ut_space *s, const ut_runs *ranges)
{
	uint64_t pages = runs_bytes(ranges) / UT_PAGE;

	if (!s->ndigests)
		return;
	if (pages < s->digests_cap) {
		for (size_t i = 0; i < ranges->n; i++)
			for (uint64_t a = ranges->v[i].start; a < ranges->v[i].end; a += UT_PAGE) {
				ut_digest *d = digest_find(s, a);

				if (d)
					digest_void(d);
			}
		return;
	}
	for (size_t i = 0; i < s->digests_cap; i++)
		if (s->digests[i].page && runs_have(ranges, (s->digests[i].page - 1) * UT_PAGE))
			digest_void(&s->digests[i]);
}

/* How its memory is read: by the files that the harvest has opened. */
static ut_remote remote_of(const ut_space *s)
{
	return (ut_remote){s->tid, s->pagemap, s->mem, s->shared, s->give_up_ns};
}

/* Digests of what was stored, of the pages that are found by comparing. */
static int update_digests(ut_space *s, const ut_runs *of, const ut_run *run, const uint8_t *data)
{
	ut_runs part = {0};
	int err = runs_clip(&part, of, run->start, run->end);

	for (size_t i = 0; i < part.n && !err; i++)
		for (uint64_t a = part.v[i].start; a < part.v[i].end && !err; a += UT_PAGE) {
			uint64_t hash[2];

			page_hash(s, data + (a - run->start), hash);
			err = digest_put(s, a, hash);
		}
	runs_free(&part);
	return err;
}

/* Append to `out` the pages of these ranges, which were read to `from`, whose contents are not those that were stored. */
static int differing(const ut_space *s, const ut_run *runs, size_t n, const uint8_t *from, ut_runs *out)
{
	for (size_t i = 0; i < n; i++)
		for (uint64_t a = runs[i].start; a < runs[i].end; a += UT_PAGE, from += UT_PAGE) {
			const ut_digest *d = digest_find(s, a);
			uint64_t hash[2];

			page_hash(s, from, hash);
			if (!d || (!s->blind && (d->hash[0] != hash[0] || d->hash[1] != hash[1])))
				TRY(runs_push(out, a, a + UT_PAGE));
		}
	return 0;
}

/* A share of what is read, for one thread: copied to `to`, or compared. */
struct share {
	const ut_space *s;
	ut_runs runs, unreadable, changed;
	uint8_t *to, *bounce;
	int err;
};

static int compare_share(struct share *c)
{
	const ut_space *s = c->s;
	const ut_runs *pages = &c->runs;
	ut_remote remote = remote_of(s);
	ut_run part[BOUNCE / UT_PAGE];
	size_t i = 0;
	uint64_t at = pages->n ? pages->v[0].start : 0;

	while (i < pages->n) {
		size_t n = 0, len = 0;

		TRY(is_overdue(s));
		for (; i < pages->n && len < BOUNCE; n++) {
			uint64_t size = min64(pages->v[i].end - at, BOUNCE - len);

			part[n] = (ut_run){at, at + size};
			len += size;
			at += size;
			if (at == pages->v[i].end && ++i < pages->n)
				at = pages->v[i].start;
		}
		TRY(ut_remote_read(&remote, part, n, c->bounce, &c->unreadable));
		TRY(differing(s, part, n, c->bounce, &c->changed));
	}
	return 0;
}

static int read_share(struct share *c)
{
	ut_remote remote = remote_of(c->s);

	if (!c->to)
		return compare_share(c);
	return ut_remote_read(&remote, c->runs.v, c->runs.n, c->to, &c->unreadable);
}

static void *read_thread(void *arg)
{
	struct share *c = arg;

	c->err = read_share(c);
	return NULL;
}

/* Cut ranges into `n` shares of about the same size. */
static int deal(const ut_run *runs, size_t nruns, uint64_t bytes, struct share *shares, int n, uint8_t *to)
{
	uint64_t each = (bytes / n + UT_PAGE - 1) & ~(UT_PAGE - 1), room = each;
	int k = 0;

	shares[0].to = to;
	for (size_t i = 0; i < nruns; i++)
		for (uint64_t at = runs[i].start; at < runs[i].end;) {
			uint64_t part = min64(room, runs[i].end - at);

			TRY(runs_push(&shares[k].runs, at, at + part));
			at += part;
			to += to ? part : 0;
			room -= part;
			if (!room && k + 1 < n) {
				shares[++k].to = to;
				room = each;
			} else if (!room) {
				room = ~0ull;
			}
		}
	return 0;
}

/* The target's processors are idle while it stands, so what is much takes them all. */
static int shares_of(uint64_t bytes)
{
	uint64_t wanted = min64(bytes / SHARE_BYTES + 1, SHARES);
	cpu_set_t cpus;

	if (wanted == 1 || sched_getaffinity(0, sizeof(cpus), &cpus))
		return 1;
	return min64(wanted, CPU_COUNT(&cpus));
}

/* Copy pages to `to`, or where that is NULL append those to `changed` that are not as they were stored. */
static int read_shared(ut_space *s, const ut_run *runs, size_t n, uint8_t *to, ut_runs *changed)
{
	const ut_runs all = {(ut_run *)runs, n, n};
	uint64_t bytes = runs_bytes(&all);
	struct share shares[SHARES] = {{0}};
	pthread_t threads[SHARES];
	int k = shares_of(bytes), started = 1, err;

	err = deal(runs, n, bytes, shares, k, to);
	for (int i = 0; i < k; i++) {
		shares[i].s = s;
		shares[i].bounce = s->bounce + i * BOUNCE;
	}
	for (; started < k && !err; started++)
		if (pthread_create(&threads[started], NULL, read_thread, &shares[started]))
			break;
	if (!err)
		err = read_share(&shares[0]);
	for (int i = 1; i < k; i++) {
		if (i < started)
			pthread_join(threads[i], NULL);
		else if (!err)
			shares[i].err = read_share(&shares[i]);
		if (!err)
			err = shares[i].err;
	}
	for (int i = 0; i < k; i++) {
		if (!err)
			err = runs_append(&s->unreadable, &shares[i].unreadable);
		if (!err && changed)
			err = runs_append(changed, &shares[i].changed);
		runs_free(&shares[i].unreadable);
		runs_free(&shares[i].changed);
		runs_free(&shares[i].runs);
	}
	return err;
}

int ut_space_copy(ut_space *s, const ut_run *runs, size_t n, uint8_t *to)
{
	ut_remote remote = remote_of(s);

	/* It may have forked since the harvest, if it runs. */
	s->shared = ut_remote_shared(&remote, &s->maps);
	s->unreadable.n = 0;
	TRY(read_shared(s, runs, n, to, NULL));
	if (!s->known.n && !s->kept.n && !s->bare.n)
		return 0;
	for (size_t i = 0; i < n; i++) {
		TRY(update_digests(s, &s->known, &runs[i], to));
		TRY(update_digests(s, &s->kept, &runs[i], to));
		TRY(update_digests(s, &s->bare, &runs[i], to));
		to += runs[i].end - runs[i].start;
	}
	return 0;
}

int ut_space_reserve(ut_space *s, size_t bytes)
{
	void *v;

	if (bytes <= s->buf_cap)
		return 0;
	bytes = (bytes + bytes / 2 + UT_HUGE - 1) & ~(UT_HUGE - 1);
	if (s->buf)
		munmap(s->buf, s->buf_cap);
	s->buf = NULL;
	s->buf_cap = 0;
	v = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		 -1, 0);
	if (v == MAP_FAILED)
		return -errno;
	madvise(v, bytes, MADV_HUGEPAGE);
	s->buf = v;
	s->buf_cap = bytes;
	return 0;
}

int ut_split_zero(uint8_t *buf, const ut_runs *runs, ut_runs *data, ut_runs *zero)
{
	const uint8_t *from = buf;
	uint8_t *to = buf;

	data->n = zero->n = 0;
	for (size_t i = 0; i < runs->n; i++)
		for (uint64_t a = runs->v[i].start; a < runs->v[i].end; a += UT_PAGE) {
			const uint64_t *w = (const uint64_t *)from;
			uint64_t any = 0;

			for (int k = 0; k < 512 && !any; k += 8)
				any = w[k] | w[k + 1] | w[k + 2] | w[k + 3] | w[k + 4] | w[k + 5] |
				      w[k + 6] | w[k + 7];
			TRY(runs_push(any ? data : zero, a, a + UT_PAGE));
			if (any) {
				if (to != from)
					memmove(to, from, UT_PAGE);
				to += UT_PAGE;
			}
			from += UT_PAGE;
		}
	return 0;
}

/* -- what was written ---------------------------------------------------------------------------- */

static int found_plain(void *arg, const struct ut_page_region *r)
{
	return runs_push(arg, r->start, r->end);
}

static int found_private(void *arg, const struct ut_page_region *r)
{
	/* A swapped entry of a file mapping may be a mere marker; reading it tells. */
	if ((r->categories & UT_PAGE_IS_FILE) && !(r->categories & UT_PAGE_IS_SWAPPED))
		return 0;
	return runs_push(arg, r->start, r->end);
}

/* Anonymous memory. Where pages are, the fast path of PAGEMAP_SCAN (category_mask and return_mask
 * WRITTEN only) goes over every PTE, empty ones included: a zapped page is reported once. It would
 * also build page tables for what was never touched, so the rest of a mapping, which may be a
 * reservation of terabytes, is only looked through for pages that have come. */
static int written_entries(ut_space *s, uint64_t start, uint64_t end)
{
	uint64_t entry[512];

	/* Page table entries say which of a long run are there at all (bit 63 present, 62 swapped);
	 * the others are back to zero. */
	while (start < end) {
		size_t n = (end - start) / UT_PAGE;
		ssize_t got = pread(s->pagemap, entry, (n > 512 ? 512 : n) * 8, start / UT_PAGE * 8);

		if (got <= 0)
			return got ? -errno : -ESRCH;
		for (ssize_t i = 0; i < got / 8; i++, start += UT_PAGE)
			TRY(runs_push(entry[i] >> 62 ? &s->want : &s->gone, start, start + UT_PAGE));
	}
	return 0;
}

static int found_written(void *arg, const struct ut_page_region *r)
{
	ut_space *s = arg;

	if (r->end - r->start < 16 * UT_PAGE)
		return runs_push(&s->want, r->start, r->end);
	return written_entries(s, r->start, r->end);
}

static int widen(ut_space *s, const ut_runs *pages, const ut_region *r)
{
	for (size_t i = 0; i < pages->n; i++) {
		uint64_t start = pages->v[i].start & ~(UT_HUGE - 1);
		uint64_t end = (pages->v[i].end + UT_HUGE - 1) & ~(UT_HUGE - 1);

		TRY(runs_push(&s->next_spans, start < r->start ? r->start : start, min64(end, r->end)));
	}
	return 0;
}

/* The rest of a mapping: pages that have come. */
static int look_for_new(ut_space *s, const ut_region *r, uint64_t start, uint64_t end)
{
	s->found.n = 0;
	TRY(scan(s->pagemap, s->vec, start, end, UT_SCAN_WP_MATCHING | UT_SCAN_CHECK_WPASYNC, 0, POPULATED,
		 POPULATED, found_plain, &s->found));
	TRY(runs_append(&s->want, &s->found));
	return widen(s, &s->found, r);
}

static int look_for_written(ut_space *s, uint64_t start, uint64_t end)
{
	return scan(s->pagemap, s->vec, start, end, UT_SCAN_WP_MATCHING | UT_SCAN_CHECK_WPASYNC,
		    UT_PAGE_IS_WRITTEN, 0, UT_PAGE_IS_WRITTEN, found_written, s);
}

/* Everywhere: `spans` are under traps but for what was written. */
static int look_everywhere(ut_space *s, const ut_region *r, const ut_runs *spans)
{
	uint64_t at = r->start;

	for (size_t i = 0; i < spans->n; i++) {
		TRY(look_for_new(s, r, at, spans->v[i].start));
		TRY(look_for_written(s, spans->v[i].start, spans->v[i].end));
		at = spans->v[i].end;
	}
	return look_for_new(s, r, at, r->end);
}

static int is_registered(ut_space *s, uint64_t page)
{
	ut_runs ignored = {0};
	int err = scan(s->pagemap, s->vec, page, page + UT_PAGE, UT_SCAN_CHECK_WPASYNC, UT_PAGE_IS_WRITTEN,
		       0, UT_PAGE_IS_WRITTEN, found_plain, &ignored);

	runs_free(&ignored);
	return err;
}

/* Only where there were faults. In `spans` one fault is one page; elsewhere it may have brought a huge one. */
static int look_where_touched(ut_space *s, const ut_region *r, const ut_runs *spans, const ut_runs *zapped)
{
	ut_runs touched = {0}, inside = {0}, outside = {0}, blocks = {0}, rest = {0};
	int err = runs_clip(&touched, &s->news.touched, r->start, r->end);

	if (!err)
		err = runs_minus(&outside, &touched, spans);
	if (!err)
		err = runs_minus(&inside, &touched, &outside);
	if (!err)
		err = runs_append(&blocks, zapped);
	for (size_t i = 0; i < outside.n && !err; i++) {
		uint64_t start = outside.v[i].start & ~(UT_HUGE - 1);
		uint64_t end = (outside.v[i].end + UT_HUGE - 1) & ~(UT_HUGE - 1);

		err = runs_push(&blocks, start < r->start ? r->start : start, min64(end, r->end));
	}
	runs_normalise(&blocks);
	if (!err)
		err = runs_minus(&rest, &blocks, spans);
	for (size_t i = 0; i < rest.n && !err; i++)
		err = look_for_new(s, r, rest.v[i].start, rest.v[i].end);
	for (size_t i = 0, k; i < inside.n && !err; i = k) {
		for (k = i + 1; k < inside.n && inside.v[k].start - inside.v[k - 1].end <= GAP; k++)
			;
		err = look_for_written(s, inside.v[i].start, inside.v[k - 1].end);
	}
	if (!err && !rest.n && !inside.n)
		err = is_registered(s, r->start);
	for (ut_runs *v[] = {&touched, &inside, &outside, &blocks, &rest}, **at = v; at < v + 5; at++)
		runs_free(*at);
	return err;
}

/* What was given back is zero, but for the pages that have come again. */
static int note_zapped(ut_space *s, const ut_runs *zapped)
{
	if (!zapped->n)
		return 0;
	runs_normalise(&s->want);
	return runs_minus(&s->gone, zapped, &s->want);
}

static int harvest_anon(ut_space *s, const ut_region *r, int all)
{
	ut_runs before = {0}, zapped = {0}, spans = {0};
	int err = runs_clip(&before, &s->spans, r->start, r->end);

	if (!err)
		err = runs_clip(&zapped, &s->news.zapped, r->start, r->end);
	if (!err)
		err = runs_minus(&spans, &before, &zapped);
	if (!err)
		err = s->by_news && !all ? look_where_touched(s, r, &spans, &zapped) : look_everywhere(s, r, &spans);
	if (!err)
		err = runs_append(&s->next_spans, &spans);
	if (!err)
		err = note_zapped(s, &zapped);
	runs_free(&before);
	runs_free(&zapped);
	runs_free(&spans);
	return err;
}

struct diff {
	ut_space *s;
	int file;    /* a file is behind the mapping; only pages that are not the file's are kept */
	int all;     /* written or not */
	int written; /* some page was: it has to be armed */
};

static int found_diff(void *arg, const struct ut_page_region *r)
{
	struct diff *d = arg;
	int swapped = !!(r->categories & UT_PAGE_IS_SWAPPED);

	d->written |= !!(r->categories & UT_PAGE_IS_WRITTEN);
	if (d->file && (r->categories & UT_PAGE_IS_FILE) && !swapped)
		return 0;
	TRY(runs_push(&d->s->found, r->start, r->end));
	/* A swapped entry of a file mapping may be a marker left by a zapped page. Reading it makes
	 * it a page again, so it is taken once. */
	if (d->all || (r->categories & UT_PAGE_IS_WRITTEN) || (d->file && swapped))
		return runs_push(&d->s->want, r->start, r->end);
	return 0;
}

static int found_any(void *arg, const struct ut_page_region *r)
{
	*(uint64_t *)arg += r->end - r->start;
	return 0;
}

static int found_own(void *arg, const struct ut_page_region *r)
{
	if (!(r->categories & (UT_PAGE_IS_FILE | UT_PAGE_IS_SWAPPED)))
		*(uint64_t *)arg += r->end - r->start;
	return 0;
}

/* 1: nothing of a file mapping was written or given back, its pages are `kept` as they were. To know
 * whether a page is the file's costs the kernel a look at the page itself, so that is asked only of
 * the few that are not. */
static int diff_unchanged(ut_space *s, const ut_region *r, const ut_runs *kept)
{
	uint64_t written = 0, own = 0;

	TRY(scan(s->pagemap, s->vec, r->start, r->end, UT_SCAN_CHECK_WPASYNC, UT_PAGE_IS_WRITTEN,
		 POPULATED, UT_PAGE_IS_WRITTEN, found_any, &written));
	if (written)
		return 0;
	for (size_t i = 0; i < kept->n; i++)
		TRY(scan(s->pagemap, s->vec, kept->v[i].start, kept->v[i].end, 0, 0, POPULATED,
			 POPULATED | UT_PAGE_IS_FILE, found_own, &own));
	return own == runs_bytes(kept);
}

/* What is there now against what was: for file mappings, where a page that is not there any more is
 * the file's again. */
static int harvest_diff(ut_space *s, const ut_region *r, int all)
{
	const uint64_t categories = POPULATED | UT_PAGE_IS_WRITTEN | UT_PAGE_IS_FILE;
	struct diff d = {s, r->kind != UT_KIND_ANON, all, 0};
	ut_runs old = {0};
	int err = runs_clip(&old, &s->kept, r->start, r->end), same = 0;

	s->found.n = 0;
	if (!err && !all && d.file)
		err = same = diff_unchanged(s, r, &old);
	if (err >= 0 && same) {
		err = runs_clip(&s->found, &old, r->start, r->end);
	} else {
		if (err >= 0)
			err = scan(s->pagemap, s->vec, r->start, r->end, UT_SCAN_CHECK_WPASYNC, 0,
				   POPULATED, categories, found_diff, &d);
		/* Only what was written is armed; looking again finds what was written in between. */
		if (err >= 0 && d.written)
			err = scan(s->pagemap, s->vec, r->start, r->end,
				   UT_SCAN_WP_MATCHING | UT_SCAN_CHECK_WPASYNC, UT_PAGE_IS_WRITTEN,
				   POPULATED, categories, found_diff, &d);
		runs_normalise(&s->found);
		if (err >= 0)
			err = runs_minus(&s->gone, &old, &s->found);
	}
	if (err >= 0)
		err = runs_append(&s->next_kept, &s->found);
	runs_free(&old);
	return err < 0 ? err : 0;
}

static int same_object(const ut_region *a, const ut_region *b)
{
	return a->kind == b->kind && a->inode == b->inode && a->major == b->major &&
	       a->minor == b->minor && a->offset - a->start == b->offset - b->start;
}

/* The first of these mappings, which are sorted, that ends after `addr`. */
static size_t first_after(const ut_maps *m, uint64_t addr)
{
	size_t low = 0, high = m->n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (m->regions[middle].end <= addr)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

int ut_stood_before(const ut_space *s, const ut_region *r)
{
	int seen = 0;

	for (size_t i = first_after(&s->before, r->start); i < s->before.n; i++) {
		const ut_region *b = &s->before.regions[i];

		if (b->start >= r->end)
			break;
		if (!same_object(b, r))
			return 0;
		seen = 1;
	}
	return seen;
}

/* Of the mappings that stood here at the last harvest, how many were compared (1), or not (0). */
static size_t count_before(const ut_space *s, const ut_region *r, int compared)
{
	size_t n = 0;

	for (size_t i = first_after(&s->before, r->start); i < s->before.n; i++) {
		const ut_region *b = &s->before.regions[i];

		if (b->start >= r->end)
			break;
		n += b->kind == r->kind && b->compared == compared;
	}
	return n;
}

/* Whether there is a digest of all that the image has of this place. There is none of what was under traps. Of anonymous
 * memory one piece is as good as another: all that can be there is zeros, or a page whose contents are looked at. */
static int is_known(const ut_space *s, const ut_region *r)
{
	size_t end = first_after(&s->before, r->end - 1), n = count_before(s, r, 1);

	if (r->kind != UT_KIND_ANON)
		return n && !count_before(s, r, 0) && ut_stood_before(s, r);
	if (end < s->before.n && s->before.regions[end].start < r->end)
		end++;
	return n && n == end - first_after(&s->before, r->start);
}

/* Writable private mappings of a file: the pages that are not the file's any more, compared. Traps would be wrong:
 *
 * - A page that is given back keeps its trap, in a marker. A write takes two faults then: the first makes a page
 *   out of the file's, armed by the marker, the second is the trap. A thread that stands between the two leaves a
 *   page that looks as if nothing had happened to it.
 * - MADV_GUARD_INSTALL repeats until it finds no page, and takes the markers that it leaves for pages. */
static int harvest_own(ut_space *s, const ut_region *r, int flags)
{
	ut_runs old = {0};
	int err;

	s->found.n = 0;
	TRY(scan(s->pagemap, s->vec, r->start, r->end, 0, 0, POPULATED, POPULATED | UT_PAGE_IS_FILE,
		 found_private, &s->found));
	runs_normalise(&s->found);
	TRY(runs_append(&s->next_kept, &s->found));
	if ((flags & UT_FULL) || !ut_stood_before(s, r)) {
		TRY(runs_append(&s->want, &s->found));
		return runs_push(&s->fresh, r->start, r->end);
	}
	err = runs_clip(&old, &s->kept, r->start, r->end);
	if (!err)
		err = runs_minus(&s->gone, &old, &s->found);
	if (!err)
		err = read_shared(s, s->found.v, s->found.n, NULL, &s->want);
	runs_free(&old);
	return err;
}

/* Pages of a file in memory that others have written and the target has not touched yet. Only who may open
 * /proc/PID/map_files (CAP_CHECKPOINT_RESTORE) can know of them; without, they are what they are when the
 * target touches them. */
static int found_in_file(ut_space *s, const ut_region *r)
{
	char path[96];
	struct statfs fs;
	off_t at = r->offset, end = r->offset + (r->end - r->start);
	int fd, err = 0;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%lx-%lx", s->pid, r->start, r->end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	/* hugetlbfs says of holes that they are data, and reading them takes pages from the pool. */
	if (fstatfs(fd, &fs) || fs.f_type == HUGETLBFS_MAGIC)
		at = end;
	while (!err && at < end) {
		off_t data = lseek(fd, at, SEEK_DATA), hole = lseek(fd, data < 0 ? at : data, SEEK_HOLE);
		uint64_t first = data & ~(UT_PAGE - 1), last = (hole + UT_PAGE - 1) & ~(UT_PAGE - 1);

		/* Some files answer the same for ever, or any number: /dev/zero says 0. */
		if (data < at || data >= end || hole <= data)
			break;
		err = runs_push(&s->found, r->start + (first - r->offset),
				r->start + (min64(last, end) - r->offset));
		at = hole;
	}
	close(fd);
	return err;
}

/* Pages of private memory that were there and are not: zero. Reading one would bring it back, of hugetlb from the pool. */
static int harvest_zeroed(ut_space *s, const ut_region *r)
{
	ut_runs old = {0};
	int err = runs_clip(&old, &s->known, r->start, r->end);

	if (!err)
		err = runs_minus(&s->gone, &old, &s->found);
	runs_free(&old);
	return err;
}

/* Mappings that others may write through page tables of their own, or through a file that the image does not stand
 * on (a memfd that is mapped private); those that cannot be registered; and hugetlb pages, which keep their trap
 * when they are given back: compare every page that is or was there
 * with the digest of what was stored. */
static int harvest_compare(ut_space *s, ut_region *r, int flags)
{
	int known = !(flags & UT_FULL) && is_known(s, r), err;

	r->compared = 1;
	s->found.n = 0;
	TRY(scan(s->pagemap, s->vec, r->start, r->end, 0, 0, POPULATED, POPULATED, found_plain,
		 &s->found));
	if (r->in_memory)
		TRY(found_in_file(s, r));
	if (known && (r->kind == UT_KIND_HUGE || r->kind == UT_KIND_ANON)) {
		TRY(harvest_zeroed(s, r));
	} else if (known)
		TRY(runs_clip(&s->found, &s->known, r->start, r->end));
	else
		TRY(runs_push(&s->fresh, r->start, r->end));
	runs_normalise(&s->found);
	s->compared++;
	TRY(runs_append(&s->next_known, &s->found));
	if (!known)
		return runs_append(&s->want, &s->found);
	s->blind = s->sabotage == UT_SABOTAGE_COMPARE && r->kind == UT_KIND_ANON;
	err = read_shared(s, s->found.v, s->found.n, NULL, &s->want);
	s->blind = 0;
	return err;
}

static int harvest_tracked(ut_space *s, const ut_region *r, int all)
{
	size_t gone = s->gone.n, spans = s->next_spans.n, kept = s->next_kept.n;
	ut_run last[3] = {
		gone ? s->gone.v[gone - 1] : (ut_run){0},
		spans ? s->next_spans.v[spans - 1] : (ut_run){0},
		kept ? s->next_kept.v[kept - 1] : (ut_run){0},
	};
	int err = r->kind == UT_KIND_ANON && !s->diff_all ? harvest_anon(s, r, all)
							  : harvest_diff(s, r, all);

	if (err) {
		/* As if nothing of this mapping had been looked at. */
		s->want.n = 0;
		s->gone.n = gone;
		s->next_spans.n = spans;
		s->next_kept.n = kept;
		if (gone)
			s->gone.v[gone - 1] = last[0];
		if (spans)
			s->next_spans.v[spans - 1] = last[1];
		if (kept)
			s->next_kept.v[kept - 1] = last[2];
	}
	return err;
}

static void forget_range(ut_runs *r, uint64_t start, uint64_t end)
{
	ut_runs hole = {&(ut_run){start, end}, 1, 1}, left = {0};

	if (!r->n || runs_minus(&left, r, &hole))
		return; /* too much is remembered, which is safe */
	runs_free(r);
	*r = left;
}

static int register_wp(ut_space *s, const ut_region *r)
{
	struct uffdio_register reg = {
		.range = {r->start, r->end - r->start},
		.mode = UFFDIO_REGISTER_MODE_WP | (s->sync ? UFFDIO_REGISTER_MODE_MISSING : 0),
	};

	return ioctl(s->uffd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

/* Arm every page of a mapping that was not registered before.
 *
 * PAGEMAP_SCAN is not enough: it arms only pages without the write-protect bit, and takes the bit for the
 * trap. mremap(2) of a registered mapping drops the registration, of a neighbour it merges with too, and
 * leaves the bits; a write then makes such a page writable with the bit still set. The ioctl looks at no
 * bit. It must only be given pages that exist: an empty entry would become a marker and count as clean. */
static int set_traps(const ut_space *s, const ut_runs *runs, uint64_t mode)
{
	for (size_t i = 0; i < runs->n; i++)
		for (uint64_t at = runs->v[i].start, n; at < runs->v[i].end; at += n) {
			struct uffdio_writeprotect wp = {.mode = mode};

			n = min64(runs->v[i].end - at, ARM_BYTES);
			wp.range = (struct uffdio_range){at, n};
			while (ioctl(s->uffd, UFFDIO_WRITEPROTECT, &wp))
				if (errno != EAGAIN && errno != EINTR)
					return -errno;
			TRY(is_overdue(s));
		}
	return 0;
}

static int arm_found(ut_space *s)
{
	return set_traps(s, &s->found, UFFDIO_WRITEPROTECT_MODE_WP);
}

static int arm_all(ut_space *s, const ut_region *r)
{
	s->found.n = 0;
	TRY(scan(s->pagemap, s->vec, r->start, r->end, UT_SCAN_CHECK_WPASYNC, 0, POPULATED, POPULATED,
		 found_plain, &s->found));
	return arm_found(s);
}

static int harvest_fresh(ut_space *s, const ut_region *r, int flags)
{
	int64_t t0 = ut_now_ns();
	int err = register_wp(s, r);

	if (!err)
		err = arm_all(s, r);

	forget_range(&s->spans, r->start, r->end);
	forget_range(&s->kept, r->start, r->end);
	if (!err)
		err = harvest_tracked(s, r, 1);
	s->rearm_ns += ut_now_ns() - t0;
	if (err && (flags & UT_RUNNING))
		err = 0; /* it changes right now; the stop will see what it is */
	return err ? err : runs_push(&s->fresh, r->start, r->end);
}

/* A mapping that has come to this place with its traps, which say nothing of what stood here. */
static int was_moved(const ut_space *s, const ut_region *r)
{
	for (size_t i = 0; i < s->news.moved.n; i++)
		if (s->news.moved.v[i].start < r->end && s->news.moved.v[i].end > r->start)
			return 1;
	return 0;
}

static int populated_of(ut_space *s, const ut_runs *runs)
{
	s->found.n = 0;
	for (size_t i = 0; i < runs->n; i++)
		TRY(scan(s->pagemap, s->vec, runs->v[i].start, runs->v[i].end, 0, 0, POPULATED, POPULATED,
			 found_plain, &s->found));
	return 0;
}

/* Whether a mapping, which is under traps as a whole or not at all, is. The first page is asked for its trap again;
 * where there is no page, that does nothing. */
static int is_armed(ut_space *s, const ut_region *r)
{
	struct uffdio_writeprotect wp = {{r->start, UT_PAGE}, UFFDIO_WRITEPROTECT_MODE_WP};

	while (ioctl(s->uffd, UFFDIO_WRITEPROTECT, &wp))
		if (errno != EAGAIN && errno != EINTR)
			return 0;
	return 1;
}

static int is_under_traps(ut_space *s, const ut_region *r)
{
	return s->sync ? is_armed(s, r) : !is_registered(s, r->start);
}

/* What may become one mapping with this one: what touches it and was not registered before. */
static int may_merge(const ut_space *s, const ut_region *a, const ut_region *b, const ut_region *r, int flags)
{
	return a->end == b->start && r->kind == UT_KIND_ANON && ((flags & UT_FULL) || !count_before(s, r, 0));
}

/* How large that is in all, up to `enough`. */
static uint64_t size_in_all(const ut_space *s, const ut_region *r, int flags, uint64_t enough)
{
	const ut_region *first = s->maps.regions, *last = first + s->maps.n - 1;
	uint64_t size = r->end - r->start;

	for (const ut_region *a = r; size <= enough && a > first && may_merge(s, a - 1, a, a - 1, flags); a--)
		size += a[-1].end - a[-1].start;
	for (const ut_region *a = r; size <= enough && a < last && may_merge(s, a, a + 1, a + 1, flags); a++)
		size += a[1].end - a[1].start;
	return size;
}

/* Small anonymous memory is not registered, but compared.
 *
 * The kernel merges no memory that is registered with memory that is not. What is mapped beside registered memory stays
 * a mapping of its own, for good if it is written before it is registered too, since it has an anon_vma of its own then:
 * mremap(2) over both says EFAULT, and a heap that grows would take one mapping more for each epoch, up to
 * vm.max_map_count. Left alone, pieces merge with those that come later, and are registered as one when they are large.
 *
 * The nearer the process is to its limit of mappings, the larger that is. Writes that are limited (--max-dirty) have to
 * be counted, so nothing is left alone then. A stack merges with nothing. */
static int leave_alone(ut_space *s, const ut_region *r, int flags)
{
	uint64_t size = r->end - r->start, small = SMALL;

	if (s->max_maps)
		small <<= min64(8 * s->maps.n / s->max_maps, 8);
	if (r->kind != UT_KIND_ANON || size > small || s->alone + size > SMALL_IN_ALL * small)
		return 0;
	if ((s->watch && s->watch->limit) || !strncmp(s->maps.text + r->name, "[stack]", 7))
		return 0;
	if (size_in_all(s, r, flags, small) > small || is_under_traps(s, r))
		return 0;
	s->alone += size;
	return 1;
}

static int harvest_alone(ut_space *s, ut_region *r, int flags)
{
	int err = harvest_compare(s, r, flags);

	s->compared--; /* by choice */
	return err;
}

/* sync: arm the pages that were found, but for those where the kernel must be able to write at any time, which it
 * finds without a trap. Nothing tells of a write to those until the next harvest, which compares them; that they were
 * found now says nothing yet. */
static int arm_but_bare(ut_space *s, const ut_region *r, const ut_runs *armed)
{
	ut_runs bare = {0}, was = {0}, silent = {0}, rest = {0};
	int err = runs_clip(&bare, &s->next_bare, r->start, r->end);

	if (!err)
		err = runs_minus(&rest, &s->found, &bare);
	if (!err)
		err = set_traps(s, &rest, UFFDIO_WRITEPROTECT_MODE_WP);
	if (!err)
		err = set_traps(s, &bare, 0);
	/* What was bare, and under traps but for that: whether it was written, its digest says. */
	rest.n = 0;
	for (size_t i = 0; i < armed->n && !err; i++)
		err = runs_clip(&was, &s->bare, armed->v[i].start, armed->v[i].end);
	if (!err)
		err = runs_minus(&rest, &s->found, &was);
	if (!err)
		err = runs_minus(&silent, &s->found, &rest);
	if (!err)
		err = runs_append(&s->want, &rest);
	if (!err)
		err = read_shared(s, silent.v, silent.n, NULL, &s->want);
	runs_free(&bare);
	runs_free(&was);
	runs_free(&silent);
	runs_free(&rest);
	return err;
}

/* sync: what is written waits for our thread, so that all is known of what has been under traps; the rest of a
 * mapping has come. A page that does not exist must not be read: that is a fault too.
 *
 * The target always stands: a trap that is set while a thread ends would be one for the kernel (exits.h), and what is
 * armed while the target runs may be a hole, in which another mapping comes with no event. */
static int harvest_sync(ut_space *s, ut_region *r, int flags)
{
	const ut_runs whole = {&(ut_run){r->start, r->end}, 1, 1};
	ut_runs armed = {0}, come = {0}, look = {0};
	int64_t t0;
	int err = runs_clip(&armed, &s->armed, r->start, r->end);

	if (!err && armed.n && count_before(s, r, 1))
		armed.n = 0;
	if (!err && !armed.n && leave_alone(s, r, flags)) {
		err = harvest_alone(s, r, flags);
		goto out;
	}
	if (!err)
		err = runs_minus(&come, &whole, &armed);
	if (!err && come.n)
		err = register_wp(s, r);
	if (!err)
		err = runs_append(&look, &come);
	if (!err)
		err = runs_append(&s->fresh, &come);
	if (!err)
		err = runs_clip(&look, &s->news.touched, r->start, r->end);
	if (!err)
		err = runs_clip(&look, &s->news.zapped, r->start, r->end);
	if (!err)
		err = runs_clip(&look, &s->bare, r->start, r->end);
	runs_normalise(&look);
	if (!err)
		err = populated_of(s, &look);
	if (!err)
		err = runs_minus(&s->gone, &look, &s->found);
	t0 = ut_now_ns();
	if (!err)
		err = arm_but_bare(s, r, &armed);
	s->rearm_ns += ut_now_ns() - t0;
	if (!err)
		err = runs_push(&s->next_armed, r->start, r->end);
out:
	runs_free(&armed);
	runs_free(&come);
	runs_free(&look);
	return err;
}

static int harvest_region(ut_space *s, ut_region *r, int flags)
{
	int err = -EPERM;

	if (r->kind != UT_KIND_ANON && r->kind != UT_KIND_FILE)
		return harvest_compare(s, r, flags);
	if (s->sync) {
		if (r->kind == UT_KIND_ANON)
			err = harvest_sync(s, r, flags);
		return err == -EPERM || err == -EBUSY || err == -EINVAL ? harvest_compare(s, r, flags) : err;
	}
	if (r->kind == UT_KIND_FILE && (r->prot & 2))
		return harvest_own(s, r, flags);
	if (!(flags & UT_FULL) && !was_moved(s, r) && !count_before(s, r, 1))
		err = harvest_tracked(s, r, 0);
	/* Not registered (any more): munmap and mmap, mremap, or grown by a mapping of its own. */
	if (err != -EPERM)
		return err;
	if (leave_alone(s, r, flags))
		return harvest_alone(s, r, flags);
	err = harvest_fresh(s, r, flags);
	if (err == -EPERM || err == -EBUSY || err == -EINVAL)
		return harvest_compare(s, r, flags);
	return err;
}

static int reopen(ut_space *s, const char *name, int *fd)
{
	char path[64];

	if (*fd >= 0)
		close(*fd);
	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", s->pid, s->tid, name);
	*fd = open(path, O_RDONLY | O_CLOEXEC);
	if (*fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	return 0;
}

static void swap_runs(ut_runs *a, ut_runs *b)
{
	ut_runs t = *a;

	*a = *b;
	*b = t;
	b->n = 0;
}

/* What was mapped at the last harvest and is not now has no history, should it be mapped again: a mapping
 * may grow there in place (brk, mremap, a stack) and keep its registration. */
static int unmapped(ut_space *s)
{
	ut_runs now = {0}, then = {0};
	int err = 0;

	for (size_t i = 0; i < s->before.n && !err; i++)
		err = runs_push(&then, s->before.regions[i].start, s->before.regions[i].end);
	for (size_t i = 0; i < s->maps.n && !err; i++)
		err = runs_push(&now, s->maps.regions[i].start, s->maps.regions[i].end);
	if (!err)
		err = runs_minus(&s->fresh, &then, &now);
	runs_free(&now);
	runs_free(&then);
	return err;
}

/* Digests are of what the image has, so they go where this harvest says that its contents hold no longer. */
static int void_what_is_new(ut_space *s)
{
	s->found.n = 0;
	TRY(runs_append(&s->found, &s->fresh));
	TRY(runs_append(&s->found, &s->gone));
	/* What traps told of until now may have been stored without a look at its digest. */
	TRY(runs_minus(&s->found, &s->next_bare, &s->bare));
	runs_normalise(&s->found);
	digests_void(s, &s->found);
	return 0;
}

/* Whether the memory that the uffd belongs to is no process's any more. The question must change nothing, so it
 * is one for shared memory that is registered, of which there is none; addresses below mmap_min_addr are turned
 * down without a look. */
int ut_space_is_gone(const ut_space *s)
{
	struct uffdio_continue none = {
		.range = {UT_TASK_SIZE - 2 * UT_PAGE, UT_PAGE},
		.mode = UFFDIO_CONTINUE_MODE_DONTWAKE,
	};

	return ioctl(s->uffd, UFFDIO_CONTINUE, &none) && errno == ESRCH;
}

/* Where to look. While the target runs what is known of it may be too new, so it is kept for the stop. */
static int ask_watch(ut_space *s, int flags)
{
	ut_news *news = &s->news;
	ut_runs left = {0};
	int scan = 1;

	s->by_news = 0;
	news->touched.n = news->zapped.n = news->unmapped.n = news->moved.n = 0;
	if (!s->watch)
		return 0;
	if (flags & UT_RUNNING)
		TRY(ut_watch_peek(s->watch, news));
	else
		TRY(scan = ut_watch_take(s->watch, news, !(flags & UT_NO_COPY)));
	s->by_news = !(flags & UT_FULL) && (s->sync || (!scan && !s->diff_all));
	if (flags & UT_FULL)
		s->armed.n = 0;
	TRY(runs_minus(&left, &s->armed, &news->unmapped));
	s->armed.n = 0;
	TRY(runs_minus(&s->armed, &left, &news->moved));
	runs_free(&left);
	return 0;
}

int ut_space_harvest(ut_space *s, const ut_tracee *t, int flags, const ut_run *pending, size_t npending)
{
	const ut_runs again = {(ut_run *)pending, npending, npending};
	ut_maps old = s->before;
	int err;

	if (flags & UT_RUNNING) {
		s->tid = ut_live_thread(s->pid);
		TRY(s->tid);
	}
	/* Opened anew each time: these files stay with the memory of before an exec. */
	TRY(reopen(s, "pagemap", &s->pagemap));
	TRY(reopen(s, "mem", &s->mem));
	s->before = s->maps;
	s->maps = old;
	s->plan.n = s->gone.n = s->fresh.n = s->unreadable.n = 0;
	s->next_spans.n = s->next_kept.n = s->next_known.n = s->next_armed.n = s->next_bare.n = 0;
	s->compared = 0;
	s->alone = 0;
	s->rearm_ns = 0;
	if (s->claims)
		ut_claims_drop(s->claims, s->member);
	s->nelsewhere = 0;
	if (flags & UT_FULL) {
		s->spans.n = s->kept.n = s->known.n = s->ndigests = 0;
		if (s->digests)
			memset(s->digests, 0, s->digests_cap * sizeof(*s->digests));
	}
	err = ask_watch(s, flags);
	if (!err)
		err = ut_maps_read(&s->maps, s->pid, s->tid);
	if (!err)
		err = ut_backing_find(&s->maps, &s->before, &s->filesystems, s->pid, s->tid,
				      (flags & UT_RUNNING ? 0 : UT_BACKING_SURE) |
					      (flags & UT_FULL ? UT_BACKING_ANEW : 0));
	if (!err) {
		ut_remote remote = remote_of(s);

		s->shared = ut_remote_shared(&remote, &s->maps);
		err = unmapped(s);
		if (!err && s->sync)
			err = ut_exit_pages(t, &remote, &s->next_bare);
	}
	for (size_t i = 0; i < s->maps.n && !err; i++) {
		ut_region *r = &s->maps.regions[i];

		if (r->kind >= UT_KIND_SKIP)
			continue;
		if (s->claims) {
			err = ut_is_elsewhere(s, &s->maps.regions[i]);
			if (err > 0) {
				err = 0;
				continue;
			}
			if (err)
				break;
		}
		s->want.n = 0;
		err = is_overdue(s);
		if (!err)
			err = harvest_region(s, r, flags);
		if (!err)
			err = runs_clip(&s->want, &again, r->start, r->end);
		if (err)
			break;
		runs_normalise(&s->want);
		err = runs_append(&s->plan, &s->want);
	}
	if (!err)
		err = void_what_is_new(s);
	if (!err && !(flags & UT_RUNNING))
		err = ut_heads_take(&s->heads, &s->maps, s->pagemap, s->mem);
	/* Asked last: what was seen of another memory meanwhile is of no use, and any error may come from it. */
	if (ut_space_is_gone(s))
		err = ut_live_thread(s->pid) < 0 ? -ESRCH : UT_NEW_MM;
	swap_runs(&s->spans, &s->next_spans);
	swap_runs(&s->kept, &s->next_kept);
	swap_runs(&s->known, &s->next_known);
	swap_runs(&s->armed, &s->next_armed);
	swap_runs(&s->bare, &s->next_bare);
	runs_normalise(&s->spans);
	runs_normalise(&s->known);
	return err;
}

static uint64_t max_map_count(void)
{
	FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
	unsigned long n = 0;

	if (!file)
		return 0;
	if (fscanf(file, "%lu", &n) != 1)
		n = 0;
	fclose(file);
	return n;
}

int ut_space_open(int pid, int uffd, int diff_all, ut_space **out)
{
	ut_space *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->pid = s->tid = pid;
	s->uffd = uffd;
	s->pagemap = s->mem = -1;
	s->diff_all = diff_all;
	s->max_maps = max_map_count();
	s->vec = malloc(VEC * sizeof(*s->vec));
	s->bounce = malloc(SHARES * BOUNCE);
	if (!s->vec || !s->bounce || getrandom(s->seed, sizeof(s->seed), 0) != sizeof(s->seed) ||
	    ut_space_reserve(s, 32ul << 20)) {
		s->uffd = -1; /* the caller's still */
		ut_space_close(s);
		return -ENOMEM;
	}
	*out = s;
	return 0;
}

int ut_space_watch(ut_space *s, int sync, uint64_t limit)
{
	s->sync = sync;
	return ut_watch_open(s->pid, s->uffd, sync, limit, &s->watch);
}

void ut_space_close(ut_space *s)
{
	ut_runs *lists[] = {&s->plan, &s->gone, &s->fresh, &s->spans, &s->kept, &s->known,
			    &s->next_spans, &s->next_kept, &s->next_known, &s->want, &s->found,
			    &s->unreadable, &s->armed, &s->next_armed, &s->bare, &s->next_bare};

	if (s->watch)
		ut_watch_close(s->watch);
	if (s->uffd >= 0)
		close(s->uffd); /* takes every trap away */
	if (s->pagemap >= 0)
		close(s->pagemap);
	if (s->mem >= 0)
		close(s->mem);
	for (size_t i = 0; i < sizeof(lists) / sizeof(*lists); i++)
		runs_free(lists[i]);
	ut_news_free(&s->news);
	ut_maps_free(&s->maps);
	ut_maps_free(&s->before);
	ut_filesystems_free(&s->filesystems);
	ut_heads_free(&s->heads);
	free(s->digests);
	free(s->elsewhere);
	free(s->vec);
	free(s->bounce);
	if (s->buf)
		munmap(s->buf, s->buf_cap);
	free(s);
}

static void sabotage(ut_space *s, int before_stop)
{
	size_t i = s->plan.n / 2;

	if (!s->plan.n)
		return;
	if (s->sabotage == UT_SABOTAGE_FORGET && !before_stop) {
		s->plan.v[i].start += UT_PAGE;
		if (s->plan.v[i].start == s->plan.v[i].end) {
			memmove(&s->plan.v[i], &s->plan.v[i + 1],
				(s->plan.n - i - 1) * sizeof(ut_run));
			s->plan.n--;
		}
	}
	if (s->sabotage == UT_SABOTAGE_LATE_REARM && before_stop) {
		ut_runs ignored = {0};

		scan(s->pagemap, s->vec, s->plan.v[i].start, s->plan.v[i].end, UT_SCAN_WP_MATCHING,
		     UT_PAGE_IS_WRITTEN, 0, UT_PAGE_IS_WRITTEN, found_plain, &ignored);
		runs_free(&ignored);
	}
}

/* From the stop to the resume nothing else may take our processor, where we may ask for that (root); the
 * stop itself is not included, since the target's threads may need this very processor to stop. */
void ut_set_urgent(int urgent)
{
	struct sched_param p = {.sched_priority = urgent ? 1 : 0};

	sched_setscheduler(0, urgent ? SCHED_FIFO : SCHED_OTHER, &p);
}

int ut_take_stopped(ut_tracee *t, ut_space *s, int flags, const ut_run *pending, size_t npending, ut_times *times)
{
	int64_t t0 = ut_now_ns(), t1;
	int err;

	s->tid = t->threads[ut_tracee_pick(t)].tid;
	s->give_up_ns = ut_guard_soft_end(t);
	ut_sabotage("window");
	err = ut_space_harvest(s, t, flags, pending, npending);
	ut_sabotage("harvested");
	if (s->sabotage)
		sabotage(s, 0);
	t1 = ut_now_ns();
	if (!err && (flags & UT_NO_COPY)) {
		int tid = ut_live_thread(s->pid); /* the one that was taken may end meanwhile */

		s->tid = tid < 0 ? s->tid : tid;
	} else if (!err) {
		err = ut_space_reserve(s, runs_bytes(&s->plan));
		if (!err)
			err = ut_space_copy(s, s->plan.v, s->plan.n, s->buf);
	}
	s->give_up_ns = 0;
	if (s->watch && !err)
		ut_watch_threads(s->watch);
	times->rearm_ns = s->rearm_ns;
	times->harvest_ns = t1 - t0 - (int64_t)s->rearm_ns;
	times->copy_ns = ut_now_ns() - t1;
	return err;
}

void ut_stopping(ut_space *s)
{
	if (s->sabotage)
		sabotage(s, 1);
	if (s->watch)
		ut_watch_stopping(s->watch);
}

int ut_window(ut_tracee *t, ut_space *s, int flags, const ut_run *pending, size_t npending,
	      int64_t timeout_ns, ut_times *times)
{
	int64_t t0;
	int err, urgent, late;

	err = ut_await_calls(t, timeout_ns); /* no part of the pause: all threads run */
	if (err < 0)
		return err;
	urgent = sched_getscheduler(0) == SCHED_OTHER;
	t0 = ut_now_ns();
	ut_stopping(s);
	err = ut_tracee_stop_now(t, timeout_ns);
	if (err < 0) {
		if (s->watch)
			ut_watch_resumed(s->watch);
		return err;
	}
	if (urgent)
		ut_set_urgent(1);
	times->stop_ns = ut_now_ns() - t0;
	err = ut_take_stopped(t, s, flags, pending, npending, times);
	if (s->watch)
		ut_watch_resumed(s->watch);
	late = ut_tracee_resume(t);
	if (urgent)
		ut_set_urgent(0);
	times->pause_ns = ut_now_ns() - t0;
	if (late) /* killed while they stood */
		ut_tracee_settle(t, 100000000);
	return err;
}
